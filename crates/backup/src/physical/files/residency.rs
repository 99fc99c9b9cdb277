//! Reading files so that the kernel's page cache is afterwards as it was before.
//!
//! A backup reads everything once. Were that to go through the page cache as usual, it would push out what
//! the server reads again and again; and dropping a file's pages afterwards would throw out just as well those
//! that the server had there. So a page that was in the cache is taken from it and stays, and one that was not
//! is read and does not stay. [`ColdReader`] knows two ways:
//!
//! - Linux 6.17 and later, where the file system can: reads with `RWF_DONTCACHE`, by which the kernel itself
//!   drops what it had to load, unless somebody else used it meanwhile. The flag came with 6.14; its first
//!   versions had faults and were switched off for a while.
//! - Elsewhere: a read with `RWF_NOWAIT` tells whether a page is in the cache. As long as pages are, they are
//!   taken from there. From the first that is not, up to 1 MiB is read with `O_DIRECT`, which passes the cache
//!   by (what is there and was changed is written first, by the kernel), and then the next page is asked for
//!   again. Asking loads that one page, which is then dropped. Where a file turns from cached to not cached
//!   within 64 KiB, what the kernel loads of them stays: better that than to drop a page of the server's.
//!
//! Where neither works (a file system without `O_DIRECT`), reading is ordinary, and nothing is dropped.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags};

/// What one step of reading takes at most, in bytes. Buffers of this size suit [`ColdReader::read_at`] best.
pub const PIECE: usize = 1024 * 1024;
/// How much is asked for at once of what may be cached, in bytes.
const WARM_STEP: usize = 64 * 1024;
/// Bytes of a page of the kernel, and the alignment that `O_DIRECT` wants everywhere.
const PAGE: usize = 4096;
/// `RWF_DONTCACHE` (`include/uapi/linux/fs.h`).
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
/// From which kernel on [`DONT_CACHE`] is trusted.
const DONT_CACHE_SINCE: (u32, u32) = (6, 17);

/// What reading does to the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CachePolicy {
    /// The cache is afterwards as it was before, as well as the system lets us.
    Preserve,
    /// As any program reads.
    Ordinary,
}

/// How a reader does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Uncached,
    Probe,
    Ordinary,
}

/// Reads one file at any offset; keeps at most one [`PIECE`] of memory beside the caller's buffer.
#[derive(Debug)]
pub struct ColdReader {
    file: File,
    path: PathBuf,
    method: Method,
    /// Whether the page before was in the cache.
    warm: bool,
    direct: Direct,
    cached: u64,
    read: u64,
}

/// The same file, opened past the cache.
#[derive(Debug)]
enum Direct {
    NotTried,
    Impossible,
    Open { file: File, bounce: Vec<u8> },
}

impl ColdReader {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn open(path: &Path, policy: CachePolicy) -> io::Result<Self> {
        let file = File::open(path)?;
        let method = match policy {
            CachePolicy::Ordinary => Method::Ordinary,
            CachePolicy::Preserve if kernel_version() >= DONT_CACHE_SINCE => Method::Uncached,
            CachePolicy::Preserve => Method::Probe,
        };
        let mut reader = Self {
            file,
            path: path.to_owned(),
            method: Method::Ordinary,
            warm: true,
            direct: Direct::NotTried,
            cached: 0,
            read: 0,
        };
        reader.set_method(method);
        Ok(reader)
    }

