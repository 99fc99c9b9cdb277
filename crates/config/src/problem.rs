//! What is wrong with a configuration, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

use pgmahout_types::diagnostic::{Diagnose, Outcome};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A place in a file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The column, counted from 1.
        column: usize,
    },
    /// An environment variable.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(formatter, "{}:{line}:{column}", path.display()),
            Self::Variable(name) => write!(formatter, "environment variable {name}"),
        }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, but somebody should look.
    Warning,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// How bad.
    pub severity: Severity,
    /// What.
    pub message: String,
    /// What was probably meant.
    pub nearest: Option<String>,
}

impl Problem {
    /// One that makes the configuration unusable.
    pub fn error(origin: Origin, message: impl Into<String>) -> Self {
        Self {
            origin,
            severity: Severity::Error,
            message: message.into(),
            nearest: None,
        }
    }

    /// One that does not.
    pub fn warning(origin: Origin, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(origin, message)
        }
    }

    /// Adds what was probably meant: the one of `known` that looks most like `written`, if it is like it.
    pub fn nearest_of<'a>(mut self, written: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        self.nearest = nearest(written, known);
        self
    }
}

/// The one of `known` that looks most like `written`, if it is like it at all.
pub(crate) fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|name| {
            (
                strsim::jaro_winkler(&written.to_lowercase(), &name.to_lowercase()),
                name,
            )
        })
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, name)| name.to_owned())
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.origin, self.message)?;
        if let Some(nearest) = &self.nearest {
            write!(formatter, " — did you mean '{nearest}'?")?;
        }
        Ok(())
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file that was named cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file in the current directory could have been put there by somebody else. It can name commands
    /// to run, so it is not taken unless it is named.
    #[error("{} {why}, and it was not named with --config", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// `belongs to another user`, `can be changed by other users`.
        why: &'static str,
    },
    /// It says something that it may not.
    #[error("{}", problems_text(problems))]
    Invalid {
        /// All that is wrong, warnings not included.
        problems: Vec<Problem>,
    },
}

fn problems_text(problems: &[Problem]) -> String {
    match problems {
        [only] => only.to_string(),
        several => {
            let mut text = format!("the configuration has {} errors", several.len());
            for problem in several {
                text.push_str("\n  ");
                text.push_str(&problem.to_string());
            }
            text
        }
    }
}

impl Diagnose for ConfigError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { path, .. } => format!(
                "see whether it is there and who may read it: ls -l {}",
                path.display()
            ),
            Self::Untrusted { path, .. } => {
                format!("read it, and if it is right: --config {}", path.display())
            }
            Self::Invalid { .. } => "mend it, then: pgmahout config check".to_owned(),
        })
    }

    fn outcome(&self) -> Outcome {
        Outcome::Usage
    }
}
