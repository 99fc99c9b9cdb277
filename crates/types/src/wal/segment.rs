//! Names of whole segments.

use std::fmt;
use std::str::FromStr;

use super::{SegmentSize, WalNameError};
use crate::lsn::{Lsn, halves, hexadecimal, shortened};
use crate::timeline::TimelineId;

/// What the 24 digits of a segment's name say.
///
/// The order is that of the names: by timeline, then by position. Its text, in serde too, is the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    timeline: TimelineId,
    log: u32,
    segment: u32,
}

impl SegmentName {
    /// Digits in a name.
    pub const LENGTH: usize = 24;

    /// The segment of that number; `None` past [`SegmentSize::last_number`].
    pub fn new(timeline: TimelineId, number: u64, size: SegmentSize) -> Option<Self> {
        let log = u32::try_from(number / size.segments_per_log()).ok()?;
        let segment = u32::try_from(number % size.segments_per_log()).ok()?;
        Some(Self {
            timeline,
            log,
            segment,
        })
    }

    /// The segment that holds the byte at `lsn`.
    pub fn containing(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Self {
        // Whatever the size, the segments of one log cover 2^32 bytes.
        let (log, offset) = halves(lsn.as_u64());
        Self {
            timeline,
            log,
            segment: offset / size.0,
        }
    }

    /// The segment that holds the last byte before `lsn`: where a record that ends at `lsn` ends, and what
    /// must be archived before a backup that stops at `lsn` is complete. They differ where `lsn` lies on a
    /// border between segments. For [`Lsn::INVALID`] the first segment.
    pub fn ending_at(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Self {
        Self::containing(timeline, lsn.checked_sub(1).unwrap_or(lsn), size)
    }

    /// The timeline that wrote it.
    pub fn timeline(self) -> TimelineId {
        self.timeline
    }

    /// The same segment of another timeline.
    pub fn on_timeline(self, timeline: TimelineId) -> Self {
        Self { timeline, ..self }
    }

    /// The segment's number, counted from zero at the beginning of the log.
    ///
    /// # Errors
    /// When no cluster with segments of this size has a segment of this name.
    pub fn number(self, size: SegmentSize) -> Result<u64, WalNameError> {
        if u64::from(self.segment) >= size.segments_per_log() {
            return Err(WalNameError::NotOfThisSize { name: self, size });
        }
        Ok(u64::from(self.log) * size.segments_per_log() + u64::from(self.segment))
    }

    /// The position of its first byte.
    ///
    /// # Errors
    /// As [`SegmentName::number`].
    pub fn start(self, size: SegmentSize) -> Result<Lsn, WalNameError> {
        Ok(Lsn::new(self.number(size)? * size.bytes()))
    }

    /// The position of its last byte. The end as a border is one further, which for the very last segment
    /// is no position.
    ///
    /// # Errors
    /// As [`SegmentName::number`].
    pub fn last_byte(self, size: SegmentSize) -> Result<Lsn, WalNameError> {
        Ok(Lsn::new(self.start(size)?.as_u64() + (size.bytes() - 1)))
    }

    /// Whether the byte at `lsn` lies in it, whatever the timeline.
    ///
    /// # Errors
    /// As [`SegmentName::number`].
    pub fn holds(self, lsn: Lsn, size: SegmentSize) -> Result<bool, WalNameError> {
        Ok(self.number(size)? == size.number_of(lsn))
    }

    /// The segment after it on its timeline; `None` after the last.
    ///
    /// # Errors
    /// As [`SegmentName::number`].
    pub fn next(self, size: SegmentSize) -> Result<Option<Self>, WalNameError> {
        Ok(self
            .number(size)?
            .checked_add(1)
            .and_then(|number| Self::new(self.timeline, number, size)))
    }

    /// The segment before it on its timeline; `None` before the first.
    ///
    /// # Errors
    /// As [`SegmentName::number`].
    pub fn previous(self, size: SegmentSize) -> Result<Option<Self>, WalNameError> {
        Ok(self
            .number(size)?
            .checked_sub(1)
            .and_then(|number| Self::new(self.timeline, number, size)))
    }

    /// The 24 digits, where they are all that `text` holds.
    pub(super) fn from_digits(text: &str) -> Option<Result<Self, TimelineZero>> {
        let upper_case = text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte));
        if text.len() != Self::LENGTH || !upper_case {
            return None;
        }
        let log = hexadecimal(&text[8..16])?;
        let segment = hexadecimal(&text[16..])?;
        Some(match TimelineId::new(hexadecimal(&text[..8])?) {
            Some(timeline) => Ok(Self {
                timeline,
                log,
                segment,
            }),
            None => Err(TimelineZero),
        })
    }
}

/// Eight digits that would name the timeline 0, which does not exist.
pub(super) struct TimelineZero;

impl fmt::Display for SegmentName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&format!(
            "{:08X}{:08X}{:08X}",
            self.timeline.get(),
            self.log,
            self.segment
        ))
    }
}

impl FromStr for SegmentName {
    type Err = WalNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match Self::from_digits(name) {
            Some(Ok(segment)) => Ok(segment),
            Some(Err(TimelineZero)) => Err(WalNameError::TimelineZero {
                name: shortened(name),
            }),
            None => Err(WalNameError::NotASegment {
                name: shortened(name),
            }),
        }
    }
}

serde_as_name!(
    SegmentName,
    "the name of a WAL segment such as 000000010000000000000003"
);
