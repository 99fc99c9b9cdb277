//! One frame: the cipher with the numbering and the associated data of the format.

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};

use super::header::{PREAMBLE_LENGTH, cipher, digest_of, frame_key};
use super::{Key, SealError};

/// Bytes of a tag of AES-256-GCM.
pub const TAG_LENGTH: usize = 16;
/// Bytes before a frame's ciphertext.
pub(super) const FRAME_HEADER_LENGTH: usize = 4;
const FINAL: u32 = 1 << 31;
/// Frames under one key. With counted nonces GCM takes more; this is far beyond any file.
const MOST_FRAMES: u64 = 1 << 32;

/// Seals and opens the frames of one file, in any order: streams use it front to back, packs by position.
#[derive(Debug)]
pub struct FrameCipher {
    key: LessSafeKey,
    preamble_digest: [u8; 32],
}

/// What stands before a frame's ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) length: u32,
    pub(super) is_final: bool,
}

impl FrameHeader {
    pub(super) fn to_bytes(self) -> [u8; FRAME_HEADER_LENGTH] {
        (self.length | if self.is_final { FINAL } else { 0 }).to_le_bytes()
    }

    pub(super) fn from_bytes(bytes: [u8; FRAME_HEADER_LENGTH]) -> Self {
        let word = u32::from_le_bytes(bytes);
        Self {
            length: word & !FINAL,
            is_final: word & FINAL != 0,
        }
    }
}

impl FrameCipher {
    pub(super) fn new(object_key: &Key, preamble: &[u8; PREAMBLE_LENGTH]) -> Result<Self, SealError> {
        Ok(Self {
            key: cipher(&frame_key(object_key, preamble)?)?,
            preamble_digest: digest_of(&[preamble]),
        })
    }

    fn nonce(index: u64) -> Result<Nonce, SealError> {
        if index >= MOST_FRAMES {
            return Err(SealError::TooLong);
        }
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&index.to_be_bytes());
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    fn associated_data(&self, index: u64, header: FrameHeader) -> Aad<[u8; 44]> {
        let mut bytes = [0; 44];
        bytes[..32].copy_from_slice(&self.preamble_digest);
        bytes[32..40].copy_from_slice(&index.to_le_bytes());
        bytes[40..].copy_from_slice(&header.to_bytes());
        Aad::from(bytes)
    }

    /// Encrypts `frame` in place and gives its tag. Each index may be used once per file.
    pub(super) fn seal(
        &self,
        index: u64,
        header: FrameHeader,
        frame: &mut [u8],
    ) -> Result<[u8; TAG_LENGTH], SealError> {
        let tag = self
            .key
            .seal_in_place_separate_tag(Self::nonce(index)?, self.associated_data(index, header), frame)
            .map_err(|_| SealError::Crypto {
                operation: "sealing a frame",
            })?;
        Ok(tag.as_ref().try_into().expect("a tag has 16 bytes"))
    }

    /// Decrypts `frame`, ciphertext and tag, in place; `None` when it is not authentic.
    pub(super) fn open(
        &self,
        index: u64,
        header: FrameHeader,
        frame: &mut [u8],
    ) -> Result<Option<usize>, SealError> {
        let opened = self
            .key
            .open_in_place(Self::nonce(index)?, self.associated_data(index, header), frame);
        Ok(opened.ok().map(|plaintext| plaintext.len()))
    }
}
