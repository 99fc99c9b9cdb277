//! Page maps, translated: every block is in the same frame of another pack, and has another hash.
//!
//! What two backups have in common stays in common: the map of a file that has not changed is used again, and one
//! that has changed a little becomes an overlay on the map that an older copy of the file has. The base of an
//! overlay of the source is not copied as such: it may name packs of which only changed blocks were left, and
//! which are gone.

use std::collections::{HashMap, HashSet};

use pgmahout_store::framed::{FrameCodec, FramedBuilder};
use pgmahout_types::repository::manifest::{
    Content, Entry, File, FileKind, MapContent, MapRef, PackEntry, PackKind,
};
use pgmahout_types::repository::pack_index::{IndexedFrame, IndexedRun};
use pgmahout_types::repository::page_map::{InlineMap, Overlay, StoredMap};
use pgmahout_types::repository::{
    BLOCK_SIZE, FileId, FrameRef, Label, PackId, PackIndex, PageMap, PageMapBuilder, Source,
};

use super::error::CopyError;
use super::packs::Indexes;
use crate::physical::create::{MapReader, PackedFrame, file_id};
use crate::physical::stanza::manifest::StoredManifest;
use crate::physical::stanza::{BlockingRepository, PhysicalRepository};
use crate::physical::verify::pack::blocks;

/// Bytes at which a pack of maps is full.
const MAP_PACK: usize = 16 << 20;
/// What a pack of maps begins with.
const FIRST_MAP_BYTES: usize = 1 << 20;
/// An overlay is stored where it is so many times smaller than the whole map.
const OVERLAY_SHARE: usize = 4;

/// A frame of a pack, by which maps are found again.
type FrameName = (PackId, u32);

/// Maps that were translated, by the frame of the original.
#[derive(Debug, Default)]
pub(super) struct KnownMaps {
    /// The copy, and where that is an overlay its base.
    maps: HashMap<FrameName, (PackedFrame, Option<PackedFrame>)>,
    /// What an overlay on the same base, or on that map, is best made on: a whole map.
    bases: HashMap<FrameName, PackedFrame>,
    /// The packs of maps that these are in.
    packs: HashMap<PackId, PackEntry>,
}

/// The path of a file, and where its map is.
type MappedFile = (Box<[u8]>, MapContent);

/// The content of a map that is not in the manifest, with its packs named.
struct Named {
    map: PackedFrame,
    base: Option<PackedFrame>,
}

fn named(content: &MapContent, packs: &[PackEntry]) -> Option<Named> {
    let frame = |reference: MapRef| {
        Some(PackedFrame {
            pack: packs.get(usize::try_from(reference.pack).ok()?)?.id,
            location: reference.location,
        })
    };
    let base = match content.base {
        Some(base) => Some(frame(base)?),
        None => None,
    };
    Some(Named {
        map: frame(content.map)?,
        base,
    })
}

fn name(frame: PackedFrame) -> FrameName {
    (frame.pack, frame.location.index)
}

impl KnownMaps {
    /// Learns from a backup and its copy, whose files stand in the same order. For blocking threads.
    pub(super) fn learn(
        &mut self,
        original: &StoredManifest,
        original_packs: &[PackEntry],
        copy: &StoredManifest,
        copy_packs: &[PackEntry],
    ) -> Result<(), crate::physical::stanza::StanzaError> {
        let files = |manifest: &'_ StoredManifest| -> Result<Vec<MappedFile>, _> {
            let mut files = Vec::new();
            let mut reader = manifest.reader()?;
            while let Ok(Some(entry)) = reader.next_entry() {
                if let Entry::File(file) = entry
                    && let Content::Map(content) = file.content
                {
                    files.push((file.path.as_bytes().into(), *content));
                }
            }
            Ok::<_, crate::physical::stanza::StanzaError>(files)
        };
        self.packs.extend(copy_packs.iter().map(|pack| (pack.id, *pack)));
        let copies = files(copy)?;
        for ((path, original), (copied_path, copied)) in files(original)?.into_iter().zip(copies) {
            if path != copied_path {
                break;
            }
            let found = named(&original, original_packs).zip(named(&copied, copy_packs));
            let Some((original, copied)) = found else { break };
            self.note(&original, copied.map, copied.base);
        }
        Ok(())
    }

    fn note(&mut self, original: &Named, map: PackedFrame, base: Option<PackedFrame>) {
        self.maps.insert(name(original.map), (map, base));
        let whole = base.unwrap_or(map);
        self.bases
            .insert(name(original.base.unwrap_or(original.map)), whole);
        self.bases.insert(name(original.map), whole);
    }
}

