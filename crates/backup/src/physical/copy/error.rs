//! Why something was not copied.

use pgmahout_store::StoreError;
use pgmahout_store::framed::FramedError;
use pgmahout_types::SegmentName;
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use pgmahout_types::repository::Label;

use crate::physical::create::CreateError;
use crate::physical::expire::ExpireError;
use crate::physical::stanza::StanzaError;
use crate::physical::verify::VerifyError;
use crate::physical::wal::WalError;

/// Why something was not copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// One of the two stanzas could not be read or changed.
    #[error(transparent)]
    Stanza(#[from] StanzaError),
    /// A storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A WAL archive failed.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// A page map could not be read.
    #[error(transparent)]
    Map(#[from] CreateError),
    /// A repository could not be looked through.
    #[error(transparent)]
    Look(#[from] ExpireError),
    /// What was copied could not be read back.
    #[error("what was copied cannot be read back")]
    Verify(#[from] VerifyError),
    /// Both names mean one repository.
    #[error("{from} and {to} are one repository")]
    SameRepository {
        /// Where from.
        from: String,
        /// Where to.
        to: String,
    },
    /// Something of a backup is not as it was written.
    #[error("{object} in repository {repository} is damaged: {problem}")]
    Damaged {
        /// Where it was to be copied from.
        repository: String,
        /// What.
        object: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A backup's WAL is not in the archive.
    #[error("the WAL segment {segment} that the backup {label} needs is not in repository {repository}")]
    WalMissing {
        /// The repository.
        repository: String,
        /// The backup.
        label: Label,
        /// The first segment that is missing.
        segment: SegmentName,
    },
    /// A backup's WAL was removed from the target by its retention.
    #[error(
        "the backup {label} is older than what repository {repository} keeps: the WAL that it needs was removed there"
    )]
    TooOld {
        /// The repository.
        repository: String,
        /// The backup.
        label: Label,
    },
    /// The target does not take a finished copy.
    #[error("the copy of {label} cannot be published")]
    Refused {
        /// The backup.
        label: Label,
        /// Why.
        #[source]
        source: Box<StanzaError>,
    },
    /// Something could not be sealed or opened.
    #[error("cannot seal or open {object}")]
    Framed {
        /// The object.
        object: String,
        /// Why.
        #[source]
        source: FramedError,
    },
    /// A thread of ours failed.
    #[error("a thread that copies has failed")]
    Thread,
    /// A signal or the user stopped it.
    #[error("interrupted; what was copied until now is used by the next run")]
    Interrupted,
}

impl CopyError {
    /// What happened and why, in one line.
    pub fn in_one_line(&self) -> String {
        crate::dump::error::Problem::of(self).what
    }

    /// Whether another backup may still be copied after this.
    pub(super) fn concerns_one_backup(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::WalMissing { .. } | Self::TooOld { .. } => true,
            Self::Wal(error) => matches!(error, WalError::Damaged { .. }),
            _ => false,
        }
    }
}

impl Diagnose for CopyError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Stanza(source) => return source.hint(),
            Self::Store(source) => return source.hint(),
            Self::Wal(source) => return source.hint(),
            Self::Map(source) => return source.hint(),
            Self::Look(source) => return source.hint(),
            Self::Verify(source) => return source.hint(),
            Self::SameRepository { .. } => "name two repositories of the configuration".to_owned(),
            Self::Damaged { .. } => {
                "see what it hits: pgmahout backup verify; copy another backup, or take a new one".to_owned()
            }
            Self::WalMissing { .. } => "see what is there: pgmahout wal list; copy another backup".to_owned(),
            Self::TooOld { .. } => {
                "copy it into a repository of its own, without a retention that removes it".to_owned()
            }
            Self::Refused { .. } | Self::Interrupted => {
                "run the command again: what is there already is not copied again".to_owned()
            }
            Self::Framed { source, .. } => return source.hint(),
            Self::Thread => "run the command again".to_owned(),
        })
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Stanza(source) => source.outcome(),
            Self::Store(source) => source.outcome(),
            Self::Wal(source) => source.outcome(),
            Self::Map(source) => source.outcome(),
            Self::Look(source) => source.outcome(),
            Self::Verify(source) => source.outcome(),
            Self::SameRepository { .. } => Outcome::Usage,
            Self::Framed { source, .. } => source.outcome(),
            Self::Interrupted => Outcome::Interrupted,
            _ => Outcome::Failed,
        }
    }
}
