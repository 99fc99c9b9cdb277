//! The result of a run.

use serde::{Deserialize, Serialize};

use super::result::{CheckResult, Skipped};
use super::status::Status;

/// How many checks stand how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// OK.
    pub ok: usize,
    /// WARN.
    pub warn: usize,
    /// CRIT.
    pub crit: usize,
    /// UNKNOWN.
    pub unknown: usize,
    /// Checks that do not apply or could not be looked at; not part of the others.
    pub skipped: usize,
}

/// What was found on all targets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HealthReport {
    /// The form of this object.
    pub schema_version: u32,
    /// When the run began.
    pub taken_at: jiff::Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
    /// The worst of all, UNKNOWN counting as WARN.
    pub status: Status,
    /// How many stand how.
    pub counts: Counts,
    /// The servers, in the order that they were given.
    pub targets: Vec<String>,
    /// Every answer, by target and id.
    pub results: Vec<CheckResult>,
    /// What did not apply or could not be looked at, and why.
    pub skipped: Vec<Skipped>,
    /// What went wrong with the run itself, without changing any result.
    pub notes: Vec<String>,
}

impl HealthReport {
    /// The form that this build writes.
    pub const VERSION: u32 = 1;

    /// A report of these answers, counted.
    pub fn new(
        taken_at: jiff::Timestamp,
        duration: std::time::Duration,
        targets: Vec<String>,
        results: Vec<CheckResult>,
        skipped: Vec<Skipped>,
        notes: Vec<String>,
    ) -> Self {
        let mut counts = Counts {
            skipped: skipped.len(),
            ..Counts::default()
        };
        for result in &results {
            match result.status {
                Status::Ok => counts.ok += 1,
                Status::Warn => counts.warn += 1,
                Status::Crit => counts.crit += 1,
                Status::Unknown => counts.unknown += 1,
            }
        }
        Self {
            schema_version: Self::VERSION,
            taken_at,
            duration_ms: (duration.as_secs_f64() * 1e6).round() / 1e3,
            status: Status::overall(results.iter().map(|result| result.status)),
            counts,
            targets,
            results,
            skipped,
            notes,
        }
    }

    /// The answers that are not OK, the worst first.
    pub fn troubles(&self) -> Vec<&CheckResult> {
        let mut troubles: Vec<_> = self
            .results
            .iter()
            .filter(|result| result.status != Status::Ok)
            .collect();
        troubles.sort_by_key(|result| match result.status {
            Status::Crit => 0,
            Status::Warn => 1,
            Status::Unknown => 2,
            Status::Ok => 3,
        });
        troubles
    }
}
