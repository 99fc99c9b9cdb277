//! The sealed file: authenticated encryption of a stream of bytes.
//!
//! [`Sealer`] encrypts what is written to it, [`Opener`] gives back only what it has authenticated. Any
//! change of a sealed file (a flipped bit, a cut, frames swapped, dropped, doubled or taken from another
//! file, bytes behind the end) is an error, and the error says which: the wrong key, damage and where, or a
//! cut and where. Neither ever holds more than one frame (128 KiB), whatever the length of the file; deriving
//! a key from a passphrase takes 64 MiB for a moment.
//!
//! The rest of this page is the file format, complete enough to write a reader from.
//!
//! # The sealed file format, version 1
//!
//! All integers are little-endian. `||` is concatenation. A sealed file is
//!
//! ```text
//! preamble (80 bytes) || key slots || frame 0 || frame 1 || ... || frame n-1 (final)
//! ```
//!
//! There is at least one frame; an empty plaintext is one final frame of length 0.
//!
//! ## Keys
//!
//! | key | length | made from |
//! | --- | --- | --- |
//! | object key | 32 | random for each file that has key slots; the repository's key for an object of an encrypted repository, which has none |
//! | frame key | 32 | `HKDF-SHA256(salt = object salt, secret = object key, info = "pgmahout sealed v1: frames")` |
//! | header key | 32 | `HKDF-SHA256(salt = object salt, secret = object key, info = "pgmahout sealed v1: header")` |
//! | slot key, passphrase | 32 | `Argon2id version 0x13 (password = passphrase as UTF-8, salt = slot salt, memory, passes and lanes of the slot)` |
//! | slot key, key file | 32 | `HKDF-SHA256(salt = slot salt, secret = the key file's 32 bytes, info = "pgmahout sealed v1: key file slot")` |
//! | slot key, command | 32 | `HKDF-SHA256(salt = slot salt, secret = the key that the program printed, info = "pgmahout sealed v1: command slot")` |
//!
//! HKDF is RFC 5869, Argon2id is RFC 9106, AES-256-GCM is NIST SP 800-38D with 96-bit nonces and 128-bit
//! tags.
//!
//! The object salt is 32 fresh random bytes for every write of a file, a repeated write of the same object
//! too. So a frame key is used for one stream only, frames can be numbered for nonces, and no pair of key and
//! nonce ever repeats.
//!
//! ## Preamble
//!
//! | offset | length | content |
//! | --- | --- | --- |
//! | 0 | 8 | magic: `89 50 47 4d 53 0d 0a 1a` (`\x89PGMS\r\n\x1a`) |
//! | 8 | 2 | version: 1 |
//! | 10 | 1 | cipher: 1 (AES-256-GCM) |
//! | 11 | 1 | zero |
//! | 12 | 4 | largest plaintext length of a frame: a power of two, 4 KiB to 1 MiB (pgmahout writes 128 KiB) |
//! | 16 | 32 | object salt |
//! | 48 | 32 | context digest |
//!
//! The context digest binds a file to what it is: `SHA-256("pgmahout sealed v1: context" || object salt ||
//! length of kind (4 bytes) || kind || length of name (4 bytes) || name)`. A reader that expects another
//! kind or name refuses the file. Files of their own, which may be renamed, have an empty name; the kind of
//! a dump is `dump`.
//!
//! ## Key slots
//!
//! | length | content |
//! | --- | --- |
//! | 1 | number of slots, 0 to 8 |
//! | 3 | zero |
//! | 96 each | the slots |
//! | 32 | header MAC: `HMAC-SHA256(header key, preamble || everything of this section before the MAC)` |
//! | 32 | header checksum: `SHA-256(preamble || everything of this section before the checksum)` |
//!
//! A slot holds the object key, encrypted for one passphrase or one key; any slot opens the file:
//!
//! | offset | length | content |
//! | --- | --- | --- |
//! | 0 | 1 | kind: 1 passphrase, 2 key file, 3 command |
//! | 1 | 3 | zero |
//! | 4 | 4 | Argon2id memory in KiB (0 for a key) |
//! | 8 | 4 | Argon2id passes (0 for a key) |
//! | 12 | 4 | Argon2id lanes (0 for a key) |
//! | 16 | 32 | slot salt: fresh random bytes |
//! | 48 | 48 | AES-256-GCM of the object key: ciphertext (32) and tag (16) under the slot key, nonce of 12 zero bytes, associated data `"pgmahout sealed v1: slot" || preamble || the slot's first 48 bytes` |
//!
//! A reader checks the checksum first: if it does not match, the header is damaged. If it matches and no slot
//! opens (or, in a file without slots, the header MAC does not match), the key is the wrong one. If a slot
//! opens and the header MAC does not match, somebody has changed the header. Changing a passphrase replaces
//! this section; the frames stay as they are.
//!
//! The object `repository.key` is such a file: its object key is the repository's key number 0, its plaintext is
//! empty, its kind is `repository key`, its name is empty. Key number `n` is in `repository.key.n`, of the same
//! kind, and its name is `n` in decimal.
//!
//! A reader must bound what a slot may ask for: pgmahout refuses more than 256 MiB of memory, 16 passes, 8
//! lanes, or 2 GiB as the product of memory and passes.
//!
//! ## Frames
//!
//! | length | content |
//! | --- | --- |
//! | 4 | frame header: the plaintext's length in the lower 31 bits; the highest bit set in the final frame |
//! | length | ciphertext |
//! | 16 | tag |
//!
//! Frame `i`, counted from 0, is AES-256-GCM under the frame key, with the nonce `00 00 00 00 || i (8 bytes,
//! big-endian)` and the associated data `SHA-256(preamble) || i (8 bytes) || frame header (4 bytes)`. A file
//! has at most 2^32 frames. A frame that is not final is not empty. The final frame ends the file: the end of
//! the input before it is a truncation, bytes after it are damage.

mod error;
mod frame;
mod header;
mod key;
mod opener;
mod repository_key;
mod rewrap;
mod sealer;
mod slots;
#[cfg(test)]
mod tests;

pub use error::SealError;
pub use frame::{FrameCipher, TAG_LENGTH};
pub use header::{SealedInfo, SlotKind, inspect, is_sealed};
pub(crate) use header::{cipher as aead_key, digest_of};
pub(crate) use key::random;
pub use key::{Argon2Parameters, Credential, Key, Keyring, generate_key_file, read_key_file};
pub use opener::Opener;
pub use repository_key::{create_repository_key, open_repository_key};
pub use rewrap::rewrap;
pub use sealer::Sealer;
pub use slots::{KeySlot, SlotChoice, add_slot, list_slots, remove_slot};

/// What a sealed file is, authenticated with it: a file sealed as one thing does not open as another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    kind: String,
    name: String,
}

impl Context {
    /// A file of its own, which may be renamed: only its kind is bound.
    pub fn file(kind: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            name: String::new(),
        }
    }

    /// An object of a repository: kind and name are bound, so that no object can be put in another's place.
    pub fn object(kind: &str, name: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            name: name.to_owned(),
        }
    }
}
