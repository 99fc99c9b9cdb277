//! Why a secret could not be had.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use pgmahout_types::diagnostic::{Diagnose, Outcome};

/// Why a secret reference is wrong or leads nowhere. Never contains the secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// Nothing follows the prefix.
    #[error("nothing follows '{kind}' in a secret reference")]
    Empty {
        /// The prefix.
        kind: &'static str,
    },
    /// A quote in a command is not closed.
    #[error("a quote is not closed in a 'command:' secret reference")]
    UnclosedQuote,
    /// The file cannot be read.
    #[error("cannot read the secret file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than the owner may read or change the file.
    #[error("the secret file {} is open to other users (mode {mode:04o})", path.display())]
    LooseMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The environment variable is not set.
    #[error("the environment variable {name}, which should hold a secret, is not set")]
    NotSet {
        /// The variable.
        name: String,
    },
    /// The program cannot be run.
    #[error("cannot run {program}, which should print a secret")]
    Run {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program failed.
    #[error("{program}, which should print a secret, ended with {status}: {message}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// The last line that it wrote to its standard error.
        message: String,
    },
    /// The program took too long and was killed.
    #[error("{program}, which should print a secret, took longer than {} s", limit.as_secs())]
    TimedOut {
        /// The program.
        program: String,
        /// How long it had.
        limit: Duration,
    },
    /// What came out is no secret.
    #[error("the secret from {origin} is {what}")]
    Unusable {
        /// Where it came from.
        origin: String,
        /// `empty`, `not UTF-8`, `longer than 64 KiB`.
        what: &'static str,
    },
}

impl Diagnose for SecretError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Empty { .. } | Self::UnclosedQuote => {
                "write file:/path, env:NAME or command:PROGRAM ARGUMENTS".to_owned()
            }
            Self::File { path, .. } => format!(
                "see whether it is there and who may read it: ls -l {}",
                path.display()
            ),
            Self::LooseMode { path, .. } => format!("chmod 600 {}", path.display()),
            Self::NotSet { name } => format!("set it: export {name}=..."),
            Self::Run { program, .. } => format!("see whether it is installed: command -v {program}"),
            Self::Failed { program, .. } | Self::TimedOut { program, .. } => {
                format!("run {program} by hand, as this user, and see what it says")
            }
            Self::Unusable { .. } => "look at where it comes from; a secret is one line of text".to_owned(),
        })
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Failed { .. } | Self::TimedOut { .. } => Outcome::Failed,
            _ => Outcome::Usage,
        }
    }
}
