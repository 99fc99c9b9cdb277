//! The keys of an encrypted repository.
//!
//! Key number 0 is in the object `repository.key`, key number `n` in `repository.key.n`; each has a copy beside
//! it, `.copy`. New objects are sealed with the key of the highest number. A key object is replaced in one step,
//! first itself, then its copy: at every moment at least one of the two is whole, and a run that was interrupted
//! between them is completed by the next change. Changes are for one person at a time; of two that race one
//! may be lost, and the reading back says so.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use pgmahout_config::secret::SecretReference;
use tokio_util::sync::CancellationToken;

use super::{EncryptionSettings, PutMode, Repository, run_blocking};
use crate::error::{Action, StoreError};
use crate::framed::ObjectCipher;
use crate::seal::{
    Credential, Key, KeySlot, Keyring, SealError, SlotChoice, add_slot, create_repository_key, is_sealed,
    list_slots, open_repository_key, remove_slot, rewrap,
};

/// The object that holds the wrapped first key.
pub(super) const KEY_OBJECT: &str = "repository.key";
const LARGEST_KEY_OBJECT: u64 = 64 * 1024;
/// How many objects are looked at to see whether a repository without a key was encrypted once.
const SAMPLES: usize = 32;
/// Nobody rotates so often; bounds a search that a broken storage would make endless.
const MOST_KEYS: u32 = 1000;

/// The object that holds a key.
fn key_object(number: u32) -> String {
    if number == 0 {
        KEY_OBJECT.to_owned()
    } else {
        format!("{KEY_OBJECT}.{number}")
    }
}

/// Its copy: without the key nothing can be read.
fn key_copy(number: u32) -> String {
    format!("{}.copy", key_object(number))
}

/// One key of a repository, and what opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryKey {
    /// Its number, from 0. The highest seals new objects.
    pub number: u32,
    /// Its slots, in their order.
    pub slots: Vec<KeySlot>,
}

/// The keys, as they were read once.
#[derive(Debug, Clone)]
pub(super) struct LoadedKeys {
    keyring: Option<Arc<Keyring>>,
    cipher: ObjectCipher,
}

impl LoadedKeys {
    fn plain() -> Self {
        Self {
            keyring: None,
            cipher: ObjectCipher::plain(),
        }
    }

    fn new(keys: BTreeMap<u32, Key>) -> Self {
        let cipher = keys.iter().fold(ObjectCipher::plain(), |cipher, (number, key)| {
            cipher.with_key(*number, key.clone())
        });
        // The first of a keyring seals.
        let ring = keys
            .into_values()
            .rev()
            .fold(Keyring::new(), Keyring::with_repository_key);
        Self {
            keyring: Some(Arc::new(ring)),
            cipher,
        }
    }
}

impl Repository {
    /// What seals and opens the sealed files (dumps) of this repository: `None` for one in the clear. The first
    /// call for a new encrypted repository makes its key. Later calls are answered from memory.
    ///
    /// # Errors
    ///
    /// When the passphrase or key cannot be had or is wrong, when the repository is encrypted but the settings
    /// say nothing of it, when the key is gone, or when the storage fails.
    pub async fn keyring(
        &self,
        cancellation: &CancellationToken,
    ) -> Result<Option<Arc<Keyring>>, StoreError> {
        Ok(self.keys(cancellation).await?.keyring)
    }

    /// What seals and opens the framed objects (backups, WAL) of this repository. Otherwise as
    /// [`Repository::keyring`].
    ///
    /// # Errors
    ///
    /// As [`Repository::keyring`].
    pub async fn object_cipher(&self) -> Result<ObjectCipher, StoreError> {
        Ok(self.keys(&CancellationToken::new()).await?.cipher)
    }

    /// Reads the keys again: for a program that runs long, when an object names a key that it does not know.
    ///
    /// # Errors
    ///
    /// As [`Repository::keyring`].
    pub async fn reload_keys(&self) -> Result<ObjectCipher, StoreError> {
        *self.keys.lock().await = None;
        self.object_cipher().await
    }

