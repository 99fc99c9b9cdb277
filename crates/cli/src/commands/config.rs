//! `pgmahout config`.

use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;

/// Placeholder until its engineer commits.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {}

pub(crate) async fn run(command: Command, _context: &Context) -> Result<ExitStatus, Failure> {
    match command {}
}
