//! One LZ4 frame (LZ4 frame format description, version 1.6) from independent blocks of 4 MiB.
//!
//! Blocks that do not shrink are stored. The checksum of the whole content stands at the end.

use std::hash::Hasher as _;
use std::io;

use twox_hash::XxHash32;

use super::blocks::{Block, BlockEncoder, BlockFormat};

const BLOCK_LENGTH: usize = 4 * 1024 * 1024;
const MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
/// Version 01, independent blocks, no block checksums, no content size, content checksum, no dictionary.
const FLAGS: u8 = 0b0110_0100;
/// Blocks of up to 4 MiB.
const BLOCK_DESCRIPTOR: u8 = 7 << 4;
const STORED: u32 = 1 << 31;

pub(super) struct Lz4 {
    check: XxHash32,
}

impl Lz4 {
    pub(super) fn new() -> Self {
        Self {
            check: XxHash32::with_seed(0),
        }
    }
}

impl BlockFormat for Lz4 {
    type Encoder = Lz4Block;

    fn block_length(&self) -> usize {
        BLOCK_LENGTH
    }

    fn look_back(&self) -> usize {
        0
    }

    fn header(&self) -> Vec<u8> {
        let descriptor = [FLAGS, BLOCK_DESCRIPTOR];
        let check = (XxHash32::oneshot(0, &descriptor) >> 8) as u8;
        [&MAGIC[..], &descriptor, &[check]].concat()
    }

    fn encoder(&self) -> Lz4Block {
        Lz4Block
    }

    fn before(&mut self, input: &[u8]) {
        self.check.write(input);
    }

    fn after(&mut self, _check: u32, _length: usize) {}

    fn trailer(&self) -> Vec<u8> {
        let mut trailer = vec![0; 4];
        trailer.extend_from_slice(&(self.check.finish() as u32).to_le_bytes());
        trailer
    }
}

pub(super) struct Lz4Block;

impl BlockEncoder for Lz4Block {
    fn encode(&mut self, block: &Block, output: &mut Vec<u8>) -> io::Result<u32> {
        if block.input.is_empty() {
            // A block of length zero would be the end mark, which the trailer writes.
            return Ok(0);
        }
        let start = output.len();
        output.resize(
            start + 4 + lz4_flex::block::get_maximum_output_size(block.input.len()),
            0,
        );
        let compressed = lz4_flex::block::compress_into(&block.input, &mut output[start + 4..])
            .map_err(io::Error::other)?;
        let size = if compressed < block.input.len() {
            output.truncate(start + 4 + compressed);
            compressed as u32
        } else {
            output.truncate(start + 4);
            output.extend_from_slice(&block.input);
            block.input.len() as u32 | STORED
        };
        output[start..start + 4].copy_from_slice(&size.to_le_bytes());
        Ok(0)
    }
}
