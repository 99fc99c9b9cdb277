//! The preamble and the key slots: bytes to values and back. See the module above for the layout.

use std::io::Read;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{digest, hmac};
use zeroize::Zeroizing;

use super::key::{KEY_LENGTH, random};
use super::{Argon2Parameters, Context, Credential, Key, Keyring, SealError, TAG_LENGTH};
use crate::digest::hexadecimal;

const MAGIC: [u8; 8] = *b"\x89PGMS\r\n\x1a";
const VERSION: u16 = 1;
const AES_256_GCM_CIPHER: u8 = 1;
pub(super) const PREAMBLE_LENGTH: usize = 80;
const SLOT_LENGTH: usize = 96;
const SLOT_CLEAR_LENGTH: usize = 48;
const MOST_SLOTS: usize = 8;
const DIGEST_LENGTH: usize = 32;
const SALT_LENGTH: usize = 32;
const SMALLEST_FRAME: u32 = 4 * 1024;
const LARGEST_FRAME: u32 = 1024 * 1024;

/// Plaintext bytes per frame that sealers write.
pub(super) const FRAME_LENGTH: u32 = 128 * 1024;

/// Whether a file that begins with `first_bytes` (8 at least) is a sealed one.
pub fn is_sealed(first_bytes: &[u8]) -> bool {
    first_bytes.starts_with(&MAGIC)
}

/// What opens a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotKind {
    /// A passphrase.
    Passphrase,
    /// A key file.
    KeyFile,
    /// A key that a program prints, as a client of a KMS does.
    Command,
}

impl std::fmt::Display for SlotKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Passphrase => "passphrase",
            Self::KeyFile => "key file",
            Self::Command => "command",
        })
    }
}

/// What a sealed file says about itself without a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedInfo {
    /// What opens it. Empty: the repository's key.
    pub slots: Vec<SlotKind>,
}

/// Reads the header of a sealed file, to know what to ask the user for. Nothing of it is authenticated yet.
///
/// # Errors
///
/// When it is no sealed file, or its header is damaged.
pub fn inspect(input: &mut impl Read) -> Result<SealedInfo, SealError> {
    let header = Header::read(input)?;
    Ok(SealedInfo {
        slots: header.slots.iter().map(Slot::kind).collect(),
    })
}

const SLOT_PASSPHRASE: u8 = 1;
const SLOT_KEY_FILE: u8 = 2;
const SLOT_COMMAND: u8 = 3;

#[derive(Clone)]
pub(super) struct Slot {
    clear: [u8; SLOT_CLEAR_LENGTH],
    wrapped: [u8; KEY_LENGTH + TAG_LENGTH],
}

impl Slot {
    pub(super) fn kind(&self) -> SlotKind {
        match self.clear[0] {
            SLOT_PASSPHRASE => SlotKind::Passphrase,
            SLOT_COMMAND => SlotKind::Command,
            _ => SlotKind::KeyFile,
        }
    }

    /// Eight hexadecimal digits that tell the slot from others: the beginning of its random salt.
    pub(super) fn id(&self) -> String {
        hexadecimal(&self.clear[16..20])
    }

    fn parameters(&self) -> Argon2Parameters {
        Argon2Parameters {
            memory_kib: read_u32(&self.clear[4..8]),
            passes: read_u32(&self.clear[8..12]),
            lanes: read_u32(&self.clear[12..16]),
        }
    }

    fn check(&self) -> Result<(), SealError> {
        let reserved = self.clear[1..4].iter().any(|byte| *byte != 0);
        match self.clear[0] {
            _ if reserved => Err(SealError::DamagedHeader {
                problem: "reserved bytes of a key slot are set",
            }),
            SLOT_PASSPHRASE => self.parameters().check(),
            SLOT_KEY_FILE | SLOT_COMMAND if self.clear[4..16].iter().all(|byte| *byte == 0) => Ok(()),
            SLOT_KEY_FILE | SLOT_COMMAND => Err(SealError::DamagedHeader {
                problem: "a slot of a key has parameters",
            }),
            _ => Err(SealError::DamagedHeader {
                problem: "unknown kind of key slot",
            }),
        }
    }

    /// The slot key that a credential gives, when it is of the slot's kind.
    fn slot_key(&self, credential: &Credential) -> Result<Option<Key>, SealError> {
        let salt = &self.clear[16..];
        match (self.clear[0], credential) {
            (SLOT_PASSPHRASE, Credential::Passphrase(passphrase)) => {
                self.parameters().derive(passphrase, salt).map(Some)
            }
            // A key is a key, wherever it comes from: the kind is for people.
            (SLOT_KEY_FILE, Credential::KeyFile(key) | Credential::Command(key)) => {
                key.derive(salt, "pgmahout sealed v1: key file slot").map(Some)
            }
            (SLOT_COMMAND, Credential::KeyFile(key) | Credential::Command(key)) => {
                key.derive(salt, "pgmahout sealed v1: command slot").map(Some)
            }
            _ => Ok(None),
        }
    }

