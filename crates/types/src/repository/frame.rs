//! Where frames are in their objects.
//!
//! A framed object is a header, frames one behind the other, and a trailer. A frame is [`FRAME_HEADER`]
//! bytes of header, its payload, and [`FRAME_TAG`] bytes of authentication tag.

use serde::{Deserialize, Serialize};

/// Bytes of a frame before its payload.
pub const FRAME_HEADER: u32 = 8;

/// Bytes of a frame behind its payload.
pub const FRAME_TAG: u32 = 16;

/// The most bytes that a frame may hold when opened: 64 MiB, the page map of a file of more than 50 GiB. A
/// payload is never longer either, because what does not compress is stored as it is.
pub const LARGEST_FRAME: u32 = 64 << 20;

/// The raw bytes that a frame of file content holds at most: 128 KiB, 16 blocks.
pub const DATA_FRAME: u32 = 128 << 10;

/// The greatest offset of a frame that is believed: 2^62. Keeps sums of offsets and lengths in range.
const LARGEST_OFFSET: u64 = 1 << 62;

/// Where one frame of an object is, and how long.
///
/// In serde it is the list `[index, offset, stored, raw]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "(u32, u64, u32, u32)", try_from = "(u32, u64, u32, u32)")]
pub struct FrameLocation {
    /// Its number in the object, from zero. It is the nonce of its encryption.
    pub index: u32,
    /// Where its header begins, in bytes from the beginning of the object.
    pub offset: u64,
    /// Bytes of its payload, without header and tag.
    pub stored: u32,
    /// Bytes of its content.
    pub raw: u32,
}

impl FrameLocation {
    /// Where the frame ends, in bytes from the beginning of the object.
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.length())
    }

    /// Bytes of the whole frame: header, payload and tag.
    pub const fn length(&self) -> u64 {
        FRAME_HEADER as u64 + self.stored as u64 + FRAME_TAG as u64
    }

    /// Whether a frame can be so long and so far away.
    pub const fn is_possible(&self) -> bool {
        self.stored <= LARGEST_FRAME && self.raw <= LARGEST_FRAME && self.offset <= LARGEST_OFFSET
    }
}

impl From<FrameLocation> for (u32, u64, u32, u32) {
    fn from(location: FrameLocation) -> Self {
        (location.index, location.offset, location.stored, location.raw)
    }
}

impl TryFrom<(u32, u64, u32, u32)> for FrameLocation {
    type Error = ImpossibleFrame;

    fn try_from((index, offset, stored, raw): (u32, u64, u32, u32)) -> Result<Self, ImpossibleFrame> {
        let location = Self {
            index,
            offset,
            stored,
            raw,
        };
        if location.is_possible() {
            Ok(location)
        } else {
            Err(ImpossibleFrame { index })
        }
    }
}

/// A frame in one of several packs.
///
/// In serde it is the list `[pack, index, offset, stored, raw]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "(u32, u32, u64, u32, u32)", try_from = "(u32, u32, u64, u32, u32)")]
pub struct FrameRef {
    /// Which pack: an index into the table of packs of whatever holds this reference.
    pub pack: u32,
    /// Where the frame is in the pack.
    pub location: FrameLocation,
}

impl From<FrameRef> for (u32, u32, u64, u32, u32) {
    fn from(FrameRef { pack, location }: FrameRef) -> Self {
        (
            pack,
            location.index,
            location.offset,
            location.stored,
            location.raw,
        )
    }
}

impl TryFrom<(u32, u32, u64, u32, u32)> for FrameRef {
    type Error = ImpossibleFrame;

    fn try_from(
        (pack, index, offset, stored, raw): (u32, u32, u64, u32, u32),
    ) -> Result<Self, ImpossibleFrame> {
        let location = FrameLocation::try_from((index, offset, stored, raw))?;
        Ok(Self { pack, location })
    }
}

/// A place or a length that no frame has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame {index} is longer than a frame can be, or too far away")]
pub struct ImpossibleFrame {
    index: u32,
}
