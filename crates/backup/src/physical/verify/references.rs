//! The references of a backup: what its maps name is in the packs, as they say.

use std::collections::BTreeMap;

use bytes::Bytes;
use pgmahout_store::framed::FramedOpener;
use pgmahout_types::repository::manifest::{Content, Entry, File, MapRef, PackEntry};
use pgmahout_types::repository::page_map::{Run, StoredMap};
use pgmahout_types::repository::{BLOCK_SIZE, Label, PackId, PackIndex, PageMap, Source};
use tokio_util::sync::CancellationToken;

use super::damage::{DamagedBlocks, Damages, ObjectDamage};
use super::error::VerifyError;
use super::index_cache::IndexCache;
use super::objects::{Inventory, KnownBackup, ObjectName, damage_of, fetch_manifest};
use super::pack;
use crate::physical::stanza::{PhysicalRepository, kind};

/// Walks over all files of a backup. Whether everything is where it should be; what is not is among the damages.
pub(super) async fn check(
    repository: &PhysicalRepository,
    inventory: &Inventory,
    label: Label,
    indexes: &mut IndexCache,
    damages: &mut Damages,
    cancellation: &CancellationToken,
) -> Result<bool, VerifyError> {
    damages.mark_walked(label);
    let Some(known) = inventory.backups.get(&label) else {
        return Ok(false);
    };
    let name = ObjectName::References(label);
    let head = repository.head().await?;
    let Some(entry) = head.backup(label) else {
        return Ok(false);
    };
    let stored = match fetch_manifest(repository, label, entry.manifest).await? {
        Ok(stored) => stored,
        Err(damage) => {
            damages.add(ObjectName::Manifest(label), damage);
            return Ok(false);
        }
    };
    let mut walk = Walk {
        repository,
        known,
        packs: known.packs.iter().map(|pack| (pack.id, *pack)).collect(),
        label,
        indexes,
        damages,
        map_pack: None,
        whole: true,
    };
    let mut reader = match stored.reader() {
        Ok(reader) => reader,
        Err(error) => {
            walk.damages.add(name, damage_of(error)?);
            return Ok(false);
        }
    };
    loop {
        if cancellation.is_cancelled() {
            return Err(VerifyError::Cancelled);
        }
        match reader.next_entry() {
            Ok(Some(Entry::File(file))) => walk.file(&file).await?,
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => {
                walk.damages.add(
                    name,
                    ObjectDamage::because("its manifest cannot be understood", &error),
                );
                return Ok(false);
            }
        }
    }
    Ok(walk.whole)
}

struct Walk<'a> {
    repository: &'a PhysicalRepository,
    known: &'a KnownBackup,
    packs: BTreeMap<PackId, PackEntry>,
    label: Label,
    indexes: &'a mut IndexCache,
    damages: &'a mut Damages,
    /// The map pack that was used last: files that follow each other have their maps in one.
    map_pack: Option<(PackId, Bytes)>,
    whole: bool,
}

