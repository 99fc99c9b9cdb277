//! Which backup and which timeline lead to a target, and the proof that the WAL between is there.
//!
//! Pure: the backups and the archive are values, and nothing looks at a clock.

use jiff::Timestamp;
use pgmahout_types::repository::Label;
use pgmahout_types::{Lsn, SegmentName, TimelineHistory, TimelineId};
use serde::Serialize;

use super::super::error::{Nearest, RestoreError};
use super::super::moment;
use super::super::target::{Aim, Target, TargetTimeline};
use super::archive::{Archive, Reach, Stretch};

/// A backup, as far as the choice goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// Its name.
    pub label: Label,
    /// The timeline that it began on.
    pub timeline: TimelineId,
    /// Where replay must begin.
    pub start: Lsn,
    /// Where it is consistent.
    pub stop: Lsn,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub stopped: Timestamp,
}

/// The way to the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// The backup to restore.
    pub backup: Candidate,
    /// The timeline that is followed.
    pub timeline: TimelineId,
    /// The timelines on the way.
    pub path: Vec<Stretch>,
    /// The WAL that may be needed, which is all there and contiguous.
    pub wal: WalRange,
    /// Segments of it that a receiver on this host has, and the archive not yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub received: Vec<SegmentName>,
    /// What a person should know of it.
    pub warnings: Vec<String>,
}

/// WAL of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalRange {
    /// The first segment.
    pub first: SegmentName,
    /// The last segment.
    pub last: SegmentName,
    /// How many there are.
    pub segments: u64,
    /// Bytes of them, when they are opened.
    pub bytes: u64,
    /// The first position that the archive does not have.
    pub end: Lsn,
}

/// Finds the way to the target.
///
/// `label` is a backup that was named, else the best one is chosen: for a time or a position the newest that
/// ended before; for the end of the archive the newest; for a transaction or a name, whose places are not
/// known without reading the WAL, the oldest from which the WAL has no gap.
///
/// # Errors
/// [`RestoreError`] with the nearest possible target, where there is one.
pub fn choose(
    candidates: &[Candidate],
    archive: &Archive,
    aim: &Aim,
    label: Option<Label>,
) -> Result<Choice, RestoreError> {
    let mut candidates: Vec<&Candidate> = candidates.iter().collect();
    // In the order in which they began, whatever the clock did meanwhile.
    candidates.sort_by_key(|candidate| candidate.label);
    if candidates.is_empty() {
        return Err(RestoreError::NoBackup);
    }
    if let Some(label) = label {
        let named = candidates
            .iter()
            .find(|candidate| candidate.label == label)
            .ok_or_else(|| RestoreError::NoSuchBackup {
                label,
                newest: candidates.last().map(|newest| newest.label),
            })?;
        let history = history_for(archive, named, aim.timeline, true)?;
        return Way::of(archive, named, &history).aim_at(aim, true, &candidates);
    }
    let newest = newest_timeline(archive, &candidates);
    let mut ways = Vec::new();
    let mut off_path = Vec::new();
    let wanted = match aim.timeline {
        TargetTimeline::Latest => newest.map_or(TargetTimeline::Current, TargetTimeline::Number),
        other => other,
    };
    let mut first_error = None;
    for candidate in &candidates {
        match history_for(archive, candidate, wanted, false) {
            Ok(history) => ways.push(Way::of(archive, candidate, &history)),
            Err(error) => {
                off_path.push(*candidate);
                first_error.get_or_insert(error);
            }
        }
    }
    let (complete, broken): (Vec<Way<'_>>, Vec<Way<'_>>) = ways.into_iter().partition(Way::is_complete);
    let Some(earliest) = complete.first() else {
        return Err(match broken.last() {
            Some(way) => way.wal_missing(),
            None => first_error.unwrap_or(RestoreError::NoBackup),
        });
    };
    let best = match &aim.target {
        Target::Latest | Target::Immediate => complete.last(),
        Target::Time(moment) => complete
            .iter()
            .rev()
            .find(|way| way.candidate.stopped <= moment.timestamp()),
        Target::Lsn(lsn) => complete.iter().rev().find(|way| way.candidate.stop <= *lsn),
        // From before a gap nothing behind it can be reached.
        Target::Xid(_) | Target::Name(_) => complete
            .iter()
            .find(|way| way.reach.behind_gap.is_none())
            .or(Some(earliest)),
    };
    let Some(best) = best else {
        return Err(earliest.too_early(aim, &candidates));
    };
    let mut choice = best.aim_at(aim, false, &candidates)?;
    for way in broken
        .iter()
        .filter(|way| way.candidate.stopped > best.candidate.stopped)
    {
        if aim.target == Target::Latest || aim.target == Target::Immediate {
            choice.warnings.push(format!(
                "the newer backup {} is passed over: {} is not in the archive",
                way.candidate.label, way.reach.missing
            ));
        }
    }
    if aim.target == Target::Latest {
        for candidate in off_path
            .iter()
            .filter(|candidate| candidate.stopped > best.candidate.stopped)
        {
            choice.warnings.push(format!(
                "the newer backup {} is on timeline {}, off the way to timeline {}; to restore it, say --backup {}",
                candidate.label, candidate.timeline, choice.timeline, candidate.label
            ));
        }
    }
    if matches!(aim.target, Target::Xid(_) | Target::Name(_)) && complete.len() > 1 {
        choice.warnings.push(format!(
            "where {} lies is not known without reading the WAL, so that the oldest backup is taken; \
             a newer one from before it is faster: --backup LABEL",
            aim.target
        ));
    }
    Ok(choice)
}

