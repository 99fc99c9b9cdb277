//! What retention keeps: backups, and the WAL that they need. Pure: the clock and the time zone come in as
//! arguments, and nothing is removed here.
//!
//! # Backups
//!
//! Rules add up: a backup that any rule keeps stays. Everything is ordered by label, which is the order in which the
//! backups began, never by position or timeline. Where a clock was set back between two backups, the later one counts
//! as being as late as the earlier one: no point in time, by whichever of the two clocks, is lost by that. Only good backups take a place (no damaged pages, no failed examination, their WAL complete); one that
//! is not good stays while fewer than `keep_last` good ones are newer, and inside the window. Beside the rules,
//! these stay: pinned backups, the newest good one, and where no backup is good, all.
//!
//! # The window
//!
//! With `recovery_window` every point in time since its beginning can be restored, on the timeline that the
//! server was on then. So for every timeline that wrote WAL since, the newest good backup from before the
//! beginning stays from which that timeline can be reached (its *base*), and all WAL from there on. After a
//! point-in-time recovery that may be an older backup than the newest one of another timeline. Without
//! `recovery_window` the window begins with the oldest backup that `keep_last` keeps, or with the newest one.
//!
//! # WAL
//!
//! Of a kept backup outside the window: its segments from start to stop, by which it is consistent. Of a base:
//! everything after it, along the path to each timeline that it is the base of. What a lease names is treated
//! as a base. All other segments go.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use pgmahout_types::repository::manifest::WalRange;
use pgmahout_types::repository::{BackupEntry, Label};
use pgmahout_types::{SegmentName, SegmentSize, TimelineHistory, TimelineId};
use serde::Serialize;

/// What a retention policy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// The newest so many, whatever their age.
    pub last: u32,
    /// The newest of each of so many days that have one.
    pub daily: u32,
    /// The newest of each of so many ISO weeks that have one.
    pub weekly: u32,
    /// The newest of each of so many months that have one.
    pub monthly: u32,
    /// All that are not older than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<Duration>,
    /// So far back every point in time can be restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_window: Option<Duration>,
    /// So many good backups stay whatever else is said; at least one.
    pub minimum: u32,
}

impl Policy {
    /// A policy without any rule: only the newest good backup stays.
    pub const NOTHING: Self = Self {
        last: 0,
        daily: 0,
        weekly: 0,
        monthly: 0,
        within: None,
        recovery_window: None,
        minimum: 1,
    };

    /// Whether no rule would keep anything.
    pub fn keeps_nothing(&self) -> bool {
        let none = |duration: Option<Duration>| duration.is_none_or(|duration| duration.is_zero());
        self.last == 0
            && self.daily == 0
            && self.weekly == 0
            && self.monthly == 0
            && none(self.within)
            && none(self.recovery_window)
    }
}

/// Why a backup stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It is pinned.
    Pinned,
    /// Among the newest `keep_last`.
    Last,
    /// The newest of one of the `keep_daily` days.
    Daily,
    /// The newest of one of the `keep_weekly` weeks.
    Weekly,
    /// The newest of one of the `keep_monthly` months.
    Monthly,
    /// Not older than `keep_within`.
    Within,
    /// Inside the recovery window.
    Window,
    /// The window's earliest points are restored from it.
    WindowBase,
    /// One of the newest good ones, which always stay.
    Minimum,
    /// No backup is known to be good.
    NoneGood,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Pinned => "pinned",
            Self::Last => "last",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Within => "within",
            Self::Window => "in the recovery window",
            Self::WindowBase => "base of the recovery window",
            Self::Minimum => "newest good",
            Self::NoneGood => "no backup is good",
        })
    }
}

/// What the archive holds, as far as retention cares.
#[derive(Debug, Clone, Default)]
pub struct Archive {
    /// The size of the segments.
    pub segment_size: SegmentSize,
    /// The segments, by timeline and number, and when each was archived.
    pub segments: BTreeMap<TimelineId, BTreeMap<u64, Timestamp>>,
    /// The history files that are there, and when each was archived.
    pub histories: BTreeMap<TimelineId, (TimelineHistory, Timestamp)>,
}

