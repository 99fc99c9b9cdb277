//! Why a schedule was not installed or removed.

use std::io;
use std::path::PathBuf;

use pgmahout_durable::DurableError;
use pgmahout_types::diagnostic::{Diagnose, Outcome};

/// Why a schedule was not installed or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// A unit of that name is somebody else's.
    #[error("{} was not written by pgmahout", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Something could not be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A unit could not be written or removed.
    #[error(transparent)]
    Write(#[from] DurableError),
    /// The server's files belong to root.
    #[error("{} belongs to root, as which no server runs", .data_dir.display())]
    Root {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// A path or an account cannot stand in a unit.
    #[error("`{text}` cannot stand in a unit of systemd")]
    Text {
        /// What.
        text: String,
    },
    /// systemctl could not be run.
    #[error("cannot run systemctl {arguments}")]
    Run {
        /// What it was told.
        arguments: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// systemctl failed.
    #[error("systemctl {arguments} failed: {message}")]
    Systemctl {
        /// What it was told.
        arguments: String,
        /// What it said.
        message: String,
    },
}

impl Diagnose for ScheduleError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Foreign { .. } => "move it away, then run the command again".to_owned(),
            Self::Read { .. } => "run it as root, on the server's own machine".to_owned(),
            Self::Write(source) => {
                return Some(match source.hint() {
                    Some(hint) => hint,
                    None => "run it as root, or write the units elsewhere with --directory".to_owned(),
                });
            }
            Self::Root { .. } => "name the account of the server with --user".to_owned(),
            Self::Text { .. } => "use another path or account, without control characters".to_owned(),
            Self::Run { .. } | Self::Systemctl { .. } => {
                "the units are written; see what systemd says: systemctl status 'pgmahout-backup-*'"
                    .to_owned()
            }
        })
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Foreign { .. } => Outcome::Refused,
            Self::Root { .. } | Self::Text { .. } => Outcome::Usage,
            Self::Write(source) => source.outcome(),
            _ => Outcome::Failed,
        }
    }
}
