//! `global/pg_control`: what a cluster says about itself even when its server is stopped.
//!
//! The file is a C structure, `ControlFileData` of `src/include/catalog/pg_control.h`, padded with zeros to
//! 8192 bytes. Its layout is that of the server's machine; this module reads that of the machines that
//! pgmahout supports: little-endian, 64-bit alignment.
//!
//! | PostgreSQL | `pg_control_version` | what is new |
//! |---|---|---|
//! | 13 to 16 | 1300 | |
//! | 17 | 1700 | the checkpoint has `wal_level` |
//! | 18 | 1800 | the default signedness of `char` |
//!
//! Whether a server runs on the directory is nothing that the file can say: a killed server leaves it "in
//! production".

use crate::diagnostic::Diagnose;
use crate::lsn::Lsn;
use crate::system_identifier::SystemIdentifier;
use crate::timeline::TimelineId;
use crate::wal::SegmentSize;

mod layout;
#[cfg(test)]
mod tests;
mod values;

pub use values::{ClusterState, DataChecksums, FullTransactionId, UnixTime, WalLevel};

/// Everything that pg_control holds. Fields that hold "nothing" as zero in the file are `None`.
///
/// Names follow pg_controldata and the settings' own names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ControlFile {
    /// The number that this cluster, its standbys and its base backups share.
    pub system_identifier: SystemIdentifier,
    /// The version of the file's format: see the table of [this module](self).
    pub control_version: u32,
    /// The version of the system catalogs, which belongs to one major version: see [`ControlFile::major`].
    pub catalog_version: u32,
    /// What the server was doing when it last wrote the file.
    pub state: ClusterState,
    /// When the file was last written.
    pub modified: UnixTime,
    /// Where the record of the latest checkpoint begins.
    pub checkpoint_location: Lsn,
    /// What that record says.
    pub checkpoint: Checkpoint,
    /// The counter that stands in for a position in unlogged relations.
    pub unlogged_lsn: Lsn,
    /// In archive recovery: how far replay must come before the data is consistent.
    pub min_recovery: Option<MinRecoveryPoint>,
    /// Recovering from a base backup: where that backup's checkpoint begins.
    pub backup_start: Option<Lsn>,
    /// Recovering from a base backup of a standby: where that backup ended.
    pub backup_end: Option<Lsn>,
    /// Whether a record of the backup's end must be replayed before the data is consistent.
    pub backup_end_required: bool,
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
    /// Strictest alignment of any type, in bytes.
    pub maximum_alignment: u32,
    /// Bytes in a page of a relation (`block_size`).
    pub block_size: u32,
    /// Pages in a file of a large relation (`segment_size`).
    pub relation_segment_blocks: u32,
    /// Bytes in a page of WAL (`wal_block_size`).
    pub wal_block_size: u32,
    /// Size of the WAL segments (`wal_segment_size`).
    pub wal_segment_size: SegmentSize,
    /// Longest identifier and the zero byte after it, in bytes (`max_identifier_length` plus one).
    pub name_data_length: u32,
    /// Most columns in an index (`max_index_keys`).
    pub max_index_keys: u32,
    /// Largest piece of a value in a TOAST table, in bytes.
    pub toast_chunk_size: u32,
    /// Bytes in a page of a large object.
    pub large_object_chunk_size: u32,
    /// Whether 8-byte values are passed by value.
    pub float8_by_value: bool,
    /// Whether pages carry checksums, and of what kind.
    pub data_checksums: DataChecksums,
    /// Whether `char` was signed where the cluster was made; PostgreSQL 18 and later say it.
    pub default_char_signed: Option<bool>,
    /// The random bytes with which the server pretends to know unknown users.
    pub mock_authentication_nonce: [u8; 32],
}

impl ControlFile {
    /// The size of the file in bytes, in every version (`PG_CONTROL_FILE_SIZE`).
    pub const FILE_SIZE: usize = 8192;

    /// Where the file lies in a data directory.
    pub const PATH: &'static str = "global/pg_control";

