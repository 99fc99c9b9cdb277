//! One gzip member (RFC 1952) from blocks that are deflated apart.
//!
//! Each block but the last ends with an empty stored block (zlib's sync flush), which brings it to a byte
//! border; the last ends the deflate stream. A block starts with the 32 KiB before it as dictionary, so that
//! the ratio is that of one stream. A block that does not shrink is stored. The parts' CRC-32 values are
//! combined.

use std::io;

use flate2::{Compress, Compression, FlushCompress, Status};

use super::blocks::{Block, BlockEncoder, BlockFormat};

const BLOCK_LENGTH: usize = 1024 * 1024;
const WINDOW: usize = 32 * 1024;
/// The most bytes of a stored block (RFC 1951 section 3.2.4).
const LONGEST_STORED: usize = 65_535;

pub(super) struct Gzip {
    level: u8,
    check: crc32fast::Hasher,
    length: u64,
}

impl Gzip {
    pub(super) fn new(level: u8) -> Self {
        Self {
            level,
            check: crc32fast::Hasher::new(),
            length: 0,
        }
    }
}

impl BlockFormat for Gzip {
    type Encoder = Deflate;

    fn block_length(&self) -> usize {
        BLOCK_LENGTH
    }

    fn look_back(&self) -> usize {
        WINDOW
    }

    fn header(&self) -> Vec<u8> {
        // Magic, deflate, no flags, no time (the same input gives the same file), extra flags as RFC 1952
        // section 2.3.1 has them for the best and the fastest level, operating system unknown.
        let extra = match self.level {
            9 => 2,
            1 => 4,
            _ => 0,
        };
        vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, extra, 255]
    }

    fn encoder(&self) -> Deflate {
        Deflate {
            stream: Compress::new(Compression::new(u32::from(self.level)), false),
        }
    }

    fn before(&mut self, _input: &[u8]) {}

    fn after(&mut self, check: u32, length: usize) {
        self.check
            .combine(&crc32fast::Hasher::new_with_initial_len(check, length as u64));
        self.length += length as u64;
    }

    fn trailer(&self) -> Vec<u8> {
        let mut trailer = self.check.clone().finalize().to_le_bytes().to_vec();
        // The length modulo 2^32, as the format has it.
        trailer.extend_from_slice(&(self.length as u32).to_le_bytes());
        trailer
    }
}

pub(super) struct Deflate {
    stream: Compress,
}

impl BlockEncoder for Deflate {
    fn encode(&mut self, block: &Block, output: &mut Vec<u8>) -> io::Result<u32> {
        self.stream.reset();
        if !block.before.is_empty() {
            self.stream
                .set_dictionary(&block.before)
                .map_err(io::Error::other)?;
        }
        let flush = if block.last {
            FlushCompress::Finish
        } else {
            FlushCompress::Sync
        };
        let start = output.len();
        output.reserve(block.input.len() / 2 + 64);
        loop {
            if output.capacity() - output.len() < 64 {
                output.reserve(block.input.len() / 4 + 1024);
            }
            let taken = self.stream.total_in() as usize;
            let status = self
                .stream
                .compress_vec(&block.input[taken..], output, flush)
                .map_err(io::Error::other)?;
            let all_taken = self.stream.total_in() as usize == block.input.len();
            let done = match status {
                Status::StreamEnd => true,
                // A flush is complete when it left room in the output.
                Status::Ok | Status::BufError => !block.last && all_taken && output.len() < output.capacity(),
            };
            if done {
                break;
            }
        }
        if output.len() - start > block.input.len() + block.input.len() / LONGEST_STORED * 5 + 64 {
            output.truncate(start);
            store(block, output);
        }
        Ok(crc32fast::hash(&block.input))
    }
}

/// The block as it is: stored deflate blocks, which begin and end at byte borders.
fn store(block: &Block, output: &mut Vec<u8>) {
    let mut pieces = block.input.chunks(LONGEST_STORED).peekable();
    while let Some(piece) = pieces.next() {
        let length = piece.len() as u16;
        output.push(u8::from(block.last && pieces.peek().is_none()));
        output.extend_from_slice(&length.to_le_bytes());
        output.extend_from_slice(&(!length).to_le_bytes());
        output.extend_from_slice(piece);
    }
}
