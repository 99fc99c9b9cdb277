//! The parts that maps and overlays have in common, and how they are put together.

use std::collections::HashMap;

use super::super::BLOCK_SIZE;
use super::super::frame::{FrameLocation, FrameRef};
use super::super::ids::{PackId, PageHash};
use super::{Extent, PageMap, PageMapError, Run, Source, blocks_of, bytes_between, index};

/// Tables of packs and frames, extents and hashes. The extents are sorted and do not overlap; those of an
/// overlay leave gaps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Places {
    pub(super) packs: Vec<PackId>,
    pub(super) frames: Vec<FrameRef>,
    pub(super) extents: Vec<Extent>,
    /// For each extent the index of its first hash.
    pub(super) starts: Vec<u32>,
    pub(super) hashes: Vec<PageHash>,
}

impl Places {
    /// Puts tables together that were read. Whether they fit each other, [`Places::check`] says.
    pub(super) fn new(
        packs: Vec<PackId>,
        frames: Vec<FrameRef>,
        extents: Vec<Extent>,
        hashes: Vec<PageHash>,
    ) -> Self {
        let mut start = 0_u32;
        let starts = extents
            .iter()
            .map(|extent| {
                let own = start;
                if extent.source != Source::Zero {
                    start = start.saturating_add(extent.count);
                }
                own
            })
            .collect();
        Self {
            packs,
            frames,
            extents,
            starts,
            hashes,
        }
    }

    /// Whether these are places of a file of that size, with gaps between the extents or without.
    pub(super) fn check(&self, size: u64, gaps: bool) -> Result<(), &'static str> {
        let blocks = blocks_of(size).ok_or("it has too many blocks")?;
        for frame in &self.frames {
            if index(frame.pack) >= self.packs.len() {
                return Err("a frame is in no known pack");
            }
            if !frame.location.is_possible() {
                return Err("a frame is too long or too far away");
            }
        }
        let mut next = 0_u32;
        let mut hashes = 0_usize;
        for extent in &self.extents {
            let end = extent.first.checked_add(extent.count);
            let Some(end) = end.filter(|&end| end <= blocks && extent.count > 0) else {
                return Err("an extent is empty or ends behind the file");
            };
            if extent.first < next || (extent.first > next && !gaps) {
                return Err("the extents do not follow each other");
            }
            next = end;
            if let Source::Frame { frame, offset } = extent.source {
                let frame = self
                    .frames
                    .get(index(frame))
                    .ok_or("an extent is in no known frame")?;
                let bytes = bytes_between(size, extent.first, end);
                if u64::from(offset) + bytes > u64::from(frame.location.raw) {
                    return Err("an extent ends behind its frame");
                }
                hashes = hashes.saturating_add(index(extent.count));
            }
        }
        if next < blocks && !gaps {
            return Err("the extents end before the file");
        }
        if hashes != self.hashes.len() {
            return Err("there is not one hash for each stored block");
        }
        Ok(())
    }

    /// The parts of the extents that lie between the two blocks.
    pub(super) fn runs_between(&self, first: u32, end: u32) -> impl Iterator<Item = Run<'_>> {
        let from = self.extents.partition_point(|extent| extent.end() <= first);
        let extents = self.extents.get(from..).unwrap_or_default();
        let starts = self.starts.get(from..).unwrap_or_default();
        extents
            .iter()
            .zip(starts)
            .take_while(move |(extent, _)| extent.first < end)
            .map(move |(extent, &start)| {
                let skipped = first.saturating_sub(extent.first);
                let extent_end = extent.end().min(end);
                let begin = extent.first.saturating_add(skipped);
                let count = extent_end.saturating_sub(begin);
                let (source, hashes) = match extent.source {
                    Source::Zero => (Source::Zero, Default::default()),
                    Source::Frame { frame, offset } => {
                        let start = index(start.saturating_add(skipped));
                        let hashes = self.hashes.get(start..start.saturating_add(index(count)));
                        let offset = offset.saturating_add(skipped.saturating_mul(BLOCK_SIZE));
                        (Source::Frame { frame, offset }, hashes.unwrap_or_default())
                    }
                };
                Run {
                    extent: Extent {
                        first: begin,
                        count,
                        source,
                    },
                    hashes,
                }
            })
    }
}

/// Puts places together: names each pack and frame once, in the order of first use, and joins neighbours.
#[derive(Debug, Default)]
pub(super) struct PlacesBuilder {
    places: Places,
    known_packs: HashMap<PackId, u32>,
    known_frames: HashMap<FrameRef, u32>,
    /// The frame of the last extent, which is most often that of the next.
    latest: Option<(PackId, FrameLocation, u32)>,
}

impl PlacesBuilder {
    pub(super) fn zeros(&mut self, first: u32, count: u32) {
        if count == 0 {
            return;
        }
        if let Some(last) = self.places.extents.last_mut()
            && last.source == Source::Zero
            && last.end() == first
        {
            last.count = last.count.saturating_add(count);
            return;
        }
        self.push(Extent {
            first,
            count,
            source: Source::Zero,
        });
    }

    pub(super) fn stored(
        &mut self,
        first: u32,
        pack: PackId,
        location: FrameLocation,
        offset: u32,
        hashes: &[PageHash],
    ) {
        let Ok(count) = u32::try_from(hashes.len()) else {
            return;
        };
        if count == 0 {
            return;
        }
        let frame = self.frame(pack, location);
        if let Some(last) = self.places.extents.last_mut()
            && let Source::Frame {
                frame: last_frame,
                offset: last_offset,
            } = last.source
            && last_frame == frame
            && last.end() == first
            && last
                .count
                .checked_mul(BLOCK_SIZE)
                .and_then(|bytes| bytes.checked_add(last_offset))
                == Some(offset)
        {
            last.count = last.count.saturating_add(count);
        } else {
            self.push(Extent {
                first,
                count,
                source: Source::Frame { frame, offset },
            });
        }
        self.places.hashes.extend_from_slice(hashes);
    }

