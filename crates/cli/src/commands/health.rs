//! `pgmahout health`.

mod backups;
mod dumps;
mod settings;
mod text;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pgmahout_doctor::health::format::{nagios, prometheus};
use pgmahout_doctor::health::sample::SampleStore;
use pgmahout_doctor::health::sessions::Opener;
use pgmahout_doctor::health::{HealthReport, Request, Role, Runner, Selection, Status, Target, Unit, checks};
use pgmahout_durable::write_atomically;
use pgmahout_postgres::params::{ConnectionParameters, TargetSessionAttributes};
use pgmahout_procedure::StateDirectory;
use pgmahout_types::diagnostic::Outcome;

pub(crate) use text::render as render_text;

use crate::ExitStatus;
use crate::context::{ConnectionArgs, Context};
use crate::failure::Failure;
use crate::printer::Align;

/// Check a server: what is wrong, on which evidence, and what to do.
///
/// Runs every check that applies, on at most three connections, read-only, without waiting behind anybody's
/// lock. Prints what is not OK and a line of counts. UNKNOWN means that something could not be seen, and
/// says what would show it. With several hosts (-h db1,db2), every one is checked.
///
/// Checks over an interval compare with the last run; --interval looks for that long instead.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  \
    pgmahout health -h db1 -U monitor\n  \
    pgmahout health -h db1,db2 --all\n  \
    pgmahout health --only 'replication.*' --set replication.lag_seconds=1s,10s\n  \
    pgmahout health --watch 5s\n  \
    pgmahout health --format nagios --interval 1s\n  \
    pgmahout health --format prometheus -o /var/lib/prometheus/node-exporter/pgmahout.prom\n\n\
    Exit status: 0 when nothing is CRIT, 1 when something is (with --strict: when anything is not OK); with \
    --format nagios 0, 1, 2, 3 as Nagios has it; with --format prometheus 0 whenever the metrics were written, \
    whatever they say; 2 for bad usage.")]
pub(crate) struct Args {
    #[command(flatten)]
    check: CheckArgs,

    /// Print what is OK, and what does not apply, too.
    #[arg(long)]
    all: bool,

    /// List the checks and their thresholds; connect to nothing.
    #[arg(long, conflicts_with_all = ["watch", "output"])]
    list: bool,

    /// Form of the answer.
    #[arg(long, value_name = "FORM", default_value = "text")]
    format: Form,

    /// Write the answer to FILE, whole or not at all.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Run again and again, this long apart (100ms at least), and mark what has changed since the start.
    #[arg(long, value_name = "DURATION", value_parser = pause)]
    watch: Option<Duration>,

    /// Exit with 1 for WARN and UNKNOWN too (text and JSON).
    #[arg(long)]
    strict: bool,
}

/// The forms of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// For people.
    Text,
    /// One object, as --json.
    Json,
    /// One line with performance data, and Nagios' exit status.
    Nagios,
    /// Metrics for the node exporter's textfile collector.
    Prometheus,
}

/// What to check, and how.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    connection: ConnectionArgs,

    /// Run only these checks; globs are allowed, and a family such as `wal` means all of it.
    #[arg(long, value_name = "CHECKS", value_delimiter = ',')]
    only: Vec<String>,

    /// Leave these checks out.
    #[arg(long, value_name = "CHECKS", value_delimiter = ',')]
    skip: Vec<String>,

    /// Change thresholds, for example connections.used=70%,85%; may be given more than once.
    #[arg(long, value_name = "NAME=WARN,CRIT")]
    set: Vec<String>,

    /// Look at counters for this long, instead of comparing them with the last run.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    interval: Option<Duration>,

    /// The role that the server should have.
    #[arg(long, value_name = "ROLE")]
    expect_role: Option<ExpectedRole>,

    /// How many standbys should stream from the primary.
    #[arg(long, value_name = "NUMBER")]
    expect_standbys: Option<u32>,

    /// The PgBouncer in front of the server.
    #[arg(long, value_name = "DSN")]
    pooler: Option<String>,

    /// The server's data directory, where it is on this machine and cannot be asked.
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,

    /// The server's log file, where it cannot be found out.
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