/// Translates the files of one backup.
pub(super) struct Translator<'a> {
    pub(super) source: &'a BlockingRepository,
    pub(super) target: &'a BlockingRepository,
    pub(super) indexes: &'a Indexes,
    pub(super) known: &'a mut KnownMaps,
    /// All packs of the backup, by number.
    pub(super) source_packs: &'a [PackEntry],
    /// The copies of its packs of file content.
    pub(super) copies: &'a std::collections::HashMap<PackId, PackEntry>,
    pub(super) source_maps: MapReader,
    pub(super) target_maps: MapReader,
    pub(super) maps: MapPacks<'a>,
    pub(super) table: Table,
}

/// The packs of the copy, numbered as they are met.
#[derive(Default)]
pub(super) struct Table {
    numbers: HashMap<PackId, u32>,
    packs: Vec<(PackId, u64)>,
    counted: HashSet<FrameName>,
}

impl Table {
    fn number(&mut self, id: PackId) -> u32 {
        let next = u32::try_from(self.packs.len()).unwrap_or(u32::MAX);
        *self.numbers.entry(id).or_insert_with(|| {
            self.packs.push((id, 0));
            next
        })
    }

    /// A frame with a map, whose bytes are counted once.
    fn reference(&mut self, frame: PackedFrame) -> MapRef {
        let number = self.number(frame.pack);
        if self.counted.insert(name(frame))
            && let Some((_, live)) = usize::try_from(number).ok().and_then(|at| self.packs.get_mut(at))
        {
            *live += u64::from(frame.location.raw);
        }
        FrameRef {
            pack: number,
            location: frame.location,
        }
    }

    /// The packs by number, each with the raw bytes of maps that are used of it.
    pub(super) fn into_packs(self) -> Vec<(PackId, u64)> {
        self.packs
    }
}

