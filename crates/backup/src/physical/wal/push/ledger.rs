//! What `wal push` remembers between its calls, in the state directory.
//!
//! ```text
//! wal/STANZA/pushed               one line of JSON for each file that was stored
//! wal/STANZA/owed/REPOSITORY/FILE empty files: what a repository that was down has not got yet
//! wal/STANZA/gaps/FILE            segments that were given up, until all repositories know of it
//! ```
//!
//! A line of `pushed` is written when the file is durable in the repositories that it names. Losing a line costs
//! one comparison with the archive, so several processes may append at once and a torn line is passed over.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pgmahout_durable::{create_directory_durably, remove_durably, write_atomically};
use pgmahout_procedure::StateDirectory;
use pgmahout_types::repository::Digest;
use pgmahout_types::{SystemIdentifier, WalFileName};
use serde::{Deserialize, Serialize};

use super::super::error::WalError;
use super::super::place::Binding;
use crate::physical::stanza::StanzaName;

/// A longer list of what was pushed is cut.
const LONGEST: u64 = 512 << 10;
/// To so many of its last lines.
const KEPT: usize = 400;

/// The memory of `wal push`.
#[derive(Debug, Clone)]
pub struct PushLedger {
    directory: PathBuf,
}

/// A file that was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pushed {
    pub(super) name: WalFileName,
    pub(super) blake3: Digest,
    pub(super) system: SystemIdentifier,
    pub(super) at: Timestamp,
    /// The repositories that hold it.
    pub(super) held: Vec<Binding>,
}

/// A segment that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GivenUp {
    pub(super) at: Timestamp,
    pub(super) reason: String,
}

impl PushLedger {
    /// The ledger of a stanza in a state directory; made at the first write.
    pub fn new(state: &StateDirectory, stanza: &StanzaName) -> Self {
        Self {
            directory: state.path().join("wal").join(stanza.as_str()),
        }
    }

    fn pushed(&self) -> PathBuf {
        self.directory.join("pushed")
    }

    fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Ok(mut file) = fs::File::open(self.pushed()) {
            let _ = file.read_to_end(&mut text);
        }
        text
    }

    /// What was pushed, the newest last. What cannot be read was not.
    pub(super) fn read(&self) -> Vec<Pushed> {
        self.text()
            .split(|&byte| byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()
    }

    /// The records under this name, the newest last.
    pub(super) fn noted(&self, name: WalFileName) -> Vec<Pushed> {
        let written = name.to_string();
        let finder = memchr::memmem::Finder::new(&written);
        self.text()
            .split(|&byte| byte == b'\n')
            .filter(|line| finder.find(line).is_some())
            .filter_map(|line| serde_json::from_slice(line).ok())
            .filter(|pushed: &Pushed| pushed.name == name)
            .collect()
    }

    /// Notes that a file is durable in some repositories.
    pub(super) fn append(&self, pushed: &Pushed) -> Result<(), WalError> {
        create_directory_durably(&self.directory, 0o700)?;
        let path = self.pushed();
        let failed = |source| WalError::Io {
            doing: "write",
            path: path.clone(),
            source,
        };
        let mut line = vec![b'\n'];
        line.extend(serde_json::to_vec(pushed).unwrap_or_default());
        line.push(b'\n');
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        file.write_all(&line).map_err(failed)
    }

    /// Forgets what was pushed: for whoever takes a repository that was set back as it is.
    ///
    /// # Errors
    ///
    /// When the file cannot be removed.
    pub fn forget(&self) -> Result<(), WalError> {
        remove_durably(self.pushed())?;
        Ok(())
    }

    /// Makes the list durable, and cuts it where it has grown long.
    pub(super) fn settle(&self) -> Result<(), WalError> {
        let path = self.pushed();
        let Ok(file) = fs::File::open(&path) else {
            return Ok(());
        };
        let failed = |source| WalError::Io {
            doing: "fsync",
            path: path.clone(),
            source,
        };
        if file.metadata().map_err(failed)?.len() <= LONGEST {
            return file.sync_data().map_err(failed);
        }
        let all = self.read();
        let mut text = Vec::new();
        for pushed in all.iter().skip(all.len().saturating_sub(KEPT)) {
            text.extend(serde_json::to_vec(pushed).unwrap_or_default());
            text.push(b'\n');
        }
        write_atomically(&path, &text, 0o600)?;
        Ok(())
    }

    fn owed_directory(&self, repository: &str) -> PathBuf {
        self.directory
            .join("owed")
            .join(pgmahout_store::repository::encode_component(repository))
    }

    /// Notes that a repository still has to get a file, durably.
    pub(super) fn owe(&self, repository: &str, name: WalFileName) -> Result<(), WalError> {
        let directory = self.owed_directory(repository);
        create_directory_durably(&directory, 0o700)?;
        write_atomically(directory.join(name.to_string()), b"", 0o600)?;
        Ok(())
    }

    /// What a repository still has to get, the oldest first.
    pub(super) fn owed(&self, repository: &str) -> Vec<WalFileName> {
        names_in(&self.owed_directory(repository))
    }

    /// A repository has got what it was owed.
    pub(super) fn paid(&self, repository: &str, name: WalFileName) -> Result<(), WalError> {
        remove_durably(self.owed_directory(repository).join(name.to_string()))?;
        Ok(())
    }

    /// Notes that a segment was given up, durably.
    pub(super) fn give_up(&self, name: WalFileName, given: &GivenUp) -> Result<(), WalError> {
        let directory = self.directory.join("gaps");
        create_directory_durably(&directory, 0o700)?;
        let text = serde_json::to_vec(given).unwrap_or_default();
        write_atomically(directory.join(name.to_string()), &text, 0o600)?;
        Ok(())
    }

    /// Segments that were given up and that not all repositories know of.
    pub(super) fn given_up(&self) -> Vec<(WalFileName, GivenUp)> {
        let directory = self.directory.join("gaps");
        names_in(&directory)
            .into_iter()
            .filter_map(|name| {
                let text = fs::read(directory.join(name.to_string())).ok()?;
                Some((name, serde_json::from_slice(&text).ok()?))
            })
            .collect()
    }

    /// All repositories know that a segment was given up.
    pub(super) fn told(&self, name: WalFileName) -> Result<(), WalError> {
        remove_durably(self.directory.join("gaps").join(name.to_string()))?;
        Ok(())
    }
}

/// The WAL files in a directory, by name; none where there is no such directory.
pub(super) fn names_in(directory: &Path) -> Vec<WalFileName> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<WalFileName> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    names.sort_unstable();
    names
}

/// The files that wait in pg_wal to be archived, as `archive_status` says, the oldest first.
pub fn ready_in(pg_wal: &Path) -> Vec<WalFileName> {
    let Ok(entries) = fs::read_dir(pg_wal.join("archive_status")) else {
        return Vec::new();
    };
    let mut names: Vec<WalFileName> = entries
        .filter_map(|entry| {
            entry
                .ok()?
                .file_name()
                .to_str()?
                .strip_suffix(".ready")?
                .parse()
                .ok()
        })
        .collect();
    names.sort_unstable();
    names
}
