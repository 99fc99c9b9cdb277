//! One pack: every frame opens, and every block has the hash that the pack's own index notes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use pgmahout_store::StoreError;
use pgmahout_store::framed::{
    FramedError, FramedOpener, HEADER_LENGTH, ObjectCipher, TRAILER_LENGTH, Trailer,
};
use pgmahout_types::repository::manifest::{PackEntry, PackKind};
use pgmahout_types::repository::pack_index::IndexedFrame;
use pgmahout_types::repository::page_map::StoredMap;
use pgmahout_types::repository::{BLOCK_SIZE, PackId, PackIndex, PageHash};

use super::Found;
use super::damage::ObjectDamage;
use super::error::VerifyError;
use super::objects::Inventory;
use crate::physical::stanza::{PhysicalRepository, kind};

/// What the index of a pack says, as the references need it.
pub(super) type KnownIndex = Arc<PackIndex>;

/// Reads a pack and looks at all of it.
pub(super) async fn check(
    repository: &PhysicalRepository,
    inventory: &Inventory,
    id: PackId,
) -> Result<Found, VerifyError> {
    let Some(entry) = inventory.packs.get(&id).copied() else {
        return Ok(Found::Whole(None));
    };
    let name = name(repository, &entry);
    let bytes = match fetch(repository, &name, entry.size).await? {
        Ok(bytes) => bytes,
        Err(damage) => return Ok(Found::Damaged(damage)),
    };
    let (cipher, key) = (repository.cipher(), *repository.hash_key());
    let checked = tokio::task::spawn_blocking(move || Pack::new(&cipher, &entry, &name, &bytes)?.check(&key));
    match checked.await.map_err(|_| VerifyError::Cancelled)? {
        Ok(index) => Ok(Found::Whole(Some(Arc::new(index)))),
        Err(Problem::Damaged(damage)) => Ok(Found::Damaged(damage)),
        Err(Problem::Unable(object, source)) => Err(VerifyError::Key { object, source }),
    }
}

/// The name of a pack's object.
pub(super) fn name(repository: &PhysicalRepository, entry: &PackEntry) -> String {
    match entry.kind {
        PackKind::Data => repository.names().pack(entry.id),
        PackKind::Map => repository.names().map(entry.id),
    }
}

/// An object whole. What is missing or too long is damage; what the storage cannot do is an error.
pub(super) async fn fetch(
    repository: &PhysicalRepository,
    name: &str,
    limit: u64,
) -> Result<Result<Bytes, ObjectDamage>, VerifyError> {
    match repository.repository().get_bytes(name, limit).await {
        Ok(bytes) => Ok(Ok(bytes)),
        Err(error) => damage_or_error(error).map(Err),
    }
}

/// What the storage says of an object, where that is about the object and not about the storage.
fn damage_or_error(error: StoreError) -> Result<ObjectDamage, VerifyError> {
    match error {
        error if error.is_not_found() => Ok(ObjectDamage::whole("it is missing".to_owned())),
        StoreError::TooLarge { .. } => Ok(ObjectDamage::whole("it is longer than it was written".to_owned())),
        StoreError::Corrupt { .. } => Ok(ObjectDamage::whole(
            "it is shorter than it was written".to_owned(),
        )),
        error => Err(error.into()),
    }
}

/// Why a pack was not found whole.
pub(super) enum Problem {
    Damaged(ObjectDamage),
    /// It cannot be known: the object's name, and why.
    Unable(String, FramedError),
}

impl Problem {
    /// A damaged header can look like another key, version or kind; only what is our own lack is no damage.
    fn of(name: &str, what: &str, error: FramedError) -> Self {
        match error {
            FramedError::KeyNotGiven | FramedError::Compression(_) | FramedError::Crypto => {
                Self::Unable(name.to_owned(), error)
            }
            error => Self::Damaged(ObjectDamage::because(what, &error)),
        }
    }

    fn whole(text: impl Into<String>) -> Self {
        Self::Damaged(ObjectDamage::whole(text.into()))
    }
}

/// The bytes of a pack, with what the manifest says of it.
pub(super) struct Pack<'a> {
    opener: FramedOpener,
    bytes: &'a [u8],
    name: &'a str,
    kind: PackKind,
}

