//! What every worker does that reads files: read, verify, hash, compare, gather.
//!
//! A worker holds 1 MiB of a file at a time, and its pack. What it must know of a file's older state is read
//! when the file is begun and dropped when it is done.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use pgmahout_types::repository::FileId;

use super::chunk::Chunk;
use super::error::CreateError;
use super::filter::Filter;
use super::pack::{PackWriter, PackedFrame};
use super::parent::{ParentFile, file_id};
use super::plan::{SplitFile, Task};
use super::resume::ResumedFile;
use super::shared::{Known, Shared, Stage};
use super::sink::FinishedFile;
use super::throttle::Throttle;
use crate::physical::files::classify::FileKind;
use crate::physical::files::residency::{CachePolicy, ColdReader, PIECE};
use crate::physical::files::stamp;
use crate::physical::files::walk::{FileEntry, FileList};
use crate::physical::page::BLOCK_SIZE;
use crate::physical::page::checksum::{self, Mismatch};
use crate::physical::page::verify::judge;

/// Blocks that are read at once.
const PIECE_BLOCKS: u32 = (PIECE / BLOCK_SIZE) as u32;

/// What all workers share that read files.
pub(super) struct Job<'a> {
    /// What all workers share, wherever the files come from.
    pub(super) shared: &'a Shared<'a>,
    /// The files.
    pub(super) list: &'a FileList,
    /// Where they are.
    pub(super) data_dir: &'a std::path::Path,
    /// What is to be done.
    pub(super) tasks: Vec<Task>,
    /// Which of it is next.
    pub(super) next: AtomicUsize,
    /// The limit on reading.
    pub(super) throttle: Throttle,
    /// What may be left unread.
    pub(super) filter: Filter,
}

/// One thread.
pub(super) struct Worker<'a> {
    job: &'a Job<'a>,
    packs: PackWriter,
    buffer: Vec<u8>,
    mismatches: Vec<Mismatch>,
}

/// A file that is being read.
struct OpenFile<'a> {
    entry: FileEntry<'a>,
    kind: FileKind,
    id: FileId,
    reader: ColdReader,
}

impl<'a> Worker<'a> {
    /// A worker that puts blocks into these packs.
    pub(super) fn new(job: &'a Job<'a>, packs: PackWriter) -> Self {
        Self {
            job,
            packs,
            buffer: vec![0; PIECE],
            mismatches: Vec::new(),
        }
    }

    /// Takes tasks until there are none, and gives its packs back, the last of them unfinished. When it is
    /// stopped, what it has is stored for the next backup.
    pub(super) fn run(mut self) -> Result<PackWriter, CreateError> {
        if self.job.shared.nice > 0 {
            // On Linux this is the priority of the thread alone. Whether it can be lowered is of no consequence.
            let _ = rustix::process::setpriority_process(None, self.job.shared.nice);
        }
        match self.tasks() {
            Ok(()) => Ok(self.packs),
            Err(error) => {
                self.job.shared.cancellation.cancel();
                // It spares the next backup work; that it was stopped is what is to be told.
                let _ = self.packs.finish();
                Err(error)
            }
        }
    }

    fn tasks(&mut self) -> Result<(), CreateError> {
        while let Some(task) = self.job.tasks.get(self.job.next.fetch_add(1, Ordering::Relaxed)) {
            match task {
                Task::Files(numbers) => self.files(numbers)?,
                Task::Part { file, first, end } => self.part(file, *first, *end)?,
            }
        }
        Ok(())
    }

    /// Reads whole files.
    fn files(&mut self, numbers: &[u32]) -> Result<(), CreateError> {
        let mut read = Vec::with_capacity(numbers.len());
        for &number in numbers {
            let entry = self.job.list.file(number as usize);
            let path = entry.path();
            let id = file_id(&self.job.shared.key, &path);
            if entry.size() == 0 {
                read.push((number, id, 0, Chunk::new(0), None));
                continue;
            }
            let parent = self.job.shared.parent_file(id, &path)?;
            let end = u32::try_from(entry.size().div_ceil(BLOCK_SIZE as u64)).unwrap_or(u32::MAX);
            if let Some(chunk) = self.untouched(entry, id, &path, parent.as_ref(), 0, end)? {
                read.push((number, id, entry.size(), chunk, parent));
                continue;
            }
            let Some(mut file) = self.open(entry, id)? else {
                continue;
            };
            let resumed = self.job.shared.resumed_file(id)?;
            let chunk = self.range(&mut file, parent.as_ref(), resumed.as_ref(), 0, end)?;
            read.push((number, id, entry.size(), chunk, parent));
        }
        let frames = self.take_frames()?;
        let begun = Instant::now();
        for (number, id, size, chunk, parent) in &read {
            self.job.shared.sink.finish(&FinishedFile {
                number: *number,
                id: *id,
                size: *size,
                parts: vec![(chunk, &frames)],
                parent: parent.as_ref(),
            })?;
        }
        self.job.shared.counts.add(Stage::Finish, begun);
        Ok(())
    }

