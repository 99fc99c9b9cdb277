//! Repositories as `wal push` and `wal fetch` reach them: opened late, and known again without being opened.
//!
//! What a push noted and what a fetch read ahead belongs to one repository. It is known by its place, by its id,
//! and by its descriptor's bytes, which hold a random salt: whoever wipes a repository and makes a new one at the
//! same place makes another descriptor. Reading those bytes needs no key, so that a repository whose passphrase
//! takes long to try costs nothing here.

use std::time::Duration;

use jiff::Timestamp;
use pgmahout_store::repository::{EncryptionSettings, Repository, RepositorySettings, StorageSettings};
use pgmahout_types::diagnostic::Diagnose;
use pgmahout_types::repository::{Digest, Nonce};
use serde::{Deserialize, Serialize};

use super::archive::WalArchive;
use super::error::WalError;
use crate::physical::stanza::{PhysicalRepository, RepositoryMemory, StanzaName, StanzaNames, names};

/// Over a network the descriptor is not read again for so long.
const TRUSTED: Duration = Duration::from_mins(1);

/// The largest descriptor that is read.
const LARGEST_DESCRIPTOR: u64 = 1 << 20;

/// A repository of the configuration, not open yet.
#[derive(Debug, Clone)]
pub struct Destination {
    /// How to open it.
    pub settings: RepositorySettings,
}

/// Which repository something belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Binding {
    /// Where it is.
    place: String,
    /// Its id.
    id: Nonce,
    /// The digest of its descriptor's bytes.
    descriptor: Digest,
}

/// An open archive, and what binds records to it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) archive: WalArchive,
    pub(super) binding: Binding,
}

impl Destination {
    /// Its name, or its place where it has none.
    pub fn name(&self) -> String {
        if self.settings.name.is_empty() {
            self.settings.location().to_string()
        } else {
            self.settings.name.clone()
        }
    }

    /// Whether what opens it takes long: a passphrase is meant to.
    pub fn has_passphrase(&self) -> bool {
        matches!(self.settings.encryption, Some(EncryptionSettings::Passphrase(_)))
    }

    pub(super) fn is_local(&self) -> bool {
        matches!(self.settings.storage, StorageSettings::Local { .. })
    }

    fn place(&self) -> String {
        let location = self.settings.location();
        match &self.settings.storage {
            StorageSettings::S3(s3) => format!("{location} at {}", s3.endpoint.as_deref().unwrap_or("AWS")),
            StorageSettings::Local { .. } => location.to_string(),
        }
    }

    /// Opens it at a stanza. One that was set back since this host has last seen it is refused: what it held is gone,
    /// and "absent" would be a lie.
    pub(super) async fn open(
        &self,
        stanza: &StanzaName,
        memory: &RepositoryMemory,
    ) -> Result<Place, WalError> {
        let repository = Repository::open(self.settings.clone()).await?;
        let opened = PhysicalRepository::open_without_head(repository, stanza.clone(), memory).await?;
        opened.check_memory().await?;
        let descriptor = opened
            .repository()
            .get_bytes(names::DESCRIPTOR, LARGEST_DESCRIPTOR)
            .await?;
        let binding = Binding {
            place: self.place(),
            id: opened.id(),
            descriptor: Digest::of(&descriptor),
        };
        Ok(Place {
            name: self.name(),
            archive: WalArchive::new(opened),
            binding,
        })
    }

    /// Whether something that was noted at a time is bound to this repository as it is now.
    pub(super) async fn is_bound(
        &self,
        binding: &Binding,
        noted: Timestamp,
        stanza: &StanzaName,
        memory: &RepositoryMemory,
    ) -> bool {
        if binding.place != self.place() {
            return false;
        }
        let age = Timestamp::now().duration_since(noted);
        let is_recent = !age.is_negative() && age.unsigned_abs() < TRUSTED;
        if is_recent && !self.is_local() {
            return true;
        }
        let Ok(repository) = Repository::open(self.settings.clone()).await else {
            return false;
        };
        // A repository that was set back has the same descriptor.
        if let Some(seen) = memory.recall(&binding.id.to_string(), stanza) {
            let head = StanzaNames::new(stanza.clone()).head(seen.sequence);
            if !matches!(repository.exists(&head).await, Ok(true)) {
                return false;
            }
        }
        repository
            .get_bytes(names::DESCRIPTOR, LARGEST_DESCRIPTOR)
            .await
            .is_ok_and(|bytes| Digest::of(&bytes) == binding.descriptor)
    }

    /// The error of a repository that cannot be used, for another file than the one that found out.
    pub(super) fn unusable(&self, error: &WalError) -> WalError {
        WalError::Unopened {
            repository: self.name(),
            problem: error.to_string(),
            hint: error.hint(),
            outcome: error.outcome(),
        }
    }
}
