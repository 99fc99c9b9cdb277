//! Lengths, codecs and places: what stands around a frame's payload.

use super::FramedError;
use crate::codec::Codec;

/// Bytes before a frame's payload.
pub(super) const FRAME_HEADER_LENGTH: usize = 8;
/// Bytes after it.
pub(super) const TAG_LENGTH: usize = 16;
/// Bytes of a frame besides its payload.
pub const FRAME_OVERHEAD: usize = FRAME_HEADER_LENGTH + TAG_LENGTH;
/// The longest raw content of one frame, in bytes.
pub const LONGEST_FRAME: usize = (1 << 28) - 1;
/// Bytes after the final frame.
pub const TRAILER_LENGTH: usize = 16;

const FINAL: u32 = 1 << 31;
const RAW_MASK: u32 = (1 << 28) - 1;

/// How the payload of a frame is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameCodec {
    /// Not at all.
    None,
    /// Zstandard (RFC 8878), level 1 to 19.
    Zstd(u8),
    /// An LZ4 block.
    Lz4,
}

impl Default for FrameCodec {
    /// zstd at level 1.
    fn default() -> Self {
        Self::Zstd(1)
    }
}

impl From<Codec> for FrameCodec {
    /// The same codec and level. gzip, which frames do not have, becomes zstd at level 1.
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::Zstd(level) => Self::Zstd(level.clamp(1, 19)),
            Codec::Lz4 => Self::Lz4,
            Codec::None => Self::None,
            Codec::Gzip(_) => Self::default(),
        }
    }
}

/// Codecs as frames record them.
pub(super) const RAW: u8 = 0;
pub(super) const ZSTD: u8 = 1;
pub(super) const LZ4: u8 = 2;

/// What stands before a frame's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Bytes of the payload.
    pub(super) stored: u32,
    /// Bytes that it gives.
    pub(super) raw: u32,
    pub(super) codec: u8,
    pub(super) is_final: bool,
}

impl FrameHeader {
    pub(super) fn to_bytes(self) -> [u8; FRAME_HEADER_LENGTH] {
        let mut bytes = [0; FRAME_HEADER_LENGTH];
        let stored = self.stored | if self.is_final { FINAL } else { 0 };
        let raw = self.raw | u32::from(self.codec) << 28;
        bytes[..4].copy_from_slice(&stored.to_le_bytes());
        bytes[4..].copy_from_slice(&raw.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; FRAME_HEADER_LENGTH]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (stored, raw) = (word(0), word(4));
        Self {
            stored: stored & !FINAL,
            raw: raw & RAW_MASK,
            codec: (raw >> 28) as u8,
            is_final: stored & FINAL != 0,
        }
    }

    /// From the first bytes of a frame; `None` when there are too few.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        frame.first_chunk().map(|bytes| Self::from_bytes(*bytes))
    }
}

/// The last 16 bytes of an object: where its final frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Where the final frame begins.
    pub offset: u64,
    /// How many frames the object has.
    pub frames: u32,
}

impl Trailer {
    pub(super) fn to_bytes(self) -> [u8; TRAILER_LENGTH] {
        let mut bytes = [0; TRAILER_LENGTH];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.frames.to_le_bytes());
        let check = crc32c::crc32c(&bytes[..12]);
        bytes[12..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Reads the trailer of an object of `size` bytes from its end: `tail` is the object's last 16 bytes, or
    /// more of them.
    ///
    /// # Errors
    ///
    /// [`FramedError::DamagedTrailer`]: the object is truncated or damaged, or bytes follow it.
    pub fn read(tail: &[u8], size: u64) -> Result<Self, FramedError> {
        let damaged = |problem| FramedError::DamagedTrailer { problem };
        let bytes = tail
            .last_chunk::<TRAILER_LENGTH>()
            .ok_or(damaged("it is too short"))?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if crc32c::crc32c(&bytes[..12]) != word(12) {
            return Err(damaged("its checksum does not match"));
        }
        let trailer = Self {
            offset: u64::from(word(0)) | u64::from(word(4)) << 32,
            frames: word(8),
        };
        let least = trailer
            .offset
            .checked_add((FRAME_OVERHEAD + TRAILER_LENGTH) as u64);
        if trailer.frames == 0 || least.is_none_or(|least| least > size) {
            return Err(damaged("it names a place outside the object"));
        }
        Ok(trailer)
    }

    /// The bytes of the final frame in an object of `size` bytes.
    pub fn final_frame(self, size: u64) -> std::ops::Range<u64> {
        self.offset..size.saturating_sub(TRAILER_LENGTH as u64).max(self.offset)
    }
}
