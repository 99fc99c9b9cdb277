//! `pgmahout backup list`.

use jiff::{Timestamp, tz::TimeZone};
use pgmahout_types::repository::BackupEntry;
use pgmahout_types::repository::head::Examination;
use pgmahout_types::{Bytes, HumanDuration};
use serde_json::{Value, json};
use std::time::Duration;

use super::super::physical::{Opened, RepositoryArgs};
use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::{Align, Palette};

/// List the physical backups in the repositories.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout backup list
  pgmahout backup list --repo offsite --json

SIZE is that of the cluster, STORED by how much the backup made the repository grow. PROVEN says what is known
beyond that the backup was taken: \"restored\" after a drill that passed, \"read\" after all of it was read back,
and what failed.")]
pub(crate) struct Args {
    #[command(flatten)]
    repository: RepositoryArgs,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let printer = &context.printer;
    let mut listed = Vec::new();
    let mut failed = Vec::new();
    for (name, opened) in args.repository.try_open_all(context).await? {
        match list(opened).await {
            Ok(found) => listed.push(found),
            Err(failure) => failed.push((name, failure)),
        }
    }
    if listed.is_empty()
        && let Some((_, failure)) = failed.pop()
    {
        return Err(failure);
    }
    if printer.wants_json() {
        let repositories: Vec<Value> = listed
            .iter()
            .map(|(repository, stanza, backups)| {
                json!({ "repository": repository, "stanza": stanza, "backups": backups })
            })
            .collect();
        printer.json(&json!({ "schema_version": 1, "repositories": repositories }))?;
    } else {
        let several = listed.len() > 1;
        for (index, (repository, stanza, backups)) in listed.iter().enumerate() {
            if several {
                if index > 0 {
                    printer.line("");
                }
                printer.line(&format!("repository {repository}, stanza {stanza}:"));
            }
            if backups.is_empty() {
                printer.note(&format!("no backups of stanza {stanza} in {repository}"));
                continue;
            }
            printer.table(
                &[
                    ("backup", Align::Left),
                    ("taken", Align::Left),
                    ("age", Align::Right),
                    ("version", Align::Left),
                    ("size", Align::Right),
                    ("stored", Align::Right),
                    ("proven", Align::Left),
                    ("notes", Align::Left),
                ],
                backups
                    .iter()
                    .map(|backup| row(backup, *printer.palette()))
                    .collect(),
            );
        }
    }
    let any_failed = !failed.is_empty();
    for (name, failure) in failed {
        printer.warn(&format!(
            "repository {name} was not listed: {}",
            failure.summary()
        ));
    }
    Ok(ExitStatus(u8::from(any_failed)))
}

type Listed = (String, String, Vec<BackupEntry>);

async fn list(opened: Result<Opened, Failure>) -> Result<Listed, Failure> {
    let repository = opened?.repository;
    let head = repository.head().await?;
    Ok((
        repository.description(),
        repository.stanza().to_string(),
        head.backups,
    ))
}

fn row(backup: &BackupEntry, palette: Palette) -> Vec<String> {
    vec![
        backup.label.to_string(),
        time(backup.start_time),
        age(backup.stop_time),
        backup.server_version.to_string(),
        Bytes::new(backup.bytes).to_string(),
        Bytes::new(backup.stored).to_string(),
        proven(backup, palette),
        notes(backup, palette),
    ]
}

/// How far a backup is proven, coloured.
pub(super) fn proven(backup: &BackupEntry, palette: Palette) -> String {
    let failed = |examination: &Option<Examination>| examination.as_ref().is_some_and(|it| !it.passed);
    if failed(&backup.drilled) {
        palette.bad("restore failed")
    } else if failed(&backup.verified) {
        palette.bad("damaged")
    } else if backup.drilled.is_some() {
        palette.good("restored")
    } else if backup.verified.is_some() {
        palette.good("read")
    } else {
        palette.unknown("not yet")
    }
}

fn notes(backup: &BackupEntry, palette: Palette) -> String {
    let mut notes = Vec::new();
    if backup.findings > 0 {
        notes.push(palette.bad(&format!(
            "{} damaged {}",
            backup.findings,
            if backup.findings == 1 { "page" } else { "pages" }
        )));
    }
    if backup.pinned {
        notes.push("pinned".to_owned());
    }
    notes.extend(
        backup
            .annotations
            .iter()
            .map(|(key, value)| format!("{key}={value}")),
    );
    notes.join(", ")
}

/// A time for people, in their zone.
pub(crate) fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// How long ago something was, for people.
pub(super) fn age(at: Timestamp) -> String {
    let seconds = Timestamp::now().as_second().saturating_sub(at.as_second());
    HumanDuration(Duration::from_secs(seconds.max(0).unsigned_abs())).to_string()
}
