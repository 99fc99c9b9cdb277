//! Why a dump could not be read, restored, tested or copied.

use std::io;

use pgmahout_postgres::connection::ConnectError;
use pgmahout_postgres::throwaway::ThrowawayError;
use pgmahout_store::seal::SealError;
use pgmahout_types::diagnostic::{Diagnose, Outcome};

use super::super::error::DumpError;
use super::counts::CountRow;

/// Why a dump could not be read, restored, tested or copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// What was asked cannot be meant.
    #[error("{what}")]
    Usage {
        /// What is wrong.
        what: String,
        /// What to type instead.
        hint: String,
    },
    /// The file cannot be read.
    #[error("cannot {doing} {what}")]
    Io {
        /// The verb phrase: `read`, `open`.
        doing: &'static str,
        /// On what.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no such file.
    #[error("there is no dump at {path}")]
    NotFound {
        /// Where it was looked for.
        path: String,
    },
    /// The bytes are those of no dump.
    #[error("{what} is no dump that can be restored: {why}")]
    Unknown {
        /// The file.
        what: String,
        /// What its bytes look like.
        why: String,
        /// What to do.
        hint: String,
    },
    /// The file is not what was written: cut, changed, or another one.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// The file.
        what: String,
        /// How it is known.
        why: String,
    },
    /// The file is encrypted and the key is missing or wrong.
    #[error("cannot decrypt {what}")]
    Sealed {
        /// The file.
        what: String,
        /// Why.
        #[source]
        source: SealError,
    },
    /// The dump would do something else than fill the target.
    #[error("{what} is not restored: {why}")]
    Refused {
        /// The file.
        what: String,
        /// What it holds, and where.
        why: String,
        /// How to restore it.
        hint: String,
    },
    /// A program of PostgreSQL is missing or too old.
    #[error("{what}")]
    Program {
        /// What is missing.
        what: String,
        /// What to install.
        hint: String,
    },
    /// A program of PostgreSQL failed.
    #[error("{program} failed{}: {}", of_target(.target.as_deref()), said(.stderr))]
    ProgramFailed {
        /// Which one.
        program: &'static str,
        /// The database it worked on, if one.
        target: Option<String>,
        /// What it said.
        stderr: Vec<String>,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The rows that arrived are not those of the dump.
    #[error("the rows in the target are not those of the dump: {}", mismatches(.rows))]
    Mismatch {
        /// Every table.
        rows: Vec<CountRow>,
        /// What became of the target.
        aftermath: &'static str,
    },
    /// The server went away while the transaction was being committed.
    #[error("the server went away during COMMIT: whether the restore into {target} took effect is not known")]
    CommitUnknown {
        /// The database.
        target: String,
    },
    /// Assertions that did not hold.
    #[error("{} of the restored database did not hold: {}", count(.failed.len(), "assertion"), .failed.join("; "))]
    Assertions {
        /// Each with what came instead of true.
        failed: Vec<String>,
    },
    /// The server could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refused a statement.
    #[error("cannot {doing}")]
    Sql {
        /// The verb phrase.
        doing: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
        /// What to do about it.
        hint: Option<String>,
    },
    /// No throw-away server.
    #[error(transparent)]
    Throwaway(#[from] ThrowawayError),
    /// Something of a dump's place or manifest.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// The user or a signal stopped it.
    #[error("interrupted; {aftermath}")]
    Interrupted {
        /// What became of the target.
        aftermath: &'static str,
    },
}

fn of_target(target: Option<&str>) -> String {
    target.map(|target| format!(" on {target}")).unwrap_or_default()
}

fn said(stderr: &[String]) -> String {
    match stderr {
        [] => "it said nothing".to_owned(),
        lines => lines.join("\n"),
    }
}

fn mismatches(rows: &[CountRow]) -> String {
    let wrong: Vec<String> = rows
        .iter()
        .filter(|row| !row.matches())
        .map(|row| match row.found {
            Some(found) => format!("{} has {found} instead of {}", row.table, row.expected),
            None => format!("{} is missing", row.table),
        })
        .collect();
    let shown = wrong.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
    if wrong.len() > 10 {
        format!("{shown}, and {} more tables", wrong.len() - 10)
    } else {
        shown
    }
}

/// `1 assertion`, `2 assertions`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

impl RestoreError {
    /// A statement that failed, with the hint that fits its SQLSTATE.
    pub(crate) fn sql(doing: impl Into<String>, source: tokio_postgres::Error) -> Self {
        let message = source
            .as_db_error()
            .map(|error| error.message().to_owned())
            .unwrap_or_default();
        Self::Sql {
            doing: doing.into(),
            hint: super::hints::for_message(&message, None),
            source,
        }
    }

    /// The file named, an IO error that came through a reading pipeline turned back into what it was.
    pub(crate) fn reading(what: &str, error: io::Error) -> Self {
        let what = what.to_owned();
        let error = match error.downcast::<Self>() {
            Ok(own) => return own,
            Err(error) => error,
        };
        if SealError::of(&error).is_some() {
            let source = SealError::from_io(error);
            return match source {
                SealError::WrongKey | SealError::KeyMissing { .. } | SealError::NotSealed => {
                    Self::Sealed { what, source }
                }
                other => Self::Damaged {
                    what,
                    why: other.to_string(),
                },
            };
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Self::Damaged {
                what,
                why: error.to_string(),
            },
            _ => Self::Io {
                doing: "read",
                what,
                source: error,
            },
        }
    }
}

impl Diagnose for RestoreError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. }
            | Self::Unknown { hint, .. }
            | Self::Refused { hint, .. }
            | Self::Program { hint, .. } => Some(hint.clone()),
            Self::ProgramFailed { hint, .. } | Self::Sql { hint, .. } => hint.clone(),
            Self::Io { .. } => Some("look at the path and its permissions: ls -l".to_owned()),
            Self::NotFound { .. } => {
                Some("list what there is: pgmahout dump list DIRECTORY".to_owned())
            }
            Self::Damaged { .. } => Some(
                "nothing was changed in the target; use another copy of the file, or an older dump \
                 (pgmahout dump list)"
                    .to_owned(),
            ),
            Self::Sealed { source, .. } => source.hint(),
            Self::Mismatch { aftermath, .. } => Some(format!(
                "{aftermath}; triggers, rules or row-level security in the target, or a dump and a manifest that do not belong together, cause this"
            )),
            Self::CommitUnknown { .. } => {
                Some("when the server is back, compare the row counts, or restore again with --clean".to_owned())
            }
            Self::Assertions { .. } => Some(
                "the dump restores, but not to what your assertions expect: look at the data in it, and at an older dump"
                    .to_owned(),
            ),
            Self::Connect(error) => error.hint(),
            Self::Throwaway(error) => error.hint(),
            Self::Dump(error) => error.hint(),
            Self::Interrupted { .. } => Some("run the command again".to_owned()),
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Usage { .. } => Outcome::Usage,
            Self::Refused { .. } => Outcome::Refused,
            Self::Sealed { source, .. } => source.outcome(),
            Self::Connect(error) => error.outcome(),
            Self::Throwaway(error) => error.outcome(),
            Self::Dump(error) => error.outcome(),
            Self::Interrupted { .. } => Outcome::Interrupted,
            _ => Outcome::Failed,
        }
    }
}
