//! Why a manifest cannot be read or written.

use std::io;

use super::{FORMAT, LONGEST_LINE};
use crate::diagnostic::Diagnose;

/// Why a manifest cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Its bytes could not be had.
    #[error("cannot read line {line} of the manifest")]
    Read {
        /// The line, from one.
        line: u64,
        /// Why.
        source: io::Error,
    },
    /// Its bytes could not be written.
    #[error("cannot write line {line} of the manifest")]
    Write {
        /// The line, from one.
        line: u64,
        /// Why.
        source: io::Error,
    },
    /// It was written by a newer pgmahout.
    #[error("the manifest has format version {format}, newest known is {FORMAT}")]
    Format {
        /// The version.
        format: u32,
    },
    /// A line is no JSON, or not what it should be.
    #[error("line {line} of the manifest cannot be understood")]
    Json {
        /// The line, from one.
        line: u64,
        /// Why.
        source: serde_json::Error,
    },
    /// A line contradicts itself or another.
    #[error("line {line} of the manifest is wrong: {problem}")]
    Line {
        /// The line, from one.
        line: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// A line is too long.
    #[error("line {line} of the manifest is longer than {LONGEST_LINE} bytes")]
    TooLong {
        /// The line, from one.
        line: u64,
    },
    /// The last line is missing.
    #[error("the manifest ends after line {line}, before its last line")]
    Truncated {
        /// The last line that there is, from one; zero for none.
        line: u64,
    },
    /// The lines are not those that were written.
    #[error("the manifest is damaged: its lines do not have the digest that its last line names")]
    Digest,
}

impl Diagnose for ManifestError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { .. } => "`pgmahout repo check` tests the repository".to_owned(),
            Self::Write { .. } => "try again; what was uploaded is used by the next `pgmahout backup create`".to_owned(),
            Self::Format { .. } => "a newer pgmahout wrote it: upgrade this one".to_owned(),
            Self::Json { .. }
            | Self::Line { .. }
            | Self::TooLong { .. }
            | Self::Truncated { .. }
            | Self::Digest => {
                "`pgmahout backup list` shows the other backups; `pgmahout backup verify` says which of them are whole".to_owned()
            }
        })
    }
}
