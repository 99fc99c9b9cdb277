//! The writing side.

use std::io::Cursor;

use bytes::Bytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use pgmahout_types::repository::{FrameLocation, Salt};
use zstd::bulk::Compressor;

use super::frame::{
    FRAME_HEADER_LENGTH, FRAME_OVERHEAD, FrameCodec, FrameHeader, LONGEST_FRAME, LZ4, RAW, TRAILER_LENGTH,
    Trailer, ZSTD,
};
use super::header::{HEADER_LENGTH, Header};
use super::{FramedError, ObjectCipher};

/// Room beyond the asked capacity: a frame of the usual length that is begun below it, and the end.
const SLACK: usize = 160 * 1024;
/// A frame is stored raw when compression gains less than one part in so many.
const LEAST_GAIN: usize = 32;

/// Makes a framed object in memory. Frames are compressed directly into the object's bytes and sealed there.
pub struct FramedBuilder {
    bytes: Vec<u8>,
    header: Header,
    frames: u32,
    /// The last level used, with its tables.
    zstd: Option<(u8, Compressor<'static>)>,
    lz4: Option<Box<CompressTable>>,
}

impl FramedBuilder {
    /// Begins an object with a fresh salt. `capacity` is how long it will probably become, in bytes; beyond that
    /// its bytes are moved once or more.
    ///
    /// # Errors
    ///
    /// [`FramedError::Crypto`], without memory or randomness.
    pub fn new(cipher: &ObjectCipher, kind: &str, name: &str, capacity: usize) -> Result<Self, FramedError> {
        let slack = SLACK.min(capacity / 2);
        Self::with_buffer(
            cipher,
            kind,
            name,
            Vec::with_capacity(capacity.max(HEADER_LENGTH) + slack),
        )
    }

    /// The same in a buffer that was used before, whose memory the system need not give again: the object of
    /// [`FramedBuilder::finish`] gives its buffer back by `Vec::from`, when nobody else holds it. What is in it is
    /// dropped.
    ///
    /// # Errors
    ///
    /// As [`FramedBuilder::new`].
    pub fn with_buffer(
        cipher: &ObjectCipher,
        kind: &str,
        name: &str,
        mut buffer: Vec<u8>,
    ) -> Result<Self, FramedError> {
        let header = Header::fresh(cipher, kind, name)?;
        buffer.clear();
        buffer.extend_from_slice(&header.bytes);
        Ok(Self {
            bytes: buffer,
            header,
            frames: 0,
            zstd: None,
            lz4: None,
        })
    }

    /// Appends a frame.
    ///
    /// # Errors
    ///
    /// [`FramedError::FrameTooLong`] for more than [`LONGEST_FRAME`] bytes, [`FramedError::TooManyFrames`], and
    /// what fails without memory. The object is then as it was before.
    pub fn push(&mut self, codec: FrameCodec, raw: &[u8]) -> Result<FrameLocation, FramedError> {
        self.append(codec, raw, false)
    }

    /// Bytes of the object so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no frame was appended yet.
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Frames so far.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// The object's salt.
    pub fn salt(&self) -> Salt {
        self.header.salt
    }

    /// The number of the repository's key that seals it; 0 without encryption.
    pub fn key_number(&self) -> u32 {
        self.header.key_number
    }

    /// Appends the final frame and the trailer, and gives the object. Its bytes are not copied.
    ///
    /// # Errors
    ///
    /// As [`FramedBuilder::push`].
    pub fn finish(mut self, last: &[u8], codec: FrameCodec) -> Result<Bytes, FramedError> {
        let location = self.append(codec, last, true)?;
        let trailer = Trailer {
            offset: location.offset,
            frames: self.frames,
        };
        self.bytes.extend_from_slice(&trailer.to_bytes());
        Ok(Bytes::from(self.bytes))
    }

