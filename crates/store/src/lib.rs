//! IO with repositories: objects on a file system or S3, compression, encryption, durable publication.
//!
//! A dump passes through here as a stream of bytes, each stage a [`std::io::Write`] around the next:
//!
//! ```text
//! pg_dump -> codec::Compressor -> seal::Sealer -> digest::DigestWriter -> repository::ObjectWriter
//! ```
//!
//! and back through [`seal::Opener`] and [`codec::Decompressor`], each a [`std::io::Read`]. These run on
//! threads; only the storage itself is asynchronous. Every stage bounds its memory and says how in its module.
//!
//! A physical backup makes its objects whole in memory ([`framed`]) and stores each in one piece.
//!
//! Nothing here knows what a dump or a backup is, and nothing here prints.

pub mod codec;
pub mod digest;
mod error;
pub mod framed;
pub mod repository;
pub mod seal;

pub use error::{Action, Answer, StoreError, Subject};