    /// Reads the whole content of the file.
    ///
    /// A server replaces the file's content in place. A reader of a running server's file may therefore see
    /// it half written, which shows as [`ControlFileError::Checksum`]: try again before believing that.
    ///
    /// # Errors
    /// When it is shorter than PostgreSQL writes it, of an unknown version, of another machine, damaged, or
    /// holds a value that no server writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlFileError> {
        layout::parse(bytes)
    }

    /// The same file with a checkpoint where no WAL ever was: a server that does not find in `backup_label` where
    /// to begin finds no beginning at all.
    ///
    /// A restored directory without its `backup_label` would otherwise begin at a checkpoint from after the start
    /// of the backup, and be corrupt without a word. Where there is a label the server takes the checkpoint that
    /// the label names, and writes that one into the file (`InitWalRecovery` in
    /// `src/backend/access/transam/xlogrecovery.c`).
    ///
    /// # Errors
    /// As [`ControlFile::parse`].
    pub fn without_checkpoint(bytes: &[u8]) -> Result<Vec<u8>, ControlFileError> {
        layout::without_checkpoint(bytes)
    }

    /// The major version that the catalogs are of; `None` for development versions and for those older than 14.
    ///
    /// Major versions never change their catalog version after release (`src/include/catalog/catversion.h`).
    pub fn major(&self) -> Option<u32> {
        match self.catalog_version {
            202_107_181 => Some(14),
            202_209_061 => Some(15),
            202_307_071 => Some(16),
            202_406_281 => Some(17),
            202_506_291 => Some(18),
            _ => None,
        }
    }
}

/// What the record of a checkpoint says (`CheckPoint` in `src/include/catalog/pg_control.h`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkpoint {
    /// Where replay must begin.
    pub redo: Lsn,
    /// The timeline that the checkpoint was written on.
    pub timeline: TimelineId,
    /// The timeline before it where the checkpoint begins a new one; else the same.
    pub previous_timeline: TimelineId,
    /// `full_page_writes` at that time.
    pub full_page_writes: bool,
    /// `wal_level` at that time; PostgreSQL 17 and later say it.
    pub wal_level: Option<WalLevel>,
    /// The next transaction.
    pub next_transaction: FullTransactionId,
    /// The next object identifier.
    pub next_oid: u32,
    /// The next multixact.
    pub next_multixact: u32,
    /// The next place of a multixact's member.
    pub next_multixact_offset: u32,
    /// The oldest `datfrozenxid` of all databases.
    pub oldest_transaction: u32,
    /// The database that has it.
    pub oldest_transaction_database: u32,
    /// The oldest `datminmxid` of all databases.
    pub oldest_multixact: u32,
    /// The database that has it.
    pub oldest_multixact_database: u32,
    /// When the checkpoint began.
    pub time: UnixTime,
    /// The oldest transaction whose time of commit is kept; `None` where none is.
    pub oldest_commit_timestamp_transaction: Option<u32>,
    /// The newest transaction whose time of commit is kept; `None` where none is.
    pub newest_commit_timestamp_transaction: Option<u32>,
    /// The oldest transaction that was still running; `None` where that was not asked, as at a shutdown.
    pub oldest_active_transaction: Option<u32>,
}

/// How far archive recovery must come before the data is consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinRecoveryPoint {
    /// The position.
    pub lsn: Lsn,
    /// The timeline that it is on; `None` where the server has not noted one.
    pub timeline: Option<TimelineId>,
}

/// Why the content of pg_control cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlFileError {
    /// The file is too short for what it must hold.
    #[error(
        "pg_control is truncated: {length} bytes instead of {}",
        ControlFile::FILE_SIZE
    )]
    Truncated {
        /// How long it is.
        length: usize,
    },
    /// The file was written by a machine of the other byte order.
    #[error("pg_control has the byte order of another machine")]
    ByteOrder,
    /// The format is unknown.
    #[error("pg_control has format version {version}, which is unknown")]
    Version {
        /// What stands where the version belongs.
        version: u32,
    },
    /// The content does not match the checksum that stands beside it.
    #[error(
        "pg_control is damaged: its content has CRC-32C {computed:08X}, but {stored:08X} was written beside it"
    )]
    Checksum {
        /// As it stands in the file.
        stored: u32,
        /// As it would be right.
        computed: u32,
    },
    /// The checksum is right, but no server of this machine writes such a value.
    #[error("pg_control has {value} as {field}, which is impossible here")]
    Value {
        /// The field's name in PostgreSQL's source.
        field: &'static str,
        /// Its value.
        value: String,
    },
}

impl Diagnose for ControlFileError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Truncated { .. } | Self::Checksum { .. } => {
                "compare with `pg_controldata -D DATADIR`; if it complains too, restore the directory from a backup and do not start a server on it".to_owned()
            }
            Self::ByteOrder => {
                "data directories cannot move between machines of different byte order: use a dump".to_owned()
            }
            Self::Version { .. } => {
                "formats 1300, 1700 and 1800 are known, of PostgreSQL 14 to 18: `cat DATADIR/PG_VERSION` says which version the directory is of".to_owned()
            }
            Self::Value { .. } => {
                "the directory was made on another kind of machine, or by a PostgreSQL with other compile-time options: compare with `pg_controldata -D DATADIR`".to_owned()
            }
        })
    }
}
