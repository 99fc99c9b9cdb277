//! What all workers share, and the comparison with the older backup.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pgmahout_procedure::report::Progress;
use pgmahout_types::Lsn;
use pgmahout_types::repository::page_map::Run;
use pgmahout_types::repository::{FileId, PageHash, Source};
use tokio_util::sync::CancellationToken;

use super::chunk::Chunk;
use super::error::CreateError;
use super::pack::PackWriter;
use super::parent::{Parent, ParentFile};
use super::resume::{Resume, ResumedFile};
use super::sink::Sink;
use crate::physical::page::BLOCK_SIZE;
use crate::physical::page::hash::is_zero;
use crate::physical::page::verify::{BadPage, Finding, Suspect};

/// Damaged pages that are listed; all of them are counted.
const MOST_FINDINGS: usize = 10_000;

/// What all workers share, wherever the files come from.
pub(super) struct Shared<'a> {
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

impl Shared<'_> {
    /// What the older backup has of a file.
    pub(super) fn parent_file(&self, id: FileId, path: &[u8]) -> Result<Option<ParentFile>, CreateError> {
        let Some(parent) = &self.parent else {
            return Ok(None);
        };
        let begun = Instant::now();
        let file = parent.file(id, path);
        self.counts.add(Stage::Parent, begun);
        file
    }

    /// What an interrupted backup left of a file.
    pub(super) fn resumed_file(&self, id: FileId) -> Result<Option<ResumedFile>, CreateError> {
        self.resume.as_ref().map_or(Ok(None), |resume| resume.file(id))
    }

    /// Notes what was found of a page of a file.
    pub(super) fn note(&self, file: u32, finding: Finding) {
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        match finding {
            Finding::Good | Finding::Gone | Finding::Changed => findings.torn += 1,
            Finding::Suspect(suspect) if findings.suspects.len() < MOST_FINDINGS => {
                findings.suspects.push((file, suspect));
            }
            Finding::Bad(bad) if findings.bad.len() < MOST_FINDINGS => {
                findings.bad.push((file, bad));
            }
            Finding::Suspect(_) | Finding::Bad(_) => findings.unlisted += 1,
        }
    }

    /// Whether blocks are as the older backup has them.
    pub(super) fn is_same(&self, parent: &ParentFile, first: u32, content: &[u8]) -> bool {
        let count = content.len().div_ceil(BLOCK_SIZE) as u32;
        let mut older = Older::new(Some(parent), first, first + count);
        content.chunks(BLOCK_SIZE).zip(first..).all(|(bytes, block)| {
            let is = if is_zero(bytes) {
                Was::Zero
            } else {
                Was::Stored(PageHash::of(&self.key, bytes))
            };
            older.at(block) == is
        })
    }

    /// Compares blocks with the older backup, and gathers those that it does not have.
    pub(super) fn compare(
        &self,
        packs: &mut PackWriter,
        known: Known<'_>,
        first: u32,
        content: &[u8],
        chunk: &mut Chunk,
    ) -> Result<(), CreateError> {
        let begun = Instant::now();
        let mut packing = Duration::ZERO;
        let count = content.len().div_ceil(BLOCK_SIZE) as u32;
        let mut older = Older::new(known.parent, first, first + count);
        for (bytes, block) in content.chunks(BLOCK_SIZE).zip(first..) {
            let was = older.at(block);
            if is_zero(bytes) {
                chunk.zero(was == Was::Zero);
                continue;
            }
            let hash = PageHash::of(&self.key, bytes);
            if was == Was::Stored(hash) {
                chunk.parent();
                continue;
            }
            if let Some((frame, offset)) = known.resumed.and_then(|resumed| resumed.find(block, hash)) {
                self.counts
                    .resumed
                    .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                chunk.resumed_block(hash, frame, offset);
                continue;
            }
            let before = Instant::now();
            let place = packs.add(known.id, block, hash, bytes)?;
            packing += before.elapsed();
            self.counts.new.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            chunk.new_block(hash, place);
        }
        self.counts
            .add_time(Stage::Compare, begun.elapsed().saturating_sub(packing));
        self.counts.add_time(Stage::Pack, packing);
        Ok(())
    }
}

/// What is known of a file.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    /// What tells it apart.
    pub(super) id: FileId,
    /// What the older backup has of it.
    pub(super) parent: Option<&'a ParentFile>,
    /// What an interrupted backup left of it.
    pub(super) resumed: Option<&'a ResumedFile>,
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
    /// Bytes of files that nobody has written to, which were not read.
    pub(super) unread: AtomicU64,
    /// Files that vanished before they were read.
    pub(super) vanished: AtomicU64,
    /// Files that were shorter than when they were listed.
    pub(super) shortened: AtomicU64,
    nanoseconds: [AtomicU64; STAGES.len()],
}

/// What takes time.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stage {
    Read,
    Verify,
    Compare,
    Pack,
    Parent,
    Finish,
}

const STAGES: [&str; 6] = ["read", "verify", "hash and compare", "pack", "parent", "finish"];

impl Counts {
    pub(super) fn add(&self, stage: Stage, since: Instant) {
        self.add_time(stage, since.elapsed());
    }

    pub(super) fn add_time(&self, stage: Stage, spent: Duration) {
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
    parent: Option<&'a ParentFile>,
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
        Self {
            parent,
            runs,
            current,
        }
    }

    /// Blocks are asked for in order.
    fn at(&mut self, block: u32) -> Was {
        while let Some(run) = &self.current {
            if block < run.extent.end() {
                return match run.extent.source {
                    Source::Zero => Was::Zero,
                    Source::Frame { frame, .. }
                        if self.parent.is_some_and(|parent| parent.is_left_behind(frame)) =>
                    {
                        Was::Nothing
                    }
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
