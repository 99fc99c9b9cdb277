//! Why a data directory could not be listed.

use std::io;
use std::path::PathBuf;

use pgmahout_types::diagnostic::{Diagnose, Outcome};

/// Why a data directory could not be listed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError {
    /// There is no such directory.
    #[error("{} is no data directory", .path.display())]
    NotADataDirectory {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something in it cannot be read by this user.
    #[error("cannot {action} {}", .path.display())]
    Permission {
        /// The verb phrase: `list`, `look at`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something in it cannot be read.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// The verb phrase: `list`, `look at`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It was stopped.
    #[error("listing the data directory was interrupted")]
    Cancelled,
}

impl WalkError {
    pub(super) fn new(action: &'static str, path: PathBuf, error: rustix::io::Errno) -> Self {
        let source = io::Error::from(error);
        if source.kind() == io::ErrorKind::PermissionDenied {
            Self::Permission { action, path, source }
        } else {
            Self::Io { action, path, source }
        }
    }
}

impl Diagnose for WalkError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotADataDirectory { .. } => Some(
                "give the server's data directory with --data-dir; SHOW data_directory says where it is".to_owned(),
            ),
            Self::Permission { .. } => Some(
                "run it as the user that owns the data directory, or as a member of its group where the cluster was made with initdb --allow-group-access"
                    .to_owned(),
            ),
            Self::Io { .. } => Some("look for errors of the disk in the kernel's log: dmesg".to_owned()),
            Self::Cancelled => None,
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::NotADataDirectory { .. } => Outcome::Usage,
            Self::Permission { .. } | Self::Io { .. } => Outcome::Failed,
            Self::Cancelled => Outcome::Interrupted,
        }
    }
}
