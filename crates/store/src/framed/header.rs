//! The first 96 bytes.

use pgmahout_types::repository::Salt;

use super::cipher::{FrameSeal, header_tag};
use super::frame::TAG_LENGTH;
use super::{FramedError, ObjectCipher};
use crate::seal::{digest_of, random};

/// Bytes of the header; the first frame begins here.
pub const HEADER_LENGTH: usize = 96;
/// Bytes before the header's tag.
pub(super) const CLEAR_LENGTH: usize = HEADER_LENGTH - TAG_LENGTH;
const MAGIC: [u8; 8] = *b"\x89PGMF\r\n\x1a";
const VERSION: u16 = 1;
const PLAIN: u8 = 0;
const AES_256_GCM: u8 = 1;

/// Whether an object that begins with `first_bytes` (8 at least) is a framed one.
pub fn is_framed(first_bytes: &[u8]) -> bool {
    first_bytes.starts_with(&MAGIC)
}

/// A header, and what it opens.
pub(super) struct Header {
    pub(super) bytes: [u8; HEADER_LENGTH],
    pub(super) salt: Salt,
    pub(super) key_number: u32,
    pub(super) seal: FrameSeal,
}

impl Header {
    /// A new one, with a fresh salt and the newest key.
    pub(super) fn fresh(cipher: &ObjectCipher, kind: &str, name: &str) -> Result<Self, FramedError> {
        let salt = Salt::from_bytes(random().map_err(|_| FramedError::Crypto)?);
        Self::make(cipher, kind, name, cipher.key_number(), salt)
    }

    /// The one that an object of this salt and key has.
    pub(super) fn make(
        cipher: &ObjectCipher,
        kind: &str,
        name: &str,
        key_number: u32,
        salt: Salt,
    ) -> Result<Self, FramedError> {
        let key = cipher.key(key_number)?;
        if key.is_none() && key_number != 0 {
            return Err(FramedError::KeyNotGiven);
        }
        let mut clear = [0; CLEAR_LENGTH];
        clear[..8].copy_from_slice(&MAGIC);
        clear[8..10].copy_from_slice(&VERSION.to_le_bytes());
        clear[10] = if key.is_some() { AES_256_GCM } else { PLAIN };
        clear[12..16].copy_from_slice(&key_number.to_le_bytes());
        clear[16..48].copy_from_slice(salt.as_bytes());
        let context = context_digest(&clear, kind, name);
        clear[48..].copy_from_slice(&context);
        let mut bytes = [0; HEADER_LENGTH];
        bytes[..CLEAR_LENGTH].copy_from_slice(&clear);
        bytes[CLEAR_LENGTH..].copy_from_slice(&header_tag(key, salt.as_bytes(), &clear)?);
        let seal = FrameSeal::new(key, salt.as_bytes(), &bytes)?;
        Ok(Self {
            bytes,
            salt,
            key_number,
            seal,
        })
    }

    /// Reads and authenticates one from the beginning of an object.
    pub(super) fn read(
        cipher: &ObjectCipher,
        kind: &str,
        name: &str,
        object: &[u8],
    ) -> Result<Self, FramedError> {
        let Some(bytes) = object.first_chunk::<HEADER_LENGTH>() else {
            let begins = object.len().min(MAGIC.len());
            return Err(if object[..begins] == MAGIC[..begins] {
                FramedError::Truncated { frame: 0, offset: 0 }
            } else {
                FramedError::NotFramed
            });
        };
        if bytes[..8] != MAGIC {
            return Err(FramedError::NotFramed);
        }
        let clear: [u8; CLEAR_LENGTH] = *bytes.first_chunk().expect("the header is longer");
        let is_expected = context_digest(&clear, kind, name) == clear[48..];
        let salt: [u8; 32] = *clear[16..48].first_chunk().expect("32 bytes were cut");
        let key_number = u32::from_le_bytes([clear[12], clear[13], clear[14], clear[15]]);
        let version = u16::from_le_bytes([clear[8], clear[9]]);
        if version != VERSION {
            // A newer format may have another context digest, so that damage cannot be told from it.
            return Err(FramedError::UnsupportedVersion { version });
        }
        let damaged = |problem| FramedError::DamagedHeader { problem };
        if clear[11] != 0 || clear[10] > AES_256_GCM || (clear[10] == PLAIN && key_number != 0) {
            return Err(damaged("it has values that nobody writes"));
        }
        let key = match (clear[10], cipher.is_encrypted()) {
            (AES_256_GCM, true) => match cipher.key(key_number) {
                // A number that no digest vouches for is no number.
                Err(FramedError::UnknownKey { .. }) if !is_expected => {
                    return Err(damaged("neither its key nor its digest is known"));
                }
                other => other?,
            },
            (AES_256_GCM, false) => return Err(FramedError::KeyNotGiven),
            // Anybody can make a plain object: in an encrypted repository it proves nothing.
            (_, true) => return Err(FramedError::NotEncrypted),
            (_, false) => None,
        };
        let is_authentic = header_tag(key, &salt, &clear)? == bytes[CLEAR_LENGTH..];
        match (is_authentic, is_expected) {
            (true, true) => {}
            (true, false) => {
                return Err(FramedError::OtherObject {
                    kind: kind.to_owned(),
                    name: name.to_owned(),
                });
            }
            (false, true) if key.is_some() => return Err(FramedError::WrongKey),
            (false, _) => return Err(damaged("its tag does not match")),
        }
        let seal = FrameSeal::new(key, &salt, bytes)?;
        Ok(Self {
            bytes: *bytes,
            salt: Salt::from_bytes(salt),
            key_number,
            seal,
        })
    }
}

fn context_digest(clear: &[u8; CLEAR_LENGTH], kind: &str, name: &str) -> [u8; 32] {
    let length = |text: &str| (text.len() as u32).to_le_bytes();
    digest_of(&[
        b"pgmahout framed v1: context",
        &clear[..48],
        &length(kind),
        kind.as_bytes(),
        &length(name),
        name.as_bytes(),
    ])
}
