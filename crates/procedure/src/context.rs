//! What steps are given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use pgmahout_durable::DurableError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::error::StepError;
use crate::journal::{JournalWriter, Record};
use crate::report::Reporter;

/// What preflight, plan, steps and verification are given.
pub struct StepContext<'a> {
    /// Where to report to.
    pub reporter: &'a dyn Reporter,
    /// Cancelled when a signal asks us to stop. A step that takes long watches it, and leaves things so
    /// that it can be made again.
    pub cancellation: &'a CancellationToken,
    /// What earlier steps have left for later ones.
    pub memory: &'a Memory,
    /// Whether the procedure goes on after having been interrupted.
    pub resuming: bool,
}

impl StepContext<'_> {
    /// Fails when a signal has asked us to stop: for loops inside a step.
    ///
    /// # Errors
    ///
    /// [`StepError`] with the outcome Interrupted.
    pub fn check_cancelled(&self) -> Result<(), StepError> {
        if self.cancellation.is_cancelled() {
            Err(StepError::interrupted())
        } else {
            Ok(())
        }
    }
}

/// What was measured while the procedure ran, for its audit record.
#[derive(Debug, Clone, PartialEq)]
pub enum Measurement {
    /// How long clients could not use what they should be able to use.
    Downtime(Duration),
    /// What was lost, in words with figures: `0 bytes of WAL`, `writes of the last 14 s`.
    DataLoss(String),
}

const DOWNTIME: &str = "audit.downtime_seconds";
const DATA_LOSS: &str = "audit.data_loss";

/// A small store of facts that later steps need (the LSN at which something was promoted, the name of the
/// old database), kept in the journal so that a resumed procedure has them too. No secrets: journals are
/// read by people.
#[derive(Debug, Default)]
pub struct Memory {
    state: Mutex<MemoryState>,
}

#[derive(Debug, Default)]
struct MemoryState {
    values: BTreeMap<String, Value>,
    /// The names of those that are not in a journal yet.
    unkept: BTreeSet<String>,
    /// Where it is kept; none before the plan is confirmed, and in tests of single steps.
    journal: Option<JournalWriter>,
}

impl Memory {
    /// A memory with nothing in it that is kept nowhere: for tests of steps, and for looking.
    pub fn unkept() -> Self {
        Self::default()
    }

    pub(crate) fn with_values(values: BTreeMap<String, Value>) -> Self {
        Self {
            state: Mutex::new(MemoryState {
                values,
                ..MemoryState::default()
            }),
        }
    }

    /// From now on everything is kept in a journal; so is what preflight and plan have left.
    pub(crate) fn keep_in(&self, journal: JournalWriter) -> Result<(), DurableError> {
        let mut state = self.lock();
        for name in std::mem::take(&mut state.unkept) {
            let value = state.values.get(&name).cloned().unwrap_or_default();
            journal.write(&Record::Remembered { name, value })?;
        }
        state.journal = Some(journal);
        Ok(())
    }

    /// What was remembered under a name. `None` when nothing was, or something of another type.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let value = self.lock().values.get(name)?.clone();
        serde_json::from_value(value).ok()
    }

    /// Remembers a fact. When it returns, it is on the disk.
    ///
    /// # Errors
    ///
    /// When the journal cannot be written.
    pub fn set(&self, name: &str, value: impl Serialize) -> Result<(), StepError> {
        let value = serde_json::to_value(value)
            .map_err(|error| StepError::failed(format!("cannot remember {name}: {error}")))?;
        let mut state = self.lock();
        if state.values.get(name) == Some(&value) {
            return Ok(());
        }
        if let Some(journal) = &state.journal {
            journal.write(&Record::Remembered {
                name: name.to_owned(),
                value: value.clone(),
            })?;
        } else {
            state.unkept.insert(name.to_owned());
        }
        state.values.insert(name.to_owned(), value);
        Ok(())
    }

    /// Remembers what was measured, for the audit record. Downtimes add up.
    ///
    /// # Errors
    ///
    /// When the journal cannot be written.
    pub fn measured(&self, measurement: Measurement) -> Result<(), StepError> {
        match measurement {
            Measurement::Downtime(time) => {
                let before = self.downtime().unwrap_or_default();
                self.set(DOWNTIME, (before + time).as_secs_f64())
            }
            Measurement::DataLoss(text) => self.set(DATA_LOSS, text),
        }
    }

    /// The downtime measured so far.
    pub fn downtime(&self) -> Option<Duration> {
        self.get::<f64>(DOWNTIME)
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }

    /// The data loss measured so far.
    pub fn data_loss(&self) -> Option<String> {
        self.get(DATA_LOSS)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, MemoryState> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
