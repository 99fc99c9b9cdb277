//! `pgmahout backup verify`.

use std::time::Duration;

use clap::Args as ClapArgs;
use pgmahout_backup::physical::verify::{self, Budget, Damage, VerifyMemory, VerifyReport, VerifyRequest};
use pgmahout_config::quantity;
use pgmahout_procedure::StateDirectory;
use pgmahout_types::repository::Label;
use pgmahout_types::{Bytes, HumanDuration};
use serde_json::json;

use crate::ExitStatus;
use crate::commands::physical::{Opened, RepositoryArgs, name_of};
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::Align;

/// How long something counts as read when nothing else is said.
const MAX_AGE: Duration = Duration::from_hours(30 * 24);

/// The most damaged files that are shown for one object.
const SHOWN: usize = 20;

/// Read backups back: every object is decrypted and every block hashed.
///
/// What was found whole is noted with the time, on this host. Without further flags everything is read that was
/// never read or not in the last 30 days; with --budget what was read longest ago comes first, until the budget
/// is spent, so that a short run every night reads everything in time. Backups that are named are read whole.
/// Damage is shown with the files, blocks and backups that it hits, and makes the exit status 1.
#[derive(Debug, ClapArgs)]
#[command(after_long_help = "\
Examples:
  pgmahout backup verify
  pgmahout backup verify --budget 10min        for a nightly run
  pgmahout backup verify --budget 50GB
  pgmahout backup verify --full                everything, the archived WAL included
  pgmahout backup verify 20261121T104500Z-3f9a")]
pub(crate) struct Args {
    /// The backups [default: all].
    #[arg(value_name = "LABEL")]
    labels: Vec<Label>,

    /// Read everything, however lately it was read.
    #[arg(long, conflicts_with_all = ["budget", "max_age"])]
    full: bool,

    /// Spend so much time (10min) or read so many bytes (50GB), what was read longest ago first.
    #[arg(long, value_name = "TIME|SIZE", value_parser = budget)]
    budget: Option<Budget>,

    /// Leave out what was read within this time [default: 30d].
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with_all = ["budget", "labels"])]
    max_age: Option<Duration>,

    /// How many objects are read at once, up to 4.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=4))]
    jobs: u8,

    #[command(flatten)]
    repository: RepositoryArgs,
}

