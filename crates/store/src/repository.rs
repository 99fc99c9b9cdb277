//! A repository: named objects in a directory or in an S3 bucket.
//!
//! An object appears under its name complete or not at all, and is never changed in place. Names have
//! components with `/` between them, of letters, digits and `. _ - = + @ ,`; [`encode_component`] makes such
//! a component of any text.
//!
//! Objects that are in memory as a whole (manifests, packs) go through [`Repository::put_bytes`],
//! [`Repository::create_once`] and [`Repository::get_bytes`]; parts of one are read with
//! [`Repository::read_range`] and [`Repository::open_random`]. Larger ones stream through [`Repository::writer`]
//! and [`Repository::reader`], which are for blocking threads, as is [`BlockingRepository`].
//!
//! A repository with encryption has keys, the first wrapped in the object `repository.key` (twice:
//! `repository.key.copy`), which [`Repository::keyring`] and [`Repository::object_cipher`] open or, the first
//! time, make; sealing objects with them is their writer's business. A limit of bandwidth holds for a repository
//! and all its clones together.
//!
//! # Memory
//!
//! On a file system 256 KiB per writer, nothing per reader. On S3 at most 128 MiB per writer (40 MiB up to 8
//! GiB), 16 MiB per reader. What is put from memory is sent from where it is, without a copy; a part that is read
//! is in the reader's buffer alone. A listing holds its entries; one by pages at most 5000 of them, and one
//! directory.
//!
//! # Abandoned things
//!
//! A killed process leaves a hidden temporary on a file system; the next write into the same directory
//! removes it when nobody holds it any more and it is a day old. On S3 it leaves parts that no listing
//! shows: give the bucket a lifecycle rule that aborts incomplete multipart uploads after a few days.

mod bandwidth;
mod blocking;
mod check;
mod keys;
mod local;
mod name;
mod object;
mod random;
mod s3;
mod settings;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use pgmahout_config::secret::SecretReference;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

pub use blocking::BlockingRepository;
pub use check::CheckReport;
pub use keys::RepositoryKey;
pub use name::{decode_component, encode_component};
pub use object::{CreateOutcome, ObjectEntry, ObjectReader, ObjectWriter, PutMode};
pub use random::ObjectHandle;
pub use settings::{
    EncryptionSettings, Location, ParseLocationError, Patience, RepositorySettings, S3Settings,
    StorageSettings,
};

use crate::codec::Codec;
use crate::error::{Action, StoreError, Subject};
use crate::framed::FrameCodec;
use bandwidth::Throttle;
use keys::LoadedKeys;
use local::LocalStore;
use object::{ReaderKind, WriterKind};
use random::HandleKind;
use s3::{S3Secrets, S3Store};

/// An open repository. Cheap to clone; clones share connections and the opened key.
#[derive(Debug, Clone)]
pub struct Repository {
    storage: Storage,
    settings: Arc<RepositorySettings>,
    /// Name and place, for messages.
    description: String,
    keys: Arc<tokio::sync::Mutex<Option<LoadedKeys>>>,
}

#[derive(Debug, Clone)]
enum Storage {
    Local(LocalStore),
    S3(Arc<S3Store>),
}

impl Repository {
    /// Looks up the secrets of the storage and prepares the connection. Nothing is written, and S3 is not
    /// contacted: [`Repository::check`] does that.
    ///
    /// # Errors
    ///
    /// When a secret cannot be had or the settings make no sense.
    pub async fn open(settings: RepositorySettings) -> Result<Self, StoreError> {
        let location = settings.location().to_string();
        let description = if settings.name.is_empty() {
            location
        } else {
            format!("{} ({location})", settings.name)
        };
        let throttle = Throttle::new(settings.bandwidth_limit);
        let storage = match &settings.storage {
            StorageSettings::Local { path } => {
                Storage::Local(LocalStore::new(path.clone(), description.clone(), throttle))
            }
            StorageSettings::S3(s3) => {
                let name = settings.name.clone();
                let (s3, description) = (s3.clone(), description.clone());
                let built = run_blocking(move || {
                    if !s3.prefix.is_empty() {
                        name::check(s3.prefix.trim_matches('/'))?;
                    }
                    let secret = |what, reference: &Option<SecretReference>| {
                        reference
                            .as_ref()
                            .map(SecretReference::resolve)
                            .transpose()
                            .map_err(|source| StoreError::Secret {
                                repository: name.clone(),
                                what,
                                source,
                            })
                    };
                    let secrets = S3Secrets {
                        access_key: secret("the access key", &s3.access_key)?,
                        secret_key: secret("the secret key", &s3.secret_key)?,
                        session_token: secret("the session token", &s3.session_token)?,
                    };
                    S3Store::new(&s3, &secrets, description, &name, throttle)
                });
                Storage::S3(Arc::new(built.await?))
            }
        };
        Ok(Self {
            storage,
            settings: Arc::new(settings),
            description,
            keys: Arc::default(),
        })
    }

