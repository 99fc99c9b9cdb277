//! `pgmahout dump expire`.

use std::path::PathBuf;

use jiff::{Timestamp, tz::TimeZone};
use pgmahout_backup::dump::expire::{self, Proposal, policy::Age, policy::Policy};
use pgmahout_config::Settings;
use pgmahout_config::settings::Retention;
use pgmahout_procedure::confirm::{Confirm as _, ConfirmError, Question};
use pgmahout_types::Bytes;
use pgmahout_types::diagnostic::Outcome;
use serde_json::json;

use super::list::time;
use super::place::RepoArgs;
use crate::ExitStatus;
use crate::context::{ConfirmationArgs, Context};
use crate::failure::Failure;
use crate::printer::Align;

/// Remove the dumps that a retention policy no longer keeps.
///
/// Without options, and without a policy in the configuration, seven daily, four weekly and twelve monthly
/// dumps of each database are kept. Nothing is removed unless it is confirmed, here or with --yes. The newest
/// sound dump of a database always stays, and so does everything that is newer, that is younger than a day, or
/// that has no readable manifest. A dump that failed its test counts for no rule, but stays as long as a sound
/// one in its place would.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout dump expire /srv/dumps                       shows what would go, and asks
  pgmahout dump expire --repo --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --yes
  pgmahout dump expire --keep-last 3 --keep-within 30d --dry-run")]
pub(crate) struct Args {
    /// The directory [default: dump.directory, else the current one].
    directory: Option<PathBuf>,

    #[command(flatten)]
    repo: RepoArgs,

    /// Only dumps of this database.
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,

    /// Keep the newest N of each database.
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

    /// Remove also dumps that are younger than 24 hours; otherwise they stay, whatever the policy.
    #[arg(long)]
    remove_recent: bool,

    #[command(flatten)]
    confirmation: ConfirmationArgs,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let policy = policy(&args, context.settings()?)?;
    let place = args.repo.place_or(context, args.directory.as_ref()).await?;
    let proposal = expire::propose(
        &place,
        &policy,
        args.database.as_deref(),
        Timestamp::now(),
        &TimeZone::system(),
    )
    .await?;
    let nothing = proposal.removed().next().is_none();
    let printer = &context.printer;
    if !printer.wants_json() {
        render(&proposal, &policy, context);
    }
    let going = proposal.removed().count();
    let agreed = if nothing || args.confirmation.dry_run {
        false
    } else {
        let question = format!("Remove {going} dumps ({})?", Bytes::new(proposal.freed_bytes()));
        match context
            .confirmation(&args.confirmation)
            .ask(&Question::yes_no(question))
        {
            Ok(()) => true,
            // Without anybody to ask, this is the dry run that the documentation promises.
            Err(ConfirmError::NobodyToAsk { .. }) if !args.confirmation.yes => {
                printer.note("nothing was removed: pass --yes to remove them");
                if printer.wants_json() {
                    print_json(&proposal, &policy, false, context)?;
                }
                return Err(Failure::new(
                    Outcome::Refused,
                    format!("{going} dumps would be removed, but nobody confirmed it"),
                )
                .hint("look at the list, then pass --yes; --dry-run only looks and ends with status 0"));
            }
            Err(error) => return Err(error.into()),
        }
    };
    if agreed {
        let removed = expire::carry_out(&place, &proposal, &context.cancellation).await?;
        printer.note(&format!(
            "removed {} dumps, {} freed",
            removed.names.len(),
            Bytes::new(removed.bytes)
        ));
    }
    if printer.wants_json() {
        print_json(&proposal, &policy, agreed, context)?;
    }
    Ok(ExitStatus::SUCCESS)
}

