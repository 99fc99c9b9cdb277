//! `pgmahout backup show`.

use pgmahout_types::Bytes;
use pgmahout_types::repository::manifest::{Entry, Finding};
use pgmahout_types::repository::{Head, Label};
use serde_json::json;

use super::super::physical::RepositoryArgs;
use super::list::{age, proven, time};
use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;

/// Findings that are shown.
const MOST_FINDINGS: usize = 20;

/// Show what is known of one physical backup.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout backup show                         the newest one
  pgmahout backup show 20261121T104500Z-3f9a
  pgmahout backup show 20261121T104500Z-3f9a --files --json")]
pub(crate) struct Args {
    /// The backup [default: the newest one].
    label: Option<Label>,

    /// List its files too.
    #[arg(long)]
    files: bool,

    #[command(flatten)]
    repository: RepositoryArgs,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let repository = args.repository.open_one(context).await?.repository;
    let head = repository.head().await?;
    let label = match args.label {
        Some(label) => label,
        None => newest(&head, &repository.description())?,
    };
    let backup = repository.backup_in(&head, label)?.clone();
    let manifest = repository.read_manifest(label).await?;
    let (header, end) = (&manifest.header, &manifest.end);
    let findings: Vec<&Finding> = manifest
        .entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Finding(finding) => Some(&**finding),
            _ => None,
        })
        .collect();
    let files = || {
        manifest.entries.iter().filter_map(|entry| match entry {
            Entry::File(file) => Some(file),
            _ => None,
        })
    };
    let printer = &context.printer;
    if printer.wants_json() {
        let mut object = json!({
            "schema_version": 1,
            "repository": repository.description(),
            "stanza": repository.stanza().to_string(),
            "backup": backup,
            "manifest": header,
            "work": end,
            "packs": end.packs,
            "findings": findings,
        });
        if args.files {
            object["files"] = files()
                .map(|file| {
                    json!({
                        "path": file.path,
                        "size": file.size,
                        "kind": file.kind,
                        "mode": format!("{:04o}", file.mode),
                        "mtime": file.mtime,
                    })
                })
                .collect();
        }
        printer.json(&object)?;
        return Ok(ExitStatus::SUCCESS);
    }
    let mut lines = vec![
        ("backup", backup.label.to_string()),
        ("repository", repository.description()),
        ("stanza", repository.stanza().to_string()),
        (
            "taken",
            format!(
                "{} to {}, {} ago",
                time(backup.start_time),
                time(backup.stop_time),
                age(backup.stop_time)
            ),
        ),
        (
            "server",
            format!(
                "PostgreSQL {}, system identifier {}, {} on {}",
                backup.server_version, backup.system_identifier, backup.method, header.host
            ),
        ),
        (
            "wal",
            format!(
                "timeline {}, {} to {} ({} to {})",
                backup.timeline, backup.start_lsn, backup.stop_lsn, backup.wal.first, backup.wal.last
            ),
        ),
        (
            "compared",
            backup
                .parent
                .map_or_else(|| "with nothing".to_owned(), |parent| format!("with {parent}")),
        ),
        (
            "size",
            format!("{} in {} files", Bytes::new(backup.bytes), backup.files),
        ),
        (
            "stored",
            format!(
                "{} new, {} in the repository, of {} read",
                Bytes::new(backup.new),
                Bytes::new(backup.stored),
                Bytes::new(backup.read)
            ),
        ),
        (
            "uses",
            format!(
                "{} packs, {} together",
                end.packs.len(),
                Bytes::new(end.packs.iter().map(|pack| pack.size).sum())
            ),
        ),
        (
            "checksums",
            match (header.data_checksums.is_on(), backup.findings) {
                (false, _) => "the cluster has none".to_owned(),
                (true, 0) => printer.palette().good("all pages were right"),
                (true, count) => printer.palette().bad(&format!("{count} damaged pages")),
            },
        ),
        ("proven", proven(&backup, *printer.palette())),
    ];
    for tablespace in &header.tablespaces {
        lines.push(("tablespace", format!("{} at {}", tablespace.oid, tablespace.path)));
    }
    for path in &header.outside {
        lines.push(("along", path.to_string()));
    }
    if backup.pinned {
        lines.push(("pinned", "yes".to_owned()));
    }
    for (key, value) in &backup.annotations {
        lines.push(("note", format!("{key}={value}")));
    }
    for finding in findings.iter().take(MOST_FINDINGS) {
        lines.push(("damaged", format!("{} page {}", finding.path, finding.block)));
    }
    if findings.len() > MOST_FINDINGS {
        lines.push(("", format!("and {} more", findings.len() - MOST_FINDINGS)));
    }
    for (label, text) in lines {
        printer.line(&format!("{label:<12}{text}"));
    }
    if args.files {
        printer.line("");
        for file in files() {
            printer.line(&format!("{:>10}  {}", Bytes::new(file.size), file.path));
        }
    }
    Ok(ExitStatus::SUCCESS)
}

/// The newest backup of a head.
fn newest(head: &Head, repository: &str) -> Result<Label, Failure> {
    head.labels().last().ok_or_else(|| {
        Failure::new(
            pgmahout_types::diagnostic::Outcome::Failed,
            format!("there are no backups in {repository}"),
        )
        .hint("take one: pgmahout backup create")
    })
}
