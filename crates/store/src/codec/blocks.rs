//! Blocks compressed by several threads and written in order.
//!
//! The caller's thread cuts the input into blocks and hands them to workers through a channel; each block
//! carries its own way back. When `workers + 2` blocks are under way the caller waits for the oldest one and
//! writes it, so memory is bounded and order needs no sorting. A worker that fails or panics gives an error
//! for its block; a worker that vanished closes the way back, which is an error too: nothing waits for ever.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// One piece of the input.
pub(super) struct Block {
    /// The bytes.
    pub(super) input: Vec<u8>,
    /// The end of the bytes before, for formats that refer back. Empty for the first block.
    pub(super) before: Vec<u8>,
    /// Whether the input ends with this block.
    pub(super) last: bool,
}

/// A format whose blocks can be encoded on their own.
pub(super) trait BlockFormat: Send + 'static {
    /// What a worker keeps between blocks.
    type Encoder: BlockEncoder;

    /// Bytes of input per block.
    fn block_length(&self) -> usize;
    /// How many bytes before a block its encoder wants to see.
    fn look_back(&self) -> usize;
    /// What stands at the beginning of the file.
    fn header(&self) -> Vec<u8>;
    /// A worker's encoder.
    fn encoder(&self) -> Self::Encoder;
    /// Sees every block's input in order, before it is encoded.
    fn before(&mut self, input: &[u8]);
    /// Sees every block's check value (from the encoder) and length in order.
    fn after(&mut self, check: u32, length: usize);
    /// What stands at the end of the file.
    fn trailer(&self) -> Vec<u8>;
}

/// Encodes blocks, one at a time, on one thread.
pub(super) trait BlockEncoder: Send + 'static {
    /// Appends the encoded block to `output`, and gives a check value of the input.
    fn encode(&mut self, block: &Block, output: &mut Vec<u8>) -> io::Result<u32>;
}

struct Encoded {
    /// The input, to be used again as a buffer.
    input: Vec<u8>,
    output: Vec<u8>,
    check: u32,
}

struct Job {
    block: Block,
    output: Vec<u8>,
    reply: SyncSender<io::Result<Encoded>>,
}

/// Writes a [`BlockFormat`] to `inner` with several threads.
pub(super) struct BlockWriter<F: BlockFormat, W: Write> {
    format: F,
    inner: W,
    jobs: Sender<Job>,
    under_way: VecDeque<Receiver<io::Result<Encoded>>>,
    limit: usize,
    current: Vec<u8>,
    before: Vec<u8>,
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
    failed: bool,
}

impl<F: BlockFormat, W: Write> BlockWriter<F, W> {
    pub(super) fn new(format: F, workers: usize, mut inner: W) -> io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..workers {
            let queue = Arc::clone(&queue);
            let encoder = format.encoder();
            thread::Builder::new()
                .name(format!("compress-{number}"))
                .spawn(move || work(&queue, encoder))?;
        }
        inner.write_all(&format.header())?;
        let current = Vec::with_capacity(format.block_length());
        Ok(Self {
            format,
            inner,
            jobs,
            under_way: VecDeque::new(),
            limit: workers + 2,
            current,
            before: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            failed: false,
        })
    }

    fn submit(&mut self, last: bool) -> io::Result<()> {
        while self.under_way.len() >= self.limit {
            self.write_oldest()?;
        }
        let next = self
            .inputs
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(self.format.block_length()));
        let input = std::mem::replace(&mut self.current, next);
        self.format.before(&input);
        let look_back = self.format.look_back();
        let next_before = input[input.len().saturating_sub(look_back)..].to_vec();
        let before = std::mem::replace(&mut self.before, next_before);
        let (reply, receiver) = sync_channel(1);
        let output = self.outputs.pop().unwrap_or_default();
        let job = Job {
            block: Block { input, before, last },
            output,
            reply,
        };
        self.jobs.send(job).map_err(|_| worker_lost())?;
        self.under_way.push_back(receiver);
        Ok(())
    }

    fn write_oldest(&mut self) -> io::Result<()> {
        let Some(receiver) = self.under_way.pop_front() else {
            return Ok(());
        };
        let mut encoded = receiver.recv().map_err(|_| worker_lost())??;
        self.format.after(encoded.check, encoded.input.len());
        self.inner.write_all(&encoded.output)?;
        encoded.input.clear();
        encoded.output.clear();
        self.inputs.push(encoded.input);
        self.outputs.push(encoded.output);
        Ok(())
    }

    /// Runs `operation` unless an earlier one failed: after an error the output has a hole, and nothing more
    /// may be written.
    fn guarded<T>(&mut self, operation: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        if self.failed {
            return Err(io::Error::other("the compressor has failed before"));
        }
        let result = operation(self);
        self.failed = result.is_err();
        result
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.guarded(|writer| {
            writer.submit(true)?;
            while !writer.under_way.is_empty() {
                writer.write_oldest()?;
            }
            let trailer = writer.format.trailer();
            writer.inner.write_all(&trailer)
        })?;
        Ok(self.inner)
    }
}