    fn append(
        &mut self,
        codec: FrameCodec,
        raw: &[u8],
        is_final: bool,
    ) -> Result<FrameLocation, FramedError> {
        if raw.len() > LONGEST_FRAME {
            return Err(FramedError::FrameTooLong { length: raw.len() });
        }
        let Some(next) = self.frames.checked_add(1) else {
            return Err(FramedError::TooManyFrames);
        };
        let offset = self.bytes.len();
        let header = match self.append_sealed(codec, raw, is_final) {
            Ok(header) => header,
            Err(error) => {
                self.bytes.truncate(offset);
                return Err(error);
            }
        };
        let location = FrameLocation {
            index: self.frames,
            offset: offset as u64,
            stored: header.stored,
            raw: header.raw,
        };
        self.frames = next;
        Ok(location)
    }

    fn append_sealed(
        &mut self,
        codec: FrameCodec,
        raw: &[u8],
        is_final: bool,
    ) -> Result<FrameHeader, FramedError> {
        let begin = self.bytes.len();
        let payload = begin + FRAME_HEADER_LENGTH;
        self.bytes.extend_from_slice(&[0; FRAME_HEADER_LENGTH]);
        let mut recorded = match codec {
            _ if raw.is_empty() => RAW,
            FrameCodec::None => RAW,
            FrameCodec::Zstd(level) => {
                self.compress_zstd(level, raw)?;
                ZSTD
            }
            FrameCodec::Lz4 => {
                self.compress_lz4(raw)?;
                LZ4
            }
        };
        if recorded == RAW || self.bytes.len() - payload > raw.len() - raw.len() / LEAST_GAIN {
            recorded = RAW;
            self.bytes.truncate(payload);
            self.bytes.reserve(raw.len() + FRAME_OVERHEAD + TRAILER_LENGTH);
            self.bytes.extend_from_slice(raw);
        }
        let header = FrameHeader {
            stored: (self.bytes.len() - payload) as u32,
            raw: raw.len() as u32,
            codec: recorded,
            is_final,
        };
        let bytes = header.to_bytes();
        self.bytes[begin..payload].copy_from_slice(&bytes);
        let tag = self
            .header
            .seal
            .seal(self.frames, bytes, &mut self.bytes[payload..])?;
        self.bytes.extend_from_slice(&tag);
        Ok(header)
    }

    fn compress_zstd(&mut self, level: u8, raw: &[u8]) -> Result<(), FramedError> {
        if self.zstd.as_ref().is_none_or(|(current, _)| *current != level) {
            let compressor = Compressor::new(i32::from(level)).map_err(FramedError::Compression)?;
            self.zstd = Some((level, compressor));
        }
        let (_, compressor) = self.zstd.as_mut().expect("it was made above");
        let bound = zstd::zstd_safe::compress_bound(raw.len());
        self.bytes.reserve(bound + FRAME_OVERHEAD + TRAILER_LENGTH);
        let tail = self.bytes.len() as u64;
        // A cursor at the end writes into the spare capacity, which nobody has to clear before.
        let mut output = Cursor::new(&mut self.bytes);
        output.set_position(tail);
        compressor
            .compress_to_buffer(raw, &mut output)
            .map_err(FramedError::Compression)?;
        Ok(())
    }

    fn compress_lz4(&mut self, raw: &[u8]) -> Result<(), FramedError> {
        let begin = self.bytes.len();
        let bound = get_maximum_output_size(raw.len());
        self.bytes.reserve(bound + FRAME_OVERHEAD + TRAILER_LENGTH);
        self.bytes.resize(begin + bound, 0);
        let table = self.lz4.get_or_insert_with(|| Box::new(CompressTable::large()));
        let length = compress_into_with_table(raw, &mut self.bytes[begin..], table)
            .map_err(|error| FramedError::Compression(std::io::Error::other(error)))?;
        self.bytes.truncate(begin + length);
        Ok(())
    }
}

impl std::fmt::Debug for FramedBuilder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("FramedBuilder")
            .field("length", &self.bytes.len())
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}
