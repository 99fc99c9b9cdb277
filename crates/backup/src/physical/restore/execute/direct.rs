//! Writing a new file past the page cache, on a thread of its own.
//!
//! Nobody reads soon what a restore writes. In the page cache it would push out what others have there, and most
//! of it would reach the disk only in the end, when everything has to wait for it. Written past the cache it is on
//! its way while the next bytes are fetched and checked, and an error of the disk is told at once.
//!
//! Where the file system cannot do it, writing is ordinary.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Bytes that one write takes at most.
const PIECE: usize = 2 << 20;
/// What places, lengths and memory must be multiples of. More than any disk's sector.
const ALIGNMENT: usize = 4096;
/// Buffers of one file: one is filled while another is written, and a third lies ready.
const BUFFERS: usize = 3;

/// The open file at this path once more, past the cache; `None` where the file system cannot, or the name stands
/// for another one meanwhile.
pub(crate) fn open(path: &Path, file: &File) -> Option<File> {
    let direct = OpenOptions::new()
        .write(true)
        .custom_flags((OFlags::DIRECT | OFlags::NOFOLLOW).bits().cast_signed())
        .open(path)
        .ok()?;
    let (one, other) = (direct.metadata().ok()?, file.metadata().ok()?);
    ((one.dev(), one.ino()) == (other.dev(), other.ino())).then_some(direct)
}

/// Neighbouring bytes on their way to a file.
struct Piece {
    memory: Vec<u8>,
    /// Where the memory is aligned.
    start: usize,
    length: usize,
    /// Their place in the file.
    at: u64,
}

impl Piece {
    fn new() -> Self {
        let memory = vec![0; PIECE + ALIGNMENT];
        // A place that cannot be had makes writing ordinary, no more.
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self {
            memory,
            start,
            length: 0,
            at: 0,
        }
    }

    fn end(&self) -> u64 {
        self.at + self.length as u64
    }

