//! `pgmahout procedure`.

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pgmahout_procedure::journal::{EndResult, Failure as Reason, Journal, Record, State, StepState, Summary};
use pgmahout_procedure::{Ended, Registry, Report, RunOptions, Runner, Surroundings};
use serde_json::json;

use crate::ExitStatus;
use crate::context::{ConfirmationArgs, Context};
use crate::failure::Failure;
use crate::printer::{Align, Palette};

/// The journal of what was run, and going on with what did not end.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    List(List),
    Show(Show),
    Resume(Resume),
    Abort(Abort),
}

/// List procedures, newest first.
///
/// Each user has procedures of their own, in $PGMAHOUT_STATE_DIR, /var/lib/pgmahout (root) or
/// ~/.local/state/pgmahout.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  pgmahout procedure list\n  pgmahout procedure list --unfinished --json"
)]
pub(crate) struct List {
    /// Only those that can be resumed or are running.
    #[arg(long)]
    unfinished: bool,

    /// At most so many; 0 for all.
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    limit: usize,
}

/// Show a procedure: what it is, where it stands, and its journal.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  pgmahout procedure show 20261121T0905")]
pub(crate) struct Show {
    /// The procedure, or the beginning of its identifier.
    #[arg(value_name = "ID")]
    id: String,
}

/// Go on with a procedure that failed, was interrupted or killed.
///
/// It goes on at the first step whose check is not satisfied: what is done already is not done again.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Examples:\n  pgmahout procedure resume 20261121T0905 --dry-run\n  \
                             pgmahout procedure resume 20261121T0905 --yes"
)]
pub(crate) struct Resume {
    /// The procedure, or the beginning of its identifier.
    #[arg(value_name = "ID")]
    id: String,

    #[command(flatten)]
    confirmation: ConfirmationArgs,
}

/// Give up a procedure that did not end.
///
/// Steps that are done stay done; what its kind cleans up is cleaned up. It cannot be resumed afterwards.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  pgmahout procedure abort 20261121T0905")]
pub(crate) struct Abort {
    /// The procedure, or the beginning of its identifier.
    #[arg(value_name = "ID")]
    id: String,

    #[command(flatten)]
    confirmation: ConfirmationArgs,
}

pub(crate) async fn run(command: Command, context: &Context) -> Result<ExitStatus, Failure> {
    match command {
        Command::List(args) => list(&args, context),
        Command::Show(args) => show(&args, context),
        Command::Resume(args) => resume(&args, context).await,
        Command::Abort(args) => abort(&args, context).await,
    }
}

/// The kinds of procedures that can be built again from their journals.
fn registry(context: &Context) -> Registry<'_> {
    let mut registry = Registry::new();
    super::dump::register(&mut registry, context);
    super::restore::register(&mut registry, context);
    registry
}

fn list(args: &List, context: &Context) -> Result<ExitStatus, Failure> {
    let runner = Runner::new()?;
    let (mut summaries, damaged) = runner.list()?;
    summaries.reverse();
    if args.unfinished {
        summaries.retain(|summary| !matches!(summary.state, State::Succeeded | State::Aborted));
    }
    let total = summaries.len();
    if args.limit > 0 {
        summaries.truncate(args.limit);
    }
    let printer = &context.printer;
    if printer.wants_json() {
        printer.json(&json!({
            "schema_version": 1,
            "state_directory": runner.state().path(),
            "procedures": summaries,
            "damaged": damaged.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }))?;
        return Ok(ExitStatus::SUCCESS);
    }
    for error in &damaged {
        printer.warn(&error.to_string());
    }
    if summaries.is_empty() {
        let which = if args.unfinished { "unfinished " } else { "" };
        printer.note(&format!(
            "There are no {which}procedures in {}.",
            runner.state().path().display()
        ));
        return Ok(ExitStatus::SUCCESS);
    }
    let rows = summaries
        .iter()
        .map(|summary| row(summary, printer.palette()))
        .collect();
    let columns = [
        ("id", Align::Left),
        ("state", Align::Left),
        ("started", Align::Left),
        ("steps", Align::Right),
        ("what", Align::Left),
        ("on", Align::Left),
    ];
    printer.table(&columns, rows);
    if total > summaries.len() {
        printer.note(&format!("{} more: --limit 0 shows all.", total - summaries.len()));
    }
    Ok(ExitStatus::SUCCESS)
}

