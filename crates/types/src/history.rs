//! Timeline history files: which timelines a timeline came from, and where it left each.
//!
//! A file `00000003.history` lists the ancestors of timeline 3, the oldest first, each with the position at
//! which its successor branched off and a reason for people (`src/backend/access/transam/timeline.c`).
//! Timeline 1 has no file, and one that came from nowhere else has none either: [`TimelineHistory::root`].
//!
//! Positions need not rise from line to line. A recovery that aims at timeline 2 but stops before the
//! branch to it writes 2 as its parent all the same. Questions are answered as the server answers them, by
//! looking from the newest timeline to the oldest.

use std::fmt::Write as _;

use crate::diagnostic::Diagnose;
use crate::lsn::{Lsn, shortened};
use crate::timeline::TimelineId;

#[cfg(test)]
mod tests;

/// A timeline and all that it descends from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: TimelineId,
    ancestors: Vec<Ancestor>,
}

/// One line of a history file: a timeline, and where its successor in the history left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// The timeline.
    pub timeline: TimelineId,
    /// The position at which the next one branched off: its first byte that is not on this timeline.
    pub switchpoint: Lsn,
    /// Why, for people. Bytes that are not UTF-8 have been replaced.
    pub reason: String,
}

/// The last position that two histories have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForkPoint {
    /// The last timeline that is in both.
    pub timeline: TimelineId,
    /// Where the first of the two left it; `None` where neither did, because both are on it.
    pub lsn: Option<Lsn>,
}

impl TimelineHistory {
    /// A timeline without ancestors.
    pub fn root(timeline: TimelineId) -> Self {
        Self {
            timeline,
            ancestors: Vec::new(),
        }
    }

    /// Reads the content of the history file of `timeline`.
    ///
    /// Empty lines and lines that begin with `#` mean nothing.
    ///
    /// # Errors
    /// Where the server would refuse it: a line without timeline or position, timelines that do not rise,
    /// an ancestor that is not older than `timeline`. A position of zero is refused too.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<Self, HistoryError> {
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (index, line) in content.split(|&byte| byte == b'\n').enumerate() {
            let text = String::from_utf8_lossy(line);
            let text = text.trim_start();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let ancestor = Ancestor::parse(text).ok_or_else(|| HistoryError::Line {
                line: index + 1,
                text: shortened(text.trim_end()),
            })?;
            if ancestors
                .last()
                .is_some_and(|previous| previous.timeline >= ancestor.timeline)
            {
                return Err(HistoryError::Order {
                    line: index + 1,
                    timeline: ancestor.timeline,
                });
            }
            if ancestor.timeline >= timeline {
                return Err(HistoryError::NotOlder {
                    ancestor: ancestor.timeline,
                    timeline,
                });
            }
            ancestors.push(ancestor);
        }
        Ok(Self { timeline, ancestors })
    }

    /// The content of the file in the server's form: an empty line stands between two timelines
    /// (`writeTimeLineHistory`). Empty for a timeline without ancestors, which has no file.
    ///
    /// The same bytes as the server's for promotions. After a recovery target the server's reason ends with
    /// a line end of its own, which is not kept.
    pub fn render(&self) -> String {
        let mut content = String::new();
        for ancestor in &self.ancestors {
            if !content.is_empty() {
                content.push('\n');
            }
            let Ancestor {
                timeline,
                switchpoint,
                reason,
            } = ancestor;
            writeln!(content, "{timeline}\t{switchpoint}\t{reason}")
                .expect("writing to a String cannot fail");
        }
        content
    }

    /// The history of a timeline that branches off this one.
    ///
    /// # Errors
    /// When the new number is not greater, or the position is zero.
    pub fn branch(&self, timeline: TimelineId, switchpoint: Lsn, reason: &str) -> Result<Self, HistoryError> {
        if timeline <= self.timeline {
            return Err(HistoryError::NotOlder {
                ancestor: self.timeline,
                timeline,
            });
        }
        if !switchpoint.is_valid() {
            return Err(HistoryError::NoSwitchpoint { timeline });
        }
        let reason = reason.replace(['\n', '\r'], " ").trim().to_owned();
        let mut ancestors = self.ancestors.clone();
        ancestors.push(Ancestor {
            timeline: self.timeline,
            switchpoint,
            reason,
        });
        Ok(Self { timeline, ancestors })
    }

    /// The timeline whose history this is.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// What it descends from, the oldest first.
    pub fn ancestors(&self) -> &[Ancestor] {
        &self.ancestors
    }

    /// The timeline that it branched off, and where; `None` for one without ancestors.
    pub fn parent(&self) -> Option<&Ancestor> {
        self.ancestors.last()
    }

    /// Whether `timeline` is this one or an ancestor of it.
    pub fn contains(&self, timeline: TimelineId) -> bool {
        timeline == self.timeline
            || self
                .ancestors
                .iter()
                .any(|ancestor| ancestor.timeline == timeline)
    }

    /// The timeline that the byte at `lsn` is on, to somebody who follows this history (`tliOfPointInHistory`).
    ///
    /// For positions that nobody has written yet it is [`TimelineHistory::timeline`].
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        let mut newer = self.timeline;
        for ancestor in self.ancestors.iter().rev() {
            if ancestor.switchpoint <= lsn {
                return newer;
            }
            newer = ancestor.timeline;
        }
        newer
    }

    /// Where this history left `timeline`: the first position that is no longer on it. `None` for its own
    /// timeline, which it has not left, and for one that it does not contain.
    ///
    /// Where positions do not rise from line to line, the smallest one from `timeline` on counts: past it,
    /// this history is on another timeline already.
    pub fn left(&self, timeline: TimelineId) -> Option<Lsn> {
        let from = self
            .ancestors
            .iter()
            .position(|ancestor| ancestor.timeline == timeline)?;
        self.ancestors[from..]
            .iter()
            .map(|ancestor| ancestor.switchpoint)
            .min()
    }

    /// Whether somebody who has the WAL of `ancestor` up to `lsn`, and none after it, has nothing that is
    /// not in this history too: then a standby at that position can follow this timeline as it is, and else
    /// it has diverged and needs pg_rewind or a new copy.
    pub fn descends_from(&self, ancestor: TimelineId, lsn: Lsn) -> bool {
        ancestor == self.timeline || self.left(ancestor).is_some_and(|left| lsn <= left)
    }

    /// The last position that this history and `other` have in common, as pg_rewind finds it
    /// (`findCommonAncestorTimeline` in `src/bin/pg_rewind/pg_rewind.c`); `None` where they have nothing in
    /// common.
    pub fn fork_point(&self, other: &Self) -> Option<ForkPoint> {
        let mut last_common = None;
        for (ours, theirs) in self.stretches().zip(other.stretches()) {
            if (ours.timeline, ours.begin) != (theirs.timeline, theirs.begin) {
                break;
            }
            let lsn = match (ours.end, theirs.end) {
                (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
                (one, another) => one.or(another),
            };
            last_common = Some(ForkPoint {
                timeline: ours.timeline,
                lsn,
            });
        }
        last_common
    }

    /// The timelines with where each begins and ends, the oldest first.
    fn stretches(&self) -> impl Iterator<Item = Stretch> {
        let begins =
            std::iter::once(None).chain(self.ancestors.iter().map(|ancestor| Some(ancestor.switchpoint)));
        let timelines = self
            .ancestors
            .iter()
            .map(|ancestor| (ancestor.timeline, Some(ancestor.switchpoint)));
        let timelines = timelines.chain(std::iter::once((self.timeline, None)));
        begins
            .zip(timelines)
            .map(|(begin, (timeline, end))| Stretch { timeline, begin, end })
    }
}

