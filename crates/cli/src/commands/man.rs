//! `pgmahout man`: the manual pages, from the one definition of the command line.

use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use pgmahout_durable::write_atomically;

use crate::context::Context;
use crate::failure::Failure;
use crate::{Cli, ExitStatus};

/// Print the manual page, or write one page per command into a directory.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Example:\n  pgmahout man | man -l -\n  pgmahout man --directory /usr/local/share/man/man1"
)]
pub(crate) struct Args {
    /// Write one page per command here instead of printing the main page.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<ExitStatus, Failure> {
    let mut command = Cli::command();
    command.build();
    match &args.directory {
        None => context.printer.data(&String::from_utf8_lossy(&page(&command)?)),
        Some(directory) => {
            let mut written = 0;
            write_pages(&command, "pgmahout", directory, &mut written)?;
            context.printer.note(&format!(
                "{written} manual pages written to {}",
                directory.display()
            ));
        }
    }
    Ok(ExitStatus::SUCCESS)
}

fn page(command: &clap::Command) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone())
        .render(&mut text)
        .map_err(|error| Failure::caused_by("cannot render the manual page", error))?;
    Ok(text)
}

fn write_pages(
    command: &clap::Command,
    name: &str,
    directory: &Path,
    written: &mut usize,
) -> Result<(), Failure> {
    let file = directory.join(format!("{name}.1"));
    write_atomically(&file, &page(&command.clone().name(name.to_owned()))?, 0o644)?;
    *written += 1;
    for child in command.get_subcommands().filter(|child| !child.is_hide_set()) {
        write_pages(child, &format!("{name}-{}", child.get_name()), directory, written)?;
    }
    Ok(())
}
