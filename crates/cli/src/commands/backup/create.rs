//! `pgmahout backup create`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use pgmahout_backup::physical::create::{self, CreateRequest, Created, ReadFilter, default_jobs};
use pgmahout_config::quantity;
use pgmahout_config::settings::{self, Checkpoint};
use pgmahout_postgres::params::{ConnectionOptions, ConnectionParameters};
use pgmahout_store::codec::Codec;
use pgmahout_store::framed::FrameCodec;
use pgmahout_types::diagnostic::Outcome;
use pgmahout_types::{Bytes, HumanDuration};
use serde_json::json;

use super::super::physical::{DataDirectoryArgs, Opened, RepositoryArgs};
use super::list::time;
use crate::ExitStatus;
use crate::context::{ConnectionArgs, Context};
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  pgmahout backup create                               into every configured repository
  pgmahout backup create --repo offsite                into one of them
  pgmahout backup create --repo /srv/pgmahout          into a directory that `pgmahout repo init` has set up
  pgmahout backup create --from-standby -h db2 --primary 'host=db1'
  pgmahout backup create --remote -h db1 -U replicator   of a server whose disk is elsewhere
  pgmahout backup create --jobs 1 --nice 10 --rate-limit 50MB
  pgmahout backup create --annotate reason='before the migration'

Run it on the server's own machine, as an account that can read the data directory (postgres or
root), or anywhere with --remote, as a role with REPLICATION and a line for replication in
pg_hba.conf. Every backup can be restored by itself; only pages that no older backup has are
stored. The backup is listed when every WAL segment that it needs is in the repository.

Exit status 1 when pages are damaged, unless --allow-checksum-failures, and when something of --include or
backup.include could not be taken along: the backup is kept all the same.";

/// Take a physical backup of a running server.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    repository: RepositoryArgs,

    #[command(flatten)]
    server: DataDirectoryArgs,

    /// Take the files through the replication protocol (BASE_BACKUP): for a server, primary or standby, whose
    /// disk cannot be read from here; --data-dir is not looked at. PostgreSQL 15 and later.
    #[arg(long)]
    remote: bool,

    /// Take the files of a standby.
    #[arg(long)]
    from_standby: bool,

    /// The standby's primary, as a connection string: it is asked to switch WAL at the end.
    #[arg(long, value_name = "DSN")]
    primary: Option<String>,

    /// Whether the server makes its checkpoint at once, or spread out to spare its disks [default: fast].
    #[arg(long, value_enum)]
    checkpoint: Option<CheckpointArg>,

    /// Worker threads [default: one per processor].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: Option<u32>,

    /// Lower the workers' priority, 0 to 19.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=19))]
    nice: Option<u32>,

    /// The most that is read in a second, for example 50MB.
    #[arg(long, value_name = "SIZE")]
    rate_limit: Option<String>,

    /// Which files need not be read [default: auto]: with auto and mtime those that nobody has written to since the
    /// last backup of this machine, as size, times and inode tell; none reads everything.
    #[arg(long, value_enum)]
    read_filter: Option<ReadFilterArg>,

    /// How many percent of what is left unread are read nevertheless, and compared [default: 1].
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    verify_skipped: Option<u32>,

    /// zstd[:1-19], lz4 or none [default: the repository's, else zstd:1].
    #[arg(long, value_name = "CODEC")]
    compress: Option<String>,

    /// Take this file or directory along, beside backup.include of the configuration; may be given several times.
    #[arg(long, value_name = "PATH", value_parser = absolute)]
    include: Vec<PathBuf>,

    /// A note that is kept with the backup; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    annotate: Vec<String>,

    /// End with status 0 even if pages are damaged.
    #[arg(long)]
    allow_checksum_failures: bool,

    /// Do not ask whether the server archives: its WAL reaches the repository another way.
    #[arg(long)]
    no_archive_check: bool,

    /// How long to wait for the last WAL segment [default: 10min].
    #[arg(long, value_name = "DURATION")]
    archive_timeout: Option<String>,

    /// Store everything anew that an interrupted backup had stored.
    #[arg(long)]
    no_resume: bool,

    #[command(flatten)]
    connection: ConnectionArgs,
}

/// How the server begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum CheckpointArg {
    Fast,
    Spread,
}

