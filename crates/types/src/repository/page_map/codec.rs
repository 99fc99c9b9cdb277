//! The bytes of maps and overlays, version 1.
//!
//! Numbers are variable unless their bits are given: see the `binary` module. `near x` is a number written
//! as its difference from `x`.
//!
//! | part | content |
//! |---|---|
//! | magic | `pmap` for a map, `povl` for an overlay |
//! | version | u8, 1 |
//! | base | overlay only: u64 little-endian, the fingerprint of the base |
//! | size | bytes of the file |
//! | packs | their number, then 16 bytes each |
//! | frames | their number; then for each: pack, index near the next of this pack, offset near the end of the frame before it in this pack, stored, raw near the raw of the frame before in this list |
//! | extents | their number; then for each: overlay only: blocks since the end of the extent before; twice the count, plus one unless zero; unless zero: frame near the expected, offset near the expected |
//! | hashes | their number, then u64 little-endian each |
//!
//! The expected frame of an extent is that of the stored extent before while it has bytes left, else the
//! one after it; the expected offset is where that extent ended, and zero in another frame.

use super::super::binary::{DecodeError, Reader, Writer};
use super::super::frame::{FrameLocation, FrameRef};
use super::super::ids::{PackId, PageHash};
use super::build::Places;
use super::{Extent, Overlay, PageMap, Source, bytes_between, index};

const VERSION: u8 = 1;
const MAP: [u8; 4] = *b"pmap";
const OVERLAY: [u8; 4] = *b"povl";

impl PageMap {
    /// The map as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::begin(MAP, VERSION, room(&self.places));
        write_places(&mut writer, self.size, &self.places, false);
        writer.0
    }

    /// Reads what [`PageMap::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are something else, of an unknown version, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::begin("page map", bytes, MAP, VERSION)?;
        let (size, places) = read_places(&mut reader, false)?;
        reader.finish()?;
        Ok(Self { size, places })
    }
}

impl Overlay {
    /// The overlay as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::begin(OVERLAY, VERSION, room(&self.places));
        writer.bytes(&self.base.to_le_bytes());
        write_places(&mut writer, self.size, &self.places, true);
        writer.0
    }

    /// Reads what [`Overlay::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are something else, of an unknown version, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::begin("changed part of a page map", bytes, OVERLAY, VERSION)?;
        let base = reader.u64()?;
        let (size, places) = read_places(&mut reader, true)?;
        reader.finish()?;
        Ok(Self { base, size, places })
    }
}

/// Whether bytes begin as those of an overlay do.
pub(super) fn is_overlay(bytes: &[u8]) -> bool {
    bytes.starts_with(&OVERLAY)
}

fn room(places: &Places) -> usize {
    64 + places.packs.len() * 16
        + places.frames.len() * 12
        + places.extents.len() * 6
        + places.hashes.len() * 8
}

fn write_places(writer: &mut Writer, size: u64, places: &Places, gaps: bool) {
    writer.variable(size);
    writer.count(places.packs.len());
    for pack in &places.packs {
        writer.bytes(pack.as_bytes());
    }
    writer.count(places.frames.len());
    let mut frames = ExpectedFrame::new(places.packs.len());
    for FrameRef { pack, location } in &places.frames {
        let (index, offset, raw) = frames.expected(*pack);
        writer.variable(u64::from(*pack));
        writer.near(u64::from(location.index), u64::from(index));
        writer.near(location.offset, offset);
        writer.variable(u64::from(location.stored));
        writer.near(u64::from(location.raw), u64::from(raw));
        frames.advance(*pack, location);
    }
    writer.count(places.extents.len());
    let mut expected = ExpectedPlace::default();
    let mut next = 0;
    for extent in &places.extents {
        if gaps {
            writer.variable(u64::from(extent.first - next));
        }
        next = extent.end();
        let count = u64::from(extent.count) << 1;
        match extent.source {
            Source::Zero => writer.variable(count),
            Source::Frame { frame, offset } => {
                writer.variable(count | 1);
                writer.near(u64::from(frame), u64::from(expected.frame(&places.frames)));
                writer.near(u64::from(offset), u64::from(expected.offset(frame)));
                expected.advance(frame, offset, bytes_between(size, extent.first, next));
            }
        }
    }
    writer.count(places.hashes.len());
    for hash in &places.hashes {
        writer.bytes(&hash.get().to_le_bytes());
    }
}

