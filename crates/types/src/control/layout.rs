//! The bytes of pg_control.

use super::{
    Checkpoint, ClusterState, ControlFile, ControlFileError, DataChecksums, FullTransactionId,
    MinRecoveryPoint, UnixTime, WalLevel,
};
use crate::lsn::Lsn;
use crate::system_identifier::SystemIdentifier;
use crate::timeline::TimelineId;
use crate::wal::SegmentSize;

/// A format of the structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Format {
    /// PostgreSQL 13 to 16.
    V1300,
    /// PostgreSQL 17.
    V1700,
    /// PostgreSQL 18.
    V1800,
}

impl Format {
    fn from_version(version: u32) -> Option<Self> {
        match version {
            1300 => Some(Self::V1300),
            1700 => Some(Self::V1700),
            1800 => Some(Self::V1800),
            _ => None,
        }
    }

    /// Where the checksum stands; it covers everything before it.
    pub(super) fn checksum_offset(self) -> usize {
        match self {
            Self::V1300 | Self::V1700 => 288,
            Self::V1800 => 292,
        }
    }
}

/// `FLOATFORMAT_VALUE`: a number whose bits say how the machine writes floating point.
const FLOAT_FORMAT: f64 = 1_234_567.0;

pub(super) fn parse(bytes: &[u8]) -> Result<ControlFile, ControlFileError> {
    if bytes.len() < ControlFile::FILE_SIZE {
        return Err(ControlFileError::Truncated { length: bytes.len() });
    }
    // These two stand at the same place in every version.
    let mut fields = Fields { bytes, position: 0 };
    let system_identifier = SystemIdentifier::new(fields.u64()?);
    let control_version = fields.u32()?;
    let Some(format) = Format::from_version(control_version) else {
        // The way by which the server recognises a foreign byte order, in ReadControlFile.
        let swapped = control_version.is_multiple_of(0x1_0000) && control_version != 0;
        return Err(if swapped {
            ControlFileError::ByteOrder
        } else {
            ControlFileError::Version {
                version: control_version,
            }
        });
    };
    verify_checksum(bytes, format)?;

    let catalog_version = fields.u32()?;
    let state = fields.u32()?;
    let state = ClusterState::from_number(state).ok_or_else(|| impossible("state", &state))?;
    let modified = UnixTime::new(fields.i64()?);
    let checkpoint_location = fields.lsn()?;
    let checkpoint = parse_checkpoint(&mut fields, format)?;
    let unlogged_lsn = fields.lsn()?;

    let min_recovery_lsn = fields.lsn()?;
    let min_recovery_timeline = TimelineId::new(fields.u32()?);
    let min_recovery = min_recovery_lsn.valid().map(|lsn| MinRecoveryPoint {
        lsn,
        timeline: min_recovery_timeline,
    });
    let backup_start = fields.lsn()?.valid();
    let backup_end = fields.lsn()?.valid();
    let backup_end_required = fields.flag("backupEndRequired")?;

    let wal_level = fields.wal_level()?;
    let wal_log_hints = fields.flag("wal_log_hints")?;
    let max_connections = fields.setting("MaxConnections")?;
    let max_worker_processes = fields.setting("max_worker_processes")?;
    let max_wal_senders = fields.setting("max_wal_senders")?;
    let max_prepared_transactions = fields.setting("max_prepared_xacts")?;
    let max_locks_per_transaction = fields.setting("max_locks_per_xact")?;
    let track_commit_timestamp = fields.flag("track_commit_timestamp")?;

    let maximum_alignment = fields.u32()?;
    if maximum_alignment != 8 {
        return Err(impossible("maxAlign", &maximum_alignment));
    }
    let float_format = f64::from_bits(fields.u64()?);
    if float_format.to_bits() != FLOAT_FORMAT.to_bits() {
        return Err(impossible("floatFormat", &float_format));
    }
    let block_size = fields.u32()?;
    let relation_segment_blocks = fields.u32()?;
    let wal_block_size = fields.u32()?;
    let wal_segment_size = fields.u32()?;
    let wal_segment_size = SegmentSize::new(u64::from(wal_segment_size))
        .map_err(|_| impossible("xlog_seg_size", &wal_segment_size))?;
    let name_data_length = fields.u32()?;
    let max_index_keys = fields.u32()?;
    let toast_chunk_size = fields.u32()?;
    let large_object_chunk_size = fields.u32()?;
    let float8_by_value = fields.flag("float8ByVal")?;
    let data_checksums = match fields.u32()? {
        0 => DataChecksums::Off,
        version => DataChecksums::Version(version),
    };
    let default_char_signed = if format >= Format::V1800 {
        Some(fields.flag("default_char_signedness")?)
    } else {
        None
    };
    let mock_authentication_nonce = fields.take::<32>(1)?;

    Ok(ControlFile {
        system_identifier,
        control_version,
        catalog_version,
        state,
        modified,
        checkpoint_location,
        checkpoint,
        unlogged_lsn,
        min_recovery,
        backup_start,
        backup_end,
        backup_end_required,
        wal_level,
        wal_log_hints,
        max_connections,
        max_worker_processes,
        max_wal_senders,
        max_prepared_transactions,
        max_locks_per_transaction,
        track_commit_timestamp,
        maximum_alignment,
        block_size,
        relation_segment_blocks,
        wal_block_size,
        wal_segment_size,
        name_data_length,
        max_index_keys,
        toast_chunk_size,
        large_object_chunk_size,
        float8_by_value,
        data_checksums,
        default_char_signed,
        mock_authentication_nonce,
    })
}