/// The policy of the command line, else of the configuration, else the default. The two are not mixed.
fn policy(args: &Args, settings: &Settings) -> Result<Policy, Failure> {
    let given = args.keep_last.is_some()
        || args.keep_daily.is_some()
        || args.keep_weekly.is_some()
        || args.keep_monthly.is_some()
        || args.keep_within.is_some();
    let mut policy = if given {
        Policy {
            last: args.keep_last.unwrap_or(0),
            daily: args.keep_daily.unwrap_or(0),
            weekly: args.keep_weekly.unwrap_or(0),
            monthly: args.keep_monthly.unwrap_or(0),
            within: args.keep_within,
            remove_recent: false,
        }
    } else {
        let wanted = args.repo.repo.as_deref().filter(|name| !name.is_empty());
        let of_repository = settings.repository(wanted.or(settings.dump.repository.as_deref()));
        let retention = if args.repo.repo.is_some() || settings.dump.repository.is_some() {
            of_repository.map(|repository| &repository.retention)
        } else {
            Some(&settings.dump.retention)
        };
        retention
            .filter(|retention| !retention.is_default())
            .map_or_else(Policy::default, configured)
    };
    policy.remove_recent = args.remove_recent;
    if policy.keeps_nothing() {
        return Err(Failure::new(Outcome::Usage, "this policy keeps nothing").hint(
            "give at least one of --keep-last, --keep-daily, --keep-weekly, --keep-monthly, --keep-within",
        ));
    }
    Ok(policy)
}

fn configured(retention: &Retention) -> Policy {
    Policy {
        last: retention.keep_last.unwrap_or(0),
        daily: retention.keep_daily.unwrap_or(0),
        weekly: retention.keep_weekly.unwrap_or(0),
        monthly: retention.keep_monthly.unwrap_or(0),
        within: retention.keep_within.map(Age),
        remove_recent: false,
    }
}

fn render(proposal: &Proposal, policy: &Policy, context: &Context) {
    let printer = &context.printer;
    printer.note(&format!("policy: {policy}"));
    if !proposal.decisions.is_empty() {
        let palette = printer.palette();
        let rows = proposal
            .decisions
            .iter()
            .map(|decision| {
                let reasons: Vec<String> = decision.keep.iter().map(ToString::to_string).collect();
                let bytes = proposal
                    .files
                    .get(&decision.candidate.name)
                    .map_or(0, |(_, bytes)| *bytes);
                vec![
                    if decision.is_removed() {
                        palette.bad("remove")
                    } else {
                        palette.good("keep")
                    },
                    decision.candidate.name.clone(),
                    decision.candidate.series.clone(),
                    time(decision.candidate.taken_at),
                    Bytes::new(bytes).to_string(),
                    reasons.join(", "),
                ]
            })
            .collect();
        printer.table(
            &[
                ("", Align::Left),
                ("file", Align::Left),
                ("series", Align::Left),
                ("taken", Align::Left),
                ("size", Align::Right),
                ("kept by", Align::Left),
            ],
            rows,
        );
    }
    for (name, why) in &proposal.left_alone {
        printer.note(&format!("left alone: {name}: {why}"));
    }
    if proposal.removed().next().is_none() {
        printer.note("nothing to remove");
    }
}

fn print_json(proposal: &Proposal, policy: &Policy, removed: bool, context: &Context) -> Result<(), Failure> {
    context.printer.json(&json!({
        "schema_version": 1,
        "policy": policy,
        "removed": removed,
        "freed_bytes": proposal.freed_bytes(),
        "decisions": proposal.decisions.iter().map(|decision| json!({
            "name": decision.candidate.name,
            "series": decision.candidate.series,
            "taken_at": decision.candidate.taken_at,
            "sound": decision.candidate.sound,
            "action": if decision.is_removed() { "remove" } else { "keep" },
            "kept_by": decision.keep,
            "files": proposal.files.get(&decision.candidate.name).map(|(files, _)| files),
        })).collect::<Vec<_>>(),
        "left_alone": proposal.left_alone.iter().map(|(name, why)| json!({"name": name, "why": why})).collect::<Vec<_>>(),
    }))
}
