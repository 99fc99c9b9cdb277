//! Counters over an interval: taken at the beginning of a run and, where one was asked for, again after it.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::result::Finding;
use crate::health::sample::{DatabaseCounters, Sample, Window};

/// Counters of all databases; the shared objects have a row without a name.
const COUNTERS: &str = "
SELECT coalesce(datname::text, '(shared)') AS database, xact_commit AS commits, xact_rollback AS rollbacks,
       blks_read AS blocks_read, blks_hit AS blocks_hit, deadlocks, conflicts,
       extract(epoch FROM stats_reset)::float8 AS reset,
       extract(epoch FROM clock_timestamp())::float8 AS taken
  FROM pg_stat_database";

#[derive(Deserialize)]
struct Row {
    database: String,
    taken: f64,
    #[serde(flatten)]
    counters: DatabaseCounters,
}

async fn take(context: &Context) -> Result<Sample, Failure> {
    let rows: Vec<Row> = context.rows(COUNTERS).await?;
    let taken = rows.first().map_or(0.0, |row| row.taken);
    let databases: BTreeMap<_, _> = rows.into_iter().map(|row| (row.database, row.counters)).collect();
    Ok(Sample {
        schema_version: Sample::VERSION,
        taken,
        databases,
        ..Sample::default()
    })
}

/// What the databases did: over the interval, or else since the last run. Leaves the newest counters for
/// the next run.
pub(in crate::health) async fn observe(context: &Context) -> Result<Option<Window>, Failure> {
    let mut sample = take(context).await?;
    let window = match context.interval {
        Some(interval) => {
            tokio::time::sleep(interval).await;
            let later = take(context).await?;
            let window = later.since(&sample);
            sample = later;
            window
        }
        None => context.previous().and_then(|previous| sample.since(previous)),
    };
    context.remember(|kept| {
        kept.taken = sample.taken;
        kept.databases = sample.databases;
    });
    Ok(window)
}

/// What a check over an interval answers when there is none yet.
pub(super) fn no_window(failure: Failure) -> Result<Finding, Failure> {
    match failure {
        Failure::Source { reason } => Ok(Finding::unknown(reason, None)
            .hint("add --interval 1s to look for that long now; the next run compares with this one")),
        other => Err(other),
    }
}
