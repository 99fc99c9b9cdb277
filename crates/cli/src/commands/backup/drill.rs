//! `pgmahout backup drill`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use pgmahout_backup::physical::drill::{self, Assertion, DrillReport, DrillRequest, To, Which};
use pgmahout_backup::physical::restore::{Moment, Target};
use pgmahout_config::quantity;
use pgmahout_types::repository::Label;
use pgmahout_types::{Bytes, HumanDuration};
use serde_json::json;

use crate::ExitStatus;
use crate::commands::physical::{RepositoryArgs, fetch_command, name_of};
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::Align;

/// Restore a backup for real, into a scratch directory, to know that it can be.
///
/// Restores the newest backup (or one at random) to the end of the archive (or to a random point in it), starts a
/// private server on it that recovers by the same restore_command as in earnest, opens every database, checks
/// every table and index with pg_amcheck --heapallindexed, asks the assertions, measures how long it all took,
/// stops the server and removes everything. The result stands beside the backup, where health, reports and backup
/// list see it. Refuses where the scratch file system has too little room.
///
/// The restored server reaches nobody: it listens on a private socket, archives nothing, runs no subscriptions,
/// and loads none of shared_preload_libraries unless --preload is given.
#[derive(Debug, ClapArgs)]
#[command(after_long_help = "\
Examples:
  pgmahout backup drill
  pgmahout backup drill --random --to random --scratch /srv/drill     for a weekly timer
  pgmahout backup drill --assert 'SELECT count(*) > 1000 FROM orders' --database shop")]
pub(crate) struct Args {
    /// The backup [default: the newest].
    #[arg(value_name = "LABEL", conflicts_with = "random")]
    label: Option<Label>,

    /// Take any of the backups.
    #[arg(long)]
    random: bool,

    /// Where recovery ends: latest, random, immediate, or a time such as 2026-11-21 14:30:00+01.
    #[arg(long, value_name = "TARGET", default_value = "latest")]
    to: String,

    /// Where the scratch directory is made [default: $TMPDIR, or /tmp].
    #[arg(long, value_name = "DIRECTORY")]
    scratch: Option<PathBuf>,

    /// A query that must return true in the restored server; may be given several times.
    #[arg(long = "assert", value_name = "SQL")]
    assertions: Vec<String>,

    /// The database that the queries of --assert are asked in.
    #[arg(long, value_name = "NAME", requires = "assertions")]
    database: Option<String>,

    /// A superuser of the cluster, by whom the restored server is examined [default: postgres, or whoever runs
    /// this].
    #[arg(short = 'U', long, value_name = "ROLE")]
    username: Option<String>,

    /// Leave pg_amcheck out.
    #[arg(long)]
    no_amcheck: bool,

    /// Load shared_preload_libraries, with whatever they do in the background.
    #[arg(long)]
    preload: bool,

    /// How long recovery may take.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    timeout: Duration,

    /// Leave the restored directory behind.
    #[arg(long)]
    keep: bool,

    /// Threads [default: backup.jobs of the configuration, else 2].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    jobs: Option<u32>,

    /// The directory of PostgreSQL's programs.
    #[arg(long, value_name = "DIRECTORY")]
    bin_dir: Option<PathBuf>,

    /// The restore_command [default: this program's wal fetch, from the same repository].
    #[arg(long, value_name = "COMMAND")]
    restore_command: Option<String>,

    #[command(flatten)]
    repository: RepositoryArgs,
}

fn duration(text: &str) -> Result<Duration, String> {
    quantity::duration(text).ok_or_else(|| "give a duration such as 30min or 24h".to_owned())
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let settings = context.settings()?;
    let opened = args.repository.open_one(context).await?;
    let restore_command = match &args.restore_command {
        Some(given) => given.clone(),
        None => fetch_command(&args.repository, &opened, context)?,
    };
    let to = match args.to.as_str() {
        "latest" => To::Latest,
        "random" => To::Random,
        "immediate" => To::Target(Target::Immediate),
        time => To::Target(Target::Time(Moment::parse(time, None)?)),
    };
    let which = match (args.label, args.random) {
        (Some(label), _) => Which::Label(label),
        (None, true) => Which::Random,
        (None, false) => Which::Newest,
    };
    let configured = settings.backup.assertions.iter().map(|assertion| Assertion {
        name: assertion.name.clone(),
        sql: assertion.sql.clone(),
        database: assertion.database.clone(),
    });
    let given = args.assertions.iter().map(|sql| Assertion {
        name: sql.clone(),
        sql: sql.clone(),
        database: args.database.clone(),
    });
    let mut roles: Vec<String> = args.username.clone().into_iter().collect();
    if roles.is_empty() {
        roles.push("postgres".to_owned());
        let own = std::env::var("PGUSER").or_else(|_| std::env::var("USER"));
        roles.extend(own.ok().filter(|own| own != "postgres"));
    }
    let request = DrillRequest {
        which,
        to,
        scratch: args.scratch.clone(),
        bin_dir: args.bin_dir.clone().or_else(|| settings.server.bin_dir.clone()),
        restore_command,
        jobs: args.jobs.or(settings.backup.jobs).unwrap_or(2) as usize,
        roles,
        assertions: configured.chain(given).collect(),
        amcheck: !args.no_amcheck,
        preload: args.preload,
        timeout: args.timeout,
        keep: args.keep,
    };
    let reporter = context.reporter();
    let report = Box::pin(drill::drill(
        &opened.repository,
        &request,
        reporter.as_ref(),
        &context.cancellation,
    ))
    .await?;
    if context.printer.wants_json() {
        context.printer.json(&json!({
            "schema_version": 1,
            "repository": name_of(&opened.chosen.store),
            "recovery_time_seconds": report.recovery_time(),
            "drill": report,
        }))?;
    } else {
        render(context, &report);
    }
    Ok(ExitStatus(u8::from(!report.passed)))
}

fn render(context: &Context, report: &DrillReport) {
    let printer = &context.printer;
    let palette = *printer.palette();
    let seconds =
        |seconds: f64| HumanDuration(Duration::try_from_secs_f64(seconds).unwrap_or_default()).to_string();
    let mut rows = vec![
        vec![
            "files".to_owned(),
            palette.good("ok"),
            format!(
                "{} restored in {}",
                Bytes::new(report.bytes),
                seconds(report.restore_seconds)
            ),
        ],
        vec![
            "recovery".to_owned(),
            palette.good("ok"),
            format!(
                "to {} in {}{}{}",
                report.target,
                seconds(report.recovery_seconds),
                report
                    .recovered_to
                    .as_ref()
                    .map(|lsn| format!("; redone up to {lsn}"))
                    .unwrap_or_default(),
                report
                    .last_commit
                    .as_ref()
                    .map(|time| format!("; last commit {time}"))
                    .unwrap_or_default(),
            ),
        ],
    ];
    for finding in &report.findings {
        let status = if finding.passed {
            palette.good("ok")
        } else {
            palette.bad("FAILED")
        };
        rows.push(vec![finding.what.clone(), status, finding.detail.clone()]);
    }
    let columns = [
        ("what", Align::Left),
        ("status", Align::Left),
        ("detail", Align::Left),
    ];
    printer.table(&columns, rows);
    printer.line(&format!(
        "Backup {} {}: PostgreSQL {} answered {} after the start of the restore.",
        report.label,
        if report.passed {
            palette.good("can be restored")
        } else {
            palette.bad("FAILED its drill")
        },
        report.server_version,
        seconds(report.recovery_time()),
    ));
    if let Some(kept) = &report.kept {
        printer.note(&format!("Left behind: {}", kept.display()));
    }
}
