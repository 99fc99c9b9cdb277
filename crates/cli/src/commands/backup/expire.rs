//! `pgmahout backup expire`.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};
use pgmahout_backup::dump::expire::policy::Age;
use pgmahout_backup::physical::expire::{self, Collected, Grace, Plan, Policy, Reader};
use pgmahout_backup::physical::stanza::LeaseKind;
use pgmahout_config::quantity;
use pgmahout_config::settings::Retention;
use pgmahout_procedure::confirm::{Confirm as _, ConfirmError, Question};
use pgmahout_types::diagnostic::Outcome;
use pgmahout_types::{Bytes, HumanDuration};
use serde_json::json;

use super::super::physical::{Opened, RepositoryArgs};
use super::list::time;
use crate::ExitStatus;
use crate::context::{ConfirmationArgs, Context};
use crate::failure::Failure;
use crate::printer::Align;

/// How long a collection waits for readers where nothing else is said.
const GRACE: Duration = Duration::from_secs(10);

/// Remove the backups, and the WAL, that a retention policy no longer keeps.
///
/// Without options the `retention` of each repository's configuration is followed. First it is proved, for every
/// backup and every recovery window that stays, that it still restores; then it is shown and asked. The newest
/// good backup always stays, so do pinned ones, whatever a restore or another command is reading, and objects
/// that are younger than a day or belong to a running backup. Objects that the storage will not delete (an object
/// lock) are named and tried again by the next run.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout backup expire                                 shows what would go, and asks
  pgmahout backup expire --yes                           for a timer, after each backup
  pgmahout backup expire --repo offsite --recovery-window 14d --keep-monthly 12 --dry-run")]
pub(crate) struct Args {
    /// Keep the newest N.
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,

    /// Keep the newest of each of N days.
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,

    /// Keep the newest of each of N weeks (Monday to Sunday).
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,

    /// Keep the newest of each of N months.
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,

    /// Keep all that are younger, for example 30d, 36h or 8w.
    #[arg(long, value_name = "AGE")]
    keep_within: Option<Age>,

    /// Keep what is needed to restore any moment of the last so long, for example 14d.
    #[arg(long, value_name = "AGE")]
    recovery_window: Option<Age>,

    /// Wait at most so long for those who read a backup that was removed; what they still read then stays for the
    /// next run [default: 10s].
    #[arg(long, value_name = "TIME")]
    grace: Option<String>,

    #[command(flatten)]
    repository: RepositoryArgs,

    #[command(flatten)]
    confirmation: ConfirmationArgs,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let printer = &context.printer;
    let now = Timestamp::now();
    let mut proposals = Vec::new();
    for opened in args.repository.open_all(context).await? {
        let policy = policy(&args, &opened)?;
        let zone = TimeZone::system();
        let plan = expire::propose(&opened.repository, &policy, now, &zone, &context.cancellation).await?;
        if !printer.wants_json() {
            render(&opened, &plan, context);
        }
        proposals.push((opened, plan));
    }
    let going: usize = proposals
        .iter()
        .map(|(_, plan)| plan.retained.removed().len())
        .sum();
    let segments: u64 = proposals.iter().map(|(_, plan)| plan.wal_segments).sum();
    let at_most = match &args.grace {
        None => GRACE,
        Some(text) => quantity::duration(text).ok_or_else(|| {
            Failure::new(Outcome::Usage, format!("\"{text}\" is not a length of time"))
                .hint("write for example 0s, 90s, 30min or 2h")
        })?,
    };
    let waiting = |readers: &[Reader]| waiting(readers, at_most, context);
    let grace = Grace {
        at_most,
        waiting: &waiting,
    };
    let agreed = !args.confirmation.dry_run && confirmed(&args, going, segments, context)?;
    let mut results = Vec::new();
    let mut left = 0;
    for (opened, plan) in &proposals {
        let collected = if agreed {
            let collected =
                expire::carry_out_with(&opened.repository, plan, &grace, &context.cancellation).await?;
            if !printer.wants_json() {
                report(opened, &collected, context);
            }
            left += collected.left.len();
            Some(collected)
        } else {
            None
        };
        results.push(json!({
            "repository": opened.repository.description(),
            "plan": plan,
            "collected": collected,
        }));
    }
    if printer.wants_json() {
        printer.json(&json!({
            "schema_version": 1,
            "removed": agreed,
            "repositories": results,
        }))?;
    }
    if left > 0 && !printer.wants_json() {
        printer.note("what the storage would not delete is tried again by the next run");
    }
    Ok(ExitStatus::SUCCESS)
}

/// Says for whom the collection waits.
fn waiting(readers: &[Reader], at_most: Duration, context: &Context) {
    if readers.is_empty() {
        return;
    }
    let who: Vec<String> = readers
        .iter()
        .map(|reader| format!("{} of {} on {}", word(reader.kind), reader.label, reader.owner))
        .collect();
    context.printer.note(&format!(
        "waiting up to {} for those who still read what was removed: {}",
        HumanDuration(at_most),
        who.join(", ")
    ));
}

fn word(kind: LeaseKind) -> &'static str {
    match kind {
        LeaseKind::Backup => "a backup on top",
        LeaseKind::Restore => "a restore",
        LeaseKind::Verify => "a verification",
        LeaseKind::Drill => "a drill",
        LeaseKind::Copy => "a copy",
        LeaseKind::Expire | LeaseKind::Other => "a reader",
    }
}

