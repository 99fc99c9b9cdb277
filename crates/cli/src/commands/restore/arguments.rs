//! The command line of a restore again: for its journal, and for the server that fetches WAL.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args as _;
use pgmahout_backup::physical::restore;
use pgmahout_procedure::StepError;

use super::Args;
use crate::context::Context;
use crate::failure::Failure;

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// A repository's location as it is understood from any directory.
fn location(text: &str, context: &Context) -> Result<String, Failure> {
    let is_name = context.settings()?.repository(Some(text)).is_some();
    if is_name || text.contains("://") {
        return Ok(text.to_owned());
    }
    Ok(absolute(Path::new(text)).display().to_string())
}

/// The options that name the repository, from any directory.
fn repository(args: &Args, context: &Context) -> Result<Vec<String>, Failure> {
    let given = &args.repository;
    let mut words = Vec::new();
    if let Some(repo) = &given.repo {
        words.push(format!("--repo={}", location(repo, context)?));
    }
    if let Some(stanza) = &given.stanza {
        words.push(format!("--stanza={stanza}"));
    }
    if let Some(passphrase) = &given.passphrase {
        words.push(format!("--passphrase={passphrase}"));
    }
    for (name, path) in [
        ("passphrase-file", &given.passphrase_file),
        ("key-file", &given.key_file),
    ] {
        if let Some(path) = path {
            words.push(format!("--{name}={}", absolute(path).display()));
        }
    }
    Ok(words)
}

/// The `restore_command`: this very program, with the same configuration and repository.
pub(super) fn restore_command(args: &Args, context: &Context) -> Result<String, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::caused_by("cannot find the path of this program", error))?;
    let mut words: Vec<OsString> = Vec::new();
    if let Some(file) = &context.settings()?.file {
        words.push(OsString::from("--config"));
        words.push(absolute(file).into());
    }
    words.extend(["wal", "fetch"].map(OsString::from));
    words.extend(repository(args, context)?.into_iter().map(OsString::from));
    Ok(restore::restore_command(&program, &words)?)
}

/// What would be typed to do the same again, from any directory and without secrets: for the journal.
pub(super) fn of(args: &Args, context: &Context) -> Result<Vec<String>, Failure> {
    let mut words = vec!["restore".to_owned()];
    let mut option = |name: &str, value: Option<String>| {
        words.extend(value.map(|value| format!("--{name}={value}")));
    };
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| absolute(path).display().to_string());
    let (target, place, server) = (&args.target, &args.place, &args.server);
    option("backup", args.backup.map(|label| label.to_string()));
    option("target-time", target.target_time.clone());
    option("target-lsn", target.target_lsn.clone());
    option("target-xid", target.target_xid.clone());
    option("target-name", target.target_name.clone());
    option("type", target.kind.clone());
    option("target", target.target.clone());
    option("target-timeline", target.target_timeline.clone());
    option("target-action", target.target_action.clone());
    option("timezone", target.timezone.clone());
    option("wal-dir", path(&place.wal_dir));
    option("include", place.include.as_ref().and_then(&path));
    option("received", path(&place.received));
    option("jobs", place.jobs.map(|jobs| jobs.to_string()));
    option(
        "data-dir",
        Some(
            absolute(&args.directories.required(context)?)
                .display()
                .to_string(),
        ),
    );
    option("bin-dir", path(&args.directories.bin_dir));
    option("timeout", server.timeout.clone());
    option("config-file", path(&server.config_file));
    option("username", server.user.clone());
    option("primary", server.primary.clone());
    option("primary-slot", server.primary_slot.clone());
    option("archive", server.archive.clone());
    option("restore-command", server.restore_command.clone());
    for tablespace in &place.tablespaces {
        option("tablespace", Some(tablespace.clone()));
    }
    for database in &place.databases {
        option("database", Some(database.clone()));
    }
    for (given, name) in [
        (target.target_immediate, "--target-immediate"),
        (target.target_exclusive, "--target-exclusive"),
        (place.delta, "--delta"),
        (place.keep_old, "--keep-old"),
        (place.primary_gone, "--primary-gone"),
        (matches!(place.include, Some(None)), "--include"),
        (server.start, "--start"),
        (server.as_standby, "--as-standby"),
    ] {
        if given {
            words.push(name.to_owned());
        }
    }
    words.extend(repository(args, context)?);
    Ok(words)
}

/// Reads what [`of`] wrote.
pub(super) fn parse(parameters: &serde_json::Value) -> Result<Args, StepError> {
    let words: Vec<String> = parameters
        .get("arguments")
        .and_then(|arguments| serde_json::from_value(arguments.clone()).ok())
        .ok_or_else(|| StepError::failed("the journal does not say how the restore was begun"))?;
    let not_understood = |error: clap::Error| {
        StepError::failed(format!("the journal's arguments are not understood: {error}"))
    };
    let matches = Args::augment_args(clap::Command::new("restore").disable_help_flag(true))
        .try_get_matches_from(&words)
        .map_err(not_understood)?;
    <Args as clap::FromArgMatches>::from_arg_matches(&matches).map_err(not_understood)
}
