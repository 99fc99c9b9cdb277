//! WAL: whether it is archived, and how much of it lies about.

use serde::Deserialize;

use super::Question;
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit};
use crate::health::result::Finding;
use crate::health::status::Status;

const ARCHIVING: &[Limit] = &[Limit::above("wal.archiving", Unit::Count, Some(10.0), Some(20.0))];
const SIZE: &[Limit] = &[
    Limit::above("wal.size", Unit::Factor, Some(2.0), Some(5.0)),
    Limit::above("wal.size.disk", Unit::Ratio, None, Some(0.1)),
];

pub(super) fn checks() -> Vec<Question> {
    vec![
        Question::new(
            "wal.archiving",
            "WAL segments that wait to be archived",
            ARCHIVING,
            |context| Box::pin(archiving(context)),
        ),
        Question::new(
            "wal.size",
            "pg_wal against max_wal_size and the disk",
            SIZE,
            |context| Box::pin(size(context)),
        ),
    ]
}

const ARCHIVER: &str = "
SELECT a.archived_count, a.failed_count, a.last_archived_wal, a.last_failed_wal,
       extract(epoch FROM clock_timestamp() - a.last_archived_time)::float8 AS archived_age,
       extract(epoch FROM clock_timestamp() - a.last_failed_time)::float8 AS failed_age,
       (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') AS ready
  FROM pg_stat_archiver a";

#[derive(Deserialize)]
struct Archiver {
    archived_count: i64,
    failed_count: i64,
    last_archived_wal: Option<String>,
    last_failed_wal: Option<String>,
    archived_age: Option<f64>,
    failed_age: Option<f64>,
    ready: i64,
}

impl Archiver {
    /// Whether the last thing that happened was a failure.
    fn is_failing(&self) -> bool {
        match (self.failed_age, self.archived_age) {
            (Some(failed), Some(archived)) => failed < archived,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }
}

async fn archiving(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts()?;
    let mode = facts.setting("archive_mode").unwrap_or("off");
    if mode == "off" {
        return Ok(Verdict::not_applicable("archive_mode is off"));
    }
    if facts.in_recovery && mode != "always" {
        return Ok(Verdict::not_applicable(
            "a standby archives only with archive_mode = always",
        ));
    }
    let archiver: Archiver = context.row(ARCHIVER).await?;
    let limit = context.limit("wal.archiving");
    let set = |name: &str| {
        facts
            .setting(name)
            .is_some_and(|value| !value.is_empty() && value != "(disabled)")
    };
    let no_way = !set("archive_command") && !set("archive_library");
    let ready = Measure::count(archiver.ready);
    let age = archiver
        .archived_age
        .map(|seconds| Measure::seconds(seconds.max(0.0)));
    let waiting = format!("{} segments wait", archiver.ready);
    let evidence = if no_way {
        format!("archive_mode is on, but neither archive_command nor archive_library is set; {waiting}")
    } else if archiver.is_failing() {
        format!(
            "archiving fails: {} failed {} ago, {} failures in all; {waiting}",
            archiver.last_failed_wal.as_deref().unwrap_or("a segment"),
            Measure::seconds(archiver.failed_age.unwrap_or(0.0).max(0.0)),
            archiver.failed_count
        )
    } else {
        match (&archiver.last_archived_wal, age) {
            (Some(segment), Some(age)) => format!("{segment} was archived {age} ago; {waiting}"),
            _ => format!("nothing was archived yet; {waiting}"),
        }
    };
    let mut finding = Finding::judged(ready, limit, evidence);
    if let Some(age) = age {
        finding = finding.figure("wal.archiving.age", age, None);
    }
    finding = finding
        .figure(
            "wal.archiving.archived",
            Measure::count(archiver.archived_count),
            None,
        )
        .figure(
            "wal.archiving.failed",
            Measure::count(archiver.failed_count),
            None,
        );
    if archiver.is_failing() {
        finding.status = Status::Crit;
    } else if no_way {
        finding = finding.at_least(Status::Warn);
    }
    Ok(finding
        .hint(
            "the server's log has the command's own words after each failure; mend archive_command (it needs only a \
             reload) and the segments that wait follow by themselves. Do not remove anything from pg_wal by hand",
        )
        .into())
}

const WAL_SIZE: &str =
    "SELECT coalesce(sum(size), 0)::bigint AS bytes, count(*) AS segments FROM pg_ls_waldir()";

#[derive(Deserialize)]
struct WalSize {
    bytes: i64,
    segments: i64,
}

async fn size(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts()?;
    let wal: WalSize = context.row(WAL_SIZE).await?;
    let Some(most) = facts.bytes("max_wal_size").filter(|bytes| *bytes > 0) else {
        return Err(Failure::Source {
            reason: "max_wal_size cannot be seen".to_owned(),
        });
    };
    // What is kept on purpose is not too much.
    let kept = facts.bytes("wal_keep_size").unwrap_or(0);
    let allowed = most + kept;
    let mut finding = Finding::judged(
        Measure::new(wal.bytes as f64 / allowed as f64, Unit::Factor),
        context.limit("wal.size"),
        format!(
            "pg_wal holds {} in {} segments; max_wal_size is {}{}",
            Measure::bytes(wal.bytes),
            wal.segments,
            Measure::bytes(most),
            if kept > 0 {
                format!(", wal_keep_size {}", Measure::bytes(kept))
            } else {
                String::new()
            }
        ),
    )
    .figure("wal.size.bytes", Measure::bytes(wal.bytes), None);
    if let Some(disk) = disk_of(context) {
        finding = finding.figure(
            "wal.size.disk",
            Measure::ratio(wal.bytes as f64 / disk as f64),
            // A small disk that a small pg_wal fills a tenth of is not in trouble.
            context.limit("wal.size.disk").filter(|_| wal.bytes > allowed),
        );
    }
    Ok(finding
        .hint(
            "something keeps it: a slot (replication.slots), failing archiving (wal.archiving), or checkpoints that \
             cannot keep up (log_checkpoints). Do not remove anything from pg_wal by hand",
        )
        .into())
}

/// The size of the file system under pg_wal, where the data directory is on this machine.
pub(super) fn disk_of(context: &Context) -> Option<u64> {
    let directory = super::locality::data_directory(context)
        .ok()?
        .ok()?
        .join("pg_wal");
    let total = super::disk::space(&directory).ok()?.total;
    (total > 0).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archiving_fails_only_while_the_last_try_failed() {
        let archiver = |failed_age, archived_age| Archiver {
            archived_count: 0,
            failed_count: 0,
            last_archived_wal: None,
            last_failed_wal: None,
            archived_age,
            failed_age,
            ready: 0,
        };
        assert!(archiver(Some(1.0), None).is_failing());
        assert!(archiver(Some(1.0), Some(5.0)).is_failing());
        assert!(!archiver(Some(5.0), Some(1.0)).is_failing());
        assert!(!archiver(None, None).is_failing());
    }
}
