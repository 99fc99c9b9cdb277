//! The writing side.

use std::io::{self, Write};

use zstd::stream::raw::CParameter;
use zstd::stream::write::Encoder;

use super::Codec;
use super::blocks::BlockWriter;
use super::gzip::Gzip;
use super::lz4::Lz4;

/// Bytes of input per job of libzstd's threads.
const ZSTD_JOB_LENGTH: u32 = 4 * 1024 * 1024;
/// The largest window: what every `zstd -d` accepts, and what bounds the tables of the highest levels.
const ZSTD_LARGEST_WINDOW_LOG: u32 = 22;

/// Compresses what is written to it on several threads and writes the result to `W`, in order, on the
/// caller's thread. See the module for formats and memory.
///
/// Without [`Compressor::finish`] the file has no end, and every reader will say so.
pub struct Compressor<W: Write> {
    stream: Stream<W>,
}

enum Stream<W: Write> {
    Gzip(BlockWriter<Gzip, W>),
    Zstd(Encoder<'static, W>),
    Lz4(BlockWriter<Lz4, W>),
    Plain(W),
}

impl<W: Write> Compressor<W> {
    /// A compressor with `threads` worker threads (0: one per processor; see [`Codec::workers`]).
    ///
    /// # Errors
    ///
    /// When threads cannot be started, tables cannot be allocated, or the header cannot be written.
    pub fn new(codec: Codec, threads: usize, inner: W) -> io::Result<Self> {
        let workers = codec.workers(threads);
        let stream = match codec {
            Codec::Gzip(level) => {
                Stream::Gzip(BlockWriter::new(Gzip::new(level.clamp(1, 9)), workers, inner)?)
            }
            Codec::Zstd(level) => Stream::Zstd(zstd_encoder(level, workers, inner)?),
            Codec::Lz4 => Stream::Lz4(BlockWriter::new(Lz4::new(), workers, inner)?),
            Codec::None => Stream::Plain(inner),
        };
        Ok(Self { stream })
    }

    /// Compresses what is left, writes the end of the file and gives the output back. The output is not
    /// flushed or synced: that is its owner's.
    ///
    /// # Errors
    ///
    /// Those of the output, and those of the workers. After an error the output is incomplete.
    pub fn finish(self) -> io::Result<W> {
        match self.stream {
            Stream::Gzip(writer) => writer.finish(),
            Stream::Lz4(writer) => writer.finish(),
            Stream::Zstd(encoder) => encoder.finish(),
            Stream::Plain(inner) => Ok(inner),
        }
    }
}

fn zstd_encoder<W: Write>(level: u8, workers: usize, inner: W) -> io::Result<Encoder<'static, W>> {
    let level = level.clamp(1, 19);
    let mut encoder = Encoder::new(inner, i32::from(level))?;
    encoder.include_checksum(true)?;
    encoder.multithread(workers as u32)?;
    encoder.set_parameter(CParameter::JobSize(ZSTD_JOB_LENGTH))?;
    if level > 16 {
        encoder.window_log(ZSTD_LARGEST_WINDOW_LOG)?;
    }
    Ok(encoder)
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Gzip(writer) => writer.write(bytes),
            Stream::Zstd(encoder) => encoder.write(bytes),
            Stream::Lz4(writer) => writer.write(bytes),
            Stream::Plain(inner) => inner.write(bytes),
        }
    }

    /// Brings what is compressed to the output. A block that is not full stays inside, so that flushing
    /// often does not spoil the compression.
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Gzip(writer) => writer.flush(),
            Stream::Zstd(encoder) => encoder.get_mut().flush(),
            Stream::Lz4(writer) => writer.flush(),
            Stream::Plain(inner) => inner.flush(),
        }
    }
}
