//! Data pages: blocks of 8 KiB, their checksums and their hashes.
//!
//! [`checksum`] computes PostgreSQL's own page checksum over many pages at once; [`hash`] gives a block the
//! identity by which it is compared with what a repository already has; [`verify`] decides what a page that
//! fails its checksum means in a backup of a running server.

pub mod checksum;
pub mod hash;
pub mod verify;

/// Bytes of a block (`BLCKSZ`). Clusters with another block size are refused before anything is read.
pub const BLOCK_SIZE: usize = 8192;

/// Blocks of a whole segment file of a relation (`RELSEG_SIZE`), 1 GiB; [`pgmahout_types::ControlFile`] says
/// what a cluster really has.
pub const SEGMENT_BLOCKS: u32 = 131_072;
