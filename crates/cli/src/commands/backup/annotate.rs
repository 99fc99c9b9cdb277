//! `pgmahout backup annotate`.

use pgmahout_backup::physical::stanza::StanzaError;
use pgmahout_types::diagnostic::Outcome;
use pgmahout_types::repository::Label;
use serde_json::json;

use super::super::physical::RepositoryArgs;
use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;

/// Note something about a physical backup, or pin it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout backup annotate 20261121T104500Z-3f9a reason='before the migration'
  pgmahout backup annotate 20261121T104500Z-3f9a reason=              removes the note
  pgmahout backup annotate 20261121T104500Z-3f9a --pin                keep it whatever the rules of retention say")]
pub(crate) struct Args {
    /// The backup.
    label: Label,

    /// Notes as KEY=VALUE; KEY= removes one.
    notes: Vec<String>,

    /// Keep the backup, whatever the rules of retention say.
    #[arg(long, conflicts_with = "unpin")]
    pin: bool,

    /// Leave the backup to the rules of retention again.
    #[arg(long)]
    unpin: bool,

    #[command(flatten)]
    repository: RepositoryArgs,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let notes = args
        .notes
        .iter()
        .map(|text| match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => Ok((
                key.trim().to_owned(),
                Some(value.to_owned()).filter(|value| !value.is_empty()),
            )),
            _ => Err(
                Failure::new(Outcome::Usage, format!("\"{text}\" is not KEY=VALUE"))
                    .hint("for example reason='before the migration'; reason= removes it"),
            ),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if notes.is_empty() && !args.pin && !args.unpin {
        return Err(
            Failure::new(Outcome::Usage, "there is nothing to note").hint("give KEY=VALUE, --pin or --unpin")
        );
    }
    let mut changed = Vec::new();
    for opened in args.repository.open_all(context).await? {
        let repository = opened.repository;
        let head = repository.head().await?;
        if head.backup(args.label).is_none() {
            continue;
        }
        let label = args.label;
        let backup = repository
            .swap(|head| {
                for (key, value) in &notes {
                    // A note that is removed need not be there.
                    let _ = head.annotate(label, key, value.as_deref());
                }
                if args.pin || args.unpin {
                    let _ = head.pin(label, args.pin);
                }
                Ok::<_, StanzaError>(repository.backup_in(head, label)?.clone())
            })
            .await?;
        changed.push((repository.description(), backup));
    }
    let Some((_, backup)) = changed.first() else {
        return Err(
            Failure::new(Outcome::Usage, format!("there is no backup {}", args.label))
                .hint("list what is there: pgmahout backup list"),
        );
    };
    if context.printer.wants_json() {
        context.printer.json(&json!({
            "schema_version": 1,
            "repositories": changed.iter().map(|(repository, _)| repository).collect::<Vec<_>>(),
            "backup": backup,
        }))?;
        return Ok(ExitStatus::SUCCESS);
    }
    for (repository, backup) in &changed {
        let mut parts: Vec<String> = backup
            .annotations
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        if backup.pinned {
            parts.push("pinned".to_owned());
        }
        let text = if parts.is_empty() {
            "no notes".to_owned()
        } else {
            parts.join(", ")
        };
        context
            .printer
            .line(&format!("{} in {repository}: {text}", backup.label));
    }
    Ok(ExitStatus::SUCCESS)
}
