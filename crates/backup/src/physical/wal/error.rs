//! What can go wrong with the WAL archive.

use std::io;
use std::path::PathBuf;

use pgmahout_durable::DurableError;
use pgmahout_store::StoreError;
use pgmahout_store::framed::FramedError;
use pgmahout_types::control::ControlFileError;
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use pgmahout_types::history::HistoryError;
use pgmahout_types::wal::{SegmentSize, WalNameError};
use pgmahout_types::{SystemIdentifier, WalFileName};

use crate::physical::stanza::StanzaError;

/// Why a file of the WAL archive could not be stored, found or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// The repository's storage, its stanza, its head.
    #[error(transparent)]
    Stanza(#[from] StanzaError),
    /// A name that no WAL file has.
    #[error(transparent)]
    Name(#[from] WalNameError),
    /// A path without a file name, or one that is not UTF-8.
    #[error("{} does not name a WAL file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The content is not what the name says.
    #[error("{name} is not a WAL file that can be archived")]
    Content {
        /// The file's name.
        name: WalFileName,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
        /// What to do.
        hint: Option<String>,
    },
    /// The file is not as long as a segment.
    #[error("{name} has {found} bytes, but a WAL segment of this cluster has {}", expected.bytes())]
    Size {
        /// The file's name.
        name: WalFileName,
        /// Its bytes.
        found: u64,
        /// What it should have.
        expected: SegmentSize,
    },
    /// Another cluster's WAL.
    #[error(
        "{name} was written by cluster {found}, but stanza {stanza} in repository {repository} belongs to cluster {expected}"
    )]
    OtherCluster {
        /// The file's name.
        name: WalFileName,
        /// Who wrote it.
        found: SystemIdentifier,
        /// The stanza.
        stanza: String,
        /// The repository.
        repository: String,
        /// Whose the stanza is.
        expected: SystemIdentifier,
    },
    /// WAL of another major version.
    #[error(
        "{name} was written by PostgreSQL {found}, but stanza {stanza} in repository {repository} belongs to PostgreSQL {expected}"
    )]
    OtherVersion {
        /// The file's name.
        name: WalFileName,
        /// The version that wrote it.
        found: u32,
        /// The stanza.
        stanza: String,
        /// The repository.
        repository: String,
        /// The stanza's version.
        expected: u32,
    },
    /// Files without a system identifier need the server's pg_control beside them.
    #[error("it cannot be told which cluster wrote {name}: {} cannot be used", path.display())]
    Owner {
        /// The file's name.
        name: WalFileName,
        /// The pg_control that was looked for.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The archive holds other content under this name.
    #[error("repository {repository} holds another {name} already: its content differs from this one's")]
    Conflict {
        /// The repository.
        repository: String,
        /// The file's name.
        name: WalFileName,
    },
    /// An archived file is not as it was written.
    #[error("the archived {name} in repository {repository} is damaged")]
    Damaged {
        /// The repository.
        repository: String,
        /// The file's name.
        name: WalFileName,
        /// How.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An archived file cannot be made or opened, though it is not damaged.
    #[error("cannot use the archived {name} in repository {repository}")]
    Framed {
        /// The repository.
        repository: String,
        /// The file's name.
        name: WalFileName,
        /// Why.
        #[source]
        source: FramedError,
    },
    /// Replay would write into a directory that a running server uses.
    #[error(
        "{name} makes tablespace {oid} in {}, which the server that runs on {} uses: recovery would overwrite its files",
        location.display(),
        server.display()
    )]
    TablespaceInUse {
        /// The segment.
        name: WalFileName,
        /// The tablespace.
        oid: u32,
        /// Where it lies.
        location: PathBuf,
        /// The data directory of the server.
        server: PathBuf,
    },
    /// The file is not in the archive.
    #[error("{name} is not in the archive: {places}")]
    Absent {
        /// The file's name.
        name: WalFileName,
        /// Where it was looked for.
        places: String,
    },
    /// A segment was in the archive and is no more: recovery cannot go on without it, and must not end before it.
    #[error("{name} was in repository {repository} and has been removed by retention")]
    Collected {
        /// The file's name.
        name: WalFileName,
        /// The repository.
        repository: String,
    },
    /// Too few repositories took a file.
    #[error("{name} is in {held} of the {needed} repositories that must hold it")]
    TooFew {
        /// The file's name.
        name: WalFileName,
        /// How many have it.
        held: usize,
        /// How many must.
        needed: usize,
        /// The first of those that failed.
        #[source]
        source: Box<WalError>,
    },
    /// More repositories are demanded than there are.
    #[error("wal.min_repositories is {needed}, but {configured} repositories are configured")]
    Minimum {
        /// How many must hold each segment.
        needed: usize,
        /// How many there are.
        configured: usize,
    },
    /// A repository did not answer in the time that there is.
    #[error("repository {repository} did not answer for {name} within {seconds} s")]
    Slow {
        /// The repository.
        repository: String,
        /// The file's name.
        name: WalFileName,
        /// The time that there was.
        seconds: u64,
    },
    /// A repository could not be opened.
    #[error("repository {repository} cannot be used: {problem}")]
    Unopened {
        /// The repository.
        repository: String,
        /// Why, in one line.
        problem: String,
        /// What to do.
        hint: Option<String>,
        /// What that means.
        outcome: Outcome,
    },
    /// A local file could not be read or written.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// The verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A local file could not be written durably.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// A signal ended it.
    #[error("interrupted")]
    Cancelled,
}

