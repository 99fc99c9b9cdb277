//! Backups that are taken by themselves: a service and a timer of systemd.
//!
//! [`units`] makes their text of the configuration; [`install`] and [`remove`] put the files where systemd finds them
//! and take them away again. Files of these names that somebody else has written are left alone.

mod error;
mod systemd;
mod text;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pgmahout_durable::{remove_durably, write_atomically};
use serde::Serialize;

pub use error::ScheduleError;
pub use systemd::{Systemd, TimerState};
pub use text::{UnitSettings, units};

/// Where an administrator's units are.
pub const UNITS: &str = "/etc/systemd/system";

/// The first line of a unit that is ours.
const MARK: &str = "# Written by pgmahout backup schedule install.";

/// A file for systemd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// Its content.
    pub text: String,
}

/// The service that takes a backup, and the timer that starts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Units {
    /// The service.
    pub service: Unit,
    /// The timer.
    pub timer: Unit,
}

impl Units {
    /// Both.
    pub fn all(&self) -> [&Unit; 2] {
        [&self.service, &self.timer]
    }
}

/// The names of the service and the timer of a stanza. Whatever may be in the name of a stanza may be in theirs.
pub fn unit_names(stanza: &str) -> [String; 2] {
    [
        format!("pgmahout-backup-{stanza}.service"),
        format!("pgmahout-backup-{stanza}.timer"),
    ]
}

/// What is in the place of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Found {
    /// Nothing.
    Missing,
    /// What would be written.
    Current,
    /// What an earlier installation wrote.
    Outdated,
    /// Somebody else's file.
    Foreign,
}

/// What is in the place of a unit.
///
/// # Errors
///
/// When it cannot be read.
pub fn look(directory: &Path, unit: &Unit) -> Result<Found, ScheduleError> {
    Ok(match read(&directory.join(&unit.name))? {
        None => Found::Missing,
        Some(text) if text == unit.text => Found::Current,
        Some(text) if text.starts_with(MARK) => Found::Outdated,
        Some(_) => Found::Foreign,
    })
}

/// Writes the units, and gives the paths of those that changed.
///
/// # Errors
///
/// [`ScheduleError::Foreign`] where somebody else's file is in the way: then nothing is written; what the file system
/// says.
pub fn install(directory: &Path, units: &Units) -> Result<Vec<PathBuf>, ScheduleError> {
    let mut changed = Vec::new();
    for unit in units.all() {
        let path = directory.join(&unit.name);
        match look(directory, unit)? {
            Found::Current => {}
            Found::Foreign => return Err(ScheduleError::Foreign { path }),
            Found::Missing | Found::Outdated => changed.push((path, unit)),
        }
    }
    for (path, unit) in &changed {
        write_atomically(path, unit.text.as_bytes(), 0o644)?;
    }
    Ok(changed.into_iter().map(|(path, _)| path).collect())
}

/// Removes the units of a stanza, and gives the paths of those that were there.
///
/// # Errors
///
/// [`ScheduleError::Foreign`] where one is somebody else's: then nothing is removed; what the file system says.
pub fn remove(directory: &Path, stanza: &str) -> Result<Vec<PathBuf>, ScheduleError> {
    let mut there = Vec::new();
    for name in unit_names(stanza) {
        let path = directory.join(name);
        match read(&path)? {
            None => {}
            Some(text) if text.starts_with(MARK) => there.push(path),
            Some(_) => return Err(ScheduleError::Foreign { path }),
        }
    }
    for path in &there {
        remove_durably(path)?;
    }
    Ok(there)
}

fn read(path: &Path) -> Result<Option<String>, ScheduleError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ScheduleError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The account that a server's data directory belongs to, by name.
///
/// # Errors
///
/// When it cannot be found out, or is root, as which no server runs.
pub fn account(data_dir: &Path) -> Result<String, ScheduleError> {
    let metadata = fs::metadata(data_dir).map_err(|source| ScheduleError::Read {
        path: data_dir.to_owned(),
        source,
    })?;
    if metadata.uid() == 0 {
        return Err(ScheduleError::Root {
            data_dir: data_dir.to_owned(),
        });
    }
    Ok(crate::physical::restore::user_name(metadata.uid()))
}
