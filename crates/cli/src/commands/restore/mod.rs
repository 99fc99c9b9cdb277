//! `pgmahout restore`.

mod arguments;
mod extract;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use pgmahout_backup::physical::restore::{
    Archiving, Include, KIND, ReceiverFiles, Remap, Restore, RestoreRequest, StandbySettings, StartRequest,
    Wanted,
};
use pgmahout_config::quantity;
use pgmahout_procedure::{Ended, Procedure, Registry, RunOptions, Runner, StepError, Surroundings};
use pgmahout_types::diagnostic::Outcome;
use pgmahout_types::repository::Label;
use serde_json::json;

use super::physical::{DataDirectoryArgs, RepositoryArgs};
use super::wal::receive;
use crate::ExitStatus;
use crate::context::{ConfirmationArgs, Context};
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  pgmahout restore --data-dir /srv/pg --dry-run                     what would be done, and whether it can be
  pgmahout restore --data-dir /srv/pg --start                       to the end of the archive
  pgmahout restore --delta --start                                  over the configured data directory
  pgmahout restore --target-time '2025-01-20 14:30:00+01' --start   to a point in time
  pgmahout restore --type=time --target='2025-01-20 14:30:00'       the same in pgBackRest's words
  pgmahout restore --as-standby --primary 'host=db1 user=replicator'
  pgmahout restore --extract-table public.orders --into 'host=db1 dbname=shop' --target-time '2025-01-20 14:30:00+01'

Nothing is changed before the plan was shown: which backup, which timelines, which WAL, and that all of it is
there. A target that cannot be reached is refused, and the nearest possible one named. Run it as the server's
own account, or as root: files are then given to the owner of the directory.

A restore that is killed leaves a directory on which no server starts; the same command with --delta, or
`pgmahout procedure resume`, completes it.";

/// Restore a physical backup, to the end of the WAL or to a point in it.
#[derive(Debug, Clone, ClapArgs)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Restore this backup [default: the best for the target].
    #[arg(long, value_name = "LABEL")]
    backup: Option<Label>,

    #[command(flatten)]
    target: TargetArgs,

    #[command(flatten)]
    place: PlaceArgs,

    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    table: extract::TableArgs,

    #[command(flatten)]
    directories: DataDirectoryArgs,

    #[command(flatten)]
    repository: RepositoryArgs,

    #[command(flatten)]
    confirmation: ConfirmationArgs,
}

/// Where recovery ends.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Target options")]
struct TargetArgs {
    /// Recover to this moment, such as '2025-01-20 14:30:00+01' or '2025-01-20 14:30 Europe/Berlin'.
    #[arg(long, value_name = "TIME", alias = "target_time")]
    target_time: Option<String>,

    /// Recover to this WAL position.
    #[arg(long, value_name = "LSN")]
    target_lsn: Option<String>,

    /// Recover to the commit of this transaction.
    #[arg(long, value_name = "XID")]
    target_xid: Option<String>,

    /// Recover to this restore point (pg_create_restore_point).
    #[arg(long, value_name = "NAME")]
    target_name: Option<String>,

    /// End recovery as soon as the backup is consistent.
    #[arg(long)]
    target_immediate: bool,

    /// What --target is: default, immediate, time, lsn, xid or name.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,

    /// The target that goes with --type.
    #[arg(long, value_name = "VALUE")]
    target: Option<String>,

    /// The timeline to follow: latest, current or a number.
    #[arg(long, value_name = "TIMELINE")]
    target_timeline: Option<String>,

    /// Stop just before the target instead of just after it.
    #[arg(long)]
    target_exclusive: bool,

    /// What the server does at the target: promote, pause or shutdown [default: promote].
    #[arg(long, value_name = "ACTION")]
    target_action: Option<String>,

    /// The time zone of a time without one [default: this host's].
    #[arg(long, value_name = "ZONE")]
    timezone: Option<String>,
}

/// Where everything goes.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Place options")]
struct PlaceArgs {
    /// Restore over what is there: fetch only what differs, remove what does not belong there.
    #[arg(long, conflicts_with = "keep_old")]
    delta: bool,

    /// Move what is there aside instead of refusing.
    #[arg(long)]
    keep_old: bool,

    /// Put a tablespace elsewhere, by its name or number; may be given several times.
    #[arg(long = "tablespace", value_name = "NAME|OID=DIRECTORY")]
    tablespaces: Vec<String>,

