//! The figures of earlier reports: one JSON object a line, one file for each server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::health::Measure;

/// How many reports are remembered.
const MOST: usize = 400;

/// What one report measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The form of this object.
    pub schema_version: u32,
    /// When.
    pub at: jiff::Timestamp,
    /// Each check's main value.
    #[serde(default)]
    pub figures: BTreeMap<String, Measure>,
    /// Each table's size in bytes.
    #[serde(default)]
    pub tables: BTreeMap<String, i64>,
}

impl Entry {
    /// The form that this build writes.
    pub const VERSION: u32 = 1;
}

/// The reports of one server so far.
#[derive(Debug, Clone, Default)]
pub struct History {
    path: PathBuf,
    entries: Vec<Entry>,
}

impl History {
    /// Reads what is remembered of a server; lines that this build does not understand, such as the torn
    /// last one of a crash, are passed over.
    pub fn load(directory: &std::path::Path, target: &str) -> Self {
        let safe: String = target
            .chars()
            .map(|character| {
                if character.is_ascii_alphanumeric() || character == '.' {
                    character
                } else {
                    '_'
                }
            })
            .collect();
        let path = directory.join(format!("{safe}.jsonl"));
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let entries = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Entry>(line).ok())
            .filter(|entry| entry.schema_version == Entry::VERSION)
            .collect();
        Self { path, entries }
    }

    /// Remembers a report.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn remember(&mut self, entry: Entry) -> Result<(), pgmahout_durable::DurableError> {
        self.entries.push(entry);
        let surplus = self.entries.len().saturating_sub(MOST);
        self.entries.drain(..surplus);
        let mut text = String::new();
        for entry in &self.entries {
            // Maps with text keys and finite numbers always have a JSON form.
            text.push_str(&serde_json::to_string(entry).unwrap_or_default());
            text.push('\n');
        }
        if let Some(directory) = self.path.parent() {
            // What is wrong with the directory is said by the write below.
            let _ = std::fs::create_dir_all(directory);
        }
        pgmahout_durable::write_atomically(&self.path, text.as_bytes(), 0o600)
    }

    /// The entries that a report of this kind compares with, oldest first.
    pub fn window(&self, now: jiff::Timestamp, kind: Kind) -> Vec<&Entry> {
        match kind.days() {
            None => self.entries.iter().rev().take(10).rev().collect(),
            Some(days) => {
                let oldest = now.as_second() - days * 86_400 - 3_600;
                self.entries
                    .iter()
                    .filter(|entry| entry.at.as_second() >= oldest && entry.at < now)
                    .collect()
            }
        }
    }
}
