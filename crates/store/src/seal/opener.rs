//! The reading side.

use std::io::{self, Read};

use super::frame::{FRAME_HEADER_LENGTH, FrameCipher, FrameHeader};
use super::header::{Header, read_up_to};
use super::{Context, Key, Keyring, SealError, TAG_LENGTH};

/// Reads a sealed file and gives only what is authentic.
///
/// Errors come through [`Read`] as [`io::Error`]s with a [`SealError`] inside ([`SealError::of`]). The end of
/// the stream is reported only after the final frame was authenticated and the input has ended.
pub struct Opener<R: Read> {
    inner: R,
    frames: Frames,
    position: usize,
}

/// The state of reading frames, without the input.
pub(super) struct Frames {
    cipher: FrameCipher,
    largest: u32,
    index: u64,
    offset: u64,
    /// The current frame: header, then plaintext.
    pub(super) plaintext: Vec<u8>,
    pub(super) ended: bool,
    failed: bool,
}

impl<R: Read> Opener<R> {
    /// Reads the header and finds the key. Deriving a key from a passphrase takes some tenths of a second:
    /// call it on a blocking thread.
    ///
    /// # Errors
    ///
    /// See [`SealError`]: no sealed file, the wrong key, a damaged header.
    pub fn new(mut inner: R, keyring: &Keyring, context: &Context) -> Result<Self, SealError> {
        let header = Header::read(&mut inner)?;
        let key = header.unlock(keyring, context)?;
        Ok(Self {
            inner,
            frames: Frames::new(&key, &header)?,
            position: 0,
        })
    }

    /// With the object key itself, already found in the same header.
    pub(super) fn with_key(mut inner: R, key: &Key) -> Result<Self, SealError> {
        let header = Header::read(&mut inner)?;
        Ok(Self {
            inner,
            frames: Frames::new(key, &header)?,
            position: 0,
        })
    }

    /// The input. Meaningful after the end of the stream was read: then the whole input was authentic.
    pub fn into_inner(self) -> R {
        self.inner
    }
}

impl Frames {
    pub(super) fn new(key: &Key, header: &Header) -> Result<Self, SealError> {
        Ok(Self {
            cipher: FrameCipher::new(key, &header.preamble)?,
            largest: header.frame_length(),
            index: 0,
            offset: header.length(),
            plaintext: Vec::new(),
            ended: false,
            failed: false,
        })
    }

    /// Reads the next frame into `plaintext`; `raw` sees its bytes as they are in the file, once they are
    /// authentic.
    pub(super) fn read_next(
        &mut self,
        input: &mut impl Read,
        raw: Option<&mut Vec<u8>>,
    ) -> Result<(), SealError> {
        if self.failed {
            return Err(self.damaged());
        }
        self.failed = true;
        self.plaintext.clear();
        let mut bytes = [0; FRAME_HEADER_LENGTH];
        if read_up_to(input, &mut bytes)? < bytes.len() {
            return Err(self.truncated());
        }
        let header = FrameHeader::from_bytes(bytes);
        if header.length > self.largest || (header.length == 0 && !header.is_final) {
            return Err(self.damaged());
        }
        let sealed_length = header.length as usize + TAG_LENGTH;
        self.plaintext.resize(sealed_length, 0);
        if read_up_to(input, &mut self.plaintext)? < sealed_length {
            self.plaintext.clear();
            return Err(self.truncated());
        }
        if let Some(raw) = raw {
            raw.clear();
            raw.extend_from_slice(&bytes);
            raw.extend_from_slice(&self.plaintext);
        }
        let Some(length) = self.cipher.open(self.index, header, &mut self.plaintext)? else {
            self.plaintext.clear();
            return Err(self.damaged());
        };
        self.plaintext.truncate(length);
        self.index += 1;
        self.offset += (FRAME_HEADER_LENGTH + sealed_length) as u64;
        if header.is_final {
            if read_up_to(input, &mut [0])? > 0 {
                self.plaintext.clear();
                return Err(SealError::TrailingBytes { offset: self.offset });
            }
            self.ended = true;
        }
        self.failed = false;
        Ok(())
    }

    fn damaged(&self) -> SealError {
        SealError::DamagedFrame {
            frame: self.index,
            offset: self.offset,
        }
    }

    fn truncated(&self) -> SealError {
        SealError::Truncated {
            frame: self.index,
            offset: self.offset,
        }
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.position == self.frames.plaintext.len() {
            if self.frames.ended {
                return Ok(0);
            }
            self.position = 0;
            if let Err(error) = self.frames.read_next(&mut self.inner, None) {
                self.frames.plaintext.clear();
                return Err(error.into());
            }
        }
        let count = buffer.len().min(self.frames.plaintext.len() - self.position);
        buffer[..count].copy_from_slice(&self.frames.plaintext[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}
