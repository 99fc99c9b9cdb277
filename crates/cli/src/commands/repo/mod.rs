//! `pgmahout repo`.

mod check;
mod copy;
mod info;
mod init;
mod keys;
mod server;

use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;

/// The repositories of physical backups and WAL: set up, check, look at, keys, copy.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Init(init::Args),
    Check(check::Args),
    Info(info::Args),
    Copy(copy::Args),
    #[command(subcommand)]
    Keys(keys::Command),
}

pub(crate) async fn run(command: Command, context: &Context) -> Result<ExitStatus, Failure> {
    match command {
        Command::Init(args) => init::run(args, context).await,
        Command::Check(args) => check::run(args, context).await,
        Command::Info(args) => info::run(args, context).await,
        Command::Copy(args) => Box::pin(copy::run(args, context)).await,
        Command::Keys(command) => keys::run(command, context).await,
    }
}
