//! What a restore has to say.

use pgmahout_backup::physical::restore::plan::RestorePlan;
use pgmahout_backup::physical::restore::{Restore, RestoreOutcome};
use pgmahout_procedure::{Plan, Report};
use pgmahout_types::Bytes;
use serde_json::json;

use crate::context::Context;
use crate::failure::Failure;

/// `--dry-run`.
pub(super) fn dry_run(plan: &RestorePlan, shown: &Plan, context: &Context) -> Result<(), Failure> {
    if context.printer.wants_json() {
        context.printer.json(&json!({
            "schema_version": 1,
            "dry_run": true,
            "restore": plan,
            "plan": shown,
        }))?;
    } else {
        context.printer.data(&shown.to_string());
    }
    Ok(())
}

/// A restore that was made.
pub(super) fn done(
    restore: &Restore,
    plan: &RestorePlan,
    report: &Report,
    context: &Context,
) -> Result<(), Failure> {
    let outcome = restore.outcome();
    if context.printer.wants_json() {
        context.printer.json(&json!({
            "schema_version": 1,
            "backup": restore.label(),
            "data_dir": restore.data_dir(),
            "restore": plan,
            "outcome": outcome,
            "procedure": report,
        }))?;
        return Ok(());
    }
    context.printer.line(&format!(
        "Restored backup {} into {}: {} files, {} written{} in {:.1} s.",
        restore.label(),
        restore.data_dir().display(),
        plan.files,
        Bytes::new(outcome.written),
        kept(&outcome),
        report.seconds
    ));
    for path in &outcome.moved {
        context
            .printer
            .line(&format!("What was there is in {}.", path.display()));
    }
    for path in &outcome.included {
        context.printer.line(&format!(
            "From outside the data directory: {}. Nothing that is there was touched.",
            path.display()
        ));
    }
    if !outcome.to_drop.is_empty() {
        context.printer.line(&format!(
            "Not restored, and to be dropped: {}",
            outcome
                .to_drop
                .iter()
                .map(|name| format!("DROP DATABASE \"{}\";", name.replace('"', "\"\"")))
                .collect::<Vec<_>>()
                .join(" ")
        ));
    }
    for line in &report.verified {
        context.printer.line(&capitalised(line));
    }
    if outcome.recovery.is_none() {
        context.printer.line(&format!(
            "Start the server to recover: pg_ctl start -D {}",
            restore.data_dir().display()
        ));
    }
    Ok(())
}

fn kept(outcome: &RestoreOutcome) -> String {
    if outcome.kept == 0 && outcome.removed == 0 {
        return String::new();
    }
    format!(
        ", {} right already, {} removed",
        Bytes::new(outcome.kept),
        outcome.removed
    )
}

fn capitalised(line: &str) -> String {
    let mut characters = line.chars();
    match characters.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), characters.as_str()),
        None => String::new(),
    }
}
