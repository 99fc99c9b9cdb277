//! The bytes of an archived WAL file: a header of one line, then the content in frames of 1 MiB.

use bytes::Bytes;
use jiff::Timestamp;
use pgmahout_store::framed::{FrameCodec, FramedBuilder, FramedError, FramedOpener, ObjectCipher};
use pgmahout_types::repository::wal_object::FORMAT;
use pgmahout_types::repository::{Digest, WalObjectHeader};
use pgmahout_types::{SegmentSize, WalFileName};

use super::buffers::Buffers;
use super::error::ObjectProblem;
use super::file::WalFile;
use crate::physical::stanza::kind;

/// Raw bytes of one frame.
const FRAME: usize = 1 << 20;

/// A file as the archive holds it.
#[derive(Debug, Clone)]
pub struct ArchivedFile {
    /// What was noted when it was stored.
    pub header: WalObjectHeader,
    /// Its content, proven by its digest.
    pub content: Bytes,
    /// Bytes that it takes in the repository.
    pub stored: u64,
}

/// Makes the object of a file. Computes on the caller's thread: 16 MiB take some tens of milliseconds.
pub(super) fn seal(
    cipher: &ObjectCipher,
    object: &str,
    codec: FrameCodec,
    file: &WalFile,
    buffers: &Buffers,
) -> Result<Bytes, FramedError> {
    let header = WalObjectHeader {
        format: FORMAT,
        name: file.name,
        size: file.content.len() as u64,
        system_identifier: file.system_identifier,
        page_magic: file.page.map(|page| page.magic),
        blake3: file.blake3,
        archived_at: Timestamp::now(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    let buffer = buffers.take(file.content.len() / 2 + 4096);
    let mut builder = FramedBuilder::with_buffer(cipher, kind::WAL, object, buffer)?;
    builder.push(FrameCodec::None, &header.encode())?;
    let mut rest = &file.content[..];
    while rest.len() > FRAME {
        let (piece, after) = rest.split_at(FRAME);
        builder.push(codec, piece)?;
        rest = after;
    }
    builder.finish(rest, codec)
}

/// What is wrong with an object.
pub(super) enum OpenProblem {
    /// Its frames.
    Framed(FramedError),
    /// Its header, or its content against the header.
    Object(Box<dyn std::error::Error + Send + Sync>),
}

/// Opens an object and proves its content. Computes on the caller's thread.
pub(super) fn open(
    cipher: &ObjectCipher,
    object: &str,
    name: WalFileName,
    bytes: &[u8],
    buffers: &Buffers,
) -> Result<ArchivedFile, OpenProblem> {
    let problem = |problem: ObjectProblem| OpenProblem::Object(Box::new(problem));
    let opener = FramedOpener::from_header(cipher, kind::WAL, object, bytes).map_err(OpenProblem::Framed)?;
    let mut frames = opener.frames(bytes);
    let mut head = Vec::new();
    frames.next_into(&mut head).map_err(OpenProblem::Framed)?;
    let end = memchr::memchr(b'\n', &head).ok_or_else(|| problem(ObjectProblem::NoHeader))?;
    let header =
        WalObjectHeader::decode(&head[..=end]).map_err(|error| OpenProblem::Object(Box::new(error)))?;
    if header.name != name {
        return Err(problem(ObjectProblem::OtherName));
    }
    if header.size > SegmentSize::MAX.bytes() {
        return Err(problem(ObjectProblem::OtherSize));
    }
    let mut content = buffers.take(header.size as usize);
    content.extend_from_slice(&head[end + 1..]);
    let mut hasher = blake3::Hasher::new();
    let mut hashed = 0;
    loop {
        // While it is in the processor's cache.
        hasher.update(&content[hashed..]);
        hashed = content.len();
        if hashed as u64 > header.size {
            return Err(problem(ObjectProblem::OtherSize));
        }
        if !frames.append_next(&mut content).map_err(OpenProblem::Framed)? {
            break;
        }
    }
    if header.size != content.len() as u64 {
        return Err(problem(ObjectProblem::OtherSize));
    }
    if header.blake3 != Digest::from(hasher.finalize()) {
        return Err(problem(ObjectProblem::OtherDigest));
    }
    Ok(ArchivedFile {
        header,
        content: content.into(),
        stored: bytes.len() as u64,
    })
}
