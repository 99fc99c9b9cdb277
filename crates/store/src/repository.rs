//! A repository: named objects in a directory or in an S3 bucket.
//!
//! An object appears under its name complete or not at all, and is never changed in place. Names have
//! components with `/` between them, of letters, digits and `. _ - = + @ ,`; [`encode_component`] makes such
//! a component of any text.
//!
//! Small objects (manifests) go through memory with [`Repository::put_bytes`] and [`Repository::get_bytes`];
//! large ones stream through [`Repository::writer`] and [`Repository::reader`], which are for blocking
//! threads. A repository with encryption has a key, wrapped in the object `repository.key` (twice:
//! `repository.key.copy`), which [`Repository::keyring`] opens or, the first time, makes; sealing objects with
//! it is their writer's business.
//!
//! # Memory
//!
//! On a file system 256 KiB per writer, nothing per reader. On S3 at most 128 MiB per writer (40 MiB up to 8
//! GiB), 16 MiB per reader. A listing holds its entries.
//!
//! # Abandoned things
//!
//! A killed process leaves a hidden temporary on a file system; the next write into the same directory
//! removes it when nobody holds it any more and it is a day old. On S3 it leaves parts that no listing
//! shows: give the bucket a lifecycle rule that aborts incomplete multipart uploads after a few days.

mod check;
mod keys;
mod local;
mod name;
mod object;
mod s3;
mod settings;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use pgmahout_config::secret::SecretReference;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

pub use check::CheckReport;
pub use name::{decode_component, encode_component};
pub use object::{ObjectEntry, ObjectReader, ObjectWriter, PutMode};
pub use settings::{
    EncryptionSettings, Location, ParseLocationError, Patience, RepositorySettings, S3Settings,
    StorageSettings,
};

use crate::codec::Codec;
use crate::error::{Action, StoreError, Subject};
use crate::seal::Keyring;
use local::LocalStore;
use object::{ReaderKind, WriterKind};
use s3::{S3Secrets, S3Store};

/// An open repository. Cheap to clone; clones share connections and the opened key.
#[derive(Debug, Clone)]
pub struct Repository {
    storage: Storage,
    settings: Arc<RepositorySettings>,
    /// Name and place, for messages.
    description: String,
    keyring: Arc<OnceCell<Option<Arc<Keyring>>>>,
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
        let storage = match &settings.storage {
            StorageSettings::Local { path } => {
                Storage::Local(LocalStore::new(path.clone(), description.clone()))
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
                    S3Store::new(&s3, &secrets, description, &name)
                });
                Storage::S3(Arc::new(built.await?))
            }
        };
        Ok(Self {
            storage,
            settings: Arc::new(settings),
            description,
            keyring: Arc::default(),
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

    fn subject(&self, action: Action, object: &str) -> Subject {
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
        let prefix = prefix.trim_matches('/').to_owned();
        if !prefix.is_empty() {
            name::check(&prefix)?;
        }
        match &self.storage {
            Storage::Local(store) => {
                let (store, cancellation) = (store.clone(), cancellation.clone());
                run_blocking(move || store.list(&prefix, &cancellation)).await
            }
            Storage::S3(store) => tokio::select! {
                // Both are safe to drop: listing only reads.
                () = cancellation.cancelled() => {
                    Err(StoreError::Cancelled { subject: self.subject(Action::List, &prefix) })
                }
                listed = store.list(&prefix) => listed,
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
