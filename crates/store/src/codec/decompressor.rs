//! The reading side.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;
use lz4_flex::frame::FrameDecoder;

use super::{Codec, ReadAhead};

const INPUT_BUFFER: usize = 256 * 1024;
/// log2 of the largest window that a zstd file may ask for: `zstd -d`'s own default, 128 MiB.
const ZSTD_LARGEST_WINDOW_LOG: u32 = 27;

/// Decompresses `R`, ahead of its reader, on a thread.
///
/// Reads to the true end: several members or frames are read one after another, the end of the input within
/// one is [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) (an empty input too), other bytes after the last
/// are [`InvalidData`](io::ErrorKind::InvalidData). After an error every further read fails. With
/// [`Codec::None`] bytes pass as they are, and no truncation can be seen.
///
/// Dropping it tells the thread to stop; the thread, and `R` with it, ends when its current read returns.
pub struct Decompressor {
    output: ReadAhead,
}

impl Decompressor {
    /// A decompressor of `inner`, which is read on a thread of its own.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started, or tables cannot be allocated.
    pub fn new<R: Read + Send + 'static>(codec: Codec, inner: R) -> io::Result<Self> {
        let inner = BufReader::with_capacity(INPUT_BUFFER, inner);
        let output = match codec {
            Codec::Gzip(_) => ReadAhead::new(GzipMembers::new(inner))?,
            Codec::Zstd(_) => ReadAhead::new(ZstdFrames::new(inner)?)?,
            Codec::Lz4 => ReadAhead::new(Lz4Frames::new(inner))?,
            Codec::None => ReadAhead::new(inner)?,
        };
        Ok(Self { output })
    }
}

impl Read for Decompressor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.output.read(buffer)
    }
}

fn truncated(format: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("the {format} data ends too early: the file is truncated"),
    )
}

fn damaged(format: &str, error: &io::Error) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the {format} data is damaged ({error})"),
    )
}

/// What went wrong in a decoder: errors of the input pass, the decoder's own become ours.
fn decoder_error(format: &str, error: io::Error) -> io::Error {
    let error = match error.downcast::<Truncated>() {
        Ok(Truncated) => return truncated(format),
        Err(error) => error,
    };
    // An error that the input wrapped (a failed seal, a failed download) is told as it is.
    let error = match error.downcast::<InputError>() {
        Ok(InputError(inner)) => return inner,
        Err(error) => error,
    };
    match error.kind() {
        io::ErrorKind::UnexpectedEof => truncated(format),
        _ if error.raw_os_error().is_some() => error,
        _ => damaged(format, &error),
    }
}

/// The input ended inside a frame.
#[derive(Debug, thiserror::Error)]
#[error("the input ended inside a frame")]
struct Truncated;

/// An error of the input, to be told apart from those of the decoder that passes it on.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct InputError(io::Error);

/// An input whose errors can be told from a decoder's.
struct Input<R> {
    inner: R,
}

fn mark(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::Interrupted => error,
        // Not UnexpectedEof, since decoders take that for their own.
        io::ErrorKind::UnexpectedEof => io::Error::other(InputError(error)),
        kind => io::Error::new(kind, InputError(error)),
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(mark)
    }
}

impl<R: BufRead> BufRead for Input<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf().map_err(mark)
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
    }
}

/// Whether an input has ended.
fn at_end(input: &mut impl BufRead) -> io::Result<bool> {
    loop {
        match input.fill_buf() {
            Ok(bytes) => return Ok(bytes.is_empty()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

struct GzipMembers<R: BufRead> {
    /// The member being read; `None` only after the end.
    member: Option<GzDecoder<Input<R>>>,
    /// Whether any member was begun.
    begun: bool,
}

impl<R: BufRead> GzipMembers<R> {
    fn new(inner: R) -> Self {
        Self {
            member: Some(GzDecoder::new(Input { inner })),
            begun: false,
        }
    }

    fn read_member(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(member) = &mut self.member else {
                return Ok(0);
            };
            if !self.begun {
                if at_end(member.get_mut())? {
                    return Err(io::Error::other(Truncated));
                }
                self.begun = true;
            }
            let count = member.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let mut input = self
                .member
                .take()
                .map(GzDecoder::into_inner)
                .expect("the member was just read");
            if at_end(&mut input)? {
                return Ok(0);
            }
            self.member = Some(GzDecoder::new(input));
        }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_member(buffer)
            .map_err(|error| decoder_error("gzip", error))
    }
}

struct ZstdFrames<R: BufRead> {
    decoder: zstd::stream::read::Decoder<'static, Input<R>>,
    begun: bool,
}

impl<R: BufRead> ZstdFrames<R> {
    fn new(inner: R) -> io::Result<Self> {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(Input { inner })?;
        decoder.window_log_max(ZSTD_LARGEST_WINDOW_LOG)?;
        Ok(Self {
            decoder,
            begun: false,
        })
    }

    fn read_frames(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.begun {
            if at_end(self.decoder.get_mut())? {
                return Err(io::Error::other(Truncated));
            }
            self.begun = true;
        }
        self.decoder.read(buffer)
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_frames(buffer)
            .map_err(|error| decoder_error("zstd", error))
    }
}

/// Frames read by `lz4_flex`, which takes the end of the input before a block's header for the end of the
/// frame; so the end is only shown to it where a frame may begin.
struct Lz4Frames<R: BufRead> {
    decoder: FrameDecoder<FrameBorders<R>>,
    begun: bool,
}

struct FrameBorders<R: BufRead> {
    input: Input<R>,
    at_border: bool,
    ended: bool,
}

impl<R: BufRead> Read for FrameBorders<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            if !self.at_border {
                return Err(io::Error::other(Truncated));
            }
            self.ended = true;
        } else {
            self.at_border = false;
        }
        Ok(count)
    }
}

impl<R: BufRead> Lz4Frames<R> {
    fn new(inner: R) -> Self {
        let borders = FrameBorders {
            input: Input { inner },
            at_border: true,
            ended: false,
        };
        Self {
            decoder: FrameDecoder::new(borders),
            begun: false,
        }
    }

    fn read_frames(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if !self.begun {
            if at_end(&mut self.decoder.get_mut().input)? {
                return Err(io::Error::other(Truncated));
            }
            self.begun = true;
        }
        loop {
            let count = self.decoder.read(buffer)?;
            if count > 0 || self.decoder.get_ref().ended {
                return Ok(count);
            }
            // The end mark of a frame was read: here, and only here, the input may end.
            self.decoder.get_mut().at_border = true;
        }
    }
}

impl<R: BufRead> Read for Lz4Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_frames(buffer)
            .map_err(|error| decoder_error("lz4", error))
    }
}