impl WalError {
    /// Whether the same might succeed a little later, with nothing changed by a person.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Stanza(StanzaError::Store(error)) => error.is_retryable(),
            Self::Slow { .. } => true,
            Self::TooFew { source, .. } => source.is_retryable(),
            _ => false,
        }
    }

    /// Whether it says that the archive and the file contradict each other, which no retry and no other
    /// repository heals.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Conflict { .. }
                | Self::OtherCluster { .. }
                | Self::OtherVersion { .. }
                | Self::Content { .. }
                | Self::Size { .. }
        )
    }

    pub(super) fn content(name: WalFileName, source: impl Diagnose) -> Self {
        Self::Content {
            name,
            hint: source.hint(),
            source: Box::new(source),
        }
    }
}

impl From<StoreError> for WalError {
    fn from(error: StoreError) -> Self {
        Self::Stanza(error.into())
    }
}

impl Diagnose for WalError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Stanza(error) => return error.hint(),
            Self::Name(error) => return error.hint(),
            Self::Durable(error) => return error.hint(),
            Self::Framed { source, .. } => return source.hint(),
            Self::TooFew { source, .. } => return source.hint(),
            Self::Content { hint, .. } | Self::Unopened { hint, .. } => return hint.clone(),
            Self::NotAFile { .. } => {
                "give the path that PostgreSQL puts in place of %p: archive_command = 'pgmahout wal push %p'"
            }
            Self::Size { .. } => {
                "a segment that is being written or was cut off cannot be archived; let PostgreSQL itself call `pgmahout wal push`"
            }
            Self::OtherCluster { stanza, .. } => {
                return Some(format!(
                    "each cluster needs a stanza of its own: `pgmahout repo init --stanza NAME`, and NAME as `stanza:` in the configuration that this server's archive_command uses; {stanza} is taken"
                ));
            }
            Self::OtherVersion { stanza, .. } => {
                return Some(format!(
                    "after a major upgrade give the new cluster a stanza of its own: `stanza: NAME` in the configuration that archive_command uses, then `pgmahout repo init`; {stanza} keeps what is from before"
                ));
            }
            Self::Owner { .. } => "let PostgreSQL call `pgmahout wal push pg_wal/FILE` in its data directory",
            Self::Conflict { name, .. } => {
                return Some(format!(
                    "two servers archive into this stanza, or this one was restored and goes on with an old timeline: find the other one, give each its own stanza, or promote to a new timeline; compare with `pgmahout wal list`. Nothing was overwritten: {name} stays as it was"
                ));
            }
            Self::Damaged { .. } => {
                "fetch it from another repository, or take a new backup; `pgmahout wal verify` looks for more"
            }
            Self::TablespaceInUse { .. } => {
                "take a new backup, which has the tablespace, and restore that with --tablespace; or recover to before it \
                 was made, on another machine, or while that server is stopped"
            }
            Self::Collected { .. } => {
                "restore again from a backup that `pgmahout backup list` shows, and let recovery end before the next \
                 `pgmahout backup expire`"
            }
            Self::Absent { .. } => "`pgmahout wal list` shows what there is",
            Self::Minimum { .. } => {
                "lower wal.min_repositories, or configure the repositories that are missing"
            }
            Self::Slow { .. } => "look at the network and the storage; `wal.timeout` says how long to wait",
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "relative paths are taken from the current directory, which PostgreSQL sets to its data directory"
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run it as the user that PostgreSQL runs as"
            }
            Self::Io { .. } => "look at the file system: space, mounts, the kernel's log",
            Self::Cancelled => return None,
        };
        Some(text.to_owned())
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Stanza(error) => error.outcome(),
            Self::Name(error) => error.outcome(),
            Self::Durable(error) => error.outcome(),
            Self::Framed { source, .. } => source.outcome(),
            Self::TooFew { source, .. } => source.outcome(),
            Self::Unopened { outcome, .. } => *outcome,
            Self::NotAFile { .. } | Self::Minimum { .. } => Outcome::Usage,
            Self::OtherCluster { .. }
            | Self::OtherVersion { .. }
            | Self::Conflict { .. }
            | Self::TablespaceInUse { .. } => Outcome::Refused,
            Self::Cancelled => Outcome::Interrupted,
            _ => Outcome::Failed,
        }
    }
}

/// Why an archived file is not what it should be, beyond what its frames say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ObjectProblem {
    /// No header before the content.
    #[error("it has no header")]
    NoHeader,
    /// The header is another file's.
    #[error("its header is of another file")]
    OtherName,
    /// The content is not as long as the header says.
    #[error("its content is not as long as its header says")]
    OtherSize,
    /// The content has another digest than the header says.
    #[error("its content does not match its digest")]
    OtherDigest,
}

/// Why a file that PostgreSQL wrote is not what its name says.
#[derive(Debug, thiserror::Error)]
pub(super) enum TextProblem {
    /// Empty or far too long.
    #[error("it has {0} bytes")]
    Length(u64),
    /// Not a history.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// Not a backup history.
    #[error("it does not begin as a backup history file does")]
    NoBackup,
}

impl Diagnose for TextProblem {
    fn hint(&self) -> Option<String> {
        Some("let PostgreSQL itself call `pgmahout wal push`; it writes these files".to_owned())
    }
}

impl From<(WalFileName, PathBuf, ControlFileError)> for WalError {
    fn from((name, path, source): (WalFileName, PathBuf, ControlFileError)) -> Self {
        Self::Owner {
            name,
            path,
            source: Box::new(source),
        }
    }
}