impl Archive {
    /// Whether a segment is there.
    pub fn contains(&self, timeline: TimelineId, number: u64) -> bool {
        self.segments
            .get(&timeline)
            .is_some_and(|segments| segments.contains_key(&number))
    }

    /// The first segment of a backup's range that is not there.
    pub fn first_missing(&self, range: WalRange) -> Option<SegmentName> {
        let (timeline, numbers) = self.numbers(range)?;
        numbers
            .into_iter()
            .find(|number| !self.contains(timeline, *number))
            .and_then(|number| SegmentName::new(timeline, number, self.segment_size))
    }

    fn numbers(&self, range: WalRange) -> Option<(TimelineId, std::ops::RangeInclusive<u64>)> {
        let first = range.first.number(self.segment_size).ok()?;
        let last = range.last.number(self.segment_size).ok()?;
        Some((range.first.timeline(), first..=last))
    }

    /// The history of a timeline; of one without a file, that it has no ancestors.
    pub fn history(&self, timeline: TimelineId) -> TimelineHistory {
        self.histories
            .get(&timeline)
            .map_or_else(|| TimelineHistory::root(timeline), |(history, _)| history.clone())
    }

    /// Whether somebody who restores that backup can reach that timeline.
    pub fn reaches(&self, backup: &BackupEntry, timeline: TimelineId) -> bool {
        self.history(timeline)
            .descends_from(backup.timeline, backup.stop_lsn)
    }

    /// All timelines that are known, by segments or by history.
    fn timelines(&self) -> BTreeSet<TimelineId> {
        self.segments
            .keys()
            .chain(self.histories.keys())
            .copied()
            .collect()
    }

    /// When anything of a timeline was last archived.
    fn last_archived(&self, timeline: TimelineId) -> Option<Timestamp> {
        let segments = self
            .segments
            .get(&timeline)
            .into_iter()
            .flat_map(BTreeMap::values);
        let history = self.histories.get(&timeline).map(|(_, at)| at);
        segments.chain(history).max().copied()
    }
}

/// What becomes of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The backup.
    pub label: Label,
    /// When it was finished.
    pub stop_time: Timestamp,
    /// Why it stays; empty when it goes.
    pub keep: BTreeSet<Reason>,
    /// Why it is not good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_good: Option<String>,
}

impl Decision {
    /// Whether it goes.
    pub fn is_removed(&self) -> bool {
        self.keep.is_empty()
    }
}

/// What stays and what goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Retained {
    /// The backups, newest first.
    pub decisions: Vec<Decision>,
    /// Since when every point in time can be restored, as far as the archive is complete; `None` without any
    /// backup.
    pub window_begin: Option<Timestamp>,
    /// Each timeline of the window and the backup from which its points are restored.
    pub bases: BTreeMap<TimelineId, Label>,
}

impl Retained {
    /// The backups that stay.
    pub fn kept(&self) -> BTreeSet<Label> {
        let kept = self.decisions.iter().filter(|decision| !decision.is_removed());
        kept.map(|decision| decision.label).collect()
    }

    /// The backups that go.
    pub fn removed(&self) -> BTreeSet<Label> {
        let removed = self.decisions.iter().filter(|decision| decision.is_removed());
        removed.map(|decision| decision.label).collect()
    }
}

/// Why a backup is not known to be good.
pub fn fault(backup: &BackupEntry, archive: &Archive) -> Option<String> {
    if backup.findings > 0 {
        return Some(format!(
            "{} pages were damaged when it was taken",
            backup.findings
        ));
    }
    for (examination, what) in [(&backup.verified, "verification"), (&backup.drilled, "drill")] {
        if let Some(examination) = examination
            && !examination.passed
        {
            return Some(format!("its last {what} failed: {}", examination.detail));
        }
    }
    archive
        .first_missing(backup.wal)
        .map(|segment| format!("the WAL segment {segment} is not in the archive"))
}

