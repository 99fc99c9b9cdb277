//! A repository for std threads.

use std::ops::Range;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::random::HandleKind;
use super::{CreateOutcome, ObjectEntry, ObjectHandle, PutMode, Repository, Storage, name};
use crate::error::StoreError;

/// A repository whose operations block: for workers that are std threads, or `spawn_blocking`. On a file system
/// the work is done on the caller's thread, on S3 by the runtime. A thread of that runtime must not call it.
///
/// Operations and errors are those of [`Repository`].
#[derive(Debug, Clone)]
pub struct BlockingRepository {
    repository: Repository,
    runtime: Handle,
}

impl BlockingRepository {
    /// A repository, and the runtime that does the network's work.
    pub fn new(repository: Repository, runtime: Handle) -> Self {
        Self { repository, runtime }
    }

    /// The repository itself.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Whether it is on a file system, where a request is a system call.
    pub fn is_local(&self) -> bool {
        matches!(self.repository.storage, Storage::Local(_))
    }

    /// See [`Repository::put_bytes`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn put_bytes(&self, name: &str, bytes: impl Into<Bytes>, mode: PutMode) -> Result<(), StoreError> {
        name::check(name)?;
        let bytes = bytes.into();
        match &self.repository.storage {
            Storage::Local(store) => store.put_bytes(name, &bytes, mode),
            Storage::S3(store) => self.runtime.block_on(store.put_bytes(name, bytes, mode)),
        }
    }

    /// See [`Repository::create_once`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn create_once(&self, name: &str, bytes: impl Into<Bytes>) -> Result<CreateOutcome, StoreError> {
        name::check(name)?;
        let bytes = bytes.into();
        match &self.repository.storage {
            Storage::Local(store) => CreateOutcome::of(store.put_bytes(name, &bytes, PutMode::Create)),
            Storage::S3(_) => self.runtime.block_on(self.repository.create_once(name, bytes)),
        }
    }

    /// See [`Repository::get_bytes`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn get_bytes(&self, name: &str, limit: u64) -> Result<Bytes, StoreError> {
        name::check(name)?;
        match &self.repository.storage {
            Storage::Local(store) => store.get_bytes(name, limit),
            Storage::S3(store) => self.runtime.block_on(store.get_bytes(name, limit)),
        }
    }

    /// See [`Repository::read_range`]. For more than one range of an object, open it.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let mut bytes = Vec::new();
        let length = range.end.saturating_sub(range.start) as usize;
        self.read_at(name, range.start, length, &mut bytes)?;
        Ok(bytes.into())
    }

    /// Reads exactly `length` bytes of an object from `offset`; `out` then holds them and nothing else. For more
    /// than one range of an object, open it.
    ///
    /// # Errors
    ///
    /// As [`ObjectHandle::read_at`].
    pub fn read_at(
        &self,
        name: &str,
        offset: u64,
        length: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        self.open_random(name)?.read_at(offset, length, out)
    }

    /// See [`Repository::open_random`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn open_random(&self, name: &str) -> Result<ObjectHandle, StoreError> {
        name::check(name)?;
        let kind = match &self.repository.storage {
            Storage::Local(store) => HandleKind::Local(store.open_random(name)?),
            Storage::S3(store) => HandleKind::S3 {
                source: store.open_random(name).into(),
                runtime: self.runtime.clone(),
            },
        };
        Ok(ObjectHandle { kind })
    }

    /// See [`Repository::head`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn head(&self, name: &str) -> Result<Option<ObjectEntry>, StoreError> {
        name::check(name)?;
        match &self.repository.storage {
            Storage::Local(store) => store.head(name),
            Storage::S3(store) => self.runtime.block_on(store.head(name)),
        }
    }

    /// See [`Repository::exists`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn exists(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.head(name)?.is_some())
    }

    /// See [`Repository::delete`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn delete(&self, name: &str) -> Result<bool, StoreError> {
        name::check(name)?;
        match &self.repository.storage {
            Storage::Local(store) => store.delete(name),
            Storage::S3(store) => self.runtime.block_on(store.delete(name)),
        }
    }
}
