//! `pgmahout completions SHELL`.

use clap::CommandFactory as _;

use crate::context::Context;
use crate::{Cli, ExitStatus};

/// Print the completion script of a shell.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  pgmahout completions bash > /etc/bash_completion.d/pgmahout")]
pub(crate) struct Args {
    /// The shell.
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: &Args, context: &Context) -> ExitStatus {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pgmahout", &mut script);
    context.printer.data(&String::from_utf8_lossy(&script));
    ExitStatus::SUCCESS
}