    /// Put the WAL directory here, with a link to it.
    #[arg(long, value_name = "DIRECTORY")]
    wal_dir: Option<PathBuf>,

    /// Restore only this database and those that every cluster has; may be given several times. The others can
    /// only be dropped afterwards.
    #[arg(long = "database", value_name = "NAME")]
    databases: Vec<String>,

    /// Bring back what was taken along from outside the data directory: as NAME.restored beside what is there, or
    /// below this directory.
    #[arg(long, value_name = "DIRECTORY", num_args = 0..=1)]
    #[allow(
        clippy::option_option,
        reason = "clap's shape of a flag whose value may be left out"
    )]
    include: Option<Option<PathBuf>>,

    /// Where `pgmahout wal receive` keeps its files [default: wal.receive.directory, else in the state directory].
    /// What no repository has yet is taken from there; the segment that was being received only when its server does
    /// not answer.
    #[arg(long, value_name = "DIRECTORY")]
    received: Option<PathBuf>,

    /// The primary is gone, or fenced, though something answers at its address: take the receiver's last segment.
    #[arg(long)]
    primary_gone: bool,

    /// Threads [default: the number of processors].
    #[arg(short = 'j', long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=256))]
    jobs: Option<u32>,
}

/// What the restored server is to be.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Restored server options")]
struct ServerArgs {
    /// Start the server, wait for the end of recovery, and say where it ended.
    #[arg(long)]
    start: bool,

    /// How long recovery may take, with --start and --extract-table [default: 24h].
    #[arg(long, value_name = "TIME")]
    timeout: Option<String>,

    /// postgresql.conf for --start, where it is not in the data directory.
    #[arg(long, value_name = "FILE", requires = "start")]
    config_file: Option<PathBuf>,

    /// Role to ask the started server as [default: postgres].
    #[arg(short = 'U', long = "username", value_name = "ROLE", requires = "start")]
    user: Option<String>,

    /// Make a standby of --primary.
    #[arg(long, requires = "primary")]
    as_standby: bool,

    /// Connection string of the primary, for primary_conninfo. It stays in a file of the data directory: leave
    /// the password to ~/.pgpass of the server's user.
    #[arg(long, value_name = "DSN", requires = "as_standby")]
    primary: Option<String>,

    /// Replication slot on the primary, for primary_slot_name.
    #[arg(long, value_name = "NAME", requires = "as_standby")]
    primary_slot: Option<String>,

    /// Whether the restored server archives: off, or keep for what its configuration says.
    #[arg(long, value_name = "MODE", value_parser = ["off", "keep"])]
    archive: Option<String>,

    /// The restore_command [default: this program's wal fetch, from the same repository].
    #[arg(long, value_name = "COMMAND")]
    restore_command: Option<String>,
}

impl TargetArgs {
    fn wanted(&self) -> Wanted {
        Wanted {
            time: self.target_time.clone(),
            lsn: self.target_lsn.clone(),
            xid: self.target_xid.clone(),
            name: self.target_name.clone(),
            immediate: self.target_immediate,
            kind: self.kind.clone(),
            value: self.target.clone(),
            timeline: self.target_timeline.clone(),
            action: self.target_action.clone(),
            exclusive: self.target_exclusive,
            zone: self.timezone.clone(),
        }
    }
}

impl PlaceArgs {
    fn jobs(&self) -> usize {
        self.jobs.map_or_else(
            || std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            |jobs| jobs as usize,
        )
    }
}

fn usage(text: impl Into<String>, hint: &str) -> Failure {
    Failure::new(Outcome::Usage, text).hint(hint)
}