/// What lets it skip reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ReadFilterArg {
    Auto,
    Mtime,
    None,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let request = request(&args, context)?;
    let allowed = args.allow_checksum_failures || context.settings()?.backup.allow_checksum_failures;
    let repositories = args.repository.try_open_all(context).await?;
    let total = repositories.len();
    let reporter = context.reporter();
    let mut created: Vec<Created> = Vec::new();
    let mut failed: Vec<(String, Failure)> = Vec::new();
    for (name, opened) in repositories {
        let taken = match opened {
            Ok(Opened { repository, .. }) => {
                create::create(&request, &repository, &reporter, &context.cancellation)
                    .await
                    .map_err(Failure::from)
            }
            Err(failure) => Err(failure),
        };
        match taken {
            Ok(backup) => {
                if !context.printer.wants_json() {
                    render(&backup, context);
                }
                created.push(backup);
            }
            Err(failure) => failed.push((name, failure)),
        }
        if context.cancellation.is_cancelled() {
            break;
        }
    }
    if context.printer.wants_json() && (failed.is_empty() || !created.is_empty()) {
        context.printer.json(&json!({
            "schema_version": 1,
            "backups": created,
            "failed": failed.iter().map(|(name, failure)| json!({
                "repository": name,
                "error": failure.summary(),
            })).collect::<Vec<_>>(),
        }))?;
    }
    if !failed.is_empty() {
        return Err(failure(failed, total));
    }
    let damaged = created.iter().any(|backup| backup.damaged_pages > 0);
    let incomplete = created.iter().any(|backup| !backup.not_included.is_empty());
    Ok(ExitStatus(u8::from(damaged && !allowed || incomplete)))
}

/// One failure of all: itself where there is only one repository.
fn failure(mut failed: Vec<(String, Failure)>, total: usize) -> Failure {
    let count = failed.len();
    let others: Vec<String> = failed
        .iter()
        .skip(1)
        .map(|(name, failure)| format!("{name}: {}", failure.summary()))
        .collect();
    let (name, first) = failed.swap_remove(0);
    if total == 1 {
        return first;
    }
    let mut text = format!("the backup failed in {count} of {total} repositories");
    for other in others {
        text.push_str("\n- ");
        text.push_str(&other);
    }
    first.context(format!("repository {name}")).context(text)
}

fn request(args: &Args, context: &Context) -> Result<CreateRequest, Failure> {
    let settings = context.settings()?;
    let configured = &settings.backup;
    let primary = match &args.primary {
        Some(dsn) => {
            let options = ConnectionOptions {
                dsn: Some(dsn.clone()),
                ..ConnectionOptions::default()
            };
            Some(ConnectionParameters::resolve(&options, &context.environment)?)
        }
        None => None,
    };
    let codec = match &args.compress {
        Some(text) => {
            let codec = text.parse::<Codec>()?;
            if matches!(codec, Codec::Gzip(_)) {
                return Err(
                    Failure::new(Outcome::Usage, "physical backups are not compressed by gzip")
                        .hint("use zstd[:1-19], lz4 or none"),
                );
            }
            Some(FrameCodec::from(codec))
        }
        None => None,
    };
    let rate_limit = match &args.rate_limit {
        Some(text) => Some(quantity::size(text).ok_or_else(|| {
            Failure::new(Outcome::Usage, format!("--rate-limit: \"{text}\" is not a size"))
                .hint("for example 50MB or 100MiB, which is meant by the second")
        })?),
        None => configured.rate_limit,
    };
    let wal_timeout = match &args.archive_timeout {
        Some(text) => quantity::duration(text).ok_or_else(|| {
            Failure::new(
                Outcome::Usage,
                format!("--archive-timeout: \"{text}\" is not a duration"),
            )
            .hint("for example 90s, 10min or 1h")
        })?,
        None => configured.archive_timeout.unwrap_or(Duration::from_mins(10)),
    };
    let fast = match args.checkpoint {
        Some(checkpoint) => checkpoint == CheckpointArg::Fast,
        None => configured.checkpoint == Checkpoint::Fast,
    };
    let remote = args.remote || configured.remote;
    let from_standby = args.from_standby || (configured.from_standby && !remote);
    if primary.is_some() && !from_standby && !remote {
        return Err(
            Failure::new(Outcome::Usage, "--primary names the primary of a standby")
                .hint("add --from-standby, or --remote where the server's disk is elsewhere"),
        );
    }
    Ok(CreateRequest {
        data_dir: if remote { None } else { args.server.given(context)? },
        remote,
        from_standby,
        primary,
        fast_checkpoint: fast,
        jobs: args
            .jobs
            .or(configured.jobs)
            .map_or_else(default_jobs, |jobs| jobs as usize),
        nice: args.nice.or(configured.nice).unwrap_or(0) as i32,
        rate_limit,
        read_filter: read_filter(args, configured.read_filter)?,
        verify_skipped: args.verify_skipped.or(configured.verify_skipped).unwrap_or(1),
        codec,
        annotations: annotations(&args.annotate)?,
        skip_archive_check: args.no_archive_check,
        wal_timeout,
        include: configured.include.iter().chain(&args.include).cloned().collect(),
        resume: !args.no_resume,
        ..CreateRequest::new(connection(args, context)?)
    })
}

