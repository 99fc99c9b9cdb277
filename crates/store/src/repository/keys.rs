//! The key of an encrypted repository.

use std::io::Read;
use std::sync::Arc;

use pgmahout_config::secret::SecretReference;
use tokio_util::sync::CancellationToken;

use super::{EncryptionSettings, PutMode, Repository, run_blocking};
use crate::error::{Action, StoreError};
use crate::seal::{Credential, Key, Keyring, create_repository_key, is_sealed, open_repository_key, rewrap};

/// The object that holds the wrapped key.
pub(super) const KEY_OBJECT: &str = "repository.key";
/// Its copy: without the key nothing can be read.
pub(super) const KEY_COPY: &str = "repository.key.copy";
const LARGEST_KEY_OBJECT: u64 = 64 * 1024;
/// How many objects are looked at to see whether a repository without a key was encrypted once.
const SAMPLES: usize = 32;

impl Repository {
    /// What seals and opens the objects of this repository: `None` for one in the clear. The first call for a
    /// new encrypted repository makes its key. Later calls are answered from memory.
    ///
    /// # Errors
    ///
    /// When the passphrase or key cannot be had or is wrong, when the repository is encrypted but the settings
    /// say nothing of it, when the key is gone, or when the storage fails.
    pub async fn keyring(
        &self,
        cancellation: &CancellationToken,
    ) -> Result<Option<Arc<Keyring>>, StoreError> {
        self.keyring
            .get_or_try_init(|| self.load_keyring(cancellation))
            .await
            .cloned()
    }

    async fn load_keyring(
        &self,
        cancellation: &CancellationToken,
    ) -> Result<Option<Arc<Keyring>>, StoreError> {
        let Some(encryption) = &self.settings.encryption else {
            if self.exists(KEY_OBJECT).await? || self.exists(KEY_COPY).await? {
                return Err(StoreError::KeyNotConfigured {
                    subject: self.subject(Action::Read, KEY_OBJECT),
                });
            }
            return Ok(None);
        };
        let credentials = self.credentials(encryption.clone()).await?;
        let key = match self.stored_key(credentials.clone()).await? {
            Some(key) => key,
            None => self.make_key(credentials, cancellation).await?,
        };
        Ok(Some(Arc::new(Keyring::from_repository_key(key))))
    }

    async fn credentials(&self, encryption: EncryptionSettings) -> Result<Keyring, StoreError> {
        let repository = self.description.clone();
        run_blocking(move || {
            let resolve = |what, reference: &SecretReference| {
                let failed = |source| StoreError::Secret {
                    repository: repository.clone(),
                    what,
                    source,
                };
                reference.resolve().map_err(failed)
            };
            let failed = |source| StoreError::Encryption {
                repository: repository.clone(),
                source,
            };
            match encryption {
                EncryptionSettings::Passphrase(reference) => {
                    Keyring::from_passphrase(resolve("the passphrase", &reference)?.expose()).map_err(failed)
                }
                EncryptionSettings::KeyFile(path) => Keyring::from_key_file(&path).map_err(failed),
                EncryptionSettings::Command { program, arguments } => {
                    let reference = SecretReference::Command { program, arguments };
                    let printed = resolve("the key", &reference)?;
                    let key = Key::from_material(printed.expose().as_bytes()).map_err(failed)?;
                    Ok(Keyring::new().with_credential(Credential::KeyFile(key)))
                }
            }
        })
        .await
    }

