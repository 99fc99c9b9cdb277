//! What an archive holds: the segments of each timeline, where they are unbroken, and what is missing.

use std::collections::{BTreeMap, BTreeSet};

use pgmahout_types::repository::Head;
use pgmahout_types::repository::manifest::WalRange;
use pgmahout_types::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use serde::Serialize;

/// All WAL files of an archive.
#[derive(Debug, Clone, Default)]
pub struct WalInventory {
    /// The size of the segments.
    pub segment_size: SegmentSize,
    /// By timeline, the oldest first.
    pub timelines: Vec<TimelineWal>,
}

/// The WAL files of one timeline.
#[derive(Debug, Clone, Serialize)]
pub struct TimelineWal {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where it branched off; `None` for the first, and where its history is not archived.
    pub parent: Option<Branch>,
    /// Whether its history is archived.
    pub has_history: bool,
    /// Unbroken rows of segments, in their order.
    pub ranges: Vec<SegmentRange>,
    /// What is missing between them.
    pub gaps: Vec<Gap>,
    /// Unfinished segments.
    pub partials: Vec<SegmentName>,
    /// Backup histories.
    pub backups: Vec<WalFileName>,
    /// Bytes of all its files in the repository.
    pub stored_bytes: u64,
    /// Its history, where it is archived.
    #[serde(skip)]
    pub history: Option<TimelineHistory>,
}

/// Where a timeline left its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Branch {
    /// The parent.
    pub timeline: TimelineId,
    /// The first position that is not on the parent.
    pub switchpoint: Lsn,
}

/// Segments without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SegmentRange {
    /// The first.
    pub first: SegmentName,
    /// The last.
    pub last: SegmentName,
    /// How many.
    pub segments: u64,
    /// Bytes in the repository.
    pub stored_bytes: u64,
}

/// Segments that are missing between others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The first.
    pub first: SegmentName,
    /// The last.
    pub last: SegmentName,
    /// How many.
    pub segments: u64,
    /// Why, where that was recorded.
    pub reason: Option<String>,
}

/// One file of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedFile {
    /// Its name.
    pub name: WalFileName,
    /// Bytes in the repository.
    pub stored: u64,
}

impl WalInventory {
    /// Sorts a listing. Histories are the contents of the `.history` files that were found; gaps that the head
    /// explains get their reason.
    pub fn new(
        segment_size: SegmentSize,
        files: &[ListedFile],
        histories: &BTreeMap<TimelineId, TimelineHistory>,
        head: Option<&Head>,
    ) -> Self {
        let mut by_timeline: BTreeMap<TimelineId, Vec<ListedFile>> = BTreeMap::new();
        for file in files {
            by_timeline.entry(file.name.timeline()).or_default().push(*file);
        }
        let timelines = by_timeline
            .into_iter()
            .map(|(timeline, files)| one_timeline(segment_size, timeline, &files, histories, head))
            .collect();
        Self {
            segment_size,
            timelines,
        }
    }

    /// What is there of a timeline.
    pub fn timeline(&self, timeline: TimelineId) -> Option<&TimelineWal> {
        self.timelines.iter().find(|wal| wal.timeline == timeline)
    }

    /// Whether a segment is there.
    pub fn contains(&self, segment: SegmentName) -> bool {
        self.timeline(segment.timeline()).is_some_and(|wal| {
            wal.ranges
                .iter()
                .any(|range| range.first <= segment && segment <= range.last)
        })
    }

    /// Those of some segments that are not there.
    pub fn missing(&self, segments: impl IntoIterator<Item = SegmentName>) -> Vec<SegmentName> {
        segments
            .into_iter()
            .filter(|segment| !self.contains(*segment))
            .collect()
    }

    /// The last segment of the unbroken row that `segment` is in.
    pub fn unbroken_until(&self, segment: SegmentName) -> Option<SegmentName> {
        let wal = self.timeline(segment.timeline())?;
        wal.ranges
            .iter()
            .find(|range| range.first <= segment && segment <= range.last)
            .map(|range| range.last)
    }

