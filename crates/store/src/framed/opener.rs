//! The reading side.

use std::cell::RefCell;
use std::io::Cursor;

use pgmahout_types::repository::{FrameLocation, Salt};
use zstd::bulk::Decompressor;

use super::frame::{
    FRAME_HEADER_LENGTH, FRAME_OVERHEAD, FrameHeader, LZ4, RAW, TAG_LENGTH, TRAILER_LENGTH, Trailer, ZSTD,
};
use super::header::{HEADER_LENGTH, Header};
use super::{FramedError, ObjectCipher};

/// The buffer of a thread keeps no more than this.
const LARGEST_KEPT: usize = 2 * 1024 * 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { zstd: None, decrypted: Vec::new() }) };
}

/// What opening frames needs and any object can use.
struct Scratch {
    zstd: Option<Decompressor<'static>>,
    decrypted: Vec<u8>,
}

/// Opens the frames of one object, in any order. Many threads may use one at a time.
pub struct FramedOpener {
    header: Header,
}

impl FramedOpener {
    /// From the object's first [`HEADER_LENGTH`] bytes, or more of it.
    ///
    /// # Errors
    ///
    /// What is wrong with the header, or with the key: see [`FramedError`].
    pub fn from_header(
        cipher: &ObjectCipher,
        kind: &str,
        name: &str,
        header: &[u8],
    ) -> Result<Self, FramedError> {
        let header = Header::read(cipher, kind, name, header)?;
        Ok(Self { header })
    }

    /// Without the object's header, whose salt and key number are known from elsewhere. A wrong salt or key shows
    /// as frames that are not authentic.
    ///
    /// # Errors
    ///
    /// [`FramedError::UnknownKey`].
    pub fn from_salt(
        cipher: &ObjectCipher,
        kind: &str,
        name: &str,
        key_number: u32,
        salt: Salt,
    ) -> Result<Self, FramedError> {
        let header = Header::make(cipher, kind, name, key_number, salt)?;
        Ok(Self { header })
    }

    /// The object's salt.
    pub fn salt(&self) -> Salt {
        self.header.salt
    }

    /// The number of the repository's key that sealed it; 0 without encryption.
    pub fn key_number(&self) -> u32 {
        self.header.key_number
    }

    /// Opens one frame. `stored` is the frame as it is in the object, from `location.offset` to `location.end()`.
    /// `out` afterwards holds the raw bytes and nothing else; after an error it is empty.
    ///
    /// # Errors
    ///
    /// [`FramedError::Truncated`] when `stored` is too short, [`FramedError::DamagedFrame`] when it is not that
    /// frame as it was written.
    pub fn open(
        &self,
        location: FrameLocation,
        is_final: bool,
        stored: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), FramedError> {
        out.clear();
        let (frame, offset) = (location.index, location.offset);
        let damaged = |problem| FramedError::DamagedFrame {
            frame,
            offset,
            problem,
        };
        let length = location.stored as usize + FRAME_OVERHEAD;
        if stored.len() < length {
            return Err(FramedError::Truncated { frame, offset });
        }
        if stored.len() > length {
            return Err(damaged("is longer than was recorded"));
        }
        let header = FrameHeader::read(stored).ok_or(FramedError::Truncated { frame, offset })?;
        if (header.stored, header.raw, header.is_final) != (location.stored, location.raw, is_final) {
            return Err(damaged("is not the one that was recorded"));
        }
        self.append(frame, offset, header, stored, out)
    }

    /// Opens the final frame, whose lengths nobody has recorded: `stored` is [`Trailer::final_frame`] of the
    /// object. `out` as in [`FramedOpener::open`].
    ///
    /// # Errors
    ///
    /// As [`FramedOpener::open`].
    pub fn open_final(&self, trailer: Trailer, stored: &[u8], out: &mut Vec<u8>) -> Result<(), FramedError> {
        let (index, offset) = (trailer.frames.saturating_sub(1), trailer.offset);
        let header = FrameHeader::read(stored).ok_or(FramedError::Truncated { frame: index, offset })?;
        let location = FrameLocation {
            index,
            offset,
            stored: header.stored,
            raw: header.raw,
        };
        self.open(location, true, stored, out)
    }

    /// The frames of a whole object, one after the other.
    pub fn frames<'object>(&'object self, object: &'object [u8]) -> Frames<'object> {
        Frames {
            opener: self,
            object,
            index: 0,
            offset: HEADER_LENGTH,
            is_ended: false,
        }
    }

    /// The content of a whole object: all frames, one after the other. Nothing is given unless all of it is whole.
    ///
    /// # Errors
    ///
    /// As [`Frames::next_into`].
    pub fn read_all(&self, object: &[u8]) -> Result<Vec<u8>, FramedError> {
        let mut content = Vec::new();
        let mut frames = self.frames(object);
        while frames.append_next(&mut content)? {}
        Ok(content)
    }

    /// Opens one frame behind what is in `out`. `stored` is as long as its header says.
    fn append(
        &self,
        index: u32,
        offset: u64,
        header: FrameHeader,
        stored: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), FramedError> {
        let before = out.len();
        let opened = SCRATCH.with_borrow_mut(|scratch| {
            let opened = self.open_with(scratch, index, header, stored, out);
            if scratch.decrypted.capacity() > LARGEST_KEPT {
                scratch.decrypted = Vec::new();
            }
            opened
        });
        opened.map_err(|problem| {
            out.truncate(before);
            FramedError::DamagedFrame {
                frame: index,
                offset,
                problem,
            }
        })
    }