fn request(args: &Args, context: &Context) -> Result<RestoreRequest, Failure> {
    let aim = args.target.wanted().aim()?;
    let (place, server) = (&args.place, &args.server);
    if server.as_standby && aim.target.is_point() {
        return Err(usage(
            "a standby follows its primary, and has no target",
            "leave the target or --as-standby out",
        ));
    }
    let tablespaces = place
        .tablespaces
        .iter()
        .map(|text| match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && path.starts_with('/') => {
                Ok((name.to_owned(), PathBuf::from(path)))
            }
            _ => Err(usage(
                format!("\"{text}\" does not say where which tablespace goes"),
                "write NAME=DIRECTORY with an absolute path, for example --tablespace fast=/ssd/pg",
            )),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let timeout = match &server.timeout {
        None => Duration::from_hours(24),
        Some(text) => quantity::duration(text).ok_or_else(|| {
            usage(
                format!("\"{text}\" is not a length of time"),
                "write for example 90s, 30min or 2h",
            )
        })?,
    };
    Ok(RestoreRequest {
        remap: Remap {
            data_dir: args.directories.required(context)?,
            wal_dir: place.wal_dir.clone(),
            tablespaces,
        },
        aim,
        label: args.backup,
        delta: place.delta,
        keep_old: place.keep_old,
        archiving: match server.archive.as_deref() {
            Some("keep") => Archiving::Keep,
            // A standby archives when it is promoted.
            None if server.as_standby => Archiving::Keep,
            _ => Archiving::Off,
        },
        standby: server.primary.clone().map(|primary| StandbySettings {
            primary,
            slot: server.primary_slot.clone(),
        }),
        databases: place.databases.clone(),
        include: place.include.as_ref().map(|directory| match directory {
            Some(directory) => {
                Include::Below(std::path::absolute(directory).unwrap_or_else(|_| directory.clone()))
            }
            None => Include::Beside,
        }),
        jobs: place.jobs(),
        received: receiver_files(args, context)?,
        restore_command: match &server.restore_command {
            Some(command) => command.clone(),
            None => arguments::restore_command(args, context)?,
        },
        start: if server.start {
            Some(StartRequest {
                bin_dir: args.directories.bin_dir(context)?,
                config_file: server.config_file.clone(),
                user: server.user.clone(),
                timeout,
            })
        } else {
            None
        },
        parameters: json!({ "arguments": arguments::of(args, context)? }),
    })
}

/// Where a receiver of this host has its files; `None` where this host has no place for them.
fn receiver_files(args: &Args, context: &Context) -> Result<Option<ReceiverFiles>, Failure> {
    let settings = context.settings()?;
    let directory = match &args.place.received {
        Some(directory) => Some(directory.clone()),
        None => receive::directory(&args.repository.stanza(settings)?, settings).ok(),
    };
    Ok(directory.map(|directory| ReceiverFiles {
        directory,
        is_named: args.place.received.is_some(),
        primary_gone: args.place.primary_gone,
    }))
}

async fn prepare(args: &Args, context: &Context) -> Result<Restore, Failure> {
    let request = request(args, context)?;
    let opened = args.repository.open_one(context).await?;
    Ok(Restore::prepare(opened.repository, request, &context.cancellation).await?)
}

/// Restores that did not end can be built again from their journals.
pub(crate) fn register<'a>(registry: &mut Registry<'a>, context: &'a Context) {
    registry.register(KIND, move |parameters| async move {
        let mut args = arguments::parse(&parameters)?;
        // The same backup as before, whatever is the best one by now.
        let label = parameters
            .get("backup")
            .and_then(|label| label.as_str()?.parse().ok());
        args.backup = label.or(args.backup);
        match prepare(&args, context).await {
            Ok(restore) => Ok(Box::new(restore) as Box<dyn Procedure>),
            Err(failure) => {
                let answer = failure.to_json();
                let text = |name: &str| answer["error"][name].as_str().unwrap_or_default().to_owned();
                Err(StepError::failed(text("message")).hint(text("hint")))
            }
        }
    });
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    if args.table.is_wanted() {
        return extract::run(&args, context).await;
    }
    let restore = prepare(&args, context).await?;
    let result = make(&restore, &args, context).await;
    restore.release().await;
    result
}

async fn make(restore: &Restore, args: &Args, context: &Context) -> Result<ExitStatus, Failure> {
    if let Some(obstacle) = restore.obstacle().await {
        return Err(obstacle.into());
    }
    let reporter = context.reporter();
    let confirmation = context.confirmation(&args.confirmation);
    let plan = restore.plan_value().await?;
    let ended = Runner::new()?
        .run(
            restore,
            RunOptions {
                dry_run: args.confirmation.dry_run,
                ..RunOptions::default()
            },
            Surroundings {
                confirm: &confirmation,
                reporter: &reporter,
                cancellation: &context.cancellation,
            },
        )
        .await;
    match ended? {
        Ended::DryRun(shown) => report::dry_run(&plan, &shown, context)?,
        Ended::Done(done) => report::done(restore, &plan, &done, context)?,
    }
    Ok(ExitStatus::SUCCESS)
}
