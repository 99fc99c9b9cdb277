//! `pgmahout repo info`.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use pgmahout_backup::physical::stanza::{PhysicalRepository, StanzaObject};
use pgmahout_types::Bytes;
use pgmahout_types::repository::Head;
use serde::Serialize;
use serde_json::json;

use crate::ExitStatus;
use crate::commands::physical::RepositoryArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::Align;

/// Show what each repository holds: sizes, how much is shared and compressed, how fast it grows.
///
/// Shared is how many times over the files of all backups would have to be stored if each backup stood alone;
/// it counts compression and what backups have in common together.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout repo info
  pgmahout repo info --repo offsite --json")]
pub(crate) struct Args {
    #[command(flatten)]
    repository: RepositoryArgs,
}

/// What a repository holds for one stanza.
#[derive(Debug, Serialize)]
struct Summary {
    repository: String,
    location: String,
    id: String,
    stanza: String,
    system_identifier: String,
    major: u32,
    encrypted: bool,
    backups: usize,
    oldest: Option<Timestamp>,
    newest: Option<Timestamp>,
    /// Bytes of the files of all backups together, as each would be restored.
    restorable_bytes: u64,
    /// Bytes of packs, of blocks and of maps.
    pack_bytes: u64,
    /// Bytes of manifests.
    manifest_bytes: u64,
    wal_bytes: u64,
    wal_files: u64,
    /// Everything, the small objects included.
    total_bytes: u64,
    /// Restorable bytes to bytes of packs.
    shared_ratio: Option<f64>,
    /// Raw bytes of new blocks to what they took.
    compression_ratio: Option<f64>,
    /// Bytes a day that backups have added in the last week.
    growth_bytes_per_day: Option<u64>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let mut summaries = Vec::new();
    let mut failures = Vec::new();
    for (name, opened) in args.repository.try_open_all(context).await? {
        let summary = match opened {
            Ok(opened) => look(&name, &opened.repository, context).await,
            Err(failure) => Err(failure),
        };
        match summary {
            Ok(summary) => summaries.push(summary),
            Err(failure) => failures.push((name, failure)),
        }
    }
    if context.printer.wants_json() {
        let failed: Vec<_> = failures
            .iter()
            .map(|(name, failure)| json!({"repository": name, "error": failure.summary()}))
            .collect();
        context
            .printer
            .json(&json!({"schema_version": 1, "repositories": summaries, "failed": failed}))?;
    } else {
        render(context, &summaries);
        for (name, failure) in &failures {
            context
                .printer
                .warn(&format!("repository {name}: {}", failure.summary()));
        }
    }
    match failures.into_iter().next() {
        Some((_, failure)) if summaries.is_empty() => Err(failure),
        Some(_) => Ok(ExitStatus(1)),
        None => Ok(ExitStatus::SUCCESS),
    }
}

async fn look(name: &str, repository: &PhysicalRepository, context: &Context) -> Result<Summary, Failure> {
    let head = repository.head().await?;
    let names = repository.names();
    let listed = repository
        .repository()
        .list(names.prefix(), &context.cancellation)
        .await?;
    let (mut packs, mut manifests, mut wal, mut wal_files, mut total) = (0, 0, 0, 0, 0);
    for entry in &listed {
        total += entry.size;
        match names.relative(&entry.name).and_then(StanzaObject::parse) {
            Some(StanzaObject::Pack(_) | StanzaObject::Map(_)) => packs += entry.size,
            Some(StanzaObject::Manifest(_)) => manifests += entry.size,
            Some(StanzaObject::Wal(_)) => {
                wal += entry.size;
                wal_files += 1;
            }
            _ => {}
        }
    }
    let system = repository.stanza_info().current()?;
    let restorable: u64 = head.backups.iter().map(|backup| backup.bytes).sum();
    let (new, stored) = head.backups.iter().fold((0, 0), |(new, stored), backup| {
        (new + backup.new, stored + backup.stored)
    });
    Ok(Summary {
        repository: name.to_owned(),
        location: repository.repository().location().to_string(),
        id: repository.id().to_string(),
        stanza: repository.stanza().to_string(),
        system_identifier: system.system_identifier.to_string(),
        major: system.major,
        encrypted: repository.cipher().is_encrypted(),
        backups: head.backups.len(),
        oldest: head.backups.first().map(|backup| backup.stop_time),
        newest: head.backups.last().map(|backup| backup.stop_time),
        restorable_bytes: restorable,
        pack_bytes: packs,
        manifest_bytes: manifests,
        wal_bytes: wal,
        wal_files,
        total_bytes: total,
        shared_ratio: ratio(restorable, packs),
        compression_ratio: ratio(new, stored),
        growth_bytes_per_day: growth(&head, Timestamp::now()),
    })
}

fn ratio(one: u64, other: u64) -> Option<f64> {
    (other > 0 && one > 0).then(|| (one as f64 / other as f64 * 100.0).round() / 100.0)
}

/// What the backups of the last week have added, by day; the first backup of all is no growth.
fn growth(head: &Head, now: Timestamp) -> Option<u64> {
    const WEEK: SignedDuration = SignedDuration::from_hours(7 * 24);
    let recent: BTreeMap<Timestamp, u64> = head
        .backups
        .iter()
        .skip(1)
        .filter(|backup| now.duration_since(backup.stop_time) <= WEEK)
        .map(|backup| (backup.stop_time, backup.stored))
        .collect();
    let first = *recent.first_key_value()?.0;
    let days = (now.duration_since(first).as_secs_f64() / 86_400.0).max(1.0);
    Some((recent.values().sum::<u64>() as f64 / days) as u64)
}

fn render(context: &Context, summaries: &[Summary]) {
    let number = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1}x"));
    let bytes = |bytes: u64| Bytes::new(bytes).to_string();
    let rows = summaries
        .iter()
        .map(|summary| {
            vec![
                summary.repository.clone(),
                summary.stanza.clone(),
                summary.backups.to_string(),
                bytes(summary.restorable_bytes),
                bytes(summary.pack_bytes),
                bytes(summary.wal_bytes),
                bytes(summary.total_bytes),
                number(summary.shared_ratio),
                number(summary.compression_ratio),
                summary
                    .growth_bytes_per_day
                    .map_or_else(|| "-".to_owned(), |growth| format!("{}/day", bytes(growth))),
                if summary.encrypted { "yes" } else { "no" }.to_owned(),
            ]
        })
        .collect();
    let columns = [
        ("repository", Align::Left),
        ("stanza", Align::Left),
        ("backups", Align::Right),
        ("restorable", Align::Right),
        ("packs", Align::Right),
        ("wal", Align::Right),
        ("in all", Align::Right),
        ("shared", Align::Right),
        ("compressed", Align::Right),
        ("growth", Align::Right),
        ("encrypted", Align::Left),
    ];
    context.printer.table(&columns, rows);
}
