//! `pgmahout dump list`.

use std::path::PathBuf;
use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};
use pgmahout_backup::dump::catalog::{self, Trust};
use pgmahout_backup::dump::list::{self, BundleSummary, DumpSummary};
use pgmahout_types::{Bytes, HumanDuration};
use serde_json::json;

use super::place::RepoArgs;
use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::{Align, Palette};

/// List the dumps in a directory or the repository.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout dump list
  pgmahout dump list /srv/dumps --database shop
  pgmahout dump list --repo --json

VERIFIED says what is known: \"restored\" after a test restore that passed, \"read back\" after the whole file was
read and compared once, \"unverified\" for dumps of other programs, \"restore failed\" and \"damaged\" for those that
cannot be relied on.")]
pub(crate) struct Args {
    /// The directory [default: dump.directory, else the current one].
    directory: Option<PathBuf>,

    #[command(flatten)]
    repo: RepoArgs,

    /// Only dumps of this database.
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let place = args.repo.place_or(context, args.directory.as_ref()).await?;
    let catalog = catalog::read(&place).await?;
    let now = Timestamp::now();
    let mut dumps = list::dumps(&catalog, &place, now);
    let mut bundles = list::bundles(&catalog, &place, now);
    if let Some(database) = &args.database {
        dumps.retain(|dump| dump.database.as_ref() == Some(database));
        bundles.retain(|bundle| {
            dumps
                .iter()
                .any(|dump| dump.bundle.as_ref() == Some(&bundle.file))
        });
    }
    let printer = &context.printer;
    if printer.wants_json() {
        printer.json(&json!({
            "schema_version": 1,
            "place": place.describe(),
            "dumps": dumps,
            "bundles": bundles,
        }))?;
        return Ok(ExitStatus::SUCCESS);
    }
    if dumps.is_empty() && bundles.is_empty() {
        printer.note(&format!("no dumps in {}", place.describe()));
        return Ok(ExitStatus::SUCCESS);
    }
    printer.table(
        &[
            ("file", Align::Left),
            ("database", Align::Left),
            ("contents", Align::Left),
            ("taken", Align::Left),
            ("age", Align::Right),
            ("size", Align::Right),
            ("rows", Align::Right),
            ("verified", Align::Left),
        ],
        dumps.iter().map(|dump| row(dump, *printer.palette())).collect(),
    );
    if !bundles.is_empty() {
        printer.line("");
        printer.table(
            &[
                ("bundle", Align::Left),
                ("members", Align::Right),
                ("taken", Align::Left),
                ("age", Align::Right),
                ("size", Align::Right),
                ("verified", Align::Left),
            ],
            bundles
                .iter()
                .map(|bundle| bundle_row(bundle, *printer.palette()))
                .collect(),
        );
    }
    let warned = dumps.iter().map(|dump| (&dump.file, &dump.warnings));
    for (file, warnings) in warned.chain(bundles.iter().map(|bundle| (&bundle.file, &bundle.warnings))) {
        for warning in warnings {
            printer.warn(&format!("{file}: {warning}"));
        }
    }
    Ok(ExitStatus::SUCCESS)
}

fn row(dump: &DumpSummary, palette: Palette) -> Vec<String> {
    let unknown = || "-".to_owned();
    vec![
        dump.file.clone(),
        dump.database.clone().unwrap_or_else(unknown),
        dump.contents.map_or_else(unknown, |contents| {
            if dump.whole_database == Some(false) {
                format!("{contents}, part")
            } else {
                contents.to_owned()
            }
        }),
        time(dump.taken_at),
        age(dump.age_seconds),
        Bytes::new(dump.bytes).to_string(),
        match (dump.rows, dump.rows_exact) {
            (Some(rows), Some(true)) => rows.to_string(),
            (Some(rows), _) => format!("~{rows}"),
            _ => unknown(),
        },
        trust(dump.trust, palette),
    ]
}

fn bundle_row(bundle: &BundleSummary, palette: Palette) -> Vec<String> {
    vec![
        bundle.file.clone(),
        bundle.members.len().to_string(),
        time(bundle.taken_at),
        age(bundle.age_seconds),
        Bytes::new(bundle.bytes).to_string(),
        trust(bundle.trust, palette),
    ]
}

/// A time for people, in their zone.
pub(super) fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M")
        .to_string()
}

/// An age for people.
pub(super) fn age(seconds: i64) -> String {
    HumanDuration(Duration::from_secs(seconds.max(0).unsigned_abs())).to_string()
}

/// How far a dump can be trusted, coloured.
pub(super) fn trust(trust: Trust, palette: Palette) -> String {
    let text = trust.as_str();
    match trust {
        Trust::Restored | Trust::ReadBack => palette.good(text),
        Trust::Unverified => palette.unknown(text),
        Trust::RestoreFailed | Trust::Damaged => palette.bad(text),
    }
}
