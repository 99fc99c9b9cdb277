//! The names of files in pg_wal and in a WAL archive.
//!
//! A segment's name is the timeline and two parts of the segment's number, 8 hexadecimal digits each. How
//! the number splits depends on the segment size, which initdb chose (`src/include/access/xlog_internal.h`,
//! `XLogFileName`). A name can therefore be recognised without the size, but not turned into positions:
//! [`SegmentName`] holds what the name says, and its methods ask for a [`SegmentSize`] where it matters.
//!
//! Names are read strictly, in upper case, as the server's own checks do (`IsXLogFileName` and its
//! neighbours), and never with the timeline 0.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::diagnostic::{Diagnose, Outcome};
use crate::lsn::{Lsn, halves, hexadecimal, shortened};
use crate::timeline::TimelineId;

#[cfg(test)]
mod tests;

/// The size of the WAL segments of a cluster: a power of two from 1 MiB to 1 GiB, chosen by initdb's
/// `--wal-segsize` (`IsValidWalSegSize` in `src/include/access/xlog_internal.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// 1 MiB.
    pub const MIN: Self = Self(1 << 20);
    /// 1 GiB.
    pub const MAX: Self = Self(1 << 30);
    /// 16 MiB, what initdb takes when nothing else is said.
    pub const DEFAULT: Self = Self(1 << 24);

    /// From a number of bytes.
    ///
    /// # Errors
    /// When it is not a power of two from 1 MiB to 1 GiB.
    pub fn new(bytes: u64) -> Result<Self, InvalidSegmentSize> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&size) => {
                Ok(Self(size))
            }
            _ => Err(InvalidSegmentSize { bytes }),
        }
    }

    /// Every possible size, the smallest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (20..=30).map(|shift| Self(1 << shift))
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// How many segments share the middle eight digits of their names (`XLogSegmentsPerXLogId`).
    pub fn segments_per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }

    /// The number of the segment that holds the byte at `lsn`.
    pub fn number_of(self, lsn: Lsn) -> u64 {
        lsn.as_u64() / self.bytes()
    }

    /// How far into its segment `lsn` lies, in bytes.
    pub fn offset_of(self, lsn: Lsn) -> u32 {
        // The size divides 2^32, so the upper half does not matter.
        halves(lsn.as_u64()).1 % self.0
    }

    /// The largest number that a segment of this size can have.
    pub fn last_number(self) -> u64 {
        u64::MAX / self.bytes()
    }
}

impl Default for SegmentSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A number of bytes that no WAL segment can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes is not a possible size of WAL segments")]
pub struct InvalidSegmentSize {
    bytes: u64,
}

impl Diagnose for InvalidSegmentSize {
    fn hint(&self) -> Option<String> {
        Some("it is a power of two from 1 MiB to 1 GiB; `SHOW wal_segment_size` says which".to_owned())
    }

    fn outcome(&self) -> Outcome {
        Outcome::Usage
    }
}

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
    fn from_digits(text: &str) -> Option<Result<Self, TimelineZero>> {
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
struct TimelineZero;

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

/// The name of a file that PostgreSQL puts into pg_wal and hands to `archive_command`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// A whole segment: `000000010000000000000003`.
    Segment(SegmentName),
    /// The unfinished last segment of a timeline that was left at a promotion, or that pg_receivewal is
    /// still writing: `000000010000000000000003.partial`.
    Partial(SegmentName),
    /// What pg_backup_stop says about a backup: `000000010000000000000003.00000028.backup`.
    BackupHistory {
        /// The segment in which the backup starts.
        segment: SegmentName,
        /// How far into the segment it starts, in bytes.
        offset: u32,
    },
    /// The ancestors of a timeline: `00000002.history`.
    TimelineHistory(TimelineId),
}

impl WalFileName {
    /// The backup history file of a backup that starts at `start`.
    pub fn backup_history(timeline: TimelineId, start: Lsn, size: SegmentSize) -> Self {
        Self::BackupHistory {
            segment: SegmentName::containing(timeline, start, size),
            offset: size.offset_of(start),
        }
    }

    /// The timeline that the name begins with.
    pub fn timeline(self) -> TimelineId {
        match self {
            Self::Segment(segment) | Self::Partial(segment) | Self::BackupHistory { segment, .. } => {
                segment.timeline()
            }
            Self::TimelineHistory(timeline) => timeline,
        }
    }

