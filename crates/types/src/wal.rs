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

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::diagnostic::{Diagnose, Outcome};
use crate::lsn::{Lsn, halves};

/// Serialisation of a type whose text form is its name.
macro_rules! serde_as_name {
    ($type:ty, $expected:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $type;

                    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        formatter.write_str($expected)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }
    };
}

mod file_name;
pub mod page_header;
mod segment;
#[cfg(test)]
mod tests;

pub use file_name::WalFileName;
pub use page_header::WalPageHeader;
pub use segment::SegmentName;

/// The size of the WAL segments of a cluster: a power of two from 1 MiB to 1 GiB, chosen by initdb's
/// `--wal-segsize` (`IsValidWalSegSize` in `src/include/access/xlog_internal.h`). Its text is for people:
/// `16 MiB`. In serde it is the number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u64", try_from = "u64")]
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

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> Self {
        size.bytes()
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = InvalidSegmentSize;

    fn try_from(bytes: u64) -> Result<Self, InvalidSegmentSize> {
        Self::new(bytes)
    }
}

impl fmt::Display for SegmentSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Bytes::new(self.bytes()), formatter)
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
    #[error("{name} is not the name of a WAL segment of {size}")]
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