    async fn keys(&self, cancellation: &CancellationToken) -> Result<LoadedKeys, StoreError> {
        let mut loaded = self.keys.lock().await;
        if let Some(keys) = &*loaded {
            return Ok(keys.clone());
        }
        let keys = self.load_keys(cancellation).await?;
        *loaded = Some(keys.clone());
        Ok(keys)
    }

    async fn load_keys(&self, cancellation: &CancellationToken) -> Result<LoadedKeys, StoreError> {
        let Some(encryption) = &self.settings.encryption else {
            if self.exists(KEY_OBJECT).await? || self.exists(&key_copy(0)).await? {
                return Err(StoreError::KeyNotConfigured {
                    subject: self.subject(Action::Read, KEY_OBJECT),
                });
            }
            return Ok(LoadedKeys::plain());
        };
        let credentials = self.credentials(encryption.clone()).await?;
        // Most repositories have one key: the question for a second one costs no time of its own.
        let (first, second) = tokio::join!(
            self.stored_key(0, credentials.clone()),
            self.stored_key(1, credentials.clone())
        );
        let mut keys = BTreeMap::new();
        let first = match first? {
            Some(key) => key,
            None => self.make_key(credentials.clone(), cancellation).await?,
        };
        keys.insert(0, first);
        let mut next = second?;
        while let Some(key) = next {
            let number = keys.len() as u32;
            keys.insert(number, key);
            next = if number + 1 < MOST_KEYS {
                self.stored_key(number + 1, credentials.clone()).await?
            } else {
                None
            };
        }
        Ok(LoadedKeys::new(keys))
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
                    Ok(Keyring::new().with_credential(Credential::Command(key)))
                }
            }
        })
        .await
    }

    async fn own_credentials(&self, action: Action) -> Result<Keyring, StoreError> {
        match &self.settings.encryption {
            Some(encryption) => self.credentials(encryption.clone()).await,
            None => Err(StoreError::KeyNotConfigured {
                subject: self.subject(action, KEY_OBJECT),
            }),
        }
    }

    fn seal_error(&self, action: Action, object: &str) -> impl FnOnce(SealError) -> StoreError {
        let subject = self.subject(action, object);
        move |error| StoreError::from_seal(error, subject)
    }

    /// A key that the repository holds, with its object, from the first of its two copies that is whole.
    async fn stored_object(
        &self,
        number: u32,
        credentials: Keyring,
    ) -> Result<Option<(Key, Bytes)>, StoreError> {
        let mut first_error = None;
        for (name, is_copy) in [(key_object(number), false), (key_copy(number), true)] {
            let object = match self.get_bytes(&name, LARGEST_KEY_OBJECT).await {
                Ok(object) => object,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            let (credentials, bytes) = (credentials.clone(), object.clone());
            match run_blocking(move || open_repository_key(number, &bytes, &credentials)).await {
                Ok(key) => {
                    if is_copy {
                        tracing::warn!(
                            repository = self.description,
                            "the object {} is missing or damaged; its copy was used",
                            key_object(number)
                        );
                    }
                    return Ok(Some((key, object)));
                }
                Err(error) => {
                    let error = StoreError::from_seal(error, self.subject(Action::Read, &name));
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(None), Err)
    }

    async fn stored_key(&self, number: u32, credentials: Keyring) -> Result<Option<Key>, StoreError> {
        let stored = self.stored_object(number, credentials).await?;
        Ok(stored.map(|(key, _)| key))
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
        match self.create_key(0, credentials.clone()).await {
            Ok(key) => Ok(key),
            // Somebody else made it at the same moment: theirs counts.
            Err(StoreError::AlreadyExists { subject }) => {
                let stored = self.stored_key(0, credentials).await?;
                stored.ok_or(StoreError::AlreadyExists { subject })
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the key of a number that has none.
    async fn create_key(&self, number: u32, credentials: Keyring) -> Result<Key, StoreError> {
        let name = key_object(number);
        let wrapping = credentials.clone();
        let (key, object) = run_blocking(move || create_repository_key(number, &wrapping))
            .await
            .map_err(|source| StoreError::Encryption {
                repository: self.description.clone(),
                source,
            })?;
        self.put_bytes(&name, object.clone(), PutMode::Create).await?;
        // Where the storage does not honour "create only", two may both have succeeded: what is there counts.
        let there = self.get_bytes(&name, LARGEST_KEY_OBJECT).await?;
        let key = if there == object {
            key
        } else {
            let stored = self.stored_key(number, credentials).await?;
            stored.ok_or_else(|| StoreError::NotFound {
                subject: self.subject(Action::Read, &name),
            })?
        };
        self.put_bytes(&key_copy(number), there, PutMode::Overwrite)
            .await?;
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

    /// All keys with their objects. The settings' passphrase or key must open every one.
    async fn stored_objects(&self, credentials: &Keyring) -> Result<Vec<Bytes>, StoreError> {
        let mut objects = Vec::new();
        while let Some((_, object)) = self
            .stored_object(objects.len() as u32, credentials.clone())
            .await?
        {
            objects.push(object);
        }
        if objects.is_empty() {
            return Err(StoreError::KeyLost {
                subject: self.subject(Action::Read, KEY_OBJECT),
            });
        }
        Ok(objects)
    }

    /// Puts a key object and its copy in place of the old ones, and reads both back.
    async fn replace_key_object(&self, number: u32, object: Bytes) -> Result<(), StoreError> {
        for name in [key_object(number), key_copy(number)] {
            self.put_bytes(&name, object.clone(), PutMode::Overwrite).await?;
            if self.get_bytes(&name, LARGEST_KEY_OBJECT).await? != object {
                return Err(StoreError::ReadBackDiffers {
                    subject: self.subject(Action::Write, &name),
                });
            }
        }
        Ok(())
    }

    /// The keys of the repository and the slots of each. Trying the settings' passphrase takes some tenths of a
    /// second for each slot of a passphrase.
    ///
    /// # Errors
    ///
    /// [`StoreError::KeyNotConfigured`], or when the settings' passphrase or key does not open a key.
    pub async fn list_slots(&self) -> Result<Vec<RepositoryKey>, StoreError> {
        let credentials = self.own_credentials(Action::Read).await?;
        let mut keys = Vec::new();
        for (number, object) in (0..).zip(self.stored_objects(&credentials).await?) {
            let credentials = credentials.clone();
            let slots = run_blocking(move || list_slots(&object, &credentials))
                .await
                .map_err(self.seal_error(Action::Read, &key_object(number)))?;
            keys.push(RepositoryKey { number, slots });
        }
        Ok(keys)
    }

    /// Lets one more passphrase or key open the repository: all of its keys. No other object is touched. Where
    /// it opens them already nothing but an outdated copy is written.
    ///
    /// # Errors
    ///
    /// When the settings' passphrase or key does not open the repository, a key has eight slots, or the storage
    /// fails; run it again then.
    pub async fn add_slot(&self, new: &Credential) -> Result<(), StoreError> {
        let credentials = self.own_credentials(Action::Write).await?;
        let objects = self.stored_objects(&credentials).await?;
        let mut changed = Vec::new();
        for (number, object) in (0..).zip(objects) {
            let (credentials, new) = (credentials.clone(), new.clone());
            let object = run_blocking(move || add_slot(number, &object, &credentials, &new))
                .await
                .map_err(self.seal_error(Action::Write, &key_object(number)))?;
            changed.push(object);
        }
        for (number, object) in (0..).zip(changed) {
            self.replace_key_object(number, object.into()).await?;
        }
        Ok(())
    }

    /// Takes a passphrase or key its slots, of every key that has them. No other object is touched, and whoever
    /// knew it and kept a copy of a key object can still read what is in the repository.
    ///
    /// # Errors
    ///
    /// [`SealError::LastSlot`] and [`SealError::NoSuchSlot`] (in [`StoreError::Encryption`]); when the settings'
    /// passphrase or key does not open the repository, or the storage fails; run it again then.
    pub async fn remove_slot(&self, choice: &SlotChoice) -> Result<(), StoreError> {
        let credentials = self.own_credentials(Action::Write).await?;
        let objects = self.stored_objects(&credentials).await?;
        let mut changed = Vec::new();
        let mut missing = None;
        // All is decided before the first is written: a last slot anywhere refuses the whole.
        for (number, object) in (0..).zip(objects) {
            let (credentials, choice, old) = (credentials.clone(), choice.clone(), object.clone());
            match run_blocking(move || remove_slot(number, &object, &credentials, &choice)).await {
                Ok(object) => changed.push((number, Bytes::from(object), true)),
                Err(error @ SealError::NoSuchSlot { .. }) => {
                    changed.push((number, old, false));
                    missing.get_or_insert(error);
                }
                Err(error) => return Err(self.seal_error(Action::Write, &key_object(number))(error)),
            }
        }
        if let Some(error) = missing.filter(|_| !changed.iter().any(|(_, _, is_changed)| *is_changed)) {
            // A copy that an interrupted removal left behind may still have the slot.
            let mut is_completed = false;
            for (number, object, _) in &changed {
                is_completed |= self
                    .complete_removal(*number, object, &credentials, choice)
                    .await?;
            }
            if is_completed {
                return Ok(());
            }
            return Err(self.seal_error(Action::Write, KEY_OBJECT)(error));
        }
        for (number, object, _) in changed {
            self.replace_key_object(number, object).await?;
        }
        Ok(())
    }

    /// Brings a copy in step that has the slot which its object has not; `false` when it has not either.
    async fn complete_removal(
        &self,
        number: u32,
        object: &Bytes,
        credentials: &Keyring,
        choice: &SlotChoice,
    ) -> Result<bool, StoreError> {
        let copy = match self.get_bytes(&key_copy(number), LARGEST_KEY_OBJECT).await {
            Ok(copy) => copy,
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error),
        };
        let (credentials, choice) = (credentials.clone(), choice.clone());
        let had_it = run_blocking(move || remove_slot(number, &copy, &credentials, &choice).is_ok()).await;
        if had_it {
            self.replace_key_object(number, object.clone()).await?;
        }
        Ok(had_it)
    }

    /// Wraps the repository's keys anew, so that `new` opens them in place of all their slots. No other object is
    /// touched. Whoever knew an old passphrase and kept a copy of an old key object can still read what is in the
    /// repository.
    ///
    /// # Errors
    ///
    /// When the settings' passphrase or key does not open the repository, or the storage fails. When only some of
    /// the objects were written, both old and new open what is there; run it again.
    pub async fn rewrap(&self, new: Keyring) -> Result<(), StoreError> {
        let old = self.own_credentials(Action::Write).await?;
        let mut both = old.clone();
        for credential in new.credentials() {
            both = both.with_credential(credential.clone());
        }
        // A run that was interrupted may have left the first keys with the new slots alone.
        let objects = self.stored_objects(&both).await?;
        for (number, object) in (0..).zip(objects) {
            let (both, new) = (both.clone(), new.clone());
            let rewrapped = run_blocking(move || {
                let mut rewrapped = Vec::new();
                rewrap(&object[..], &mut rewrapped, &both, &new).map(|()| rewrapped)
            })
            .await
            .map_err(self.seal_error(Action::Write, &key_object(number)))?;
            self.replace_key_object(number, rewrapped.into()).await?;
        }
        Ok(())
    }

    /// Adds a repository key, with which everything is sealed from now on, and gives its number. What is there
    /// stays as it is, under its old key, and exposed where that key is.
    ///
    /// The settings' passphrase or key opens the new one, and so do `others`: the slots of the older keys cannot be
    /// carried over, since nobody can wrap for a passphrase that he does not know. Programs that run go on with the
    /// older key until they read the keys again.
    ///
    /// # Errors
    ///
    /// When the settings' passphrase or key does not open the repository, when somebody else adds a key at the
    /// same moment, or the storage fails.
    pub async fn add_repository_key(&self, others: &[Credential]) -> Result<u32, StoreError> {
        let mut credentials = self.own_credentials(Action::Write).await?;
        let number = self.stored_objects(&credentials).await?.len() as u32;
        for credential in others {
            credentials = credentials.with_credential(credential.clone());
        }
        self.create_key(number, credentials).await?;
        self.reload_keys().await?;
        Ok(number)
    }
}
