//! `pgmahout report`.

use std::path::{Path, PathBuf};

use pgmahout_doctor::health::Measure;
use pgmahout_doctor::report::history::History;
use pgmahout_doctor::report::{Kind, Section, gather, html, markdown};
use pgmahout_durable::write_atomically;
use pgmahout_postgres::connection::Connection;
use pgmahout_procedure::{StateDirectory, audit};
use pgmahout_types::diagnostic::Outcome;

use super::health::{self, CheckArgs};
use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;

/// Write up a server: its checks, trends, largest tables and costliest queries.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// The state now, beside the last ten reports.
    #[command(after_long_help = "Example:\n  pgmahout report health -o report.html")]
    Health(Args),
    /// The last day.
    #[command(after_long_help = "Example:\n  pgmahout report daily -h db1 -o /var/reports/daily.md")]
    Daily(Args),
    /// The last week.
    #[command(after_long_help = "Example:\n  pgmahout report weekly -o weekly.html")]
    Weekly(Args),
    /// The last month.
    #[command(after_long_help = "Example:\n  pgmahout report monthly -o monthly.html")]
    Monthly(Args),
}

/// Where the report goes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    check: CheckArgs,

    /// File to write; its ending (.md, .html, .json) says the form [default: Markdown on stdout].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Form, where the file's ending does not say it.
    #[arg(long, value_name = "FORM")]
    format: Option<Form>,

    /// Replace FILE if it exists.
    #[arg(long)]
    force: bool,
}

/// The forms of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// Markdown.
    Markdown,
    /// One HTML file.
    Html,
    /// JSON.
    Json,
}

impl Form {
    fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "md" | "markdown" => Some(Self::Markdown),
            "html" | "htm" => Some(Self::Html),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

pub(crate) async fn run(command: Command, context: &Context) -> Result<ExitStatus, Failure> {
    let (kind, args) = match command {
        Command::Health(args) => (Kind::Health, args),
        Command::Daily(args) => (Kind::Daily, args),
        Command::Weekly(args) => (Kind::Weekly, args),
        Command::Monthly(args) => (Kind::Monthly, args),
    };
    let form = form(&args, context)?;
    if let Some(file) = args.output.as_deref().filter(|file| file.exists() && !args.force) {
        return Err(
            Failure::new(Outcome::Refused, format!("{} exists already", file.display()))
                .hint("name another file, or replace it with --force"),
        );
    }
    let parameters = context.connection(args.check.connection())?;
    let health = health::examine(&args.check, context).await?;
    let connection = Connection::open_secured(&parameters).await?;
    let target = health
        .targets
        .first()
        .cloned()
        .unwrap_or_else(|| parameters.describe());
    let state = StateDirectory::locate()?;
    let mut history = History::load(&state.path().join("reports"), &target);
    let more = procedures(&state);
    let (report, entry) = gather(&connection, kind, &target, health, &history, more).await?;
    connection.close().await;
    if let Err(error) = history.remember(entry) {
        context.printer.warn(&format!(
            "the next report will not know this one's figures: {error}"
        ));
    }
    let text = match form {
        Form::Markdown => markdown::render(&report),
        Form::Html => html::render(&report),
        Form::Json => serde_json::to_string_pretty(&report)
            .map(|text| text + "\n")
            .map_err(|error| Failure::caused_by("cannot write the report as JSON", error))?,
    };
    match &args.output {
        None => context.printer.data(&text),
        Some(file) => {
            write_atomically(file, text.as_bytes(), 0o644)?;
            context.printer.note(&format!("{} written", file.display()));
        }
    }
    Ok(ExitStatus::SUCCESS)
}

fn form(args: &Args, context: &Context) -> Result<Form, Failure> {
    if let Some(form) = args.format {
        return Ok(form);
    }
    if context.printer.wants_json() {
        return Ok(Form::Json);
    }
    match &args.output {
        None => Ok(Form::Markdown),
        Some(file) => Form::of(file).ok_or_else(|| {
            Failure::new(
                Outcome::Usage,
                format!(
                    "the ending of {} does not say which form to write",
                    file.display()
                ),
            )
            .hint("end it in .md, .html or .json, or give --format")
        }),
    }
}

/// What pgmahout itself did lately, from the audit records.
fn procedures(state: &StateDirectory) -> Vec<Section> {
    let section = Section::new("Procedures", ["when", "what", "by", "result", "took"]);
    let records = match audit::read(&state.audit_log()) {
        Ok(records) => records,
        Err(error) => return vec![section.note(format!("The audit log cannot be read: {error}."))],
    };
    if records.is_empty() {
        return vec![section.note("None was run from this host.")];
    }
    let mut section = section.note("Run from this host, the latest first.");
    for record in records.iter().rev().take(20) {
        section.rows.push(vec![
            record.ended_at.strftime("%Y-%m-%d %H:%M UTC").to_string(),
            record.title.clone(),
            record.who.to_string(),
            format!("{:?}", record.result).to_lowercase(),
            Measure::seconds(record.duration_seconds).to_string(),
        ]);
    }
    vec![section]
}