fn parse_checkpoint(fields: &mut Fields<'_>, format: Format) -> Result<Checkpoint, ControlFileError> {
    let redo = fields.lsn()?;
    let timeline = fields.timeline("checkPointCopy.ThisTimeLineID")?;
    let previous_timeline = fields.timeline("checkPointCopy.PrevTimeLineID")?;
    let full_page_writes = fields.flag("checkPointCopy.fullPageWrites")?;
    let wal_level = if format >= Format::V1700 {
        Some(fields.wal_level()?)
    } else {
        None
    };
    let checkpoint = Checkpoint {
        redo,
        timeline,
        previous_timeline,
        full_page_writes,
        wal_level,
        next_transaction: FullTransactionId::new(fields.u64()?),
        next_oid: fields.u32()?,
        next_multixact: fields.u32()?,
        next_multixact_offset: fields.u32()?,
        oldest_transaction: fields.u32()?,
        oldest_transaction_database: fields.u32()?,
        oldest_multixact: fields.u32()?,
        oldest_multixact_database: fields.u32()?,
        time: UnixTime::new(fields.i64()?),
        oldest_commit_timestamp_transaction: fields.transaction()?,
        newest_commit_timestamp_transaction: fields.transaction()?,
        oldest_active_transaction: fields.transaction()?,
    };
    // CheckPoint is a structure of its own, whose size is a multiple of its alignment.
    fields.align(8);
    Ok(checkpoint)
}

/// Where the location of the checkpoint stands, in every version.
const CHECKPOINT_LOCATION: usize = 32;

/// In segment 0, which no cluster has: WAL begins with segment 1. A record could begin there, which is all that the
/// server asks of the number when it starts (`XRecOffIsValid`).
const NOWHERE: Lsn = Lsn::new(0x28);

pub(super) fn without_checkpoint(bytes: &[u8]) -> Result<Vec<u8>, ControlFileError> {
    let control = parse(bytes)?;
    let version = control.control_version;
    let format = Format::from_version(version).ok_or(ControlFileError::Version { version })?;
    let mut changed = bytes.to_vec();
    let checked = format.checksum_offset();
    changed[CHECKPOINT_LOCATION..][..8].copy_from_slice(&NOWHERE.as_u64().to_le_bytes());
    let checksum = crc32c::crc32c(&changed[..checked]);
    changed[checked..][..4].copy_from_slice(&checksum.to_le_bytes());
    Ok(changed)
}

fn verify_checksum(bytes: &[u8], format: Format) -> Result<(), ControlFileError> {
    let offset = format.checksum_offset();
    let stored = Fields {
        bytes,
        position: offset,
    }
    .u32()?;
    let computed = crc32c::crc32c(
        bytes
            .get(..offset)
            .ok_or(ControlFileError::Truncated { length: bytes.len() })?,
    );
    if stored == computed {
        Ok(())
    } else {
        Err(ControlFileError::Checksum { stored, computed })
    }
}

fn impossible(field: &'static str, value: &impl ToString) -> ControlFileError {
    ControlFileError::Value {
        field,
        value: value.to_string(),
    }
}

/// Reads the members of a C structure one after the other: each begins at a multiple of its own size, and
/// what is skipped for that is padding.
struct Fields<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Fields<'_> {
    fn align(&mut self, alignment: usize) {
        self.position = self.position.next_multiple_of(alignment);
    }

    fn take<const LENGTH: usize>(&mut self, alignment: usize) -> Result<[u8; LENGTH], ControlFileError> {
        self.align(alignment);
        let taken = self
            .bytes
            .get(self.position..)
            .and_then(|rest| rest.first_chunk::<LENGTH>());
        let taken = *taken.ok_or(ControlFileError::Truncated {
            length: self.bytes.len(),
        })?;
        self.position += LENGTH;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, ControlFileError> {
        self.take(4).map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ControlFileError> {
        self.take(8).map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Result<i64, ControlFileError> {
        self.take(8).map(i64::from_le_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn, ControlFileError> {
        self.u64().map(Lsn::new)
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, ControlFileError> {
        match self.take::<1>(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(impossible(field, &other)),
        }
    }

    /// A C `int` that is never negative.
    fn setting(&mut self, field: &'static str) -> Result<u32, ControlFileError> {
        let value = self.take(4).map(i32::from_le_bytes)?;
        u32::try_from(value).map_err(|_| impossible(field, &value))
    }

    fn timeline(&mut self, field: &'static str) -> Result<TimelineId, ControlFileError> {
        let number = self.u32()?;
        TimelineId::new(number).ok_or_else(|| impossible(field, &number))
    }

    fn wal_level(&mut self) -> Result<WalLevel, ControlFileError> {
        let number = self.u32()?;
        WalLevel::from_number(number).ok_or_else(|| impossible("wal_level", &number))
    }

    /// A transaction identifier; zero is `InvalidTransactionId`.
    fn transaction(&mut self) -> Result<Option<u32>, ControlFileError> {
        let transaction = self.u32()?;
        Ok((transaction != 0).then_some(transaction))
    }
}
