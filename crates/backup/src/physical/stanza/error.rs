//! Why something could not be done with a repository of physical backups.

use std::path::PathBuf;

use pgmahout_store::StoreError;
use pgmahout_store::framed::FramedError;
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use pgmahout_types::repository::Label;
use pgmahout_types::repository::head::{HeadError, PublishError};
use pgmahout_types::repository::stanza_info::StanzaMismatch;

use super::memory::MemoryError;
use super::protocol::{Conflict, Stale};

/// Why a finished backup cannot be listed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Something that it is made of was condemned.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The head does not take it.
    #[error(transparent)]
    Head(#[from] PublishError),
}

impl Diagnose for Refusal {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Conflict(_) => Some(
                "run pgmahout backup create again; what is still there of this backup is used".to_owned(),
            ),
            Self::Head(source) => source.hint(),
        }
    }
}

/// Why something could not be done with a repository of physical backups.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StanzaError {
    /// The storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object is damaged, of another repository, or cannot be opened.
    #[error("cannot open {object} in repository {repository}")]
    Framed {
        /// The repository.
        repository: String,
        /// The object.
        object: String,
        /// Why.
        #[source]
        source: FramedError,
    },
    /// An object opens, but its content makes no sense to this program.
    #[error("cannot understand {object} in repository {repository}")]
    Format {
        /// The repository.
        repository: String,
        /// The object.
        object: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing was ever set up here.
    #[error("repository {repository} is not set up for physical backups")]
    NotInitialised {
        /// The repository.
        repository: String,
        /// The stanza that was wanted.
        stanza: String,
    },
    /// The repository has no such stanza.
    #[error("repository {repository} has no stanza {stanza}{}", known(.others))]
    NoSuchStanza {
        /// The repository.
        repository: String,
        /// The stanza.
        stanza: String,
        /// Those that it has.
        others: Vec<String>,
    },
    /// The stanza is there, but none of its heads.
    #[error("stanza {stanza} in repository {repository} has lost its head: nothing is under {stanza}/head")]
    HeadLost {
        /// The repository.
        repository: String,
        /// The stanza.
        stanza: String,
    },
    /// The server is not the one whose backups these are.
    #[error("repository {repository} holds the backups of another server under this name")]
    Mismatch {
        /// The repository.
        repository: String,
        /// Both, by system identifier and version.
        #[source]
        source: Box<StanzaMismatch>,
    },
    /// An upgraded cluster's WAL would have the names of the old one's.
    #[error(
        "stanza {stanza} in repository {repository} has backups or WAL of the cluster before the upgrade, and the upgraded one's WAL has the same names"
    )]
    Collides {
        /// The repository.
        repository: String,
        /// The stanza.
        stanza: String,
        /// The upgraded cluster's major version.
        major: u32,
    },
    /// The head is older than one that this host has seen.
    #[error(
        "repository {repository} was set back to an older state: the head of stanza {stanza} is number {found}, and this host has seen number {seen}"
    )]
    RolledBack {
        /// The repository.
        repository: String,
        /// The stanza.
        stanza: String,
        /// The newest that is there.
        found: u64,
        /// The newest that this host has seen.
        seen: u64,
        /// The file that remembers it.
        file: Option<PathBuf>,
    },
    /// What this host remembers of the repository cannot be changed.
    #[error("what this host remembers of the repository cannot be changed")]
    Memory(#[from] MemoryError),
    /// Two creates of one name can both succeed there.
    #[error("the storage of repository {repository} does not honour \"create only where nothing is\"")]
    NoConditionalPut {
        /// The repository.
        repository: String,
    },
    /// Others changed the head each time.
    #[error(
        "stanza {stanza} in repository {repository} is being changed by others: gave up after {attempts} attempts"
    )]
    Contended {
        /// The repository.
        repository: String,
        /// The stanza.
        stanza: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The answer to a change of the head was lost, and it cannot be found out.
    #[error("it is not known whether the head of stanza {stanza} in repository {repository} was changed")]
    OutcomeUnknown {
        /// The repository.
        repository: String,
        /// The stanza.
        stanza: String,
        /// What the storage said.
        #[source]
        source: Box<StoreError>,
    },
    /// This process slept for so long that the head which it wrote after had been removed meanwhile.
    #[error(
        "this process was stopped for so long that its change of stanza {stanza} in repository {repository} came too late"
    )]
    TooLate {
        /// The repository.
        repository: String,
        /// The stanza.
        stanza: String,
    },
    /// A finished backup cannot be listed.
    #[error("the backup {label} cannot be published in repository {repository}")]
    Refused {
        /// The repository.
        repository: String,
        /// The backup.
        label: Label,
        /// Why.
        #[source]
        source: Box<Refusal>,
    },
    /// The head does not take a change.
    #[error("the head cannot be changed so")]
    Head(#[source] Box<HeadError>),
    /// The head has changed since a plan was made.
    #[error("the plan does not hold any more")]
    Stale(#[from] Stale),
    /// There is no such backup.
    #[error("stanza {stanza} in repository {repository} has no backup {label}{}", known(.others))]
    NoSuchBackup {
        /// The repository.
        repository: String,
        /// The stanza.
        stanza: String,
        /// What was asked for.
        label: Label,
        /// The newest few that it has.
        others: Vec<String>,
    },
    /// The lease ran out, and what it protected may be gone.
    #[error(
        "the lease on stanza {stanza} in repository {repository} ran out: it could not be renewed for too long"
    )]
    LeaseLost {
        /// The repository.
        repository: String,
        /// The stanza.
        stanza: String,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    NoRandomness,
    /// The operation was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// `; it has a, b` for a few names.
fn known(names: &[String]) -> String {
    if names.is_empty() {
        String::new()
    } else {
        format!("; it has {}", names.join(", "))
    }
}

impl From<HeadError> for StanzaError {
    fn from(source: HeadError) -> Self {
        Self::Head(Box::new(source))
    }
}

impl StanzaError {
    /// Whether the same operation might succeed a little later, with nothing changed by a person.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(source) => source.is_retryable(),
            Self::Contended { .. } => true,
            _ => false,
        }
    }

    /// Whether an object was not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Store(source) if source.is_not_found())
    }
}

