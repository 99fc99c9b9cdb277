//! Directories: making names durable, and sweeping up what crashes left.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;

use crate::atomic::is_temporary_name;
use crate::error::{DurableError, parent_of};

/// Makes the names in a directory durable: what was created, renamed or removed in it stays so after a
/// crash.
///
/// File systems that cannot fsync a directory say `EINVAL` or `EBADF`; that is ignored, as PostgreSQL does
/// (`fsync_fname_ext` in src/backend/storage/file/fd.c).
///
/// # Errors
///
/// When the directory cannot be opened or the fsync fails.
pub fn sync_directory(directory: impl AsRef<Path>) -> Result<(), DurableError> {
    let directory = directory.as_ref();
    let handle = File::open(directory).map_err(|error| DurableError::from_io("open", directory, error))?;
    match handle.sync_all() {
        Err(error) if !matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::BADF)) => {
            Err(DurableError::from_io("fsync", directory, error))
        }
        _ => Ok(()),
    }
}

/// Creates a directory and what is missing above it, each with `mode` (less the umask), each made durable
/// in its parent. An existing directory is success and keeps its mode.
///
/// # Errors
///
/// When one of them cannot be created, or something that is no directory is in the way.
pub fn create_directory_durably(directory: impl AsRef<Path>, mode: u32) -> Result<(), DurableError> {
    let directory = directory.as_ref();
    if directory.is_dir() {
        return Ok(());
    }
    let parent = parent_of(directory);
    if parent != directory && !parent.is_dir() {
        create_directory_durably(parent, mode)?;
    }
    match DirBuilder::new().mode(mode).create(directory) {
        Ok(()) => sync_directory(parent),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        Err(error) => Err(DurableError::from_io("create directory", directory, error)),
    }
}

/// Removes a file and makes the removal durable. `false` when there was none.
///
/// # Errors
///
/// When it cannot be removed, or the directory not fsynced.
pub fn remove_durably(path: impl AsRef<Path>) -> Result<bool, DurableError> {
    let path = path.as_ref();
    match fs::remove_file(path) {
        Ok(()) => sync_directory(parent_of(path)).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DurableError::from_io("remove", path, error)),
    }
}

/// Removes the temporaries that killed processes left in a directory, and says how many there were.
///
/// A temporary is stale when its name is one of ours, it was last written longer than `older_than` ago and
/// nobody holds the lock that a living [`crate::AtomicFile`] holds on it. Directories below are not
/// entered. What cannot be judged or removed is left.
///
/// # Errors
///
/// When the directory cannot be read.
pub fn remove_stale_temporaries(
    directory: impl AsRef<Path>,
    older_than: Duration,
) -> Result<usize, DurableError> {
    let directory = directory.as_ref();
    let entries = fs::read_dir(directory).map_err(|error| DurableError::from_io("read", directory, error))?;
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(|error| DurableError::from_io("read", directory, error))?;
        if !entry.file_name().to_str().is_some_and(is_temporary_name) {
            continue;
        }
        if is_abandoned(&entry.path(), older_than) && fs::remove_file(entry.path()).is_ok() {
            removed += 1;
        }
    }
    if removed > 0 {
        sync_directory(directory)?;
    }
    Ok(removed)
}

/// Whether a temporary is old enough and its lock is free.
fn is_abandoned(path: &Path, older_than: Duration) -> bool {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
    let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(path) else {
        return false;
    };
    let Ok(metadata) = file.metadata() else {
        return false;
    };
    let age = metadata
        .modified()
        .ok()
        .and_then(|time| SystemTime::now().duration_since(time).ok());
    metadata.is_file() && age.is_some_and(|age| age >= older_than) && file.try_lock().is_ok()
}
