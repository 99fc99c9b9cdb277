//! What was found of a part of a file, and how parts become a map.

use pgmahout_types::repository::page_map::PageMapError;
use pgmahout_types::repository::{BLOCK_SIZE, PageHash, PageMap, PageMapBuilder};

use super::pack::{BlockPlace, PackedFrame};

/// What was found of blocks that follow each other.
#[derive(Debug, Clone, Default)]
pub(super) struct Chunk {
    /// The first block.
    pub(super) first: u32,
    parts: Vec<Part>,
    /// The hashes of what is stored anew or again, in order.
    hashes: Vec<PageHash>,
    /// Frames of an interrupted backup.
    pub(super) resumed: Vec<PackedFrame>,
    /// Whether any block is elsewhere than in the older backup.
    pub(super) changed: bool,
    /// Where the file ended, if that was before the end that was noted for it.
    pub(super) ended_at: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    count: u32,
    kind: PartKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PartKind {
    /// All zero.
    Zero,
    /// As in the older backup.
    Parent,
    /// In a frame of this backup.
    New(BlockPlace),
    /// In a frame of an interrupted backup.
    Resumed(BlockPlace),
}

impl Chunk {
    /// Nothing yet, from this block on.
    pub(super) fn new(first: u32) -> Self {
        Self {
            first,
            ..Self::default()
        }
    }

    /// The next block is zero.
    pub(super) fn zero(&mut self, was_zero: bool) {
        self.changed |= !was_zero;
        self.extend(PartKind::Zero);
    }

    /// The next block is as it was.
    pub(super) fn parent(&mut self) {
        self.extend(PartKind::Parent);
    }

    /// The next blocks are as they were, as nobody has written to the file.
    pub(super) fn untouched(&mut self, count: u32) {
        self.parts.push(Part {
            count,
            kind: PartKind::Parent,
        });
    }

    /// The next block was stored.
    pub(super) fn new_block(&mut self, hash: PageHash, place: BlockPlace) {
        self.changed = true;
        self.hashes.push(hash);
        self.extend(PartKind::New(place));
    }

    /// The next block was stored by an interrupted backup.
    pub(super) fn resumed_block(&mut self, hash: PageHash, frame: PackedFrame, offset: u32) {
        self.changed = true;
        self.hashes.push(hash);
        let known = self.resumed.iter().rposition(|known| *known == frame);
        let number = known.unwrap_or_else(|| {
            self.resumed.push(frame);
            self.resumed.len() - 1
        });
        self.extend(PartKind::Resumed(BlockPlace {
            frame: number as u32,
            offset,
        }));
    }

    fn extend(&mut self, kind: PartKind) {
        if let Some(last) = self.parts.last_mut() {
            let behind = |place: BlockPlace| BlockPlace {
                offset: place.offset + last.count * BLOCK_SIZE,
                ..place
            };
            let continues = match (last.kind, kind) {
                (PartKind::New(place), PartKind::New(next))
                | (PartKind::Resumed(place), PartKind::Resumed(next)) => behind(place) == next,
                (last, next) => last == next,
            };
            if continues {
                last.count += 1;
                return;
            }
        }
        self.parts.push(Part { count: 1, kind });
    }