    fn set_method(&mut self, method: Method) {
        self.method = method;
        let advice = match method {
            // Else asking for one page would load many.
            Method::Probe => Advice::Random,
            Method::Uncached | Method::Ordinary => Advice::Sequential,
        };
        // Advice is a favour; a file system that takes none reads all the same.
        let _ = fadvise(&self.file, 0, None, advice);
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file's length now.
    ///
    /// # Errors
    /// What the system reports.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Bytes that were read so far.
    pub fn bytes_read(&self) -> u64 {
        self.read
    }

    /// Bytes that were found in the page cache, as far as the way of reading tells.
    pub fn bytes_cached(&self) -> u64 {
        self.cached
    }

    /// Fills `buffer` with the file's bytes from `offset` on; returns fewer only where the file ends.
    ///
    /// # Errors
    /// What the system reports.
    pub fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let rest = &mut buffer[filled..];
            let at = offset + filled as u64;
            let count = match self.method {
                Method::Ordinary => read(&self.file, rest, at, ReadWriteFlags::empty())?,
                Method::Uncached => match read(&self.file, rest, at, DONT_CACHE) {
                    Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                        self.set_method(Method::Probe);
                        continue;
                    }
                    other => other?,
                },
                Method::Probe => {
                    let Some(count) = self.probe(rest, at)? else {
                        self.set_method(Method::Ordinary);
                        continue;
                    };
                    count
                }
            };
            if count == 0 {
                break;
            }
            filled += count;
        }
        self.read += filled as u64;
        Ok(filled)
    }

    /// One step of [`Method::Probe`]; `None` where the system cannot say what is cached.
    fn probe(&mut self, buffer: &mut [u8], at: u64) -> io::Result<Option<usize>> {
        // To the end of one page first: what is not cached is loaded by being asked for.
        let first = (PAGE - (at % PAGE as u64) as usize).min(buffer.len());
        let step = if self.warm {
            WARM_STEP.min(buffer.len())
        } else {
            first
        };
        match read(&self.file, &mut buffer[..first], at, ReadWriteFlags::NOWAIT) {
            Ok(count) if count < first || first == step => {
                self.warm |= count > 0;
                self.cached += count as u64;
                Ok(Some(count))
            }
            Ok(count) => {
                self.cached += count as u64;
                match read(
                    &self.file,
                    &mut buffer[count..step],
                    at + count as u64,
                    ReadWriteFlags::NOWAIT,
                ) {
                    Ok(more) => {
                        self.cached += more as u64;
                        self.warm = count + more == step;
                        Ok(Some(count + more))
                    }
                    Err(Errno::AGAIN) => {
                        self.warm = false;
                        Ok(Some(count))
                    }
                    Err(error) => Err(error.into()),
                }
            }
            Err(Errno::AGAIN) => {
                self.warm = false;
                let count = self.read_cold(buffer, at)?;
                Ok(Some(count))
            }
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what begins with a page that is not cached.
    fn read_cold(&mut self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let wanted = buffer.len().min(PIECE);
        let count = match self.read_directly(&mut buffer[..wanted], at)? {
            Some(count) => count,
            None => read(&self.file, &mut buffer[..wanted], at, ReadWriteFlags::empty())?,
        };
        // The page that was asked for is loaded by now or soon; only what is loaded can be dropped.
        let mut byte = [0];
        if read(&self.file, &mut byte, at, ReadWriteFlags::empty())? == 1 {
            let page = at - at % PAGE as u64;
            let _ = fadvise(&self.file, page, NonZeroU64::new(PAGE as u64), Advice::DontNeed);
        }
        Ok(count)
    }

    /// Reads past the cache; `None` where the file system cannot, or the place is not aligned.
    fn read_directly(&mut self, buffer: &mut [u8], at: u64) -> io::Result<Option<usize>> {
        if !at.is_multiple_of(PAGE as u64) {
            return Ok(None);
        }
        if matches!(self.direct, Direct::NotTried) {
            let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
            let opened = File::options().read(true).custom_flags(flags).open(&self.path);
            // The name may meanwhile stand for another file, or for none.
            self.direct = match opened {
                Ok(file) if same_file(&file, &self.file)? => Direct::Open {
                    file,
                    bounce: vec![0; PIECE + PAGE],
                },
                _ => Direct::Impossible,
            };
        }
        let Direct::Open { file, bounce } = &mut self.direct else {
            return Ok(None);
        };
        let start = bounce.as_ptr().align_offset(PAGE);
        let length = buffer.len().next_multiple_of(PAGE).min(PIECE);
        match read(
            &*file,
            &mut bounce[start..start + length],
            at,
            ReadWriteFlags::empty(),
        ) {
            Ok(count) => {
                let count = count.min(buffer.len());
                buffer[..count].copy_from_slice(&bounce[start..start + count]);
                Ok(Some(count))
            }
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                self.direct = Direct::Impossible;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// One read, again where a signal came between.
fn read(file: &File, buffer: &mut [u8], at: u64, flags: ReadWriteFlags) -> rustix::io::Result<usize> {
    rustix::io::retry_on_intr(|| {
        if flags.is_empty() {
            rustix::io::pread(file, &mut *buffer, at)
        } else {
            rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], at, flags)
        }
    })
}

fn same_file(one: &File, other: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok(one.dev() == other.dev() && one.ino() == other.ino())
}

/// The kernel's version, as far as it counts here; 0.0 where it cannot be read.
fn kernel_version() -> (u32, u32) {
    static VERSION: std::sync::OnceLock<(u32, u32)> = std::sync::OnceLock::new();
    *VERSION.get_or_init(|| {
        let system = rustix::system::uname();
        parse_version(&system.release().to_string_lossy())
    })
}

fn parse_version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests;
