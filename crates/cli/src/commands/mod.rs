//! The subcommands, one file each.

mod backup;
mod completions;
mod config;
mod demo;
mod dump;
mod health;
mod man;
mod physical;
mod procedure;
mod repo;
mod report;
mod restore;
mod role;
mod verify;
pub(crate) mod wal;

use clap::Subcommand;

use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;

/// The nouns and verbs of the command line.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(demo::Args),
    Health(health::Args),
    Verify(verify::Args),
    #[command(subcommand)]
    Report(report::Command),
    #[command(subcommand)]
    Dump(dump::Command),
    #[command(subcommand)]
    Repo(repo::Command),
    #[command(subcommand)]
    Backup(backup::Command),
    Restore(Box<restore::Args>),
    #[command(subcommand)]
    Wal(wal::Command),
    #[command(subcommand)]
    Role(role::Command),
    #[command(subcommand)]
    Config(config::Command),
    #[command(subcommand)]
    Procedure(procedure::Command),
    Completions(completions::Args),
    Man(man::Args),
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<ExitStatus, Failure> {
        match self {
            Self::Demo(args) => Box::pin(demo::run(args, context)).await,
            Self::Health(args) => Box::pin(health::run(args, context)).await,
            Self::Verify(args) => Box::pin(verify::run(args, context)).await,
            Self::Report(command) => Box::pin(report::run(command, context)).await,
            Self::Dump(command) => Box::pin(dump::run(command, context)).await,
            Self::Repo(command) => Box::pin(repo::run(command, context)).await,
            Self::Backup(command) => Box::pin(backup::run(command, context)).await,
            Self::Restore(args) => Box::pin(restore::run(*args, context)).await,
            Self::Wal(command) => Box::pin(wal::run(command, context)).await,
            Self::Role(command) => role::run(command, context).await,
            Self::Config(command) => config::run(command, context).await,
            Self::Procedure(command) => procedure::run(command, context).await,
            Self::Completions(args) => Ok(completions::run(&args, context)),
            Self::Man(args) => man::run(&args, context),
        }
    }
}
