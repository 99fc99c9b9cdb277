//! Where files end up when all of their blocks are known: as a record, and large maps in packs of maps.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use pgmahout_types::repository::manifest::{Content, MapContent, MapRef};
use pgmahout_types::repository::page_map::{InlineMap, Overlay};
use pgmahout_types::repository::{FileId, LARGEST_FRAME, PackId, PageMap};

use super::chunk::{self, Chunk};
use super::error::CreateError;
use super::pack::{PackWriter, PackedFrame};
use super::parent::ParentFile;
use super::record::{Record, Records};

/// The maps of files of up to so many blocks stand in the manifest.
const INLINE_BLOCKS: u32 = 16;
/// What changed is stored instead of the map when it is shorter than one part in so many.
const OVERLAY_SHARE: usize = 4;

/// Collects what is found of files.
pub(super) struct Sink {
    state: Mutex<State>,
    maps: Mutex<PackWriter>,
}

struct State {
    records: Records,
    /// For each file one more than the place of its record; zero for none.
    places: Vec<u64>,
    packs: PackTable,
}

/// The packs that the backup uses, numbered as they are first used.
#[derive(Debug, Default)]
pub(super) struct PackTable {
    numbers: HashMap<PackId, u32>,
    /// Each with the raw bytes in it that are used.
    packs: Vec<(PackId, u64)>,
}

impl PackTable {
    fn number(&mut self, id: PackId) -> u32 {
        *self.numbers.entry(id).or_insert_with(|| {
            self.packs.push((id, 0));
            (self.packs.len() - 1) as u32
        })
    }

    fn add(&mut self, id: PackId, bytes: u64) {
        let number = self.number(id);
        self.packs[number as usize].1 += bytes;
    }

    /// All of them, in the order of their numbers, with the raw bytes that are used.
    pub(super) fn packs(&self) -> &[(PackId, u64)] {
        &self.packs
    }

    fn reference(&self, frame: PackedFrame) -> Option<MapRef> {
        Some(MapRef {
            pack: *self.numbers.get(&frame.pack)?,
            location: frame.location,
        })
    }
}

/// Everything that was found, for the manifest.
pub(super) struct Found {
    records: Records,
    places: Vec<u64>,
    /// The packs.
    pub(super) packs: PackTable,
}

/// A file of which all parts are known.
pub(super) struct FinishedFile<'a> {
    /// Its number.
    pub(super) number: u32,
    /// What tells it apart.
    pub(super) id: FileId,
    /// Its bytes in the backup.
    pub(super) size: u64,
    /// Its parts in order, each with the frames that its blocks went into.
    pub(super) parts: Vec<(&'a Chunk, &'a [PackedFrame])>,
    /// What the older backup has.
    pub(super) parent: Option<&'a ParentFile>,
}

impl Sink {
    /// For so many files, or more.
    pub(super) fn new(files: usize, maps: PackWriter) -> Self {
        Self {
            state: Mutex::new(State {
                records: Records::default(),
                places: vec![0; files],
                packs: PackTable::default(),
            }),
            maps: Mutex::new(maps),
        }
    }

    /// Takes a file.
    pub(super) fn finish(&self, file: &FinishedFile<'_>) -> Result<(), CreateError> {
        let size = file
            .parts
            .iter()
            .filter_map(|(chunk, _)| chunk.ended_at)
            .fold(file.size, u64::min);
        let unchanged = file
            .parent
            .filter(|parent| parent.map.size() == size && file.parts.iter().all(|(chunk, _)| !chunk.changed));
        let built;
        let map = if let Some(parent) = unchanged {
            &parent.map
        } else {
            let parts = file.parts.iter().map(|(chunk, frames)| (*chunk, *frames));
            built =
                chunk::join(parts, file.parent.map(|parent| &parent.map), size).map_err(CreateError::Map)?;
            &built
        };
        let stored = match unchanged.and_then(|parent| parent.stored.as_ref()) {
            Some(stored) => Some((stored.frame, stored.base.as_ref().map(|(base, _)| *base))),
            None if map.blocks() <= INLINE_BLOCKS => None,
            None => Some(self.store(file, map)?),
        };
        let record = match stored {
            None => Record::Inline(map.clone()),
            Some((frame, base)) => Record::Stored {
                size,
                map: frame,
                base,
                packs: map.packs().to_vec(),
            },
        };
        let mut state = self.lock();
        for (id, bytes) in map.packs().iter().zip(map.bytes_by_pack()) {
            state.packs.add(*id, bytes);
        }
        if let Some((frame, base)) = stored {
            state.packs.add(frame.pack, u64::from(frame.location.raw));
            if let Some(base) = base {
                state.packs.add(base.pack, u64::from(base.location.raw));
            }
        }
        let place = state.records.push(&[], &record);
        let number = file.number as usize;
        if number >= state.places.len() {
            // Files that arrive are not counted before.
            state.places.resize(number + 1, 0);
        }
        state.places[number] = place + 1;
        Ok(())
    }

    /// Puts a map into a pack of maps: what changed, where that is little, or all of it.
    fn store(
        &self,
        file: &FinishedFile<'_>,
        map: &PageMap,
    ) -> Result<(PackedFrame, Option<PackedFrame>), CreateError> {
        let whole = map.encode();
        if whole.len() > LARGEST_FRAME as usize {
            return Err(CreateError::FileTooLarge { bytes: map.size() });
        }
        let base = file.parent.and_then(|parent| {
            let stored = parent.stored.as_ref()?;
            Some(match &stored.base {
                Some((frame, base)) => (*frame, base),
                None => (stored.frame, &parent.map),
            })
        });
        let overlay = base
            .map(|(frame, base)| (frame, Overlay::diff(base, map).encode()))
            .filter(|(_, overlay)| overlay.len() < whole.len() / OVERLAY_SHARE);
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        match overlay {
            Some((base, overlay)) => Ok((maps.add_whole(file.id, &overlay)?, Some(base))),
            None => Ok((maps.add_whole(file.id, &whole)?, None)),
        }
    }

    /// Everything that was found. The last pack of maps is sent away.
    pub(super) fn into_found(self) -> Result<Found, CreateError> {
        let maps = self.maps.into_inner().unwrap_or_else(PoisonError::into_inner);
        maps.finish()?;
        let State {
            records,
            places,
            packs,
        } = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Found {
            records,
            places,
            packs,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Found {
    /// Size and content of a file for the manifest; `None` for one that had vanished.
    pub(super) fn content(&self, number: usize) -> Option<(u64, Content)> {
        let place = self.places.get(number)?.checked_sub(1)?;
        Some(match self.records.get(place, &[])? {
            Record::Inline(map) => {
                let number = |id: PackId| self.packs.numbers.get(&id).copied().unwrap_or(u32::MAX);
                (map.size(), Content::Inline(InlineMap::new(&map, number)))
            }
            Record::Stored {
                size,
                map,
                base,
                packs,
            } => {
                let base = match base {
                    Some(base) => Some(self.packs.reference(base)?),
                    None => None,
                };
                let content = MapContent {
                    map: self.packs.reference(map)?,
                    base,
                    packs: packs
                        .iter()
                        .filter_map(|id| self.packs.numbers.get(id).copied())
                        .collect(),
                };
                (size, Content::Map(Box::new(content)))
            }
        })
    }
}
