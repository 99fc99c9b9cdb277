//! `pgmahout wal enable` and `pgmahout wal disable`.

use std::path::{Path, PathBuf};

use pgmahout_backup::physical::wal::enable::{Archiving, ArchivingProcedure, shell_word};
use pgmahout_postgres::binaries::{Binaries, Requirement};
use pgmahout_postgres::control::{Docker, PgCtl, ServerControl, Systemd};
use pgmahout_procedure::{Ended, RunOptions, Runner, Surroundings};
use serde_json::json;

use super::destinations;
use crate::ExitStatus;
use crate::commands::physical::{self, DataDirectoryArgs, RepositoryArgs};
use crate::context::{ConfirmationArgs, ConnectionArgs, Context};
use crate::failure::Failure;

/// Make the server archive its WAL with pgmahout.
///
/// Sets archive_command, and where needed archive_mode and wal_level, with ALTER SYSTEM; restarts the server where
/// those two change, after a question. Done is it when a new segment is in every repository and was read back.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout wal enable
  pgmahout wal enable -h /run/postgresql -U postgres --dry-run
  pgmahout wal enable --data-dir /var/lib/postgresql/15/main --yes

Set up the repository first: pgmahout repo init")]
pub(crate) struct EnableArgs {
    #[command(flatten)]
    common: CommonArgs,
}

/// Stop archiving the server's WAL.
///
/// Turns archive_mode off, which needs a restart. Without archiving no point in time after this can be restored, and no
/// backup can be taken.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example:
  pgmahout wal disable --dry-run")]
pub(crate) struct DisableArgs {
    #[command(flatten)]
    common: CommonArgs,
}

/// What both are given.
#[derive(Debug, clap::Args)]
struct CommonArgs {
    #[command(flatten)]
    repository: RepositoryArgs,

    #[command(flatten)]
    server: DataDirectoryArgs,

    #[command(flatten)]
    connection: ConnectionArgs,

    #[command(flatten)]
    confirmation: ConfirmationArgs,
}

pub(crate) async fn enable(args: EnableArgs, context: &Context) -> Result<ExitStatus, Failure> {
    let command = archive_command(&args.common.repository, context)?;
    run(args.common, Some(command), context).await
}

pub(crate) async fn disable(args: DisableArgs, context: &Context) -> Result<ExitStatus, Failure> {
    run(args.common, None, context).await
}

/// The command line of `wal push` as the server runs it: nothing in it depends on the current directory.
fn archive_command(repository: &RepositoryArgs, context: &Context) -> Result<String, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::caused_by("it is not known where this program is", error))?;
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .map(|path| path.display().to_string())
            .map_err(|error| Failure::caused_by("the current directory is not known", error))
    };
    let mut words = vec![program.display().to_string()];
    if let Some(file) = &context.settings()?.file {
        words.extend(["--config".to_owned(), absolute(file)?]);
    }
    words.extend(["wal".to_owned(), "push".to_owned()]);
    if let Some(wanted) = &repository.repo {
        let place = if context.settings()?.repository(Some(wanted)).is_some() || wanted.contains("://") {
            wanted.clone()
        } else {
            absolute(Path::new(wanted))?
        };
        words.extend(["--repo".to_owned(), place]);
    }
    if let Some(stanza) = &repository.stanza {
        words.extend(["--stanza".to_owned(), stanza.clone()]);
    }
    for (flag, path) in [
        ("--key-file", &repository.key_file),
        ("--passphrase-file", &repository.passphrase_file),
    ] {
        if let Some(path) = path {
            words.extend([flag.to_owned(), absolute(path)?]);
        }
    }
    if let Some(reference) = &repository.passphrase {
        words.extend(["--passphrase".to_owned(), reference.clone()]);
    }
    let mut line: Vec<String> = words.iter().map(|word| shell_word(word)).collect();
    line.push("%p".to_owned());
    Ok(line.join(" "))
}

async fn run(args: CommonArgs, command: Option<String>, context: &Context) -> Result<ExitStatus, Failure> {
    let settings = context.settings()?;
    let enabling = command.is_some();
    let archiving = Archiving {
        server: context.connection(&args.connection)?,
        control: control(&args.server, context)?,
        destinations: if enabling {
            destinations(&args.repository, settings)?
        } else {
            Vec::new()
        },
        command,
        stanza: args.repository.stanza(settings)?,
        memory: physical::memory(),
    };
    let procedure = ArchivingProcedure::new(archiving)
        .await
        .map_err(|error| Failure::from(error.into_cause()))?;
    let reporter = context.reporter();
    let confirmation = context.confirmation(&args.confirmation);
    let ended = Runner::new()?
        .run(
            &procedure,
            RunOptions {
                dry_run: args.confirmation.dry_run,
                ..RunOptions::default()
            },
            Surroundings {
                confirm: &confirmation,
                reporter: &reporter,
                cancellation: &context.cancellation,
            },
        )
        .await?;
    match ended {
        Ended::DryRun(plan) if context.printer.wants_json() => {
            context
                .printer
                .json(&json!({"schema_version": 1, "dry_run": true, "plan": plan}))?;
        }
        Ended::DryRun(plan) => context.printer.data(&plan.to_string()),
        Ended::Done(report) if context.printer.wants_json() => {
            context
                .printer
                .json(&json!({"schema_version": 1, "enabled": enabling, "procedure": report}))?;
        }
        Ended::Done(_) if enabling => context.printer.line(
            "The server archives its WAL: a new segment is in every repository and was read back. \
             Next: pgmahout backup create",
        ),
        Ended::Done(_) => context
            .printer
            .line("The server does not archive its WAL any more."),
    }
    Ok(ExitStatus::SUCCESS)
}

/// How the server is restarted: its unit, its container, or pg_ctl.
fn control(args: &DataDirectoryArgs, context: &Context) -> Result<Option<Box<dyn ServerControl>>, Failure> {
    let server = &context.settings()?.server;
    if let Some(unit) = &server.unit {
        return Ok(Some(Box::new(Systemd::new(unit))));
    }
    if let Some(container) = &server.container {
        return Ok(Some(Box::new(Docker::new(container))));
    }
    let Some(data_dir) = args.given(context)? else {
        return Ok(None);
    };
    let bin_dir = match args.bin_dir(context)? {
        Some(bin_dir) => bin_dir,
        None => match bin_dir_of(&data_dir) {
            Some(bin_dir) => bin_dir,
            None => return Ok(None),
        },
    };
    Ok(Some(Box::new(PgCtl::new(bin_dir, data_dir))))
}

/// The programs of the data directory's version.
fn bin_dir_of(data_dir: &Path) -> Option<PathBuf> {
    let version = std::fs::read_to_string(data_dir.join("PG_VERSION")).ok()?;
    let major = version.trim().parse().ok()?;
    let found = Binaries::find("pg_ctl", Requirement::Exactly(major), None).ok()?;
    Some(found.directory().to_path_buf())
}
