//! `postgresql.conf` and `postgresql.auto.conf`: read as the server reads them, edited without touching
//! anything else in them.
//!
//! Source of the rules: PostgreSQL's `guc-file.l` (the grammar), `guc.c` (units), documentation
//! section "Setting Parameters".

mod edit;
mod lexer;
mod read;
mod value;

pub use edit::{ConfFile, EditOutcome};
pub(crate) use edit::{keep_backup, replace};
pub use read::{ConfSetting, Configuration};
pub use value::{Unit, parse_boolean, parse_memory_bytes, parse_time_milliseconds};

use pgmahout_durable::DurableError;
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use std::path::PathBuf;

/// A configuration file that cannot be read or edited.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line breaks the grammar. The server refuses such a file too.
    #[error("{}, line {line}: {what}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// Files include each other without end (the server stops at depth 10 too).
    #[error("{} is included too deep: files include each other", path.display())]
    TooDeep {
        /// The file.
        path: PathBuf,
    },
    /// The name is none that a setting can have.
    #[error("\"{name}\" is no name of a setting")]
    BadName {
        /// What was given.
        name: String,
    },
    /// A value that no line can hold.
    #[error("the value of {name} holds a line break, which the file cannot hold")]
    BadValue {
        /// The setting.
        name: String,
    },
    /// The edited file could not be put in place; the old one is untouched.
    #[error("cannot write {}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: DurableError,
    },
    /// The copy of the old file could not be kept, so nothing was changed.
    #[error("cannot keep a copy of {}", path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Diagnose for ConfError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreadable { .. } | Self::Unwritable { .. } | Self::Backup { .. } => {
                "run as root or as the owner of the data directory, and look at free space".to_owned()
            }
            Self::Syntax { .. } => {
                "a line is name = value, with quotes round anything but words and numbers; the server tells too: SELECT * FROM pg_file_settings WHERE error IS NOT NULL"
                    .to_owned()
            }
            Self::TooDeep { .. } => "remove the include that leads back".to_owned(),
            Self::BadName { .. } => "names are letters, digits and underscores, with one dot for extensions".to_owned(),
            Self::BadValue { .. } => "give the value on one line".to_owned(),
        })
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::BadName { .. } | Self::BadValue { .. } => Outcome::Usage,
            _ => Outcome::Failed,
        }
    }
}

#[cfg(test)]
mod tests;