    /// Adds the blocks to the map of the whole file, none from `end` on.
    fn add_to(
        &self,
        builder: &mut PageMapBuilder,
        frames: &[PackedFrame],
        parent: Option<&PageMap>,
        end: u32,
    ) {
        let mut hashes = self.hashes.as_slice();
        let mut block = self.first;
        for part in &self.parts {
            let count = part.count.min(end.saturating_sub(block));
            match part.kind {
                PartKind::Zero => builder.zeros(count),
                PartKind::Parent => {
                    if let Some(parent) = parent {
                        builder.reuse(parent, block, block + count);
                    }
                }
                PartKind::New(place) | PartKind::Resumed(place) => {
                    let (own, rest) = hashes.split_at(part.count as usize);
                    hashes = rest;
                    let frames = match part.kind {
                        PartKind::New(_) => frames,
                        _ => &self.resumed,
                    };
                    let frame = frames[place.frame as usize];
                    builder.stored(frame.pack, frame.location, place.offset, &own[..count as usize]);
                }
            }
            block += part.count;
        }
    }
}

/// The map of a file of `size` bytes, of parts in order, each with the frames that its blocks went into.
pub(super) fn join<'a>(
    parts: impl Iterator<Item = (&'a Chunk, &'a [PackedFrame])>,
    parent: Option<&PageMap>,
    size: u64,
) -> Result<PageMap, PageMapError> {
    let end =
        u32::try_from(size.div_ceil(u64::from(BLOCK_SIZE))).map_err(|_| PageMapError::TooLarge { size })?;
    let mut builder = PageMapBuilder::new();
    for (chunk, frames) in parts {
        if chunk.first >= end {
            break;
        }
        chunk.add_to(&mut builder, frames, parent, end);
    }
    builder.finish(size)
}

#[cfg(test)]
mod tests {
    use pgmahout_types::repository::page_map::Place;
    use pgmahout_types::repository::{FrameLocation, PackId, Source};

    use super::*;

    fn frame(pack: u8, index: u32) -> PackedFrame {
        PackedFrame {
            pack: PackId::from_bytes([pack; 16]),
            location: FrameLocation {
                index,
                offset: 96 + u64::from(index) * 1000,
                stored: 900,
                raw: 128 << 10,
            },
        }
    }

    fn at(frame: u32, block: u32) -> BlockPlace {
        BlockPlace {
            frame,
            offset: block * BLOCK_SIZE,
        }
    }

    /// Four blocks, all in one frame.
    fn older() -> PageMap {
        let mut chunk = Chunk::new(0);
        for block in 0..4 {
            chunk.new_block(PageHash::new(u64::from(block)), at(0, block));
        }
        join([(&chunk, [frame(1, 0)].as_slice())].into_iter(), None, 4 * 8192).expect("a map")
    }

    #[test]
    fn blocks_of_all_kinds_become_one_map() {
        let mut chunk = Chunk::new(0);
        chunk.parent();
        chunk.new_block(PageHash::new(10), at(0, 3));
        chunk.zero(false);
        chunk.parent();
        let mut second = Chunk::new(4);
        second.resumed_block(PageHash::new(11), frame(3, 5), 8192);
        second.resumed_block(PageHash::new(12), frame(3, 5), 16384);
        let frames = [frame(2, 7)];
        let older = older();
        let map = join(
            [(&chunk, frames.as_slice()), (&second, &[])].into_iter(),
            Some(&older),
            6 * 8192,
        )
        .expect("a map");
        let places: Vec<(u8, u64)> = (0..6)
            .map(|block| match map.place(block).expect("a block") {
                Place::Zero => (0, 0),
                Place::Stored { frame, hash, .. } => {
                    let pack = map.frames()[frame as usize].pack;
                    (map.packs()[pack as usize].as_bytes()[0], hash.get())
                }
            })
            .collect();
        assert_eq!(places, [(1, 0), (2, 10), (0, 0), (1, 3), (3, 11), (3, 12)]);
        assert_eq!(map.extents().len(), 5);
        assert!(matches!(
            map.extents()[1].source,
            Source::Frame { offset: 24576, .. }
        ));
        assert!(chunk.changed);
    }

    #[test]
    fn a_file_that_ended_early_has_no_blocks_behind_its_end() {
        let mut chunk = Chunk::new(0);
        for block in 0..3 {
            chunk.new_block(PageHash::new(u64::from(block)), at(0, block));
        }
        let map = join([(&chunk, [frame(1, 0)].as_slice())].into_iter(), None, 8192 + 100).expect("a map");
        assert_eq!(map.blocks(), 2);
        assert_eq!(map.size(), 8292);
    }

    #[test]
    fn a_chunk_in_which_nothing_changed_says_so() {
        let mut chunk = Chunk::new(0);
        chunk.parent();
        chunk.zero(true);
        assert!(!chunk.changed);
    }
}
