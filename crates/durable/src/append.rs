//! Journals: files that grow by whole lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::directory::sync_directory;
use crate::error::{DurableError, parent_of};

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
    debug_assert!(!line.contains(&b'\n'), "a journal record is one line");
    let (mut file, created) = open(path, mode)?;
    file.lock()
        .map_err(|error| DurableError::from_io("lock", path, error))?;
    let length = cut_torn_line(&mut file).map_err(|error| DurableError::from_io("repair", path, error))?;
    let mut record = Vec::with_capacity(line.len() + 1);
    record.extend_from_slice(line);
    record.push(b'\n');
    if let Err(error) = file.write_all(&record) {
        let _ = file.set_len(length);
        return Err(DurableError::from_io("append to", path, error));
    }
    file.sync_data()
        .map_err(|error| DurableError::from_io("fsync", path, error))?;
    if created || length == 0 {
        sync_directory(parent_of(path))?;
    }
    Ok(())
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