impl Walk<'_> {
    async fn file(&mut self, file: &File) -> Result<(), VerifyError> {
        let map = match &file.content {
            Content::Inline(map) => {
                let packs = &self.known.packs;
                let pack = |number: u32| packs.get(usize::try_from(number).ok()?).map(|entry| entry.id);
                map.to_map(file.size, pack)
                    .map_err(|error| ObjectDamage::because(&told(file), &error))
            }
            Content::Map(content) => match self.map(content.map, content.base).await? {
                Ok(map) if map.size() == file.size => Ok(map),
                Ok(map) => Err(ObjectDamage::whole(format!(
                    "the map of {} is of a file of {} bytes, not of {}",
                    file.path,
                    map.size(),
                    file.size
                ))),
                // The pack is among the damages already; here it is said which file that is.
                Err(Lost::Pack(id)) => {
                    self.lost(ObjectName::Pack(id), file, 0, blocks_of(file.size));
                    return Ok(());
                }
                Err(Lost::Map(damage)) => Err(damage),
            },
        };
        match map {
            Ok(map) => self.blocks(file, &map).await,
            Err(damage) => {
                let name = ObjectName::References(self.label);
                self.damages.add(name, damage);
                self.lost(name, file, 0, blocks_of(file.size));
                Ok(())
            }
        }
    }

    fn lost(&mut self, name: ObjectName, file: &File, first: u32, count: u32) {
        self.whole = false;
        let blocks = DamagedBlocks {
            backup: self.label,
            path: file.path.clone(),
            first,
            count,
        };
        self.damages.add_blocks(name, blocks);
    }

    /// Every stored block of a file, against the indexes of the packs.
    async fn blocks(&mut self, file: &File, map: &PageMap) -> Result<(), VerifyError> {
        let mut known: BTreeMap<PackId, Option<pack::KnownIndex>> = BTreeMap::new();
        for id in map.packs() {
            let index = if let Some(entry) = self.packs.get(id).copied() {
                self.index(&entry).await?
            } else {
                let problem = format!("{} uses pack {id}, which its manifest does not list", file.path);
                self.damages
                    .add(ObjectName::References(self.label), ObjectDamage::whole(problem));
                None
            };
            known.insert(*id, index);
        }
        for run in map.runs() {
            let Source::Frame { frame, offset } = run.extent.source else {
                continue;
            };
            let place = usize::try_from(frame)
                .ok()
                .and_then(|frame| map.frames().get(frame))
                .and_then(|frame| {
                    Some((
                        map.packs().get(usize::try_from(frame.pack).ok()?)?,
                        frame.location,
                    ))
                });
            let Some((id, location)) = place else { continue };
            let pack = ObjectName::Pack(*id);
            let (first, count) = (run.extent.first, run.extent.count);
            match known.get(id) {
                Some(Some(_)) if self.damages.is_lost(&pack, location.index) => {
                    self.lost(pack, file, first, count);
                }
                Some(Some(index)) => {
                    if !is_there(index, location, offset, &run) {
                        let name = ObjectName::References(self.label);
                        let problem = format!("blocks of {} are not where its map says", file.path);
                        self.damages.add(name, ObjectDamage::whole(problem));
                        self.lost(name, file, first, count);
                    }
                }
                _ => self.lost(pack, file, first, count),
            }
        }
        Ok(())
    }

    /// The index of a pack; `None` where that is damaged, which is then known.
    async fn index(&mut self, entry: &PackEntry) -> Result<Option<pack::KnownIndex>, VerifyError> {
        if self.damages.is_lost(&ObjectName::Pack(entry.id), u32::MAX) {
            return Ok(None);
        }
        match self.indexes.get(self.repository, entry).await? {
            Ok(index) => Ok(Some(index)),
            Err(damage) => {
                self.damages.add(ObjectName::Pack(entry.id), damage);
                Ok(None)
            }
        }
    }

    async fn map(&mut self, map: MapRef, base: Option<MapRef>) -> Result<Result<PageMap, Lost>, VerifyError> {
        let stored = match self.stored_map(map).await? {
            Ok(stored) => stored,
            Err(lost) => return Ok(Err(lost)),
        };
        let overlay = match (stored, base) {
            (StoredMap::Whole(map), None) => return Ok(Ok(map)),
            (StoredMap::Overlay(overlay), Some(_)) => overlay,
            _ => {
                return Ok(Err(Lost::Map(ObjectDamage::whole(
                    "a map is of another kind than was noted".to_owned(),
                ))));
            }
        };
        let Some(base) = base else {
            return Ok(Err(Lost::Map(ObjectDamage::whole(
                "a map has lost its base".to_owned(),
            ))));
        };
        let base = match self.stored_map(base).await? {
            Ok(StoredMap::Whole(base)) => base,
            Ok(StoredMap::Overlay(_)) => {
                let problem = "the base of a map is no whole map".to_owned();
                return Ok(Err(Lost::Map(ObjectDamage::whole(problem))));
            }
            Err(lost) => return Ok(Err(lost)),
        };
        Ok(overlay
            .apply(&base)
            .map_err(|error| Lost::Map(ObjectDamage::because("a map does not fit its base", &error))))
    }

    async fn stored_map(&mut self, map: MapRef) -> Result<Result<StoredMap, Lost>, VerifyError> {
        let entry = usize::try_from(map.pack)
            .ok()
            .and_then(|number| self.known.packs.get(number).copied());
        let Some(entry) = entry else {
            let problem = "a map is in a pack that the manifest does not list".to_owned();
            return Ok(Err(Lost::Map(ObjectDamage::whole(problem))));
        };
        let pack = ObjectName::Pack(entry.id);
        if self.damages.is_lost(&pack, map.location.index) {
            return Ok(Err(Lost::Pack(entry.id)));
        }
        let name = pack::name(self.repository, &entry);
        let bytes = match &self.map_pack {
            Some((id, bytes)) if *id == entry.id => bytes.clone(),
            _ => match pack::fetch(self.repository, &name, entry.size).await? {
                Ok(bytes) => {
                    self.map_pack = Some((entry.id, bytes.clone()));
                    bytes
                }
                Err(damage) => {
                    self.damages.add(pack, damage);
                    return Ok(Err(Lost::Pack(entry.id)));
                }
            },
        };
        let location = map.location;
        let stored = usize::try_from(location.offset)
            .ok()
            .zip(usize::try_from(location.end()).ok())
            .and_then(|(start, end)| bytes.get(start..end))
            .unwrap_or_default();
        let cipher = self.repository.cipher();
        let mut content = Vec::new();
        let opened = FramedOpener::from_salt(&cipher, kind::MAP, &name, entry.key, entry.salt)
            .and_then(|opener| opener.open(location, false, stored, &mut content));
        if let Err(error) = opened {
            let frames = BTreeMap::from([(location.index, error.to_string())]);
            self.damages.add(pack, ObjectDamage::frames(frames));
            return Ok(Err(Lost::Pack(entry.id)));
        }
        Ok(StoredMap::decode(&content)
            .map_err(|error| Lost::Map(ObjectDamage::because("a map cannot be understood", &error))))
    }
}

/// Why there is no map.
enum Lost {
    /// The pack that it is in is damaged.
    Pack(PackId),
    /// It makes no sense.
    Map(ObjectDamage),
}

fn told(file: &File) -> String {
    format!("the map of {} makes no sense", file.path)
}

fn blocks_of(size: u64) -> u32 {
    u32::try_from(size.div_ceil(u64::from(BLOCK_SIZE))).unwrap_or(u32::MAX)
}

/// Whether the blocks of a run are in a frame of a pack, with the hashes that the map notes.
fn is_there(
    index: &PackIndex,
    location: pgmahout_types::repository::FrameLocation,
    offset: u32,
    run: &Run<'_>,
) -> bool {
    let frame = index
        .frames
        .binary_search_by_key(&location.index, |frame| frame.location.index)
        .ok()
        .and_then(|at| index.frames.get(at));
    let Some(frame) = frame.filter(|frame| frame.location == location) else {
        return false;
    };
    let blocks = pack::blocks(frame);
    (0_u32..).zip(run.hashes).all(|(number, hash)| {
        let offset = offset.saturating_add(number.saturating_mul(BLOCK_SIZE));
        blocks
            .binary_search_by_key(&offset, |(offset, _)| *offset)
            .is_ok_and(|at| blocks.get(at).is_some_and(|(_, noted)| noted == hash))
    })
}
