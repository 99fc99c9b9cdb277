//! Where every block of a file is stored, and what it looked like.
//!
//! A file is a sequence of blocks of [`BLOCK_SIZE`] bytes, of which the last may be short. A [`PageMap`]
//! says of each of them that it is all zero, which is stored nowhere, or in which frame of which pack it
//! lies, and its [`PageHash`]. Neighbours that lie behind each other in one frame are one [`Extent`].
//!
//! A map that differs little from an older one can be kept as an [`Overlay`]: the extents and hashes that
//! changed. Depth is one by construction: only a [`PageMap`] can be the base of an overlay.
//!
//! Memory: about 8 bytes per stored block, 20 per extent, 32 per frame. A segment of 1 GiB with 16 blocks in
//! each frame takes 1.5 MiB.

use super::BLOCK_SIZE;
use super::frame::FrameRef;
use super::ids::{PackId, PageHash, first_number};
use crate::diagnostic::Diagnose;

mod build;
mod codec;
mod inline;
mod overlay;
#[cfg(test)]
mod tests;

pub use super::binary::DecodeError;
pub use build::PageMapBuilder;
pub use inline::InlineMap;
pub use overlay::{Overlay, StoredMap};

use build::Places;

/// Blocks that follow each other in the file and, unless they are zero, in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The first of them, counted from the beginning of the file.
    pub first: u32,
    /// How many there are; never none.
    pub count: u32,
    /// Where they are.
    pub source: Source,
}

impl Extent {
    /// The block after the last of them.
    pub fn end(&self) -> u32 {
        self.first.saturating_add(self.count)
    }
}

/// Where the blocks of an extent are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Nowhere: every byte of them is zero.
    Zero,
    /// In a frame, one behind the other.
    Frame {
        /// Which frame: an index into the map's table.
        frame: u32,
        /// Where the first of the blocks begins, in bytes of the frame's raw content.
        offset: u32,
    },
}

/// Where one block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// Nowhere: every byte of it is zero.
    Zero,
    /// In a frame.
    Stored {
        /// Which frame: an index into the map's table.
        frame: u32,
        /// Where the block begins, in bytes of the frame's raw content.
        offset: u32,
        /// The hash of the block.
        hash: PageHash,
    },
}

/// An extent, or a part of one, with the hashes of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run<'a> {
    /// The blocks.
    pub extent: Extent,
    /// Their hashes, in order; empty where the blocks are zero.
    pub hashes: &'a [PageHash],
}

/// Where every block of one file is stored. See [the module](self).
///
/// Its parts always fit each other: extents are sorted and cover the file, every frame and pack they name is
/// in the tables, and their bytes lie inside the frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageMap {
    size: u64,
    places: Places,
}

impl PageMap {
    /// The map of an empty file.
    pub fn empty() -> Self {
        Self {
            size: 0,
            places: Places::default(),
        }
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Blocks of the file.
    pub fn blocks(&self) -> u32 {
        blocks_of(self.size).unwrap_or(u32::MAX)
    }

    /// Bytes of the last block, 1 to [`BLOCK_SIZE`]; zero when the file is empty.
    pub fn last_block_bytes(&self) -> u32 {
        last_block_bytes(self.size)
    }

    /// Bytes of that block: [`BLOCK_SIZE`] but for the last one, zero behind it.
    pub fn block_bytes(&self, block: u32) -> u32 {
        bytes_between(self.size, block, block.saturating_add(1))
            .try_into()
            .unwrap_or(BLOCK_SIZE)
    }

    /// The packs that the frames are in.
    pub fn packs(&self) -> &[PackId] {
        &self.places.packs
    }

    /// The frames that the extents are in, in the order in which the file first uses them.
    pub fn frames(&self) -> &[FrameRef] {
        &self.places.frames
    }

    /// The extents, which cover the file in order.
    pub fn extents(&self) -> &[Extent] {
        &self.places.extents
    }

    /// The hashes of all stored blocks, in order. Zero blocks have none.
    pub fn hashes(&self) -> &[PageHash] {
        &self.places.hashes
    }

    /// Where that block is; `None` behind the end of the file.
    pub fn place(&self, block: u32) -> Option<Place> {
        let run = self.runs_between(block, block.checked_add(1)?).next()?;
        Some(match (run.extent.source, run.hashes) {
            (Source::Frame { frame, offset }, &[hash, ..]) => Place::Stored { frame, offset, hash },
            _ => Place::Zero,
        })
    }

    /// All extents with their hashes.
    pub fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        self.runs_between(0, self.blocks())
    }

