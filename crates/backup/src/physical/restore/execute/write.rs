//! Writing files: from nothing, or over what is there.
//!
//! Every block is compared with its hash before it is written. Blocks that are zero are never written: a new
//! file has holes there, and in one that existed holes are made.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pgmahout_types::repository::{BLOCK_SIZE, PageHash, PageMap, Source};
use rustix::fs::{Advice, FallocateFlags, OFlags};

use super::super::error::RestoreError;
use super::super::owner::Ownership;
use super::direct::{self, Spool};
use super::fetch::{Packs, Wanted};
use crate::physical::page::hash::is_zero;

/// Blocks of an existing file that are read and compared at a time: they are still near the processor when they
/// are hashed.
const COMPARED: u32 = 32;
const BLOCK: u64 = BLOCK_SIZE as u64;

/// What writing came to. Shared by all threads.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Bytes written.
    pub(crate) written: AtomicU64,
    /// Bytes that were right already.
    pub(crate) kept: AtomicU64,
    /// Files that were changed or made.
    pub(crate) files: AtomicU64,
}

impl Tally {
    fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

/// A file to be brought about.
pub(crate) struct Target {
    /// Where.
    pub(crate) path: PathBuf,
    /// Its name in the backup, for messages.
    pub(crate) name: String,
    /// Permissions.
    pub(crate) mode: u32,
    /// Its content.
    pub(crate) map: PageMap,
    /// The numbers in the manifest of the packs of the map.
    pub(crate) packs: Vec<u32>,
}

/// What all writers share.
pub(crate) struct Writer<'a> {
    pub(crate) packs: &'a Packs<'a>,
    pub(crate) hash_key: &'a [u8; 32],
    pub(crate) owner: Ownership,
    /// Whether files that exist are compared and kept as far as they are right.
    pub(crate) delta: bool,
    pub(crate) tally: &'a Tally,
    /// Told how many bytes of files are done.
    pub(crate) done: &'a (dyn Fn(u64) + Sync),
}

/// A file that is there, of the right size, owner and mode.
pub(crate) struct Opened {
    file: File,
    /// Whether it has what it had before this restore.
    is_old: bool,
    /// Whether it counts as changed already.
    is_changed: AtomicBool,
}

/// Blocks that follow each other in a frame and in a file.
struct Piece {
    frame: Wanted,
    /// Byte in the frame.
    offset: u32,
    /// Which of the targets.
    target: usize,
    /// The first block.
    first: u32,
    /// Where their hashes begin.
    hashes: Range<usize>,
}

