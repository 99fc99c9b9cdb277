//! Why a drill could not be held, or failed.

use std::io;
use std::path::{Path, PathBuf};

use pgmahout_postgres::binaries::BinaryError;
use pgmahout_postgres::throwaway::ThrowawayError;
use pgmahout_procedure::ProcedureError;
use pgmahout_types::diagnostic::{Diagnose, Outcome};

use crate::physical::restore::RestoreError;
use crate::physical::stanza::StanzaError;
use crate::physical::wal::WalError;

/// Why a drill could not be held, or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DrillError {
    /// The stanza could not be read or changed.
    #[error(transparent)]
    Stanza(#[from] StanzaError),
    /// There is nothing to restore.
    #[error("stanza {stanza} has no backup to restore")]
    NoBackup {
        /// The stanza.
        stanza: String,
    },
    /// The archive could not be listed.
    #[error("cannot see what the WAL archive holds")]
    Archive(#[source] WalError),
    /// No way to the target, or no room for it.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The backup could not be restored.
    #[error("the backup cannot be restored")]
    Procedure(#[source] ProcedureError),
    /// The scratch directory is too small.
    #[error(
        "a drill needs {needed} in {}, and {free} are free",
        path.display()
    )]
    NoRoom {
        /// The scratch directory.
        path: PathBuf,
        /// What is needed, for people.
        needed: String,
        /// What is there.
        free: String,
    },
    /// The server's programs are not here.
    #[error(transparent)]
    Program(#[from] BinaryError),
    /// The scratch directory cannot be had.
    #[error(transparent)]
    Scratch(#[from] ThrowawayError),
    /// A file of the restored server could not be written or read.
    #[error("cannot {action} {}", path.display())]
    File {
        /// `read`, `write`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The restored server did not come up.
    #[error("the restored server {what}; its log ends with:\n{log}")]
    Server {
        /// What happened.
        what: String,
        /// The end of its log.
        log: String,
    },
    /// None of the roles could connect.
    #[error("cannot connect to the restored server as {roles}")]
    Role {
        /// The roles that were tried.
        roles: String,
        /// Why the last one could not.
        #[source]
        source: pgmahout_postgres::connection::ConnectError,
    },
    /// It was interrupted.
    #[error("the drill was interrupted")]
    Cancelled,
}

impl DrillError {
    pub(super) fn file(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { action, path, source }
    }

    /// Whether the backup is to blame, and not the machine on which the drill was tried.
    pub fn is_the_backups_fault(&self) -> bool {
        match self {
            Self::Procedure(_) | Self::Server { .. } => true,
            Self::Restore(error) => !matches!(error, RestoreError::NoSpace { .. }),
            _ => false,
        }
    }
}

impl Diagnose for DrillError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Stanza(source) => return source.hint(),
            Self::NoBackup { .. } => "take one: pgmahout backup create".to_owned(),
            Self::Archive(source) => return source.hint(),
            Self::Restore(source) => return source.hint(),
            Self::Procedure(source) => return source.hint(),
            Self::NoRoom { .. } => "name a larger file system with --scratch DIRECTORY, or free some space".to_owned(),
            Self::Program(source) => return source.hint(),
            Self::Scratch(source) => return source.hint(),
            Self::File { .. } => "name another scratch directory with --scratch".to_owned(),
            Self::Server { .. } => {
                "run it again with --keep and look into the directory; the same would happen in earnest: take a new \
                 backup, and check the archive with pgmahout backup verify --full"
                    .to_owned()
            }
            Self::Role { .. } => "name a superuser of the cluster with --username".to_owned(),
            Self::Cancelled => return None,
        })
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Stanza(source) => source.outcome(),
            Self::NoBackup { .. } => Outcome::Usage,
            Self::Restore(source) => source.outcome(),
            Self::NoRoom { .. } => Outcome::Refused,
            Self::Program(source) => source.outcome(),
            Self::Cancelled => Outcome::Interrupted,
            _ => Outcome::Failed,
        }
    }
}
