//! Maps that are kept as what changed since another map.

use super::super::BLOCK_SIZE;
use super::super::frame::FrameRef;
use super::super::ids::{PackId, PageHash};
use super::build::{Places, PlacesBuilder};
use super::codec::is_overlay;
use super::{
    DecodeError, Extent, PageMap, PageMapBuilder, PageMapError, Run, Source, blocks_of, index,
    last_block_bytes,
};

/// The blocks of a [`PageMap`] that are elsewhere than in a base, which is an older map of the same file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    pub(super) base: u64,
    pub(super) size: u64,
    pub(super) places: Places,
}

impl Overlay {
    /// What changed from `base` to `map`: [`Overlay::apply`] on the base gives the map again.
    pub fn diff(base: &PageMap, map: &PageMap) -> Self {
        let mut builder = PlacesBuilder::default();
        let mut first = 0;
        while first < map.blocks() {
            let end = next_border(base, map, first);
            if !is_same(base, map, first, end) {
                builder.reuse(first, &map.places, first, end);
            }
            first = end;
        }
        Self {
            base: base.fingerprint(),
            size: map.size,
            places: builder.finish(),
        }
    }

    /// The whole map.
    ///
    /// # Errors
    /// When `base` is not the map that the overlay was made for, or the two do not make a map.
    pub fn apply(&self, base: &PageMap) -> Result<PageMap, PageMapError> {
        if base.fingerprint() != self.base {
            return Err(PageMapError::WrongBase);
        }
        let size = self.size;
        let blocks = blocks_of(size).ok_or(PageMapError::TooLarge { size })?;
        let mut builder = PageMapBuilder::new();
        let mut next = 0;
        for run in self.runs() {
            builder.reuse(base, next, run.extent.first);
            next = run.extent.end();
            match run.extent.source {
                Source::Zero => builder.zeros(run.extent.count),
                Source::Frame { frame, offset } => {
                    if let Some(frame) = self.frames().get(index(frame))
                        && let Some(&pack) = self.packs().get(index(frame.pack))
                    {
                        builder.stored(pack, frame.location, offset, run.hashes);
                    }
                }
            }
        }
        builder.reuse(base, next, blocks);
        builder.finish(size)
    }

    /// The fingerprint of the base.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The packs of the changed extents.
    pub fn packs(&self) -> &[PackId] {
        &self.places.packs
    }

    /// The frames of the changed extents.
    pub fn frames(&self) -> &[FrameRef] {
        &self.places.frames
    }

    /// The changed extents, with gaps between them.
    pub fn extents(&self) -> &[Extent] {
        &self.places.extents
    }

    /// The hashes of the changed blocks that are stored.
    pub fn hashes(&self) -> &[PageHash] {
        &self.places.hashes
    }

    /// The changed extents with their hashes.
    pub fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        self.places.runs_between(0, u32::MAX)
    }
}

/// What a frame of a map pack holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredMap {
    /// A whole map.
    Whole(PageMap),
    /// Changes of another one.
    Overlay(Overlay),
}

impl StoredMap {
    /// Reads what [`PageMap::encode`] or [`Overlay::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are something else, of an unknown version, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if is_overlay(bytes) {
            Overlay::decode(bytes).map(Self::Overlay)
        } else {
            PageMap::decode(bytes).map(Self::Whole)
        }
    }
}

/// The first block behind `first` at which an extent of either map ends, or a short block begins.
fn next_border(base: &PageMap, map: &PageMap, first: u32) -> u32 {
    let mut border = map.blocks();
    for map in [base, map] {
        let extent_end = map
            .runs_between(first, u32::MAX)
            .next()
            .map(|run| run.extent.end());
        for candidate in [extent_end, Some(map.blocks()), Some(full_blocks(map))] {
            if let Some(candidate) = candidate.filter(|&candidate| candidate > first) {
                border = border.min(candidate);
            }
        }
    }
    border
}

/// Whether the blocks between two neighbouring borders are in the same place in both maps.
fn is_same(base: &PageMap, map: &PageMap, first: u32, end: u32) -> bool {
    let (Some(old), Some(new)) = (
        base.runs_between(first, end).next(),
        map.runs_between(first, end).next(),
    ) else {
        return false;
    };
    match (old.extent.source, new.extent.source) {
        (Source::Zero, Source::Zero) => true,
        (
            Source::Frame { frame, offset },
            Source::Frame {
                frame: new_frame,
                offset: new_offset,
            },
        ) => {
            offset == new_offset
                && old.hashes == new.hashes
                && base.block_bytes(first) == map.block_bytes(first)
                && same_frame(base, frame, map, new_frame)
        }
        _ => false,
    }
}

fn same_frame(base: &PageMap, frame: u32, map: &PageMap, other: u32) -> bool {
    let resolve = |map: &PageMap, frame: u32| {
        let frame = map.frames().get(index(frame))?;
        Some((*map.packs().get(index(frame.pack))?, frame.location))
    };
    resolve(base, frame).is_some_and(|place| resolve(map, other) == Some(place))
}

/// How many blocks of the map are not short.
fn full_blocks(map: &PageMap) -> u32 {
    let short = !last_block_bytes(map.size).is_multiple_of(BLOCK_SIZE);
    map.blocks() - u32::from(short)
}
