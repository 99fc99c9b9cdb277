//! The retention planner: from what there is and a policy to what stays and what goes. Pure: the clock and
//! the time zone come in as arguments, and nothing is removed here.
//!
//! Rules of its own, beside the policy's:
//!
//! * Only sound dumps take a place: a broken one never pushes a sound one out of its day, week or month.
//! * The newest sound dump of each series stays, whatever the policy.
//! * The newest sound dump of each database stays, in whichever series it is.
//! * Where a series has no sound dump at all, nothing of it is removed: broken dumps may be all there is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::policy::{Age, Policy};

/// A database of a server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseKey {
    /// The server's system identifier, where it is known.
    pub system_identifier: Option<String>,
    /// The database's name.
    pub name: String,
}

/// Something that can be removed as a whole: a dump with its manifest and companions, or a bundle with its
/// members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name, unique among the candidates.
    pub name: String,
    /// What it is one of many of: candidates of one series take each other's place. For example
    /// `shop, full`, `shop, schema only`, `all databases`, with the server's system identifier.
    pub series: String,
    /// When its snapshot was taken.
    pub taken_at: Timestamp,
    /// Whether it is known to be whole: manifest readable, files there with the recorded size, read back
    /// after writing, last test restore (if there was one) passed.
    pub sound: bool,
    /// The databases that could be restored from it in full.
    pub covers: BTreeSet<DatabaseKey>,
}

/// Why a dump stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Among the newest `--keep-last`.
    Last,
    /// The newest of one of the `--keep-daily` days.
    Daily,
    /// The newest of one of the `--keep-weekly` weeks.
    Weekly,
    /// The newest of one of the `--keep-monthly` months.
    Monthly,
    /// Not older than `--keep-within`.
    Within,
    /// The newest sound dump of its series.
    NewestSound,
    /// The newest sound dump of a database.
    OnlySoundOfDatabase,
    /// No dump of its series is known to be sound.
    NoneSound,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Last => "last",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Within => "within",
            Self::NewestSound => "newest sound",
            Self::OnlySoundOfDatabase => "newest sound of a database",
            Self::NoneSound => "no sound dump to take its place",
        })
    }
}

/// What becomes of one candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The candidate.
    pub candidate: Candidate,
    /// Why it stays; empty when it goes.
    pub keep: BTreeSet<Reason>,
}

impl Decision {
    /// Whether it goes.
    pub fn is_removed(&self) -> bool {
        self.keep.is_empty()
    }
}

/// Decides for every candidate, by series, newest first within a series.
pub fn plan(candidates: &[Candidate], policy: &Policy, now: Timestamp, zone: &TimeZone) -> Vec<Decision> {
    let mut series: BTreeMap<&str, Vec<Decision>> = BTreeMap::new();
    for candidate in candidates {
        let decision = Decision {
            candidate: candidate.clone(),
            keep: BTreeSet::new(),
        };
        series.entry(&candidate.series).or_default().push(decision);
    }
    for decisions in series.values_mut() {
        decisions.sort_by(|one, other| newest_first(&one.candidate, &other.candidate));
        decide_series(decisions, policy, now, zone);
    }
    let mut decisions: Vec<Decision> = series.into_values().flatten().collect();
    protect_databases(&mut decisions);
    decisions
}

/// Newest first; the name breaks ties, so that the order of the input does not matter.
fn newest_first(one: &Candidate, other: &Candidate) -> std::cmp::Ordering {
    other
        .taken_at
        .cmp(&one.taken_at)
        .then_with(|| other.name.cmp(&one.name))
}

fn decide_series(decisions: &mut [Decision], policy: &Policy, now: Timestamp, zone: &TimeZone) {
    if decisions.iter().all(|decision| !decision.candidate.sound) {
        for decision in decisions {
            decision.keep.insert(Reason::NoneSound);
        }
        return;
    }
    let mut sound: Vec<&mut Decision> = decisions
        .iter_mut()
        .filter(|decision| decision.candidate.sound)
        .collect();
    if let Some(newest) = sound.first_mut() {
        newest.keep.insert(Reason::NewestSound);
    }
    for decision in sound.iter_mut().take(policy.last as usize) {
        decision.keep.insert(Reason::Last);
    }
    let date = |decision: &Decision| decision.candidate.taken_at.to_zoned(zone.clone()).date();
    keep_by_period(&mut sound, policy.daily, Reason::Daily, |decision| date(decision));
    keep_by_period(&mut sound, policy.weekly, Reason::Weekly, |decision| {
        monday_of(date(decision))
    });
    keep_by_period(&mut sound, policy.monthly, Reason::Monthly, |decision| {
        date(decision).first_of_month()
    });
    if let Some(Age(age)) = policy.within {
        let oldest = now.checked_sub(age).unwrap_or(Timestamp::MIN);
        for decision in &mut sound {
            if decision.candidate.taken_at >= oldest {
                decision.keep.insert(Reason::Within);
            }
        }
    }
}

/// Keeps the newest of each of the newest `count` periods that have one.
fn keep_by_period(
    sound: &mut [&mut Decision],
    count: u32,
    reason: Reason,
    period_of: impl Fn(&Decision) -> Date,
) {
    let mut periods = BTreeSet::new();
    for decision in sound {
        let period = period_of(decision);
        if periods.contains(&period) {
            continue;
        }
        if periods.len() >= count as usize {
            break;
        }
        periods.insert(period);
        decision.keep.insert(reason);
    }
}

/// The Monday on or before a date: where its ISO week begins.
fn monday_of(date: Date) -> Date {
    let days = i64::from(date.weekday().to_monday_zero_offset());
    date.checked_sub(jiff::Span::new().days(days)).unwrap_or(date)
}

fn protect_databases(decisions: &mut [Decision]) {
    let mut order: Vec<usize> = (0..decisions.len()).collect();
    order.sort_by(|one, other| newest_first(&decisions[*one].candidate, &decisions[*other].candidate));
    let mut covered: BTreeSet<DatabaseKey> = BTreeSet::new();
    for index in order {
        let decision = &mut decisions[index];
        if !decision.candidate.sound {
            continue;
        }
        let fresh = decision
            .candidate
            .covers
            .iter()
            .any(|database| !covered.contains(database));
        if fresh {
            covered.extend(decision.candidate.covers.iter().cloned());
            decision.keep.insert(Reason::OnlySoundOfDatabase);
        }
    }
}

#[cfg(test)]
mod tests;
