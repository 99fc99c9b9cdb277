//! Packs of file content: opened with the keys of one repository, hashed and sealed with those of the other.
//!
//! A pack becomes one pack with the same frames in the same order. So where a block lies is translated by the
//! number of its frame, and the target's own index says where that frame is and what its blocks hash to.
//!
//! # Memory
//!
//! Each thread holds one pack twice, at most 128 MiB and a little.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pgmahout_procedure::report::Progress;
use pgmahout_store::StoreError;
use pgmahout_store::framed::{FrameCodec, FramedBuilder, FramedError};
use pgmahout_types::repository::manifest::{PackEntry, PackKind};
use pgmahout_types::repository::pack_index::{IndexedFrame, IndexedRun};
use pgmahout_types::repository::{BLOCK_SIZE, Nonce, PackId, PackIndex};
use tokio_util::sync::CancellationToken;

use super::error::CopyError;
use super::plan::{Candidate, mark};
use crate::physical::stanza::{BlockingRepository, random};
use crate::physical::verify::pack::{Unsound, hashes_under, open_each};

/// Indexes of packs that are kept in memory, about 200 KiB each.
const KEPT: usize = 128;

/// Copies packs. Shared by threads.
pub(super) struct PackCopier {
    pub(super) source: BlockingRepository,
    pub(super) target: BlockingRepository,
    pub(super) codec: FrameCodec,
    pub(super) indexes: Indexes,
}

/// The indexes of packs of the target that were used lately.
#[derive(Default)]
pub(super) struct Indexes(Mutex<VecDeque<(PackId, Arc<PackIndex>)>>);

impl Indexes {
    fn put(&self, id: PackId, index: Arc<PackIndex>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            known.pop_front();
        }
        known.push_back((id, index));
    }

    /// The index of a pack, from memory or from the repository.
    pub(super) fn get(
        &self,
        target: &BlockingRepository,
        pack: &PackEntry,
    ) -> Result<Arc<PackIndex>, CopyError> {
        {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = known.iter().position(|(id, _)| *id == pack.id)
                && let Some((id, index)) = known.remove(at)
            {
                known.push_back((id, Arc::clone(&index)));
                return Ok(index);
            }
        }
        let (_, index) = target.pack_index(pack.kind, pack.id, pack.size)?;
        let index = Arc::new(index);
        self.put(pack.id, Arc::clone(&index));
        Ok(index)
    }
}

/// What copying packs did.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct PackTally {
    /// How many were copied.
    pub(super) copied: u64,
    /// How many were there already.
    pub(super) reused: u64,
    /// Raw bytes of those that were copied.
    pub(super) raw: u64,
    /// Bytes that they take in the target.
    pub(super) stored: u64,
}