    /// The segment that it is or that it is about; `None` for a timeline history.
    pub fn segment(self) -> Option<SegmentName> {
        match self {
            Self::Segment(segment) | Self::Partial(segment) | Self::BackupHistory { segment, .. } => {
                Some(segment)
            }
            Self::TimelineHistory(_) => None,
        }
    }
}

impl From<SegmentName> for WalFileName {
    fn from(segment: SegmentName) -> Self {
        Self::Segment(segment)
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&match self {
            Self::Segment(segment) => segment.to_string(),
            Self::Partial(segment) => format!("{segment}.partial"),
            Self::BackupHistory { segment, offset } => format!("{segment}.{offset:08X}.backup"),
            Self::TimelineHistory(timeline) => format!("{:08X}.history", timeline.get()),
        })
    }
}

impl FromStr for WalFileName {
    type Err = WalNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || WalNameError::NotAWalFile {
            name: shortened(name),
        };
        let segment = |digits: &str| match SegmentName::from_digits(digits) {
            Some(Ok(segment)) => Ok(segment),
            Some(Err(TimelineZero)) => Err(WalNameError::TimelineZero {
                name: shortened(name),
            }),
            None => Err(unknown()),
        };
        let eight_digits = |digits: &str| {
            let lower_case = digits.bytes().any(|byte| byte.is_ascii_lowercase());
            if digits.len() == 8 && !lower_case {
                hexadecimal(digits)
            } else {
                None
            }
        };
        let Some((digits, rest)) = name.split_once('.') else {
            return segment(name).map(Self::Segment);
        };
        match rest {
            "partial" => segment(digits).map(Self::Partial),
            "history" => {
                let number = eight_digits(digits).ok_or_else(unknown)?;
                TimelineId::new(number)
                    .map(Self::TimelineHistory)
                    .ok_or_else(|| WalNameError::TimelineZero {
                        name: shortened(name),
                    })
            }
            _ => {
                let offset = rest
                    .strip_suffix(".backup")
                    .and_then(eight_digits)
                    .ok_or_else(unknown)?;
                Ok(Self::BackupHistory {
                    segment: segment(digits)?,
                    offset,
                })
            }
        }
    }
}

/// Serialisation of a type whose text form is its name.
macro_rules! serde_as_name {
    ($type:ty, $expected:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $type;

                    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                        formatter.write_str($expected)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }
    };
}

serde_as_name!(
    SegmentName,
    "the name of a WAL segment such as 000000010000000000000003"
);
serde_as_name!(
    WalFileName,
    "the name of a WAL file such as 000000010000000000000003 or 00000002.history"
);

/// A name that is not of a WAL file, or not of one of this cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalNameError {
    /// Not 24 digits.
    #[error("{name:?} is not the name of a WAL segment")]
    NotASegment {
        /// The name, or its beginning.
        name: String,
    },
    /// Neither a segment nor one of the other kinds of file.
    #[error("{name:?} is not the name of a WAL file")]
    NotAWalFile {
        /// The name, or its beginning.
        name: String,
    },
    /// The digits of the timeline are all zero.
    #[error("{name:?} names timeline 0, which does not exist")]
    TimelineZero {
        /// The name, or its beginning.
        name: String,
    },
    /// The last eight digits are more than segments of this size can reach.
    #[error("{name} is not the name of a WAL segment of {} bytes", size.bytes())]
    NotOfThisSize {
        /// The name.
        name: SegmentName,
        /// The size of segments that was assumed.
        size: SegmentSize,
    },
}

impl Diagnose for WalNameError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotASegment { .. } | Self::TimelineZero { .. } => {
                "a segment's name is 24 hexadecimal digits in upper case, for example 000000010000000000000003".to_owned()
            }
            Self::NotAWalFile { .. } => {
                "expected a segment, a .partial segment, a .backup file or a .history file, as in pg_wal".to_owned()
            }
            Self::NotOfThisSize { .. } => {
                "the file is of a cluster with smaller segments: compare `SHOW wal_segment_size`, or \"Bytes per WAL segment\" of pg_controldata"
                    .to_owned()
            }
        })
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::NotOfThisSize { .. } => Outcome::Failed,
            _ => Outcome::Usage,
        }
    }
}
