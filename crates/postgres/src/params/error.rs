//! What can be wrong with connection parameters before any connection is tried.

use pgmahout_types::diagnostic::{Diagnose, Outcome};
use std::path::PathBuf;

/// Connection parameters that cannot be resolved. Never holds a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParameterError {
    /// libpq has no such option.
    #[error("unknown connection option \"{name}\"")]
    UnknownOption {
        /// What was written.
        name: String,
    },
    /// A word in a `key=value` string is no pair.
    #[error("the connection string has no \"=\" after \"{name}\"")]
    MissingEquals {
        /// The word.
        name: String,
    },
    /// A quote is never closed.
    #[error("a quoted value in the connection string never ends")]
    UnterminatedQuote,
    /// The URI does not follow the grammar.
    #[error("the connection URI is not valid: {what}")]
    BadUri {
        /// Which rule it breaks.
        what: &'static str,
    },
    /// A value is none of the allowed ones.
    #[error("invalid value \"{value}\" for connection option \"{name}\"")]
    BadValue {
        /// The option's keyword.
        name: &'static str,
        /// What was given.
        value: String,
        /// The allowed ones, for the hint.
        allowed: &'static str,
    },
    /// Lists of hosts, addresses and ports of different length.
    #[error("{left_count} {left} do not match {right_count} {right}")]
    CountMismatch {
        /// What the one list holds.
        left: &'static str,
        /// How many.
        left_count: usize,
        /// What the other list holds.
        right: &'static str,
        /// How many.
        right_count: usize,
    },
    /// Two options contradict each other.
    #[error("sslmode={mode} is too weak for {other}")]
    WeakSslMode {
        /// The mode given.
        mode: &'static str,
        /// The option that needs a stronger one.
        other: &'static str,
    },
    /// An option that this client leaves out and that must not be ignored silently.
    #[error("connection option \"{name}\" is not supported: {reason}")]
    Unsupported {
        /// The option's keyword.
        name: &'static str,
        /// Why not.
        reason: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// The service is defined nowhere.
    #[error("no definition of service \"{service}\" found")]
    ServiceNotFound {
        /// Its name.
        service: String,
        /// The files that were read.
        searched: Vec<PathBuf>,
    },
    /// The service file cannot be read.
    #[error("cannot read service file {}", path.display())]
    ServiceFileUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line of the service file is wrong.
    #[error("service file {}, line {line}: {what}", path.display())]
    ServiceFileSyntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// No user was given and the operating system names none.
    #[error("no user name given, and the operating system has no name for this process's user")]
    NoUser,
}

impl Diagnose for ParameterError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownOption { .. } => {
                "the options are listed in PostgreSQL's documentation, section \"Parameter Key Words\"; \
                 a URI starts with postgresql://"
                    .to_owned()
            }
            Self::MissingEquals { .. } | Self::UnterminatedQuote => {
                "write key=value pairs, and values with blanks as key='a value' (\\' and \\\\ inside)".to_owned()
            }
            Self::BadUri { .. } => {
                "the form is postgresql://user@host:5432/database?sslmode=verify-full; special characters are \
                 percent-encoded"
                    .to_owned()
            }
            Self::BadValue { allowed, .. } => format!("allowed: {allowed}"),
            Self::CountMismatch { .. } => {
                "give one port for all hosts or one for each, separated by commas".to_owned()
            }
            Self::WeakSslMode { other, .. } if other.starts_with("sslrootcert") => {
                "set sslmode=verify-full".to_owned()
            }
            Self::WeakSslMode { .. } => "set sslmode=require, verify-ca or verify-full".to_owned(),
            Self::Unsupported { instead, .. } => (*instead).to_owned(),
            Self::ServiceNotFound { searched, service } if searched.is_empty() => {
                format!("create ~/.pg_service.conf with a section [{service}], or set PGSERVICEFILE")
            }
            Self::ServiceNotFound { searched, service } => format!(
                "add a section [{service}] to {}",
                searched.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
            ),
            Self::ServiceFileUnreadable { .. } => {
                "check the path in PGSERVICEFILE and that this user may read the file".to_owned()
            }
            Self::ServiceFileSyntax { .. } => "a line is [service], keyword=value or # comment".to_owned(),
            Self::NoUser => "give the user with -U or PGUSER".to_owned(),
        })
    }

    fn outcome(&self) -> Outcome {
        Outcome::Usage
    }
}
