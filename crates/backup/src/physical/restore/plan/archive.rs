//! What the WAL archive has, and how far recovery comes with it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pgmahout_types::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId};
use serde::Serialize;

/// The complete segments and the histories of an archive.
#[derive(Debug, Clone)]
pub struct Archive {
    size: SegmentSize,
    /// When each segment was archived, by timeline and number.
    segments: BTreeMap<(TimelineId, u64), Timestamp>,
    histories: BTreeMap<TimelineId, TimelineHistory>,
    /// Segments that a receiver has and the archive has not, and where what is in them ends.
    received: BTreeMap<SegmentName, Lsn>,
}

/// A part of the way that recovery takes: WAL of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stretch {
    /// The timeline.
    pub timeline: TimelineId,
    /// From here.
    pub from: Lsn,
    /// Up to here, where the next timeline branched off; `None` on the last one.
    pub to: Option<Lsn>,
}

/// How far recovery comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The first byte that is not there.
    pub end: Lsn,
    /// The segments, in order.
    pub segments: Vec<SegmentName>,
    /// The first one that is missing.
    pub missing: SegmentName,
    /// A segment of the same path behind the missing one: then this is a gap, and not the end.
    pub behind_gap: Option<SegmentName>,
    /// A segment of an older timeline that the server would read in place of the missing one, and so leave
    /// the path.
    pub impostor: Option<SegmentName>,
    /// When the last segment was archived: every commit in it is older.
    pub archived: Option<Timestamp>,
    /// When the segments before the last one were archived, at the latest.
    pub archived_before_last: Option<Timestamp>,
}

impl Archive {
    /// An archive with segments of that size and nothing in it.
    pub fn new(size: SegmentSize) -> Self {
        Self {
            size,
            segments: BTreeMap::new(),
            histories: BTreeMap::new(),
            received: BTreeMap::new(),
        }
    }

    /// Adds a segment that is not in the archive, with WAL up to `end`.
    pub fn add_received(&mut self, segment: SegmentName, at: Timestamp, end: Lsn) {
        self.add(segment, at);
        self.received.insert(segment, end);
    }

    /// Takes such a segment away again.
    pub fn remove(&mut self, segment: SegmentName) {
        if self.received.remove(&segment).is_some()
            && let Ok(number) = segment.number(self.size)
        {
            self.segments.remove(&(segment.timeline(), number));
        }
    }

    /// Whether a segment is not in the archive, but a receiver's.
    pub fn is_received(&self, segment: SegmentName) -> bool {
        self.received.contains_key(&segment)
    }

    /// Adds a segment and when it was archived. Names of segments of another size are passed over.
    pub fn add(&mut self, segment: SegmentName, archived: Timestamp) {
        if let Ok(number) = segment.number(self.size) {
            self.segments.insert((segment.timeline(), number), archived);
        }
    }

    /// Adds a history.
    pub fn add_history(&mut self, history: TimelineHistory) {
        self.histories.insert(history.timeline(), history);
    }

    /// The size of the segments.
    pub fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// Whether that segment is there.
    pub fn has(&self, segment: SegmentName) -> bool {
        segment
            .number(self.size)
            .is_ok_and(|number| self.segments.contains_key(&(segment.timeline(), number)))
    }

    /// The newest timeline of which there is a history or a segment.
    pub fn newest_timeline(&self) -> Option<TimelineId> {
        let by_history = self.histories.last_key_value().map(|(timeline, _)| *timeline);
        let by_segment = self.segments.last_key_value().map(|((timeline, _), _)| *timeline);
        by_history.max(by_segment)
    }

    /// All timelines that can be followed: those with a history, and the first one.
    pub fn timelines(&self) -> impl DoubleEndedIterator<Item = TimelineId> {
        let first = (!self.histories.contains_key(&TimelineId::FIRST)).then_some(TimelineId::FIRST);
        first.into_iter().chain(self.histories.keys().copied())
    }

    /// The history of a timeline. The first timeline has none to be stored; that of another one may be missing.
    pub fn history(&self, timeline: TimelineId) -> Option<TimelineHistory> {
        let known = self.histories.get(&timeline).cloned();
        known.or_else(|| (timeline == TimelineId::FIRST).then(|| TimelineHistory::root(timeline)))
    }

