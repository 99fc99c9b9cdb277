//! Why a head cannot be read or changed.

use super::super::condemned::CondemnedId;
use super::super::ids::Label;
use super::FORMAT;
use crate::diagnostic::{Diagnose, Outcome};
use crate::wal::SegmentName;

/// Why a head cannot be read, or does not take a change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// It is not what it should be.
    #[error("the list of backups cannot be understood")]
    Json(#[source] serde_json::Error),
    /// It was written by a newer pgmahout.
    #[error("the list of backups has format version {format}, newest known is {FORMAT}")]
    Format {
        /// The version.
        format: u32,
    },
    /// It contradicts itself.
    #[error("the list of backups is damaged: {problem}")]
    Inconsistent {
        /// What is wrong.
        problem: &'static str,
    },
    /// There is no such backup.
    #[error("there is no backup {label}")]
    NoBackup {
        /// The name.
        label: Label,
    },
    /// A pinned backup was to be removed.
    #[error("backup {label} is pinned")]
    Pinned {
        /// The name.
        label: Label,
    },
    /// Objects were to be condemned without regard to a backup.
    #[error("backup {label} was published while unused objects were looked for")]
    Unexamined {
        /// Its name.
        label: Label,
    },
    /// WAL was to be given up that a backup needs.
    #[error("backup {label} needs the WAL from {first} on")]
    WalNeeded {
        /// Its name.
        label: Label,
        /// The first segment that it needs.
        first: SegmentName,
    },
    /// There is no such condemned list.
    #[error("there is no condemned list {list}")]
    NoList {
        /// Its name.
        list: CondemnedId,
    },
    /// A condemned list of that name was there before.
    #[error("the condemned list {list} exists")]
    ListExists {
        /// Its name.
        list: CondemnedId,
    },
}

impl Diagnose for HeadError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Json(_) | Self::Inconsistent { .. } => {
                "`pgmahout repo check` says whether the repository is sound; the heads before it are kept under head/"
                    .to_owned()
            }
            Self::Format { .. } => "a newer pgmahout wrote it: upgrade this one".to_owned(),
            Self::NoBackup { .. } => "`pgmahout backup list` shows the backups there are".to_owned(),
            Self::Pinned { label } => {
                format!("`pgmahout backup annotate {label} --unpin` lets it be removed")
            }
            Self::Unexamined { .. } | Self::NoList { .. } | Self::ListExists { .. } => {
                "somebody else changed the repository meanwhile: run `pgmahout backup expire` again".to_owned()
            }
            Self::WalNeeded { label, .. } => {
                format!("`pgmahout backup show {label}` shows what it needs; nothing was deleted")
            }
        })
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Pinned { .. } | Self::WalNeeded { .. } => Outcome::Refused,
            _ => Outcome::Failed,
        }
    }
}

/// Why a backup is not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Lists that were condemned since must be read first. No fault: read them and try again.
    #[error("{} lists of condemned objects are still to be compared with backup {label}", lists.len())]
    Unchecked {
        /// The backup.
        label: Label,
        /// The lists.
        lists: Vec<CondemnedId>,
    },
    /// So much was collected since the backup began that it cannot be said what.
    #[error(
        "backup {label} began at epoch {epoch} of the repository, and what was deleted before epoch {forgotten} is forgotten"
    )]
    TooOld {
        /// The backup.
        label: Label,
        /// The epoch that it began with.
        epoch: u64,
        /// The oldest epoch that is remembered.
        forgotten: u64,
    },
    /// The epoch that the backup noted is not of this repository.
    #[error(
        "backup {label} began at epoch {epoch}, but the repository is at epoch {current}: it was rolled back"
    )]
    FromTheFuture {
        /// The backup.
        label: Label,
        /// The epoch that it began with.
        epoch: u64,
        /// The epoch of the head.
        current: u64,
    },
    /// The WAL that it needs was collected.
    #[error("backup {label} needs the WAL from {first} on, but the archive begins with {floor}")]
    WalGone {
        /// The backup.
        label: Label,
        /// The first segment that it needs.
        first: SegmentName,
        /// The first that is kept.
        floor: SegmentName,
    },
    /// Another backup has its name.
    #[error("another backup is called {label}")]
    LabelTaken {
        /// The name.
        label: Label,
    },
}

impl Diagnose for PublishError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::FromTheFuture { .. } => {
                "somebody put an older copy of the repository in place: find out who, then take a new backup"
                    .to_owned()
            }
            _ => "run `pgmahout backup create` again; what was uploaded and still exists is used".to_owned(),
        })
    }
}
