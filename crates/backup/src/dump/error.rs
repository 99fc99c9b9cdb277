//! Why a dump could not be made, listed or expired.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use pgmahout_types::diagnostic::{Diagnose, Outcome};

use super::manifest::ManifestError;

/// Why a dump could not be made, listed or expired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// What was asked cannot be meant: two options that exclude each other, for example.
    #[error("{what}")]
    Usage {
        /// What is wrong.
        what: String,
        /// What to type instead.
        hint: String,
    },
    /// The checks before the dump found problems; all of them are listed.
    #[error("the dump cannot be made: {}", Problem::sentence(.problems))]
    Preflight {
        /// What was found; never empty.
        problems: Vec<Problem>,
    },
    /// A program of PostgreSQL ended with a failure.
    #[error("{program} failed ({}){}", describe_status(*.status), describe_stderr(.stderr))]
    Program {
        /// Its name, for example `pg_dump`.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote to stderr.
        stderr: Vec<String>,
    },
    /// The operating system refused something.
    #[error("cannot {doing} \"{}\"", .path.display())]
    Io {
        /// The verb phrase, for example `write`.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A manifest could not be understood.
    #[error("cannot read the manifest of \"{file}\"")]
    Manifest {
        /// The dump's file.
        file: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The file that was read back is not the one that was written.
    #[error("the dump \"{file}\" was written, but {what}; it was removed")]
    ReadBack {
        /// The file.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// The user or a signal stopped it.
    #[error("the dump was interrupted; nothing was left behind")]
    Interrupted,
}

/// One thing that the checks before a dump found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, on what, and why.
    pub what: String,
    /// What to do about it.
    pub hint: String,
    /// What it means for the exit status.
    pub outcome: Outcome,
}

impl Problem {
    fn sentence(problems: &[Self]) -> String {
        match problems {
            [only] => only.what.clone(),
            many => many
                .iter()
                .map(|problem| format!("\n  - {}", problem.what))
                .collect(),
        }
    }
}

fn describe_status(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn describe_stderr(lines: &[String]) -> String {
    match lines {
        [] => String::new(),
        lines => format!(": {}", lines.join("\n    ")),
    }
}

impl Diagnose for DumpError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. } => Some(hint.clone()),
            Self::Preflight { problems } => match problems.as_slice() {
                [only] => Some(only.hint.clone()),
                many => Some(
                    many.iter()
                        .map(|problem| format!("\n  - {}", problem.hint))
                        .collect(),
                ),
            },
            Self::Interrupted => Some("run the command again to make the dump".to_owned()),
            _ => None,
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Usage { .. } => Outcome::Usage,
            Self::Preflight { problems } => {
                if problems.iter().any(|problem| problem.outcome == Outcome::Failed) {
                    Outcome::Failed
                } else {
                    problems
                        .first()
                        .map_or(Outcome::Failed, |problem| problem.outcome)
                }
            }
            Self::Interrupted => Outcome::Interrupted,
            _ => Outcome::Failed,
        }
    }
}
