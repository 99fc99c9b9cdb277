//! Reading a stored file back: is it, from the disk, the stream that was written?
//!
//! The whole file is read from where it is stored, decrypted, decompressed, and both digests compared. The
//! content is then known to be what pg_dump wrote, byte for byte; what pg_dump wrote is known to be whole
//! by its status and by the format's own end: the end marker of plain SQL (seen while writing), every block
//! of a custom archive (pg_restore reads it to its end), every file of a directory.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use pgmahout_store::codec::Decompressor;
use pgmahout_store::digest::{Digest, DigestReader};
use pgmahout_store::seal::Opener;
use tokio_util::sync::CancellationToken;

use super::outlet::{CHUNK, Passed, Treatment, seal_context};

/// Why a file that was read back is not what was written.
#[derive(Debug)]
pub(super) enum Fault {
    /// Cancelled before the end.
    Cancelled,
    /// A sentence that completes "was written, but ".
    Wrong(String),
}

/// What is done with the content while it is read.
pub(super) enum Look {
    /// Nothing: plain SQL was looked at while it was written.
    Plain,
    /// It is written into the inputs of programs. One that stops reading is dropped; its status says
    /// whether that was right.
    Custom(Vec<std::fs::File>),
    /// It is a tar stream of so many files.
    Directory(usize),
}

/// Reads everything and compares.
pub(super) fn read_back(
    stored: Box<dyn Read + Send>,
    treatment: &Treatment,
    passed: &Passed,
    look: Look,
    cancellation: &CancellationToken,
    advance: impl Fn(u64),
) -> Result<(), Fault> {
    let wrong = |error: io::Error| Fault::Wrong(format!("could not be read back: {}", chain(&error)));
    let slot = Arc::new(Mutex::new(None));
    let raw = Depositing {
        inner: Some(DigestReader::new(stored)),
        slot: Arc::clone(&slot),
    };
    let opened: Box<dyn Read + Send> = match &treatment.keyring {
        None => Box::new(raw),
        Some(keyring) => Box::new(
            Opener::new(raw, keyring, &seal_context()).map_err(|error| wrong(io::Error::other(error)))?,
        ),
    };
    let decompressed = Decompressor::new(treatment.codec, opened).map_err(wrong)?;
    let mut content = DigestReader::new(Watched {
        inner: decompressed,
        cancellation,
        advance,
    });
    let outcome = match look {
        Look::Plain => feed(&mut content, Vec::new()),
        Look::Custom(inputs) => feed(&mut content, inputs),
        Look::Directory(files) => walk_tar(&mut content, files).and_then(|()| feed(&mut content, Vec::new())),
    };
    if cancellation.is_cancelled() {
        return Err(Fault::Cancelled);
    }
    outcome.map_err(wrong)?;
    let (content, rest) = content.finish();
    drop(rest);
    let stored = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    compare("the file", stored, passed.stored)?;
    compare("the content", Some(content), passed.content)
}

fn compare(what: &str, found: Option<Digest>, wanted: Digest) -> Result<(), Fault> {
    match found {
        Some(found) if found == wanted => Ok(()),
        Some(found) => Err(Fault::Wrong(format!(
            "{what} that was read back is another one: {} bytes with SHA-256 {} instead of {} bytes with {}",
            found.bytes, found.sha256, wanted.bytes, wanted.sha256
        ))),
        None => Err(Fault::Wrong(format!("{what} was not read back to its end"))),
    }
}

fn chain(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

/// Reads to the end, writing to every input that still reads.
fn feed(content: &mut impl Read, mut inputs: Vec<std::fs::File>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match content.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let mut failure = None;
        inputs.retain_mut(|input| match input.write_all(&buffer[..count]) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => false,
            Err(error) => {
                failure = Some(error);
                false
            }
        });
        if let Some(error) = failure {
            return Err(error);
        }
    }
}

