//! Secrets, and where they come from.
//!
//! A [`Secret`] does not print: `Debug`, `Display` and `Serialize` all say `***`. Only
//! [`Secret::expose`] gives the text, so that every place that uses one can be found by that word. It is
//! wiped from memory when dropped.
//!
//! A [`SecretReference`] says where a secret is to be had; it is looked up only when the secret is needed,
//! so that `config check` runs no command, and a command that needs no password does not ask for it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

mod error;
mod resolve;
mod words;

pub use error::SecretError;

/// Splits a command line into words, without a shell. `None` where a quote is not closed.
pub(crate) fn split_words(line: &str) -> Option<Vec<String>> {
    words::split(line).ok()
}

/// What is printed in place of a secret.
const HIDDEN: &str = "***";

/// A text that must not be printed, logged, put into a plan or into the arguments of a child process.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, for handing it to what needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(HIDDEN)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(HIDDEN)
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

/// Where a secret is to be had. Written in the configuration and on the command line as
/// `file:/path`, `env:NAME`, `command:PROGRAM ARGUMENTS`, or as the secret itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretReference {
    /// The secret itself.
    Literal(Secret),
    /// The content of a file, without one line end after it. The file must not be readable by others.
    File(PathBuf),
    /// The value of an environment variable.
    Environment(String),
    /// What a program writes to its standard output, without one line end after it. No shell is involved.
    Command {
        /// The program, found through `PATH`.
        program: String,
        /// Its arguments.
        arguments: Vec<String>,
    },
}

impl SecretReference {
    /// Reads a reference. A text that begins with none of `file:`, `env:` and `command:` is the secret
    /// itself. A command is split into words at blanks; quotes and backslashes keep blanks together, as in
    /// a shell, and nothing else of a shell is understood.
    ///
    /// # Errors
    ///
    /// When nothing follows the prefix, or a quote in a command is not closed.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let empty = |kind: &'static str| SecretError::Empty { kind };
        if let Some(path) = text.strip_prefix("file:") {
            return if path.is_empty() {
                Err(empty("file:"))
            } else {
                Ok(Self::File(PathBuf::from(path)))
            };
        }
        if let Some(name) = text.strip_prefix("env:") {
            return if name.is_empty() {
                Err(empty("env:"))
            } else {
                Ok(Self::Environment(name.to_owned()))
            };
        }
        if let Some(line) = text.strip_prefix("command:") {
            let mut words = words::split(line)?.into_iter();
            let program = words.next().ok_or_else(|| empty("command:"))?;
            return Ok(Self::Command {
                program,
                arguments: words.collect(),
            });
        }
        Ok(Self::Literal(Secret::new(text)))
    }

    /// Looks the secret up. Blocks: reads a file or runs a program (for at most 30 seconds).
    ///
    /// # Errors
    ///
    /// When the file cannot be read or may be read by others, the variable is not set, the program fails,
    /// or what comes out is empty or not UTF-8.
    pub fn resolve(&self) -> Result<Secret, SecretError> {
        match self {
            Self::Literal(secret) => Ok(secret.clone()),
            Self::File(path) => resolve::file(path),
            Self::Environment(name) => resolve::environment(name),
            Self::Command { program, arguments } => resolve::command(program, arguments),
        }
    }
}

/// Where the secret comes from, without the secret: `file:/path`, `env:NAME`, `command:PROGRAM` (its
/// arguments are left out, for they could hold one), `***`.
impl fmt::Display for SecretReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(secret) => secret.fmt(formatter),
            Self::File(path) => write!(formatter, "file:{}", path.display()),
            Self::Environment(name) => write!(formatter, "env:{name}"),
            Self::Command { program, arguments } if arguments.is_empty() => {
                write!(formatter, "command:{program}")
            }
            Self::Command { program, .. } => write!(formatter, "command:{program} ..."),
        }
    }
}

impl std::str::FromStr for SecretReference {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        Self::parse(text)
    }
}

impl<'de> Deserialize<'de> for SecretReference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl Serialize for SecretReference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests;