    /// The last segment of a timeline, whatever is missing before it.
    pub fn last_of(&self, timeline: TimelineId) -> Option<SegmentName> {
        let ((found, number), _) = self
            .segments
            .range((timeline, 0)..=(timeline, u64::MAX))
            .next_back()?;
        SegmentName::new(*found, *number, self.size)
    }

    /// The way from `start`, which is on `timeline`, to the timeline of `history`, which contains it.
    pub fn path(&self, history: &TimelineHistory, timeline: TimelineId, start: Lsn) -> Vec<Stretch> {
        let mut path = Vec::new();
        let mut from = start;
        let mut on_path = false;
        for ancestor in history.ancestors() {
            on_path |= ancestor.timeline == timeline;
            if on_path {
                path.push(Stretch {
                    timeline: ancestor.timeline,
                    from,
                    to: Some(ancestor.switchpoint),
                });
                from = from.max(ancestor.switchpoint);
            }
        }
        path.push(Stretch {
            timeline: history.timeline(),
            from,
            to: None,
        });
        path
    }

    /// How far recovery comes along a path. A segment in which a timeline begins is taken from the newer one,
    /// as the server does (`XLogFileReadAnyTLI` in `src/backend/access/transam/xlogrecovery.c`): it holds a
    /// copy of what the older one wrote before.
    pub fn reach(&self, path: &[Stretch]) -> Reach {
        let start = path.first().map_or(Lsn::INVALID, |stretch| stretch.from);
        let mut number = self.size.number_of(start);
        let mut segments = Vec::new();
        let (mut archived, mut archived_before_last) = (None, None);
        loop {
            let timeline = self.timeline_of(path, number);
            let Some(name) = SegmentName::new(timeline, number, self.size) else {
                // The last position that there can be.
                let missing = SegmentName::containing(timeline, Lsn::MAX, self.size);
                return Reach {
                    end: Lsn::MAX,
                    segments,
                    missing,
                    behind_gap: None,
                    impostor: None,
                    archived,
                    archived_before_last,
                };
            };
            let Some(&at) = self.segments.get(&(timeline, number)) else {
                // An unfinished segment is always the last one.
                let unfinished = segments.last().and_then(|last| self.received.get(last).copied());
                let end = unfinished.unwrap_or(Lsn::new(number.saturating_mul(self.size.bytes())));
                let end = end.max(start);
                return Reach {
                    end,
                    missing: name,
                    behind_gap: self.behind(path, number),
                    impostor: self.impostor(path, number, segments.last().map(|last| last.timeline())),
                    segments,
                    archived,
                    archived_before_last,
                };
            };
            segments.push(name);
            archived_before_last = archived;
            archived = Some(archived.map_or(at, |before: Timestamp| before.max(at)));
            number += 1;
        }
    }

    /// The newest timeline of the path that has begun in that segment or before.
    fn timeline_of(&self, path: &[Stretch], number: u64) -> TimelineId {
        let begun = |stretch: &&Stretch| self.size.number_of(stretch.from) <= number;
        let newest = path.iter().rev().find(begun).or(path.first());
        newest.map_or(TimelineId::FIRST, |stretch| stretch.timeline)
    }

    fn behind(&self, path: &[Stretch], number: u64) -> Option<SegmentName> {
        path.iter()
            .filter_map(|stretch| {
                let timeline = stretch.timeline;
                let last = match stretch.to {
                    Some(to) => self.size.number_of(to),
                    None => u64::MAX,
                };
                let ((_, found), _) = self
                    .segments
                    .range((timeline, number.saturating_add(1))..)
                    .next()
                    .filter(|((found, at), _)| *found == timeline && *at <= last)?;
                // The rest of an abandoned timeline is none of ours.
                let name = SegmentName::new(timeline, *found, self.size)?;
                (self.timeline_of(path, *found) == timeline).then_some(name)
            })
            .min_by_key(|name| name.number(self.size).unwrap_or(u64::MAX))
    }

    /// The server never goes back to a timeline that is older than the one of the file it has read last: only
    /// the first segment of a timeline can have an impostor.
    fn impostor(&self, path: &[Stretch], number: u64, read_last: Option<TimelineId>) -> Option<SegmentName> {
        let wanted = self.timeline_of(path, number);
        path.iter()
            .rev()
            .filter(|stretch| stretch.timeline < wanted)
            .filter(|stretch| read_last.is_none_or(|last| stretch.timeline >= last))
            .filter_map(|stretch| SegmentName::new(stretch.timeline, number, self.size))
            .find(|name| self.has(*name))
    }
}
