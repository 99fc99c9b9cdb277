//! `pgmahout wal verify`.

use std::collections::BTreeMap;

use pgmahout_backup::physical::wal::WalArchive;
use pgmahout_backup::physical::wal::verify::{self, WalVerification};
use pgmahout_types::repository::Digest;
use pgmahout_types::{Bytes, WalFileName};
use serde_json::json;

use super::jobs;
use crate::ExitStatus;
use crate::commands::physical::{self, RepositoryArgs};
use crate::context::Context;
use crate::failure::Failure;

/// Read back all archived WAL: open it, hash it, see that nothing is missing between.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout wal verify
  pgmahout wal verify --repo offsite --json

Exit status 1 when a file is damaged, a segment is missing between others, or two repositories hold different files of
one name.")]
pub(crate) struct Args {
    #[command(flatten)]
    repository: RepositoryArgs,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let opened = args.repository.open_all(context).await?;
    let destinations = super::destinations(&args.repository, context.settings()?)?;
    let jobs = jobs(context.settings()?, &destinations);
    let mut found = Vec::new();
    for opened in opened {
        let name = physical::name_of(&opened.chosen.store);
        let archive = WalArchive::new(opened.repository);
        let verified = verify::verify(&archive, jobs, &context.cancellation, &|_, _| {}).await?;
        found.push((name, verified));
    }
    let contradictions = contradictions(&found);
    let sound = contradictions.is_empty() && found.iter().all(|(_, verified)| verified.is_sound());
    if context.printer.wants_json() {
        let repositories: Vec<_> = found
            .iter()
            .map(|(name, verified)| to_json(name, verified))
            .collect();
        context.printer.json(&json!({
            "schema_version": 1,
            "passed": sound,
            "repositories": repositories,
            "contradictions": contradictions,
        }))?;
    } else {
        for (name, verified) in &found {
            print(context, name, verified);
        }
        for name in &contradictions {
            context.printer.line(&format!(
                "{name}: the repositories hold different files of this name"
            ));
        }
    }
    Ok(if sound { ExitStatus::SUCCESS } else { ExitStatus(1) })
}

/// The files of which two repositories hold different ones.
fn contradictions(found: &[(String, WalVerification)]) -> Vec<WalFileName> {
    let mut known: BTreeMap<WalFileName, Digest> = BTreeMap::new();
    let mut contradictions = Vec::new();
    for (_, verified) in found {
        for (name, digest) in &verified.sound {
            if *known.entry(*name).or_insert(*digest) != *digest {
                contradictions.push(*name);
            }
        }
    }
    contradictions.dedup();
    contradictions
}

fn to_json(name: &str, verified: &WalVerification) -> serde_json::Value {
    let problems: Vec<_> = verified
        .problems
        .iter()
        .map(|(file, error)| json!({"file": file, "problem": text(error)}))
        .collect();
    let branches: Vec<_> = verified
        .broken_branches
        .iter()
        .map(|(timeline, segment)| json!({"timeline": timeline, "missing": segment}))
        .collect();
    json!({
        "repository": name,
        "files": verified.sound.len(),
        "bytes": verified.bytes,
        "problems": problems,
        "gaps": verified.inventory.gaps().collect::<Vec<_>>(),
        "broken_branches": branches,
    })
}

fn print(context: &Context, name: &str, verified: &WalVerification) {
    let printer = &context.printer;
    for (file, error) in &verified.problems {
        printer.line(&format!(
            "{} {file}: {}",
            printer.palette().bad("bad"),
            text(error)
        ));
    }
    for gap in verified.inventory.gaps() {
        let reason = gap.reason.as_deref().map(|reason| format!(" ({reason})"));
        printer.line(&format!(
            "{} {} to {}: {} segments{}",
            printer.palette().bad("missing"),
            gap.first,
            gap.last,
            gap.segments,
            reason.unwrap_or_default()
        ));
    }
    for (timeline, segment) in &verified.broken_branches {
        printer.line(&format!(
            "{} {segment}, just before timeline {timeline} branches off",
            printer.palette().bad("missing")
        ));
    }
    printer.line(&format!(
        "Repository {name}: {} files with {} read and compared, {} bad, {} gaps.",
        verified.sound.len(),
        Bytes::new(verified.bytes),
        verified.problems.len(),
        verified.inventory.gaps().count() + verified.broken_branches.len()
    ));
}

/// An error with its causes in one line.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
