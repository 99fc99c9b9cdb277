//! A new passphrase for an old file.

use std::io::{Read, Write};

use super::header::{Header, encode};
use super::opener::Frames;
use super::{Keyring, SealError};

/// Copies a sealed file, with other key slots: what `old` opens from `input`, `new` opens from `output`.
/// Frames are authenticated on the way and copied as they are. Whoever kept the old file and the old
/// passphrase can still read that.
///
/// # Errors
///
/// When `old` does not open the file, when the file is damaged, when `new` has no passphrase or key file, or
/// when reading or writing fails.
pub fn rewrap(
    mut input: impl Read,
    mut output: impl Write,
    old: &Keyring,
    new: &Keyring,
) -> Result<(), SealError> {
    if new.credentials.is_empty() {
        return Err(SealError::NoKey);
    }
    let header = Header::read(&mut input)?;
    let key = header.object_key(old)?;
    let slots = Keyring {
        keys: Vec::new(),
        ..new.clone()
    };
    output
        .write_all(&encode(&header.preamble, &slots, &key)?)
        .map_err(SealError::from_io)?;
    let mut frames = Frames::new(&key, &header)?;
    let mut raw = Vec::new();
    while !frames.ended {
        frames.read_next(&mut input, Some(&mut raw))?;
        output.write_all(&raw).map_err(SealError::from_io)?;
    }
    Ok(())
}