/// The newest timeline of the archive or of a backup.
fn newest_timeline(archive: &Archive, candidates: &[&Candidate]) -> Option<TimelineId> {
    let of_backups = candidates.iter().map(|candidate| candidate.timeline).max();
    archive.newest_timeline().max(of_backups)
}

/// The history that recovery of this backup follows. `named`: the backup was asked for, so that the newest
/// timeline is the newest one that it lies on.
fn history_for(
    archive: &Archive,
    candidate: &Candidate,
    timeline: TargetTimeline,
    named: bool,
) -> Result<TimelineHistory, RestoreError> {
    let own = || {
        archive
            .history(candidate.timeline)
            .unwrap_or_else(|| TimelineHistory::root(candidate.timeline))
    };
    let number = match timeline {
        TargetTimeline::Current => return Ok(own()),
        TargetTimeline::Latest if named => {
            let descendant = archive
                .timelines()
                .rev()
                .filter_map(|timeline| archive.history(timeline))
                .find(|history| history.descends_from(candidate.timeline, candidate.stop));
            return Ok(descendant
                .filter(|history| history.timeline() > candidate.timeline)
                .unwrap_or_else(own));
        }
        TargetTimeline::Latest => archive.newest_timeline().unwrap_or(candidate.timeline),
        TargetTimeline::Number(number) => number,
    };
    if number == candidate.timeline {
        return Ok(own());
    }
    let Some(history) = archive.history(number) else {
        let known: Vec<TimelineId> = archive.timelines().collect();
        return Err(RestoreError::UnknownTimeline {
            timeline: number,
            known,
        });
    };
    if history.descends_from(candidate.timeline, candidate.stop) {
        return Ok(history);
    }
    Err(RestoreError::NotOnTimeline {
        label: candidate.label,
        on: candidate.timeline,
        stop: candidate.stop,
        timeline: number,
        left: history.left(candidate.timeline),
    })
}

/// What one backup leads to.
struct Way<'a> {
    archive: &'a Archive,
    candidate: &'a Candidate,
    timeline: TimelineId,
    path: Vec<Stretch>,
    reach: Reach,
}

impl<'a> Way<'a> {
    fn of(archive: &'a Archive, candidate: &'a Candidate, history: &TimelineHistory) -> Self {
        let path = archive.path(history, candidate.timeline, candidate.start);
        Self {
            archive,
            candidate,
            timeline: history.timeline(),
            reach: archive.reach(&path),
            path,
        }
    }

    /// Whether the WAL of the backup itself is there, without which it is none.
    fn is_complete(&self) -> bool {
        self.reach.end >= self.candidate.stop && !self.reach.segments.is_empty()
    }

    fn wal_missing(&self) -> RestoreError {
        RestoreError::WalMissing {
            label: self.candidate.label,
            segment: self.reach.missing,
        }
    }

    fn too_early(&self, aim: &Aim, candidates: &[&Candidate]) -> RestoreError {
        let target = aim.target.to_string();
        let older = candidates.iter().rev().find(|older| match &aim.target {
            Target::Time(moment) => older.stopped <= moment.timestamp(),
            Target::Lsn(lsn) => older.stop <= *lsn,
            _ => false,
        });
        RestoreError::BeforeBackup {
            target,
            label: self.candidate.label,
            nearest: match &aim.target {
                Target::Lsn(_) => Nearest::Lsn(self.candidate.stop),
                _ => Nearest::Time(self.candidate.stopped),
            },
            better: older
                .map(|older| older.label)
                .filter(|label| *label != self.candidate.label),
        }
    }

