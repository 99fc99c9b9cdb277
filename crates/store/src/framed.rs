//! The framed object: the container of everything that a physical backup stores.
//!
//! A framed object is a row of frames. Each is compressed and sealed on its own, so that any one can be read
//! by its place alone, without what stands before it. [`FramedBuilder`] makes an object in memory,
//! [`FramedOpener`] opens its frames in any order, from any thread. Both are pure computation: reading and
//! writing the bytes is the caller's. Small objects of one frame have [`seal_bytes`] and [`open_bytes`].
//!
//! A repository with encryption seals frames with AES-256-GCM; one without protects them by checksums. In both
//! every change of an object is found, and the error says what it is: damage and where, a truncation, bytes
//! behind the end, an object under another name, the wrong key. Only encryption also finds changes that somebody
//! made on purpose.
//!
//! # Memory
//!
//! A builder holds its object and the tables of its compressor (about 1 MiB at zstd level 1). Openers share one
//! decompressor and one buffer of a frame per thread (kept up to 2 MiB).
//!
//! The rest of this page is the format, complete enough to write a reader from.
//!
//! # The framed object format, version 1
//!
//! All integers are little-endian but those in nonces. `||` is concatenation. A framed object is
//!
//! ```text
//! header (96 bytes) || frame 0 || frame 1 || ... || frame n-1 (final) || trailer (16 bytes)
//! ```
//!
//! There is at least one frame. The final frame may be empty.
//!
//! ## Header
//!
//! | offset | length | content |
//! | --- | --- | --- |
//! | 0 | 8 | magic: `89 50 47 4d 46 0d 0a 1a` (`\x89PGMF\r\n\x1a`) |
//! | 8 | 2 | version: 1 |
//! | 10 | 1 | cipher: 0 plain, 1 AES-256-GCM |
//! | 11 | 1 | zero |
//! | 12 | 4 | number of the repository's key; 0 in a plain object |
//! | 16 | 32 | salt: fresh random bytes for every write, a repeated write of the same object too |
//! | 48 | 32 | context digest: `SHA-256("pgmahout framed v1: context" \|\| header bytes 0 to 48 \|\| length of kind (4 bytes) \|\| kind \|\| length of name (4 bytes) \|\| name)` |
//! | 80 | 16 | header tag: the first 16 bytes of `HMAC-SHA256(header key, header bytes 0 to 80)`; in a plain object of `BLAKE3(header bytes 0 to 80)` |
//!
//! The kind says what an object is (`pack`, `manifest`, `wal`), the name is its whole name in the repository. A
//! reader that expects another kind or name refuses the object. Whoever knows the salt, the key number, the kind
//! and the name can compute the header, and need not read it.
//!
//! A header whose tag does not match is damaged when its context digest does not match either; when that does
//! match, the key is the wrong one (or the tag alone is damaged). A header whose tag matches and whose context
//! digest does not is that of another object.
//!
//! ## Keys
//!
//! | key | length | made from |
//! | --- | --- | --- |
//! | repository key `n` | 32 | random; in the object `repository.key` (0) or `repository.key.n`, see [`crate::seal`] |
//! | frame key | 32 | `HKDF-SHA256(salt = object's salt, secret = repository key, info = "pgmahout framed v1: frames")` |
//! | header key | 32 | `HKDF-SHA256(salt = object's salt, secret = repository key, info = "pgmahout framed v1: header")` |
//!
//! HKDF is RFC 5869, AES-256-GCM is NIST SP 800-38D with 96-bit nonces and 128-bit tags. A frame key is used for
//! one write of one object, so counted nonces never repeat under it.
//!
//! ## Frames
//!
//! | length | content |
//! | --- | --- |
//! | 4 | length of the payload in the lower 31 bits; the highest bit is set in the final frame |
//! | 4 | length of the raw bytes in the lower 28 bits; the codec in the upper 4: 0 none, 1 zstd, 2 lz4 |
//! | length | payload |
//! | 16 | tag |
//!
//! The payload is the raw bytes as they are (codec 0), one zstd frame (RFC 8878), or one LZ4 block without its
//! length. A frame that compression makes less than about 3 % shorter is stored with codec 0. Frame `i`, counted
//! from 0, has the associated data `SHA-256(header) || i (8 bytes) || frame header (8 bytes)`. Sealed, its payload
//! is encrypted under the frame key with the nonce `00 00 00 00 || i (8 bytes, big-endian)`. In a plain object the
//! payload is as it is, and the tag is the first 16 bytes of `BLAKE3(associated data || payload)`.
//!
//! ## Trailer
//!
//! | length | content |
//! | --- | --- |
//! | 8 | offset of the final frame |
//! | 4 | number of frames |
//! | 4 | CRC-32C of the 12 bytes before |
//!
//! The trailer is a hint where to find the final frame, which in a pack is the index of the others. It is not
//! authentic by itself: the final frame is, by its number and its mark.

mod builder;
mod cipher;
mod error;
mod frame;
mod header;
mod opener;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use builder::FramedBuilder;
pub use cipher::ObjectCipher;
pub use error::FramedError;
pub use frame::{FRAME_OVERHEAD, FrameCodec, LONGEST_FRAME, TRAILER_LENGTH, Trailer};
pub use header::{HEADER_LENGTH, is_framed};
pub use opener::{FramedOpener, Frames};
pub use pgmahout_types::repository::{FrameLocation, Salt};

/// What an object is, bound to its bytes: an object made as one thing does not open as another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FramedContext {
    /// What kind of object: `pack`, `manifest`, `wal`.
    pub kind: &'static str,
    /// Its whole name in the repository.
    pub name: String,
}

/// Raw bytes per frame of what [`seal_bytes`] makes.
const SMALL_OBJECT_FRAME: usize = 1024 * 1024;

/// Makes a framed object of bytes in memory, in frames of up to 1 MiB.
///
/// # Errors
///
/// As [`FramedBuilder::push`].
pub fn seal_bytes(
    cipher: &ObjectCipher,
    kind: &str,
    name: &str,
    codec: FrameCodec,
    content: &[u8],
) -> Result<Bytes, FramedError> {
    let capacity = HEADER_LENGTH + FRAME_OVERHEAD + TRAILER_LENGTH + content.len();
    let mut builder = FramedBuilder::new(cipher, kind, name, capacity)?;
    let mut rest = content;
    while rest.len() > SMALL_OBJECT_FRAME {
        let (piece, after) = rest.split_at(SMALL_OBJECT_FRAME);
        builder.push(codec, piece)?;
        rest = after;
    }
    builder.finish(rest, codec)
}

/// The content of a framed object: all its frames, one after the other.
///
/// # Errors
///
/// Whatever is wrong with the object; see [`FramedError`].
pub fn open_bytes(
    cipher: &ObjectCipher,
    kind: &str,
    name: &str,
    object: &[u8],
) -> Result<Vec<u8>, FramedError> {
    FramedOpener::from_header(cipher, kind, name, object)?.read_all(object)
}
