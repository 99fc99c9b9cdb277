//! When each object was last found whole, on this host.
//!
//! One small file for each repository and stanza in the state directory, `repositories/ID.STANZA.verified`:
//! a line for each object, its name and the seconds since 1970. Lost, it costs reading everything again, and
//! nothing else.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use jiff::Timestamp;
use pgmahout_durable::{DurableError, create_directory_durably, write_atomically};
use pgmahout_procedure::StateDirectory;

use super::ObjectName;
use crate::physical::stanza::PhysicalRepository;

/// When each object was last found whole.
#[derive(Debug, Default)]
pub struct VerifyMemory {
    file: Option<PathBuf>,
    times: BTreeMap<ObjectName, i64>,
    is_changed: bool,
}

impl VerifyMemory {
    /// What this host remembers of a repository's stanza. What cannot be read is not remembered.
    pub fn load(state: &StateDirectory, repository: &PhysicalRepository) -> Self {
        let name = format!("{}.{}.verified", repository.id(), repository.stanza());
        let file = state.path().join("repositories").join(name);
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        Self {
            times: parse(&text),
            file: Some(file),
            is_changed: false,
        }
    }

    /// A memory that ends with the process.
    pub fn none() -> Self {
        Self::default()
    }

    /// When the object was last found whole.
    pub fn last(&self, name: &ObjectName) -> Option<Timestamp> {
        let seconds = self.times.get(name)?;
        Timestamp::from_second(*seconds).ok()
    }

    /// Notes that the object was found whole at a time, or with `None` that it was not.
    pub(super) fn note(&mut self, name: &ObjectName, whole: Option<Timestamp>) {
        self.is_changed = true;
        match whole {
            Some(time) => {
                self.times.insert(*name, time.as_second());
            }
            None => {
                self.times.remove(name);
            }
        }
    }

    /// Forgets all objects but these.
    pub(super) fn retain(&mut self, known: impl Fn(&ObjectName) -> bool) {
        let before = self.times.len();
        self.times.retain(|name, _| known(name));
        self.is_changed |= self.times.len() != before;
    }

    /// Writes it down, where something changed.
    ///
    /// # Errors
    ///
    /// When the state directory cannot be written to.
    pub fn save(&mut self) -> Result<(), DurableError> {
        let Some(file) = self.file.as_ref().filter(|_| self.is_changed) else {
            return Ok(());
        };
        let mut text = String::with_capacity(self.times.len() * 56);
        for (name, seconds) in &self.times {
            let _ = writeln!(text, "{name} {seconds}");
        }
        if let Some(directory) = file.parent() {
            create_directory_durably(directory, 0o700)?;
        }
        write_atomically(file, text.as_bytes(), 0o600)?;
        self.is_changed = false;
        Ok(())
    }
}

fn parse(text: &str) -> BTreeMap<ObjectName, i64> {
    text.lines()
        .filter_map(|line| {
            let (name, seconds) = line.rsplit_once(' ')?;
            Some((name.parse().ok()?, seconds.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_not_ours_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let mut memory = VerifyMemory {
            file: Some(directory.path().join("state/x.verified")),
            ..VerifyMemory::none()
        };
        let names = [
            "pack abababababababababababababababab",
            "manifest 20261121T104500Z-3f9a",
            "references 20261121T104500Z-3f9a",
            "wal 000000010000000000000003",
        ];
        let now = Timestamp::from_second(1_790_000_000).unwrap();
        for name in names {
            memory.note(&name.parse().unwrap(), Some(now));
        }
        memory.note(&names[3].parse().unwrap(), None);
        memory.save().unwrap();
        let text = std::fs::read_to_string(directory.path().join("state/x.verified")).unwrap();
        let times = parse(&format!("{text}other thing\npack zz 5\n"));
        assert_eq!(times.len(), 3, "{text}");
        assert_eq!(times, memory.times);
        assert_eq!(memory.last(&names[0].parse().unwrap()), Some(now));
        memory.retain(|name| !matches!(name, ObjectName::Pack(_)));
        assert_eq!(memory.last(&names[0].parse().unwrap()), None);
    }
}
