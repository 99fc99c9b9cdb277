//! `pgmahout dump`.

mod copy;
mod create;
mod expire;
mod keys;
mod list;
pub(crate) mod place;
mod restore;
mod show;
mod verify;

use pgmahout_config::Settings;

use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;

pub(crate) use place::{KeyArgs, RepoArgs as PlaceArgs};

pub(crate) use restore::register;

/// Asks a person twice for a new passphrase.
pub(crate) fn ask_passphrase(prompt: &str) -> Result<String, Failure> {
    keys::ask(prompt, true)
}

/// Logical backups: make, list, restore, copy, test and expire dumps.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Create(Box<create::Args>),
    List(list::Args),
    Show(show::Args),
    Expire(expire::Args),
    Restore(Box<restore::Args>),
    Copy(copy::Args),
    Verify(verify::Args),
}

pub(crate) async fn run(command: Command, context: &Context) -> Result<ExitStatus, Failure> {
    match command {
        Command::Create(args) => create::run(*args, context).await,
        Command::List(args) => list::run(args, context).await,
        Command::Show(args) => show::run(args, context).await,
        Command::Expire(args) => expire::run(args, context).await,
        Command::Restore(args) => restore::run(*args, context).await,
        Command::Copy(args) => copy::run(args, context).await,
        Command::Verify(args) => Box::pin(verify::run(args, context)).await,
    }
}

/// The configuration.
pub(crate) fn settings(context: &Context) -> Result<Settings, Failure> {
    Ok(context.settings()?.clone())
}
