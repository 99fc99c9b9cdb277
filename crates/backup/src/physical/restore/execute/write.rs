//! Writing files: from nothing, or over what is there.
//!
//! Every block is compared with its hash before it is written. Blocks that are zero are never written: a new
//! file has holes there, and in one that existed holes are made.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use pgmahout_types::repository::{BLOCK_SIZE, PageHash, PageMap, Source};
use rustix::fs::{FallocateFlags, OFlags};

use super::super::error::RestoreError;
use super::super::owner::Ownership;
use super::fetch::{Packs, Wanted};
use crate::physical::page::hash::is_zero;

/// Blocks of an existing file that are read and compared at a time.
const COMPARED: u32 = 128;
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
    hashes: std::ops::Range<usize>,
}

impl Writer<'_> {
    /// Brings about several files, of which the frames are read together.
    pub(crate) fn group(&self, targets: &[Target]) -> Result<(), RestoreError> {
        let mut open: Vec<Option<File>> = Vec::with_capacity(targets.len());
        let mut pieces = Vec::new();
        // Few files stay open: a group of many has small ones, which are opened again when they are written.
        let keep_open = targets.len() <= 8;
        let mut hashes: Vec<PageHash> = Vec::new();
        for (number, target) in targets.iter().enumerate() {
            let (file, dirty) = self.prepare(target)?;
            self.collect(number, target, dirty.as_deref(), &mut pieces, &mut hashes);
            open.push(keep_open.then_some(file));
        }
        pieces.sort_by_key(|piece| (piece.frame, piece.offset));
        let mut wanted: Vec<Wanted> = pieces.iter().map(|piece| piece.frame).collect();
        wanted.dedup();
        let mut next = 0;
        self.packs.read(&wanted, |number, raw| {
            let frame = wanted[number];
            while let Some(piece) = pieces.get(next).filter(|piece| piece.frame == frame) {
                let target = &targets[piece.target];
                let bytes = self.check(target, piece, &hashes[piece.hashes.clone()], raw)?;
                let at = u64::from(piece.first) * BLOCK;
                let written = match &open[piece.target] {
                    Some(file) => file.write_all_at(bytes, at),
                    None => reopen(&target.path).and_then(|file| file.write_all_at(bytes, at)),
                };
                written.map_err(|error| RestoreError::io("write", &target.path, error))?;
                Tally::add(&self.tally.written, bytes.len() as u64);
                (self.done)(bytes.len() as u64);
                next += 1;
            }
            Ok(())
        })
    }

    /// Opens or makes a file of the right size, owner and mode. The blocks that have to be written, where not
    /// all of them have to.
    fn prepare(&self, target: &Target) -> Result<(File, Option<Vec<bool>>), RestoreError> {
        let size = target.map.size();
        let io = |doing| move |error| RestoreError::io(doing, &target.path, error);
        if self.delta
            && let Some(file) = existing(&target.path).map_err(io("open"))?
        {
            self.own(&file, &target.path, target.mode)?;
            let before = file.metadata().map_err(io("stat"))?.len();
            let dirty = self.compare(target, &file, before)?;
            if before != size {
                file.set_len(size).map_err(io("truncate"))?;
            }
            let zero = target.map.zero_bytes();
            let stored_dirty: u64 = self.dirty_bytes(target, &dirty);
            let kept = size.saturating_sub(zero).saturating_sub(stored_dirty);
            Tally::add(&self.tally.kept, kept);
            if stored_dirty > 0 || before != size {
                Tally::add(&self.tally.files, 1);
            }
            (self.done)(size - stored_dirty);
            return Ok((file, Some(dirty)));
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
        Tally::add(&self.tally.files, 1);
        (self.done)(target.map.zero_bytes());
        Ok((file, None))
    }

    pub(crate) fn own(&self, file: &File, path: &Path, mode: u32) -> Result<(), RestoreError> {
        if self.owner.give {
            fchown(file, Some(self.owner.uid), Some(self.owner.gid))
                .map_err(|error| RestoreError::io("change the owner of", path, error))?;
        }
        set_mode(file, mode).map_err(|error| RestoreError::io("set the mode of", path, error))
    }

    /// Which blocks of a file that exists are not as they should be. Zero blocks are put right at once.
    fn compare(&self, target: &Target, file: &File, before: u64) -> Result<Vec<bool>, RestoreError> {
        let map = &target.map;
        let io = |doing| move |error| RestoreError::io(doing, &target.path, error);
        let mut dirty = vec![true; map.blocks() as usize];
        let mut buffer = vec![0; COMPARED as usize * BLOCK_SIZE as usize];
        let mut first = 0;
        while first < map.blocks() {
            let at = u64::from(first) * BLOCK;
            let count = COMPARED.min(map.blocks() - first);
            let there = before.saturating_sub(at).min(u64::from(count) * BLOCK) as usize;
            let there = &mut buffer[..there];
            file.read_exact_at(there, at).map_err(io("read"))?;
            for run in map.runs_between(first, first + count) {
                for (index, block) in (run.extent.first..run.extent.end()).enumerate() {
                    let begin = ((block - first) * BLOCK_SIZE) as usize;
                    let found = there.get(begin..).map(|rest| {
                        // The last block of the file may be short.
                        &rest[..rest.len().min(map.block_bytes(block) as usize)]
                    });
                    let whole = found.filter(|found| found.len() == map.block_bytes(block) as usize);
                    let right = match (run.extent.source, whole) {
                        (Source::Zero, Some(found)) if is_zero(found) => true,
                        // What is not there becomes a hole when the file is extended.
                        (Source::Zero, None) if found.is_none_or(is_zero) => true,
                        (Source::Zero, _) => {
                            let length = u64::from(map.block_bytes(block));
                            punch(file, u64::from(block) * BLOCK, length).map_err(io("make a hole in"))?;
                            Tally::add(&self.tally.written, length);
                            true
                        }
                        (Source::Frame { .. }, Some(found)) => {
                            run.hashes.get(index) == Some(&PageHash::of(self.hash_key, found))
                        }
                        (Source::Frame { .. }, None) => false,
                    };
                    dirty[block as usize] = !right;
                }
            }
            first += count;
        }
        Ok(dirty)
    }

    #[allow(clippy::unused_self, reason = "it belongs to the others")]
    fn dirty_bytes(&self, target: &Target, dirty: &[bool]) -> u64 {
        (0_u32..)
            .zip(dirty)
            .filter(|(_, dirty)| **dirty)
            .map(|(block, _)| u64::from(target.map.block_bytes(block)))
            .sum()
    }

    /// The pieces of the blocks that have to be written.
    #[allow(clippy::unused_self, reason = "it belongs to the others")]
    fn collect(
        &self,
        number: usize,
        target: &Target,
        dirty: Option<&[bool]>,
        pieces: &mut Vec<Piece>,
        hashes: &mut Vec<PageHash>,
    ) {
        for run in target.map.runs() {
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
            let needed = |block: u32| dirty.is_none_or(|dirty| dirty[block as usize]);
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
        self.collect(0, target, None, &mut pieces, &mut hashes);
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
