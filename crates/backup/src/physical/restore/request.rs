//! What is asked of a restore, and what comes of it.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use pgmahout_types::repository::Label;
use pgmahout_types::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};

use super::include::Include;
use super::layout::Remap;
use super::received::ReceiverFiles;
use super::settings::{Archiving, StandbySettings};
use super::target::Aim;

/// What is asked of a restore.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// Where everything goes.
    pub remap: Remap,
    /// Where recovery ends.
    pub aim: Aim,
    /// The backup, where one was named.
    pub label: Option<Label>,
    /// Whether what is there is compared and kept as far as it is right.
    pub delta: bool,
    /// Whether what is there is moved aside.
    pub keep_old: bool,
    /// Whether the restored server archives.
    pub archiving: Archiving,
    /// Whether it becomes a standby.
    pub standby: Option<StandbySettings>,
    /// The databases to restore, by name or number; empty for all.
    pub databases: Vec<String>,
    /// Where files from outside the data directory are put; `None` leaves them out.
    pub include: Option<Include>,
    /// Threads.
    pub jobs: usize,
    /// Where a receiver on this host may have WAL that no repository has; `None` where nobody looks.
    pub received: Option<ReceiverFiles>,
    /// What the server fetches WAL with.
    pub restore_command: String,
    /// Starts the server afterwards and waits for the end of recovery.
    pub start: Option<StartRequest>,
    /// What the journal keeps, for whoever builds the request again; no secrets.
    pub parameters: serde_json::Value,
}

/// How the restored server is started.
#[derive(Debug, Clone)]
pub struct StartRequest {
    /// The directory of PostgreSQL's programs; found where it is not given.
    pub bin_dir: Option<PathBuf>,
    /// `postgresql.conf`, where it is not in the data directory.
    pub config_file: Option<PathBuf>,
    /// The role to ask the server as; where it is not let in, pg_control is read instead.
    pub user: Option<String>,
    /// How long recovery may take.
    pub timeout: Duration,
}

/// What came of a restore.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RestoreOutcome {
    /// Bytes that were written.
    pub written: u64,
    /// Bytes that were right already.
    pub kept: u64,
    /// Files that were made or changed.
    pub files_changed: u64,
    /// How many things that did not belong there were removed.
    pub removed: u64,
    /// Where what was there went.
    pub moved: Vec<PathBuf>,
    /// Settings that were removed or overridden.
    pub settings: Vec<String>,
    /// Databases of which nothing was restored, to be dropped.
    pub to_drop: Vec<String>,
    /// Files and directories from outside the data directory, where they are now.
    pub included: Vec<PathBuf>,
    /// How recovery ended, where the server was started.
    pub recovery: Option<RecoveryEnd>,
}

/// Where recovery ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecoveryEnd {
    /// What the server is now.
    pub state: ServerState,
    /// The position.
    pub lsn: Option<Lsn>,
    /// The timeline that was followed.
    pub timeline: Option<TimelineId>,
    /// The timeline that the server is on now.
    pub new_timeline: Option<TimelineId>,
    /// The last commit that was replayed.
    pub last_commit: Option<Timestamp>,
    /// Why it ended there, in the server's words.
    pub reason: Option<String>,
    /// How long it took from the start on, in seconds.
    pub seconds: f64,
}

/// What a server is after recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// A primary.
    Promoted,
    /// Read-only, at the target.
    Paused,
    /// Shut down, at the target.
    Stopped,
    /// A standby.
    Standby,
}

impl ServerState {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Standby => "standby",
        }
    }
}