    /// Reads a part of a large file; whoever reads the last part finishes the file.
    fn part(&mut self, split: &SplitFile, first: u32, end: u32) -> Result<(), CreateError> {
        let entry = self.job.list.file(split.number as usize);
        let path = entry.path();
        let id = file_id(&self.job.shared.key, &path);
        if first == 0 {
            self.job
                .shared
                .progress
                .set_detail(&String::from_utf8_lossy(&path));
        }
        let known = split.with(|state| state.looked.then(|| state.parent.clone()));
        let parent = if let Some(parent) = known {
            parent
        } else {
            // Two workers may both look: they find the same.
            let parent = self.job.shared.parent_file(id, &path)?.map(Arc::new);
            split.with(|state| {
                state.looked = true;
                state.parent.clone_from(&parent);
            });
            parent
        };
        let untouched = self.untouched(entry, id, &path, parent.as_deref(), first, end)?;
        let opened = match untouched {
            Some(_) => None,
            None => self.open(entry, id)?,
        };
        let chunk = match opened {
            _ if untouched.is_some() => untouched.map(|chunk| (chunk, Arc::default())),
            Some(mut file) => {
                let resumed = self.job.shared.resumed_file(id)?;
                let chunk = self.range(&mut file, parent.as_deref(), resumed.as_ref(), first, end)?;
                let frames: Arc<[PackedFrame]> = self.take_frames()?.into();
                Some((chunk, frames))
            }
            None => None,
        };
        split.with(|state| match chunk {
            Some(part) => state.parts.push(part),
            None => state.vanished = true,
        });
        if let Some(state) = split.done()
            && !state.vanished
        {
            let begun = Instant::now();
            self.job.shared.sink.finish(&FinishedFile {
                number: split.number,
                id,
                size: entry.size(),
                parts: state
                    .parts
                    .iter()
                    .map(|(chunk, frames)| (chunk, &**frames))
                    .collect(),
                parent: parent.as_deref(),
            })?;
            self.job.shared.counts.add(Stage::Finish, begun);
        }
        Ok(())
    }

    /// A part of a file that nobody has written to since the older backup, without reading more of it than a sample.
    /// `None` where it is to be read.
    fn untouched(
        &mut self,
        entry: FileEntry<'a>,
        id: FileId,
        path: &[u8],
        parent: Option<&ParentFile>,
        first: u32,
        end: u32,
    ) -> Result<Option<Chunk>, CreateError> {
        let job = self.job;
        let (Some(older), Some(parent), true) = (&job.shared.parent, parent, job.filter.is_on()) else {
            return Ok(None);
        };
        let stamp = entry.stamp();
        let same = stamp.is_some() && older.stamp(id, path) == stamp;
        if !same || !parent.is_whole || parent.map.size() != entry.size() {
            return Ok(None);
        }
        let position = |block: u32| (u64::from(block) * BLOCK_SIZE as u64).min(entry.size());
        let pieces = (first..end).step_by(PIECE_BLOCKS as usize);
        let sample: Vec<u32> = pieces.filter(|block| job.filter.samples(id, *block)).collect();
        if !sample.is_empty() {
            let Some(mut file) = self.open(entry, id)? else {
                return Ok(None);
            };
            for block in sample {
                let length = position((block + PIECE_BLOCKS).min(end)) - position(block);
                if !self.is_as_it_was(&mut file, parent, block, length as usize)? {
                    return Ok(None);
                }
            }
        }
        let bytes = position(end) - position(first);
        job.shared.counts.unread.fetch_add(bytes, Ordering::Relaxed);
        job.shared.progress.advance(bytes);
        let mut chunk = Chunk::new(first);
        chunk.untouched(end - first);
        Ok(Some(chunk))
    }

    /// Reads a piece of a file that nobody seems to have written to, and compares it. `false` where somebody has
    /// written to it since it was listed.
    ///
    /// What is different without that is an error: then what else was not read cannot be relied on. But for damaged
    /// pages, which are noted as such.
    fn is_as_it_was(
        &mut self,
        file: &mut OpenFile<'_>,
        parent: &ParentFile,
        block: u32,
        length: usize,
    ) -> Result<bool, CreateError> {
        let job = self.job;
        job.throttle.take(length);
        let position = u64::from(block) * BLOCK_SIZE as u64;
        let read = file
            .reader
            .read_at(&mut self.buffer[..length], position)
            .map_err(|error| CreateError::io("read", file.entry.path_in(job.data_dir), error))?;
        job.shared.counts.read.fetch_add(read as u64, Ordering::Relaxed);
        if read == length && job.shared.is_same(parent, block, &self.buffer[..length]) {
            return Ok(true);
        }
        if stamp::now(file.reader.file()) != file.entry.stamp() {
            return Ok(false);
        }
        if job.shared.checksums {
            self.verify(file, block, read)?;
            if !self.mismatches.is_empty() {
                return Ok(true);
            }
        }
        Err(CreateError::Untraced {
            file: file.entry.path_in(job.data_dir),
            since: job.shared.parent.as_ref().map(|parent| parent.label),
        })
    }