impl<'a> Pack<'a> {
    pub(super) fn new(
        cipher: &ObjectCipher,
        entry: &PackEntry,
        name: &'a str,
        bytes: &'a [u8],
    ) -> Result<Self, Problem> {
        if bytes.len() as u64 != entry.size {
            return Err(Problem::whole(format!(
                "it has {} bytes and was written with {}",
                bytes.len(),
                entry.size
            )));
        }
        let kind = match entry.kind {
            PackKind::Data => kind::PACK,
            PackKind::Map => kind::MAP,
        };
        let opener = FramedOpener::from_header(cipher, kind, name, bytes)
            .map_err(|error| Problem::of(name, "it cannot be opened", error))?;
        if (opener.salt(), opener.key_number()) != (entry.salt, entry.key) {
            return Err(Problem::whole(
                "it is another object than the one that the backup wrote",
            ));
        }
        Ok(Self {
            opener,
            bytes,
            name,
            kind: entry.kind,
        })
    }

    /// Its index, which is its final frame.
    fn index(&self) -> Result<(PackIndex, Trailer), Problem> {
        let size = self.bytes.len() as u64;
        let damaged = |error| Problem::of(self.name, "its index cannot be opened", error);
        let trailer = Trailer::read(self.bytes, size).map_err(damaged)?;
        let range = trailer.final_frame(size);
        let stored = usize::try_from(range.start)
            .ok()
            .zip(usize::try_from(range.end).ok())
            .and_then(|(start, end)| self.bytes.get(start..end))
            .ok_or_else(|| Problem::whole("its index lies outside of it"))?;
        let mut content = Vec::new();
        self.opener
            .open_final(trailer, stored, &mut content)
            .map_err(damaged)?;
        let index = PackIndex::decode(&content).map_err(|error| {
            Problem::Damaged(ObjectDamage::because("its index cannot be understood", &error))
        })?;
        if index.kind != self.kind {
            return Err(Problem::whole("its index is of another kind of pack"));
        }
        Ok((index, trailer))
    }

    /// Opens every frame and hashes every block. The frames must lie one behind the other from the header to the
    /// index: nothing in the object is left out.
    fn check(&self, key: &[u8; 32]) -> Result<PackIndex, Problem> {
        self.each_frame(key, &mut |_, _| {})
    }

    /// The same, and gives the content of every frame that is whole away.
    fn each_frame(
        &self,
        key: &[u8; 32],
        visit: &mut dyn FnMut(&IndexedFrame, &[u8]),
    ) -> Result<PackIndex, Problem> {
        let (index, trailer) = self.index()?;
        let mut lost = BTreeMap::new();
        let mut raw = Vec::new();
        let mut expected = (0_u32, HEADER_LENGTH as u64);
        for frame in &index.frames {
            let location = frame.location;
            if (location.index, location.offset) != expected {
                return Err(Problem::whole("its index does not name all of its frames"));
            }
            expected = (location.index + 1, location.end());
            let stored = usize::try_from(location.offset)
                .ok()
                .zip(usize::try_from(location.end()).ok())
                .and_then(|(start, end)| self.bytes.get(start..end));
            let Some(stored) = stored else {
                return Err(Problem::whole("a frame in its index lies outside of it"));
            };
            let problem = match self.opener.open(location, false, stored, &mut raw) {
                Ok(()) => match self.kind {
                    PackKind::Data => wrong_block(frame, &raw, key),
                    PackKind::Map => wrong_map(frame, &raw),
                },
                Err(error) if error.is_damage() => Some(error.to_string()),
                Err(error) => return Err(Problem::of(self.name, "a frame cannot be opened", error)),
            };
            match problem {
                Some(problem) => drop(lost.insert(location.index, problem)),
                None => visit(frame, &raw),
            }
        }
        if expected != (trailer.frames.saturating_sub(1), trailer.offset) {
            return Err(Problem::whole("its index does not name all of its frames"));
        }
        if lost.is_empty() {
            Ok(index)
        } else {
            Err(Problem::Damaged(ObjectDamage::frames(lost)))
        }
    }
}

/// The first block of a frame that has not the hash that the index notes.
fn wrong_block(frame: &IndexedFrame, raw: &[u8], key: &[u8; 32]) -> Option<String> {
    let blocks = blocks(frame);
    blocks.iter().enumerate().find_map(|(at, (offset, hash))| {
        let is_right = block(&blocks, at, raw).is_some_and(|block| PageHash::of(key, block) == *hash);
        (!is_right).then(|| {
            format!(
                "frame {}: the block at byte {offset} of its content has another hash than was noted",
                frame.location.index
            )
        })
    })
}