impl PackCopier {
    /// Copies packs on so many threads, and gives the copies by the names of the originals.
    pub(super) fn copy_all(
        &self,
        packs: &[(PackEntry, Vec<Candidate>)],
        jobs: usize,
        progress: &dyn Progress,
        cancellation: &CancellationToken,
    ) -> Result<(HashMap<PackId, PackEntry>, PackTally), CopyError> {
        let next = AtomicUsize::new(0);
        let made = Mutex::new((HashMap::new(), PackTally::default()));
        let failure = Mutex::new(None);
        let has_failed = || failure.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        let work = || {
            while let Some((pack, candidates)) = packs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if has_failed() {
                    return;
                }
                let copied = if cancellation.is_cancelled() {
                    Err(CopyError::Interrupted)
                } else {
                    self.copy(pack, candidates)
                };
                match copied {
                    Ok((copy, raw)) => {
                        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
                        match raw {
                            Some(raw) => {
                                made.1.copied += 1;
                                made.1.raw += raw;
                                made.1.stored += copy.size;
                                progress.advance(pack.size);
                            }
                            None => made.1.reused += 1,
                        }
                        made.0.insert(pack.id, copy);
                    }
                    Err(error) => {
                        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                        failure.get_or_insert(error);
                        return;
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..jobs {
                scope.spawn(work);
            }
            work();
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(made.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Copies one, and says how many raw bytes that were; nothing where an interrupted run has copied it.
    fn copy(
        &self,
        pack: &PackEntry,
        candidates: &[Candidate],
    ) -> Result<(PackEntry, Option<u64>), CopyError> {
        for candidate in candidates {
            // One that cannot be read is not used; what the storage cannot do shows when the copy is stored.
            if let Ok((opener, index)) = self.target.pack_index(pack.kind, candidate.id, candidate.size) {
                self.indexes.put(candidate.id, Arc::new(index));
                let copy = PackEntry {
                    id: candidate.id,
                    key: opener.key_number(),
                    salt: opener.salt(),
                    size: candidate.size,
                    ..*pack
                };
                return Ok((copy, None));
            }
        }
        let source = self.source.repository();
        let (_, name) = source.pack_object(pack.kind, pack.id);
        let damaged = |problem: String| CopyError::Damaged {
            repository: source.description(),
            object: format!("pack {}", pack.id),
            problem,
        };
        let bytes = match self.source.store().get_bytes(&name, pack.size) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Err(damaged("it is missing".to_owned())),
            Err(StoreError::TooLarge { .. } | StoreError::Corrupt { .. }) => {
                return Err(damaged(
                    "it has not the length with which it was written".to_owned(),
                ));
            }
            Err(error) => return Err(error.into()),
        };
        let target = self.target.repository();
        let id = copy_id(target.hash_key(), source.id(), pack.id)?;
        let (kind, target_name) = target.pack_object(pack.kind, id);
        let failed = |source| CopyError::Framed {
            object: target_name.clone(),
            source,
        };
        let cipher = target.cipher();
        let mut builder =
            FramedBuilder::new(&cipher, kind, &target_name, bytes.len() + (1 << 16)).map_err(failed)?;
        let mut frames = Vec::new();
        let (mut raw_bytes, mut problem) = (0, None);
        let mut take = |frame: &IndexedFrame, raw: &[u8]| {
            if problem.is_none() {
                match self.push(&mut builder, frame, raw) {
                    Ok(frame) => frames.push(frame),
                    Err(error) => problem = Some(error),
                }
                raw_bytes += raw.len() as u64;
            }
        };
        let opened = open_each(
            &source.cipher(),
            source.hash_key(),
            pack,
            &name,
            &bytes,
            &mut take,
        );
        drop(bytes);
        let index = opened.map_err(|unsound| match unsound {
            Unsound::Damaged(problem) => damaged(problem),
            Unsound::Unable(source) => CopyError::Framed {
                object: name.clone(),
                source,
            },
        })?;
        if let Some(source) = problem {
            return Err(failed(source));
        }
        let index = PackIndex {
            kind: PackKind::Data,
            run: index.run,
            frames,
        };
        let (key, salt) = (builder.key_number(), builder.salt());
        let object = builder
            .finish(&index.encode(), FrameCodec::Zstd(1))
            .map_err(failed)?;
        let copy = PackEntry {
            id,
            key,
            salt,
            size: object.len() as u64,
            ..*pack
        };
        self.target.put_pack(pack.kind, id, object)?;
        self.indexes.put(id, Arc::new(index));
        Ok((copy, Some(raw_bytes)))
    }

    /// Seals a frame, and hashes its blocks under the target's key.
    fn push(
        &self,
        builder: &mut FramedBuilder,
        frame: &IndexedFrame,
        raw: &[u8],
    ) -> Result<IndexedFrame, FramedError> {
        let hashes = hashes_under(frame, raw, self.target.repository().hash_key());
        let location = builder.push(self.codec, raw)?;
        let run = |run: &IndexedRun| IndexedRun {
            hashes: (0_u32..)
                .zip(&run.hashes)
                .filter_map(|(number, _)| {
                    let offset = run.offset.saturating_add(number.saturating_mul(BLOCK_SIZE));
                    hashes.get(&offset).copied()
                })
                .collect(),
            ..*run
        };
        Ok(IndexedFrame {
            location,
            runs: frame.runs.iter().map(run).collect(),
        })
    }
}

/// A new name for the copy of a pack.
fn copy_id(key: &[u8; 32], origin: Nonce, pack: PackId) -> Result<PackId, CopyError> {
    let mut id = [0; 16];
    let (first, second) = id.split_at_mut(8);
    first.copy_from_slice(&mark(key, origin, pack));
    second.copy_from_slice(&random::<8>()?);
    Ok(PackId::from_bytes(id))
}
