//! The keys of a repository, and those of one object.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};
use aws_lc_rs::hmac;

use super::FramedError;
use super::frame::{FRAME_HEADER_LENGTH, TAG_LENGTH};
use super::header::{CLEAR_LENGTH, HEADER_LENGTH};
use crate::seal::{Key, aead_key, digest_of};

/// What seals and opens the framed objects of a repository: nothing, or its keys by number. Cheap to clone.
#[derive(Clone, Default)]
pub struct ObjectCipher {
    keys: Option<Arc<BTreeMap<u32, Key>>>,
}

impl fmt::Debug for ObjectCipher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.keys {
            None => formatter.write_str("ObjectCipher(plain)"),
            Some(keys) => write!(formatter, "ObjectCipher(keys {:?})", keys.keys()),
        }
    }
}

impl ObjectCipher {
    /// No encryption: frames have checksums.
    pub fn plain() -> Self {
        Self::default()
    }

    /// One key, with number 0.
    pub fn from_key(key: Key) -> Self {
        Self::plain().with_key(0, key)
    }

    /// The same, with one more key. The one with the highest number seals; all open.
    pub fn with_key(self, number: u32, key: Key) -> Self {
        let mut keys = self.keys.map(Arc::unwrap_or_clone).unwrap_or_default();
        keys.insert(number, key);
        Self {
            keys: Some(Arc::new(keys)),
        }
    }

    /// Whether objects are sealed.
    pub fn is_encrypted(&self) -> bool {
        self.keys.is_some()
    }

    /// The number of the key that seals new objects; 0 without encryption.
    pub fn key_number(&self) -> u32 {
        let newest = self.keys.as_ref().and_then(|keys| keys.last_key_value());
        newest.map_or(0, |(number, _)| *number)
    }

    /// The numbers of all keys, ascending; none without encryption.
    pub fn key_numbers(&self) -> Vec<u32> {
        let numbers = |keys: &Arc<BTreeMap<u32, Key>>| keys.keys().copied().collect();
        self.keys.as_ref().map(numbers).unwrap_or_default()
    }

    /// The key of that number, `None` in a repository without encryption.
    pub(super) fn key(&self, number: u32) -> Result<Option<&Key>, FramedError> {
        match &self.keys {
            None => Ok(None),
            Some(keys) => keys
                .get(&number)
                .map(Some)
                .ok_or(FramedError::UnknownKey { number }),
        }
    }
}

/// The tag of a header, under the key that the object's salt gives.
pub(super) fn header_tag(
    key: Option<&Key>,
    salt: &[u8],
    clear: &[u8; CLEAR_LENGTH],
) -> Result<[u8; TAG_LENGTH], FramedError> {
    let mut tag = [0; TAG_LENGTH];
    match key {
        None => tag.copy_from_slice(&blake3::hash(clear).as_bytes()[..TAG_LENGTH]),
        Some(key) => {
            let key = key
                .derive(salt, "pgmahout framed v1: header")
                .map_err(|_| FramedError::Crypto)?;
            let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
            tag.copy_from_slice(&hmac::sign(&key, clear).as_ref()[..TAG_LENGTH]);
        }
    }
    Ok(tag)
}

/// Makes and checks the tags of one object's frames, and encrypts where the object is sealed.
pub(super) struct FrameSeal {
    /// `None` in a plain object.
    key: Option<LessSafeKey>,
    header_digest: [u8; 32],
}

impl FrameSeal {
    pub(super) fn new(
        key: Option<&Key>,
        salt: &[u8],
        header: &[u8; HEADER_LENGTH],
    ) -> Result<Self, FramedError> {
        let key = key
            .map(|key| {
                key.derive(salt, "pgmahout framed v1: frames")
                    .and_then(|key| aead_key(&key))
            })
            .transpose()
            .map_err(|_| FramedError::Crypto)?;
        Ok(Self {
            key,
            header_digest: digest_of(&[header]),
        })
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.key.is_some()
    }

    fn associated_data(&self, index: u32, header: [u8; FRAME_HEADER_LENGTH]) -> [u8; 48] {
        let mut bytes = [0; 48];
        bytes[..32].copy_from_slice(&self.header_digest);
        bytes[32..40].copy_from_slice(&u64::from(index).to_le_bytes());
        bytes[40..].copy_from_slice(&header);
        bytes
    }

    fn nonce(index: u32) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&u64::from(index).to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    fn checksum(associated_data: &[u8; 48], payload: &[u8]) -> [u8; TAG_LENGTH] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(associated_data).update(payload);
        let mut tag = [0; TAG_LENGTH];
        tag.copy_from_slice(&hasher.finalize().as_bytes()[..TAG_LENGTH]);
        tag
    }

    /// Encrypts a payload in place, where the object is sealed, and gives its tag. Each index once per object.
    pub(super) fn seal(
        &self,
        index: u32,
        header: [u8; FRAME_HEADER_LENGTH],
        payload: &mut [u8],
    ) -> Result<[u8; TAG_LENGTH], FramedError> {
        let associated_data = self.associated_data(index, header);
        let Some(key) = &self.key else {
            return Ok(Self::checksum(&associated_data, payload));
        };
        let tag = key
            .seal_in_place_separate_tag(Self::nonce(index), Aad::from(associated_data), payload)
            .map_err(|_| FramedError::Crypto)?;
        Ok(tag.as_ref().try_into().expect("a tag has 16 bytes"))
    }

    /// Whether the payload of a plain object is as its tag says.
    pub(super) fn is_intact(
        &self,
        index: u32,
        header: [u8; FRAME_HEADER_LENGTH],
        payload: &[u8],
        tag: &[u8],
    ) -> bool {
        Self::checksum(&self.associated_data(index, header), payload) == tag
    }

    /// Decrypts the payload of a sealed object into `opened`, of the same length; `false` when it is not
    /// authentic.
    pub(super) fn open(
        &self,
        index: u32,
        header: [u8; FRAME_HEADER_LENGTH],
        payload: &[u8],
        tag: &[u8],
        opened: &mut [u8],
    ) -> bool {
        let associated_data = Aad::from(self.associated_data(index, header));
        self.key.as_ref().is_some_and(|key| {
            key.open_separate_gather(Self::nonce(index), associated_data, payload, tag, opened)
                .is_ok()
        })
    }
}
