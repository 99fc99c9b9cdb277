//! Reading parts of one object, in any order.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::bandwidth::Throttle;
use super::s3::RangeSource;
use crate::error::{Action, Answer, StoreError, Subject};

/// An object open for reading parts of it, from many threads at a time. On a file system it is an open file, and
/// each read is one system call. On S3 opening asks nothing; each read is one request, tried again where that
/// helps, and an object that is replaced between two reads is an error.
///
/// Its methods are for blocking threads only, as [`ObjectReader`](super::ObjectReader).
#[derive(Debug)]
pub struct ObjectHandle {
    pub(super) kind: HandleKind,
}

#[derive(Debug)]
pub(super) enum HandleKind {
    Local(LocalObject),
    S3 {
        source: Arc<RangeSource>,
        runtime: Handle,
    },
}

#[derive(Debug)]
pub(super) struct LocalObject {
    pub(super) file: File,
    pub(super) size: u64,
    pub(super) subject: Subject,
    pub(super) throttle: Throttle,
}

impl ObjectHandle {
    /// The object's name.
    pub fn name(&self) -> &str {
        match &self.kind {
            HandleKind::Local(object) => &object.subject.object,
            HandleKind::S3 { source, .. } => source.name(),
        }
    }

    /// Bytes of the object. On S3 a request, unless something was read before.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`], or what the storage says.
    pub fn size(&self) -> Result<u64, StoreError> {
        match &self.kind {
            HandleKind::Local(object) => Ok(object.size),
            HandleKind::S3 { source, runtime } => runtime.block_on(source.size()),
        }
    }

    /// Reads exactly `length` bytes from `offset`. `out` then holds them and nothing else; after an error what it
    /// holds means nothing.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`], [`StoreError::Changed`], [`StoreError::Corrupt`] when the object ends before the
    /// range does, or what the storage says.
    pub fn read_at(&self, offset: u64, length: usize, out: &mut Vec<u8>) -> Result<(), StoreError> {
        match &self.kind {
            HandleKind::Local(object) => object.read_at(offset, length, out),
            HandleKind::S3 { source, runtime } => {
                out.clear();
                runtime.block_on(source.read(offset..offset.saturating_add(length as u64), out))
            }
        }
    }

    /// Reads the last `length` bytes, or all where there are fewer, and gives the object's size. `out` as in
    /// [`ObjectHandle::read_at`].
    ///
    /// # Errors
    ///
    /// As [`ObjectHandle::read_at`].
    pub fn read_tail(&self, length: usize, out: &mut Vec<u8>) -> Result<u64, StoreError> {
        match &self.kind {
            HandleKind::Local(object) => {
                let length = (length as u64).min(object.size);
                object.read_at(object.size - length, length as usize, out)?;
                Ok(object.size)
            }
            HandleKind::S3 { source, runtime } => {
                out.clear();
                runtime.block_on(source.read_tail(length as u64, out))
            }
        }
    }
}

impl LocalObject {
    pub(super) fn read_at(&self, offset: u64, length: usize, out: &mut Vec<u8>) -> Result<(), StoreError> {
        if offset.saturating_add(length as u64) > self.size {
            return Err(too_short(&self.subject, self.size));
        }
        // What is there already need not be cleared: all of it is overwritten.
        out.resize(length, 0);
        let mut done = 0;
        while done < length {
            let piece = self.throttle.piece(length - done);
            self.throttle.take_blocking(piece);
            self.file
                .read_exact_at(&mut out[done..done + piece], offset + done as u64)
                .map_err(|error| match error.kind() {
                    // It was longer when it was opened, and objects are never written in place.
                    std::io::ErrorKind::UnexpectedEof => StoreError::Changed {
                        subject: self.subject.clone(),
                    },
                    _ => StoreError::from_io(error, self.subject.clone()),
                })?;
            done += piece;
        }
        Ok(())
    }
}

/// A range that is not inside the object.
pub(super) fn too_short(subject: &Subject, size: u64) -> StoreError {
    debug_assert_eq!(subject.action, Action::Read);
    StoreError::Corrupt {
        subject: subject.clone(),
        source: Box::new(Answer(format!(
            "it ends after {size} bytes, before what was asked of it"
        ))),
    }
}
