//! `pgmahout backup`.

mod annotate;
mod create;
mod drill;
mod expire;
mod list;
mod schedule;
mod show;
mod verify;

pub(crate) use expire::policy_of;
pub(crate) use list::time;

use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;

/// Physical backups: take, list, show and annotate backups of a whole cluster.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Create(Box<create::Args>),
    List(list::Args),
    Show(show::Args),
    Annotate(annotate::Args),
    Verify(verify::Args),
    Drill(Box<drill::Args>),
    Expire(expire::Args),
    #[command(subcommand)]
    Schedule(schedule::Command),
}

pub(crate) async fn run(command: Command, context: &Context) -> Result<ExitStatus, Failure> {
    match command {
        Command::Create(args) => Box::pin(create::run(*args, context)).await,
        Command::List(args) => Box::pin(list::run(args, context)).await,
        Command::Show(args) => Box::pin(show::run(args, context)).await,
        Command::Verify(args) => Box::pin(verify::run(args, context)).await,
        Command::Drill(args) => Box::pin(drill::run(*args, context)).await,
        Command::Expire(args) => Box::pin(expire::run(args, context)).await,
        Command::Schedule(command) => schedule::run(command, context),
        Command::Annotate(args) => Box::pin(annotate::run(args, context)).await,
    }
}