    fn associated_data(&self, preamble: &[u8]) -> Aad<Vec<u8>> {
        Aad::from([b"pgmahout sealed v1: slot", preamble, &self.clear].concat())
    }

    pub(super) fn wrap(
        credential: &Credential,
        argon2: Argon2Parameters,
        preamble: &[u8],
        key: &Key,
    ) -> Result<Self, SealError> {
        let mut clear = [0; SLOT_CLEAR_LENGTH];
        match credential {
            Credential::Passphrase(_) => {
                clear[0] = SLOT_PASSPHRASE;
                clear[4..8].copy_from_slice(&argon2.memory_kib.to_le_bytes());
                clear[8..12].copy_from_slice(&argon2.passes.to_le_bytes());
                clear[12..16].copy_from_slice(&argon2.lanes.to_le_bytes());
            }
            Credential::KeyFile(_) => clear[0] = SLOT_KEY_FILE,
            Credential::Command(_) => clear[0] = SLOT_COMMAND,
        }
        clear[16..].copy_from_slice(&random::<SALT_LENGTH>()?);
        let mut slot = Self {
            clear,
            wrapped: [0; KEY_LENGTH + TAG_LENGTH],
        };
        let slot_key = slot.slot_key(credential)?.ok_or(SealError::NoKey)?;
        let mut bytes = Zeroizing::new(*key.as_bytes());
        let tag = cipher(&slot_key)?
            .seal_in_place_separate_tag(zero_nonce(), slot.associated_data(preamble), &mut bytes[..])
            .map_err(|_| SealError::Crypto {
                operation: "wrapping a key",
            })?;
        slot.wrapped[..KEY_LENGTH].copy_from_slice(&bytes[..]);
        slot.wrapped[KEY_LENGTH..].copy_from_slice(tag.as_ref());
        Ok(slot)
    }

    fn unwrap(&self, slot_key: &Key, preamble: &[u8]) -> Result<Option<Key>, SealError> {
        let mut bytes = Zeroizing::new(self.wrapped);
        let opened =
            cipher(slot_key)?.open_in_place(zero_nonce(), self.associated_data(preamble), &mut bytes[..]);
        Ok(opened
            .ok()
            .and_then(|key| <[u8; KEY_LENGTH]>::try_from(&*key).ok())
            .map(Key::from_bytes))
    }
}

/// A new cipher from a key.
pub(crate) fn cipher(key: &Key) -> Result<LessSafeKey, SealError> {
    let unbound = UnboundKey::new(&AES_256_GCM, key.as_bytes());
    Ok(LessSafeKey::new(unbound.map_err(|_| SealError::Crypto {
        operation: "AES-256-GCM",
    })?))
}

/// Slot keys are used once, for one message, so their nonce may be constant.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn read_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("the caller cuts four bytes"))
}

/// A parsed header, not authenticated.
pub(super) struct Header {
    pub(super) preamble: [u8; PREAMBLE_LENGTH],
    pub(super) slots: Vec<Slot>,
    /// The slot section up to its MAC.
    section: Vec<u8>,
    mac: [u8; DIGEST_LENGTH],
}