fn row(summary: &Summary, palette: &Palette) -> Vec<String> {
    vec![
        summary.id.clone(),
        painted(summary.state, palette),
        local(summary.started_at),
        format!("{}/{}", summary.steps_done, summary.steps),
        summary.title.clone(),
        summary.target.clone(),
    ]
}

fn painted(state: State, palette: &Palette) -> String {
    match state {
        State::Succeeded => palette.good(state.as_str()),
        State::Running | State::Interrupted => palette.caution(state.as_str()),
        State::Failed => palette.bad(state.as_str()),
        State::Aborted => palette.faint(state.as_str()),
    }
}

/// A time on this machine's clock.
fn local(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

fn show(args: &Show, context: &Context) -> Result<ExitStatus, Failure> {
    let journal = Runner::new()?.show(&args.id)?;
    let printer = &context.printer;
    if printer.wants_json() {
        printer.json(&as_json(&journal))?;
    } else {
        printer.data(&as_text(&journal, printer.palette()));
    }
    Ok(ExitStatus::SUCCESS)
}

fn as_json(journal: &Journal) -> serde_json::Value {
    json!({
        "schema_version": 1,
        "procedure": journal.summary(),
        "parameters": journal.header.parameters,
        "target": journal.header.target,
        "attempts": journal.attempts(),
        "steps": steps(journal).into_iter().map(|(name, description, state)| json!({
            "name": name, "description": description, "state": state,
        })).collect::<Vec<_>>(),
        "plan": journal.plan(),
        "records": journal.entries,
    })
}

/// Name, description and state of each planned step.
fn steps(journal: &Journal) -> Vec<(&str, &str, StepState)> {
    journal.plan().map_or_else(Vec::new, |plan| {
        plan.steps
            .iter()
            .map(|step| {
                let state = match journal.step(&step.name) {
                    StepState::Pending if step.done => StepState::Done,
                    state => state,
                };
                (step.name.as_str(), step.description.as_str(), state)
            })
            .collect()
    })
}

fn as_text(journal: &Journal, palette: &Palette) -> String {
    let header = &journal.header;
    let state = journal.state();
    let mut lines = vec![
        format!("{}  {}", palette.strong(&header.id), painted(state, palette)),
        format!("  what      {}", header.title),
        format!("  on        {}", header.target.description),
        format!(
            "  by        {}, process {}, pgmahout {}",
            header.who, header.who.process, header.version
        ),
        format!("  started   {}", local(journal.started_at())),
    ];
    if matches!(state, State::Succeeded | State::Aborted) {
        lines.push(format!("  ended     {}", local(journal.last_at())));
    }
    if journal.attempts() > 1 {
        lines.push(format!("  attempts  {}", journal.attempts()));
    }
    lines.push(String::new());
    for (number, (_, description, step)) in steps(journal).into_iter().enumerate() {
        let word = match step {
            StepState::Done => palette.good("done"),
            StepState::Started => palette.caution("begun"),
            StepState::Failed => palette.bad("failed"),
            StepState::Pending => palette.faint("to do"),
        };
        lines.push(format!("  {}. {description}: {word}", number + 1));
    }
    lines.push(String::new());
    lines.extend(journal.entries.iter().flat_map(|entry| {
        let time = local(entry.at);
        record_text(&entry.record)
            .into_iter()
            .map(move |text| format!("  {time}  {text}"))
    }));
    if matches!(state, State::Interrupted | State::Failed) {
        lines.push(String::new());
        lines.push(format!(
            "{} pgmahout procedure resume {}",
            palette.strong("to go on:"),
            header.id
        ));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// A record in words; what only programs need is left out.
fn record_text(record: &Record) -> Vec<String> {
    let reason = |first: String, failure: &Reason| {
        let mut lines = vec![format!("{first}: {}", failure.message)];
        lines.extend(failure.causes.iter().map(|cause| format!("  caused by: {cause}")));
        lines
    };
    match record {
        Record::Header(header) => vec![format!("started by {}", header.who)],
        Record::Planned { .. } | Record::Remembered { .. } => Vec::new(),
        Record::Resumed { who } => vec![format!("resumed by {who}, process {}", who.process)],
        Record::StepStarted { step } => vec![format!("{step}: begun")],
        Record::StepSucceeded { step } => vec![format!("{step}: done")],
        Record::StepFound { step } => vec![format!("{step}: was done already")],
        Record::StepFailed { step, failure } => reason(format!("{step}: failed"), failure),
        Record::Interrupted { step } => vec![format!("interrupted before {step} was done")],
        Record::VerificationFailed { failure } => reason("closing verification failed".to_owned(), failure),
        Record::Verified { findings } => {
            let mut lines = vec!["closing verification held".to_owned()];
            lines.extend(findings.iter().map(|finding| format!("  {finding}")));
            lines
        }
        Record::Ended {
            result: EndResult::Succeeded,
        } => vec!["succeeded".to_owned()],
        Record::Ended {
            result: EndResult::Aborted,
        } => vec!["given up".to_owned()],
        _ => vec!["something that a newer pgmahout has written".to_owned()],
    }
}

async fn resume(args: &Resume, context: &Context) -> Result<ExitStatus, Failure> {
    let confirmation = context.confirmation(&args.confirmation);
    let reporter = context.reporter();
    let surroundings = Surroundings {
        confirm: &confirmation,
        reporter: &reporter,
        cancellation: &context.cancellation,
    };
    let options = RunOptions {
        dry_run: args.confirmation.dry_run,
        ..RunOptions::default()
    };
    let registry = registry(context);
    let ended = Runner::new()?
        .resume(&args.id, &registry, options, surroundings)
        .await?;
    print_ended(&ended, context)?;
    Ok(ExitStatus::SUCCESS)
}

/// Prints how a run ended: the plan of a dry run, or what was done.
pub(crate) fn print_ended(ended: &Ended, context: &Context) -> Result<(), Failure> {
    let printer = &context.printer;
    match ended {
        Ended::DryRun(plan) if printer.wants_json() => {
            printer.json(&json!({"schema_version": 1, "dry_run": true, "plan": plan}))
        }
        Ended::DryRun(plan) => {
            printer.data(&plan.to_string());
            Ok(())
        }
        Ended::Done(report) if printer.wants_json() => {
            printer.json(&json!({"schema_version": 1, "dry_run": false, "report": report}))
        }
        Ended::Done(report) => {
            printer.data(&report_text(report));
            Ok(())
        }
    }
}

fn report_text(report: &Report) -> String {
    let mut text = format!(
        "Done: {} in {:.1} s (procedure {}).\n",
        report.title, report.seconds, report.id
    );
    for finding in &report.verified {
        let _ = writeln!(text, "  verified: {finding}");
    }
    if let Some(seconds) = report.downtime_seconds {
        let _ = writeln!(text, "  downtime: {seconds:.1} s");
    }
    if let Some(loss) = &report.data_loss {
        let _ = writeln!(text, "  data loss: {loss}");
    }
    text
}

async fn abort(args: &Abort, context: &Context) -> Result<ExitStatus, Failure> {
    let runner = Runner::new()?;
    if args.confirmation.dry_run {
        return show(&Show { id: args.id.clone() }, context);
    }
    let confirmation = context.confirmation(&args.confirmation);
    let reporter = context.reporter();
    let surroundings = Surroundings {
        confirm: &confirmation,
        reporter: &reporter,
        cancellation: &context.cancellation,
    };
    let registry = registry(context);
    let (journal, findings) = runner.abort(&args.id, &registry, surroundings).await?;
    let printer = &context.printer;
    if printer.wants_json() {
        printer.json(&json!({
            "schema_version": 1,
            "procedure": journal.summary(),
            "cleaned_up": findings,
        }))?;
    } else {
        printer.line(&format!(
            "Given up: {} (procedure {}).",
            journal.header.title, journal.header.id
        ));
        for finding in findings {
            printer.line(&format!("  {finding}"));
        }
    }
    Ok(ExitStatus::SUCCESS)
}