/// A part of a history that is on one timeline.
struct Stretch {
    timeline: TimelineId,
    begin: Option<Lsn>,
    end: Option<Lsn>,
}

impl Ancestor {
    /// One line, without blanks before it.
    fn parse(line: &str) -> Option<Self> {
        let (timeline, rest) = line.split_once(char::is_whitespace)?;
        let rest = rest.trim_start();
        let (switchpoint, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let switchpoint: Lsn = switchpoint.parse().ok()?;
        Some(Self {
            timeline: timeline.parse().ok()?,
            switchpoint: switchpoint.valid()?,
            reason: reason.trim().to_owned(),
        })
    }
}

/// Why a timeline history cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// A line that is not a timeline and a position.
    #[error("line {line} of the timeline history has no timeline and WAL position: {text:?}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// The line, or its beginning.
        text: String,
    },
    /// Timelines do not rise.
    #[error("line {line} of the timeline history has timeline {timeline} after one that is not older")]
    Order {
        /// Its number, from 1.
        line: usize,
        /// The timeline.
        timeline: TimelineId,
    },
    /// A timeline cannot descend from one with the same or a greater number.
    #[error("timeline {timeline} cannot descend from timeline {ancestor}")]
    NotOlder {
        /// The timeline that is named as an ancestor.
        ancestor: TimelineId,
        /// The timeline whose history it is.
        timeline: TimelineId,
    },
    /// A timeline cannot branch off at position zero.
    #[error("timeline {timeline} cannot begin at WAL position 0/0")]
    NoSwitchpoint {
        /// The timeline.
        timeline: TimelineId,
    },
}

impl Diagnose for HistoryError {
    fn hint(&self) -> Option<String> {
        Some(
            "fetch the .history file again from the archive or from pg_wal of the primary; do not edit it by hand"
                .to_owned(),
        )
    }
}