impl Header {
    /// Reads exactly the header.
    pub(super) fn read(input: &mut impl Read) -> Result<Self, SealError> {
        let mut preamble = [0; PREAMBLE_LENGTH];
        let count = read_up_to(input, &mut preamble[..MAGIC.len()])?;
        if count < MAGIC.len() || preamble[..MAGIC.len()] != MAGIC {
            // What begins like ours and ends is a cut file; anything else is another file.
            let cut = count > 0 && count < MAGIC.len() && MAGIC.starts_with(&preamble[..count]);
            return Err(if cut {
                truncated_header()
            } else {
                SealError::NotSealed
            });
        }
        read_all(input, &mut preamble[MAGIC.len()..])?;
        let version = u16::from_le_bytes([preamble[8], preamble[9]]);
        if version != VERSION {
            return Err(SealError::UnsupportedVersion { version });
        }
        let mut section = vec![0; 4];
        read_all(input, &mut section)?;
        let slot_count = usize::from(section[0]);
        if slot_count > MOST_SLOTS {
            return Err(SealError::DamagedHeader {
                problem: "too many key slots",
            });
        }
        section.resize(4 + slot_count * SLOT_LENGTH, 0);
        read_all(input, &mut section[4..])?;
        let mut mac = [0; DIGEST_LENGTH];
        read_all(input, &mut mac)?;
        let mut checksum = [0; DIGEST_LENGTH];
        read_all(input, &mut checksum)?;
        if digest_of(&[&preamble, &section, &mac]) != checksum {
            return Err(SealError::DamagedHeader {
                problem: "its checksum does not match",
            });
        }
        // From here on every byte is as some writer wrote it; the MAC will say which writer.
        if preamble[10] != AES_256_GCM_CIPHER {
            return Err(SealError::DamagedHeader {
                problem: "unknown cipher",
            });
        }
        let slots = section[4..]
            .chunks_exact(SLOT_LENGTH)
            .map(|bytes| {
                let (clear, wrapped) = bytes.split_at(SLOT_CLEAR_LENGTH);
                Slot {
                    clear: clear.try_into().expect("cut to this length"),
                    wrapped: wrapped.try_into().expect("cut to this length"),
                }
            })
            .collect::<Vec<_>>();
        let header = Self {
            preamble,
            slots,
            section,
            mac,
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), SealError> {
        if self.preamble[11] != 0 || self.section[1..4] != [0; 3] {
            return Err(SealError::DamagedHeader {
                problem: "reserved bytes are set",
            });
        }
        let frame = self.frame_length();
        if !frame.is_power_of_two() || !(SMALLEST_FRAME..=LARGEST_FRAME).contains(&frame) {
            return Err(SealError::DamagedHeader {
                problem: "frame length out of range",
            });
        }
        self.slots.iter().try_for_each(Slot::check)
    }

    /// Bytes of the header.
    pub(super) fn length(&self) -> u64 {
        (PREAMBLE_LENGTH + self.section.len() + 2 * DIGEST_LENGTH) as u64
    }

    pub(super) fn frame_length(&self) -> u32 {
        read_u32(&self.preamble[12..16])
    }

    fn salt(&self) -> &[u8] {
        salt_of(&self.preamble)
    }

    /// The object key, once slots and MAC are authentic and the context is the expected one.
    pub(super) fn unlock(&self, keyring: &Keyring, context: &Context) -> Result<Key, SealError> {
        let key = self.object_key(keyring)?;
        let expected = context_digest(context, self.salt());
        if expected != self.preamble[48..] {
            return Err(SealError::OtherObject);
        }
        Ok(key)
    }

    /// The object key without looking at the context, for rewrapping.
    pub(super) fn object_key(&self, keyring: &Keyring) -> Result<Key, SealError> {
        if self.slots.is_empty() {
            if keyring.keys.is_empty() {
                return Err(SealError::KeyMissing {
                    needed: "the repository's key",
                });
            }
            for key in &keyring.keys {
                if self.has_mac_of(key)? {
                    return Ok(key.clone());
                }
            }
            return Err(SealError::WrongKey);
        }
        let mut tried = false;
        // Key files first: they cost nothing to try.
        let mut slots: Vec<&Slot> = self.slots.iter().collect();
        slots.sort_by_key(|slot| slot.clear[0] == SLOT_PASSPHRASE);
        for slot in slots {
            for credential in &keyring.credentials {
                let Some(slot_key) = slot.slot_key(credential)? else {
                    continue;
                };
                tried = true;
                if let Some(key) = slot.unwrap(&slot_key, &self.preamble)? {
                    let problem = "it was changed by somebody without the key";
                    let authentic = self.has_mac_of(&key)?;
                    return if authentic {
                        Ok(key)
                    } else {
                        Err(SealError::DamagedHeader { problem })
                    };
                }
            }
        }
        Err(if tried {
            SealError::WrongKey
        } else {
            SealError::KeyMissing {
                needed: self.needed(),
            }
        })
    }

    /// Whether a credential opens a slot of this header.
    pub(super) fn opens(&self, slot: &Slot, credential: &Credential) -> Result<bool, SealError> {
        let Some(slot_key) = slot.slot_key(credential)? else {
            return Ok(false);
        };
        Ok(slot.unwrap(&slot_key, &self.preamble)?.is_some())
    }

    fn needed(&self) -> &'static str {
        let has = |kind| self.slots.iter().any(|slot| slot.clear[0] == kind);
        match (has(SLOT_PASSPHRASE), has(SLOT_KEY_FILE)) {
            (true, true) => "a passphrase or a key file",
            (true, false) => "a passphrase",
            _ if has(SLOT_COMMAND) => "a key",
            _ => "a key file",
        }
    }

    fn has_mac_of(&self, key: &Key) -> Result<bool, SealError> {
        let mac_key = header_key(key, self.salt())?;
        Ok(hmac::verify(&mac_key, &[&self.preamble[..], &self.section].concat(), &self.mac).is_ok())
    }
}

fn salt_of(preamble: &[u8; PREAMBLE_LENGTH]) -> &[u8] {
    &preamble[16..48]
}

