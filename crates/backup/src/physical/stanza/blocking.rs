//! A repository for threads that are not of the runtime: those that read, hash, compress and seal.

use bytes::Bytes;
use pgmahout_store::framed::{FramedError, FramedOpener, HEADER_LENGTH, TRAILER_LENGTH, Trailer};
use pgmahout_store::repository::{BlockingRepository as BlockingStore, CreateOutcome};
use pgmahout_types::repository::manifest::PackKind;
use pgmahout_types::repository::{PackId, PackIndex};
use tokio::runtime::Handle;

use super::PhysicalRepository;
use super::error::StanzaError;
use super::names::kind;

/// A [`PhysicalRepository`] whose operations block the calling thread. Never use it on a thread of the runtime.
#[derive(Debug, Clone)]
pub struct BlockingRepository {
    repository: PhysicalRepository,
    store: BlockingStore,
    runtime: Handle,
}

impl PhysicalRepository {
    /// This repository for threads. Call it on the runtime whose threads shall do the network's work.
    pub fn blocking(&self) -> BlockingRepository {
        BlockingRepository {
            repository: self.clone(),
            store: self.repository().blocking(),
            runtime: Handle::current(),
        }
    }

    /// The kind and the name of a pack's object.
    pub fn pack_object(&self, pack: PackKind, id: PackId) -> (&'static str, String) {
        match pack {
            PackKind::Data => (kind::PACK, self.pack_name(id)),
            PackKind::Map => (kind::MAP, self.map_name(id)),
        }
    }

    pub(super) async fn reload_cipher(&self) -> Result<pgmahout_store::framed::ObjectCipher, StanzaError> {
        let cipher = self.repository().reload_keys().await?;
        *self
            .inner
            .cipher
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = cipher.clone();
        Ok(cipher)
    }
}

impl BlockingRepository {
    /// The repository itself.
    pub fn repository(&self) -> &PhysicalRepository {
        &self.repository
    }

    /// The storage, blocking: ranges, handles, small objects.
    pub fn store(&self) -> &BlockingStore {
        &self.store
    }

    /// Waits for something asynchronous.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Stores a finished pack under its name, which must be new.
    ///
    /// # Errors
    ///
    /// What the storage says; also when the name is taken, which random names never are.
    pub fn put_pack(&self, pack: PackKind, id: PackId, object: Bytes) -> Result<(), StanzaError> {
        let (_, name) = self.repository.pack_object(pack, id);
        match self.store.create_once(&name, object)? {
            CreateOutcome::Created => Ok(()),
            CreateOutcome::AlreadyThere => Err(self.repository.format(&name, "it is there already")),
        }
    }

    /// Opens a pack of which nothing is known but its name and its size: its header and its index. For packs
    /// that an interrupted run left.
    ///
    /// # Errors
    ///
    /// What the storage says, and what is wrong with the object.
    pub fn pack_index(
        &self,
        pack: PackKind,
        id: PackId,
        size: u64,
    ) -> Result<(FramedOpener, PackIndex), StanzaError> {
        let (kind, name) = self.repository.pack_object(pack, id);
        let framed = |source| self.repository.framed(&name, source);
        let header = self.store.get_range(&name, 0..HEADER_LENGTH as u64)?;
        let opener = match FramedOpener::from_header(&self.repository.cipher(), kind, &name, &header) {
            Err(FramedError::UnknownKey { .. }) => {
                let cipher = self.wait(self.repository.reload_cipher())?;
                FramedOpener::from_header(&cipher, kind, &name, &header)
            }
            opened => opened,
        }
        .map_err(framed)?;
        let tail = size.saturating_sub(TRAILER_LENGTH as u64)..size;
        let trailer = Trailer::read(&self.store.get_range(&name, tail)?, size).map_err(framed)?;
        let stored = self.store.get_range(&name, trailer.final_frame(size))?;
        let mut content = Vec::new();
        opener
            .open_final(trailer, &stored, &mut content)
            .map_err(framed)?;
        let index = PackIndex::decode(&content).map_err(|error| self.repository.format(&name, error))?;
        Ok((opener, index))
    }
}
