//! The values that pg_control's fields can have.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::lsn::halves;

/// A transaction identifier that does not wrap around: the epoch in the upper 32 bits.
///
/// Its text is that of pg_controldata: epoch, colon, identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FullTransactionId(u64);

impl FullTransactionId {
    /// From the number, as `pg_current_xact_id()` gives it.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// How often the 32-bit identifiers have wrapped around.
    pub fn epoch(self) -> u32 {
        halves(self.0).0
    }

    /// The 32-bit identifier.
    pub fn xid(self) -> u32 {
        halves(self.0).1
    }
}

impl fmt::Display for FullTransactionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.epoch(), self.xid())
    }
}

/// A moment in seconds since 1970, UTC (`pg_time_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(i64);

impl UnixTime {
    /// From seconds since 1970.
    pub const fn new(seconds: i64) -> Self {
        Self(seconds)
    }

    /// Seconds since 1970.
    pub const fn seconds(self) -> i64 {
        self.0
    }
}

/// What the server was doing when it last wrote pg_control (`DBState`). Its text is pg_controldata's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClusterState {
    /// initdb, or a start that has not come far.
    StartingUp,
    /// A clean shutdown of a primary.
    ShutDown,
    /// A clean shutdown of a standby or of a recovery.
    ShutDownInRecovery,
    /// A shutdown that has begun.
    ShuttingDown,
    /// Replaying its own WAL after a crash.
    InCrashRecovery,
    /// Replaying from an archive or a primary: a standby, or a restore.
    InArchiveRecovery,
    /// Running as a primary, or killed while it did.
    InProduction,
}

impl ClusterState {
    /// The words of pg_controldata (`dbState` in `src/bin/pg_controldata/pg_controldata.c`).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StartingUp => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        }
    }

    /// Whether the server ended in good order, so that nothing is to be replayed at the next start.
    pub fn is_clean_shutdown(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }

    pub(super) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::StartingUp,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }
}

impl fmt::Display for ClusterState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// The setting `wal_level` (`WalLevel` in `src/include/access/xlog.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalLevel {
    /// Enough for crash recovery only: no archive, no standby, no base backup.
    Minimal,
    /// Enough for archives and standbys.
    Replica,
    /// Enough for logical decoding too.
    Logical,
}

impl WalLevel {
    /// The setting's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Replica => "replica",
            Self::Logical => "logical",
        }
    }

    pub(super) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Minimal,
            1 => Self::Replica,
            2 => Self::Logical,
            _ => return None,
        })
    }
}

impl fmt::Display for WalLevel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// Whether pages carry checksums. In serde it is the number that pg_controldata prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub enum DataChecksums {
    /// They do not.
    Off,
    /// They do, in the format of that number; 1 is the only one so far (`PG_DATA_CHECKSUM_VERSION` in
    /// `src/include/storage/bufpage.h`).
    Version(u32),
}

impl DataChecksums {
    /// Whether there are any.
    pub fn is_on(self) -> bool {
        self != Self::Off
    }

    /// The number that pg_controldata prints: zero for none.
    pub fn version(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::Version(version) => version,
        }
    }
}

impl From<u32> for DataChecksums {
    fn from(version: u32) -> Self {
        match version {
            0 => Self::Off,
            version => Self::Version(version),
        }
    }
}

impl From<DataChecksums> for u32 {
    fn from(checksums: DataChecksums) -> Self {
        checksums.version()
    }
}
