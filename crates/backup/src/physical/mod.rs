//! Physical backups: the files of a data directory, page by page.
//!
//! [`files`] says what every path of a data directory is, walks it, and reads it without disturbing the
//! server's page cache. [`page`] knows PostgreSQL's data pages: their checksums, their identity by content,
//! and what a page that fails its checksum means while the server is writing.

pub mod copy;
pub mod create;
pub mod drill;
pub mod expire;
pub mod files;
pub mod info;
pub mod page;
pub mod restore;
pub mod schedule;
pub mod stanza;
pub mod verify;
pub mod wal;
