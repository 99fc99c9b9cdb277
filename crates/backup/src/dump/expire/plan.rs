//! The retention planner: from what there is and a policy to what stays and what goes. Pure: the clock and
//! the time zone come in as arguments, and nothing is removed here.
//!
//! Rules of its own, beside the policy's:
//!
//! * Only sound dumps take a place: an unsound one never counts, and never pushes a sound one out of its day,
//!   week or month.
//! * An unsound dump stays as long as a sound one in its place would: within `--keep-within`, while fewer than
//!   `--keep-last` sound ones are newer, and in a day, week or month of the policy that has no sound one. A
//!   verdict may be wrong, and of a broken dump something can often be rescued.
//! * Nothing that is newer than the newest sound dump of its series goes.
//! * Nothing goes that is younger than [`RECENT`], unless that was asked for.
//! * The newest sound dump of each series stays, whatever the policy.
//! * The newest sound dump of each database stays, in whichever series it is.
//! * Where a series has no sound dump at all, nothing of it is removed: broken dumps may be all there is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::policy::{Age, Policy};

/// What is younger than this stays, unless the policy says otherwise: a verdict on a dump that was just made
/// may still be wrong, and so may be a policy that was just written.
pub const RECENT: Duration = Duration::from_hours(24);

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
    /// Not sound, but newer than every sound dump of its series.
    NewerThanSound,
    /// The newest sound dump of a database.
    OnlySoundOfDatabase,
    /// No dump of its series is known to be sound.
    NoneSound,
    /// Younger than [`RECENT`].
    Recent,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Last => "last",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Within => "within",
            Self::Recent => "younger than a day",
            Self::NewestSound => "newest sound",
            Self::NewerThanSound => "newer than every sound one",
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
    let (mut sound, mut unsound): (Vec<&mut Decision>, Vec<&mut Decision>) = decisions
        .iter_mut()
        .partition(|decision| decision.candidate.sound);
    if let Some(newest) = sound.first_mut() {
        newest.keep.insert(Reason::NewestSound);
    }
    for decision in sound.iter_mut().take(policy.last as usize) {
        decision.keep.insert(Reason::Last);
    }
    let date = |decision: &Decision| decision.candidate.taken_at.to_zoned(zone.clone()).date();
    keep_by_period(
        &mut sound,
        &mut unsound,
        policy.daily,
        Reason::Daily,
        |decision| date(decision),
    );
    keep_by_period(
        &mut sound,
        &mut unsound,
        policy.weekly,
        Reason::Weekly,
        |decision| monday_of(date(decision)),
    );
    keep_by_period(
        &mut sound,
        &mut unsound,
        policy.monthly,
        Reason::Monthly,
        |decision| date(decision).first_of_month(),
    );
    keep_unsound(&sound, &mut unsound, policy.last as usize);
    let since = |age: Duration| now.checked_sub(age).unwrap_or(Timestamp::MIN);
    for decision in sound.into_iter().chain(unsound) {
        let taken_at = decision.candidate.taken_at;
        if policy.within.is_some_and(|Age(age)| taken_at >= since(age)) {
            decision.keep.insert(Reason::Within);
        }
        if !policy.remove_recent && taken_at > since(RECENT) {
            decision.keep.insert(Reason::Recent);
        }
    }
}

/// Keeps what is not sound while fewer than `last` sound ones are newer.
fn keep_unsound(sound: &[&mut Decision], unsound: &mut [&mut Decision], last: usize) {
    for decision in unsound {
        let newer = sound
            .iter()
            .take_while(|other| other.candidate.taken_at > decision.candidate.taken_at)
            .count();
        if newer < last {
            decision.keep.insert(Reason::Last);
        }
        if newer == 0 {
            decision.keep.insert(Reason::NewerThanSound);
        }
    }
}

/// Keeps the newest sound one of each of the newest `count` periods that have one, and of the periods in
/// between, and before them while there are fewer, all that have no sound one.
fn keep_by_period(
    sound: &mut [&mut Decision],
    unsound: &mut [&mut Decision],
    count: u32,
    reason: Reason,
    period_of: impl Fn(&Decision) -> Date,
) {
    let count = count as usize;
    let mut periods = BTreeSet::new();
    for decision in sound {
        if periods.insert(period_of(decision)) && periods.len() <= count {
            decision.keep.insert(reason);
        }
    }
    for decision in unsound {
        let period = period_of(decision);
        if !periods.contains(&period) && periods.range(period..).count() < count {
            decision.keep.insert(reason);
        }
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