/// Asks, unless nothing but unused objects can go.
fn confirmed(args: &Args, going: usize, segments: u64, context: &Context) -> Result<bool, Failure> {
    if going == 0 && segments == 0 {
        // What no backup references is nobody's loss.
        return Ok(true);
    }
    let question = format!("Remove {going} backups and {segments} WAL segments?");
    match context
        .confirmation(&args.confirmation)
        .ask(&Question::yes_no(question))
    {
        Ok(()) => Ok(true),
        Err(ConfirmError::NobodyToAsk { .. }) => Err(Failure::new(
            Outcome::Refused,
            format!("{going} backups and {segments} WAL segments would be removed, but nobody confirmed it"),
        )
        .hint("look at the list, then pass --yes; --dry-run only looks and ends with status 0")),
        Err(error) => Err(error.into()),
    }
}

/// The policy of the command line, else of the repository's configuration. The two are not mixed.
fn policy(args: &Args, opened: &Opened) -> Result<Policy, Failure> {
    let given = Retention {
        keep_last: args.keep_last,
        keep_daily: args.keep_daily,
        keep_weekly: args.keep_weekly,
        keep_monthly: args.keep_monthly,
        keep_within: args.keep_within.map(|age| age.0),
        recovery_window: args.recovery_window.map(|age| age.0),
    };
    let configured = opened
        .chosen
        .configured
        .as_ref()
        .map(|repository| &repository.retention);
    let retention = if given.is_default() {
        configured.filter(|retention| !retention.is_default())
    } else {
        Some(&given)
    };
    let policy = retention.map(policy_of);
    policy.filter(|policy| !policy.keeps_nothing()).ok_or_else(|| {
        Failure::new(
            Outcome::Usage,
            format!("no retention is said for {}", opened.repository.description()),
        )
        .hint(
            "write `retention: { keep_last: 3, keep_daily: 7, recovery_window: 14d }` into its configuration, or \
             give --keep-last, --keep-daily, --keep-weekly, --keep-monthly, --keep-within or --recovery-window",
        )
    })
}

/// What a retention of the configuration means.
pub(crate) fn policy_of(retention: &Retention) -> Policy {
    Policy {
        last: retention.keep_last.unwrap_or(0),
        daily: retention.keep_daily.unwrap_or(0),
        weekly: retention.keep_weekly.unwrap_or(0),
        monthly: retention.keep_monthly.unwrap_or(0),
        within: retention.keep_within,
        recovery_window: retention.recovery_window,
        ..Policy::NOTHING
    }
}

fn render(opened: &Opened, plan: &Plan, context: &Context) {
    let printer = &context.printer;
    printer.note(&format!(
        "{}: policy: {}",
        opened.repository.description(),
        in_words(&plan.policy)
    ));
    if plan.retained.decisions.is_empty() {
        printer.note("there are no backups; nothing is removed");
        return;
    }
    let palette = printer.palette();
    let rows = plan
        .retained
        .decisions
        .iter()
        .map(|decision| {
            let reasons: Vec<String> = decision.keep.iter().map(ToString::to_string).collect();
            let proof = plan.backups.iter().find(|proof| proof.label == decision.label);
            vec![
                if decision.is_removed() {
                    palette.bad("remove")
                } else {
                    palette.good("keep")
                },
                decision.label.to_string(),
                time(decision.stop_time),
                reasons.join(", "),
                match proof {
                    None => String::new(),
                    Some(proof) => proof.missing.map_or_else(
                        || "yes".to_owned(),
                        |segment| palette.bad(&format!("NO: {segment} is missing")),
                    ),
                },
            ]
        })
        .collect();
    printer.table(
        &[
            ("", Align::Left),
            ("backup", Align::Left),
            ("taken", Align::Left),
            ("why", Align::Left),
            ("restores", Align::Left),
        ],
        rows,
    );
    for window in &plan.windows {
        let mut text = format!(
            "timeline {}: every moment from {} on restores, from backup {}",
            window.timeline,
            time(window.from),
            window.base
        );
        if let Some(until) = window.until_time {
            let _ = write!(text, ", to {}", time(until));
        }
        printer.line(&text);
        if let Some(gap) = window.gap {
            printer.warn(&format!("the WAL has a gap at {gap}: nothing behind it restores"));
        }
    }
    let removed = plan.retained.removed().len();
    printer.line(&format!(
        "{removed} backups and {} WAL segments go.",
        plan.wal_segments
    ));
}

fn report(opened: &Opened, collected: &Collected, context: &Context) {
    let printer = &context.printer;
    printer.line(&format!(
        "{}: removed {} backups, {} objects ({} of them WAL), {} freed.",
        opened.repository.description(),
        collected.removed.len(),
        collected.objects,
        collected.wal_segments,
        Bytes::new(collected.bytes)
    ));
    for label in &collected.being_read {
        printer.note(&format!(
            "the objects of {label} stay for now: somebody reads them"
        ));
    }
    for left in &collected.left {
        printer.warn(&format!("{} could not be deleted: {}", left.object, left.why));
    }
}

fn in_words(policy: &Policy) -> String {
    let counts = [
        ("last", policy.last),
        ("daily", policy.daily),
        ("weekly", policy.weekly),
        ("monthly", policy.monthly),
    ];
    let spans = [
        ("all of", policy.within),
        ("recovery window", policy.recovery_window),
    ];
    let counts = counts
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{count} {name}"));
    let spans = spans
        .into_iter()
        .filter_map(|(name, span)| span.map(|span| format!("{name} {}", HumanDuration(span))));
    counts.chain(spans).collect::<Vec<_>>().join(", ")
}
