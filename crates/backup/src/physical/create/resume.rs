//! What an interrupted backup left in the repository.
//!
//! Packs that no manifest names are kept for a day. Each says in its last frame which blocks of which files it
//! holds, by their hashes: a block that is to be stored, and was stored at the same place of the same file, is
//! not stored again.
//!
//! # Memory
//!
//! For each pack its name, for each file the numbers of the packs that hold some of it, and the indexes of at
//! most 32 packs (about 200 KiB each).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use pgmahout_store::repository::ObjectEntry;
use pgmahout_types::repository::manifest::{PackEntry, PackKind};
use pgmahout_types::repository::{BLOCK_SIZE, FileId, Label, PackId, PackIndex, PageHash};
use tokio_util::sync::CancellationToken;

use super::error::CreateError;
use super::pack::PackedFrame;
use crate::physical::stanza::{BlockingRepository, PhysicalRepository, StanzaObject};

/// Packs are taken up for so long: a little less than they are kept, so that none is collected meanwhile.
const YOUNG: Duration = Duration::from_hours(20);
/// A frame holds at most so many blocks.
const FRAME_BLOCKS: u32 = 16;
/// Indexes that are kept in memory.
const KEPT: usize = 32;

/// What was left.
pub(super) struct Resume {
    repository: BlockingRepository,
    packs: Vec<PackEntry>,
    files: HashMap<FileId, Vec<u32>>,
    indexes: Mutex<VecDeque<(u32, Arc<PackIndex>)>>,
    /// When the oldest of them was written, by the storage's clock.
    pub(super) oldest: SystemTime,
}

/// What was left of one file.
pub(super) struct ResumedFile {
    /// Where runs of blocks begin, sorted.
    runs: Vec<(u32, PackedFrame, u32, Vec<PageHash>)>,
}

/// Packs that may have been left: young, named by no backup that we know of, and not condemned. By the
/// storage's own clock.
pub(super) async fn candidates(
    repository: &PhysicalRepository,
    known: &HashSet<PackId>,
    now: SystemTime,
    cancellation: &CancellationToken,
) -> Result<Vec<(PackId, ObjectEntry)>, CreateError> {
    let names = repository.names();
    let listed = repository
        .repository()
        .list(&names.full("pack"), cancellation)
        .await?;
    Ok(listed
        .into_iter()
        .filter(|entry| now.duration_since(entry.modified).unwrap_or_default() < YOUNG)
        .filter_map(|entry| {
            let object = StanzaObject::parse(names.relative(&entry.name)?)?;
            match object {
                StanzaObject::Pack(id) if !known.contains(&id) => Some((id, entry)),
                _ => None,
            }
        })
        .collect())
}

impl Resume {
    /// Reads the indexes of packs. Those that cannot be read are left alone, and so are those that a backup of
    /// `listed` wrote: that is finished, and what it stored may since have been found damaged.
    ///
    /// For blocking threads.
    pub(super) fn load(
        repository: BlockingRepository,
        candidates: Vec<(PackId, ObjectEntry)>,
        listed: &HashSet<Label>,
    ) -> Option<Self> {
        let mut resume = Self {
            repository,
            packs: Vec::new(),
            files: HashMap::new(),
            indexes: Mutex::default(),
            oldest: SystemTime::now(),
        };
        for (id, entry) in candidates {
            match resume.read(id, entry.size) {
                Ok((pack, index)) if index.kind == PackKind::Data && !listed.contains(&index.run) => {
                    let number = resume.packs.len() as u32;
                    for run in index.frames.iter().flat_map(|frame| &frame.runs) {
                        let packs = resume.files.entry(run.file).or_default();
                        if packs.last() != Some(&number) {
                            packs.push(number);
                        }
                    }
                    resume.packs.push(pack);
                    resume.oldest = resume.oldest.min(entry.modified);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(pack = %id, %error, "a pack that was left cannot be used"),
            }
        }
        (!resume.packs.is_empty()).then_some(resume)
    }

    /// How many packs there are, and their bytes.
    pub(super) fn size(&self) -> (usize, u64) {
        (self.packs.len(), self.packs.iter().map(|pack| pack.size).sum())
    }

    /// A pack that was left.
    pub(super) fn packs(&self) -> impl Iterator<Item = &PackEntry> {
        self.packs.iter()
    }

    /// What was left of a file; `None` for nothing.
    ///
    /// For blocking threads.
    pub(super) fn file(&self, id: FileId) -> Result<Option<ResumedFile>, CreateError> {
        let Some(packs) = self.files.get(&id) else {
            return Ok(None);
        };
        let mut runs = Vec::new();
        for &number in packs {
            let index = self.index(number)?;
            let pack = self.packs[number as usize].id;
            for frame in &index.frames {
                let location = frame.location;
                for run in frame.runs.iter().filter(|run| run.file == id) {
                    runs.push((
                        run.first,
                        PackedFrame { pack, location },
                        run.offset,
                        run.hashes.clone(),
                    ));
                }
            }
        }
        runs.sort_unstable_by_key(|(first, ..)| *first);
        Ok(Some(ResumedFile { runs }))
    }

    fn index(&self, number: u32) -> Result<Arc<PackIndex>, CreateError> {
        let lock = || self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, index)) = lock().iter().find(|(known, _)| *known == number) {
            return Ok(Arc::clone(index));
        }
        let pack = self.packs[number as usize];
        let (_, index) = self.read(pack.id, pack.size)?;
        let index = Arc::new(index);
        let mut indexes = lock();
        indexes.push_back((number, Arc::clone(&index)));
        if indexes.len() > KEPT {
            indexes.pop_front();
        }
        Ok(index)
    }

    fn read(&self, id: PackId, size: u64) -> Result<(PackEntry, PackIndex), CreateError> {
        let (opener, index) = self.repository.pack_index(PackKind::Data, id, size)?;
        let entry = PackEntry {
            id,
            kind: PackKind::Data,
            key: opener.key_number(),
            salt: opener.salt(),
            size,
            live: 0,
        };
        Ok((entry, index))
    }
}

impl ResumedFile {
    /// Where a block with that hash was stored, and where in the frame.
    pub(super) fn find(&self, block: u32, hash: PageHash) -> Option<(PackedFrame, u32)> {
        let from = block.saturating_sub(FRAME_BLOCKS - 1);
        let begin = self.runs.partition_point(|(first, ..)| *first < from);
        self.runs[begin..]
            .iter()
            .take_while(|(first, ..)| *first <= block)
            .find_map(|(first, frame, offset, hashes)| {
                let at = block - first;
                (hashes.get(at as usize) == Some(&hash)).then_some((*frame, offset + at * BLOCK_SIZE))
            })
    }
}
