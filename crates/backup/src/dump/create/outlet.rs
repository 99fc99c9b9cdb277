//! The way from pg_dump's bytes to the stored file: digest, compression, encryption, digest again.
//!
//! [`Outlet`] is pushed into, by [`pump`] from a pipe or by the tar writer from files. It runs on one
//! blocking thread; compression brings its own. Memory: one chunk of 1 MiB, what the compressor holds
//! (`pgmahout_store::codec`, under 200 MiB), one frame of the sealer.

use std::io::{self, Read, Write};
use std::time::Duration;

use pgmahout_store::codec::{Codec, Compressor};
use pgmahout_store::digest::{Digest, DigestWriter};
use pgmahout_store::seal::{Context, Keyring, SealError, Sealer};
use tokio_util::sync::CancellationToken;

/// Bytes per read. A pipe holds as many, see [`super::child`].
pub(super) const CHUNK: usize = 1024 * 1024;

/// Below this, a read came too early: pg_dump writes 4 KiB at a time, and being woken for each of them
/// costs more than all the rest of our work.
const SHORT_READ: usize = CHUNK / 4;

/// How long to let the pipe fill after a short read. At 1 GB/s it fills in just that time.
const LET_FILL: Duration = Duration::from_millis(1);

/// What a dump's sealed files say they are. Dumps are files of their own and may be renamed.
pub fn seal_context() -> Context {
    Context::file("dump")
}

/// How bytes become a stored file.
#[derive(Debug, Clone)]
pub(super) struct Treatment {
    /// Compression.
    pub(super) codec: Codec,
    /// Compressing threads; 0 means one per processor.
    pub(super) threads: usize,
    /// Encryption, where it is wanted.
    pub(super) keyring: Option<Keyring>,
}

/// What passed through an outlet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passed {
    /// Before compression.
    pub(super) content: Digest,
    /// As stored.
    pub(super) stored: Digest,
}

/// Encryption, or none.
enum Stage<W: Write> {
    Sealed(Box<Sealer<DigestWriter<W>>>),
    Open(DigestWriter<W>),
}

impl<W: Write> Write for Stage<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Sealed(sealer) => sealer.write(bytes),
            Self::Open(digest) => digest.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Sealed(sealer) => sealer.flush(),
            Self::Open(digest) => digest.flush(),
        }
    }
}

/// Takes the bytes of a dump and writes the stored file into `W`.
pub(super) struct Outlet<W: Write> {
    inner: DigestWriter<Compressor<Stage<W>>>,
}

impl<W: Write> Outlet<W> {
    /// An outlet into `sink`. Derives the key where a passphrase is in the keyring, which takes a moment.
    pub(super) fn new(treatment: &Treatment, sink: W) -> io::Result<Self> {
        let digest = DigestWriter::new(sink);
        let stage = match &treatment.keyring {
            None => Stage::Open(digest),
            Some(keyring) => {
                let sealer = Sealer::new(digest, keyring, &seal_context()).map_err(seal_error)?;
                Stage::Sealed(Box::new(sealer))
            }
        };
        let compressor = Compressor::new(treatment.codec, treatment.threads, stage)?;
        Ok(Self {
            inner: DigestWriter::new(compressor),
        })
    }

    /// Ends every stage and gives the sink back, neither flushed nor synced.
    pub(super) fn finish(self) -> io::Result<(Passed, W)> {
        let (content, compressor) = self.inner.finish();
        let digest = match compressor.finish()? {
            Stage::Open(digest) => digest,
            Stage::Sealed(sealer) => sealer.finish()?,
        };
        let (stored, sink) = digest.finish();
        Ok((Passed { content, stored }, sink))
    }
}

impl<W: Write> Write for Outlet<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn seal_error(error: SealError) -> io::Error {
    io::Error::other(error)
}

/// Why a pump stopped early.
#[derive(Debug)]
pub(super) enum PumpError {
    /// The source failed.
    Read(io::Error),
    /// The outlet failed.
    Write(io::Error),
    /// It was cancelled.
    Cancelled,
}

/// Moves everything from `source` to `outlet`, showing each chunk to `watch` first.
pub(super) fn pump(
    mut source: impl Read,
    outlet: &mut impl Write,
    cancellation: &CancellationToken,
    mut watch: impl FnMut(&[u8]),
) -> Result<(), PumpError> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let filled = fill(&mut source, &mut buffer).map_err(PumpError::Read)?;
        if cancellation.is_cancelled() {
            return Err(PumpError::Cancelled);
        }
        if filled == 0 {
            return Ok(());
        }
        watch(&buffer[..filled]);
        outlet.write_all(&buffer[..filled]).map_err(PumpError::Write)?;
    }
}

/// Reads until the buffer has a worthwhile amount or the source ends. 0 only at the end.
fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => {
                filled += count;
                if filled >= SHORT_READ {
                    break;
                }
                std::thread::sleep(LET_FILL);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use pgmahout_store::codec::Decompressor;
    use pgmahout_store::seal::Opener;

    use super::*;

    fn content() -> Vec<u8> {
        (0..3_000_000_u32)
            .flat_map(|number| (number / 7).to_le_bytes())
            .collect()
    }

    #[test]
    fn what_went_in_comes_out_of_every_treatment() {
        let keyring = Keyring::from_passphrase("correct horse").expect("a passphrase");
        for codec in [Codec::GZIP, Codec::ZSTD, Codec::Lz4, Codec::None] {
            for keyring in [None, Some(keyring.clone())] {
                let treatment = Treatment {
                    codec,
                    threads: 2,
                    keyring,
                };
                let mut outlet = Outlet::new(&treatment, Vec::new()).expect("opens");
                let mut seen = 0;
                let watch = |bytes: &[u8]| seen += bytes.len();
                pump(
                    content().as_slice(),
                    &mut outlet,
                    &CancellationToken::new(),
                    watch,
                )
                .expect("pumps");
                let (passed, stored) = outlet.finish().expect("finishes");
                assert_eq!(seen, content().len());
                assert_eq!(passed.content.bytes, content().len() as u64);
                assert_eq!(passed.stored.bytes, stored.len() as u64);
                let opened: Box<dyn Read + Send> = match &treatment.keyring {
                    None => Box::new(io::Cursor::new(stored)),
                    Some(keyring) => Box::new(
                        Opener::new(io::Cursor::new(stored), keyring, &seal_context()).expect("opens"),
                    ),
                };
                let mut back = Vec::new();
                Decompressor::new(codec, opened)
                    .expect("starts")
                    .read_to_end(&mut back)
                    .expect("reads");
                assert!(back == content(), "{codec}");
            }
        }
    }

    #[test]
    fn a_cancelled_pump_stops() {
        let token = CancellationToken::new();
        token.cancel();
        let outcome = pump(io::repeat(1), &mut io::sink(), &token, |_| {});
        assert!(matches!(outcome, Err(PumpError::Cancelled)));
    }
}