/// Decides for every backup.
pub fn decide(
    backups: &[BackupEntry],
    archive: &Archive,
    policy: &Policy,
    now: Timestamp,
    zone: &TimeZone,
) -> Retained {
    let mut order: Vec<&BackupEntry> = backups.iter().collect();
    order.sort_by_key(|backup| std::cmp::Reverse(backup.label));
    let moments = moments(&order);
    let mut decisions: Vec<Decision> = order
        .iter()
        .map(|backup| Decision {
            label: backup.label,
            stop_time: backup.stop_time,
            keep: BTreeSet::new(),
            not_good: fault(backup, archive),
        })
        .collect();
    for (decision, backup) in decisions.iter_mut().zip(&order) {
        if backup.pinned {
            decision.keep.insert(Reason::Pinned);
        }
        if decision.not_good.is_some() && order.len() == not_good(backups, archive) {
            decision.keep.insert(Reason::NoneGood);
        }
    }
    keep_newest(&mut decisions, policy);
    let date = |time: Timestamp| time.to_zoned(zone.clone()).date();
    for (count, reason, period) in [
        (policy.daily, Reason::Daily, (|date| date) as fn(Date) -> Date),
        (policy.weekly, Reason::Weekly, monday_of),
        (policy.monthly, Reason::Monthly, Date::first_of_month),
    ] {
        let mut periods = BTreeSet::new();
        for decision in decisions
            .iter_mut()
            .filter(|decision| decision.not_good.is_none())
        {
            if periods.insert(period(date(decision.stop_time))) && periods.len() <= count as usize {
                decision.keep.insert(reason);
            }
        }
    }
    let since = |age: Duration| now.checked_sub(age).unwrap_or(Timestamp::MIN);
    if let Some(within) = policy.within {
        for decision in &mut decisions {
            if moments.get(&decision.label) >= Some(&since(within)) {
                decision.keep.insert(Reason::Within);
            }
        }
    }
    let window_begin = policy
        .recovery_window
        .map(since)
        .or_else(|| implied_begin(&decisions, &moments, policy));
    let mut bases = BTreeMap::new();
    if let Some(begin) = window_begin {
        for decision in &mut decisions {
            if moments.get(&decision.label) >= Some(&begin) && policy.recovery_window.is_some() {
                decision.keep.insert(Reason::Window);
            }
        }
        bases = find_bases(&order, &moments, archive, begin);
        for decision in &mut decisions {
            if bases.values().any(|base| *base == decision.label) {
                decision.keep.insert(Reason::WindowBase);
            }
        }
    }
    Retained {
        decisions,
        window_begin: window_begin.filter(|_| !backups.is_empty()),
        bases,
    }
}

/// When each backup was finished, by a clock that never goes back: not before any that is older.
fn moments(newest_first: &[&BackupEntry]) -> BTreeMap<Label, Timestamp> {
    let mut latest = Timestamp::MIN;
    newest_first
        .iter()
        .rev()
        .map(|backup| {
            latest = latest.max(backup.stop_time);
            (backup.label, latest)
        })
        .collect()
}

fn not_good(backups: &[BackupEntry], archive: &Archive) -> usize {
    let faulty = backups.iter().filter(|backup| fault(backup, archive).is_some());
    faulty.count()
}

/// Marks what `keep_last` and the minimum keep. What is not good stays while fewer good ones are newer.
fn keep_newest(decisions: &mut [Decision], policy: &Policy) {
    let (last, minimum) = (policy.last as usize, policy.minimum.max(1) as usize);
    let mut good = 0;
    for decision in decisions {
        if good < last {
            decision.keep.insert(Reason::Last);
        }
        if decision.not_good.is_none() {
            if good < minimum {
                decision.keep.insert(Reason::Minimum);
            }
            good += 1;
        }
    }
}

/// Where the window begins when nothing is said: at the oldest good backup that `keep_last` keeps, or at the
/// newest one.
fn implied_begin(
    decisions: &[Decision],
    moments: &BTreeMap<Label, Timestamp>,
    policy: &Policy,
) -> Option<Timestamp> {
    let good = |decision: &&Decision| decision.not_good.is_none();
    let oldest_of_last = decisions
        .iter()
        .filter(good)
        .take(policy.last.max(1) as usize)
        .last();
    let fallback = decisions.last();
    let first = oldest_of_last.or(fallback)?;
    moments.get(&first.label).copied()
}

