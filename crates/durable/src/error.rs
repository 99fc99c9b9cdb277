//! What can go wrong while writing durably.

use std::io;
use std::path::{Path, PathBuf};

use pgmahout_types::diagnostic::{Diagnose, Outcome};
use rustix::io::Errno;

/// Why a durable write did not happen.
///
/// The causes that a person mends in different ways are variants of their own; the rest is
/// [`DurableError::Io`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DurableError {
    /// The target exists and may not be replaced.
    #[error("{} exists already", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The file or a directory above it does not exist.
    #[error("cannot {action} {}: no such file or directory", path.display())]
    NotFound {
        /// What was tried, as a verb: `create`, `write`.
        action: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The process may not do that there.
    #[error("cannot {action} {}: permission denied", path.display())]
    PermissionDenied {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The file system is full, or the quota used up.
    #[error("cannot {action} {}: no space left on its file system", path.display())]
    NoSpace {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The file system is mounted read-only.
    #[error("cannot {action} {}: its file system is read-only", path.display())]
    ReadOnly {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The file system can neither rename without replacing nor make hard links, so that nothing can be
    /// created there without a risk of overwriting somebody else's file.
    #[error("cannot create {} safely: its file system has neither RENAME_NOREPLACE nor hard links", path.display())]
    NoExclusiveCreate {
        /// The target.
        path: PathBuf,
    },
    /// Everything else.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl DurableError {
    /// Sorts an IO error by its cause. `action` is a verb that fits `cannot {action} {path}`.
    pub fn from_io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::NoSpace { action, path },
            Some(Errno::ACCESS | Errno::PERM) => Self::PermissionDenied { action, path },
            Some(Errno::ROFS) => Self::ReadOnly { action, path },
            Some(Errno::NOENT) => Self::NotFound { action, path },
            _ => Self::Io { action, path, source },
        }
    }

    /// The file or directory that the error is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Exists { path }
            | Self::NotFound { path, .. }
            | Self::PermissionDenied { path, .. }
            | Self::NoSpace { path, .. }
            | Self::ReadOnly { path, .. }
            | Self::NoExclusiveCreate { path }
            | Self::Io { path, .. } => path,
        }
    }
}

/// The nearest directory above `path`, `.` for a bare name.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

impl Diagnose for DurableError {
    fn hint(&self) -> Option<String> {
        let parent = parent_of(self.path()).display();
        Some(match self {
            Self::Exists { path } => {
                format!(
                    "choose another name, or move {} away, or pass --force to overwrite it",
                    path.display()
                )
            }
            Self::NotFound { .. } => format!("create the directory: mkdir -p {parent}"),
            Self::PermissionDenied { .. } => {
                format!("see who may write there: ls -ld {parent}; id")
            }
            Self::NoSpace { .. } => format!("see what fills it: df -h {parent}; df -i {parent}"),
            Self::ReadOnly { .. } => format!("see how it is mounted: findmnt -T {parent}"),
            Self::NoExclusiveCreate { .. } => "choose a directory on a local file system".to_owned(),
            Self::Io { .. } => {
                format!("look at the kernel's log for this file system: dmesg; findmnt -T {parent}")
            }
        })
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Exists { .. } => Outcome::Refused,
            _ => Outcome::Failed,
        }
    }
}
