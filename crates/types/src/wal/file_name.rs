//! Names of all the kinds of files in pg_wal.

use std::fmt;
use std::str::FromStr;

use super::segment::TimelineZero;
use super::{SegmentName, SegmentSize, WalNameError};
use crate::lsn::{Lsn, hexadecimal, shortened};
use crate::timeline::TimelineId;

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

serde_as_name!(
    WalFileName,
    "the name of a WAL file such as 000000010000000000000003 or 00000002.history"
);