impl<F: BlockFormat, W: Write> Write for BlockWriter<F, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.guarded(|writer| {
            // A full block is sent when more comes, so that the last block is known to be the last.
            if writer.current.len() == writer.format.block_length() {
                writer.submit(false)?;
            }
            let room = writer.format.block_length() - writer.current.len();
            let taken = room.min(bytes.len());
            writer.current.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        })
    }

    /// Writes the blocks that are under way. A block that is not full stays: cutting it would cost
    /// compression, and nobody can read a compressed file before its end anyway.
    fn flush(&mut self) -> io::Result<()> {
        self.guarded(|writer| {
            while !writer.under_way.is_empty() {
                writer.write_oldest()?;
            }
            writer.inner.flush()
        })
    }
}

fn worker_lost() -> io::Error {
    io::Error::other("a compression thread ended unexpectedly")
}

fn work<E: BlockEncoder>(queue: &Mutex<Receiver<Job>>, mut encoder: E) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job {
            block,
            mut output,
            reply,
        }) = job
        else {
            return;
        };
        let result = catch_unwind(AssertUnwindSafe(|| encoder.encode(&block, &mut output)));
        let (result, panicked) = match result {
            Ok(result) => (result, false),
            Err(_) => (Err(io::Error::other("a compression thread panicked")), true),
        };
        let encoded = result.map(|check| Encoded {
            input: block.input,
            output,
            check,
        });
        // The writer may be gone; then nobody wants the block.
        let _ = reply.send(encoded);
        if panicked {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Breaking {
        panics: bool,
    }

    struct BreakingEncoder {
        panics: bool,
        blocks: usize,
    }

    impl BlockFormat for Breaking {
        type Encoder = BreakingEncoder;
        fn block_length(&self) -> usize {
            16
        }
        fn look_back(&self) -> usize {
            0
        }
        fn header(&self) -> Vec<u8> {
            Vec::new()
        }
        fn encoder(&self) -> BreakingEncoder {
            BreakingEncoder {
                panics: self.panics,
                blocks: 0,
            }
        }
        fn before(&mut self, _: &[u8]) {}
        fn after(&mut self, _: u32, _: usize) {}
        fn trailer(&self) -> Vec<u8> {
            Vec::new()
        }
    }

    impl BlockEncoder for BreakingEncoder {
        fn encode(&mut self, block: &Block, output: &mut Vec<u8>) -> io::Result<u32> {
            self.blocks += 1;
            if self.blocks > 3 {
                assert!(!self.panics, "a bug in the encoder");
                return Err(io::Error::other("no memory for tables"));
            }
            output.extend_from_slice(&block.input);
            Ok(0)
        }
    }

    fn write_until_error(panics: bool, workers: usize) -> io::Error {
        let mut writer = BlockWriter::new(Breaking { panics }, workers, Vec::new()).unwrap();
        for _ in 0..1000 {
            if let Err(error) = writer.write_all(&[7; 10]) {
                assert!(
                    writer.write(&[1]).is_err(),
                    "no write may succeed after a failure"
                );
                return error;
            }
        }
        writer.finish().map(|_| ()).unwrap_err()
    }

    #[test]
    fn a_panic_in_a_worker_is_an_error_and_never_hangs() {
        for workers in [1, 2, 5] {
            let error = write_until_error(true, workers).to_string();
            assert!(
                error.contains("panicked") || error.contains("ended unexpectedly"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_error_in_a_worker_reaches_the_caller() {
        for workers in [1, 2, 5] {
            assert_eq!(
                write_until_error(false, workers).to_string(),
                "no memory for tables"
            );
        }
    }

    #[test]
    fn an_error_of_the_output_reaches_the_caller() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self
                    .0
                    .checked_sub(bytes.len())
                    .ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut writer = BlockWriter::new(Breaking { panics: false }, 1, Full(40)).unwrap();
        let error = (0..100).find_map(|_| writer.write_all(&[7; 16]).err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
