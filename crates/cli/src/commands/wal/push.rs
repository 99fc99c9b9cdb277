//! `pgmahout wal push`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pgmahout_backup::physical::wal::push::{self, PushLedger, PushOutcome, PushRequest, WalSpool};
use pgmahout_procedure::StateDirectory;
use pgmahout_types::diagnostic::Diagnose;
use serde_json::json;

use super::{destinations, jobs};
use crate::ExitStatus;
use crate::commands::physical::{self, RepositoryArgs};
use crate::context::Context;
use crate::failure::Failure;

/// How often it is said that a passphrase costs time.
const REMINDER: Duration = Duration::from_hours(24);

/// Store a WAL file in the repositories: for archive_command.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example, in postgresql.conf (`pgmahout wal enable` sets it):
  archive_command = '/usr/bin/pgmahout --config /etc/pgmahout/pgmahout.yml wal push %p'

The file is stored in every repository (wal.min_repositories lowers that) and is durable there when the command ends
with status 0. What is there already is never replaced: the same content is success, other content is refused with
status 3. Several segments that wait are stored by one call; the calls that follow for them return at once.

An encrypted repository should have a key-file slot for this host (`pgmahout repo keys add`): trying a passphrase takes
some tenths of a second in every call.")]
pub(crate) struct Args {
    /// The file, as PostgreSQL gives it for %p.
    path: PathBuf,

    #[command(flatten)]
    repository: RepositoryArgs,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    push::check_name(&args.path)?;
    let settings = context.settings()?;
    let stanza = args.repository.stanza(settings)?;
    let destinations = destinations(&args.repository, settings)?;
    let state = state_directory(&args.path);
    let ledger = Some(PushLedger::new(&state, &stanza));
    if let Some(destination) = destinations
        .iter()
        .find(|destination| destination.has_passphrase())
    {
        remind_of_key_file(context, &state, &destination.name());
    }
    let wal = &settings.wal;
    let request = PushRequest {
        path: args.path,
        jobs: jobs(settings, &destinations),
        destinations,
        memory: physical::memory(),
        minimum: wal.min_repositories.map(|minimum| minimum as usize),
        timeout: wal.timeout.unwrap_or(push::TIMEOUT),
        ledger,
        spool: wal
            .spool
            .as_ref()
            .map(|spool| WalSpool::new(&spool.path, spool.size, &stanza)),
        max_queue: wal.max_queue,
        stanza,
    };
    let report = push::push(&request, &context.cancellation).await?;
    for warning in &report.warnings {
        context.printer.warn(warning);
    }
    let outcome = match &report.outcome {
        PushOutcome::Known => "known",
        PushOutcome::Stored => "stored",
        PushOutcome::Spooled(error) => {
            context.printer.warn(&format!(
                "{} waits in the spool, because no repository took it: {error}",
                report.name
            ));
            "spooled"
        }
        PushOutcome::GivenUp(error) => {
            context.printer.warn(&format!(
                "{} was given up, because more than wal.max_queue waits and no repository took it: {error}\n\
                 The archive has a gap now: no point in time behind it can be reached from the backups before it. \
                 Take a new backup: pgmahout backup create",
                report.name
            ));
            if let Some(hint) = error.hint() {
                context.printer.say(&format!("hint: {hint}"));
            }
            "given up"
        }
    };
    if context.printer.wants_json() {
        context.printer.json(&json!({
            "schema_version": 1,
            "name": report.name,
            "outcome": outcome,
            "others": report.others,
            "warnings": report.warnings,
        }))?;
    }
    Ok(ExitStatus::SUCCESS)
}

/// Where it is noted what was pushed: the state directory, or beside pg_wal where the server's user has none (its home
/// is often missing, and a server's environment is bare).
fn state_directory(path: &Path) -> StateDirectory {
    let is_usable = |state: &StateDirectory| {
        std::fs::create_dir_all(state.path()).is_ok()
            && rustix::fs::access(state.path(), rustix::fs::Access::WRITE_OK).is_ok()
    };
    match StateDirectory::locate() {
        Ok(state) if is_usable(&state) => state,
        _ => StateDirectory::at(path.parent().unwrap_or(Path::new("")).join("pgmahout.push")),
    }
}

/// Says once a day that a passphrase costs time.
fn remind_of_key_file(context: &Context, state: &StateDirectory, repository: &str) {
    let marker = state.path().join("wal/passphrase-reminder");
    let reminded = std::fs::metadata(&marker).and_then(|metadata| metadata.modified());
    let age = reminded
        .ok()
        .and_then(|time| SystemTime::now().duration_since(time).ok());
    if age.is_some_and(|age| age < REMINDER) {
        return;
    }
    if let Some(directory) = marker.parent() {
        let _ = std::fs::create_dir_all(directory);
    }
    let _ = std::fs::write(&marker, "");
    context.printer.warn(&format!(
        "repository {repository} is opened with a passphrase, which takes some tenths of a second in every call that \
         stores something; give this host a key file: pgmahout repo keys add --repo {repository}"
    ));
}
