//! What is remembered from one run to the next: counters, and since when something is so.
//!
//! One JSON file for each server in the state directory, named by the cluster's system identifier and the
//! target, written whole. It is read tolerantly: a file of another version is as good as none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Counters of one database since its statistics were reset (`pg_stat_database`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DatabaseCounters {
    /// Transactions committed.
    pub commits: i64,
    /// Transactions rolled back.
    pub rollbacks: i64,
    /// Blocks read from outside the shared buffers.
    pub blocks_read: i64,
    /// Blocks found in the shared buffers.
    pub blocks_hit: i64,
    /// Deadlocks.
    pub deadlocks: i64,
    /// Statements cancelled by recovery on a standby.
    pub conflicts: i64,
    /// When the counters were reset, in seconds since the epoch.
    pub reset: Option<f64>,
}

/// The state of one server at one time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// The form of this file.
    pub schema_version: u32,
    /// By the server's clock, in seconds since the epoch.
    pub taken: f64,
    /// When the server had started.
    pub server_started: f64,
    /// Each database's counters.
    pub databases: BTreeMap<String, DatabaseCounters>,
    /// Since when something holds that is only trouble once it lasts, in seconds since the epoch, by a key
    /// such as `vacuum.needed shop.public.orders`.
    pub since: BTreeMap<String, f64>,
    /// Single values that a check compares with the last run's.
    pub values: BTreeMap<String, f64>,
}

impl Sample {
    /// The form that this build writes.
    pub const VERSION: u32 = 1;
    /// A sample older than this says nothing about now.
    pub const OLDEST_SECONDS: f64 = 7.0 * 86_400.0;

    /// What happened between two samples: the counters' differences of the databases that are in both and
    /// were not reset in between, and the seconds. None where the second is not later.
    pub fn since(&self, earlier: &Self) -> Option<Window> {
        let seconds = self.taken - earlier.taken;
        if seconds <= 0.0 || seconds > Self::OLDEST_SECONDS {
            return None;
        }
        let mut databases = BTreeMap::new();
        for (name, now) in &self.databases {
            let Some(before) = earlier.databases.get(name) else {
                continue;
            };
            let difference = DatabaseCounters {
                commits: now.commits - before.commits,
                rollbacks: now.rollbacks - before.rollbacks,
                blocks_read: now.blocks_read - before.blocks_read,
                blocks_hit: now.blocks_hit - before.blocks_hit,
                deadlocks: now.deadlocks - before.deadlocks,
                conflicts: now.conflicts - before.conflicts,
                reset: now.reset,
            };
            let went_back = [
                difference.commits,
                difference.rollbacks,
                difference.blocks_read,
                difference.blocks_hit,
                difference.deadlocks,
                difference.conflicts,
            ]
            .iter()
            .any(|value| *value < 0);
            if now.reset == before.reset && !went_back {
                databases.insert(name.clone(), difference);
            }
        }
        Some(Window { seconds, databases })
    }
}

/// What happened between two samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// How long it was.
    pub seconds: f64,
    /// What each database did in it.
    pub databases: BTreeMap<String, DatabaseCounters>,
}

impl Window {
    /// One counter over all databases.
    pub fn sum(&self, counter: impl Fn(&DatabaseCounters) -> i64) -> i64 {
        self.databases.values().map(counter).sum()
    }
}

/// Where samples are kept.
#[derive(Debug, Clone)]
pub struct SampleStore {
    directory: PathBuf,
}

impl SampleStore {
    /// Samples in this directory, made when the first is written.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    fn path(&self, system_identifier: &str, target: &str) -> PathBuf {
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
        self.directory.join(format!("{system_identifier}-{safe}.json"))
    }

    /// The last sample of this server, where there is one that this build understands.
    pub fn load(&self, system_identifier: &str, target: &str) -> Option<Sample> {
        let text = std::fs::read_to_string(self.path(system_identifier, target)).ok()?;
        let sample: Sample = serde_json::from_str(&text).ok()?;
        (sample.schema_version == Sample::VERSION).then_some(sample)
    }

    /// Keeps a sample in place of the last one.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be made or written, as one line.
    pub fn save(&self, system_identifier: &str, target: &str, sample: &Sample) -> Result<PathBuf, String> {
        let path = self.path(system_identifier, target);
        std::fs::create_dir_all(&self.directory)
            .map_err(|error| format!("cannot make {}: {error}", self.directory.display()))?;
        let text = serde_json::to_vec(sample).map_err(|error| error.to_string())?;
        write(&path, &text)?;
        Ok(path)
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    pgmahout_durable::write_atomically(path, bytes, 0o600).map_err(|error| super::failure::chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(taken: f64, commits: i64, reset: Option<f64>) -> Sample {
        Sample {
            schema_version: Sample::VERSION,
            taken,
            databases: BTreeMap::from([(
                "shop".to_owned(),
                DatabaseCounters {
                    commits,
                    reset,
                    ..DatabaseCounters::default()
                },
            )]),
            ..Sample::default()
        }
    }

    #[test]
    fn what_happened_is_the_difference() {
        let window = sample(110.0, 150, None).since(&sample(100.0, 100, None)).unwrap();
        assert!((window.seconds - 10.0).abs() < 1e-9);
        assert_eq!(window.sum(|counters| counters.commits), 50);
    }

    #[test]
    fn counters_that_were_reset_do_not_count() {
        let reset = sample(110.0, 150, Some(105.0))
            .since(&sample(100.0, 100, None))
            .unwrap();
        assert!(reset.databases.is_empty());
        let went_back = sample(110.0, 50, None).since(&sample(100.0, 100, None)).unwrap();
        assert!(went_back.databases.is_empty());
    }

    #[test]
    fn a_sample_of_next_week_or_last_month_says_nothing() {
        assert!(sample(100.0, 1, None).since(&sample(110.0, 1, None)).is_none());
        assert!(sample(3e6, 1, None).since(&sample(100.0, 1, None)).is_none());
    }

    #[test]
    fn a_sample_survives_the_file_and_a_damaged_file_is_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let store = SampleStore::new(directory.path().join("health"));
        assert!(store.load("1", "db1:5432").is_none());
        let path = store.save("1", "db1:5432", &sample(1.0, 2, None)).unwrap();
        assert_eq!(store.load("1", "db1:5432").unwrap(), sample(1.0, 2, None));
        std::fs::write(path, "{").unwrap();
        assert!(store.load("1", "db1:5432").is_none());
    }
}