    /// Opens a file; `None` where it has vanished, which the WAL will repeat.
    fn open(&self, entry: FileEntry<'a>, id: FileId) -> Result<Option<OpenFile<'a>>, CreateError> {
        let path = entry.path_in(self.job.data_dir);
        match ColdReader::open(&path, CachePolicy::Preserve) {
            Ok(reader) => Ok(Some(OpenFile {
                entry,
                kind: entry.kind(),
                id,
                reader,
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.job.shared.counts.vanished.fetch_add(1, Ordering::Relaxed);
                self.job.shared.progress.advance(entry.size());
                Ok(None)
            }
            Err(error) => Err(CreateError::io("read", &path, error)),
        }
    }

    fn take_frames(&mut self) -> Result<Vec<PackedFrame>, CreateError> {
        let begun = Instant::now();
        let frames = self.packs.take_frames();
        self.job.shared.counts.add(Stage::Pack, begun);
        frames
    }

    /// Reads the blocks from `first` up to but without `end`, as far as the file had them when it was listed.
    ///
    /// A file that has become shorter since keeps its length, where it consists of pages: its lost end is
    /// zero. The WAL that is replayed over it begins before it was truncated, and truncates it again; and were
    /// a segment shorter than full, the segments after it would not be found to be truncated too (`mdtruncate`
    /// and `mdnblocks` in `src/backend/storage/smgr/md.c`). Any other file ends where it now ends.
    fn range(
        &mut self,
        file: &mut OpenFile<'_>,
        parent: Option<&ParentFile>,
        resumed: Option<&ResumedFile>,
        first: u32,
        end: u32,
    ) -> Result<Chunk, CreateError> {
        let job = self.job;
        let size = file.entry.size();
        let position = |block: u32| (u64::from(block) * BLOCK_SIZE as u64).min(size);
        let has_pages = matches!(file.kind, FileKind::Relation(_) | FileKind::Slru);
        let mut chunk = Chunk::new(first);
        let mut block = first;
        while block < end {
            if job.shared.cancellation.is_cancelled() {
                return Err(CreateError::Interrupted);
            }
            let next = (block + PIECE_BLOCKS).min(end);
            let wanted = (position(next) - position(block)) as usize;
            job.throttle.take(wanted);
            let begun = Instant::now();
            let read = file
                .reader
                .read_at(&mut self.buffer[..wanted], position(block))
                .map_err(|error| CreateError::io("read", file.entry.path_in(job.data_dir), error))?;
            job.shared.counts.add(Stage::Read, begun);
            job.shared.counts.read.fetch_add(read as u64, Ordering::Relaxed);
            job.shared.progress.advance(wanted as u64);
            let mut length = wanted;
            if read < wanted {
                if has_pages {
                    self.buffer[read..wanted].fill(0);
                } else {
                    length = read;
                    chunk.ended_at = Some(position(block) + read as u64);
                }
                job.shared.counts.shortened.fetch_add(1, Ordering::Relaxed);
            }
            if job.shared.checksums {
                self.verify(file, block, length)?;
            }
            let known = Known {
                id: file.id,
                parent,
                resumed,
            };
            job.shared
                .compare(&mut self.packs, known, block, &self.buffer[..length], &mut chunk)?;
            if length < wanted {
                break;
            }
            block = next;
        }
        Ok(chunk)
    }

    /// Verifies the checksums of the pages in the buffer, and reads those again that fail.
    fn verify(&mut self, file: &OpenFile<'_>, block: u32, length: usize) -> Result<(), CreateError> {
        let Some(relation) = file.kind.relation() else {
            return Ok(());
        };
        let job = self.job;
        let begun = Instant::now();
        let number = |block: u32| checksum::block_number(relation.segment, job.shared.segment_blocks, block);
        self.mismatches.clear();
        checksum::verify(&self.buffer[..length], number(block), &mut self.mismatches);
        for mismatch in &self.mismatches {
            let (pages, _) = self.buffer.as_chunks_mut::<BLOCK_SIZE>();
            let page = &mut pages[mismatch.index];
            let own = block + mismatch.index as u32;
            let mut source = file.reader.file();
            let finding = judge(&mut source, page, own, number(own), job.shared.start)
                .map_err(|error| CreateError::io("read", file.entry.path_in(job.data_dir), error))?;
            job.shared.note(file.entry.index() as u32, finding);
        }
        job.shared.counts.add(Stage::Verify, begun);
        Ok(())
    }
}