/// The connection, to the database that libpq's rules give, else to `postgres`: any will do, and that one is
/// nearly always there.
fn connection(args: &Args, context: &Context) -> Result<ConnectionParameters, Failure> {
    let parameters = context.connection(&args.connection)?;
    let says = args.connection.database.is_some()
        || args.connection.dsn.is_some()
        || context.settings()?.server.dsn.is_some()
        || ["PGDATABASE", "PGSERVICE"]
            .iter()
            .any(|name| context.environment.variable(name).is_some());
    Ok(if says {
        parameters
    } else {
        parameters.with_database("postgres")
    })
}

/// What is left unread: the flag, else the configuration.
fn read_filter(args: &Args, configured: settings::ReadFilter) -> Result<ReadFilter, Failure> {
    match (args.read_filter, configured) {
        (Some(ReadFilterArg::None), _) | (None, settings::ReadFilter::None) => Ok(ReadFilter::None),
        (Some(ReadFilterArg::Auto | ReadFilterArg::Mtime), _)
        | (None, settings::ReadFilter::Auto | settings::ReadFilter::Mtime) => Ok(ReadFilter::Times),
        (None, settings::ReadFilter::Summaries) => Err(Failure::new(
            Outcome::Usage,
            "backup.read_filter: summaries: WAL summaries are not used yet",
        )
        .hint("auto leaves files unread that nobody has written to; none reads everything")),
    }
}

/// `5` or `5%`.
fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<u32>();
    match number {
        Ok(number) if number <= 100 => Ok(number),
        _ => Err("a percentage from 0 to 100 is wanted, for example 5%".to_owned()),
    }
}

/// A path that means the same from any directory.
fn absolute(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| error.to_string())
}

/// `key=value`, several times.
fn annotations(given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    given
        .iter()
        .map(|text| match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
            _ => Err(
                Failure::new(Outcome::Usage, format!("--annotate: \"{text}\" is not KEY=VALUE"))
                    .hint("for example --annotate reason='before the migration'"),
            ),
        })
        .collect()
}

fn render(backup: &Created, context: &Context) {
    let printer = &context.printer;
    printer.line(&backup.label.to_string());
    let duration = |seconds: f64| HumanDuration(Duration::from_secs_f64(seconds.max(0.0)));
    let compared = match &backup.parent {
        Some(parent) => format!("compared with {parent}"),
        None => "the first one, compared with nothing".to_owned(),
    };
    printer.note(&format!(
        "  {} in {} files, {compared}, in repository {}",
        Bytes::new(backup.bytes),
        backup.files,
        backup.repository
    ));
    let rate = if backup.seconds > 0.0 {
        (backup.read as f64 / backup.seconds) as u64
    } else {
        0
    };
    printer.note(&format!(
        "  read {}, new {}, stored {}{} in {} ({}/s)",
        Bytes::new(backup.read),
        Bytes::new(backup.new),
        Bytes::new(backup.stored),
        ratio(backup),
        duration(backup.seconds),
        Bytes::new(rate)
    ));
    if backup.unread > 0 {
        printer.note(&format!(
            "  not read: {} of files that nobody has written to since",
            Bytes::new(backup.unread)
        ));
    }
    if backup.resumed > 0 {
        printer.note(&format!(
            "  {} were taken over from an interrupted backup",
            Bytes::new(backup.resumed)
        ));
    }
    if backup.wal_wait_seconds >= 1.0 {
        printer.note(&format!(
            "  of that, {} of waiting for the WAL",
            duration(backup.wal_wait_seconds)
        ));
    }
    printer.note(&format!(
        "  restorable to {} and, while the WAL is kept, to any later moment",
        time(backup.stop_time)
    ));
    for missing in &backup.not_included {
        printer.warn(&format!(
            "not taken along: {missing}; the backup of the server is complete"
        ));
    }
    if backup.damaged_pages > 0 {
        let named: Vec<String> = backup
            .damaged
            .iter()
            .map(|page| format!("{} page {}", page.file, page.block))
            .collect();
        let more = backup.damaged_pages - named.len() as u64;
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        printer.warn(&format!(
            "{} damaged {}: {}{more}; they are in the backup as they are on the disk; which tables these are: \
             pgmahout verify",
            backup.damaged_pages,
            if backup.damaged_pages == 1 { "page" } else { "pages" },
            named.join(", "),
        ));
    }
}

/// How much smaller what was new has become.
fn ratio(backup: &Created) -> String {
    if backup.new == 0 || backup.stored == 0 {
        return String::new();
    }
    format!(" ({:.1}:1)", backup.new as f64 / backup.stored as f64)
}
