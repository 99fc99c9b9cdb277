//! Pure data types and codecs of PostgreSQL and of pgmahout: no IO, no clock, no randomness.
//!
//! Everything here that reads bytes from outside is total: any input gives a value or an error, never a
//! panic, and is fuzzed.

// A number that is cut short or changes its sign here names the wrong WAL.
#![deny(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss
)]

pub mod backup_label;
pub mod bytes;
pub mod control;
pub mod diagnostic;
pub mod duration;
pub mod history;
pub mod lsn;
pub mod repository;
pub mod system_identifier;
pub mod tablespace_map;
pub mod timeline;
pub mod version;
pub mod wal;

pub use backup_label::BackupLabel;
pub use bytes::Bytes;
pub use control::ControlFile;
pub use duration::HumanDuration;
pub use history::TimelineHistory;
pub use lsn::Lsn;
pub use system_identifier::SystemIdentifier;
pub use tablespace_map::TablespaceMap;
pub use timeline::TimelineId;
pub use wal::{SegmentName, SegmentSize, WalFileName, WalPageHeader};
