//! Data checksums: whether pages are checked at all, and whether a check has failed.

use serde::Deserialize;

use super::{Question, plural};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::measure::Measure;
use crate::health::result::{Finding, Rows};

pub(super) fn checks() -> Vec<Question> {
    vec![Question::new(
        "checksums",
        "page checksums: enabled, and none failed",
        &[],
        |context| Box::pin(checksums(context)),
    )]
}

/// Counters since the last reset of the statistics; NULL where checksums are off. The row without a name
/// is that of the objects that databases share.
const FAILURES: &str = "
SELECT coalesce(datname::text, '(shared objects)') AS database, checksum_failures AS failures,
       extract(epoch FROM clock_timestamp() - checksum_last_failure)::float8 AS last
  FROM pg_stat_database WHERE checksum_failures > 0 ORDER BY checksum_failures DESC";

#[derive(Deserialize)]
struct Counted {
    database: String,
    failures: i64,
    last: Option<f64>,
}

async fn checksums(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts()?;
    match facts.is_on("data_checksums") {
        None => {
            return Err(Failure::Source {
                reason: "the setting data_checksums cannot be seen".to_owned(),
            });
        }
        Some(false) => {
            return Ok(Finding::warn("checksums are disabled: a page damaged by the storage goes unnoticed")
                .hint(
                    "in a maintenance window, with the server stopped: pg_checksums --enable -D DATADIR; a standby can \
                     be done first and switched over to",
                )
                .into());
        }
        Some(true) => {}
    }
    let failures: Vec<Counted> = context.rows(FAILURES).await?;
    let count: i64 = failures.iter().map(|one| one.failures).sum();
    let Some(worst) = failures.first() else {
        return Ok(Finding::ok("checksums are enabled and no failure is counted")
            .measured(Measure::count(0))
            .into());
    };
    let ago = |seconds: Option<f64>| {
        seconds.map_or_else(String::new, |seconds| {
            format!("{} ago", Measure::seconds(seconds.max(0.0)))
        })
    };
    let evidence = format!(
        "{} of checksums since the statistics were reset, {} in {}, the last {}",
        plural(count as usize, "failure", "failures"),
        worst.failures,
        worst.database,
        ago(worst.last)
    );
    let rows = Rows::new(["database", "failures", "last"]).with(
        failures
            .into_iter()
            .map(|one| [one.database, one.failures.to_string(), ago(one.last)]),
    );
    Ok(Finding::crit(evidence)
        .measured(Measure::count(count))
        .rows(rows)
        .hint(
            "the storage gives back other bytes than were written. Write nothing over it: copy the data directory, find \
             the scope (the log names file and block; pg_amcheck), prefer a sound standby or restore a backup. The \
             count goes with SELECT pg_stat_reset() in that database, or pg_stat_reset_shared for shared objects",
        )
        .into())
}
