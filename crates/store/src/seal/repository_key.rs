//! The object that holds a repository's key: a sealed file whose object key *is* the repository's key, with
//! an empty plaintext. Its slots open the repository; rewrapping it changes the passphrase of everything.

use std::io::{Read, Write};

use super::frame::{FrameCipher, FrameHeader};
use super::header::{Header, encode, new_preamble};
use super::{Context, Key, Keyring, Opener, SealError};

/// What a key object is, bound to its number, so that none can be put in another's place. The first has the
/// name of files that may be renamed.
pub(super) fn context(number: u32) -> Context {
    if number == 0 {
        Context::file("repository key")
    } else {
        Context::object("repository key", &number.to_string())
    }
}

/// A new repository key of this number (0 for the first), and the object that holds it for the keyring's
/// passphrases and keys.
///
/// # Errors
///
/// When the keyring has neither.
pub fn create_repository_key(number: u32, keyring: &Keyring) -> Result<(Key, Vec<u8>), SealError> {
    if keyring.credentials.is_empty() {
        return Err(SealError::NoKey);
    }
    let key = Key::generate()?;
    let preamble = new_preamble(&context(number))?;
    let slots = Keyring {
        keys: Vec::new(),
        ..keyring.clone()
    };
    let mut object = encode(&preamble, &slots, &key)?;
    let header = FrameHeader {
        length: 0,
        is_final: true,
    };
    let tag = FrameCipher::new(&key, &preamble)?.seal(0, header, &mut [])?;
    object
        .write_all(&header.to_bytes())
        .and_then(|()| object.write_all(&tag))
        .map_err(SealError::from_io)?;
    Ok((key, object))
}

/// The repository key of this number in an object that [`create_repository_key`] made.
///
/// # Errors
///
/// When the keyring does not open it, or it is damaged.
pub fn open_repository_key(number: u32, object: &[u8], keyring: &Keyring) -> Result<Key, SealError> {
    let key = Header::read(&mut &object[..])?.unlock(keyring, &context(number))?;
    let mut rest = Vec::new();
    Opener::with_key(object, &key)?
        .read_to_end(&mut rest)
        .map_err(SealError::from_io)?;
    Ok(key)
}