fn read_places(reader: &mut Reader<'_>, gaps: bool) -> Result<(u64, Places), DecodeError> {
    let size = reader.variable()?;
    let count = reader.count(PackId::LENGTH)?;
    let mut packs = Vec::with_capacity(count);
    for _ in 0..count {
        packs.push(PackId::from_bytes(reader.array()?));
    }

    let count = reader.count(5)?;
    let mut frames = Vec::with_capacity(count);
    let mut expected = ExpectedFrame::new(packs.len());
    for _ in 0..count {
        let pack = reader.variable_u32()?;
        if index(pack) >= packs.len() {
            return Err(reader.damaged("a frame is in no known pack"));
        }
        let (index, offset, raw) = expected.expected(pack);
        let location = FrameLocation {
            index: reader.near_u32(index)?,
            offset: reader.near(offset)?,
            stored: reader.variable_u32()?,
            raw: reader.near_u32(raw)?,
        };
        expected.advance(pack, &location);
        frames.push(FrameRef { pack, location });
    }

    let count = reader.count(if gaps { 2 } else { 1 })?;
    let mut extents = Vec::with_capacity(count);
    let mut expected = ExpectedPlace::default();
    let mut next = 0_u32;
    for _ in 0..count {
        let gap = if gaps { reader.variable_u32()? } else { 0 };
        let tagged = reader.variable()?;
        let place = |next: u32| {
            let first = next.checked_add(gap)?;
            let count = u32::try_from(tagged >> 1).ok()?;
            Some((first, count, first.checked_add(count)?))
        };
        let Some((first, count, end)) = place(next) else {
            return Err(reader.damaged("it has too many blocks"));
        };
        let source = if tagged & 1 == 0 {
            Source::Zero
        } else {
            let frame = reader.near_u32(expected.frame(&frames))?;
            let offset = reader.near_u32(expected.offset(frame))?;
            expected.advance(frame, offset, bytes_between(size, first, end));
            Source::Frame { frame, offset }
        };
        next = end;
        extents.push(Extent { first, count, source });
    }

    let count = reader.count(8)?;
    let hashes = reader
        .take(count * 8)?
        .chunks_exact(8)
        .map(|chunk| PageHash::new(u64::from_le_bytes(chunk.try_into().unwrap_or_default())))
        .collect();
    let places = Places::new(packs, frames, extents, hashes);
    places
        .check(size, gaps)
        .map_err(|problem| reader.damaged(problem))?;
    Ok((size, places))
}

/// What the next frame of each pack would be if it followed the one before.
struct ExpectedFrame {
    packs: Vec<(u32, u64)>,
    raw: u32,
}

impl ExpectedFrame {
    fn new(packs: usize) -> Self {
        Self {
            packs: vec![(0, 0); packs],
            raw: 0,
        }
    }

    /// Index, offset and raw length.
    fn expected(&self, pack: u32) -> (u32, u64, u32) {
        let (number, offset) = self.packs.get(index(pack)).copied().unwrap_or_default();
        (number, offset, self.raw)
    }

    fn advance(&mut self, pack: u32, location: &FrameLocation) {
        if let Some(expected) = self.packs.get_mut(index(pack)) {
            // Below 2^63, as the difference wants it, whatever was read.
            *expected = (location.index.saturating_add(1), location.end() & (u64::MAX >> 1));
        }
        self.raw = location.raw;
    }
}

/// Where the next extent would be if it followed the one before.
#[derive(Default)]
struct ExpectedPlace {
    frame: u32,
    offset: u32,
}

impl ExpectedPlace {
    fn frame(&self, frames: &[FrameRef]) -> u32 {
        match frames.get(index(self.frame)) {
            Some(frame) if self.offset >= frame.location.raw => self.frame.saturating_add(1),
            _ => self.frame,
        }
    }

    fn offset(&self, frame: u32) -> u32 {
        if frame == self.frame { self.offset } else { 0 }
    }

    fn advance(&mut self, frame: u32, offset: u32, bytes: u64) {
        self.frame = frame;
        self.offset = offset.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }
}
