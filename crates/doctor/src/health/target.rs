//! What is checked: a server, and what is expected of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::sessions::Connect;

/// What a server is expected to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes writes.
    Primary,
    /// Replays a primary's WAL.
    Standby,
}

impl Role {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

/// What the configuration or the command line expects of a target.
#[derive(Debug, Clone, Default)]
pub struct Expectations {
    /// Which role it should have.
    pub role: Option<Role>,
    /// How many standbys should stream from it while it is the primary.
    pub standbys: Option<u32>,
    /// How old the newest backup may be: the recovery point objective, in seconds.
    pub recovery_point_seconds: Option<f64>,
}

/// One server to check.
#[derive(Clone)]
pub struct Target {
    /// How results name it: `host:port`, or the name in the configuration.
    pub name: String,
    /// How to reach it.
    pub connect: Arc<dyn Connect>,
    /// What it should be.
    pub expectations: Expectations,
    /// Its data directory on this machine, where it is known to be local.
    pub data_directory: Option<PathBuf>,
    /// Free-form notes for checks of other sources, for example `container` or `log_directory`.
    pub notes: BTreeMap<String, String>,
}

impl Target {
    /// A server of which nothing special is expected.
    pub fn new(name: impl Into<String>, connect: Arc<dyn Connect>) -> Self {
        Self {
            name: name.into(),
            connect,
            expectations: Expectations::default(),
            data_directory: None,
            notes: BTreeMap::new(),
        }
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Target")
            .field("name", &self.name)
            .field("expectations", &self.expectations)
            .finish_non_exhaustive()
    }
}
