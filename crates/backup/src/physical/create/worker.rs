//! What every worker does: read, verify, hash, compare, gather.
//!
//! A worker holds 1 MiB of a file at a time, and its pack. What it must know of a file's older state is read
//! when the file is begun and dropped when it is done.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pgmahout_procedure::report::Progress;
use pgmahout_types::Lsn;
use pgmahout_types::repository::page_map::Run;
use pgmahout_types::repository::{FileId, PageHash, Source};
use tokio_util::sync::CancellationToken;

use super::chunk::Chunk;
use super::error::CreateError;
use super::pack::{PackWriter, PackedFrame};
use super::parent::{Parent, ParentFile, file_id};
use super::plan::{SplitFile, Task};
use super::resume::{Resume, ResumedFile};
use super::sink::{FinishedFile, Sink};
use super::throttle::Throttle;
use crate::physical::files::classify::FileKind;
use crate::physical::files::residency::{CachePolicy, ColdReader, PIECE};
use crate::physical::files::walk::{FileEntry, FileList};
use crate::physical::page::BLOCK_SIZE;
use crate::physical::page::checksum::{self, Mismatch};
use crate::physical::page::hash::is_zero;
use crate::physical::page::verify::{BadPage, Finding, Suspect, judge};

/// Blocks that are read at once.
const PIECE_BLOCKS: u32 = (PIECE / BLOCK_SIZE) as u32;
/// Damaged pages that are listed; all of them are counted.
const MOST_FINDINGS: usize = 10_000;

/// What all workers share.
pub(super) struct Job<'a> {
    /// The files.
    pub(super) list: &'a FileList,
    /// Where they are.
    pub(super) data_dir: &'a std::path::Path,
    /// What is to be done.
    pub(super) tasks: Vec<Task>,
    /// Which of it is next.
    pub(super) next: AtomicUsize,
    /// What they are compared with.
    pub(super) parent: Option<Parent>,
    /// What an interrupted backup left.
    pub(super) resume: Option<Resume>,
    /// Where files end up.
    pub(super) sink: Sink,
    /// The repository's key of hashes.
    pub(super) key: [u8; 32],
    /// Where the backup's WAL begins.
    pub(super) start: Lsn,
    /// Whether pages carry checksums.
    pub(super) checksums: bool,
    /// Pages in a file of a large relation.
    pub(super) segment_blocks: u32,
    /// The limit on reading.
    pub(super) throttle: Throttle,
    /// By how much the workers' priority is lowered.
    pub(super) nice: i32,
    /// What is shown to people.
    pub(super) progress: &'a dyn Progress,
    /// Stops everything.
    pub(super) cancellation: CancellationToken,
    /// Damaged pages.
    pub(super) findings: Mutex<Findings>,
    /// What was done.
    pub(super) counts: Counts,
}

/// What was done, and how long it took all workers together.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Bytes read.
    pub(super) read: AtomicU64,
    /// Raw bytes stored.
    pub(super) new: AtomicU64,
    /// Raw bytes taken over from an interrupted backup.
    pub(super) resumed: AtomicU64,
    /// Files that vanished before they were read.
    pub(super) vanished: AtomicU64,
    /// Files that were shorter than when they were listed.
    pub(super) shortened: AtomicU64,
    nanoseconds: [AtomicU64; STAGES.len()],
}

/// What takes time.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Read,
    Verify,
    Compare,
    Pack,
    Parent,
    Finish,
}

const STAGES: [&str; 6] = ["read", "verify", "hash and compare", "pack", "parent", "finish"];

impl Counts {
    fn add(&self, stage: Stage, since: Instant) {
        self.add_time(stage, since.elapsed());
    }

    fn add_time(&self, stage: Stage, spent: Duration) {
        let spent = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds[stage as usize].fetch_add(spent, Ordering::Relaxed);
    }

    /// How long each stage took, for the log.
    pub(super) fn stages(&self) -> Vec<(&'static str, Duration)> {
        STAGES
            .iter()
            .zip(&self.nanoseconds)
            .map(|(name, spent)| (*name, Duration::from_nanos(spent.load(Ordering::Relaxed))))
            .collect()
    }
}

