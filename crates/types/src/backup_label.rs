//! `backup_label`, which says where the recovery of a base backup must begin, and the backup history file,
//! which says the same and where it ended.
//!
//! A backup without its backup_label starts as if it were a crashed server, and is corrupt without saying
//! so. What is put back into a restored directory are therefore the bytes that `pg_backup_stop` gave, as
//! they are; these types are for knowing what they say. [`BackupLabel::render`] gives the same bytes for
//! every label that has one line and is UTF-8.
//!
//! The server reads the lines in their order and skips those that it does not know (`read_backup_label` in
//! `src/backend/access/transam/xlogrecovery.c`); it writes them in `build_backup_content` of
//! `src/backend/access/transam/xlogbackup.c`. Here the first line of a kind counts, because what follows
//! the line LABEL can be what a user chose to call the backup.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use crate::diagnostic::Diagnose;
use crate::lsn::{Lsn, shortened};
use crate::timeline::TimelineId;
use crate::wal::SegmentName;

#[cfg(test)]
mod tests;

const START_LOCATION: &str = "START WAL LOCATION";
const STOP_LOCATION: &str = "STOP WAL LOCATION";
const CHECKPOINT_LOCATION: &str = "CHECKPOINT LOCATION";
const METHOD: &str = "BACKUP METHOD";
const SOURCE: &str = "BACKUP FROM";
const START_TIME: &str = "START TIME";
const LABEL: &str = "LABEL";
const START_TIMELINE: &str = "START TIMELINE";
const STOP_TIME: &str = "STOP TIME";
const STOP_TIMELINE: &str = "STOP TIMELINE";
const INCREMENTAL_LSN: &str = "INCREMENTAL FROM LSN";
const INCREMENTAL_TIMELINE: &str = "INCREMENTAL FROM TLI";

/// What backup_label says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay must begin.
    pub start: Location,
    /// Where the record of the backup's checkpoint begins.
    pub checkpoint: Lsn,
    /// How the backup was made.
    pub method: BackupMethod,
    /// What kind of server it is of.
    pub source: BackupSource,
    /// When it began, in the server's `log_timezone`: text for people.
    pub start_time: String,
    /// What the user called it; pg_rewind gives none. Bytes that are not UTF-8 have been replaced.
    pub label: Option<String>,
    /// The timeline that it began on; pg_rewind gives none. Never another than that of `start`.
    pub start_timeline: Option<TimelineId>,
    /// For an incremental backup (PostgreSQL 17 and later): what it builds on. A directory with this line
    /// is not a data directory, and no server starts on it.
    pub incremental_from: Option<IncrementalBase>,
}

/// A WAL position and the file that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The position.
    pub lsn: Lsn,
    /// The segment that the server named for it.
    pub file: SegmentName,
}

/// How a backup was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupMethod {
    /// With `pg_backup_start` or by the replication command `BASE_BACKUP`: the end of the backup stands in
    /// the WAL, and recovery insists on reaching it.
    Streamed,
    /// By pg_rewind.
    PgRewind,
    /// Something else, as it is written.
    Other(String),
}

/// What kind of server a backup is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupSource {
    /// A primary.
    Primary,
    /// A standby.
    Standby,
}

/// What an incremental backup builds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IncrementalBase {
    /// Where the earlier backup began.
    pub lsn: Lsn,
    /// On which timeline.
    pub timeline: TimelineId,
}

impl BackupLabel {
    /// The file's name in a data directory.
    pub const FILE_NAME: &'static str = "backup_label";

    /// Reads the content of the file.
    ///
    /// # Errors
    /// Where a line is missing or unreadable, or two contradict each other. Line ends of Windows count as
    /// unreadable, as they do to the server.
    pub fn parse(content: &[u8]) -> Result<Self, BackupLabelError> {
        Self::from_lines(&Lines::new(&String::from_utf8_lossy(content)))
    }

    /// The content of the file, as the server writes it. Line ends in texts become blanks.
    pub fn render(&self) -> String {
        self.render_with(None)
    }

    fn from_lines(lines: &Lines<'_>) -> Result<Self, BackupLabelError> {
        let start: Location = lines.required(START_LOCATION)?;
        let start_timeline: Option<TimelineId> = lines.optional(START_TIMELINE)?;
        if start_timeline.is_some_and(|timeline| timeline != start.file.timeline()) {
            return Err(BackupLabelError::Contradiction {
                one: START_LOCATION,
                other: START_TIMELINE,
            });
        }
        let incremental_from = match (
            lines.optional(INCREMENTAL_LSN)?,
            lines.optional(INCREMENTAL_TIMELINE)?,
        ) {
            (Some(lsn), Some(timeline)) => Some(IncrementalBase { lsn, timeline }),
            (None, None) => None,
            (Some(_), None) => {
                return Err(BackupLabelError::Missing {
                    line: INCREMENTAL_TIMELINE,
                });
            }
            (None, Some(_)) => {
                return Err(BackupLabelError::Missing {
                    line: INCREMENTAL_LSN,
                });
            }
        };
        Ok(Self {
            start,
            checkpoint: lines.required(CHECKPOINT_LOCATION)?,
            method: lines.required(METHOD)?,
            source: lines.required(SOURCE)?,
            start_time: lines.required(START_TIME)?,
            label: lines.optional(LABEL)?,
            start_timeline,
            incremental_from,
        })
    }

