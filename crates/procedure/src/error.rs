//! How procedures and their steps fail.

use std::error::Error;
use std::fmt;

use pgmahout_durable::{DurableError, LockError};
use pgmahout_types::diagnostic::{Diagnose, Outcome};

use crate::confirm::ConfirmError;
use crate::definition::Problem;
use crate::state::StateError;

/// Any error of ours, with its hint and outcome, as a cause of another.
#[derive(Debug)]
pub struct Cause(Box<dyn Diagnose>);

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

impl Diagnose for Cause {
    fn hint(&self) -> Option<String> {
        self.0.hint()
    }

    fn outcome(&self) -> Outcome {
        self.0.outcome()
    }
}

/// How a step fails. `?` makes one of every error that can advise ([`Diagnose`]); [`StepError::failed`] and
/// [`StepError::refused`] make one of words.
///
/// Deliberately not an [`Error`] itself, as otherwise `?` could not take every error.
#[derive(Debug)]
pub struct StepError(Cause);

impl<E: Diagnose> From<E> for StepError {
    fn from(error: E) -> Self {
        Self(Cause(Box::new(error)))
    }
}

/// A failure that has no type of its own.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Message {
    text: String,
    hint: Option<String>,
    outcome: Outcome,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Diagnose for Message {
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }

    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl StepError {
    /// It was tried and did not work.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::message(Outcome::Failed, text, None)
    }

    /// A safety rule forbids it.
    pub fn refused(text: impl Into<String>) -> Self {
        Self::message(Outcome::Refused, text, None)
    }

    /// A signal asked to stop.
    pub fn interrupted() -> Self {
        Self::message(Outcome::Interrupted, "interrupted", None)
    }

    /// It was tried and did not work, because of `source`.
    pub fn caused_by(text: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::message(Outcome::Failed, text, Some(source.into()))
    }

    /// Adds advice, in place of that of the error behind it.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        let outcome = self.outcome();
        Self::from(Advised {
            cause: self.0,
            hint: hint.into(),
            outcome,
        })
    }

    /// What it means for the exit status.
    pub fn outcome(&self) -> Outcome {
        self.0.outcome()
    }

    /// The error behind it.
    pub fn into_cause(self) -> Cause {
        self.0
    }

    /// The error behind it.
    pub fn cause(&self) -> &Cause {
        &self.0
    }

    fn message(
        outcome: Outcome,
        text: impl Into<String>,
        source: Option<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::from(Message {
            text: text.into(),
            hint: None,
            outcome,
            source,
        })
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// An error with other advice than its own.
#[derive(Debug)]
struct Advised {
    cause: Cause,
    hint: String,
    outcome: Outcome,
}

impl fmt::Display for Advised {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(formatter)
    }
}

impl Error for Advised {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.source()
    }
}