fn budget(text: &str) -> Result<Budget, String> {
    // `5m` is minutes: a size has a B.
    if let Some(time) = quantity::duration(text) {
        return Ok(Budget::Time(time));
    }
    match quantity::size(text) {
        Some(bytes) if bytes > 0 => Ok(Budget::Bytes(bytes)),
        _ => Err("give a time such as 10min or a size such as 50GB".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    quantity::duration(text).ok_or_else(|| "give a duration such as 12h or 30d".to_owned())
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let budget = match (args.full || !args.labels.is_empty(), args.budget) {
        (_, Some(budget)) => budget,
        (true, None) => Budget::Full,
        (false, None) => Budget::OlderThan(args.max_age.unwrap_or(MAX_AGE)),
    };
    let request = VerifyRequest {
        labels: args.labels.clone(),
        budget,
        jobs: usize::from(args.jobs),
    };
    let state = StateDirectory::locate();
    let mut reports = Vec::new();
    for opened in args.repository.open_all(context).await? {
        let mut memory = match &state {
            Ok(state) => VerifyMemory::load(state, &opened.repository),
            Err(_) => VerifyMemory::none(),
        };
        let reporter = context.reporter();
        let report = verify::verify(
            &opened.repository,
            &request,
            &mut memory,
            reporter.as_ref(),
            &context.cancellation,
        )
        .await?;
        reports.push((opened, report));
    }
    let sound = reports.iter().all(|(_, report)| report.is_sound());
    if context.printer.wants_json() {
        let repositories: Vec<_> = reports
            .iter()
            .map(|(opened, report)| to_json(opened, report))
            .collect();
        context
            .printer
            .json(&json!({"schema_version": 1, "passed": sound, "repositories": repositories}))?;
    } else {
        for (opened, report) in &reports {
            render(context, opened, report);
        }
    }
    Ok(ExitStatus(u8::from(!sound)))
}

fn to_json(opened: &Opened, report: &VerifyReport) -> serde_json::Value {
    let backups: Vec<_> = report
        .backups
        .iter()
        .map(|backup| {
            json!({
                "label": backup.label,
                "passed": backup.sound,
                "objects": backup.objects,
                "never_read": backup.unread,
                "all_read_since": backup.since,
            })
        })
        .collect();
    json!({
        "repository": name_of(&opened.chosen.store),
        "passed": report.is_sound(),
        "objects": report.objects,
        "bytes": report.bytes,
        "objects_left": report.left,
        "bytes_left": report.left_bytes,
        "seconds": report.elapsed.as_secs_f64(),
        "backups": backups,
        "damages": report.damages,
    })
}

fn render(context: &Context, opened: &Opened, report: &VerifyReport) {
    let printer = &context.printer;
    let palette = *printer.palette();
    let rows: Vec<Vec<String>> = report
        .backups
        .iter()
        .map(|backup| {
            let status = match (backup.sound, backup.unread) {
                (false, _) => palette.bad("DAMAGED"),
                (true, 0) => palette.good("sound"),
                (true, _) => palette.caution("partly read"),
            };
            let since = backup.since.map_or_else(
                || format!("{} objects never", backup.unread),
                |since| since.to_string(),
            );
            vec![
                backup.label.to_string(),
                status,
                backup.objects.to_string(),
                since,
            ]
        })
        .collect();
    if rows.is_empty() {
        printer.line(&format!("{}: no backups.", opened.repository.description()));
    } else {
        let columns = [
            ("backup", Align::Left),
            ("status", Align::Left),
            ("objects", Align::Right),
            ("all read since", Align::Left),
        ];
        printer.table(&columns, rows);
    }
    for damage in &report.damages {
        render_damage(context, damage);
    }
    let left = if report.left > 0 {
        format!(
            "; {} objects ({}) left for another time",
            report.left,
            Bytes::new(report.left_bytes)
        )
    } else {
        String::new()
    };
    printer.line(&format!(
        "{}: {} objects ({}) read in {}, {}{left}.",
        opened.repository.description(),
        report.objects,
        Bytes::new(report.bytes),
        HumanDuration(report.elapsed),
        if report.is_sound() {
            "nothing wrong".to_owned()
        } else {
            format!("{} damaged", report.damages.len())
        }
    ));
    if !report.is_sound() {
        printer.note(
            "hint: take a new backup now (what is damaged is not reused once it is known), or copy the damaged objects \
             back from another repository; see the storage's disks",
        );
    }
}

fn render_damage(context: &Context, damage: &Damage) {
    let printer = &context.printer;
    printer.line(&format!(
        "{} {}: {}",
        printer.palette().bad("damaged:"),
        damage.object,
        damage.problem
    ));
    if !damage.backups.is_empty() {
        let labels: Vec<String> = damage.backups.iter().map(ToString::to_string).collect();
        printer.line(&format!("  needed by {}", labels.join(", ")));
    }
    for blocks in damage.blocks.iter().take(SHOWN) {
        let last = blocks.first.saturating_add(blocks.count.saturating_sub(1));
        let range = if blocks.count <= 1 {
            format!("block {}", blocks.first)
        } else {
            format!("blocks {} to {last}", blocks.first)
        };
        printer.line(&format!("  {}: {range} (backup {})", blocks.path, blocks.backup));
    }
    let hidden = damage.blocks.len().saturating_sub(SHOWN) as u64 + damage.more;
    if hidden > 0 {
        printer.line(&format!("  and {hidden} more; see them all with --json"));
    }
}