impl Translator<'_> {
    /// The content of a file, as the copy has it.
    pub(super) fn content(&mut self, file: &File) -> Result<Content, CopyError> {
        match &file.content {
            Content::Inline(map) => {
                let packs = self.source_packs;
                let pack = |number: u32| packs.get(usize::try_from(number).ok()?).map(|pack| pack.id);
                let map = map
                    .to_map(file.size, pack)
                    .map_err(|error| self.senseless(file, &error.to_string()))?;
                let map = self.translate(file, &map)?;
                let table = &mut self.table;
                Ok(Content::Inline(InlineMap::new(&map, |id| table.number(id))))
            }
            Content::Map(content) => {
                let original = named(content, self.source_packs)
                    .ok_or_else(|| self.senseless(file, "it is in a pack that is not listed"))?;
                let (map, base) = match self.known.maps.get(&name(original.map)) {
                    Some(known) => *known,
                    None => self.store(file, &original)?,
                };
                let mut packs = Vec::with_capacity(content.packs.len());
                for number in &content.packs {
                    let source = usize::try_from(*number)
                        .ok()
                        .and_then(|at| self.source_packs.get(at));
                    let copy = source.and_then(|pack| self.copies.get(&pack.id));
                    let copy =
                        copy.ok_or_else(|| self.senseless(file, "it names a pack that is not listed"))?;
                    packs.push(self.table.number(copy.id));
                }
                Ok(Content::Map(Box::new(MapContent {
                    map: self.table.reference(map),
                    base: base.map(|base| self.table.reference(base)),
                    packs: packs.into(),
                })))
            }
        }
    }

    /// Translates a map and stores it, whole or as an overlay.
    fn store(
        &mut self,
        file: &File,
        original: &Named,
    ) -> Result<(PackedFrame, Option<PackedFrame>), CopyError> {
        let map = self.read(file, original)?;
        let map = self.translate(file, &map)?;
        let whole = map.encode();
        let base = self.known.bases.get(&name(original.base.unwrap_or(original.map)));
        let base = match base.copied() {
            Some(base) => self.base(base)?.map(|map| (base, map)),
            None => None,
        };
        let overlay = base
            .map(|(frame, base)| (frame, Overlay::diff(&base, &map).encode()))
            .filter(|(_, overlay)| overlay.len() < whole.len() / OVERLAY_SHARE);
        let id = file_id(self.target.repository().hash_key(), file.path.as_bytes());
        let stored = match overlay {
            Some((base, overlay)) => (self.maps.add(id, &overlay)?, Some(base)),
            None => (self.maps.add(id, &whole)?, None),
        };
        self.known.note(original, stored.0, stored.1);
        Ok(stored)
    }

    /// A whole map of the target; nothing where its pack is not stored yet.
    fn base(&self, frame: PackedFrame) -> Result<Option<PageMap>, CopyError> {
        let Some(pack) = self.known.packs.get(&frame.pack) else {
            return Ok(None);
        };
        Ok(match self.target_maps.read(pack, frame)? {
            StoredMap::Whole(map) => Some(map),
            StoredMap::Overlay(_) => None,
        })
    }

    /// The whole map of a file of the source.
    fn read(&self, file: &File, original: &Named) -> Result<PageMap, CopyError> {
        let stored = |frame: PackedFrame| {
            let pack = self.source_packs.iter().find(|pack| pack.id == frame.pack);
            let pack = pack.ok_or_else(|| self.senseless(file, "it is in a pack that is not listed"))?;
            self.source_maps
                .read(pack, frame)
                .map_err(|error| self.map_error(file, error))
        };
        match (stored(original.map)?, original.base) {
            (StoredMap::Whole(map), None) => Ok(map),
            (StoredMap::Overlay(overlay), Some(base)) => match stored(base)? {
                StoredMap::Whole(base) => overlay
                    .apply(&base)
                    .map_err(|error| self.senseless(file, &error.to_string())),
                StoredMap::Overlay(_) => Err(self.senseless(file, "its base is no whole map")),
            },
            _ => Err(self.senseless(file, "it is of another kind than was noted")),
        }
    }

    /// A damaged map is the backup's fault; what the storage cannot do is not.
    fn map_error(&self, file: &File, error: crate::physical::create::CreateError) -> CopyError {
        use crate::physical::create::CreateError;
        use crate::physical::stanza::StanzaError;
        match error {
            CreateError::Stanza(StanzaError::Store(source)) if source.is_not_found() => {
                self.senseless(file, "its pack is missing")
            }
            CreateError::Framed { source, .. } if source.is_damage() => {
                self.senseless(file, &source.to_string())
            }
            CreateError::Unexpected { what } => self.senseless(file, &what),
            error => error.into(),
        }
    }

    /// The same blocks, where they are in the copies of the packs.
    fn translate(&self, file: &File, map: &PageMap) -> Result<PageMap, CopyError> {
        let mut indexes = HashMap::new();
        for id in map.packs() {
            let copy = self
                .copies
                .get(id)
                .ok_or_else(|| self.senseless(file, "it names a pack that is not listed"))?;
            indexes.insert(*id, (copy.id, self.indexes.get(self.target, copy)?));
        }
        let mut builder = PageMapBuilder::new();
        for run in map.runs() {
            let Source::Frame { frame, offset } = run.extent.source else {
                builder.zeros(run.extent.count);
                continue;
            };
            let found = usize::try_from(frame)
                .ok()
                .and_then(|frame| map.frames().get(frame))
                .and_then(|frame| {
                    let pack = map.packs().get(usize::try_from(frame.pack).ok()?)?;
                    let (id, index) = indexes.get(pack)?;
                    let number = usize::try_from(frame.location.index).ok()?;
                    let copy = index.frames.get(number)?;
                    (copy.location.index == frame.location.index && copy.location.raw == frame.location.raw)
                        .then_some((*id, copy))
                });
            let Some((id, copy)) = found else {
                return Err(self.senseless(file, "it names a frame that its pack has not"));
            };
            let blocks = blocks(copy);
            let hashes: Option<Vec<_>> = (0_u32..)
                .zip(run.hashes)
                .map(|(number, _)| {
                    let offset = offset.saturating_add(number.saturating_mul(BLOCK_SIZE));
                    let at = blocks.binary_search_by_key(&offset, |(offset, _)| *offset).ok()?;
                    blocks.get(at).map(|(_, hash)| *hash)
                })
                .collect();
            let hashes =
                hashes.ok_or_else(|| self.senseless(file, "it names a block that its frame has not"))?;
            builder.stored(id, copy.location, offset, &hashes);
        }
        builder
            .finish(map.size())
            .map_err(|error| self.senseless(file, &error.to_string()))
    }

    fn senseless(&self, file: &File, problem: &str) -> CopyError {
        CopyError::Damaged {
            repository: self.source.repository().description(),
            object: format!("the map of {}{}", file.path, of_kind(file.kind)),
            problem: problem.to_owned(),
        }
    }
}

