//! The WAL archive: one object for each segment, named by timeline and segment alone, stored only where none is.
//!
//! * [`WalArchive`]: the archive of one stanza in one repository: has, get, put, list;
//! * [`mod@file`]: what a file of the server must be before it is archived;
//! * [`inventory`]: ranges, gaps and branches of what is there;
//! * [`push`]: from pg_wal into the repositories; [`fetch`]: back to the server; [`receive`]: by streaming replication;
//! * [`verify`]: everything read back; [`enable`]: archiving turned on and off;
//! * [`error`]: what can go wrong.
//!
//! What is archived is never replaced. The same content again is success, other content under the same name is an
//! error: two servers archive into one stanza, or one went back in time on an old timeline.
//!
//! # Memory
//!
//! A file that is stored or fetched is in memory twice: as it is, and as its object.

mod archive;
mod buffers;
mod digest;
pub mod enable;
pub mod error;
pub mod fetch;
pub mod file;
pub mod inventory;
mod object;
mod place;
pub mod push;
pub mod receive;
pub mod verify;

pub use archive::{PutOutcome, WalArchive};
pub use error::WalError;
pub use file::WalFile;
pub use inventory::{TimelineWal, WalInventory};
pub use object::ArchivedFile;
pub use place::Destination;