    fn aim_at(&self, aim: &Aim, named: bool, candidates: &[&Candidate]) -> Result<Choice, RestoreError> {
        if !self.is_complete() {
            return Err(self.wal_missing());
        }
        let mut warnings = Vec::new();
        let mut last = None;
        match &aim.target {
            Target::Immediate => last = Some(self.candidate.stop),
            Target::Lsn(lsn) => {
                if *lsn < self.candidate.stop {
                    return Err(self.too_early(aim, if named { candidates } else { &[] }));
                }
                if *lsn >= self.reach.end {
                    return Err(self.beyond(aim, Some(*lsn)));
                }
                last = Some(*lsn);
                if self.reach.end.bytes_since(*lsn) <= self.archive.segment_size().bytes() {
                    warnings.push(
                        "the target lies in the last archived segment: if no record follows it there, recovery \
                         ends before the target and the server says so"
                            .to_owned(),
                    );
                }
            }
            Target::Time(moment) => {
                let at = moment.timestamp();
                if at < self.candidate.stopped {
                    return Err(self.too_early(aim, if named { candidates } else { &[] }));
                }
                self.check_time(aim, at, &mut warnings)?;
            }
            Target::Latest | Target::Xid(_) | Target::Name(_) => {}
        }
        if aim.target != Target::Immediate {
            self.check_end(last, &mut warnings)?;
        }
        Ok(Choice {
            backup: self.candidate.clone(),
            timeline: self.timeline,
            path: self.path.clone(),
            wal: self.range(last),
            received: self.received(),
            warnings,
        })
    }

    /// Commit times are not known without reading the WAL. What is known: a commit is older than the moment at
    /// which its segment was archived.
    fn check_time(&self, aim: &Aim, at: Timestamp, warnings: &mut Vec<String>) -> Result<(), RestoreError> {
        let Some(archived) = self.reach.archived else {
            return Err(self.wal_missing());
        };
        if at > archived {
            return Err(self.beyond(aim, None));
        }
        warnings.push(format!(
            "commit times are not known without reading the WAL: the bounds are the end of the backup \
             ({}) and the time at which the last segment was archived ({})",
            moment::utc(self.candidate.stopped),
            moment::utc(archived)
        ));
        if self.reach.archived_before_last.is_none_or(|before| at > before) {
            warnings.push(
                "the target may lie behind the last commit in the archive: then recovery ends with an error, and \
                 nothing is lost; without a target it goes to the end of the archive"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// A path that ends in a gap, or where the server would leave it.
    fn check_end(&self, last: Option<Lsn>, warnings: &mut Vec<String>) -> Result<(), RestoreError> {
        let inside = last.is_some_and(|last| last < self.reach.end);
        if let Some(impostor) = self.reach.impostor
            && !inside
        {
            return Err(RestoreError::LeavesPath {
                missing: self.reach.missing,
                impostor,
                timeline: self.timeline,
            });
        }
        if let Some(behind) = self.reach.behind_gap
            && !inside
        {
            warnings.push(format!(
                "the archive has a gap: {} is missing, and {behind} and what follows cannot be reached from this \
                 backup",
                self.reach.missing
            ));
        }
        Ok(())
    }

    fn beyond(&self, aim: &Aim, lsn: Option<Lsn>) -> RestoreError {
        let other = lsn.and_then(|lsn| {
            self.archive.timelines().rev().find(|timeline| {
                *timeline != self.timeline
                    && self.archive.has(SegmentName::containing(
                        *timeline,
                        lsn,
                        self.archive.segment_size(),
                    ))
            })
        });
        RestoreError::BeyondArchive {
            target: aim.target.to_string(),
            timeline: self.timeline,
            nearest: match (lsn, self.reach.archived) {
                (None, Some(archived)) => Nearest::Time(archived),
                _ => Nearest::Lsn(self.reach.end),
            },
            missing: self.reach.missing,
            is_gap: self.reach.behind_gap.is_some(),
            other,
        }
    }

    fn received(&self) -> Vec<SegmentName> {
        let segments = self.reach.segments.iter().copied();
        segments
            .filter(|segment| self.archive.is_received(*segment))
            .collect()
    }

    /// The segments up to the one that holds `last`, else all.
    fn range(&self, last: Option<Lsn>) -> WalRange {
        let size = self.archive.segment_size();
        let segments = &self.reach.segments;
        let count = match last {
            None => segments.len(),
            Some(last) => {
                let number = size.number_of(last.checked_sub(1).unwrap_or(last));
                segments
                    .iter()
                    .take_while(|segment| segment.number(size).is_ok_and(|found| found <= number))
                    .count()
                    .max(1)
            }
        };
        let nothing = self.reach.missing;
        WalRange {
            first: segments.first().copied().unwrap_or(nothing),
            last: segments.get(count - 1).copied().unwrap_or(nothing),
            segments: count as u64,
            bytes: count as u64 * size.bytes(),
            end: self.reach.end,
        }
    }
}

#[cfg(test)]
mod tests;