/// Damaged pages, by the number of the file.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Pages that are damaged.
    pub(super) bad: Vec<(u32, BadPage)>,
    /// Pages that may be, which the end of the backup will tell.
    pub(super) suspects: Vec<(u32, Suspect)>,
    /// Damaged pages that are not listed.
    pub(super) unlisted: u64,
    /// Pages that were seen half written.
    pub(super) torn: u64,
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
        if self.job.nice > 0 {
            // On Linux this is the priority of the thread alone. Whether it can be lowered is of no consequence.
            let _ = rustix::process::setpriority_process(None, self.job.nice);
        }
        match self.tasks() {
            Ok(()) => Ok(self.packs),
            Err(error) => {
                self.job.cancellation.cancel();
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
            let id = file_id(&self.job.key, &path);
            if entry.size() == 0 {
                read.push((number, id, 0, Chunk::new(0), None));
                continue;
            }
            let Some(mut file) = self.open(entry, id)? else {
                continue;
            };
            let parent = self.parent(id, &path)?;
            let resumed = self.resumed(id)?;
            let end = u32::try_from(entry.size().div_ceil(BLOCK_SIZE as u64)).unwrap_or(u32::MAX);
            let chunk = self.range(&mut file, parent.as_ref(), resumed.as_ref(), 0, end)?;
            read.push((number, id, entry.size(), chunk, parent));
        }
        let frames = self.take_frames()?;
        let begun = Instant::now();
        for (number, id, size, chunk, parent) in &read {
            self.job.sink.finish(&FinishedFile {
                number: *number,
                id: *id,
                size: *size,
                parts: vec![(chunk, &frames)],
                parent: parent.as_ref(),
            })?;
        }
        self.job.counts.add(Stage::Finish, begun);
        Ok(())
    }

    /// Reads a part of a large file; whoever reads the last part finishes the file.
    fn part(&mut self, split: &SplitFile, first: u32, end: u32) -> Result<(), CreateError> {
        let entry = self.job.list.file(split.number as usize);
        let path = entry.path();
        let id = file_id(&self.job.key, &path);
        if first == 0 {
            self.job.progress.set_detail(&String::from_utf8_lossy(&path));
        }
        let known = split.with(|state| state.looked.then(|| state.parent.clone()));
        let parent = if let Some(parent) = known {
            parent
        } else {
            // Two workers may both look: they find the same.
            let parent = self.parent(id, &path)?.map(Arc::new);
            split.with(|state| {
                state.looked = true;
                state.parent.clone_from(&parent);
            });
            parent
        };
        let chunk = match self.open(entry, id)? {
            Some(mut file) => {
                let resumed = self.resumed(id)?;
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
            self.job.sink.finish(&FinishedFile {
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
            self.job.counts.add(Stage::Finish, begun);
        }
        Ok(())
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
                self.job.counts.vanished.fetch_add(1, Ordering::Relaxed);
                self.job.progress.advance(entry.size());
                Ok(None)
            }
            Err(error) => Err(CreateError::io("read", &path, error)),
        }
    }

    fn parent(&self, id: FileId, path: &[u8]) -> Result<Option<ParentFile>, CreateError> {
        let Some(parent) = &self.job.parent else {
            return Ok(None);
        };
        let begun = Instant::now();
        let file = parent.file(id, path);
        self.job.counts.add(Stage::Parent, begun);
        file
    }

    fn resumed(&self, id: FileId) -> Result<Option<ResumedFile>, CreateError> {
        self.job
            .resume
            .as_ref()
            .map_or(Ok(None), |resume| resume.file(id))
    }

    fn take_frames(&mut self) -> Result<Vec<PackedFrame>, CreateError> {
        let begun = Instant::now();
        let frames = self.packs.take_frames();
        self.job.counts.add(Stage::Pack, begun);
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
            if job.cancellation.is_cancelled() {
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
            job.counts.add(Stage::Read, begun);
            job.counts.read.fetch_add(read as u64, Ordering::Relaxed);
            job.progress.advance(wanted as u64);
            let mut length = wanted;
            if read < wanted {
                if has_pages {
                    self.buffer[read..wanted].fill(0);
                } else {
                    length = read;
                    chunk.ended_at = Some(position(block) + read as u64);
                }
                job.counts.shortened.fetch_add(1, Ordering::Relaxed);
            }
            if job.checksums {
                self.verify(file, block, length)?;
            }
            self.compare(file.id, parent, resumed, block, length, &mut chunk)?;
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
        let number = |block: u32| checksum::block_number(relation.segment, job.segment_blocks, block);
        self.mismatches.clear();
        checksum::verify(&self.buffer[..length], number(block), &mut self.mismatches);
        for mismatch in &self.mismatches {
            let (pages, _) = self.buffer.as_chunks_mut::<BLOCK_SIZE>();
            let page = &mut pages[mismatch.index];
            let own = block + mismatch.index as u32;
            let mut source = file.reader.file();
            let finding = judge(&mut source, page, own, number(own), job.start)
                .map_err(|error| CreateError::io("read", file.entry.path_in(job.data_dir), error))?;
            let mut findings = job.findings.lock().unwrap_or_else(PoisonError::into_inner);
            let file_number = file.entry.index() as u32;
            match finding {
                Finding::Good | Finding::Gone | Finding::Changed => findings.torn += 1,
                Finding::Suspect(suspect) if findings.suspects.len() < MOST_FINDINGS => {
                    findings.suspects.push((file_number, suspect));
                }
                Finding::Bad(bad) if findings.bad.len() < MOST_FINDINGS => {
                    findings.bad.push((file_number, bad));
                }
                Finding::Suspect(_) | Finding::Bad(_) => findings.unlisted += 1,
            }
        }
        job.counts.add(Stage::Verify, begun);
        Ok(())
    }

    /// Compares the blocks in the buffer with the older backup, and gathers those that it does not have.
    fn compare(
        &mut self,
        id: FileId,
        parent: Option<&ParentFile>,
        resumed: Option<&ResumedFile>,
        first: u32,
        length: usize,
        chunk: &mut Chunk,
    ) -> Result<(), CreateError> {
        let job = self.job;
        let begun = Instant::now();
        let mut packing = Duration::ZERO;
        let count = length.div_ceil(BLOCK_SIZE) as u32;
        let mut older = Older::new(parent, first, first + count);
        for (bytes, block) in self.buffer[..length].chunks(BLOCK_SIZE).zip(first..) {
            let was = older.at(block);
            if is_zero(bytes) {
                chunk.zero(was == Was::Zero);
                continue;
            }
            let hash = PageHash::of(&job.key, bytes);
            if was == Was::Stored(hash) {
                chunk.parent();
                continue;
            }
            if let Some((frame, offset)) = resumed.and_then(|resumed| resumed.find(block, hash)) {
                job.counts
                    .resumed
                    .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                chunk.resumed_block(hash, frame, offset);
                continue;
            }
            let before = Instant::now();
            let place = self.packs.add(id, block, hash, bytes)?;
            packing += before.elapsed();
            job.counts.new.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            chunk.new_block(hash, place);
        }
        job.counts
            .add_time(Stage::Compare, begun.elapsed().saturating_sub(packing));
        job.counts.add_time(Stage::Pack, packing);
        Ok(())
    }
}

/// What a block was in the older backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Was {
    /// There was none.
    Nothing,
    Zero,
    Stored(PageHash),
}

/// Walks over the blocks of an older map.
struct Older<'a, I> {
    runs: I,
    current: Option<Run<'a>>,
}

impl<'a> Older<'a, Box<dyn Iterator<Item = Run<'a>> + 'a>> {
    fn new(parent: Option<&'a ParentFile>, first: u32, end: u32) -> Self {
        let mut runs: Box<dyn Iterator<Item = Run<'a>> + 'a> = match parent {
            Some(parent) => Box::new(parent.map.runs_between(first, end)),
            None => Box::new(std::iter::empty()),
        };
        let current = runs.next();
        Self { runs, current }
    }

    /// Blocks are asked for in order.
    fn at(&mut self, block: u32) -> Was {
        while let Some(run) = &self.current {
            if block < run.extent.end() {
                return match run.extent.source {
                    Source::Zero => Was::Zero,
                    Source::Frame { .. } => run
                        .hashes
                        .get((block - run.extent.first) as usize)
                        .map_or(Was::Nothing, |hash| Was::Stored(*hash)),
                };
            }
            self.current = self.runs.next();
        }
        Was::Nothing
    }
}
