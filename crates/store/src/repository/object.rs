//! One object being written or read, as a stream of bytes for a blocking thread.

use std::io::{self, Read, Write};
use std::time::SystemTime;

use super::local::{LocalReader, LocalWriter};
use super::s3::{S3Reader, S3Writer};
use crate::error::StoreError;

/// Whether a write may replace what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutMode {
    /// Only where nothing is. Of two that race exactly one wins, where the storage can; see
    /// [`Repository::supports_conditional_put`](super::Repository::supports_conditional_put).
    Create,
    /// Replace what is there.
    Overwrite,
}

/// What a create did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateOutcome {
    /// The object is there, and it is ours.
    Created,
    /// Another object was there before; nothing was written.
    AlreadyThere,
}

impl CreateOutcome {
    pub(super) fn of(created: Result<(), StoreError>) -> Result<Self, StoreError> {
        match created {
            Ok(()) => Ok(Self::Created),
            Err(StoreError::AlreadyExists { .. }) => Ok(Self::AlreadyThere),
            Err(error) => Err(error),
        }
    }
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Its name, relative to the repository.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last written, by the storage's clock.
    pub modified: SystemTime,
}

/// Writes one object. Nothing appears under its name before [`ObjectWriter::publish`]; dropped or aborted, it
/// leaves nothing.
///
/// For blocking threads only (`tokio::task::spawn_blocking`, `std::thread`): on an S3 repository it waits for
/// uploads on the runtime that made it, and a thread of that runtime must not wait for itself.
pub struct ObjectWriter {
    pub(super) kind: WriterKind,
}

pub(super) enum WriterKind {
    Local(LocalWriter),
    S3(Box<S3Writer>),
}

impl ObjectWriter {
    /// The object's name.
    pub fn name(&self) -> &str {
        match &self.kind {
            WriterKind::Local(writer) => writer.name(),
            WriterKind::S3(writer) => writer.name(),
        }
    }

    /// Makes the object complete and durable under its name: on a file system by fsync, rename and fsync of
    /// the directory, on S3 by completing the upload.
    ///
    /// # Errors
    ///
    /// Whatever failed; then nothing is under the name that was not there before (unless the answer of the
    /// storage was lost: then the object may be there, complete).
    pub fn publish(self) -> Result<ObjectEntry, StoreError> {
        match self.kind {
            WriterKind::Local(writer) => writer.publish(),
            WriterKind::S3(writer) => writer.publish(),
        }
    }

    /// Gives up and removes what was written so far. Dropping does the same, but says nothing when the
    /// removal fails.
    ///
    /// # Errors
    ///
    /// When what was written cannot be removed.
    pub fn abort(self) -> Result<(), StoreError> {
        match self.kind {
            WriterKind::Local(writer) => writer.abort(),
            WriterKind::S3(writer) => writer.abort(),
        }
    }
}

impl Write for ObjectWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.kind {
            WriterKind::Local(writer) => writer.write(bytes),
            WriterKind::S3(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.kind {
            WriterKind::Local(writer) => writer.flush(),
            // Parts are uploaded when they are full; a part cannot be smaller.
            WriterKind::S3(_) => Ok(()),
        }
    }
}

/// Reads one object from its beginning to its end. On S3 it reads ahead in ranges, each tried again where
/// that helps; an object that is replaced meanwhile is an error.
///
/// For blocking threads only, as [`ObjectWriter`].
pub struct ObjectReader {
    pub(super) kind: ReaderKind,
    pub(super) entry: ObjectEntry,
}

pub(super) enum ReaderKind {
    Local(LocalReader),
    S3(Box<S3Reader>),
}

impl ObjectReader {
    /// What is being read.
    pub fn entry(&self) -> &ObjectEntry {
        &self.entry
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.kind {
            ReaderKind::Local(reader) => reader.read(buffer),
            ReaderKind::S3(reader) => reader.read(buffer),
        }
    }
}
