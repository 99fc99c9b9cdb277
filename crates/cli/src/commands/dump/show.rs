//! `pgmahout dump show`.

use jiff::Timestamp;
use pgmahout_backup::dump::catalog::{self, Entry};
use pgmahout_backup::dump::list::{self, Found};
use pgmahout_backup::dump::manifest::Precision;
use pgmahout_types::Bytes;
use serde_json::json;

use super::list::{age, time, trust};
use super::place::RepoArgs;
use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::{Align, Printer};

/// Show what is known of one dump: its manifest, its tables, its verification.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout dump show backup_shop_2026_11_21_031500.sql.gz
  pgmahout dump show --repo backup_shop_2026_11_21_031500.sql.gz --json")]
pub(crate) struct Args {
    /// The dump or bundle.
    file: String,

    #[command(flatten)]
    repo: RepoArgs,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let (place, name) = args.repo.file(context, &args.file).await?;
    let catalog = catalog::read(&place).await?;
    let now = Timestamp::now();
    let printer = &context.printer;
    match list::find(&catalog, &place, &name)? {
        Found::Dump(entry) => {
            let summary = list::dump(entry, &place, now);
            if printer.wants_json() {
                printer.json(&json!({
                    "schema_version": 1,
                    "summary": summary,
                    "manifest": entry.readable(),
                }))?;
            } else {
                render(entry, &summary, printer);
            }
        }
        Found::Bundle(bundle) => {
            let members: Vec<_> = bundle
                .members(&catalog)
                .map(|entry| list::dump(entry, &place, now))
                .collect();
            if printer.wants_json() {
                printer.json(&json!({
                    "schema_version": 1,
                    "bundle": bundle.file,
                    "manifest": bundle.manifest.as_ref().ok(),
                    "members": members,
                }))?;
            } else {
                printer.line(&format!("{} holds:", bundle.file));
                for file in &bundle.own_files {
                    printer.line(&format!(
                        "  {} ({}, roles and tablespaces)",
                        file.name,
                        Bytes::new(file.bytes)
                    ));
                }
                for member in &members {
                    printer.line(&format!(
                        "  {} ({}, {})",
                        member.file,
                        Bytes::new(member.bytes),
                        trust(member.trust, *printer.palette())
                    ));
                }
                for name in &bundle.missing {
                    printer.warn(&format!("its member \"{name}\" is missing"));
                }
            }
        }
    }
    Ok(ExitStatus::SUCCESS)
}

fn render(entry: &Entry, summary: &list::DumpSummary, printer: &Printer) {
    let mut lines: Vec<(&str, String)> = vec![("file", summary.location.clone())];
    lines.push(("verified", trust(summary.trust, *printer.palette())));
    if let Some(manifest) = entry.readable() {
        let server = &manifest.server;
        lines.push(("database", manifest.database.name.clone()));
        lines.push((
            "server",
            format!(
                "PostgreSQL {} at {}{}",
                server.version,
                server.address,
                if server.in_recovery { " (standby)" } else { "" }
            ),
        ));
        lines.push((
            "system",
            server
                .system_identifier
                .clone()
                .unwrap_or_else(|| "unknown".to_owned()),
        ));
        lines.push((
            "encoding",
            format!(
                "{}, collate {}, ctype {}",
                manifest.database.encoding, manifest.database.collate, manifest.database.ctype
            ),
        ));
        let extensions: Vec<String> = manifest
            .database
            .extensions
            .iter()
            .map(|extension| format!("{} {}", extension.name, extension.version))
            .collect();
        lines.push(("extensions", extensions.join(", ")));
        lines.push((
            "holds",
            format!(
                "{}, {}, {}{}",
                manifest.options.contents.as_str(),
                manifest.options.format.as_str(),
                manifest.compression,
                manifest
                    .encryption
                    .as_ref()
                    .map(|it| format!(", {} ({})", it.cipher, it.key))
                    .unwrap_or_default()
            ),
        ));
        if let Some(snapshot) = &manifest.snapshot {
            let lsn = snapshot.lsn.as_deref().unwrap_or("unknown");
            lines.push(("snapshot", format!("{} at {lsn}", time(snapshot.taken_at))));
        }
        lines.push((
            "size",
            format!(
                "{} from {}",
                Bytes::new(manifest.stored.bytes),
                Bytes::new(manifest.content.bytes)
            ),
        ));
        lines.push(("sha256", manifest.stored.sha256.clone()));
        for companion in &manifest.companions {
            lines.push(("beside it", companion.file.clone()));
        }
        if let Some(test) = manifest.verification.last_restore() {
            lines.push((
                "restore test",
                format!(
                    "{} {} on {} in {:.0} s",
                    time(test.at),
                    if test.passed { "passed" } else { "FAILED" },
                    test.server_version,
                    test.seconds
                ),
            ));
        }
    }
    lines.push(("age", age(summary.age_seconds)));
    for (label, text) in lines {
        printer.line(&format!("{label:<13}{text}"));
    }
    if let Some(manifest) = entry.readable().filter(|manifest| !manifest.tables.is_empty()) {
        printer.line("");
        let rows = manifest
            .tables
            .iter()
            .map(|table| {
                let rows = match (table.rows, table.precision) {
                    (Some(rows), Precision::Exact) => rows.to_string(),
                    (Some(rows), _) => format!("~{rows}"),
                    (None, _) => "-".to_owned(),
                };
                vec![format!("{}.{}", table.schema, table.name), rows]
            })
            .collect();
        printer.table(&[("table", Align::Left), ("rows", Align::Right)], rows);
    }
    for warning in &summary.warnings {
        printer.warn(warning);
    }
}
