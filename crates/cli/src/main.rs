//! The `pgmahout` binary: clap definitions, wiring, rendering, exit statuses.
//!
//! One file per subcommand under `commands/`: parse, call one operation of a library, render. Only this
//! crate writes to stdout ([`printer`]), and only [`failure`] decides how an error looks.

mod commands;
mod confirmation;
mod context;
mod failure;
mod printer;
mod progress;
mod signals;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use pgmahout_types::diagnostic::Outcome;

use crate::commands::Command;
use crate::context::{Context, GlobalArgs, LogFormat};
use crate::failure::Failure;

/// Keeps PostgreSQL healthy, backed up and restorable.
///
/// Every procedure of an operations runbook as a tested command: health checks, backups and restores
/// that prove themselves. Each command works from flags and libpq's environment (PGHOST, PGUSER,
/// ~/.pgpass, ...); a configuration file is optional.
#[derive(Debug, Parser)]
#[command(
    name = "pgmahout",
    version,
    disable_help_flag = true,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    propagate_version = false,
    max_term_width = 100,
    after_long_help = "Example:\n  pgmahout demo                      see the main job on a throw-away server\n  \
                       pgmahout health -h db1 -U postgres check a server\n  \
                       pgmahout dump create shop          back up a database\n\n\
                       Exit status: 0 done, 1 failed, 2 bad usage or configuration, 3 refused by a safety rule, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: GlobalArgs,

    #[command(subcommand)]
    command: Command,
}

/// What a command that did not fail says to the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExitStatus(pub u8);

impl ExitStatus {
    /// Done.
    pub(crate) const SUCCESS: Self = Self(0);
}

fn main() -> ExitCode {
    install_panic_message();
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    match commands::wal::recovery_served_by(&arguments) {
        // PostgreSQL draws its own conclusions from the status of a restore_command.
        Some(recovery) => ExitCode::from(commands::wal::status_for_recovery(recovery, execute)),
        None => ExitCode::from(execute().map_or_else(Outcome::exit_code, |status| status.0)),
    }
}

/// Does what the command line says. What failed has been said when this returns.
fn execute() -> Result<ExitStatus, Outcome> {
    let parsed = Cli::command()
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return clap_exit(&error),
    };
    start_log(&cli.global);
    let context = Context::new(cli.global);
    let result = run(cli.command, &context).and_then(|status| context.printer.lost().map_or(Ok(status), Err));
    result.map_err(|failure| {
        context.printer.failure(&failure);
        failure.outcome()
    })
}

fn run(command: Command, context: &Context) -> Result<ExitStatus, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::caused_by("cannot start the program's runtime", error))?;
    let result = runtime.block_on(async {
        signals::cancel_on_signal(context.cancellation.clone())?;
        Box::pin(command.run(context)).await
    });
    // A task that still waits for a peer must not keep a finished command from ending.
    runtime.shutdown_background();
    result
}

/// Help and version go to stdout with status 0; usage errors to stderr with status 2.
fn clap_exit(error: &clap::Error) -> Result<ExitStatus, Outcome> {
    // A closed pipe is not an error.
    let _ = error.print();
    if error.use_stderr() {
        Err(Outcome::Usage)
    } else {
        Ok(ExitStatus::SUCCESS)
    }
}

/// No panic reaches a user as a bare backtrace: it is our bug, and the message says so.
fn install_panic_message() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            default(panic);
            return;
        }
        let place = panic.location().map_or_else(String::new, |place| {
            format!(" at {}:{}", place.file(), place.line())
        });
        let text = panic
            .payload()
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.payload().downcast_ref::<String>().cloned())
            .unwrap_or_default();
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            format!(
                "error: internal error{place}: {text}\nhint: this is a bug in pgmahout; run again with \
                 RUST_BACKTRACE=1 and report what it prints\n"
            )
            .as_bytes(),
        );
    }));
}

fn start_log(global: &GlobalArgs) {
    use tracing_subscriber::EnvFilter;
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => {
            "pgmahout=info,pgmahout_backup=info,pgmahout_doctor=info,pgmahout_postgres=info,pgmahout_store=info,warn"
        }
        (false, 2) => "debug,hyper=info,rustls=info",
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_env("PGMAHOUT_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match global.log_format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Every command that does something has an example in its long help.
    #[test]
    fn every_command_shows_an_example() {
        fn visit(command: &clap::Command, path: &str, missing: &mut Vec<String>) {
            let name = format!("{path} {}", command.get_name());
            if command.has_subcommands() {
                for child in command.get_subcommands() {
                    visit(child, &name, missing);
                }
            } else if !command.is_hide_set()
                && !command.clone().render_long_help().to_string().contains("Example")
            {
                missing.push(name);
            }
        }
        let mut missing = Vec::new();
        let mut cli = Cli::command();
        cli.build();
        visit(&cli, "", &mut missing);
        assert!(missing.is_empty(), "no example in the long help of: {missing:?}");
    }
}
