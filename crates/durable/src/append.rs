//! Journals: files that grow by whole lines.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::directory::sync_directory;
use crate::error::{DurableError, parent_of};
use crate::lock::LockError;

/// Appends `line` and a newline, and returns when both are on the disk.
///
/// The file is created with `mode` (less the umask) if it is missing, and its name made durable. Writers
/// exclude each other by a lock on the file. If the file ends in the middle of a line, a crash cut the last
/// record, which nobody was ever told was written: that part is cut off first, so that one torn record does
/// not spoil the next. If writing fails half-way (a full disk), the half is cut off again.
///
/// `line` must not contain a newline; one inside it would make two records of it.
///
/// # Errors
///
/// When the file cannot be opened, locked, written or fsynced. The line is then not in the file, unless the
/// fsync itself failed.
pub fn append_line(path: impl AsRef<Path>, line: &[u8], mode: u32) -> Result<(), DurableError> {
    let path = path.as_ref();
    let (mut file, created) = open(path, mode)?;
    file.lock()
        .map_err(|error| DurableError::from_io("lock", path, error))?;
    let length = append(&mut file, path, line)?;
    if created || length == 0 {
        sync_directory(parent_of(path))?;
    }
    Ok(())
}

/// A journal with one writer: a lock on the file keeps others from writing as long as this lives, and tells
/// readers that the writer is alive ([`SoleWriter::is_alive`]). It dies with the process.
#[derive(Debug)]
pub struct SoleWriter {
    file: File,
    path: PathBuf,
}

impl SoleWriter {
    /// Opens the journal, creating it with `mode` (less the umask) if it is missing.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] when another writer is alive; otherwise when the file cannot be opened.
    pub fn open(path: impl AsRef<Path>, mode: u32) -> Result<Self, LockError> {
        let path = path.as_ref();
        let (file, created) = open(path, mode)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let waited = Duration::ZERO;
                return Err(LockError::Held {
                    path: path.to_path_buf(),
                    owner: None,
                    waited,
                });
            }
            Err(TryLockError::Error(error)) => return Err(DurableError::from_io("lock", path, error).into()),
        }
        if created {
            sync_directory(parent_of(path))?;
        }
        Ok(Self {
            file,
            path: path.to_path_buf(),
        })
    }

    /// Appends a line, as [`append_line`] does.
    ///
    /// # Errors
    ///
    /// As [`append_line`].
    pub fn append(&mut self, line: &[u8]) -> Result<(), DurableError> {
        append(&mut self.file, &self.path, line).map(|_| ())
    }

    /// The journal's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a writer of this journal is alive.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub fn is_alive(path: impl AsRef<Path>) -> Result<bool, DurableError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|error| DurableError::from_io("open", path, error))?;
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(DurableError::from_io("lock", path, error)),
        }
    }
}

/// Appends to a locked file. Returns how long the file was before, without what was torn.
fn append(file: &mut File, path: &Path, line: &[u8]) -> Result<u64, DurableError> {
    debug_assert!(!line.contains(&b'\n'), "a journal record is one line");
    let length = cut_torn_line(file).map_err(|error| DurableError::from_io("repair", path, error))?;
    let mut record = Vec::with_capacity(line.len() + 1);
    record.extend_from_slice(line);
    record.push(b'\n');
    if let Err(error) = file.write_all(&record) {
        let _ = file.set_len(length);
        return Err(DurableError::from_io("append to", path, error));
    }
    file.sync_data()
        .map_err(|error| DurableError::from_io("fsync", path, error))?;
    Ok(length)
}

/// The complete lines of a journal, without their newlines; a torn last line is left out. A missing file is
/// `None`.
///
/// # Errors
///
/// When the file cannot be read.
pub fn complete_lines(path: impl AsRef<Path>) -> Result<Option<Vec<Vec<u8>>>, DurableError> {
    let path = path.as_ref();
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DurableError::from_io("read", path, error)),
    };
    Ok(Some(
        bytes
            .split_inclusive(|byte| *byte == b'\n')
            .filter_map(|line| line.strip_suffix(b"\n"))
            .map(<[u8]>::to_vec)
            .collect(),
    ))
}

fn open(path: &Path, mode: u32) -> Result<(File, bool), DurableError> {
    let mut options = OpenOptions::new();
    options.read(true).append(true);
    match options.open(path) {
        Ok(file) => return Ok((file, false)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(DurableError::from_io("open", path, error)),
    }
    // Another writer may have created it meanwhile: then this opens that one.
    options.create(true).mode(mode);
    let file = options
        .open(path)
        .map_err(|error| DurableError::from_io("create", path, error))?;
    Ok((file, true))
}

/// Cuts the file after its last newline. Returns its length then.
fn cut_torn_line(file: &mut File) -> io::Result<u64> {
    const BLOCK: u64 = 4096;
    let length = file.seek(SeekFrom::End(0))?;
    let mut end = length;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        block.clear();
        file.seek(SeekFrom::Start(start))?;
        Read::by_ref(file).take(end - start).read_to_end(&mut block)?;
        if let Some(newline) = block.iter().rposition(|byte| *byte == b'\n') {
            end = start + newline as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length {
        file.set_len(end)?;
    }
    Ok(end)
}

#[cfg(test)]
mod tests;
