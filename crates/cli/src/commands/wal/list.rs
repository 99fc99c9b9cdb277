//! `pgmahout wal list`.

use std::fmt::Write as _;

use pgmahout_backup::physical::wal::inventory::TimelineWal;
use pgmahout_backup::physical::wal::{WalArchive, WalInventory};
use pgmahout_types::{Bytes, TimelineId};
use serde_json::json;

use crate::ExitStatus;
use crate::commands::physical::{self, RepositoryArgs};
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::Align;

/// List the archived WAL: ranges, gaps, and timelines as a tree.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout wal list
  pgmahout wal list --repo offsite --json

A gap between two ranges means that recovery cannot get from one to the other.")]
pub(crate) struct Args {
    #[command(flatten)]
    repository: RepositoryArgs,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let opened = args.repository.open_all(context).await?;
    let mut found = Vec::new();
    for opened in opened {
        let name = physical::name_of(&opened.chosen.store);
        let archive = WalArchive::new(opened.repository);
        let inventory = archive.list(&context.cancellation).await?;
        found.push((name, archive, inventory));
    }
    if context.printer.wants_json() {
        let repositories: Vec<_> = found
            .iter()
            .map(|(name, archive, inventory)| {
                json!({
                    "repository": name,
                    "stanza": archive.repository().stanza().as_str(),
                    "segment_size": inventory.segment_size.bytes(),
                    "segments": inventory.segment_count(),
                    "stored_bytes": inventory.stored_bytes(),
                    "timelines": inventory.timelines,
                    "broken_branches": inventory.broken_branches().iter().map(|(timeline, segment)| json!({
                        "timeline": timeline,
                        "missing": segment,
                    })).collect::<Vec<_>>(),
                })
            })
            .collect();
        context
            .printer
            .json(&json!({"schema_version": 1, "repositories": repositories}))?;
        return Ok(ExitStatus::SUCCESS);
    }
    for (at, (name, archive, inventory)) in found.iter().enumerate() {
        if at > 0 {
            context.printer.line("");
        }
        context.printer.line(&format!(
            "{} stanza {} in repository {name}: {} segments of {}, {} stored",
            context.printer.palette().strong("WAL of"),
            archive.repository().stanza(),
            inventory.segment_count(),
            inventory.segment_size,
            Bytes::new(inventory.stored_bytes()),
        ));
        if inventory.timelines.is_empty() {
            context
                .printer
                .note("Nothing is archived yet; `pgmahout wal enable` begins.");
            continue;
        }
        table(inventory, context);
    }
    Ok(ExitStatus::SUCCESS)
}

fn table(inventory: &WalInventory, context: &Context) {
    let palette = context.printer.palette();
    let mut rows = Vec::new();
    for (depth, wal) in tree(inventory) {
        let mut label = format!("{}{}", "  ".repeat(depth), wal.timeline);
        if let Some(branch) = wal.parent {
            let _ = write!(label, " (from {} at {})", branch.timeline, branch.switchpoint);
        }
        let mut note = Vec::new();
        if wal.timeline != TimelineId::FIRST && !wal.has_history {
            note.push(palette.caution("its history is not archived"));
        }
        if !wal.partials.is_empty() {
            note.push(format!("{} partial", wal.partials.len()));
        }
        let mut notes = Some(note.join(", "));
        let mut label = Some(label);
        let mut gaps = wal.gaps.iter().peekable();
        for range in &wal.ranges {
            // Gaps that a collection made are in no list.
            while let Some(gap) = gaps.next_if(|gap| gap.first < range.first) {
                rows.push(vec![
                    label.take().unwrap_or_default(),
                    gap.first.to_string(),
                    gap.last.to_string(),
                    gap.segments.to_string(),
                    "-".to_owned(),
                    palette.bad(&match &gap.reason {
                        Some(reason) => format!("missing: {reason}"),
                        None => "missing".to_owned(),
                    }),
                ]);
            }
            rows.push(vec![
                label.take().unwrap_or_default(),
                range.first.to_string(),
                range.last.to_string(),
                range.segments.to_string(),
                Bytes::new(range.stored_bytes).to_string(),
                notes.take().unwrap_or_default(),
            ]);
        }
        if let Some(label) = label {
            let dash = || "-".to_owned();
            rows.push(vec![
                label,
                dash(),
                dash(),
                "0".to_owned(),
                dash(),
                notes.unwrap_or_default(),
            ]);
        }
    }
    context.printer.table(
        &[
            ("timeline", Align::Left),
            ("first", Align::Left),
            ("last", Align::Left),
            ("segments", Align::Right),
            ("stored", Align::Right),
            ("", Align::Left),
        ],
        rows,
    );
    for (timeline, segment) in inventory.broken_branches() {
        context.printer.warn(&format!(
            "recovery cannot get to timeline {timeline}: {segment}, just before it branches off, is not archived"
        ));
    }
}

/// The timelines, each below the one that it branched off, with its depth.
fn tree(inventory: &WalInventory) -> Vec<(usize, &TimelineWal)> {
    fn add<'a>(
        inventory: &'a WalInventory,
        parent: Option<TimelineId>,
        depth: usize,
        rows: &mut Vec<(usize, &'a TimelineWal)>,
    ) {
        for wal in &inventory.timelines {
            // One whose parent has no WAL here stands at the top.
            let above = wal
                .parent
                .map(|branch| branch.timeline)
                .filter(|timeline| inventory.timeline(*timeline).is_some());
            if above == parent {
                rows.push((depth, wal));
                add(inventory, Some(wal.timeline), depth + 1, rows);
            }
        }
    }
    let mut rows = Vec::new();
    add(inventory, None, 0, &mut rows);
    rows
}
