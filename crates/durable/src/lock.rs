//! Locks between processes, by a file.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgmahout_types::diagnostic::{Diagnose, Outcome};
use rustix::fs::OFlags;

use crate::error::DurableError;

/// How long to wait between two looks at a lock that somebody else holds.
const POLL: Duration = Duration::from_millis(20);

/// Who holds a lock, as the holder wrote it into the lock's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockOwner {
    /// The process, as numbered where it runs: a container numbers its own.
    pub process: u32,
    /// What the holder said of itself, for example `procedure 20261121T080000-3f2a (dump restore)`.
    pub description: String,
}

impl std::fmt::Display for LockOwner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}, process {}", self.description, self.process)
    }
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else has it.
    #[error("{} is locked by {}", path.display(), owner.as_ref().map_or_else(|| "another process".to_owned(), ToString::to_string))]
    Held {
        /// The lock's file.
        path: PathBuf,
        /// Who, where the holder has written it in already.
        owner: Option<LockOwner>,
        /// How long we waited for it.
        waited: Duration,
    },
    /// The lock's file cannot be opened or written.
    #[error(transparent)]
    File(#[from] DurableError),
}

impl Diagnose for LockError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Held {
                owner: Some(owner), ..
            } => Some(format!(
                "wait until it has ended; to see the process: ps -fp {}",
                owner.process
            )),
            Self::Held {
                owner: None, path, ..
            } => Some(format!(
                "wait until it has ended; to see who it is: fuser -v {}",
                path.display()
            )),
            Self::File(error) => error.hint(),
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Held { .. } => Outcome::Refused,
            Self::File(error) => error.outcome(),
        }
    }
}

/// An exclusive lock that other processes of this machine see, held until it is dropped. It dies with the
/// process (`flock`), so that a crashed holder never has to be freed by hand. The file stays.
///
/// The file is made readable and writable for everybody (0666), so that root and the server's user can
/// share it in a directory that both can write to; put it in a private directory where only one user
/// counts. Links are not followed.
#[derive(Debug)]
pub struct FileLock {
    file: File,
    path: PathBuf,
    shared: bool,
}

impl FileLock {
    /// Takes the lock if it is free. `description` says who we are to those who find it held.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] when it is not free.
    pub fn try_acquire(path: impl AsRef<Path>, description: &str) -> Result<Self, LockError> {
        Self::acquire(path, description, Duration::ZERO)
    }

    /// Takes the lock, waiting for it at most `patience`. Blocks the thread meanwhile.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] when it was not free in time.
    pub fn acquire(path: impl AsRef<Path>, description: &str, patience: Duration) -> Result<Self, LockError> {
        let path = path.as_ref();
        let mut file = wait_for(path, patience, File::try_lock)?;
        let owner = LockOwner {
            process: std::process::id(),
            description: description.replace('\n', " "),
        };
        write_owner(&mut file, &owner).map_err(|error| DurableError::from_io("write", path, error))?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
            shared: false,
        })
    }

    /// Takes a share of the lock, waiting for it at most `patience`: any number of sharers at once, but
    /// none beside an exclusive holder. Sharers do not write their names in.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] when somebody held it exclusively for that long.
    pub fn acquire_shared(path: impl AsRef<Path>, patience: Duration) -> Result<Self, LockError> {
        let path = path.as_ref();
        let file = wait_for(path, patience, File::try_lock_shared)?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
            shared: true,
        })
    }

    /// Who holds the lock exclusively, as far as its file says. `None` when nobody does.
    pub fn owner(path: impl AsRef<Path>) -> Option<LockOwner> {
        let mut file = open_existing(path.as_ref()).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => read_owner(&mut file),
            _ => None,
        }
    }

    /// The lock's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing the file frees the lock; the name in it would mislead whoever looks.
        if !self.shared {
            let _ = self.file.set_len(0);
        }
    }
}

/// Opens the lock's file and tries to lock it until that works or the time is over.
fn wait_for(
    path: &Path,
    patience: Duration,
    try_lock: impl Fn(&File) -> Result<(), TryLockError>,
) -> Result<File, LockError> {
    let started = Instant::now();
    let mut file = open(path)?;
    loop {
        match try_lock(&file) {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if started.elapsed() < patience => std::thread::sleep(POLL),
            Err(TryLockError::WouldBlock) => {
                let owner = read_owner(&mut file);
                return Err(LockError::Held {
                    path: path.to_path_buf(),
                    owner,
                    waited: started.elapsed(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(DurableError::from_io("lock", path, error).into()),
        }
    }
}

/// Opens the lock's file, creating it if it is missing.
///
/// Never with `O_CREAT` on an existing file: in a sticky directory that everybody can write to, Linux
/// refuses that even to root when the file is somebody else's (`fs.protected_regular`).
fn open(path: &Path) -> Result<File, DurableError> {
    loop {
        match open_existing(path) {
            Ok(file) => return Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(DurableError::from_io("open", path, error)),
        }
        match OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o666)
            .open(path)
        {
            Ok(file) => {
                file.set_permissions(Permissions::from_mode(0o666))
                    .map_err(|error| DurableError::from_io("set the mode of", path, error))?;
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(DurableError::from_io("create", path, error)),
        }
    }
}

fn open_existing(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
}

fn write_owner(file: &mut File, owner: &LockOwner) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(format!("{}\n{}\n", owner.process, owner.description).as_bytes())
}

fn read_owner(file: &mut File) -> Option<LockOwner> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    Read::by_ref(file).take(4096).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let mut lines = text.lines();
    let process = lines.next()?.parse().ok()?;
    let description: String = lines
        .next()?
        .chars()
        .filter(|character| !character.is_control())
        .collect();
    Some(LockOwner { process, description })
}

#[cfg(test)]
mod tests;