    /// The blocks from `first` up to but without `end`, as extents with their hashes. Those behind the end
    /// of the file are left out.
    pub fn runs_between(&self, first: u32, end: u32) -> impl Iterator<Item = Run<'_>> {
        self.places.runs_between(first, end)
    }

    /// Bytes of the file that are in each pack, in the order of [`PageMap::packs`].
    pub fn bytes_by_pack(&self) -> Vec<u64> {
        let mut bytes = vec![0_u64; self.places.packs.len()];
        for extent in &self.places.extents {
            let Source::Frame { frame, .. } = extent.source else {
                continue;
            };
            let pack = self
                .places
                .frames
                .get(index(frame))
                .map(|frame| index(frame.pack));
            if let Some(sum) = pack.and_then(|pack| bytes.get_mut(pack)) {
                *sum += bytes_between(self.size, extent.first, extent.end());
            }
        }
        bytes
    }

    /// Bytes of the file that are zero and stored nowhere.
    pub fn zero_bytes(&self) -> u64 {
        let zero = |extent: &&Extent| extent.source == Source::Zero;
        let bytes = |extent: &Extent| bytes_between(self.size, extent.first, extent.end());
        self.places.extents.iter().filter(zero).map(bytes).sum()
    }

    /// A number that tells maps apart, by which an [`Overlay`] knows its base.
    pub fn fingerprint(&self) -> u64 {
        first_number(blake3::hash(&self.encode()))
    }
}

/// Why pieces do not make a map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageMapError {
    /// More blocks than a map can number.
    #[error("a file of {size} bytes is larger than the 32 TiB that can be backed up")]
    TooLarge {
        /// Bytes of the file.
        size: u64,
    },
    /// The pieces are of another file, or of another state of the file.
    #[error("the map of a file of {size} bytes is wrong: {problem}")]
    Inconsistent {
        /// Bytes of the file.
        size: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// An overlay was put over another map than the one it was made for.
    #[error("a changed part of a page map belongs to another map than the one it names")]
    WrongBase,
}

impl Diagnose for PageMapError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::TooLarge { .. } => {
                "PostgreSQL splits relations into files of 1 GiB: move whatever else is in the data directory"
                    .to_owned()
            }
            Self::Inconsistent { .. } | Self::WrongBase => {
                "`pgmahout backup verify --full` finds the backups with this fault; take a new backup"
                    .to_owned()
            }
        })
    }
}

/// Blocks of a file of that size; `None` where there are too many to be numbered.
pub fn blocks_of(size: u64) -> Option<u32> {
    u32::try_from(size.div_ceil(u64::from(BLOCK_SIZE))).ok()
}

/// Bytes of the last block of a file of that size; zero for none.
fn last_block_bytes(size: u64) -> u32 {
    let blocks = size.div_ceil(u64::from(BLOCK_SIZE));
    let before = blocks.saturating_sub(1) * u64::from(BLOCK_SIZE);
    u32::try_from(size - before).unwrap_or(BLOCK_SIZE)
}

/// Bytes of the blocks from `first` up to but without `end` of a file of that size.
fn bytes_between(size: u64, first: u32, end: u32) -> u64 {
    let position = |block: u32| (u64::from(block) * u64::from(BLOCK_SIZE)).min(size);
    position(end).saturating_sub(position(first))
}

/// A 32-bit number as an index.
fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
