//! What there is to do, and how threads share it: small files in groups, large ones in parts.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pgmahout_types::repository::BLOCK_SIZE;
use pgmahout_types::repository::manifest::{Area, Content, Entry, File, FileKind, Manifest};

use super::super::selection::Selection;
use super::write::{Opened, Target};

/// Files of this size and more are shared.
const LARGE: u64 = 1 << 20;
/// Blocks of a large file that one thread takes at a time.
const PART: u32 = 8192;
/// Raw bytes of small files in one group.
const GROUP_BYTES: u64 = 16 << 20;
/// Files in one group.
const GROUP_FILES: usize = 512;

/// What is left to do.
pub(super) struct Queue<'a> {
    /// The next one last.
    tasks: Vec<Task<'a>>,
    /// Large files that were begun.
    begun: Vec<Arc<Large<'a>>>,
}

enum Task<'a> {
    Large(&'a File),
    Group(Vec<&'a File>),
}

/// What a thread does next.
pub(super) enum Work<'a> {
    /// A large file, perhaps with others.
    Large(Arc<Large<'a>>),
    /// Files that one thread brings about together.
    Group(Vec<&'a File>),
}

impl<'a> Queue<'a> {
    /// Every file of the backup but pg_control. Large files first, the largest at the very first; small ones by
    /// where they lie.
    pub(super) fn new(manifest: &'a Manifest, selection: &Selection) -> Self {
        let mut large = Vec::new();
        let mut small: Vec<(u32, u64, &File)> = Vec::new();
        for entry in &manifest.entries {
            let Entry::File(file) = entry else { continue };
            if file.area != Area::Data || file.kind == FileKind::Control || is_ours(file) {
                continue;
            }
            match &file.content {
                _ if selection.is_hollow(&file.path, file.kind) => small.push((u32::MAX, 0, file)),
                Content::Inline(map) if file.size < LARGE => {
                    let place = map.frames().first();
                    let pack = place.map_or(u32::MAX, |frame| frame.pack);
                    small.push((pack, place.map_or(0, |frame| frame.location.offset), file));
                }
                _ => large.push(file),
            }
        }
        small.sort_by(|one, other| (one.0, one.1, &one.2.path).cmp(&(other.0, other.1, &other.2.path)));
        let mut groups: Vec<(u64, Vec<&File>)> = Vec::new();
        for (_, _, file) in small {
            match groups.last_mut() {
                Some((bytes, files)) if *bytes + file.size <= GROUP_BYTES && files.len() < GROUP_FILES => {
                    *bytes += file.size;
                    files.push(file);
                }
                _ => groups.push((file.size, vec![file])),
            }
        }
        large.sort_by_key(|file| file.size);
        let groups = groups.into_iter().rev().map(|(_, files)| Task::Group(files));
        Self {
            tasks: groups.chain(large.into_iter().map(Task::Large)).collect(),
            begun: Vec::new(),
        }
    }

    /// What a thread does next: what nobody has begun, else a part of what others are at work on.
    pub(super) fn next(&mut self) -> Option<Work<'a>> {
        self.begun.retain(|large| large.parts.has_more());
        match self.tasks.pop() {
            Some(Task::Group(files)) => Some(Work::Group(files)),
            Some(Task::Large(file)) => {
                let large = Arc::new(Large {
                    file,
                    parts: Parts::new(blocks(file.size)),
                });
                self.begun.push(Arc::clone(&large));
                Some(Work::Large(large))
            }
            None => self.begun.first().map(Arc::clone).map(Work::Large),
        }
    }
}

/// Blocks of a file of that size.
fn blocks(size: u64) -> u32 {
    u32::try_from(size.div_ceil(u64::from(BLOCK_SIZE))).unwrap_or(u32::MAX)
}

/// Written by the restore itself.
fn is_ours(file: &File) -> bool {
    matches!(file.path.as_bytes(), b"backup_label" | b"tablespace_map")
}

/// A large file, of which several threads bring about parts.
pub(super) struct Large<'a> {
    pub(super) file: &'a File,
    pub(super) parts: Parts<(Target, Opened)>,
}

/// Which parts of something are still to be done, and what the first thread has opened for all of them.
pub(super) struct Parts<T> {
    blocks: u32,
    opened: Mutex<State<T>>,
    /// The first block of the next part.
    next: AtomicU64,
}

enum State<T> {
    Closed,
    Open(Arc<T>),
    /// The thread that tried it tells why.
    Failed,
}

impl<T> Parts<T> {
    fn new(blocks: u32) -> Self {
        Self {
            blocks,
            opened: Mutex::new(State::Closed),
            next: AtomicU64::new(0),
        }
    }

    fn has_more(&self) -> bool {
        self.next.load(Ordering::Relaxed) < u64::from(self.blocks)
    }

    /// Does parts until there is no more, or `part` says that it is enough. Whoever comes first opens.
    pub(super) fn work<E>(
        &self,
        open: impl FnOnce() -> Result<T, E>,
        mut part: impl FnMut(&T, Range<u32>) -> Result<bool, E>,
    ) -> Result<(), E> {
        let Some(opened) = self.opened(open)? else {
            return Ok(());
        };
        loop {
            let first = self.next.fetch_add(u64::from(PART), Ordering::Relaxed);
            let Some(first) = u32::try_from(first).ok().filter(|first| *first < self.blocks) else {
                return Ok(());
            };
            if !part(&opened, first..self.blocks.min(first.saturating_add(PART)))? {
                return Ok(());
            }
        }
    }

    fn opened<E>(&self, open: impl FnOnce() -> Result<T, E>) -> Result<Option<Arc<T>>, E> {
        let mut state = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Open(opened) => Ok(Some(Arc::clone(opened))),
            State::Failed => Ok(None),
            State::Closed => match open() {
                Ok(opened) => {
                    let opened = Arc::new(opened);
                    *state = State::Open(Arc::clone(&opened));
                    Ok(Some(opened))
                }
                Err(error) => {
                    *state = State::Failed;
                    // Nobody has to come again.
                    self.next.store(u64::from(u32::MAX), Ordering::Relaxed);
                    Err(error)
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_one_file_and_every_block_is_done_once() {
        let blocks = 20 * PART + 17;
        let parts = Parts::new(blocks);
        let (openings, done) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let open = || Ok::<_, ()>(openings.fetch_add(1, Ordering::Relaxed));
                    parts.work(open, |_, range| {
                        done.lock().expect("no panic").push(range);
                        Ok(true)
                    })
                });
            }
        });
        let mut done = done.into_inner().expect("no panic");
        done.sort_by_key(|range| range.start);
        let end = done.iter().fold(0, |end, range| {
            assert_eq!(range.start, end);
            range.end
        });
        assert_eq!((end, openings.into_inner()), (blocks, 1));
        assert!(!parts.has_more());
    }

    #[test]
    fn what_cannot_be_opened_is_told_once_and_not_tried_again() {
        let parts: Parts<()> = Parts::new(5 * PART);
        assert_eq!(parts.work(|| Err("gone"), |(), _| Ok(true)), Err("gone"));
        assert_eq!(parts.work(|| Err("gone too"), |(), _| Ok(true)), Ok(()));
        assert!(!parts.has_more());
    }

    #[test]
    fn an_empty_file_is_opened_too() {
        let parts = Parts::new(0);
        let mut is_open = false;
        let open = || {
            is_open = true;
            Ok::<_, ()>(())
        };
        parts.work(open, |(), _| Err(())).expect("nothing to do");
        assert!(is_open);
    }
}
