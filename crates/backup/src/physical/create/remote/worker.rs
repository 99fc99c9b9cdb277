//! What every worker does with what has arrived: verify, hash, compare, gather.
//!
//! Files come in pieces of 1 MiB, the pieces of one file to whichever worker is free. A worker gathers the pages
//! of many pieces before it closes a frame; a file is finished by whoever has its last piece.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use pgmahout_types::repository::FileId;

use super::super::chunk::Chunk;
use super::super::error::CreateError;
use super::super::pack::{PackWriter, PackedFrame};
use super::super::parent::ParentFile;
use super::super::plan::SplitFile;
use super::super::resume::ResumedFile;
use super::super::shared::{Known, Shared, Stage};
use super::super::sink::FinishedFile;
use crate::physical::files::classify::FileKind;
use crate::physical::page::BLOCK_SIZE;
use crate::physical::page::checksum::{self, Mismatch};
use crate::physical::page::verify::judge_once;

/// Bytes that are gathered before frames are closed.
const TOGETHER: usize = 4 << 20;
/// Pieces that are gathered before frames are closed.
const MOST_TOGETHER: usize = 256;

/// A file that arrives.
pub(super) struct Incoming {
    /// Its parts.
    pub(super) split: SplitFile,
    /// Its path in the data directory.
    pub(super) path: Vec<u8>,
    /// What tells it apart.
    pub(super) id: FileId,
    /// What it is.
    pub(super) kind: FileKind,
    /// Its bytes.
    pub(super) size: u64,
}

/// A part of a file.
pub(super) struct Piece {
    /// The file.
    pub(super) file: Arc<Incoming>,
    /// The first block.
    pub(super) first: u32,
    /// The bytes: whole blocks, but for the end of the file.
    pub(super) bytes: Vec<u8>,
}

/// One thread.
pub(super) struct Worker<'a> {
    shared: &'a Shared<'a>,
    queue: &'a Mutex<Receiver<Piece>>,
    packs: PackWriter,
    /// Pieces whose frames are not closed.
    pending: Vec<(Arc<Incoming>, Chunk)>,
    /// Their bytes.
    gathered: usize,
    mismatches: Vec<Mismatch>,
}

/// What is known of a file's older state.
type Older = (Option<Arc<ParentFile>>, Option<Arc<ResumedFile>>);

impl<'a> Worker<'a> {
    /// A worker that puts blocks into these packs.
    pub(super) fn new(shared: &'a Shared<'a>, queue: &'a Mutex<Receiver<Piece>>, packs: PackWriter) -> Self {
        Self {
            shared,
            queue,
            packs,
            pending: Vec::new(),
            gathered: 0,
            mismatches: Vec::new(),
        }
    }

    /// Takes pieces until there are no more, and gives its packs back, the last of them unfinished. When it is
    /// stopped, what it has is stored for the next backup.
    pub(super) fn run(mut self) -> Result<PackWriter, CreateError> {
        if self.shared.nice > 0 {
            // On Linux this is the priority of the thread alone. Whether it can be lowered is of no consequence.
            let _ = rustix::process::setpriority_process(None, self.shared.nice);
        }
        match self.pieces() {
            Ok(()) => Ok(self.packs),
            Err(error) => {
                self.shared.cancellation.cancel();
                // Whoever fills the queue must not wait for ever.
                while self.next().is_some() {}
                // It spares the next backup work; that it was stopped is what is to be told.
                let _ = self.packs.finish();
                Err(error)
            }
        }
    }

    fn next(&self) -> Option<Piece> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.recv().ok()
    }

    fn pieces(&mut self) -> Result<(), CreateError> {
        while let Some(piece) = self.next() {
            if self.shared.cancellation.is_cancelled() {
                return Err(CreateError::Interrupted);
            }
            self.take(piece)?;
            if self.gathered >= TOGETHER || self.pending.len() >= MOST_TOGETHER {
                self.close()?;
            }
        }
        self.close()
    }

    fn take(&mut self, piece: Piece) -> Result<(), CreateError> {
        let Piece { file, first, bytes } = piece;
        if self.shared.checksums {
            self.verify(&file, first, &bytes);
        }
        let (parent, resumed) = self.older(&file)?;
        let known = Known {
            id: file.id,
            parent: parent.as_deref(),
            resumed: resumed.as_deref(),
        };
        let mut chunk = Chunk::new(first);
        self.shared
            .compare(&mut self.packs, known, first, &bytes, &mut chunk)?;
        self.gathered += bytes.len();
        self.pending.push((file, chunk));
        Ok(())
    }

    /// What is known of the file's older state: looked for once.
    fn older(&self, file: &Incoming) -> Result<Older, CreateError> {
        let known = file.split.with(|state| {
            state
                .looked
                .then(|| (state.parent.clone(), state.resumed.clone()))
        });
        if let Some(known) = known {
            return Ok(known);
        }
        // Two workers may both look: they find the same.
        let parent = self.shared.parent_file(file.id, &file.path)?.map(Arc::new);
        let resumed = self.shared.resumed_file(file.id)?.map(Arc::new);
        file.split.with(|state| {
            state.looked = true;
            state.parent.clone_from(&parent);
            state.resumed.clone_from(&resumed);
        });
        Ok((parent, resumed))
    }

    fn verify(&mut self, file: &Incoming, first: u32, bytes: &[u8]) {
        let Some(relation) = file.kind.relation() else {
            return;
        };
        let begun = Instant::now();
        let number = |block: u32| checksum::block_number(relation.segment, self.shared.segment_blocks, block);
        self.mismatches.clear();
        checksum::verify(bytes, number(first), &mut self.mismatches);
        let (pages, _) = bytes.as_chunks::<BLOCK_SIZE>();
        for mismatch in &self.mismatches {
            let own = first + mismatch.index as u32;
            let finding = judge_once(&pages[mismatch.index], own, number(own), self.shared.start);
            self.shared.note(file.split.number, finding);
        }
        self.shared.counts.add(Stage::Verify, begun);
    }

    /// Closes the frames of all pieces that were gathered, and finishes the files whose last ones these were.
    fn close(&mut self) -> Result<(), CreateError> {
        let begun = Instant::now();
        let frames: Arc<[PackedFrame]> = self.packs.take_frames()?.into();
        self.shared.counts.add(Stage::Pack, begun);
        self.gathered = 0;
        let begun = Instant::now();
        for (file, chunk) in self.pending.drain(..) {
            file.split
                .with(|state| state.parts.push((chunk, Arc::clone(&frames))));
            let Some(state) = file.split.done() else {
                continue;
            };
            self.shared.sink.finish(&FinishedFile {
                number: file.split.number,
                id: file.id,
                size: file.size,
                parts: state
                    .parts
                    .iter()
                    .map(|(chunk, frames)| (chunk, &**frames))
                    .collect(),
                parent: state.parent.as_deref(),
            })?;
        }
        self.shared.counts.add(Stage::Finish, begun);
        Ok(())
    }
}
