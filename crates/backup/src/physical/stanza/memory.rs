//! What this host remembers of repositories: the newest head that it has seen of each stanza.
//!
//! A repository whose storage was set back to an older state (a restored disk, a bucket copied from last week)
//! looks whole. Only somebody who has seen the newer state can tell. So the greatest number of a head is kept in
//! the state directory with that head's nonce, by the repository's id and the stanza, one small file each: a
//! number may come again after a rollback, a nonce does not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pgmahout_durable::{DurableError, FileLock, LockError, create_directory_durably, write_atomically};
use pgmahout_procedure::StateDirectory;
use pgmahout_types::repository::Nonce;

use super::names::StanzaName;

/// A head that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenHead {
    /// Its number.
    pub sequence: u64,
    /// Its nonce.
    pub nonce: Nonce,
}

/// How long to wait for another process that is writing its memory down.
const PATIENCE: Duration = Duration::from_secs(5);

/// The memory of this host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RepositoryMemory {
    directory: Option<PathBuf>,
}

impl RepositoryMemory {
    /// The memory in a state directory; made at the first write.
    pub fn new(state: &StateDirectory) -> Self {
        Self {
            directory: Some(state.path().join("repositories")),
        }
    }

    /// A memory that keeps nothing: a rollback of the repository is not noticed.
    pub fn none() -> Self {
        Self { directory: None }
    }

    fn path(directory: &Path, repository: &str, stanza: &StanzaName) -> PathBuf {
        directory.join(format!("{repository}.{stanza}.head"))
    }

    /// The greatest head that was seen; `None` where none was, or nothing can be read.
    pub fn recall(&self, repository: &str, stanza: &StanzaName) -> Option<SeenHead> {
        let path = Self::path(self.directory.as_deref()?, repository, stanza);
        read(&path)
    }

    /// Writes down that a head was seen. A smaller number than what is there changes nothing.
    ///
    /// # Errors
    ///
    /// When it cannot be written down; nothing is lost by that but the protection.
    pub fn remember(&self, repository: &str, stanza: &StanzaName, seen: SeenHead) -> Result<(), MemoryError> {
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        let path = Self::path(directory, repository, stanza);
        if read(&path).is_some_and(|known| known.sequence >= seen.sequence) {
            return Ok(());
        }
        create_directory_durably(directory, 0o700)?;
        let _lock = FileLock::acquire(path.with_extension("lock"), "remembering a head", PATIENCE)?;
        if read(&path).is_some_and(|known| known.sequence >= seen.sequence) {
            return Ok(());
        }
        write_atomically(
            &path,
            format!("{} {}\n", seen.sequence, seen.nonce).as_bytes(),
            0o600,
        )?;
        Ok(())
    }

    /// Forgets a stanza: for whoever set the repository back on purpose.
    ///
    /// # Errors
    ///
    /// When the file cannot be removed.
    pub fn forget(&self, repository: &str, stanza: &StanzaName) -> Result<(), MemoryError> {
        if let Some(directory) = &self.directory {
            pgmahout_durable::remove_durably(Self::path(directory, repository, stanza))?;
        }
        Ok(())
    }

    /// The file that remembers a stanza, for a hint.
    pub fn file(&self, repository: &str, stanza: &StanzaName) -> Option<PathBuf> {
        let directory = self.directory.as_deref()?;
        Some(Self::path(directory, repository, stanza))
    }
}

fn read(path: &Path) -> Option<SeenHead> {
    let text = std::fs::read_to_string(path).ok()?;
    let (sequence, nonce) = text.trim().split_once(' ')?;
    Some(SeenHead {
        sequence: sequence.parse().ok()?,
        nonce: nonce.parse().ok()?,
    })
}

/// Why a head could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The state directory cannot be written to.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// Another process holds the file.
    #[error(transparent)]
    Lock(#[from] LockError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(sequence: u64) -> SeenHead {
        let nonce = Nonce::from_bytes([sequence as u8; 16]);
        SeenHead { sequence, nonce }
    }

    #[test]
    fn the_greatest_head_is_remembered_by_repository_and_stanza() {
        let directory = tempfile::tempdir().unwrap();
        let memory = RepositoryMemory::new(&StateDirectory::at(directory.path().join("state")));
        let stanza: StanzaName = "main".parse().unwrap();
        assert_eq!(memory.recall("a", &stanza), None);
        for sequence in [5, 7, 6] {
            memory.remember("a", &stanza, seen(sequence)).unwrap();
        }
        memory.remember("b", &stanza, seen(2)).unwrap();
        assert_eq!(memory.recall("a", &stanza), Some(seen(7)));
        assert_eq!(memory.recall("b", &stanza), Some(seen(2)));
        assert_eq!(memory.recall("a", &"other".parse().unwrap()), None);
        memory.forget("a", &stanza).unwrap();
        assert_eq!(memory.recall("a", &stanza), None);
    }

    #[test]
    fn writers_that_race_never_lower_it() {
        let directory = tempfile::tempdir().unwrap();
        let memory = RepositoryMemory::new(&StateDirectory::at(directory.path()));
        let stanza: StanzaName = "main".parse().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (memory, stanza) = (&memory, &stanza);
                scope.spawn(move || {
                    for round in 0..20 {
                        memory.remember("a", stanza, seen(round * 4 + thread)).unwrap();
                    }
                });
            }
        });
        assert_eq!(memory.recall("a", &stanza), Some(seen(79)));
    }
}
