//! Reading frames of packs: neighbours in one request, each opened and checked on its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pgmahout_store::StoreError;
use pgmahout_store::framed::{FramedOpener, ObjectCipher};
use pgmahout_store::repository::{BlockingRepository, ObjectHandle};
use pgmahout_types::repository::FrameLocation;
use pgmahout_types::repository::manifest::PackEntry;
use tokio_util::sync::CancellationToken;

use super::super::error::RestoreError;

/// The most that one request asks for.
const LARGEST_READ: u64 = 8 << 20;
/// Bytes that nobody needs are read along where they separate two frames by no more than this: cheaper than
/// another request.
const GAP: u64 = 256 << 10;

/// Objects that stay open between two requests.
const OPEN: usize = 64;

/// Where objects are read from.
pub(crate) trait ObjectSource: Send + Sync {
    /// Reads exactly `length` bytes from `offset` on; `out` then holds them and nothing else.
    fn read(&self, object: &str, offset: u64, length: usize, out: &mut Vec<u8>) -> Result<(), StoreError>;
}

/// The storage of a repository, with the last few objects kept open.
pub(crate) struct StoredObjects {
    store: BlockingRepository,
    open: Mutex<HashMap<String, Arc<ObjectHandle>>>,
}

impl StoredObjects {
    pub(crate) fn new(store: BlockingRepository) -> Self {
        Self {
            store,
            open: Mutex::default(),
        }
    }
}

impl ObjectSource for StoredObjects {
    fn read(&self, object: &str, offset: u64, length: usize, out: &mut Vec<u8>) -> Result<(), StoreError> {
        let known = self
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(object)
            .map(Arc::clone);
        let handle = if let Some(handle) = known {
            handle
        } else {
            let handle = Arc::new(self.store.open_random(object)?);
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if open.len() >= OPEN {
                open.clear();
            }
            open.insert(object.to_owned(), Arc::clone(&handle));
            handle
        };
        handle.read_at(offset, length, out)
    }
}

/// The kind and the name of a pack's object.
pub(crate) type PackNames = dyn Fn(&PackEntry) -> (&'static str, String) + Send + Sync;

/// The packs of a backup.
pub(crate) struct Packs<'a> {
    source: &'a dyn ObjectSource,
    cipher: &'a ObjectCipher,
    entries: &'a [PackEntry],
    names: &'a PackNames,
    openers: Mutex<HashMap<u32, Arc<FramedOpener>>>,
    cancellation: &'a CancellationToken,
}

/// A frame that somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wanted {
    /// The pack's number in the manifest.
    pub(crate) pack: u32,
    /// Where in it.
    pub(crate) location: FrameLocation,
}

impl<'a> Packs<'a> {
    pub(crate) fn new(
        source: &'a dyn ObjectSource,
        cipher: &'a ObjectCipher,
        entries: &'a [PackEntry],
        names: &'a PackNames,
        cancellation: &'a CancellationToken,
    ) -> Self {
        Self {
            source,
            cipher,
            entries,
            names,
            openers: Mutex::default(),
            cancellation,
        }
    }

    /// The object's name, for messages.
    pub(crate) fn name(&self, pack: u32) -> String {
        self.entries
            .get(pack as usize)
            .map_or_else(|| format!("pack number {pack}"), |entry| (self.names)(entry).1)
    }

    /// Reads the frames that are wanted, which are sorted, and gives each one's number in the list and content.
    pub(crate) fn read(
        &self,
        wanted: &[Wanted],
        mut take: impl FnMut(usize, &[u8]) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let (mut raw, mut stored) = (Vec::new(), Vec::new());
        let mut begin = 0;
        while begin < wanted.len() {
            if self.cancellation.is_cancelled() {
                return Err(RestoreError::Interrupted {
                    directory: std::path::PathBuf::new(),
                });
            }
            let end = begin + together(&wanted[begin..]);
            let request = &wanted[begin..end];
            let (pack, from) = (request[0].pack, request[0].location.offset);
            let until = request
                .iter()
                .map(|frame| frame.location.end())
                .max()
                .unwrap_or(from);
            let opener = self.opener(pack)?;
            let object = self.name(pack);
            self.source
                .read(&object, from, (until - from) as usize, &mut stored)?;
            for (index, frame) in request.iter().enumerate() {
                let offset = (frame.location.offset - from) as usize;
                let length = frame.location.length() as usize;
                let bytes = stored.get(offset..offset + length).unwrap_or_default();
                opener
                    .open(frame.location, false, bytes, &mut raw)
                    .map_err(|source| RestoreError::Framed {
                        object: object.clone(),
                        source,
                    })?;
                take(begin + index, &raw)?;
            }
            begin = end;
        }
        Ok(())
    }

    /// The content of one frame.
    pub(crate) fn frame(&self, pack: u32, location: FrameLocation) -> Result<Vec<u8>, RestoreError> {
        let mut content = Vec::new();
        self.read(&[Wanted { pack, location }], |_, raw| {
            content = raw.to_vec();
            Ok(())
        })?;
        Ok(content)
    }

    fn opener(&self, pack: u32) -> Result<Arc<FramedOpener>, RestoreError> {
        if let Some(opener) = self
            .openers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&pack)
        {
            return Ok(Arc::clone(opener));
        }
        let entry = self.entries.get(pack as usize).ok_or_else(|| {
            RestoreError::damaged("", format!("it names pack number {pack}, which it does not list"))
        })?;
        let (kind, object) = (self.names)(entry);
        let opener = FramedOpener::from_salt(self.cipher, kind, &object, entry.key, entry.salt)
            .map_err(|source| RestoreError::Framed { object, source })?;
        let opener = Arc::new(opener);
        self.openers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pack, Arc::clone(&opener));
        Ok(opener)
    }
}

/// How many of the frames at the beginning of a sorted list go into one request.
fn together(wanted: &[Wanted]) -> usize {
    let Some(first) = wanted.first() else { return 0 };
    let mut end = first.location.end();
    let rest = wanted[1..].iter().take_while(|next| {
        let fits = next.pack == first.pack
            && next.location.offset <= end.saturating_add(GAP)
            && next.location.end().saturating_sub(first.location.offset) <= LARGEST_READ;
        end = end.max(next.location.end());
        fits
    });
    1 + rest.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(pack: u32, offset: u64, stored: u32) -> Wanted {
        let location = FrameLocation {
            index: 0,
            offset,
            stored,
            raw: stored,
        };
        Wanted { pack, location }
    }

    #[test]
    fn neighbours_share_a_request_and_no_request_is_too_large() {
        let near = [
            frame(0, 96, 1000),
            frame(0, 1120, 1000),
            frame(0, 200_000, 1000),
            frame(0, 9_000_000, 10),
        ];
        assert_eq!(together(&near), 3);
        assert_eq!(together(&near[3..]), 1);
        assert_eq!(together(&[frame(0, 96, 1000), frame(1, 1120, 1000)]), 1);
        let many: Vec<Wanted> = (0..200)
            .map(|number| frame(0, 96 + number * 131_096, 131_072))
            .collect();
        let count = together(&many);
        let bytes = many[count - 1].location.end() - 96;
        assert!(bytes <= LARGEST_READ && bytes > LARGEST_READ - 200_000, "{bytes}");
    }
}