    /// Takes as many of the bytes as there is room for, and gives their number.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(PIECE - self.length);
        let from = self.start + self.length;
        self.memory[from..from + count].copy_from_slice(&bytes[..count]);
        self.length += count;
        count
    }

    /// Writes all of it: past the cache what is aligned, and the rest as usual.
    fn write(&self, direct: &File, file: &File) -> io::Result<()> {
        let bytes = &self.memory[self.start..self.start + self.length];
        let mut done = 0;
        if self.at.is_multiple_of(ALIGNMENT as u64) {
            let aligned = bytes.len() - bytes.len() % ALIGNMENT;
            while done < aligned && done.is_multiple_of(ALIGNMENT) {
                match direct.write_at(&bytes[done..aligned], self.at + done as u64) {
                    Ok(0) => break,
                    Ok(count) => done += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if is_refused(&error) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        file.write_all_at(&bytes[done..], self.at + done as u64)
    }
}

/// Whether the file system cannot write this past the cache.
fn is_refused(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    [Errno::INVAL, Errno::OPNOTSUPP]
        .iter()
        .any(|refusal| number == Some(refusal.raw_os_error()))
}

thread_local! {
    /// Buffers that the last file is done with: fresh ones cost more than one would think.
    static SPARE: RefCell<Vec<Piece>> = const { RefCell::new(Vec::new()) };
}

/// Gathers what is written and hands it to the thread that does it.
pub(crate) struct Spool<'scope> {
    piece: Option<Piece>,
    /// How many more buffers may be made.
    unmade: usize,
    full: Sender<Piece>,
    empty: Receiver<Piece>,
    thread: ScopedJoinHandle<'scope, io::Result<()>>,
}

impl<'scope> Spool<'scope> {
    /// Writes to `direct`, and where that is refused to `file`, which is the same one.
    pub(crate) fn start<'env: 'scope>(
        scope: &'scope Scope<'scope, 'env>,
        direct: &'env File,
        file: &'env File,
    ) -> Self {
        let (full, pieces) = channel::<Piece>();
        let (back, empty) = channel();
        let thread = scope.spawn(move || {
            for piece in pieces {
                piece.write(direct, file)?;
                // Nobody wants it back when all is handed over.
                let _ = back.send(piece);
            }
            Ok(())
        });
        Self {
            piece: None,
            unmade: BUFFERS,
            full,
            empty,
            thread,
        }
    }

    /// Takes bytes; they may be written later. `false` when the thread has failed: [`Spool::finish`] tells why.
    pub(crate) fn write(&mut self, mut bytes: &[u8], at: u64) -> bool {
        let mut at = at;
        while !bytes.is_empty() {
            if self.piece.as_ref().is_some_and(|piece| piece.end() != at) && !self.hand_over() {
                return false;
            }
            if self.piece.is_none() {
                let Some(piece) = self.spare() else { return false };
                self.piece = Some(Piece {
                    length: 0,
                    at,
                    ..piece
                });
            }
            if let Some(piece) = &mut self.piece {
                let count = piece.take(bytes);
                bytes = &bytes[count..];
                at += count as u64;
                if piece.length == PIECE && !self.hand_over() {
                    return false;
                }
            }
        }
        true
    }

    fn spare(&mut self) -> Option<Piece> {
        if let Ok(piece) = self.empty.try_recv() {
            return Some(piece);
        }
        if self.unmade > 0 {
            self.unmade -= 1;
            let kept = SPARE.with_borrow_mut(Vec::pop);
            return Some(kept.unwrap_or_else(Piece::new));
        }
        self.empty.recv().ok()
    }

    fn hand_over(&mut self) -> bool {
        self.piece
            .take()
            .is_none_or(|piece| self.full.send(piece).is_ok())
    }

    /// Waits until everything is written.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.hand_over();
        drop(self.full);
        let written = self
            .thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that writes has panicked")));
        SPARE.with_borrow_mut(|spare| spare.extend(self.empty.try_iter()));
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at / 7 % 251) as u8).collect()
    }

    fn spooled(path: &Path, writes: &[(u64, &[u8])]) -> io::Result<bool> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        // A file system that cannot do it is written to as usual.
        let direct = open(path, &file).map_or_else(|| file.try_clone(), Ok)?;
        std::thread::scope(|scope| {
            let mut spool = Spool::start(scope, &direct, &file);
            let taken = writes.iter().all(|(at, bytes)| spool.write(bytes, *at));
            spool.finish().map(|()| taken)
        })
    }

    #[test]
    fn what_is_written_in_any_pieces_is_there_to_the_last_byte() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let content = bytes(3 * PIECE + 5 * 8192 + 77);
        let mut writes: Vec<(u64, &[u8])> = content
            .chunks(13 * 8192)
            .scan(0, |at, chunk| {
                let from = *at;
                *at += chunk.len() as u64;
                Some((from, chunk))
            })
            .collect();
        // Not in order: what does not join on is a piece of its own.
        writes.swap(2, 7);
        assert!(spooled(&path, &writes).expect("written"));
        assert!(std::fs::read(&path).expect("readable") == content);
    }

    #[test]
    fn a_name_that_stands_for_another_file_is_not_written_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, other) = (directory.path().join("file"), directory.path().join("other"));
        let file = File::create(&path).expect("a file");
        std::fs::write(&other, "other").expect("a file");
        std::fs::rename(&other, &path).expect("renamed");
        assert!(open(&path, &file).is_none());
        std::fs::remove_file(&path).expect("removed");
        assert!(open(&path, &file).is_none());
    }

    #[test]
    fn a_place_that_is_not_aligned_is_written_as_usual() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        assert!(spooled(&path, &[(0, &[1; 100]), (100, &[2; 9000]), (20_000, &[3; 4096])]).expect("written"));
        let content = std::fs::read(&path).expect("readable");
        assert_eq!(content.len(), 24_096);
        assert!(content[..100].iter().all(|byte| *byte == 1));
        assert!(content[100..9100].iter().all(|byte| *byte == 2));
        assert!(content[9100..20_000].iter().all(|byte| *byte == 0));
        assert!(content[20_000..].iter().all(|byte| *byte == 3));
    }

    #[test]
    fn a_disk_that_does_not_take_it_is_told() {
        let file = File::options()
            .write(true)
            .open("/dev/full")
            .expect("Linux has it");
        let content = bytes(BUFFERS * 3 * PIECE);
        let error = std::thread::scope(|scope| {
            let mut spool = Spool::start(scope, &file, &file);
            assert!(!spool.write(&content, 0));
            spool.finish()
        })
        .expect_err("it is full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
