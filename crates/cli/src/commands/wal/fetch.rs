//! `pgmahout wal fetch`.

use std::path::PathBuf;
use std::time::Duration;

use pgmahout_backup::physical::wal::fetch::mode::{ABSENT, directory_of};
use pgmahout_backup::physical::wal::fetch::{self, FetchOutcome, FetchRequest, FetchSpool, RecoveryMode};
use pgmahout_backup::physical::wal::push::WalSpool;
use pgmahout_types::WalFileName;
use serde_json::json;

use super::{destinations, jobs};
use crate::ExitStatus;
use crate::commands::physical::{self, RepositoryArgs};
use crate::context::Context;
use crate::failure::Failure;

/// How long one attempt may take when nothing is configured.
const TIMEOUT: Duration = Duration::from_mins(2);
/// How long a standby tries before it is told to try later, when nothing is configured.
const PATIENCE: Duration = Duration::from_secs(30);

/// Fetch a WAL file from the repositories: for restore_command.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example, in postgresql.conf (`pgmahout restore` sets it):
  restore_command = '/usr/bin/pgmahout --config /etc/pgmahout/pgmahout.yml wal fetch %f \"%p\"'

Exit status, PostgreSQL's contract instead of that of the other commands:
  0    the file is there, complete and verified
  1    no repository has it: each of them said so
  126  anything else, so that a recovery stops instead of ending early and losing rows
  143  ended by a signal
In the data directory of a standby (standby.signal) everything but success and signals is 1: the standby tries again,
or streams.")]
pub(crate) struct Args {
    /// The file's name, as PostgreSQL gives it for %f.
    name: String,

    /// Where it is wanted, as PostgreSQL gives it for %p.
    target: PathBuf,

    /// The server's data directory, where recovery.signal or standby.signal is [default: the one around the pg_wal of
    /// the target, else the current directory].
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,

    #[command(flatten)]
    repository: RepositoryArgs,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let name: WalFileName = args.name.parse()?;
    let settings = context.settings()?;
    let stanza = args.repository.stanza(settings)?;
    let destinations = destinations(&args.repository, settings)?;
    let arguments: Vec<_> = std::env::args_os().collect();
    let data_dir = directory_of(&arguments).unwrap_or_else(|| PathBuf::from("."));
    let mode = RecoveryMode::of(&data_dir);
    let patience = match mode {
        RecoveryMode::Standby => settings.wal.timeout.unwrap_or(PATIENCE),
        _ => Duration::ZERO,
    };
    let prefetch = &settings.wal.prefetch;
    let request = FetchRequest {
        name,
        jobs: jobs(settings, &destinations),
        destinations,
        memory: physical::memory(),
        prefetch: prefetch.segments,
        spool: FetchSpool::new(&args.target, prefetch.path.as_deref(), &stanza),
        unsent: settings
            .wal
            .spool
            .as_ref()
            .map(|spool| WalSpool::new(&spool.path, spool.size, &stanza)),
        patience,
        is_final: mode == RecoveryMode::Recovery,
        timeout: settings.wal.timeout.unwrap_or(TIMEOUT),
        target: args.target,
        stanza,
        // A standby would stream the same records.
        looks_for_tablespaces: mode == RecoveryMode::Recovery,
    };
    let outcome = fetch::fetch(&request, &context.cancellation).await?;
    if request.looks_for_tablespaces
        && let FetchOutcome::Fetched { tablespaces, .. } = &outcome
        && tablespaces.unwrap_or(true)
        && let Some(left_out) = fetch::check_tablespaces(name, &request.target, &data_dir)?
    {
        context.printer.warn(&left_out);
    }
    if context.printer.wants_json() {
        let (found, from) = match &outcome {
            FetchOutcome::Fetched { repository, .. } => (true, Some(repository)),
            FetchOutcome::Absent { .. } => (false, None),
        };
        context.printer.json(&json!({
            "schema_version": 1,
            "name": name,
            "found": found,
            "repository": from,
        }))?;
    }
    match outcome {
        FetchOutcome::Fetched { .. } => Ok(ExitStatus::SUCCESS),
        FetchOutcome::Absent { places } => {
            if !context.printer.wants_json() {
                context.printer.note(&format!("{name} is in none of: {places}"));
            }
            Ok(ExitStatus(ABSENT))
        }
    }
}
