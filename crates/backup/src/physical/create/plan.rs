//! How the files of a backup are divided into tasks.
//!
//! Large files are read in chunks of 64 MiB, by several workers at a time; small ones are taken together. The
//! largest come first, so that no worker has a long way to go when the others are done.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pgmahout_types::repository::BLOCK_SIZE;

use super::chunk::Chunk;
use super::pack::PackedFrame;
use super::parent::ParentFile;
use super::resume::ResumedFile;

/// Bytes of a chunk.
const CHUNK: u64 = 64 << 20;
/// Blocks of a chunk.
const CHUNK_BLOCKS: u32 = (CHUNK / BLOCK_SIZE as u64) as u32;
/// Files up to this size are taken together.
const SMALL: u64 = 1 << 20;
/// Bytes of files that are taken together.
const TOGETHER: u64 = 4 << 20;
/// Files that are taken together.
const MOST_TOGETHER: usize = 256;

/// What a worker takes up at a time.
pub(super) enum Task {
    /// Whole files, by their numbers.
    Files(Vec<u32>),
    /// A part of a file.
    Part {
        /// The file.
        file: Arc<SplitFile>,
        /// The first block.
        first: u32,
        /// The block behind the last one.
        end: u32,
    },
}

/// A file that is read in parts.
pub(super) struct SplitFile {
    /// Its number.
    pub(super) number: u32,
    /// Parts that are not done.
    remaining: AtomicUsize,
    state: Mutex<SplitState>,
}

/// What the parts of a file have in common.
#[derive(Default)]
pub(super) struct SplitState {
    /// Whether it was looked what an older backup has of it.
    pub(super) looked: bool,
    /// What an older backup has of it.
    pub(super) parent: Option<Arc<ParentFile>>,
    /// What an interrupted backup left of it, where that is kept.
    pub(super) resumed: Option<Arc<ResumedFile>>,
    /// The parts that are done.
    pub(super) parts: Vec<(Chunk, Arc<[PackedFrame]>)>,
    /// Whether the file was not there any more.
    pub(super) vanished: bool,
}

impl SplitFile {
    /// A file of so many parts, at least one.
    pub(super) fn new(number: u32, parts: usize) -> Self {
        Self {
            number,
            remaining: AtomicUsize::new(parts),
            state: Mutex::default(),
        }
    }

    /// Looks at what the parts have in common.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut SplitState) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A part is done; gives everything when it was the last one.
    pub(super) fn done(&self) -> Option<SplitState> {
        (self.remaining.fetch_sub(1, Ordering::AcqRel) == 1).then(|| {
            let mut state = self.with(std::mem::take);
            state.parts.sort_by_key(|(chunk, _)| chunk.first);
            state
        })
    }
}

/// Divides files, given by number and size, into tasks.
pub(super) fn tasks(files: impl Iterator<Item = (u32, u64)>) -> Vec<Task> {
    let mut large: Vec<(u32, u64)> = Vec::new();
    let mut together = Vec::new();
    let mut current: Vec<u32> = Vec::new();
    let mut bytes = 0;
    for (number, size) in files {
        if size > SMALL {
            large.push((number, size));
            continue;
        }
        current.push(number);
        bytes += size;
        if bytes >= TOGETHER || current.len() >= MOST_TOGETHER {
            together.push(Task::Files(std::mem::take(&mut current)));
            bytes = 0;
        }
    }
    if !current.is_empty() {
        together.push(Task::Files(current));
    }
    // Stable: neighbours on disk stay neighbours.
    large.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let mut tasks = Vec::with_capacity(large.len() + together.len());
    for (number, size) in large {
        if size <= CHUNK {
            tasks.push(Task::Files(vec![number]));
            continue;
        }
        // A file of more blocks than can be numbered is refused when its map is made.
        let blocks = u32::try_from(size.div_ceil(u64::from(BLOCK_SIZE))).unwrap_or(u32::MAX);
        let parts = blocks.div_ceil(CHUNK_BLOCKS);
        let file = Arc::new(SplitFile::new(number, parts as usize));
        tasks.extend((0..parts).map(|part| Task::Part {
            file: Arc::clone(&file),
            first: part * CHUNK_BLOCKS,
            end: (part + 1).saturating_mul(CHUNK_BLOCKS).min(blocks),
        }));
    }
    tasks.extend(together);
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn every_block_of_every_file_is_in_one_task_and_the_largest_come_first() {
        let sizes = [3, 0, 200 * MIB + 1, 64 * MIB, 2 * MIB, 8192, 129 * MIB];
        let tasks = tasks(
            sizes
                .iter()
                .enumerate()
                .map(|(number, size)| (number as u32, *size)),
        );
        let mut blocks = vec![0_u64; sizes.len()];
        let mut order = Vec::new();
        for task in &tasks {
            match task {
                Task::Files(numbers) => {
                    for number in numbers {
                        order.push(*number);
                        blocks[*number as usize] += sizes[*number as usize].div_ceil(8192);
                    }
                }
                Task::Part { file, first, end } => {
                    order.push(file.number);
                    blocks[file.number as usize] += u64::from(end - first);
                }
            }
        }
        let expected: Vec<u64> = sizes.iter().map(|size| size.div_ceil(8192)).collect();
        assert_eq!(blocks, expected);
        assert_eq!(order, [2, 2, 2, 2, 6, 6, 6, 3, 4, 0, 1, 5]);
    }

    #[test]
    fn the_last_part_of_a_file_gets_everything_in_order() {
        let tasks = tasks(std::iter::once((7, 130 * MIB)));
        let mut ended = 0;
        for task in tasks.iter().rev() {
            let Task::Part { file, first, .. } = task else {
                panic!("a large file is read in parts");
            };
            file.with(|state| state.parts.push((Chunk::new(*first), Arc::new([]))));
            if let Some(state) = file.done() {
                ended += 1;
                let firsts: Vec<u32> = state.parts.iter().map(|(chunk, _)| chunk.first).collect();
                assert_eq!(firsts, [0, CHUNK_BLOCKS, 2 * CHUNK_BLOCKS]);
            }
        }
        assert_eq!(ended, 1);
    }

    #[test]
    fn a_million_small_files_are_few_tasks() {
        let tasks = tasks((0..1_000_000).map(|number| (number, 8192)));
        assert!(tasks.len() < 5_000, "{}", tasks.len());
    }
}