    /// The name given in the settings.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Where it is.
    pub fn location(&self) -> Location {
        self.settings.location()
    }

    /// Name and place, as messages have it.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// How new objects are compressed when nothing else is asked for.
    pub fn compression(&self) -> Codec {
        self.settings.compression
    }

    /// Whether new objects are to be sealed.
    pub fn is_encrypted(&self) -> bool {
        self.settings.encryption.is_some()
    }

    /// How frames of framed objects are compressed when nothing else is asked for: as the settings say, and
    /// where they name no codec that frames have, zstd at level 1.
    pub fn frame_codec(&self) -> FrameCodec {
        self.settings.compression.into()
    }

    /// Whether it is promised that one host alone writes here. Where the storage cannot create an object only
    /// where none is, nothing else keeps two writers apart.
    pub fn is_single_writer(&self) -> bool {
        self.settings.single_writer
    }

    /// What an error of an operation on an object of this repository is about.
    pub fn subject(&self, action: Action, object: &str) -> Subject {
        Subject {
            repository: self.description.clone(),
            object: object.to_owned(),
            action,
        }
    }

    /// Stores a small object, durable when this returns.
    ///
    /// # Errors
    ///
    /// [`StoreError::AlreadyExists`] with [`PutMode::Create`] where something is; otherwise what the storage
    /// says. When the answer of an S3 server was lost in all attempts the object may be there.
    pub async fn put_bytes(
        &self,
        name: &str,
        bytes: impl Into<Bytes>,
        mode: PutMode,
    ) -> Result<(), StoreError> {
        name::check(name)?;
        let bytes = bytes.into();
        match &self.storage {
            Storage::Local(store) => {
                let (store, name) = (store.clone(), name.to_owned());
                run_blocking(move || store.put_bytes(&name, &bytes, mode)).await
            }
            Storage::S3(store) => store.put_bytes(name, bytes, mode).await,
        }
    }

    /// Stores an object only where none is, and says which it was. An answer that was lost is decided by reading
    /// back: bytes that are there and equal to these count as created, so put a nonce into them where that must
    /// be told from another's.
    ///
    /// Up to 5 GiB are put with one request; the bytes are not copied.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotConditional`] where the storage does not know conditional writes and nobody promised to be
    /// the single writer; otherwise what the storage says. When it could not even be read back
    /// ([`StoreError::is_retryable`]), the object may be there.
    pub async fn create_once(
        &self,
        name: &str,
        bytes: impl Into<Bytes>,
    ) -> Result<CreateOutcome, StoreError> {
        name::check(name)?;
        let bytes = bytes.into();
        let created = match &self.storage {
            Storage::Local(store) => {
                let (store, name) = (store.clone(), name.to_owned());
                run_blocking(move || store.put_bytes(&name, &bytes, PutMode::Create)).await
            }
            Storage::S3(store) => store.create(name, bytes, !self.settings.single_writer).await,
        };
        CreateOutcome::of(created)
    }

