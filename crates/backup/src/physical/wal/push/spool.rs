//! Where segments wait while no repository can be reached, if that is configured.
//!
//! `DIRECTORY/STANZA/SYSTEM/FILE`, as the server wrote them and durable. PostgreSQL removes its own copy when it
//! is told that a segment is archived, so what lies here is the only one: the directory should be on another disk
//! than pg_wal, and nothing here is encrypted.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use bytes::Bytes;
use pgmahout_durable::{AtomicFile, Overwrite, create_directory_durably, remove_durably};
use pgmahout_types::{SystemIdentifier, WalFileName};

use super::super::error::WalError;
use super::super::file::WalFile;
use super::ledger::names_in;
use crate::physical::stanza::StanzaName;

/// The spool of a stanza.
#[derive(Debug, Clone)]
pub struct WalSpool {
    directory: PathBuf,
    limit: u64,
}

impl WalSpool {
    /// The spool of a stanza in a directory, which may hold so many bytes.
    pub fn new(directory: &std::path::Path, limit: u64, stanza: &StanzaName) -> Self {
        Self {
            directory: directory.join(stanza.as_str()),
            limit,
        }
    }

    fn of(&self, system: SystemIdentifier) -> PathBuf {
        self.directory.join(system.to_string())
    }

    /// The files that wait, the oldest first.
    pub fn waiting(&self, system: SystemIdentifier) -> Vec<WalFileName> {
        names_in(&self.of(system))
    }

    /// Bytes that wait.
    fn used(&self, system: SystemIdentifier) -> u64 {
        let Ok(entries) = fs::read_dir(self.of(system)) else {
            return 0;
        };
        entries
            .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
            .sum()
    }

    /// Takes a file, durably; `false` when the spool is full.
    ///
    /// # Errors
    ///
    /// [`WalError::Conflict`] when another file of this name waits; when it cannot be written.
    pub fn hold(&self, file: &WalFile) -> Result<bool, WalError> {
        let directory = self.of(file.system_identifier);
        let path = directory.join(file.name.to_string());
        if let Some(there) = self.read(file.name, file.system_identifier)? {
            return if there.blake3 == file.blake3 {
                Ok(true)
            } else {
                Err(WalError::Conflict {
                    repository: directory.display().to_string(),
                    name: file.name,
                })
            };
        }
        if self.used(file.system_identifier) + file.content.len() as u64 > self.limit {
            return Ok(false);
        }
        create_directory_durably(&directory, 0o700)?;
        let mut held = AtomicFile::create(&path, 0o600)?;
        held.write_all(&file.content).map_err(|source| WalError::Io {
            doing: "write",
            path,
            source,
        })?;
        held.publish(Overwrite::Refuse)?;
        Ok(true)
    }

    /// A file that waits.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is not what its name says.
    pub fn read(&self, name: WalFileName, system: SystemIdentifier) -> Result<Option<WalFile>, WalError> {
        let path = self.of(system).join(name.to_string());
        match fs::read(&path) {
            Ok(content) => WalFile::new(name, Bytes::from(content), system).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(WalError::Io {
                doing: "read",
                path,
                source,
            }),
        }
    }

    /// A file has reached the repositories.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn release(&self, name: WalFileName, system: SystemIdentifier) -> Result<(), WalError> {
        remove_durably(self.of(system).join(name.to_string()))?;
        Ok(())
    }
}
