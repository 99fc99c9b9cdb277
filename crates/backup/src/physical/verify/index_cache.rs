//! The indexes of packs that were read lately.

use std::collections::BTreeMap;

use pgmahout_types::repository::manifest::PackEntry;
use pgmahout_types::repository::{PackId, PackIndex};

use super::damage::ObjectDamage;
use super::error::VerifyError;
use super::pack::{self, KnownIndex};
use crate::physical::stanza::PhysicalRepository;

/// The most that the indexes in memory may take, in bytes.
const CAPACITY: usize = 64 << 20;

/// Indexes of packs, those that were used longest ago dropped first.
#[derive(Default)]
pub(super) struct IndexCache {
    indexes: BTreeMap<PackId, (KnownIndex, u64)>,
    bytes: usize,
    clock: u64,
}

impl IndexCache {
    /// The index of a pack, from memory or from the repository.
    pub(super) async fn get(
        &mut self,
        repository: &PhysicalRepository,
        entry: &PackEntry,
    ) -> Result<Result<KnownIndex, ObjectDamage>, VerifyError> {
        self.clock += 1;
        if let Some((index, used)) = self.indexes.get_mut(&entry.id) {
            *used = self.clock;
            return Ok(Ok(KnownIndex::clone(index)));
        }
        let read = pack::read_index(repository, entry).await?;
        if let Ok(index) = &read {
            self.put(entry.id, KnownIndex::clone(index));
        }
        Ok(read)
    }

    /// Keeps an index that was read anyway.
    pub(super) fn put(&mut self, id: PackId, index: KnownIndex) {
        self.clock += 1;
        self.bytes += weight(&index);
        if let Some((old, _)) = self.indexes.insert(id, (index, self.clock)) {
            self.bytes -= weight(&old);
        }
        while self.bytes > CAPACITY && self.indexes.len() > 1 {
            let oldest = self.indexes.iter().min_by_key(|(_, (_, used))| *used);
            let Some(oldest) = oldest.map(|(id, _)| *id) else {
                break;
            };
            if let Some((old, _)) = self.indexes.remove(&oldest) {
                self.bytes -= weight(&old);
            }
        }
    }
}

/// About how many bytes an index takes.
fn weight(index: &PackIndex) -> usize {
    let runs = index.frames.iter().map(|frame| {
        let hashes: usize = frame.runs.iter().map(|run| run.hashes.len()).sum();
        48 + frame.runs.len() * 48 + hashes * 8
    });
    runs.sum()
}