    fn open_with(
        &self,
        scratch: &mut Scratch,
        index: u32,
        header: FrameHeader,
        stored: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), &'static str> {
        const NOT_AUTHENTIC: &str = "is not authentic";
        let (head, rest) = stored
            .split_first_chunk::<FRAME_HEADER_LENGTH>()
            .ok_or("has no header")?;
        let (payload, tag) = rest.split_last_chunk::<TAG_LENGTH>().ok_or("has no tag")?;
        let seal = &self.header.seal;
        let begin = out.len();
        if !seal.is_sealed() {
            if !seal.is_intact(index, *head, payload, tag) {
                return Err("does not match its checksum");
            }
            return decode(&mut scratch.zstd, header, payload, out);
        }
        if header.codec == RAW {
            // Decrypted where it is wanted.
            out.resize(begin + payload.len(), 0);
            if !seal.open(index, *head, payload, tag, &mut out[begin..]) {
                return Err(NOT_AUTHENTIC);
            }
            return if header.raw == header.stored {
                Ok(())
            } else {
                Err("has two lengths")
            };
        }
        let Scratch { zstd, decrypted } = scratch;
        decrypted.resize(payload.len(), 0);
        if !seal.open(index, *head, payload, tag, decrypted) {
            return Err(NOT_AUTHENTIC);
        }
        decode(zstd, header, decrypted, out)
    }
}

/// Decompresses an authentic payload behind what is in `out`.
fn decode(
    zstd: &mut Option<Decompressor<'static>>,
    header: FrameHeader,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), &'static str> {
    const NOT_AS_LONG: &str = "does not decompress to its length";
    let (begin, raw) = (out.len(), header.raw as usize);
    match header.codec {
        RAW => out.extend_from_slice(payload),
        ZSTD => {
            let decompressor = match zstd {
                Some(decompressor) => decompressor,
                None => zstd.insert(Decompressor::new().map_err(|_| "cannot be decompressed: no memory")?),
            };
            out.reserve(raw);
            // A cursor at the end writes into the spare capacity, which nobody has to clear before.
            let mut output = Cursor::new(&mut *out);
            output.set_position(begin as u64);
            decompressor
                .decompress_to_buffer(payload, &mut output)
                .map_err(|_| NOT_AS_LONG)?;
        }
        LZ4 => {
            out.resize(begin + raw, 0);
            let length =
                lz4_flex::block::decompress_into(payload, &mut out[begin..]).map_err(|_| NOT_AS_LONG)?;
            out.truncate(begin + length);
        }
        _ => return Err("has a compression that this pgmahout does not know"),
    }
    if out.len() - begin == raw {
        Ok(())
    } else {
        Err(NOT_AS_LONG)
    }
}

/// Walks over the frames of an object that is in memory as a whole.
pub struct Frames<'object> {
    opener: &'object FramedOpener,
    object: &'object [u8],
    index: u32,
    offset: usize,
    is_ended: bool,
}

impl Frames<'_> {
    /// Opens the next frame; `out` then holds its raw bytes and nothing else. `false` after the final frame, when
    /// the object has proven whole to its last byte.
    ///
    /// # Errors
    ///
    /// Whatever is wrong: a damaged frame, a truncation, bytes behind the end. Every later call gives an error
    /// again.
    pub fn next_into(&mut self, out: &mut Vec<u8>) -> Result<bool, FramedError> {
        out.clear();
        self.append_next(out)
    }

    /// The same behind what is in `out`, which stays; after an error nothing was added.
    ///
    /// # Errors
    ///
    /// As [`Frames::next_into`].
    pub fn append_next(&mut self, out: &mut Vec<u8>) -> Result<bool, FramedError> {
        if self.is_ended {
            return Ok(false);
        }
        let (frame, offset) = (self.index, self.offset as u64);
        let rest = &self.object[self.offset.min(self.object.len())..];
        let cut = || {
            // Where the end is whole, the object is not cut: a frame has a wrong length.
            if Trailer::read(self.object, self.object.len() as u64).is_ok() {
                FramedError::DamagedFrame {
                    frame,
                    offset,
                    problem: "is longer than the object",
                }
            } else {
                FramedError::Truncated { frame, offset }
            }
        };
        let header = FrameHeader::read(rest).ok_or_else(cut)?;
        let length = header.stored as usize + FRAME_OVERHEAD;
        let Some(stored) = rest.get(..length) else {
            return Err(cut());
        };
        let before = out.len();
        self.opener.append(frame, offset, header, stored, out)?;
        if header.is_final {
            let ended = self.check_end(frame, self.offset + length);
            if let Err(error) = ended {
                out.truncate(before);
                return Err(error);
            }
            self.is_ended = true;
        }
        self.offset += length;
        self.index += 1;
        Ok(true)
    }

    fn check_end(&self, frame: u32, end: usize) -> Result<(), FramedError> {
        let trailer = &self.object[end..];
        let Some(first) = trailer.first_chunk::<TRAILER_LENGTH>() else {
            return Err(FramedError::DamagedTrailer {
                problem: "it is cut off",
            });
        };
        let size = end + TRAILER_LENGTH;
        let read = Trailer::read(first, size as u64)?;
        let expected = Trailer {
            offset: self.offset as u64,
            frames: frame + 1,
        };
        if read != expected {
            return Err(FramedError::DamagedTrailer {
                problem: "it names another frame",
            });
        }
        if self.object.len() > size {
            return Err(FramedError::TrailingBytes { offset: size as u64 });
        }
        Ok(())
    }
}
