//! Storing finished packs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Mutex, PoisonError};

use pgmahout_types::repository::PackId;
use pgmahout_types::repository::manifest::{PackEntry, PackKind};
use tokio_util::sync::CancellationToken;

use super::error::CreateError;
use super::pack::FinishedPack;
use crate::physical::stanza::BlockingRepository;

/// Takes packs off the queue and stores them. Several threads may run one.
pub(super) struct Uploader {
    /// Where to.
    pub(super) repository: BlockingRepository,
    /// The queue.
    pub(super) queue: Mutex<Receiver<FinishedPack>>,
    /// Stops everything when a pack cannot be stored.
    pub(super) cancellation: CancellationToken,
    /// The packs that are stored.
    pub(super) stored: Mutex<HashMap<PackId, PackEntry>>,
    /// Bytes that are stored.
    pub(super) bytes: AtomicU64,
}

impl Uploader {
    /// Stores packs until no worker is left.
    pub(super) fn run(&self, spare: &Sender<Vec<u8>>) -> Result<(), CreateError> {
        loop {
            // Whoever waits for a pack holds the lock; the others wait for the lock.
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(pack) = next else {
                return Ok(());
            };
            if let Err(error) = self.store(pack, spare) {
                self.cancellation.cancel();
                // The queue is emptied, or a worker would wait for ever.
                while self
                    .queue
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .recv()
                    .is_ok()
                {}
                return Err(error);
            }
        }
    }

    fn store(&self, pack: FinishedPack, spare: &Sender<Vec<u8>>) -> Result<(), CreateError> {
        let size = pack.bytes.len() as u64;
        self.repository.put_pack(pack.kind, pack.id, pack.bytes.clone())?;
        self.bytes.fetch_add(size, Ordering::Relaxed);
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).insert(
            pack.id,
            PackEntry {
                id: pack.id,
                kind: pack.kind,
                key: pack.key,
                salt: pack.salt,
                size,
                live: 0,
            },
        );
        if pack.kind == PackKind::Data {
            // Nobody waits for it where the workers are done.
            let _ = spare.send(Vec::from(pack.bytes));
        }
        Ok(())
    }
}