fn header_key(key: &Key, salt: &[u8]) -> Result<hmac::Key, SealError> {
    Ok(hmac::Key::new(
        hmac::HMAC_SHA256,
        key.derive(salt, "pgmahout sealed v1: header")?.as_bytes(),
    ))
}

/// The key of a file's frames.
pub(super) fn frame_key(key: &Key, preamble: &[u8; PREAMBLE_LENGTH]) -> Result<Key, SealError> {
    key.derive(salt_of(preamble), "pgmahout sealed v1: frames")
}

/// A preamble with a fresh salt.
pub(super) fn new_preamble(context: &Context) -> Result<[u8; PREAMBLE_LENGTH], SealError> {
    let mut preamble = [0; PREAMBLE_LENGTH];
    preamble[..8].copy_from_slice(&MAGIC);
    preamble[8..10].copy_from_slice(&VERSION.to_le_bytes());
    preamble[10] = AES_256_GCM_CIPHER;
    preamble[12..16].copy_from_slice(&FRAME_LENGTH.to_le_bytes());
    let salt = random::<SALT_LENGTH>()?;
    preamble[16..48].copy_from_slice(&salt);
    preamble[48..].copy_from_slice(&context_digest(context, &salt));
    Ok(preamble)
}

/// The object key for a new file: the repository's, or a random one that the slots will wrap.
pub(super) fn new_object_key(keyring: &Keyring) -> Result<Key, SealError> {
    match keyring.keys.first() {
        Some(key) => Ok(key.clone()),
        None if keyring.credentials.is_empty() => Err(SealError::NoKey),
        None => Key::generate(),
    }
}

/// The whole header of a file: slots for the keyring's credentials, unless the keyring seals with a
/// repository's key.
pub(super) fn encode(
    preamble: &[u8; PREAMBLE_LENGTH],
    keyring: &Keyring,
    key: &Key,
) -> Result<Vec<u8>, SealError> {
    let credentials = if keyring.keys.is_empty() {
        &keyring.credentials[..]
    } else {
        &[]
    };
    encode_slots(preamble, credentials, keyring.argon2, key)
}

fn encode_slots(
    preamble: &[u8; PREAMBLE_LENGTH],
    credentials: &[Credential],
    argon2: Argon2Parameters,
    key: &Key,
) -> Result<Vec<u8>, SealError> {
    if credentials.len() > MOST_SLOTS {
        return Err(SealError::TooManyKeys {
            given: credentials.len(),
        });
    }
    let wrap = |credential| Slot::wrap(credential, argon2, preamble, key);
    let slots = credentials.iter().map(wrap).collect::<Result<Vec<_>, _>>()?;
    encode_with(preamble, &slots, key)
}

/// The whole header of a file with these slots, all of which hold `key`.
pub(super) fn encode_with(
    preamble: &[u8; PREAMBLE_LENGTH],
    slots: &[Slot],
    key: &Key,
) -> Result<Vec<u8>, SealError> {
    if slots.len() > MOST_SLOTS {
        return Err(SealError::TooManyKeys { given: slots.len() });
    }
    let mut header = preamble.to_vec();
    header.extend_from_slice(&[slots.len() as u8, 0, 0, 0]);
    for slot in slots {
        header.extend_from_slice(&slot.clear);
        header.extend_from_slice(&slot.wrapped);
    }
    let mac = hmac::sign(&header_key(key, salt_of(preamble))?, &header);
    header.extend_from_slice(mac.as_ref());
    let checksum = digest_of(&[&header]);
    header.extend_from_slice(&checksum);
    Ok(header)
}

fn context_digest(context: &Context, salt: &[u8]) -> [u8; DIGEST_LENGTH] {
    let length = |text: &str| (text.len() as u32).to_le_bytes();
    digest_of(&[
        b"pgmahout sealed v1: context",
        salt,
        &length(&context.kind),
        context.kind.as_bytes(),
        &length(&context.name),
        context.name.as_bytes(),
    ])
}

/// SHA-256 of several pieces.
pub(crate) fn digest_of(pieces: &[&[u8]]) -> [u8; DIGEST_LENGTH] {
    let mut hasher = digest::Context::new(&digest::SHA256);
    for piece in pieces {
        hasher.update(piece);
    }
    hasher
        .finish()
        .as_ref()
        .try_into()
        .expect("SHA-256 gives 32 bytes")
}

fn truncated_header() -> SealError {
    SealError::Truncated { frame: 0, offset: 0 }
}

fn read_all(input: &mut impl Read, buffer: &mut [u8]) -> Result<(), SealError> {
    if read_up_to(input, buffer)? < buffer.len() {
        return Err(truncated_header());
    }
    Ok(())
}

/// Reads until the buffer is full or the input ends.
pub(super) fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, SealError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SealError::from_io(error)),
        }
    }
    Ok(filled)
}
