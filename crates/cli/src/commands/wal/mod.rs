//! `pgmahout wal`.

mod enable;
mod fetch;
mod list;
mod push;
pub(crate) mod receive;
mod verify;

use std::ffi::OsString;
use std::path::Path;

use pgmahout_backup::physical::wal::Destination;
use pgmahout_backup::physical::wal::fetch::{RecoveryMode, mode};
use pgmahout_config::Settings;
use pgmahout_types::diagnostic::Outcome;

use crate::ExitStatus;
use crate::commands::physical::RepositoryArgs;
use crate::context::Context;
use crate::failure::Failure;

/// The WAL archive: store and fetch segments, list and verify what is there.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Push(push::Args),
    Receive(receive::Args),
    Fetch(fetch::Args),
    List(list::Args),
    Verify(verify::Args),
    Enable(enable::EnableArgs),
    Disable(enable::DisableArgs),
}

pub(crate) async fn run(command: Command, context: &Context) -> Result<ExitStatus, Failure> {
    match command {
        Command::Push(args) => Box::pin(push::run(args, context)).await,
        Command::Receive(args) => Box::pin(receive::run(args, context)).await,
        Command::Fetch(args) => Box::pin(fetch::run(args, context)).await,
        Command::List(args) => Box::pin(list::run(args, context)).await,
        Command::Verify(args) => Box::pin(verify::run(args, context)).await,
        Command::Enable(args) => Box::pin(enable::enable(args, context)).await,
        Command::Disable(args) => Box::pin(enable::disable(args, context)).await,
    }
}

/// The recovery that a command line serves, if it is one of `wal fetch`.
pub(crate) fn recovery_served_by(arguments: &[OsString]) -> Option<RecoveryMode> {
    mode::of_arguments(arguments)
}

/// Runs `wal fetch` and gives the status that PostgreSQL understands, whatever happens.
pub(crate) fn status_for_recovery(
    recovery: RecoveryMode,
    execute: impl FnOnce() -> Result<ExitStatus, Outcome>,
) -> u8 {
    // The panic's message has been printed where it happened.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(execute));
    match result {
        Ok(Ok(status)) => status.0,
        Ok(Err(outcome)) => recovery.status(outcome),
        Err(_) => recovery.status(Outcome::Failed),
    }
}

/// The repositories, not open yet.
fn destinations(repository: &RepositoryArgs, settings: &Settings) -> Result<Vec<Destination>, Failure> {
    let chosen = repository.chosen(settings)?;
    Ok(chosen
        .into_iter()
        .map(|chosen| Destination {
            settings: chosen.store,
        })
        .collect())
}

/// How many files are stored or fetched at once.
fn jobs(settings: &Settings, destinations: &[Destination]) -> usize {
    if let Some(jobs) = settings.wal.jobs {
        return jobs as usize;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Over a network most of the time is waiting.
    let is_remote =
        |destination: &Destination| !Path::new(&destination.settings.location().to_string()).is_absolute();
    if destinations.iter().any(is_remote) {
        cores * 4
    } else {
        cores
    }
}