/// The role of a server, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ExpectedRole {
    /// Takes writes.
    Primary,
    /// Replays a primary's WAL.
    Standby,
}

impl CheckArgs {
    /// Where the server is.
    pub(crate) fn connection(&self) -> &ConnectionArgs {
        &self.connection
    }

    /// The pooler's admin console, where a pooler is named.
    pub(crate) fn pooler(&self, context: &Context) -> Result<Option<ConnectionParameters>, Failure> {
        let Some(dsn) = settings::pooler(self.pooler.as_deref(), context)? else {
            return Ok(None);
        };
        Ok(Some(
            ConnectionParameters::from_dsn(&dsn, &context.environment)?.with_database("pgbouncer"),
        ))
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let seconds = Unit::Seconds.parse(text).map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Less than this between two looks would be a load of its own.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

fn pause(text: &str) -> Result<Duration, String> {
    let pause = duration(text)?;
    if pause < SHORTEST_PAUSE {
        return Err("must be at least 100ms".to_owned());
    }
    Ok(pause)
}

/// Everything that is needed to look, once or again and again.
struct Examination {
    runner: Runner,
    targets: Vec<Target>,
    request: Request,
}

impl Examination {
    fn prepare(args: &CheckArgs, context: &Context) -> Result<Self, Failure> {
        let runner = runner(args, context)?;
        let parameters = context.connection(&args.connection)?;
        Ok(Self {
            targets: targets(args, &parameters, context)?,
            request: Request {
                selection: selection(args, &runner, context)?,
                interval: args.interval,
            },
            runner,
        })
    }

    async fn look(&self, context: &Context) -> Result<HealthReport, Failure> {
        let report = self
            .runner
            .run(&self.targets, &self.request, &context.cancellation)
            .await;
        report.ok_or_else(|| {
            Failure::new(
                Outcome::Interrupted,
                "interrupted before every check had answered",
            )
        })
    }
}

/// What was selected; a pattern that matches nothing is refused.
fn selection(args: &CheckArgs, runner: &Runner, context: &Context) -> Result<Selection, Failure> {
    let ids: Vec<&str> = runner.catalogue().map(|(id, _, _)| id).collect();
    let mut selection = Selection {
        only: args.only.clone(),
        skip: args.skip.clone(),
    };
    selection.validate(ids.iter().copied())?;
    // What is asked for by name runs, even where the configuration switches it off.
    if args.only.is_empty() {
        selection.skip.extend(settings::disabled(context, &ids)?);
    }
    selection.ensure_any(ids.iter().copied())?;
    Ok(selection)
}

fn runner(args: &CheckArgs, context: &Context) -> Result<Runner, Failure> {
    let mut all = checks::standard();
    let log_file = match &args.log_file {
        Some(file) => Some(file.clone()),
        None => settings::log_file(context)?,
    };
    all.extend(checks::log::checks(log_file));
    if let Some(console) = args.pooler(context)? {
        all.extend(checks::pool::checks(console));
    }
    all.extend(checks::custom::checks(settings::custom(context)?));
    let mut runner = Runner::new(all).sources(settings::sources(context)?);
    if let Ok(state) = StateDirectory::locate() {
        runner = runner.samples(SampleStore::new(state.path().join("health")));
    }
    settings::set_thresholds(runner.limits_mut(), context)?;
    for assignment in &args.set {
        runner.limits_mut().set(assignment)?;
    }
    Ok(runner)
}

/// Every host that was named is a target of its own, whatever kind of session was asked for.
fn targets(
    args: &CheckArgs,
    parameters: &ConnectionParameters,
    context: &Context,
) -> Result<Vec<Target>, Failure> {
    let expectations = settings::expectations(args, context)?;
    // One directory cannot be that of several servers.
    let data_directory = match &args.data_dir {
        _ if parameters.hosts.len() > 1 => None,
        Some(directory) => Some(directory.clone()),
        None => settings::data_directory(context)?,
    };
    Ok(parameters
        .hosts
        .iter()
        .map(|host| {
            let mut own = parameters.at_host(host);
            own.target_session_attributes = TargetSessionAttributes::Any;
            let mut target = Target::new(host.to_string(), Arc::new(Opener::new(&own)));
            target.expectations = expectations.clone();
            target.data_directory.clone_from(&data_directory);
            target
        })
        .collect())
}

impl From<ExpectedRole> for Role {
    fn from(role: ExpectedRole) -> Self {
        match role {
            ExpectedRole::Primary => Self::Primary,
            ExpectedRole::Standby => Self::Standby,
        }
    }
}

/// Runs the checks once.
pub(crate) async fn examine(args: &CheckArgs, context: &Context) -> Result<HealthReport, Failure> {
    Examination::prepare(args, context)?.look(context).await
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let form = if context.printer.wants_json() {
        Form::Json
    } else {
        args.format
    };
    if args.list {
        return list(&args, context, form);
    }
    let examination = Examination::prepare(&args.check, context)?;
    if let Some(pause) = args.watch {
        return watch::run(&examination, &args, form, pause, context).await;
    }
    let report = examination.look(context).await?;
    for note in &report.notes {
        context.printer.warn(note);
    }
    publish(&report, &args, form, context)?;
    Ok(exit_status(&report, &args, form))
}

/// Prints the report, or writes it to the file that was named.
fn publish(report: &HealthReport, args: &Args, form: Form, context: &Context) -> Result<(), Failure> {
    let text = match form {
        Form::Text => render_text(report, args.all, &context.printer),
        Form::Json if args.output.is_none() => return context.printer.json(report),
        Form::Json => {
            let text = serde_json::to_string_pretty(report)
                .map_err(|error| Failure::caused_by("cannot write the result as JSON", error))?;
            format!("{text}\n")
        }
        Form::Nagios => format!("{}\n", nagios::line(report)),
        Form::Prometheus => prometheus::metrics(report),
    };
    match &args.output {
        // The collector runs as another user and must be able to read it.
        Some(file) => write_atomically(file, text.as_bytes(), 0o644)?,
        None => context.printer.data(&text),
    }
    Ok(())
}

fn exit_status(report: &HealthReport, args: &Args, form: Form) -> ExitStatus {
    ExitStatus(match form {
        Form::Nagios => nagios::exit_status(report),
        // The collector's job has failed only where there are no metrics; alerts are made of those.
        Form::Prometheus => 0,
        Form::Text | Form::Json => {
            u8::from(report.status == Status::Crit || (args.strict && report.status != Status::Ok))
        }
    })
}

fn list(args: &Args, context: &Context, form: Form) -> Result<ExitStatus, Failure> {
    let runner = runner(&args.check, context)?;
    let selection = selection(&args.check, &runner, context)?;
    let mut rows = Vec::new();
    let mut objects = Vec::new();
    for (id, title, limits) in runner.catalogue().filter(|(id, _, _)| selection.selects(id)) {
        let described: Vec<(String, String)> = limits
            .iter()
            .filter_map(|limit| {
                let thresholds = runner.limits().get(&limit.id)?;
                Some((limit.id.to_string(), thresholds.describe(limit.unit)))
            })
            .collect();
        objects.push(serde_json::json!({
            "id": id,
            "measures": title,
            "thresholds": limits.iter().map(|limit| serde_json::json!({
                "name": limit.id,
                "unit": limit.unit,
                "thresholds": runner.limits().get(&limit.id),
            })).collect::<Vec<_>>(),
        }));
        let mut described = described.into_iter();
        let first = match limits.first() {
            Some(limit) if limit.id == id => described.next().map(|(_, text)| text).unwrap_or_default(),
            _ => String::new(),
        };
        rows.push(vec![id.to_owned(), first, title.to_owned()]);
        for (name, text) in described {
            rows.push(vec![format!("  {name}"), text, String::new()]);
        }
    }
    if form == Form::Json {
        context
            .printer
            .json(&serde_json::json!({ "schema_version": 1, "checks": objects }))?;
    } else {
        context.printer.table(
            &[
                ("check", Align::Left),
                ("thresholds", Align::Left),
                ("measures", Align::Left),
            ],
            rows,
        );
    }
    Ok(ExitStatus::SUCCESS)
}