/// What helps to find a file that only the server knows.
fn of_kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Fsm => " (a free space map)",
        FileKind::Vm => " (a visibility map)",
        _ => "",
    }
}

/// Packs of maps that are being made. One is in memory at a time.
pub(super) struct MapPacks<'a> {
    target: &'a BlockingRepository,
    codec: FrameCodec,
    run: Label,
    open: Option<(PackId, FramedBuilder, PackIndex)>,
    stored: Vec<PackEntry>,
}

impl<'a> MapPacks<'a> {
    pub(super) fn new(target: &'a BlockingRepository, codec: FrameCodec, run: Label) -> Self {
        Self {
            target,
            codec,
            run,
            open: None,
            stored: Vec::new(),
        }
    }

    fn add(&mut self, file: FileId, content: &[u8]) -> Result<PackedFrame, CopyError> {
        if self
            .open
            .as_ref()
            .is_some_and(|(_, builder, _)| builder.len() + content.len() > MAP_PACK)
        {
            self.send()?;
        }
        let repository: &PhysicalRepository = self.target.repository();
        let (id, builder, index) = match &mut self.open {
            Some(open) => open,
            closed => {
                let id = repository.new_pack_id()?;
                let (kind, object) = repository.pack_object(PackKind::Map, id);
                let builder = FramedBuilder::new(&repository.cipher(), kind, &object, FIRST_MAP_BYTES)
                    .map_err(|source| CopyError::Framed { object, source })?;
                closed.insert((id, builder, PackIndex::new(PackKind::Map, self.run)))
            }
        };
        let location = builder
            .push(self.codec, content)
            .map_err(|source| CopyError::Framed {
                object: format!("pack {id}"),
                source,
            })?;
        let run = IndexedRun {
            file,
            first: 0,
            offset: 0,
            hashes: Vec::new(),
        };
        index.frames.push(IndexedFrame {
            location,
            runs: vec![run],
        });
        Ok(PackedFrame { pack: *id, location })
    }

    fn send(&mut self) -> Result<(), CopyError> {
        let Some((id, builder, index)) = self.open.take() else {
            return Ok(());
        };
        let (key, salt) = (builder.key_number(), builder.salt());
        let object = builder
            .finish(&index.encode(), FrameCodec::Zstd(1))
            .map_err(|source| CopyError::Framed {
                object: format!("pack {id}"),
                source,
            })?;
        let size = object.len() as u64;
        self.target.put_pack(PackKind::Map, id, object)?;
        self.stored.push(PackEntry {
            id,
            kind: PackKind::Map,
            key,
            salt,
            size,
            live: 0,
        });
        Ok(())
    }

    /// Stores the last one; those that were stored.
    pub(super) fn finish(mut self, known: &mut KnownMaps) -> Result<Vec<PackEntry>, CopyError> {
        self.send()?;
        known
            .packs
            .extend(self.stored.iter().map(|pack| (pack.id, *pack)));
        Ok(self.stored)
    }
}

impl KnownMaps {
    /// A pack of maps that is stored.
    pub(super) fn pack(&self, id: PackId) -> Option<&PackEntry> {
        self.packs.get(&id)
    }
}
