//! Backups: how old the newest is, where copies lie, when one was last restored.

use super::{Question, plural};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::{Direction, Limit, Thresholds};
use crate::health::measure::{Measure, Unit};
use crate::health::result::{Finding, Rows};
use crate::health::sources::{BackupSummary, Backups};
use crate::health::status::Status;

const DAY: f64 = 86_400.0;

/// Where no recovery point objective is configured: a daily backup that has not quite been missed.
const AGE: &[Limit] = &[Limit::above(
    "backup.age",
    Unit::Seconds,
    Some(26.0 * 3600.0),
    Some(50.0 * 3600.0),
)];
const RESTORE_TEST: &[Limit] = &[Limit::above(
    "backup.restore_test",
    Unit::Seconds,
    Some(35.0 * DAY),
    Some(70.0 * DAY),
)];

pub(super) fn checks() -> Vec<Question> {
    vec![
        Question::new("backup.age", "age of the newest good backup", AGE, |context| {
            Box::pin(age(context))
        })
        .without_server(),
        Question::new(
            "backup.schedule",
            "the backups that the schedule asks for are taken",
            &[],
            |context| Box::pin(schedule(context)),
        )
        .without_server(),
        Question::new(
            "backup.wal_gap",
            "the WAL archive is without a gap since the newest backup",
            &[],
            |context| Box::pin(wal_gap(context)),
        )
        .without_server(),
        Question::new(
            "backup.restore_test",
            "time since a backup was last restored and verified",
            RESTORE_TEST,
            |context| Box::pin(restore_test(context)),
        )
        .without_server(),
        Question::new(
            "backup.copies",
            "three copies, two kinds of storage, one off-site",
            &[],
            |context| Box::pin(copies(context)),
        )
        .without_server(),
    ]
}

/// The repository, or what to answer without one.
fn repository<'a>(context: &'a Context, id: &str) -> Result<&'a dyn Backups, Result<Verdict, Failure>> {
    match &context.sources().backups {
        Some(backups) => Ok(backups.as_ref()),
        None if context.is_asked_for(id) => Err(Err(Failure::Source {
            reason: "no repository is configured: set `repository` in pgmahout.yml".to_owned(),
        })),
        None => Err(Ok(Verdict::not_applicable("no repository is configured"))),
    }
}

async fn list(context: &Context, backups: &dyn Backups) -> Result<Vec<BackupSummary>, Failure> {
    backups
        .list(&context.target().name)
        .await
        .map_err(|reason| Failure::Source {
            reason: format!("the repository cannot be read: {reason}"),
        })
}

fn rows_of<'a>(backups: impl IntoIterator<Item = &'a BackupSummary>, now: f64) -> Rows {
    Rows::new(["backup", "kind", "age", "good", "where"]).with(backups.into_iter().map(|backup| {
        [
            backup.id.clone(),
            backup.kind.clone(),
            Measure::seconds((now - backup.finished).max(0.0)).to_string(),
            if backup.good { "yes" } else { "no" }.to_owned(),
            backup.location.clone(),
        ]
    }))
}

async fn age(context: &Context) -> Result<Verdict, Failure> {
    let backups = match repository(context, "backup.age") {
        Ok(backups) => backups,
        Err(answer) => return answer,
    };
    let all = list(context, backups).await?;
    let now = backups.now();
    // The recovery point objective is what the thresholds mean, where one is configured.
    let limit = match context.target().expectations.recovery_point_seconds {
        Some(objective) => Some(Thresholds {
            warn: Some(objective),
            crit: Some(2.0 * objective),
            direction: Direction::Above,
        }),
        None => context.limit("backup.age"),
    };
    let newest = all
        .iter()
        .filter(|backup| backup.good)
        .max_by(|left, right| left.finished.total_cmp(&right.finished));
    let bad = all.iter().filter(|backup| !backup.good).count();
    let hint = "take one now: pgmahout backup create, or pgmahout dump create DATABASE; and see why the scheduled one did not";
    let Some(newest) = newest else {
        let mut finding = Finding::crit(if bad == 0 {
            "the repository has no backup".to_owned()
        } else {
            format!(
                "the repository has no good backup, only {}",
                plural(bad, "damaged one", "damaged ones")
            )
        })
        .rows(rows_of(&all, now))
        .hint(hint);
        finding.thresholds = limit;
        return Ok(finding.into());
    };
    let age = Measure::seconds((now - newest.finished).max(0.0));
    let mut evidence = format!(
        "the newest good backup, {} ({}), is {age} old",
        newest.id, newest.kind
    );
    if bad > 0 {
        evidence = format!("{evidence}; {} not good", plural(bad, "other is", "others are"));
    }
    let mut sorted: Vec<_> = all.iter().collect();
    sorted.sort_by(|left, right| right.finished.total_cmp(&left.finished));
    Ok(Finding::judged(age, limit, evidence)
        .rows(rows_of(sorted, now))
        .hint(hint)
        .into())
}

