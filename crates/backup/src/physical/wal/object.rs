//! The bytes of an archived WAL file: a header of one line, then the content in frames of 1 MiB.

use bytes::Bytes;
use jiff::Timestamp;
use pgmahout_store::framed::{self, FrameCodec, FramedBuilder, FramedError, ObjectCipher};
use pgmahout_types::WalFileName;
use pgmahout_types::repository::wal_object::FORMAT;
use pgmahout_types::repository::{Digest, WalObjectHeader};

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
    let mut builder = FramedBuilder::new(cipher, kind::WAL, object, file.content.len() / 2 + 4096)?;
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
) -> Result<ArchivedFile, OpenProblem> {
    let problem = |problem: ObjectProblem| OpenProblem::Object(Box::new(problem));
    let whole = framed::open_bytes(cipher, kind::WAL, object, bytes).map_err(OpenProblem::Framed)?;
    let end = memchr::memchr(b'\n', &whole).ok_or_else(|| problem(ObjectProblem::NoHeader))?;
    let header =
        WalObjectHeader::decode(&whole[..=end]).map_err(|error| OpenProblem::Object(Box::new(error)))?;
    let content = Bytes::from(whole).slice(end + 1..);
    if header.name != name {
        return Err(problem(ObjectProblem::OtherName));
    }
    if header.size != content.len() as u64 {
        return Err(problem(ObjectProblem::OtherSize));
    }
    if header.blake3 != Digest::of(&content) {
        return Err(problem(ObjectProblem::OtherDigest));
    }
    Ok(ArchivedFile {
        header,
        content,
        stored: bytes.len() as u64,
    })
}
