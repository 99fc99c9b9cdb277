//! The project's own commands: `cargo xtask demo | test | lint | bench | fuzz`.
//!
//! Each sets up what it needs first (Debian packages, PostgreSQL 18, cargo tools), says so when there is
//! something to install, and is quiet about it when there is not.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a developer's tool speaks to the terminal"
)]

mod bench;
mod demo;
mod fuzz;
mod lint;
mod proof;
mod setup;
mod test;
mod workspace;

use std::process::ExitCode;

const USAGE: &str = "\
The project's own commands.

Usage: cargo xtask <COMMAND>

  demo [ARGS]             install PostgreSQL where it is missing, build the release, run `pgmahout demo ARGS`
  test [FILTER] [-- ARGS] install what the tests need, run every test, or those whose names contain FILTER
  lint                    formatting, clippy, crate directions, documentation, links, the tests that docs/backup-rules.md
                          names, file sizes
  fuzz [TARGET] [--seconds N]
                          fuzz one parser, or each for N seconds (30)
  bench backup [--peer PGBACKREST] [--scale GIB] [--rounds N] [--segments N] [--files N] [--log FILE]
               [--only ROW,...]
                          speed and memory of physical backups against pgBackRest (Debian's, or the one named);
                          rows: full, incremental, restore, delta, push, fetch, files
  proof rounds [N]        N backups (40) under load, each restored to a random target, row by row
  proof kills [N]         N kills (200) of backups, restores, pushes, fetches and collections
  proof upheavals [N]     N backups (60) across upheavals, each restored; relations over 1 GiB replayed
  bench dump [--scale GIB] [--rounds N]
                          speed and memory of dumps against pg_dump | gzip and pg_dump | zstd
  bench health [--tables N] [--rounds N]
                          `pgmahout health` on a server with 20,000 tables
  bench start             time to `pgmahout --version`, size of the binary
";

/// What ends a command early with a status of its own and one line.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = arguments.split_first() else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    let result = match command.as_str() {
        "demo" => demo::run(rest),
        "test" => test::run(rest),
        "lint" => lint::run(rest),
        "fuzz" => fuzz::run(rest),
        "proof" => proof::run(rest),
        "bench" => bench::run(rest),
        "help" | "-h" | "--help" => {
            print!("{USAGE}");
            Ok(())
        }
        other => Err(Refusal(format!(
            "unknown command `{other}`; `cargo xtask help` lists them"
        ))
        .into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<Refusal>() {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