async fn wal_gap(context: &Context) -> Result<Verdict, Failure> {
    let backups = match repository(context, "backup.wal_gap") {
        Ok(backups) => backups,
        Err(answer) => return answer,
    };
    let answer = backups
        .first_missing_segment(&context.target().name)
        .await
        .map_err(|reason| Failure::Source {
            reason: format!("the WAL archive cannot be read: {reason}"),
        })?;
    Ok(match answer {
        None if context.is_asked_for("backup.wal_gap") => {
            return Err(Failure::Source {
                reason: "the repository has no WAL archive".to_owned(),
            });
        }
        None => Verdict::not_applicable("the repository has no WAL archive"),
        Some(None) => Finding::ok("the archive has every segment since the newest backup").into(),
        Some(Some(segment)) => Finding::crit(format!(
            "the archive lacks {segment}: no restore can go past it, whatever comes after"
        ))
        .hint("take a new backup: only that ends the gap: pgmahout backup create")
        .into(),
    })
}

async fn restore_test(context: &Context) -> Result<Verdict, Failure> {
    let backups = match repository(context, "backup.restore_test") {
        Ok(backups) => backups,
        Err(answer) => return answer,
    };
    let all = list(context, backups).await?;
    let limit = context.limit("backup.restore_test");
    let hint = "restore one to see whether it can be: pgmahout backup drill, or pgmahout dump verify FILE";
    let newest = all
        .iter()
        .filter_map(|backup| Some((backup.restored?, backup)))
        .max_by(|left, right| left.0.total_cmp(&right.0));
    Ok(match newest {
        None if all.is_empty() => Verdict::not_applicable("there is no backup to restore yet"),
        None => {
            let mut finding =
                Finding::warn("no backup was ever restored: it is not known that any can be").hint(hint);
            finding.thresholds = limit;
            finding.into()
        }
        Some((restored, backup)) => {
            let age = Measure::seconds((backups.now() - restored).max(0.0));
            Finding::judged(
                age,
                limit,
                format!("{} was restored and verified {age} ago", backup.id),
            )
            .hint(hint)
            .into()
        }
    })
}

async fn schedule(context: &Context) -> Result<Verdict, Failure> {
    let backups = match repository(context, "backup.schedule") {
        Ok(backups) => backups,
        Err(answer) => return answer,
    };
    let Some(schedule) = backups.schedule() else {
        return Ok(Verdict::not_applicable("no schedule is configured"));
    };
    let all = list(context, backups).await?;
    let newest = all
        .iter()
        .filter(|backup| backup.kind == "physical")
        .max_by(|left, right| left.finished.total_cmp(&right.finished));
    let (now, text) = (backups.now(), &schedule.text);
    let ago = |at: f64| Measure::seconds((now - at).max(0.0));
    let Some(overdue) = schedule.overdue else {
        return Ok(Finding::new(Status::Ok, format!("the schedule `{text}` has not been due yet")).into());
    };
    if newest.is_some_and(|backup| backup.finished >= overdue) {
        let evidence = format!(
            "the last run of the schedule `{text}` was {} ago, and there is a backup since",
            ago(overdue)
        );
        return Ok(Finding::new(Status::Ok, evidence).into());
    }
    let last = newest.map_or_else(
        || "there is none".to_owned(),
        |newest| format!("the newest is {} old", ago(newest.finished)),
    );
    let (who, hint) = if schedule.has_timer {
        (
            "",
            "see why: systemctl status 'pgmahout-backup-*'; journalctl -u 'pgmahout-backup-*'",
        )
    } else {
        (
            "; this machine has no timer for it",
            "let systemd run it: pgmahout backup schedule install",
        )
    };
    Ok(Finding::new(
        Status::Warn,
        format!(
            "a physical backup was due {} ago by the schedule `{text}`, and {last}{who}",
            ago(overdue)
        ),
    )
    .hint(hint)
    .into())
}

async fn copies(context: &Context) -> Result<Verdict, Failure> {
    let backups = match repository(context, "backup.copies") {
        Ok(backups) => backups,
        Err(answer) => return answer,
    };
    let all = list(context, backups).await?;
    let good: Vec<&BackupSummary> = all.iter().filter(|backup| backup.good).collect();
    if good.is_empty() {
        return Ok(Verdict::not_applicable(
            "there is no good backup to have copies of",
        ));
    }
    // The live data is the first copy; a place counts once, however many backups lie there.
    let places: std::collections::BTreeSet<&str> =
        good.iter().map(|backup| backup.location.as_str()).collect();
    let storages: std::collections::BTreeSet<&str> =
        good.iter().map(|backup| backup.storage.as_str()).collect();
    let off_site = good.iter().any(|backup| backup.off_site);
    let copies = places.len() + 1;
    let mut missing = Vec::new();
    if copies < 3 {
        missing.push(format!("{copies} copies, the live data included, instead of 3"));
    }
    // The server's own disk is one kind, as is a directory.
    if storages.iter().all(|storage| *storage == "directory") {
        missing.push("one kind of storage instead of 2".to_owned());
    }
    if !off_site {
        missing.push("none off-site".to_owned());
    }
    let status = if missing.is_empty() {
        Status::Ok
    } else {
        Status::Warn
    };
    let evidence = if missing.is_empty() {
        format!("{copies} copies, the live data included, one of them off-site")
    } else {
        format!("the 3-2-1 rule is not met: {}", missing.join(", "))
    };
    Ok(Finding::new(status, evidence)
        .measured(Measure::count(copies as i64))
        .hint(if good.iter().any(|backup| backup.kind == "physical") {
            "copy them to a second repository elsewhere: pgmahout repo copy --from NAME --to NAME"
        } else {
            "store the next one in a second repository elsewhere: pgmahout dump create --repo s3://BUCKET/PREFIX"
        })
        .into())
}