    /// All segments, in their order.
    pub fn segments(&self) -> impl Iterator<Item = SegmentName> + '_ {
        let size = self.segment_size;
        self.timelines
            .iter()
            .flat_map(|wal| &wal.ranges)
            .flat_map(move |range| between(range.first, range.last, size))
    }

    /// All files: segments, histories, backup histories, unfinished segments.
    pub fn files(&self) -> impl Iterator<Item = WalFileName> + '_ {
        let others = self.timelines.iter().flat_map(|wal| {
            let history = wal
                .has_history
                .then_some(WalFileName::TimelineHistory(wal.timeline));
            let partials = wal.partials.iter().copied().map(WalFileName::Partial);
            history
                .into_iter()
                .chain(wal.backups.iter().copied())
                .chain(partials)
        });
        self.segments().map(WalFileName::Segment).chain(others)
    }

    /// How many segments there are.
    pub fn segment_count(&self) -> u64 {
        self.timelines
            .iter()
            .flat_map(|wal| &wal.ranges)
            .map(|range| range.segments)
            .sum()
    }

    /// Bytes of all files in the repository.
    pub fn stored_bytes(&self) -> u64 {
        self.timelines.iter().map(|wal| wal.stored_bytes).sum()
    }

    /// All gaps.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.timelines.iter().flat_map(|wal| &wal.gaps)
    }

    /// Parents whose last segments before a branch are missing, though the archive has WAL on both sides of the
    /// branch: recovery through it would stop there.
    pub fn broken_branches(&self) -> Vec<(TimelineId, SegmentName)> {
        let mut broken = Vec::new();
        for wal in &self.timelines {
            let Some(branch) = wal.parent else { continue };
            let Some(parent) = self.timeline(branch.timeline) else {
                continue;
            };
            let Some(first_of_parent) = parent.ranges.first() else {
                continue;
            };
            // The segment of the switch itself is also the child's first.
            let switch = SegmentName::containing(branch.timeline, branch.switchpoint, self.segment_size);
            let Ok(Some(before)) = switch.previous(self.segment_size) else {
                continue;
            };
            let child_has_begun = !wal.ranges.is_empty();
            if child_has_begun && before >= first_of_parent.first && !self.contains(before) {
                broken.push((wal.timeline, before));
            }
        }
        broken
    }
}

/// The segments from one to another, both included.
pub fn between(
    first: SegmentName,
    last: SegmentName,
    size: SegmentSize,
) -> impl Iterator<Item = SegmentName> {
    let numbers = match (first.number(size), last.number(size)) {
        (Ok(first), Ok(last)) => first..last.saturating_add(1),
        _ => 0..0,
    };
    numbers.filter_map(move |number| SegmentName::new(first.timeline(), number, size))
}

fn one_timeline(
    size: SegmentSize,
    timeline: TimelineId,
    files: &[ListedFile],
    histories: &BTreeMap<TimelineId, TimelineHistory>,
    head: Option<&Head>,
) -> TimelineWal {
    let mut segments: BTreeMap<u64, (SegmentName, u64)> = BTreeMap::new();
    let (mut partials, mut backups) = (BTreeSet::new(), BTreeSet::new());
    let mut has_history = false;
    for file in files {
        match file.name {
            // One that no cluster with segments of this size has is none of ours to count.
            WalFileName::Segment(segment) => {
                if let Ok(number) = segment.number(size) {
                    segments.insert(number, (segment, file.stored));
                }
            }
            WalFileName::Partial(segment) => {
                partials.insert(segment);
            }
            WalFileName::BackupHistory { .. } => {
                backups.insert(file.name);
            }
            WalFileName::TimelineHistory(_) => has_history = true,
        }
    }
    let mut ranges: Vec<(u64, SegmentRange)> = Vec::new();
    for (number, (segment, stored)) in segments {
        match ranges.last_mut() {
            Some((last, range)) if *last + 1 == number => {
                *last = number;
                range.last = segment;
                range.segments += 1;
                range.stored_bytes += stored;
            }
            _ => ranges.push((
                number,
                SegmentRange {
                    first: segment,
                    last: segment,
                    segments: 1,
                    stored_bytes: stored,
                },
            )),
        }
    }
    let floor = head.and_then(|head| {
        let kept = [&head.wal_floor, &head.wal_window];
        kept.into_iter()
            .filter_map(|floors| floors.get(&timeline).copied())
            .max()
    });
    let gaps = ranges
        .windows(2)
        .filter_map(|pair| {
            let first = pair[0].1.last.next(size).ok()??;
            let last = pair[1].1.first.previous(size).ok()??;
            // What a collection may have removed is not missing.
            if floor.is_some_and(|floor| last < floor) {
                return None;
            }
            let reason = head.and_then(|head| reason_of(head, first, last));
            Some(Gap {
                first,
                last,
                segments: last.number(size).ok()? - first.number(size).ok()? + 1,
                reason,
            })
        })
        .collect();
    let history = histories.get(&timeline).cloned();
    let parent = history
        .as_ref()
        .and_then(TimelineHistory::parent)
        .map(|parent| Branch {
            timeline: parent.timeline,
            switchpoint: parent.switchpoint,
        });
    TimelineWal {
        timeline,
        parent,
        has_history,
        ranges: ranges.into_iter().map(|(_, range)| range).collect(),
        gaps,
        partials: partials.into_iter().collect(),
        backups: backups.into_iter().collect(),
        stored_bytes: files.iter().map(|file| file.stored).sum(),
        history,
    }
}