impl Diagnose for Advised {
    fn hint(&self) -> Option<String> {
        Some(self.hint.clone())
    }

    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

/// How running, resuming, listing and aborting procedures fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcedureError {
    /// Something stands in the way; nothing was changed.
    #[error("cannot {title}: {}", preflight_text(problems))]
    Preflight {
        /// What was to be done.
        title: String,
        /// All that was found.
        problems: Vec<Problem>,
    },
    /// Looking at the system before the first change failed; nothing was changed.
    #[error("cannot prepare to {title}")]
    Prepare {
        /// What was to be done.
        title: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// Not confirmed.
    #[error(transparent)]
    Confirm(#[from] ConfirmError),
    /// Another procedure is at work on the same target.
    #[error("another operation is at work on {target}")]
    Locked {
        /// The target.
        target: String,
        /// Who.
        #[source]
        source: LockError,
    },
    /// There is no place for the lock.
    #[error("there is no place for the locks that keep two operations from one server")]
    NoLocks(#[source] DurableError),
    /// A step failed. The procedure can be resumed.
    #[error("step '{step}' of procedure {id} failed")]
    Step {
        /// The procedure.
        id: String,
        /// The step.
        step: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The steps are done, but the closing verification failed. The procedure can be resumed.
    #[error("procedure {id} made all its steps, but its closing verification failed")]
    Verification {
        /// The procedure.
        id: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A signal stopped it. The procedure can be resumed.
    #[error("procedure {id} was interrupted before step '{step}' was done")]
    Interrupted {
        /// The procedure.
        id: String,
        /// The step that was not done.
        step: String,
    },
    /// Cleaning up after a procedure that is given up failed.
    #[error("procedure {id} could not be cleaned up")]
    Abort {
        /// The procedure.
        id: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// What was done cannot be written down, so that nothing more is done. The procedure can be resumed.
    #[error("procedure {id} stopped, because it cannot record what it does")]
    Record {
        /// The procedure.
        id: String,
        /// Why.
        #[source]
        source: DurableError,
    },
    /// There is no such procedure.
    #[error("there is no procedure {id} in {directory}")]
    NotFound {
        /// What was asked for.
        id: String,
        /// Where we looked.
        directory: String,
    },
    /// The beginning of an identifier fits several procedures.
    #[error("{id} could be any of {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        id: String,
        /// What fits.
        candidates: Vec<String>,
    },
    /// It has ended already.
    #[error("procedure {id} has ended already ({state})")]
    Ended {
        /// The procedure.
        id: String,
        /// How.
        state: &'static str,
    },
    /// A process is at work on it.
    #[error("procedure {id} is running, as process {process}")]
    Running {
        /// The procedure.
        id: String,
        /// The process.
        process: u32,
    },
    /// This build does not know how to run it.
    #[error("procedure {id} is of kind '{kind}', with which this version of pgmahout cannot go on")]
    UnknownKind {
        /// The procedure.
        id: String,
        /// Its kind.
        kind: String,
    },
    /// The procedure cannot be built again from its journal.
    #[error("procedure {id} cannot be built again from its journal")]
    Rebuild {
        /// The procedure.
        id: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The journal cannot be understood.
    #[error("the journal {path} is damaged: {reason}")]
    Damaged {
        /// The journal's file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The journal or the audit log cannot be read or written.
    #[error(transparent)]
    Write(#[from] DurableError),
    /// There is no place for the journal.
    #[error(transparent)]
    State(#[from] StateError),
}

fn preflight_text(problems: &[Problem]) -> String {
    match problems {
        [only] => only.text.clone(),
        several => {
            let mut text = format!("{} problems stand in the way", several.len());
            for problem in several {
                text.push_str("\n  - ");
                text.push_str(&problem.text);
                if let Some(hint) = &problem.hint {
                    text.push_str("\n    ");
                    text.push_str(hint);
                }
            }
            text
        }
    }
}

fn resume_hint(id: &str) -> String {
    format!(
        "when the cause is mended: pgmahout procedure resume {id}; to give it up: pgmahout procedure abort {id}"
    )
}

impl Diagnose for ProcedureError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Preflight { problems, .. } => match problems.as_slice() {
                [only] => only.hint.clone(),
                _ => Some("nothing was changed; mend them all and run the command again".to_owned()),
            },
            Self::Prepare { source, .. } => source.hint(),
            Self::Confirm(error) => error.hint(),
            Self::Locked { source, .. } => source.hint(),
            Self::NoLocks(_) => Some(
                "name a directory that root and the server's user can both write to: \
                 export PGMAHOUT_RUN_DIR=/path"
                    .to_owned(),
            ),
            Self::Step { id, source, .. } | Self::Verification { id, source } => Some(match source.hint() {
                Some(hint) => format!("{hint}; {}", resume_hint(id)),
                None => resume_hint(id),
            }),
            Self::Record { id, source } => Some(match source.hint() {
                Some(hint) => format!("{hint}; {}", resume_hint(id)),
                None => resume_hint(id),
            }),
            Self::Interrupted { id, .. } => Some(format!("to go on: pgmahout procedure resume {id}")),
            Self::Abort { id, source } => source
                .hint()
                .or_else(|| Some(format!("pgmahout procedure show {id}"))),
            Self::NotFound { .. } => Some(
                "pgmahout procedure list; another user's procedures are in that user's own state directory"
                    .to_owned(),
            ),
            Self::Ambiguous { .. } => Some("give more of it; see pgmahout procedure list".to_owned()),
            Self::Ended { id, .. } => Some(format!("pgmahout procedure show {id}")),
            Self::Running { process, .. } => Some(format!("wait for it; to see it: ps -fp {process}")),
            Self::UnknownKind { id, .. } => Some(format!(
                "run the command that started it again, or resume it with the version that started it; \
                 to close it: pgmahout procedure abort {id}"
            )),
            Self::Rebuild { id, source } => source
                .hint()
                .or_else(|| Some(format!("pgmahout procedure show {id}"))),
            Self::Damaged { path, .. } => Some(format!("look at it: less {path}")),
            Self::Write(error) => error.hint(),
            Self::State(error) => error.hint(),
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Preflight { .. }
            | Self::Locked { .. }
            | Self::Ended { .. }
            | Self::Running { .. }
            | Self::UnknownKind { .. } => Outcome::Refused,
            Self::Prepare { source, .. }
            | Self::Step { source, .. }
            | Self::Verification { source, .. }
            | Self::Abort { source, .. }
            | Self::Rebuild { source, .. } => source.outcome(),
            Self::Confirm(error) => error.outcome(),
            Self::Interrupted { .. } => Outcome::Interrupted,
            Self::NotFound { .. } | Self::Ambiguous { .. } => Outcome::Usage,
            Self::NoLocks(_) | Self::Damaged { .. } | Self::Record { .. } => Outcome::Failed,
            Self::Write(error) => error.outcome(),
            Self::State(error) => error.outcome(),
        }
    }
}
