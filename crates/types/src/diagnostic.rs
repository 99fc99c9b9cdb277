//! What every error of ours can say beside its message: the hint for the person who reads it, and the
//! exit status that it means.
//!
//! Messages say what failed; hints say what to type next. They are kept apart so that JSON output, logs
//! and the terminal can each render them in their own way, and so that a missing hint shows.

/// What an error means to the shell that started us. The numbers are part of the command line's contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The operation was tried and failed: status 1.
    Failed,
    /// The arguments or the configuration are wrong; nothing was tried: status 2.
    Usage,
    /// A safety rule refused: a precondition, a lock, a missing confirmation: status 3.
    Refused,
    /// A signal or the user stopped it: status 130.
    Interrupted,
}

impl Outcome {
    /// The exit status of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Interrupted => 130,
        }
    }

    /// The word used for it in JSON output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Refused => "refused",
            Self::Interrupted => "interrupted",
        }
    }
}

/// An error that can advise. Implemented by every public error type of the workspace.
pub trait Diagnose: std::error::Error + Send + Sync + 'static {
    /// The next thing to do, as one sentence or command, without a trailing newline.
    fn hint(&self) -> Option<String> {
        None
    }

    /// The exit status that this error means.
    fn outcome(&self) -> Outcome {
        Outcome::Failed
    }
}