    fn push(&mut self, extent: Extent) {
        let start = u32::try_from(self.places.hashes.len()).unwrap_or(u32::MAX);
        self.places.extents.push(extent);
        self.places.starts.push(start);
    }

    fn frame(&mut self, pack: PackId, location: FrameLocation) -> u32 {
        if let Some((latest_pack, latest_location, frame)) = self.latest
            && latest_pack == pack
            && latest_location == location
        {
            return frame;
        }
        let packs = &mut self.places.packs;
        let number = *self.known_packs.entry(pack).or_insert_with(|| {
            packs.push(pack);
            u32::try_from(packs.len() - 1).unwrap_or(u32::MAX)
        });
        let reference = FrameRef {
            pack: number,
            location,
        };
        let frames = &mut self.places.frames;
        let frame = *self.known_frames.entry(reference).or_insert_with(|| {
            frames.push(reference);
            u32::try_from(frames.len() - 1).unwrap_or(u32::MAX)
        });
        self.latest = Some((pack, location, frame));
        frame
    }

    /// Another map's blocks, which become the blocks from `first` on.
    pub(super) fn reuse(&mut self, first: u32, map: &Places, from: u32, end: u32) {
        for run in map.runs_between(from, end) {
            let at = first.saturating_add(run.extent.first - from);
            match run.extent.source {
                Source::Zero => self.zeros(at, run.extent.count),
                Source::Frame { frame, offset } => {
                    if let Some(frame) = map.frames.get(index(frame))
                        && let Some(&pack) = map.packs.get(index(frame.pack))
                    {
                        self.stored(at, pack, frame.location, offset, run.hashes);
                    }
                }
            }
        }
    }

    pub(super) fn finish(mut self) -> Places {
        self.places.packs.shrink_to_fit();
        self.places.frames.shrink_to_fit();
        self.places.extents.shrink_to_fit();
        self.places.starts.shrink_to_fit();
        self.places.hashes.shrink_to_fit();
        self.places
    }
}

/// Puts a [`PageMap`] together, from the first block of the file to the last.
///
/// Pieces may be as small as one block: neighbours are joined. What is wrong with them,
/// [`PageMapBuilder::finish`] says.
#[derive(Debug, Default)]
pub struct PageMapBuilder {
    places: PlacesBuilder,
    blocks: u64,
    problem: Option<&'static str>,
    /// The length of the last block, where it is known because it was reused.
    last_reused: Option<u32>,
}

impl PageMapBuilder {
    /// A builder with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many blocks there are so far.
    pub fn blocks(&self) -> u32 {
        u32::try_from(self.blocks).unwrap_or(u32::MAX)
    }

    /// The next `count` blocks are all zero.
    pub fn zeros(&mut self, count: u32) {
        if count > 0 {
            self.advance_from_full_block();
            self.places.zeros(self.blocks(), count);
            self.blocks += u64::from(count);
        }
    }

    /// The next blocks, one for each hash, lie one behind the other in a frame, from byte `offset` of its
    /// content on.
    pub fn stored(&mut self, pack: PackId, location: FrameLocation, offset: u32, hashes: &[PageHash]) {
        let Ok(count) = u32::try_from(hashes.len()) else {
            self.problem = Some("it has too many blocks");
            return;
        };
        if count > 0 {
            self.advance_from_full_block();
            self.places.stored(self.blocks(), pack, location, offset, hashes);
            self.blocks += u64::from(count);
        }
    }

    /// The next blocks are those of another map from `first` up to but without `end`.
    pub fn reuse(&mut self, map: &PageMap, first: u32, end: u32) {
        if first >= end {
            return;
        }
        if end > map.blocks() {
            self.problem = Some("blocks behind the end of another map were to be reused");
            return;
        }
        self.advance_from_full_block();
        self.places.reuse(self.blocks(), &map.places, first, end);
        self.blocks += u64::from(end - first);
        // Zeros are zeros, however many.
        self.last_reused = match map.place(end - 1) {
            Some(super::Place::Stored { .. }) => Some(map.block_bytes(end - 1)),
            _ => None,
        };
    }

    /// The map of a file of `size` bytes.
    ///
    /// # Errors
    /// When the file is too large, the pieces are more or fewer than its blocks, a frame is too short for
    /// what is to lie in it, or a reused block would get another length.
    pub fn finish(mut self, size: u64) -> Result<PageMap, PageMapError> {
        let blocks = blocks_of(size).ok_or(PageMapError::TooLarge { size })?;
        let wrong = |problem| PageMapError::Inconsistent { size, problem };
        if self
            .last_reused
            .is_some_and(|length| length != super::last_block_bytes(size))
        {
            self.problem = Some("its last block was reused and has another length");
        }
        if self.blocks != u64::from(blocks) {
            self.problem = Some("it has another number of blocks");
        }
        if let Some(problem) = self.problem {
            return Err(wrong(problem));
        }
        let places = self.places.finish();
        places.check(size, false).map_err(wrong)?;
        Ok(PageMap { size, places })
    }

    /// Notes that the block pushed last is not the last of the file.
    fn advance_from_full_block(&mut self) {
        if self.last_reused.take().is_some_and(|length| length != BLOCK_SIZE) {
            self.problem = Some("a short block was reused in the middle");
        }
    }
}
