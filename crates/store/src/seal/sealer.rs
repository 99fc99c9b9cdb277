//! The writing side.

use std::io::{self, Write};

use super::frame::{FrameCipher, FrameHeader};
use super::header::{FRAME_LENGTH, encode, new_object_key, new_preamble};
use super::{Context, Keyring, SealError};

/// Encrypts what is written to it into a sealed file.
///
/// Without [`Sealer::finish`] the file has no final frame, and every reader will say that it is truncated.
pub struct Sealer<W: Write> {
    inner: W,
    cipher: FrameCipher,
    /// Plaintext of the current frame.
    frame: Vec<u8>,
    index: u64,
    failed: bool,
}

impl<W: Write> Sealer<W> {
    /// Writes the header of a new sealed file that the keyring's passphrases and key files, or its
    /// repository key, open. Deriving a key from a passphrase takes some tenths of a second and, meanwhile,
    /// 64 MiB: call it on a blocking thread.
    ///
    /// # Errors
    ///
    /// When the keyring is empty, or the output cannot be written.
    pub fn new(mut inner: W, keyring: &Keyring, context: &Context) -> Result<Self, SealError> {
        let preamble = new_preamble(context)?;
        let key = new_object_key(keyring)?;
        let header = encode(&preamble, keyring, &key)?;
        let cipher = FrameCipher::new(&key, &preamble)?;
        inner.write_all(&header).map_err(SealError::from_io)?;
        let frame = Vec::with_capacity(FRAME_LENGTH as usize);
        Ok(Self {
            inner,
            cipher,
            frame,
            index: 0,
            failed: false,
        })
    }

    fn write_frame(&mut self, is_final: bool) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("the sealer has failed before"));
        }
        // Until the frame is out: a frame that was partly written must not be followed by another.
        self.failed = true;
        let header = FrameHeader {
            length: self.frame.len() as u32,
            is_final,
        };
        let tag = self.cipher.seal(self.index, header, &mut self.frame)?;
        self.inner.write_all(&header.to_bytes())?;
        self.inner.write_all(&self.frame)?;
        self.inner.write_all(&tag)?;
        self.frame.clear();
        self.index += 1;
        self.failed = false;
        Ok(())
    }

    /// Writes the final frame and gives the output back, not flushed or synced.
    ///
    /// # Errors
    ///
    /// Those of the output. Then the file is incomplete, and every reader says so.
    pub fn finish(mut self) -> io::Result<W> {
        self.write_frame(true)?;
        Ok(self.inner)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full frame is written when more comes, so that the final frame is known to be final.
        if self.frame.len() == FRAME_LENGTH as usize && !bytes.is_empty() {
            self.write_frame(false)?;
        }
        if self.failed {
            return Err(io::Error::other("the sealer has failed before"));
        }
        let taken = bytes.len().min(FRAME_LENGTH as usize - self.frame.len());
        self.frame.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    /// Flushes the frames that are full. A frame that is not stays inside.
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