/// For each timeline that wrote WAL since `begin`, the backup from which its points are restored: the newest good
/// one from before that reaches it, else the oldest good one, else the oldest. `newest_first` is in that order.
fn find_bases(
    newest_first: &[&BackupEntry],
    moments: &BTreeMap<Label, Timestamp>,
    archive: &Archive,
    begin: Timestamp,
) -> BTreeMap<TimelineId, Label> {
    let mut timelines = archive.timelines();
    timelines.extend(newest_first.iter().map(|backup| backup.timeline));
    let newest_backup = newest_first.first().map(|backup| backup.timeline);
    let newest_wal = timelines
        .iter()
        .copied()
        .max_by_key(|timeline| archive.last_archived(*timeline));
    let mut bases = BTreeMap::new();
    for timeline in timelines {
        let active = archive.last_archived(timeline).is_some_and(|at| at >= begin)
            || newest_first
                .iter()
                .any(|backup| backup.timeline == timeline && moments.get(&backup.label) >= Some(&begin))
            || Some(timeline) == newest_backup
            || Some(timeline) == newest_wal;
        if !active {
            continue;
        }
        let reaching = || {
            newest_first
                .iter()
                .filter(|backup| archive.reaches(backup, timeline))
        };
        let good = || reaching().filter(|backup| fault(backup, archive).is_none());
        // Of those that count as equally late, the one that began first.
        let before = good().filter_map(|backup| {
            let moment = moments.get(&backup.label).filter(|moment| **moment <= begin)?;
            Some((moment, std::cmp::Reverse(backup.label), backup))
        });
        let base = before
            .max_by_key(|(moment, label, _)| (*moment, *label))
            .map(|(_, _, backup)| backup)
            .or_else(|| good().next_back())
            .or_else(|| reaching().next_back());
        if let Some(base) = base {
            bases.insert(timeline, base.label);
        }
    }
    bases
}

/// The Monday on or before a date: where its ISO week begins.
fn monday_of(date: Date) -> Date {
    let days = i64::from(date.weekday().to_monday_zero_offset());
    date.checked_sub(jiff::Span::new().days(days)).unwrap_or(date)
}

/// The WAL that is wanted: for each timeline, ranges of segment numbers, both ends included; `None` for no end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedWal {
    ranges: BTreeMap<TimelineId, Vec<(u64, Option<u64>)>>,
    /// Where unbroken WAL begins, by timeline.
    continuous: BTreeMap<TimelineId, u64>,
}

impl WantedWal {
    /// What these backups need, and with the bases every point since. `readers` are backups that somebody reads;
    /// `running` is where backups that are being made begin.
    pub fn new(
        backups: &[BackupEntry],
        bases: &BTreeMap<TimelineId, Label>,
        readers: &[BackupEntry],
        running: &[SegmentName],
        archive: &Archive,
    ) -> Self {
        let mut wanted = Self::default();
        for backup in backups.iter().chain(readers) {
            if let Some((timeline, numbers)) = archive.numbers(backup.wal) {
                wanted.add(timeline, *numbers.start(), Some(*numbers.end()));
            }
        }
        for (timeline, label) in bases {
            if let Some(base) = backups.iter().find(|backup| backup.label == *label) {
                wanted.add_path(base, *timeline, archive);
            }
        }
        for reader in readers {
            for timeline in archive.timelines() {
                if archive.reaches(reader, timeline) {
                    wanted.add_path(reader, timeline, archive);
                }
            }
        }
        for segment in running {
            if let Ok(number) = segment.number(archive.segment_size) {
                // Whatever timeline comes after it.
                let later = archive
                    .timelines()
                    .into_iter()
                    .filter(|timeline| *timeline >= segment.timeline());
                for timeline in later.chain([segment.timeline()]) {
                    wanted.add(timeline, number, None);
                }
            }
        }
        wanted
    }