impl Writer<'_> {
    /// Brings about several small files, of which the frames are read together.
    pub(crate) fn group(&self, targets: &[Target]) -> Result<(), RestoreError> {
        let mut open: Vec<Option<File>> = Vec::with_capacity(targets.len());
        let (mut pieces, mut hashes) = (Vec::new(), Vec::new());
        // Few files stay open: a group of many has small ones, which are opened again when they are written.
        let keep_open = targets.len() <= 8;
        for (number, target) in targets.iter().enumerate() {
            let opened = self.open(target)?;
            let blocks = 0..target.map.blocks();
            self.gather(number, target, &opened, blocks, &mut pieces, &mut hashes)?;
            open.push(keep_open.then_some(opened.file));
        }
        self.restore(targets, pieces, &hashes, |target, bytes, at| {
            let path = &targets[target].path;
            match &open[target] {
                Some(file) => file.write_all_at(bytes, at),
                None => reopen(path).and_then(|file| file.write_all_at(bytes, at)),
            }
            .map_err(|error| RestoreError::io("write", path, error))
        })
    }

    /// Brings about some blocks of a large file. Others may be brought about at the same time.
    pub(crate) fn part(
        &self,
        target: &Target,
        opened: &Opened,
        blocks: Range<u32>,
    ) -> Result<(), RestoreError> {
        let io = |error| RestoreError::io("write", &target.path, error);
        let (mut pieces, mut hashes) = (Vec::new(), Vec::new());
        self.gather(0, target, opened, blocks, &mut pieces, &mut hashes)?;
        let targets = std::slice::from_ref(target);
        let direct = if opened.is_old {
            None
        } else {
            direct::open(&target.path, &opened.file)
        };
        let Some(direct) = direct else {
            return self.restore(targets, pieces, &hashes, |_, bytes, at| {
                opened.file.write_all_at(bytes, at).map_err(io)
            });
        };
        std::thread::scope(|scope| {
            let mut spool = Spool::start(scope, &direct, &opened.file);
            let mut is_taken = true;
            let restored = self.restore(targets, pieces, &hashes, |_, bytes, at| {
                is_taken = spool.write(bytes, at);
                if is_taken {
                    Ok(())
                } else {
                    Err(RestoreError::Thread)
                }
            });
            let written = spool.finish().map_err(io);
            // What the disk says comes first where it is the reason for the other.
            if is_taken {
                restored.and(written)
            } else {
                written.and(restored)
            }
        })
    }

    /// Fetches the pieces and gives their bytes, each block as it should be: the target's number and the place.
    fn restore(
        &self,
        targets: &[Target],
        mut pieces: Vec<Piece>,
        hashes: &[PageHash],
        mut write: impl FnMut(usize, &[u8], u64) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        pieces.sort_by_key(|piece| (piece.frame, piece.offset));
        let mut wanted: Vec<Wanted> = pieces.iter().map(|piece| piece.frame).collect();
        wanted.dedup();
        let mut next = 0;
        self.packs.read(&wanted, |number, raw| {
            let frame = wanted[number];
            while let Some(piece) = pieces.get(next).filter(|piece| piece.frame == frame) {
                let target = &targets[piece.target];
                let bytes = self.check(target, piece, &hashes[piece.hashes.clone()], raw)?;
                write(piece.target, bytes, u64::from(piece.first) * BLOCK)?;
                Tally::add(&self.tally.written, bytes.len() as u64);
                (self.done)(bytes.len() as u64);
                next += 1;
            }
            Ok(())
        })
    }

    /// Opens or makes a file of the right size, owner and mode.
    pub(crate) fn open(&self, target: &Target) -> Result<Opened, RestoreError> {
        let size = target.map.size();
        let io = |doing| move |error| RestoreError::io(doing, &target.path, error);
        if self.delta
            && let Some(file) = existing(&target.path).map_err(io("open"))?
        {
            self.own(&file, &target.path, target.mode)?;
            let before = file.metadata().map_err(io("stat"))?.len();
            let opened = Opened {
                file,
                is_old: true,
                is_changed: AtomicBool::new(false),
            };
            if before != size {
                // What is added is a hole, and compared like all else.
                opened.file.set_len(size).map_err(io("truncate"))?;
                self.changed(&opened);
            }
            // A favour, which a file system may refuse.
            let _ = rustix::fs::fadvise(&opened.file, 0, None, Advice::Sequential);
            return Ok(opened);
        }
        if self.delta {
            remove_other(&target.path).map_err(io("remove"))?;
        }
        let file = OpenOptions::new()
            .write(true)
            .read(true)
            .create_new(true)
            .mode(0o600)
            .open(&target.path)
            .map_err(io("create"))?;
        self.own(&file, &target.path, target.mode)?;
        file.set_len(size).map_err(io("extend"))?;
        let opened = Opened {
            file,
            is_old: false,
            is_changed: AtomicBool::new(false),
        };
        self.changed(&opened);
        Ok(opened)
    }

    fn changed(&self, opened: &Opened) {
        if !opened.is_changed.swap(true, Ordering::Relaxed) {
            Tally::add(&self.tally.files, 1);
        }
    }

    /// The pieces of those of the blocks that have to be written.
    fn gather(
        &self,
        number: usize,
        target: &Target,
        opened: &Opened,
        blocks: Range<u32>,
        pieces: &mut Vec<Piece>,
        hashes: &mut Vec<PageHash>,
    ) -> Result<(), RestoreError> {
        let map = &target.map;
        let dirty = if opened.is_old {
            Some(self.compare(target, opened, blocks.clone())?)
        } else {
            None
        };
        let before = pieces.len();
        collect(number, target, blocks.clone(), dirty.as_deref(), pieces, hashes);
        if pieces.len() > before {
            self.changed(opened);
        }
        let bytes =
            |blocks: Range<u32>| -> u64 { blocks.map(|block| u64::from(map.block_bytes(block))).sum() };
        let stored: u64 = map
            .runs_between(blocks.start, blocks.end)
            .filter(|run| run.extent.source != Source::Zero)
            .map(|run| bytes(run.extent.first..run.extent.end()))
            .sum();
        let written: u64 = pieces[before..]
            .iter()
            .map(|piece| bytes(piece.first..piece.first + piece.hashes.len() as u32))
            .sum();
        Tally::add(&self.tally.kept, stored - written);
        (self.done)(bytes(blocks) - written);
        Ok(())
    }

    pub(crate) fn own(&self, file: &File, path: &Path, mode: u32) -> Result<(), RestoreError> {
        if self.owner.give {
            fchown(file, Some(self.owner.uid), Some(self.owner.gid))
                .map_err(|error| RestoreError::io("change the owner of", path, error))?;
        }
        set_mode(file, mode).map_err(|error| RestoreError::io("set the mode of", path, error))
    }

    /// Which of the blocks of a file that was there before are not as they should be. Zero blocks are put right at
    /// once.
    fn compare(
        &self,
        target: &Target,
        opened: &Opened,
        blocks: Range<u32>,
    ) -> Result<Vec<bool>, RestoreError> {
        let map = &target.map;
        let io = |doing| move |error| RestoreError::io(doing, &target.path, error);
        let mut dirty = vec![false; blocks.len()];
        let mut buffer = vec![0; COMPARED.min(blocks.len() as u32) as usize * BLOCK_SIZE as usize];
        for first in blocks.clone().step_by(COMPARED as usize) {
            let end = blocks.end.min(first.saturating_add(COMPARED));
            let at = u64::from(first) * BLOCK;
            let length = (u64::from(end) * BLOCK).min(map.size()) - at;
            let there = &mut buffer[..length as usize];
            opened.file.read_exact_at(there, at).map_err(io("read"))?;
            for run in map.runs_between(first, end) {
                let begin = ((run.extent.first - first) * BLOCK_SIZE) as usize;
                // The last block of the file may be short.
                let found = there[begin..].chunks(BLOCK_SIZE as usize);
                for (index, (block, found)) in (run.extent.first..run.extent.end()).zip(found).enumerate() {
                    match run.extent.source {
                        Source::Frame { .. } => {
                            dirty[(block - blocks.start) as usize] =
                                run.hashes.get(index) != Some(&PageHash::of(self.hash_key, found));
                        }
                        Source::Zero if is_zero(found) => {}
                        Source::Zero => {
                            punch(&opened.file, u64::from(block) * BLOCK, found.len() as u64)
                                .map_err(io("make a hole in"))?;
                            Tally::add(&self.tally.written, found.len() as u64);
                        }
                    }
                }
            }
        }
        Ok(dirty)
    }

    /// The bytes of a piece, when each block has the hash that it should have.
    fn check<'raw>(
        &self,
        target: &Target,
        piece: &Piece,
        hashes: &[PageHash],
        raw: &'raw [u8],
    ) -> Result<&'raw [u8], RestoreError> {
        let wrong = |block| RestoreError::WrongBlock {
            file: target.name.clone(),
            block,
            object: self.packs.name(piece.frame.pack),
        };
        let begin = piece.offset as usize;
        let mut end = begin;
        for (block, hash) in (piece.first..).zip(hashes) {
            let length = target.map.block_bytes(block) as usize;
            let bytes = raw.get(end..end + length).ok_or_else(|| wrong(block))?;
            if PageHash::of(self.hash_key, bytes) != *hash {
                return Err(wrong(block));
            }
            end += length;
        }
        raw.get(begin..end).ok_or_else(|| wrong(piece.first))
    }

    /// The content of a small file.
    pub(crate) fn content(&self, target: &Target) -> Result<Vec<u8>, RestoreError> {
        let (mut pieces, mut hashes) = (Vec::new(), Vec::new());
        collect(0, target, 0..target.map.blocks(), None, &mut pieces, &mut hashes);
        let mut content = vec![0; target.map.size() as usize];
        for piece in &pieces {
            let raw = self.packs.frame(piece.frame.pack, piece.frame.location)?;
            let bytes = self.check(target, piece, &hashes[piece.hashes.clone()], &raw)?;
            let at = (u64::from(piece.first) * BLOCK) as usize;
            if let Some(place) = content.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
        Ok(content)
    }

    /// A file of that size with nothing in it.
    pub(crate) fn hollow(&self, path: &Path, mode: u32, size: u64) -> Result<(), RestoreError> {
        remove_other(path).map_err(|error| RestoreError::io("remove", path, error))?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .map_err(|error| RestoreError::io("create", path, error))?;
        file.set_len(size)
            .map_err(|error| RestoreError::io("extend", path, error))?;
        self.own(&file, path, mode)?;
        (self.done)(size);
        Ok(())
    }
}

