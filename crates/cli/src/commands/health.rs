//! `pgmahout health`.

use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;

/// Placeholder until its engineer commits.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  pgmahout health")]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args, _context: &Context) -> Result<ExitStatus, Failure> {
    Ok(ExitStatus::SUCCESS)
}