    /// The key that the repository holds, from the first of its two copies that is whole.
    async fn stored_key(&self, credentials: Keyring) -> Result<Option<Key>, StoreError> {
        let mut first_error = None;
        for name in [KEY_OBJECT, KEY_COPY] {
            let object = match self.get_bytes(name, LARGEST_KEY_OBJECT).await {
                Ok(object) => object,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            let credentials = credentials.clone();
            match run_blocking(move || open_repository_key(&object, &credentials)).await {
                Ok(key) => {
                    if name == KEY_COPY {
                        tracing::warn!(
                            repository = self.description,
                            "the object {KEY_OBJECT} is missing or damaged; its copy was used"
                        );
                    }
                    return Ok(Some(key));
                }
                Err(error) => {
                    let error = StoreError::from_seal(error, self.subject(Action::Read, name));
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(None), Err)
    }

    async fn make_key(
        &self,
        credentials: Keyring,
        cancellation: &CancellationToken,
    ) -> Result<Key, StoreError> {
        if self.has_sealed_objects(cancellation).await? {
            return Err(StoreError::KeyLost {
                subject: self.subject(Action::Read, KEY_OBJECT),
            });
        }
        let wrapping = credentials.clone();
        let (key, object) = run_blocking(move || create_repository_key(&wrapping))
            .await
            .map_err(|source| StoreError::Encryption {
                repository: self.description.clone(),
                source,
            })?;
        match self.put_bytes(KEY_OBJECT, object.clone(), PutMode::Create).await {
            Ok(()) => {}
            // Somebody else made it at the same moment: theirs counts.
            Err(StoreError::AlreadyExists { subject }) => {
                let stored = self.stored_key(credentials).await?;
                return stored.ok_or(StoreError::AlreadyExists { subject });
            }
            Err(error) => return Err(error),
        }
        // Where the storage does not honour "create only", two may both have succeeded: what is there counts.
        let there = self.get_bytes(KEY_OBJECT, LARGEST_KEY_OBJECT).await?;
        let key = if there == object {
            key
        } else {
            let stored = self.stored_key(credentials).await?;
            stored.ok_or_else(|| StoreError::NotFound {
                subject: self.subject(Action::Read, KEY_OBJECT),
            })?
        };
        self.put_bytes(KEY_COPY, there, PutMode::Overwrite).await?;
        Ok(key)
    }

    async fn has_sealed_objects(&self, cancellation: &CancellationToken) -> Result<bool, StoreError> {
        let listed = match self.list("", cancellation).await {
            Ok(listed) => listed,
            // A directory that the first write will make.
            Err(StoreError::RepositoryMissing {
                kind: "directory", ..
            }) => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in listed.into_iter().filter(|entry| entry.size > 8).take(SAMPLES) {
            let mut reader = self.reader(&entry.name, cancellation).await?;
            let subject = self.subject(Action::Read, &entry.name);
            let sealed = run_blocking(move || {
                let mut magic = [0; 8];
                reader.read_exact(&mut magic).map(|()| is_sealed(&magic))
            });
            if sealed
                .await
                .map_err(|error| StoreError::from_io(error, subject))?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Wraps the repository's key anew, so that `new` opens it in place of the settings' passphrase or key.
    /// No other object is touched. Whoever knew the old passphrase and kept a copy of the old key object can
    /// still read what is in the repository.
    ///
    /// # Errors
    ///
    /// When the settings' passphrase or key does not open the repository, or the storage fails. When the first
    /// of the two copies was written and the second not, both old and new open the repository; run it again.
    pub async fn change_keys(&self, new: Keyring) -> Result<(), StoreError> {
        let subject = || self.subject(Action::Write, KEY_OBJECT);
        let Some(encryption) = &self.settings.encryption else {
            return Err(StoreError::KeyNotConfigured { subject: subject() });
        };
        let old = self.credentials(encryption.clone()).await?;
        let object = self.get_bytes(KEY_OBJECT, LARGEST_KEY_OBJECT).await?;
        let rewrapped = run_blocking(move || {
            let mut rewrapped = Vec::new();
            rewrap(&object[..], &mut rewrapped, &old, &new).map(|()| rewrapped)
        })
        .await
        .map_err(|error| StoreError::from_seal(error, subject()))?;
        self.put_bytes(KEY_OBJECT, rewrapped.clone(), PutMode::Overwrite)
            .await?;
        self.put_bytes(KEY_COPY, rewrapped, PutMode::Overwrite).await
    }
}