fn reason_of(head: &Head, first: SegmentName, last: SegmentName) -> Option<String> {
    let overlaps = |wal: &WalRange| wal.first <= last && first <= wal.last;
    head.gaps
        .iter()
        .find(|gap| overlaps(&gap.wal))
        .map(|gap| gap.reason.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<ListedFile> {
        names
            .iter()
            .map(|name| ListedFile {
                name: name.parse().expect("a name"),
                stored: 10,
            })
            .collect()
    }

    fn inventory(names: &[&str]) -> WalInventory {
        WalInventory::new(SegmentSize::DEFAULT, &files(names), &BTreeMap::new(), None)
    }

    #[test]
    fn a_missing_segment_is_a_gap_and_a_border_between_logs_is_none() {
        let inventory = inventory(&[
            "0000000100000000000000FE",
            "0000000100000000000000FF",
            "000000010000000100000000",
            "000000010000000100000003",
        ]);
        let wal = &inventory.timelines[0];
        assert_eq!(wal.ranges.len(), 2);
        assert_eq!(wal.ranges[0].segments, 3);
        let gap = &wal.gaps[0];
        assert_eq!(
            (
                gap.first.to_string().as_str(),
                gap.last.to_string().as_str(),
                gap.segments
            ),
            ("000000010000000100000001", "000000010000000100000002", 2)
        );
        assert_eq!(inventory.segments().count(), 4);
        let name = |text: &str| text.parse::<SegmentName>().expect("a name");
        assert_eq!(
            inventory.unbroken_until(name("0000000100000000000000FE")),
            Some(name("000000010000000100000000"))
        );
        assert_eq!(
            inventory.missing([name("000000010000000100000000"), name("000000010000000100000001")]),
            [name("000000010000000100000001")]
        );
    }

    #[test]
    fn what_a_collection_removed_between_old_backups_is_no_gap() {
        let name = |text: &str| text.parse::<SegmentName>().expect("a name");
        let nonce = "00".repeat(16).parse().expect("a nonce");
        let mut head = Head::first(nonce, jiff::Timestamp::UNIX_EPOCH, "host");
        head.wal_floor
            .insert(TimelineId::FIRST, name("000000010000000000000003"));
        head.wal_window
            .insert(TimelineId::FIRST, name("000000010000000000000009"));
        let listed = files(&[
            "000000010000000000000003",
            "000000010000000000000009",
            "00000001000000000000000B",
        ]);
        let inventory = WalInventory::new(SegmentSize::DEFAULT, &listed, &BTreeMap::new(), Some(&head));
        let gaps: Vec<SegmentName> = inventory.gaps().map(|gap| gap.first).collect();
        assert_eq!(gaps, [name("00000001000000000000000A")]);
    }

    #[test]
    fn unfinished_segments_are_no_segments() {
        let inventory = inventory(&["000000010000000000000003.partial", "00000002.history"]);
        assert_eq!(inventory.segment_count(), 0);
        assert_eq!(inventory.timelines.len(), 2);
        assert_eq!(inventory.timelines[0].partials.len(), 1);
        assert!(inventory.timelines[1].has_history);
        assert!(!inventory.contains("000000010000000000000003".parse().expect("a name")));
        assert_eq!(inventory.files().count(), 2);
    }

    #[test]
    fn a_branch_without_the_segment_before_it_is_broken() {
        let second = TimelineId::new(2).expect("not zero");
        let history = TimelineHistory::root(TimelineId::FIRST)
            .branch(second, Lsn::new(0x500_0100), "promoted")
            .expect("a branch");
        let histories = BTreeMap::from([(second, history)]);
        let broken = |names: &[&str]| {
            WalInventory::new(SegmentSize::DEFAULT, &files(names), &histories, None).broken_branches()
        };
        assert_eq!(
            broken(&[
                "000000010000000000000003",
                "000000010000000000000004",
                "000000020000000000000005",
            ]),
            []
        );
        let found = broken(&["000000010000000000000003", "000000020000000000000005"]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1.to_string(), "000000010000000000000004");
    }
}