/// The pieces of those of the blocks that have to be written: all, or the `dirty` ones.
fn collect(
    number: usize,
    target: &Target,
    blocks: Range<u32>,
    dirty: Option<&[bool]>,
    pieces: &mut Vec<Piece>,
    hashes: &mut Vec<PageHash>,
) {
    for run in target.map.runs_between(blocks.start, blocks.end) {
        let Source::Frame { frame, offset } = run.extent.source else {
            continue;
        };
        let Some(frame) = target.map.frames().get(frame as usize) else {
            continue;
        };
        let wanted = Wanted {
            pack: target.packs.get(frame.pack as usize).copied().unwrap_or(u32::MAX),
            location: frame.location,
        };
        let needed = |block: u32| dirty.is_none_or(|dirty| dirty[(block - blocks.start) as usize]);
        let mut block = run.extent.first;
        while block < run.extent.end() {
            if !needed(block) {
                block += 1;
                continue;
            }
            let first = block;
            while block < run.extent.end() && needed(block) {
                block += 1;
            }
            let skipped = (first - run.extent.first) as usize;
            let from = hashes.len();
            hashes.extend_from_slice(&run.hashes[skipped..skipped + (block - first) as usize]);
            pieces.push(Piece {
                frame: wanted,
                offset: offset + (first - run.extent.first) * BLOCK_SIZE,
                target: number,
                first,
                hashes: from..hashes.len(),
            });
        }
    }
}

/// An existing regular file, never through a link.
fn existing(path: &Path) -> io::Result<Option<File>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map(Some)
}

fn reopen(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
}

/// Removes what is at the place of a file and is none.
fn remove_other(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(metadata) if !metadata.is_file() => fs::remove_file(path),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

pub(crate) fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))
}

/// Makes the bytes zero, as a hole where the file system can.
fn punch(file: &File, at: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, at, length) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            let zeros = [0; BLOCK_SIZE as usize];
            let length = usize::try_from(length).unwrap_or(zeros.len()).min(zeros.len());
            file.write_all_at(&zeros[..length], at)
        }
        Err(error) => Err(error.into()),
    }
}
