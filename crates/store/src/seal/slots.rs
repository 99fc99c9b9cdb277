//! Adding and removing slots of a repository's key, one at a time; the others stay as they are.

use super::header::{Header, Slot, SlotKind, encode_with};
use super::repository_key::open_repository_key;
use super::{Credential, Key, Keyring, SealError};

/// One slot of a repository's key, as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySlot {
    /// Eight hexadecimal digits that tell it from others.
    pub id: String,
    /// What opens it.
    pub kind: SlotKind,
    /// Whether one of the given passphrases and keys opens it.
    pub opens: bool,
}

/// Which slot.
#[derive(Debug, Clone)]
pub enum SlotChoice {
    /// The one of this id.
    Id(String),
    /// All that this passphrase or key opens.
    Credential(Credential),
}

impl SlotChoice {
    fn describe(&self) -> String {
        match self {
            Self::Id(id) => id.clone(),
            Self::Credential(_) => "none that this passphrase or key opens".to_owned(),
        }
    }
}

/// The slots of an object that [`create_repository_key`](super::create_repository_key) made. Trying a
/// passphrase takes some tenths of a second for each slot.
///
/// # Errors
///
/// When it is no such object, or its header is damaged.
pub fn list_slots(object: &[u8], keyring: &Keyring) -> Result<Vec<KeySlot>, SealError> {
    let header = Header::read(&mut &object[..])?;
    header
        .slots
        .iter()
        .map(|slot| {
            let mut opens = false;
            for credential in &keyring.credentials {
                opens = opens || header.opens(slot, credential)?;
            }
            Ok(KeySlot {
                id: slot.id(),
                kind: slot.kind(),
                opens,
            })
        })
        .collect()
}

/// The object with one more slot, or as it is where the credential opens a slot of its kind already.
///
/// # Errors
///
/// When `keyring` does not open the object, or it has eight slots.
pub fn add_slot(
    number: u32,
    object: &[u8],
    keyring: &Keyring,
    new: &Credential,
) -> Result<Vec<u8>, SealError> {
    let (header, key) = open(number, object, keyring)?;
    for slot in &header.slots {
        if header.opens(slot, new)? {
            return Ok(object.to_vec());
        }
    }
    let mut slots = header.slots.clone();
    slots.push(Slot::wrap(new, keyring.argon2, &header.preamble, &key)?);
    replace_slots(&header, &slots, &key, object)
}

/// The object without a slot.
///
/// # Errors
///
/// When `keyring` does not open the object, [`SealError::NoSuchSlot`], [`SealError::LastSlot`].
pub fn remove_slot(
    number: u32,
    object: &[u8],
    keyring: &Keyring,
    choice: &SlotChoice,
) -> Result<Vec<u8>, SealError> {
    let (header, key) = open(number, object, keyring)?;
    let mut kept = Vec::new();
    for slot in &header.slots {
        let is_chosen = match choice {
            SlotChoice::Id(id) => slot.id() == *id,
            SlotChoice::Credential(credential) => header.opens(slot, credential)?,
        };
        if !is_chosen {
            kept.push(slot.clone());
        }
    }
    if kept.len() == header.slots.len() {
        return Err(SealError::NoSuchSlot {
            slot: choice.describe(),
        });
    }
    if kept.is_empty() {
        return Err(SealError::LastSlot);
    }
    replace_slots(&header, &kept, &key, object)
}

fn open(number: u32, object: &[u8], keyring: &Keyring) -> Result<(Header, Key), SealError> {
    let key = open_repository_key(number, object, keyring)?;
    Ok((Header::read(&mut &object[..])?, key))
}

fn replace_slots(header: &Header, slots: &[Slot], key: &Key, object: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut changed = encode_with(&header.preamble, slots, key)?;
    changed.extend_from_slice(&object[header.length() as usize..]);
    Ok(changed)
}
