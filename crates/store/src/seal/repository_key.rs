//! The object that holds a repository's key: a sealed file whose object key *is* the repository's key, with
//! an empty plaintext. Its slots open the repository; rewrapping it changes the passphrase of everything.

use std::io::{Read, Write};

use super::frame::{FrameCipher, FrameHeader};
use super::header::{Header, encode, new_preamble};
use super::{Context, Key, Keyring, Opener, SealError};

fn context() -> Context {
    Context::file("repository key")
}

/// A new repository key, and the object that holds it for the keyring's passphrases and key files.
///
/// # Errors
///
/// When the keyring has neither.
pub fn create_repository_key(keyring: &Keyring) -> Result<(Key, Vec<u8>), SealError> {
    if keyring.credentials.is_empty() {
        return Err(SealError::NoKey);
    }
    let key = Key::generate()?;
    let preamble = new_preamble(&context())?;
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

/// The repository key in an object that [`create_repository_key`] made.
///
/// # Errors
///
/// When the keyring does not open it, or it is damaged.
pub fn open_repository_key(object: &[u8], keyring: &Keyring) -> Result<Key, SealError> {
    let key = Header::read(&mut &object[..])?.unlock(keyring, &context())?;
    let mut rest = Vec::new();
    Opener::with_key(object, &key)?
        .read_to_end(&mut rest)
        .map_err(SealError::from_io)?;
    Ok(key)
}