    /// The lines of both files: those of the backup history file with where the backup ended.
    fn render_with(&self, end: Option<&BackupEnd>) -> String {
        let mut content = String::new();
        let mut line = |key: &str, value: &dyn fmt::Display| {
            let value = value.to_string().replace(['\n', '\r'], " ");
            writeln!(content, "{key}: {value}").expect("writing to a String cannot fail");
        };
        line(START_LOCATION, &self.start);
        if let Some(end) = end {
            line(STOP_LOCATION, &end.stop);
        }
        line(CHECKPOINT_LOCATION, &self.checkpoint);
        line(METHOD, &self.method);
        line(SOURCE, &self.source);
        line(START_TIME, &self.start_time);
        if let Some(label) = &self.label {
            line(LABEL, label);
        }
        if let Some(timeline) = self.start_timeline {
            line(START_TIMELINE, &timeline);
        }
        if let Some(end) = end {
            line(STOP_TIME, &end.time);
            line(STOP_TIMELINE, &end.timeline);
        }
        if let Some(base) = self.incremental_from {
            line(INCREMENTAL_LSN, &base.lsn);
            line(INCREMENTAL_TIMELINE, &base.timeline);
        }
        content
    }
}

/// What a backup history file says (`000000010000000000000003.00000028.backup` in pg_wal and the archive).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupHistory {
    /// What backup_label said.
    pub label: BackupLabel,
    /// Where and when the backup ended.
    pub end: BackupEnd,
}

/// Where and when a backup ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupEnd {
    /// Where: WAL is needed up to here, or the backup is not consistent.
    pub stop: Location,
    /// When, in the server's `log_timezone`: text for people.
    pub time: String,
    /// On which timeline.
    pub timeline: TimelineId,
}

impl BackupHistory {
    /// Reads the content of the file.
    ///
    /// # Errors
    /// As [`BackupLabel::parse`].
    pub fn parse(content: &[u8]) -> Result<Self, BackupLabelError> {
        let content = String::from_utf8_lossy(content);
        let lines = Lines::new(&content);
        let label = BackupLabel::from_lines(&lines)?;
        let end = BackupEnd {
            stop: lines.required(STOP_LOCATION)?,
            time: lines.required(STOP_TIME)?,
            timeline: lines.required(STOP_TIMELINE)?,
        };
        Ok(Self { label, end })
    }

    /// The content of the file, as the server writes it. Line ends in texts become blanks.
    pub fn render(&self) -> String {
        self.label.render_with(Some(&self.end))
    }
}

/// The lines of the form `KEY: value`, the first of each key.
struct Lines<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Lines<'a> {
    fn new(content: &'a str) -> Self {
        Self(
            content
                .split('\n')
                .filter_map(|line| line.split_once(": "))
                .collect(),
        )
    }

    fn optional<T: FromStr>(&self, key: &'static str) -> Result<Option<T>, BackupLabelError> {
        let Some((_, value)) = self.0.iter().find(|(found, _)| *found == key) else {
            return Ok(None);
        };
        match value.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(_) => Err(BackupLabelError::Line {
                line: key,
                value: shortened(value),
            }),
        }
    }

    fn required<T: FromStr>(&self, key: &'static str) -> Result<T, BackupLabelError> {
        self.optional(key)?.ok_or(BackupLabelError::Missing { line: key })
    }
}

/// A text that cannot stand in a line of a backup label. [`BackupLabelError::Line`] says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the text cannot stand in a backup label")]
pub struct Unreadable;

impl Diagnose for Unreadable {}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (file {})", self.lsn, self.file)
    }
}

impl FromStr for Location {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (lsn, rest) = text.split_once(" (file ").ok_or(Unreadable)?;
        let file = rest.strip_suffix(')').ok_or(Unreadable)?;
        Ok(Self {
            lsn: lsn.parse().map_err(|_| Unreadable)?,
            file: file.parse().map_err(|_| Unreadable)?,
        })
    }
}

impl fmt::Display for BackupMethod {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Streamed => "streamed",
            Self::PgRewind => "pg_rewind",
            Self::Other(method) => method,
        })
    }
}

impl FromStr for BackupMethod {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "streamed" => Ok(Self::Streamed),
            "pg_rewind" => Ok(Self::PgRewind),
            _ if text.is_empty() || text.contains(char::is_whitespace) => Err(Unreadable),
            _ => Ok(Self::Other(text.to_owned())),
        }
    }
}

impl fmt::Display for BackupSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        })
    }
}

impl FromStr for BackupSource {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "primary" => Ok(Self::Primary),
            "standby" => Ok(Self::Standby),
            _ => Err(Unreadable),
        }
    }
}

/// Why a backup_label or a backup history file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackupLabelError {
    /// A line that must be there is not.
    #[error("the backup label has no line {line:?}")]
    Missing {
        /// What stands before the colon.
        line: &'static str,
    },
    /// A line says something that cannot be.
    #[error("the backup label has {value:?} in the line {line:?}")]
    Line {
        /// What stands before the colon.
        line: &'static str,
        /// What stands after it, or the beginning of that.
        value: String,
    },
    /// Two lines name different timelines.
    #[error("the backup label contradicts itself: {one:?} and {other:?} name different timelines")]
    Contradiction {
        /// What stands before the colon in one.
        one: &'static str,
        /// What stands before the colon in the other.
        other: &'static str,
    },
}

impl Diagnose for BackupLabelError {
    fn hint(&self) -> Option<String> {
        Some(
            "take the file from the backup again, byte for byte as pg_backup_stop gave it; never remove it from a backup"
                .to_owned(),
        )
    }
}