/// Reads a tar stream to its end mark, as `toc.dat` and `files - 1` others.
fn walk_tar(content: &mut impl Read, files: usize) -> io::Result<()> {
    let mut archive = tar::Archive::new(content);
    let mut found = 0;
    for entry in archive.entries()? {
        let mut entry = entry?;
        if found == 0 && entry.path_bytes().as_ref() != super::super::archive::TOC.as_bytes() {
            return Err(io::Error::other("its table of contents is missing"));
        }
        let length = entry.size();
        if io::copy(&mut entry, &mut io::sink())? != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        found += 1;
    }
    if found == files {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "it holds {found} files, pg_dump wrote {files}"
        )))
    }
}

/// Leaves the digest in a slot once the end was read.
struct Depositing<R> {
    inner: Option<DigestReader<R>>,
    slot: Arc<Mutex<Option<Digest>>>,
}

impl<R: Read> Read for Depositing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(inner) = &mut self.inner else {
            return Ok(0);
        };
        let count = inner.read(buffer)?;
        if count == 0
            && !buffer.is_empty()
            && let Some(inner) = self.inner.take()
        {
            let (digest, _) = inner.finish();
            *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest);
        }
        Ok(count)
    }
}

/// Counts for the progress and stops when cancelled.
struct Watched<'a, R, F> {
    inner: R,
    cancellation: &'a CancellationToken,
    advance: F,
}

impl<R: Read, F: Fn(u64)> Read for Watched<'_, R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancellation.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let count = self.inner.read(buffer)?;
        (self.advance)(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use pgmahout_store::codec::Codec;
    use pgmahout_store::seal::Keyring;

    use super::super::outlet::{Outlet, pump};
    use super::*;

    fn written(treatment: &Treatment) -> (Passed, Vec<u8>) {
        let content: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut outlet = Outlet::new(treatment, Vec::new()).expect("opens");
        pump(content.as_slice(), &mut outlet, &CancellationToken::new(), |_| {}).expect("pumps");
        outlet.finish().expect("finishes")
    }

    fn back(treatment: &Treatment, passed: &Passed, stored: Vec<u8>) -> Result<(), Fault> {
        let reader = Box::new(io::Cursor::new(stored));
        read_back(
            reader,
            treatment,
            passed,
            Look::Plain,
            &CancellationToken::new(),
            |_| {},
        )
    }

    fn treatments() -> Vec<Treatment> {
        let keyring = Keyring::from_passphrase("correct horse").expect("a passphrase");
        [Codec::GZIP, Codec::ZSTD, Codec::Lz4, Codec::None]
            .into_iter()
            .flat_map(|codec| {
                [None, Some(keyring.clone())].map(|keyring| Treatment {
                    codec,
                    threads: 2,
                    keyring,
                })
            })
            .collect()
    }

    #[test]
    fn what_was_written_is_accepted() {
        for treatment in treatments() {
            let (passed, stored) = written(&treatment);
            assert!(back(&treatment, &passed, stored).is_ok(), "{treatment:?}");
        }
    }

    #[test]
    fn any_flipped_byte_and_any_cut_is_found() {
        for treatment in treatments() {
            let (passed, stored) = written(&treatment);
            for part in 0..20 {
                let position = stored.len() * part / 20;
                let mut flipped = stored.clone();
                flipped[position] ^= 0x10;
                assert!(
                    matches!(back(&treatment, &passed, flipped), Err(Fault::Wrong(_))),
                    "{treatment:?}"
                );
                let cut = stored[..position].to_vec();
                assert!(
                    matches!(back(&treatment, &passed, cut), Err(Fault::Wrong(_))),
                    "{treatment:?}"
                );
            }
            let mut longer = stored.clone();
            longer.push(0);
            assert!(
                matches!(back(&treatment, &passed, longer), Err(Fault::Wrong(_))),
                "{treatment:?}"
            );
        }
    }

    #[test]
    fn another_sound_file_is_not_accepted_for_this_one() {
        let treatment = Treatment {
            codec: Codec::GZIP,
            threads: 1,
            keyring: None,
        };
        let (passed, _) = written(&treatment);
        let mut outlet = Outlet::new(&treatment, Vec::new()).expect("opens");
        outlet.write_all(b"something else").expect("writes");
        let (_, other) = outlet.finish().expect("finishes");
        let Err(Fault::Wrong(what)) = back(&treatment, &passed, other) else {
            panic!("accepted")
        };
        assert!(what.contains("another one"), "{what}");
    }
}
