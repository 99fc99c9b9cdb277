//! A repository of physical backups as one stanza sees it: its keys and names, its head, its leases, its
//! manifests.
//!
//! [`PhysicalRepository`] is what everything else of the engine works with. Its parts:
//!
//! * [`names`]: the names of objects, and what kind each is;
//! * `log`: the head log ([`PhysicalRepository::head`], [`PhysicalRepository::swap`],
//!   [`PhysicalRepository::publish`]);
//! * [`protocol`]: the rules that keep backups and collections apart;
//! * [`lease`]: who is at work;
//! * [`manifest`]: reading and writing manifests;
//! * [`memory`]: what this host has seen, against repositories that were set back;
//! * [`blocking`]: the same for threads that are not of the runtime.

pub mod blocking;
pub mod error;
pub mod lease;
mod log;
pub mod manifest;
pub mod memory;
pub mod names;
pub mod protocol;
mod setup;
#[cfg(test)]
pub(crate) mod support;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use pgmahout_store::framed::{self, FrameCodec, FramedError, ObjectCipher};
use pgmahout_store::repository::Repository;
use pgmahout_types::repository::{BackupEntry, Head, Label, Nonce, PackId, StanzaInfo};
use pgmahout_types::{ControlFile, SegmentSize, SystemIdentifier, WalFileName};

pub use blocking::BlockingRepository;
pub use error::StanzaError;
pub use lease::{LeaseGuard, LeaseKind, LeaseScope};
pub use log::HEADS_ARE_KEPT;
pub use memory::RepositoryMemory;
pub use names::{StanzaName, StanzaNames, StanzaObject, kind};
pub use protocol::References;
pub use setup::{Descriptor, InitOptions, Initialised, stanzas};

use memory::SeenHead;

/// How small objects are compressed.
const SMALL_CODEC: FrameCodec = FrameCodec::Zstd(1);

/// An open repository and one stanza of it. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct PhysicalRepository {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    repository: Repository,
    /// Changes when another host has added a key.
    cipher: RwLock<ObjectCipher>,
    descriptor: Descriptor,
    names: StanzaNames,
    info: StanzaInfo,
    /// Of the stanza's current cluster.
    segment_size: SegmentSize,
    memory: RepositoryMemory,
    /// The newest head that this process has seen.
    seen: Mutex<Option<SeenHead>>,
}

impl PhysicalRepository {
    /// The storage.
    pub fn repository(&self) -> &Repository {
        &self.inner.repository
    }

    /// Name and place, as messages have it.
    pub fn description(&self) -> String {
        self.inner.repository.description().to_owned()
    }

    /// The repository's identity, drawn when it was made.
    pub fn id(&self) -> Nonce {
        self.inner.descriptor.id
    }

    /// What hashes of pages and paths are keyed with.
    pub fn hash_key(&self) -> &[u8; 32] {
        self.inner.descriptor.hash_key()
    }

    /// The keys that seal and open objects.
    pub fn cipher(&self) -> ObjectCipher {
        self.inner
            .cipher
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The stanza.
    pub fn stanza(&self) -> &StanzaName {
        self.inner.names.stanza()
    }

    /// Whose backups these are.
    pub fn stanza_info(&self) -> &StanzaInfo {
        &self.inner.info
    }

    /// The size of the WAL segments of the stanza's current cluster.
    pub fn segment_size(&self) -> SegmentSize {
        self.inner.segment_size
    }

    /// The names of the stanza's objects.
    pub fn names(&self) -> &StanzaNames {
        &self.inner.names
    }

    /// The name of a pack of file content.
    pub fn pack_name(&self, id: PackId) -> String {
        self.inner.names.pack(id)
    }

    /// The name of a pack of page maps.
    pub fn map_name(&self, id: PackId) -> String {
        self.inner.names.map(id)
    }

    /// The name of a file of the WAL archive.
    pub fn wal_name(&self, file: WalFileName) -> String {
        self.inner.names.wal(file)
    }

    /// A name for a new pack, which nobody has used and nobody will.
    ///
    /// # Errors
    ///
    /// [`StanzaError::NoRandomness`].
    pub fn new_pack_id(&self) -> Result<PackId, StanzaError> {
        Ok(PackId::from_bytes(random()?))
    }

    /// Whether the server with that pg_control is the one that the stanza belongs to.
    ///
    /// # Errors
    ///
    /// [`StanzaError::Mismatch`], which names both.
    pub fn check_control(&self, control: &ControlFile) -> Result<(), StanzaError> {
        self.inner
            .info
            .check(control)
            .map_err(|source| self.mismatch(source))
    }

    /// The same for a server whose pg_control cannot be read.
    ///
    /// # Errors
    ///
    /// [`StanzaError::Mismatch`], which names both.
    pub fn check_identity(&self, system: SystemIdentifier, major: u32) -> Result<(), StanzaError> {
        self.inner
            .info
            .check_identity(system, major)
            .map_err(|source| self.mismatch(source))
    }

    fn mismatch(&self, source: pgmahout_types::repository::stanza_info::StanzaMismatch) -> StanzaError {
        StanzaError::Mismatch {
            repository: self.description(),
            source: Box::new(source),
        }
    }

    /// The backup of that label in a head.
    ///
    /// # Errors
    ///
    /// [`StanzaError::NoSuchBackup`], which names the newest few that there are.
    pub fn backup_in<'head>(
        &self,
        head: &'head Head,
        label: Label,
    ) -> Result<&'head BackupEntry, StanzaError> {
        head.backup(label).ok_or_else(|| StanzaError::NoSuchBackup {
            repository: self.description(),
            stanza: self.stanza().to_string(),
            label,
            others: head
                .backups
                .iter()
                .rev()
                .take(3)
                .map(|entry| entry.label.to_string())
                .collect(),
        })
    }

    /// Reads and opens a small object.
    async fn get_small(&self, kind: &str, name: &str, limit: u64) -> Result<Vec<u8>, StanzaError> {
        let bytes = self.repository().get_bytes(name, limit).await?;
        match framed::open_bytes(&self.cipher(), kind, name, &bytes) {
            Err(FramedError::UnknownKey { .. }) => {
                // Another host has begun to use a new key.
                let cipher = self.reload_cipher().await?;
                framed::open_bytes(&cipher, kind, name, &bytes)
            }
            opened => opened,
        }
        .map_err(|source| self.framed(name, source))
    }

    fn seal_small(&self, kind: &str, name: &str, content: &[u8]) -> Result<Bytes, StanzaError> {
        self.seal_with(kind, name, SMALL_CODEC, content)
    }

    fn seal_with(
        &self,
        kind: &str,
        name: &str,
        codec: FrameCodec,
        content: &[u8],
    ) -> Result<Bytes, StanzaError> {
        framed::seal_bytes(&self.cipher(), kind, name, codec, content)
            .map_err(|source| self.framed(name, source))
    }

    fn framed(&self, object: &str, source: FramedError) -> StanzaError {
        StanzaError::Framed {
            repository: self.description(),
            object: object.to_owned(),
            source,
        }
    }

    fn format(
        &self,
        object: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StanzaError {
        StanzaError::Format {
            repository: self.description(),
            object: object.to_owned(),
            source: source.into(),
        }
    }
}

/// Random bytes.
pub(crate) fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], StanzaError> {
    let mut bytes = [0; LENGTH];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| StanzaError::NoRandomness)?;
    Ok(bytes)
}

/// Host and process, as heads and leases name their writers.
fn writer() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}:{}", std::process::id())
}
