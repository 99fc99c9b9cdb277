//! `pg_hba.conf`: who may connect from where and how; read as the server reads it, edited line by line.
//!
//! Source of the rules: PostgreSQL's `hba.c` (`next_token`, `tokenize_auth_file`, `parse_hba_line`,
//! `check_hba`), documentation chapter "Client Authentication".

mod edit;
mod first_match;
mod parse;
mod token;

pub use first_match::{HbaClient, HbaQuery, HbaVerdict};
pub use token::HbaToken;

use pgmahout_durable::DurableError;
use pgmahout_types::diagnostic::Diagnose;
use std::net::IpAddr;
use std::path::PathBuf;

/// Which connections a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectionType {
    /// Unix sockets.
    Local,
    /// TCP, encrypted or not.
    Host,
    /// TCP with TLS.
    HostSsl,
    /// TCP without TLS.
    HostNoSsl,
    /// TCP with GSSAPI encryption.
    HostGssEnc,
    /// TCP without GSSAPI encryption.
    HostNoGssEnc,
}

impl ConnectionType {
    const ALL: [Self; 6] = [
        Self::Local,
        Self::Host,
        Self::HostSsl,
        Self::HostNoSsl,
        Self::HostGssEnc,
        Self::HostNoGssEnc,
    ];

    /// The word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Host => "host",
            Self::HostSsl => "hostssl",
            Self::HostNoSsl => "hostnossl",
            Self::HostGssEnc => "hostgssenc",
            Self::HostNoGssEnc => "hostnogssenc",
        }
    }
}

/// Where a client may come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HbaAddress {
    /// `all`
    All,
    /// `samehost`: an address of the server itself.
    SameHost,
    /// `samenet`: a network that the server is in.
    SameNet,
    /// An address and a mask.
    Network {
        /// The address as written, host bits included.
        address: IpAddr,
        /// The mask.
        mask: IpAddr,
    },
    /// A host name, or the end of one if it begins with a dot.
    Host(String),
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HbaRule {
    /// Which connections.
    pub connection: ConnectionType,
    /// Databases, with `@file` resolved.
    pub databases: Vec<HbaToken>,
    /// Roles, with `@file` resolved.
    pub users: Vec<HbaToken>,
    /// Where from; `None` for `local`.
    pub address: Option<HbaAddress>,
    /// The way of authentication.
    pub method: String,
    /// Its options.
    pub options: Vec<(String, String)>,
}

/// What one line of a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HbaContent {
    /// Blank, or a comment alone.
    Nothing,
    /// A rule.
    Rule(HbaRule),
    /// `include`, `include_if_exists`, `include_dir` (servers 16 and newer).
    Include {
        /// The directive.
        directive: String,
        /// What it names.
        target: String,
        /// The lines that it stands for.
        lines: Vec<HbaLine>,
    },
}

/// One line with its continuations, as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HbaLine {
    /// The text, without the last line end.
    pub text: String,
    /// The number of its first line, from 1; 0 for a line that is new.
    pub number: usize,
    /// The file.
    pub file: PathBuf,
    /// What it says.
    pub content: HbaContent,
}

/// A whole file.
#[derive(Debug, Clone)]
pub struct HbaFile {
    path: PathBuf,
    lines: Vec<HbaLine>,
    changed: bool,
}

/// The file cannot be read or edited.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HbaError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line is wrong; the server keeps its old rules when it is told to reload such a file, and does not
    /// start with it.
    #[error("{}, line {line}: {what}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// There is no such line.
    #[error("{} has no line at index {index}", path.display())]
    NoSuchLine {
        /// The file.
        path: PathBuf,
        /// The index asked for.
        index: usize,
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
    /// The new file could not be put in place; the old one is untouched.
    #[error("cannot write {}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: DurableError,
    },
}

impl Diagnose for HbaError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Syntax { .. } => {
                "a line is TYPE DATABASE USER ADDRESS METHOD [OPTIONS]; the server tells too: SELECT * FROM pg_hba_file_rules WHERE error IS NOT NULL"
                    .to_owned()
            }
            Self::NoSuchLine { .. } => "read the file again: it has changed".to_owned(),
            _ => "run as root or as the owner of the data directory, and look at free space".to_owned(),
        })
    }
}

impl std::fmt::Display for HbaAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => formatter.write_str("all"),
            Self::SameHost => formatter.write_str("samehost"),
            Self::SameNet => formatter.write_str("samenet"),
            Self::Network { address, mask } => match parse::prefix_length(*mask) {
                Some(length) => write!(formatter, "{address}/{length}"),
                None => write!(formatter, "{address} {mask}"),
            },
            Self::Host(name) => formatter.write_str(&token::quote(name)),
        }
    }
}

impl std::fmt::Display for HbaRule {
    /// As a line of the file.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |tokens: &[HbaToken]| {
            tokens
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(",")
        };
        write!(
            formatter,
            "{} {} {}",
            self.connection.as_str(),
            list(&self.databases),
            list(&self.users)
        )?;
        if let Some(address) = &self.address {
            write!(formatter, " {address}")?;
        }
        write!(formatter, " {}", self.method)?;
        for (name, value) in &self.options {
            write!(formatter, " {}", token::quote(&format!("{name}={value}")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