impl Diagnose for StanzaError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Store(source) => return source.hint(),
            Self::Framed { source, .. } => return source.hint(),
            Self::Format { .. } => {
                "if a newer pgmahout wrote it, use that; else look what is whole: pgmahout repo check".to_owned()
            }
            Self::NotInitialised { stanza, .. } => format!("set it up: pgmahout repo init --stanza {stanza}"),
            Self::NoSuchStanza { stanza, .. } => format!(
                "correct `stanza` in the configuration (or --stanza), or set it up: pgmahout repo init --stanza {stanza}"
            ),
            Self::HeadLost { .. } => {
                "bring the objects back from a copy of the repository; do not run repo init, which would forget the backups"
                    .to_owned()
            }
            Self::Mismatch { source, .. } => return source.hint(),
            Self::Collides { stanza, major, .. } => {
                let next = next_stanza(stanza, *major);
                format!(
                    "give the upgraded cluster a stanza of its own: write `stanza: {next}` into the configuration, then \
                     `pgmahout repo init` and `pgmahout backup create`; what is in {stanza} stays, and is listed, \
                     restored and expired with --stanza {stanza}"
                )
            }
            Self::RolledBack { .. } => {
                "find out who restored or replaced the storage: backups and WAL since then are missing there. To work with it as it is: pgmahout repo check --accept-rollback"
                    .to_owned()
            }
            Self::Memory(_) => "make the state directory writable, or run it as its owner".to_owned(),
            Self::NoConditionalPut { .. } => {
                "use another storage, or set `single_writer: true` in the repository's settings if one host alone writes there"
                    .to_owned()
            }
            Self::Contended { .. } => "run the command again".to_owned(),
            Self::OutcomeUnknown { .. } => {
                "see what became of it: pgmahout backup list; then run the command again".to_owned()
            }
            Self::TooLate { .. } => "see what is there: pgmahout backup list; then run the command again".to_owned(),
            Self::Refused { source, .. } => return source.hint(),
            Self::Head(source) => return source.hint(),
            Self::Stale(_) => "run the command again: it plans anew".to_owned(),
            Self::NoSuchBackup { .. } => "list what is there: pgmahout backup list".to_owned(),
            Self::LeaseLost { .. } => "check the connection to the repository, then run the command again".to_owned(),
            Self::NoRandomness => "check /dev/urandom".to_owned(),
            Self::Cancelled => return None,
        })
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Store(source) => source.outcome(),
            Self::Framed { source, .. } => source.outcome(),
            Self::Head(source) => source.outcome(),
            Self::NotInitialised { .. } | Self::NoSuchStanza { .. } | Self::NoSuchBackup { .. } => {
                Outcome::Usage
            }
            Self::Mismatch { .. }
            | Self::RolledBack { .. }
            | Self::Collides { .. }
            | Self::NoConditionalPut { .. }
            | Self::Stale(_) => Outcome::Refused,
            Self::Cancelled => Outcome::Interrupted,
            _ => Outcome::Failed,
        }
    }
}

/// A name for the stanza of a cluster after its upgrade: `main-18`; another version's number is replaced.
fn next_stanza(stanza: &str, major: u32) -> String {
    let base = match stanza.rsplit_once('-') {
        Some((base, number))
            if !base.is_empty() && number.parse::<u32>().is_ok_and(|number| number < major) =>
        {
            base
        }
        _ => stanza,
    };
    let room = super::StanzaName::LONGEST - 3;
    format!("{}-{major}", &base[..base.len().min(room)])
}