    /// Everything from the start of a backup to the end of a timeline that it reaches.
    fn add_path(&mut self, base: &BackupEntry, timeline: TimelineId, archive: &Archive) {
        let size = archive.segment_size;
        let Ok(first) = base.wal.first.number(size) else {
            return;
        };
        let history = archive.history(timeline);
        let mut begin = first;
        for ancestor in history.ancestors() {
            if ancestor.timeline < base.timeline {
                continue;
            }
            let Some(left) = history.left(ancestor.timeline) else {
                continue;
            };
            let end = size.number_of(left);
            self.add(ancestor.timeline, begin.min(end), Some(end));
            self.continue_from(ancestor.timeline, begin.min(end));
            // The segment of the switch is on both.
            begin = end.max(first);
        }
        self.add(timeline, begin, None);
        self.continue_from(timeline, begin);
    }

    fn add(&mut self, timeline: TimelineId, first: u64, last: Option<u64>) {
        self.ranges.entry(timeline).or_default().push((first, last));
    }

    fn continue_from(&mut self, timeline: TimelineId, first: u64) {
        let known = self.continuous.entry(timeline).or_insert(first);
        *known = first.min(*known);
    }

    /// Whether a segment is wanted.
    pub fn contains(&self, timeline: TimelineId, number: u64) -> bool {
        self.ranges.get(&timeline).is_some_and(|ranges| {
            ranges
                .iter()
                .any(|(first, last)| *first <= number && last.is_none_or(|last| number <= last))
        })
    }

    /// The segments of the archive that are not wanted, as ranges without holes in them.
    pub fn unwanted(&self, archive: &Archive) -> Vec<WalRange> {
        let mut unwanted: Vec<WalRange> = Vec::new();
        for (timeline, segments) in &archive.segments {
            let mut open: Option<(u64, u64)> = None;
            let numbers = segments.keys().copied();
            for number in numbers.filter(|number| !self.contains(*timeline, *number)) {
                open = match open {
                    // Across what is not there, but never across what is wanted.
                    Some((first, last)) if !self.wants_between(*timeline, last, number) => {
                        Some((first, number))
                    }
                    Some((first, last)) => {
                        unwanted.extend(range(*timeline, first, last, archive.segment_size));
                        Some((number, number))
                    }
                    None => Some((number, number)),
                };
            }
            if let Some((first, last)) = open {
                unwanted.extend(range(*timeline, first, last, archive.segment_size));
            }
        }
        unwanted
    }

    fn wants_between(&self, timeline: TimelineId, after: u64, before: u64) -> bool {
        self.ranges.get(&timeline).is_some_and(|ranges| {
            ranges
                .iter()
                .any(|(first, last)| *first < before && last.is_none_or(|last| after < last))
        })
    }

    /// The first wanted segment of each timeline of the archive; of one of which nothing is wanted, the one after
    /// its last.
    pub fn floors(&self, archive: &Archive) -> BTreeMap<TimelineId, SegmentName> {
        let floor = |timeline: TimelineId, segments: &BTreeMap<u64, Timestamp>| {
            let ranges = self.ranges.get(&timeline);
            let wanted = ranges.and_then(|ranges| ranges.iter().map(|(first, _)| *first).min());
            let number = wanted.or_else(|| segments.last_key_value().map(|(last, _)| last + 1))?;
            SegmentName::new(timeline, number, archive.segment_size)
        };
        archive
            .segments
            .iter()
            .filter_map(|(timeline, segments)| Some((*timeline, floor(*timeline, segments)?)))
            .collect()
    }

    /// Where unbroken WAL begins, by timeline: what lies before it is only there for single backups.
    pub fn continuous(&self, size: SegmentSize) -> BTreeMap<TimelineId, SegmentName> {
        self.continuous
            .iter()
            .filter_map(|(timeline, first)| Some((*timeline, SegmentName::new(*timeline, *first, size)?)))
            .collect()
    }
}

fn range(timeline: TimelineId, first: u64, last: u64, size: SegmentSize) -> Option<WalRange> {
    Some(WalRange {
        first: SegmentName::new(timeline, first, size)?,
        last: SegmentName::new(timeline, last, size)?,
    })
}

#[cfg(test)]
mod tests;
