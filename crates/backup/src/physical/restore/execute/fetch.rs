//! Reading frames of packs: neighbours in one request, each opened and checked on its own.

use std::collections::HashMap;
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use pgmahout_store::StoreError;
use pgmahout_store::framed::{FramedOpener, ObjectCipher};
use pgmahout_store::repository::{BlockingRepository, ObjectHandle};
use pgmahout_types::repository::FrameLocation;
use pgmahout_types::repository::manifest::PackEntry;
use tokio_util::sync::CancellationToken;

use super::super::error::RestoreError;

/// What requests cost, by where the objects are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// The most that one request asks for.
    largest: u64,
    /// Bytes that nobody needs are read along where they separate two frames by no more than this: cheaper than
    /// another request.
    gap: u64,
}

impl Manner {
    /// A request is a system call. What is small stays near the processor until it is opened.
    pub(crate) const LOCAL: Self = Self {
        largest: 2 << 20,
        gap: 16 << 10,
    };
    /// A request is a way over the network and back.
    pub(crate) const REMOTE: Self = Self {
        largest: 8 << 20,
        gap: 256 << 10,
    };
}

/// From this many bytes of a request on, on average, the next one is read while this one is opened.
const WORTH_A_THREAD: u64 = 512 << 10;

/// Objects that stay open between two requests.
const OPEN: usize = 64;

/// Where objects are read from.
pub(crate) trait ObjectSource: Send + Sync {
    /// How it is read best.
    fn manner(&self) -> Manner;

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
    fn manner(&self) -> Manner {
        if self.store.is_local() {
            Manner::LOCAL
        } else {
            Manner::REMOTE
        }
    }

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
    /// While one request is opened the next is read.
    pub(crate) fn read(
        &self,
        wanted: &[Wanted],
        mut take: impl FnMut(usize, &[u8]) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let requests = requests(wanted, self.source.manner());
        let mut raw = Vec::new();
        let all: u64 = requests.iter().map(|request| request.until - request.from).sum();
        if requests.len() < 2 || all / (requests.len() as u64) < WORTH_A_THREAD {
            let mut stored = Vec::new();
            for request in &requests {
                self.fetch(request, &mut stored)?;
                self.open(wanted, request, &stored, &mut raw, &mut take)?;
            }
            return Ok(());
        }
        std::thread::scope(|scope| {
            // Handed over from hand to hand: one is opened, one is read, and no more.
            let (full, read) = sync_channel(0);
            let (back, empty) = channel::<Vec<u8>>();
            let ahead = &requests;
            scope.spawn(move || {
                for request in ahead {
                    let mut stored = empty.try_recv().unwrap_or_default();
                    let result = self.fetch(request, &mut stored);
                    let failed = result.is_err();
                    // Where nobody takes it, opening has failed.
                    if full.send(result.map(|()| stored)).is_err() || failed {
                        break;
                    }
                }
            });
            for request in &requests {
                let stored = read.recv().map_err(|_| RestoreError::Thread)??;
                self.open(wanted, request, &stored, &mut raw, &mut take)?;
                let _ = back.send(stored);
            }
            Ok(())
        })
    }

    fn fetch(&self, request: &Request, stored: &mut Vec<u8>) -> Result<(), RestoreError> {
        if self.cancellation.is_cancelled() {
            return Err(RestoreError::Interrupted {
                directory: std::path::PathBuf::new(),
            });
        }
        let length = (request.until - request.from) as usize;
        self.source
            .read(&self.name(request.pack), request.from, length, stored)?;
        Ok(())
    }

    /// Opens the frames of a request.
    fn open(
        &self,
        wanted: &[Wanted],
        request: &Request,
        stored: &[u8],
        raw: &mut Vec<u8>,
        take: &mut impl FnMut(usize, &[u8]) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let opener = self.opener(request.pack)?;
        for (frame, index) in wanted[request.frames.clone()].iter().zip(request.frames.clone()) {
            let offset = (frame.location.offset - request.from) as usize;
            let length = frame.location.length() as usize;
            let bytes = stored.get(offset..offset + length).unwrap_or_default();
            opener
                .open(frame.location, false, bytes, raw)
                .map_err(|source| RestoreError::Framed {
                    object: self.name(request.pack),
                    source,
                })?;
            take(index, raw)?;
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

/// Neighbouring frames that are read together.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    pack: u32,
    /// Bytes of the pack.
    from: u64,
    until: u64,
    /// Which of the wanted ones.
    frames: std::ops::Range<usize>,
}

/// The requests for a sorted list of frames.
fn requests(wanted: &[Wanted], manner: Manner) -> Vec<Request> {
    let mut requests: Vec<Request> = Vec::new();
    for (index, frame) in wanted.iter().enumerate() {
        let (from, end) = (frame.location.offset, frame.location.end());
        match requests.last_mut() {
            Some(last)
                if last.pack == frame.pack
                    && from <= last.until.saturating_add(manner.gap)
                    && end.saturating_sub(last.from) <= manner.largest =>
            {
                last.until = last.until.max(end);
                last.frames.end = index + 1;
            }
            _ => requests.push(Request {
                pack: frame.pack,
                from,
                until: end,
                frames: index..index + 1,
            }),
        }
    }
    requests
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

    fn counts(wanted: &[Wanted]) -> Vec<usize> {
        let requests = requests(wanted, Manner::REMOTE);
        requests.iter().map(|request| request.frames.len()).collect()
    }

    #[test]
    fn neighbours_share_a_request_and_no_request_is_too_large() {
        let near = [
            frame(0, 96, 1000),
            frame(0, 1120, 1000),
            frame(0, 200_000, 1000),
            frame(0, 9_000_000, 10),
        ];
        assert_eq!(counts(&near), [3, 1]);
        let local = requests(&near, Manner::LOCAL);
        assert_eq!(local[0].frames, 0..2);
        assert_eq!(counts(&[frame(0, 96, 1000), frame(1, 1120, 1000)]), [1, 1]);
        let many: Vec<Wanted> = (0..200)
            .map(|number| frame(0, 96 + number * 131_096, 131_072))
            .collect();
        let largest = Manner::REMOTE.largest;
        for request in &requests(&many, Manner::REMOTE)[..2] {
            let bytes = request.until - request.from;
            assert!(bytes <= largest && bytes > largest - 200_000, "{bytes}");
        }
    }
}