/// The content of one of the blocks of a frame.
fn block<'a>(blocks: &[(u32, PageHash)], at: usize, raw: &'a [u8]) -> Option<&'a [u8]> {
    // The last block of a file may be short: the next one follows at once.
    let next = blocks.get(at + 1).map_or(raw.len(), |(next, _)| *next as usize);
    let begin = blocks.get(at)?.0 as usize;
    raw.get(begin..next.min(begin + BLOCK_SIZE as usize))
}

/// The hashes of the blocks of a frame under another key, by where they begin.
pub(in crate::physical) fn hashes_under(
    frame: &IndexedFrame,
    raw: &[u8],
    key: &[u8; 32],
) -> BTreeMap<u32, PageHash> {
    let blocks = blocks(frame);
    (0..blocks.len())
        .filter_map(|at| Some((blocks.get(at)?.0, PageHash::of(key, block(&blocks, at, raw)?))))
        .collect()
}

/// Why a pack cannot be used.
pub(in crate::physical) enum Unsound {
    /// It is not as it was written: what is wrong.
    Damaged(String),
    /// It cannot be known.
    Unable(FramedError),
}

/// Proves a pack as a verification does, and gives the content of every frame away. Computes on the caller's thread.
pub(in crate::physical) fn open_each(
    cipher: &ObjectCipher,
    key: &[u8; 32],
    entry: &PackEntry,
    name: &str,
    bytes: &[u8],
    visit: &mut dyn FnMut(&IndexedFrame, &[u8]),
) -> Result<PackIndex, Unsound> {
    Pack::new(cipher, entry, name, bytes)
        .and_then(|pack| pack.each_frame(key, visit))
        .map_err(|problem| match problem {
            Problem::Damaged(damage) => Unsound::Damaged(damage.text()),
            Problem::Unable(_, source) => Unsound::Unable(source),
        })
}

/// The blocks of a frame: where each begins in its content, and its hash.
pub(in crate::physical) fn blocks(frame: &IndexedFrame) -> Vec<(u32, PageHash)> {
    let mut blocks: Vec<(u32, PageHash)> = frame
        .runs
        .iter()
        .flat_map(|run| {
            let offset = run.offset;
            (0_u32..)
                .zip(&run.hashes)
                .map(move |(number, hash)| (offset.saturating_add(number.saturating_mul(BLOCK_SIZE)), *hash))
        })
        .collect();
    blocks.sort_by_key(|(offset, _)| *offset);
    blocks
}

fn wrong_map(frame: &IndexedFrame, raw: &[u8]) -> Option<String> {
    let error = StoredMap::decode(raw).err()?;
    Some(format!("frame {}: {error}", frame.location.index))
}

/// The index of a pack, read without the rest of it.
pub(super) async fn read_index(
    repository: &PhysicalRepository,
    entry: &PackEntry,
) -> Result<Result<KnownIndex, ObjectDamage>, VerifyError> {
    let name = name(repository, entry);
    let store = repository.repository();
    let tail = entry.size.saturating_sub(TRAILER_LENGTH as u64);
    let trailer = match store.read_range(&name, tail..entry.size).await {
        Ok(bytes) => bytes,
        Err(error) => return damage_or_error(error).map(Err),
    };
    let trailer = match Trailer::read(&trailer, entry.size) {
        Ok(trailer) => trailer,
        Err(error) => return Ok(Err(ObjectDamage::because("its index cannot be opened", &error))),
    };
    let stored = match store.read_range(&name, trailer.final_frame(entry.size)).await {
        Ok(bytes) => bytes,
        Err(error) => return damage_or_error(error).map(Err),
    };
    let kind = match entry.kind {
        PackKind::Data => kind::PACK,
        PackKind::Map => kind::MAP,
    };
    let opened = FramedOpener::from_salt(&repository.cipher(), kind, &name, entry.key, entry.salt).and_then(
        |opener| {
            let mut content = Vec::new();
            opener
                .open_final(trailer, &stored, &mut content)
                .map(|()| content)
        },
    );
    Ok(match opened.map(|content| PackIndex::decode(&content)) {
        Ok(Ok(index)) => Ok(Arc::new(index)),
        Ok(Err(error)) => Err(ObjectDamage::because("its index cannot be understood", &error)),
        Err(error) => Err(ObjectDamage::because("its index cannot be opened", &error)),
    })
}