    /// Reads a range of an object's bytes.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`], [`StoreError::Corrupt`] when the object ends before the range does, or what the
    /// storage says.
    pub async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        name::check(name)?;
        match &self.storage {
            Storage::Local(store) => {
                let (store, name) = (store.clone(), name.to_owned());
                run_blocking(move || {
                    let mut bytes = Vec::new();
                    let length = range.end.saturating_sub(range.start) as usize;
                    store
                        .open_random(&name)?
                        .read_at(range.start, length, &mut bytes)?;
                    Ok(bytes.into())
                })
                .await
            }
            Storage::S3(store) => {
                let mut bytes = Vec::new();
                store.open_random(name).read(range, &mut bytes).await?;
                Ok(bytes.into())
            }
        }
    }

    /// Opens an object for reading parts of it from blocking threads. On S3 nothing is asked yet, not even whether
    /// it exists; on a file system it is one cheap call.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`] on a file system, or what it says.
    pub async fn open_random(&self, name: &str) -> Result<ObjectHandle, StoreError> {
        name::check(name)?;
        let kind = match &self.storage {
            Storage::Local(store) => {
                let (store, name) = (store.clone(), name.to_owned());
                HandleKind::Local(run_blocking(move || store.open_random(&name)).await?)
            }
            Storage::S3(store) => HandleKind::S3 {
                source: Arc::new(store.open_random(name)),
                runtime: Handle::current(),
            },
        };
        Ok(ObjectHandle { kind })
    }

    /// This repository for std threads. Call it on the runtime whose threads shall do the network's work.
    pub fn blocking(&self) -> BlockingRepository {
        BlockingRepository::new(self.clone(), Handle::current())
    }

    /// Reads a small object whole, at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`], [`StoreError::TooLarge`], or what the storage says.
    pub async fn get_bytes(&self, name: &str, limit: u64) -> Result<Bytes, StoreError> {
        name::check(name)?;
        match &self.storage {
            Storage::Local(store) => {
                let (store, name) = (store.clone(), name.to_owned());
                run_blocking(move || store.get_bytes(&name, limit)).await
            }
            Storage::S3(store) => store.get_bytes(name, limit).await,
        }
    }

    /// Begins to write an object of any size. Cancelling makes every further write and the publication fail
    /// with [`StoreError::Cancelled`]; nothing is then under the name.
    ///
    /// # Errors
    ///
    /// [`StoreError::AlreadyExists`] with [`PutMode::Create`] where something is already; otherwise what the
    /// storage says.
    pub async fn writer(
        &self,
        name: &str,
        mode: PutMode,
        cancellation: &CancellationToken,
    ) -> Result<ObjectWriter, StoreError> {
        name::check(name)?;
        let cancellation = cancellation.clone();
        let kind = match &self.storage {
            Storage::Local(store) => {
                let (store, name) = (store.clone(), name.to_owned());
                WriterKind::Local(run_blocking(move || store.writer(&name, mode, cancellation)).await?)
            }
            Storage::S3(store) => WriterKind::S3(Box::new(store.writer(name, mode, cancellation).await?)),
        };
        Ok(ObjectWriter { kind })
    }

    /// Begins to read an object of any size. Cancelling makes every further read fail with
    /// [`StoreError::Cancelled`].
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`], or what the storage says.
    pub async fn reader(
        &self,
        name: &str,
        cancellation: &CancellationToken,
    ) -> Result<ObjectReader, StoreError> {
        name::check(name)?;
        let cancellation = cancellation.clone();
        match &self.storage {
            Storage::Local(store) => {
                let (store, name) = (store.clone(), name.to_owned());
                let (reader, entry) = run_blocking(move || store.reader(&name, cancellation)).await?;
                Ok(ObjectReader {
                    kind: ReaderKind::Local(reader),
                    entry,
                })
            }
            Storage::S3(store) => {
                let (reader, entry) = store.reader(name, cancellation).await?;
                Ok(ObjectReader {
                    kind: ReaderKind::S3(Box::new(reader)),
                    entry,
                })
            }
        }
    }

    /// All objects whose names begin with `prefix/` (all objects for an empty prefix), by name. A prefix
    /// under which nothing is gives an empty list; a repository that is not there is an error.
    ///
    /// # Errors
    ///
    /// [`StoreError::RepositoryMissing`], [`StoreError::Cancelled`], or what the storage says.
    pub async fn list(
        &self,
        prefix: &str,
        cancellation: &CancellationToken,
    ) -> Result<Vec<ObjectEntry>, StoreError> {
        let mut found = Vec::new();
        self.list_each(prefix, cancellation, |page| {
            found.extend(page);
            Ok(())
        })
        .await?;
        found.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(found)
    }

    /// The same, given to `each` page by page, of up to 1000, so that the whole listing is never in memory. The
    /// order is that of names, on S3 that of the server. An error of `each` ends the listing and is given back.
    ///
    /// # Errors
    ///
    /// As [`Repository::list`], and those of `each`.
    pub async fn list_each(
        &self,
        prefix: &str,
        cancellation: &CancellationToken,
        mut each: impl FnMut(Vec<ObjectEntry>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let prefix = prefix.trim_matches('/').to_owned();
        if !prefix.is_empty() {
            name::check(&prefix)?;
        }
        match &self.storage {
            Storage::Local(store) => {
                let (store, cancellation) = (store.clone(), cancellation.clone());
                let (sender, mut pages) = mpsc::channel(PAGES_AHEAD);
                let listing = run_blocking(move || {
                    store.list_each(&prefix, &cancellation, |page| {
                        // Nobody receives any more after an error of `each`, which is told below.
                        sender.blocking_send(page).map_err(|_| StoreError::Cancelled {
                            subject: store.listing_subject(&prefix),
                        })
                    })
                });
                let giving = async move {
                    while let Some(page) = pages.recv().await {
                        each(page)?;
                    }
                    Ok(())
                };
                let (listed, given) = tokio::join!(listing, giving);
                given.and(listed)
            }
            Storage::S3(store) => tokio::select! {
                // Both are safe to drop: listing only reads.
                () = cancellation.cancelled() => {
                    Err(StoreError::Cancelled { subject: self.subject(Action::List, &prefix) })
                }
                listed = store.list_each(&prefix, each) => listed,
            },
        }
    }

    /// Deletes objects, some at a time. Names under which nothing is are passed over, and what failed does not
    /// keep the others from being deleted.
    ///
    /// # Errors
    ///
    /// The first failure, or [`StoreError::Cancelled`]; some objects are then still there. Run it again.
    pub async fn delete_many(
        &self,
        names: &[String],
        cancellation: &CancellationToken,
    ) -> Result<(), StoreError> {
        names.iter().try_for_each(|name| name::check(name))?;
        match &self.storage {
            Storage::Local(store) => {
                let (store, cancellation, names) = (store.clone(), cancellation.clone(), names.to_vec());
                run_blocking(move || store.delete_many(&names, &cancellation)).await
            }
            Storage::S3(store) => tokio::select! {
                // Both are safe to drop: each deletion is carried out or not.
                () = cancellation.cancelled() => {
                    Err(StoreError::Cancelled { subject: self.subject(Action::Delete, "") })
                }
                deleted = store.delete_many(names) => deleted,
            },
        }
    }

    /// What is known of an object; `None` when it does not exist.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub async fn head(&self, name: &str) -> Result<Option<ObjectEntry>, StoreError> {
        name::check(name)?;
        match &self.storage {
            Storage::Local(store) => {
                let (store, name) = (store.clone(), name.to_owned());
                run_blocking(move || store.head(&name)).await
            }
            Storage::S3(store) => store.head(name).await,
        }
    }

    /// Whether an object exists.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub async fn exists(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.head(name).await?.is_some())
    }

    /// Deletes an object; `false` when there was none.
    ///
    /// # Errors
    ///
    /// What the storage says.
    pub async fn delete(&self, name: &str) -> Result<bool, StoreError> {
        name::check(name)?;
        match &self.storage {
            Storage::Local(store) => {
                let (store, name) = (store.clone(), name.to_owned());
                run_blocking(move || store.delete(&name)).await
            }
            Storage::S3(store) => store.delete(name).await,
        }
    }
}

/// Pages of a listing that wait for whoever takes them.
const PAGES_AHEAD: usize = 4;

/// Runs blocking work on the runtime's threads for that. A panic there goes on here.
async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and nobody will see the result.
            Err(_) => std::future::pending().await,
        },
    }
}
