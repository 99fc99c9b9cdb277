//! Journals: what a procedure has done so far, one JSON object a line, each on the disk before the next
//! thing happens.
//!
//! A journal is written by one process at a time, which holds a lock on it as long as it lives; so a reader
//! can tell a running procedure from one whose process was killed. A torn last line is a record that was
//! never acknowledged, and counts as not written. Records that a newer release has added are passed over.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use pgmahout_durable::{DurableError, LockError, SoleWriter};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ProcedureError;
use crate::lock::Target;
use crate::plan::Plan;
use crate::who::Who;

/// The version of the journal's form that this release writes.
pub const SCHEMA_VERSION: u32 = 1;

/// The first record: everything that is needed to build the procedure again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the journal's form.
    pub schema_version: u32,
    /// The procedure's identifier.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// What it does.
    pub title: String,
    /// What it touches.
    pub target: Target,
    /// What it is built again from. No secrets.
    pub parameters: Value,
    /// Who started it.
    pub who: Who,
    /// The version of pgmahout that started it.
    pub version: String,
}

/// Why something failed, as people read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The message.
    pub message: String,
    /// What is behind it, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// Advice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Failure {
    /// Of an error.
    pub fn of<E: pgmahout_types::diagnostic::Diagnose>(error: &E) -> Self {
        let mut causes = Vec::new();
        let mut cause = error.source();
        while let Some(inner) = cause {
            causes.push(inner.to_string());
            cause = inner.source();
        }
        Self {
            message: error.to_string(),
            causes,
            hint: error.hint(),
        }
    }
}

/// How a procedure ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndResult {
    /// All steps are done and the closing verification held.
    Succeeded,
    /// It was given up.
    Aborted,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Record {
    /// The first one.
    Header(Header),
    /// The plan that was confirmed; once for each attempt.
    Planned {
        /// The plan.
        plan: Plan,
    },
    /// A process goes on with it.
    Resumed {
        /// Who.
        who: Who,
    },
    /// A step's action is about to begin.
    StepStarted {
        /// The step.
        step: String,
    },
    /// A step's action is done and verified.
    StepSucceeded {
        /// The step.
        step: String,
    },
    /// A step was done already, so that its action was not made.
    StepFound {
        /// The step.
        step: String,
    },
    /// A step failed.
    StepFailed {
        /// The step.
        step: String,
        /// Why.
        failure: Failure,
    },
    /// A fact for later steps.
    Remembered {
        /// Its name.
        name: String,
        /// Its value.
        value: Value,
    },
    /// A signal stopped us.
    Interrupted {
        /// The step that was not done.
        step: String,
    },
    /// The closing verification failed.
    VerificationFailed {
        /// Why.
        failure: Failure,
    },
    /// The closing verification held.
    Verified {
        /// What it proved.
        findings: Vec<String>,
    },
    /// The last record.
    Ended {
        /// How.
        result: EndResult,
    },
    /// One that a newer release has added.
    #[serde(other)]
    Unknown,
}

/// A record and when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub record: Record,
}

/// Where a procedure stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A process is at work on it.
    Running,
    /// It was stopped or killed, and can be resumed.
    Interrupted,
    /// A step or the closing verification failed, and it can be resumed.
    Failed,
    /// It is done.
    Succeeded,
    /// It was given up.
    Aborted,
}

impl State {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
            Self::Succeeded => "succeeded",
            Self::Aborted => "aborted",
        }
    }
}

/// What the journal says of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Nothing.
    #[default]
    Pending,
    /// Its action was begun.
    Started,
    /// Its action failed.
    Failed,
    /// It is done.
    Done,
}

/// A journal as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    /// The first record.
    pub header: Header,
    /// All records, the header included, oldest first. Never empty.
    pub entries: Vec<Entry>,
    /// Whether a process is writing it right now.
    pub alive: bool,
}

impl Journal {
    /// Reads a journal. `None` when there is no complete first record: its process was killed before
    /// anything was done.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or a line before the last one is no record.
    pub fn read(path: &Path) -> Result<Option<Self>, ProcedureError> {
        let Some(lines) = pgmahout_durable::complete_lines(path)? else {
            return Ok(None);
        };
        let mut journal = Self::parse(&lines).map_err(|reason| ProcedureError::Damaged {
            path: path.display().to_string(),
            reason,
        })?;
        if let Some(journal) = &mut journal {
            journal.alive = SoleWriter::is_alive(path)?;
        }
        Ok(journal)
    }

    /// From complete lines.
    pub(crate) fn parse(lines: &[Vec<u8>]) -> Result<Option<Self>, String> {
        let entries = lines
            .iter()
            .enumerate()
            .map(|(number, line)| {
                serde_json::from_slice::<Entry>(line).map_err(|error| format!("line {}: {error}", number + 1))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let header = match entries.first().map(|entry| &entry.record) {
            None => return Ok(None),
            Some(Record::Header(header)) => header.clone(),
            Some(_) => return Err("line 1 is not a header".to_owned()),
        };
        if header.schema_version > SCHEMA_VERSION {
            return Err(format!(
                "it has form {}, and this version of pgmahout knows {SCHEMA_VERSION} at most",
                header.schema_version
            ));
        }
        Ok(Some(Self {
            header,
            entries,
            alive: false,
        }))
    }

    /// Where the procedure stands.
    pub fn state(&self) -> State {
        for entry in self.entries.iter().rev() {
            match &entry.record {
                Record::Ended {
                    result: EndResult::Succeeded,
                } => return State::Succeeded,
                Record::Ended {
                    result: EndResult::Aborted,
                } => return State::Aborted,
                _ if self.alive => return State::Running,
                Record::StepFailed { .. } | Record::VerificationFailed { .. } => return State::Failed,
                Record::Unknown | Record::Remembered { .. } => {}
                _ => return State::Interrupted,
            }
        }
        State::Interrupted
    }

    /// What it says of a step.
    pub fn step(&self, name: &str) -> StepState {
        let mut state = StepState::Pending;
        for entry in &self.entries {
            match &entry.record {
                Record::StepStarted { step } if step == name => state = StepState::Started,
                Record::StepFailed { step, .. } if step == name => state = StepState::Failed,
                Record::StepSucceeded { step } | Record::StepFound { step } if step == name => {
                    state = StepState::Done;
                }
                _ => {}
            }
        }
        state
    }

    /// The facts that it remembers.
    pub fn memory(&self) -> BTreeMap<String, Value> {
        let mut values = BTreeMap::new();
        for entry in &self.entries {
            if let Record::Remembered { name, value } = &entry.record {
                values.insert(name.clone(), value.clone());
            }
        }
        values
    }

    /// The last plan.
    pub fn plan(&self) -> Option<&Plan> {
        self.entries.iter().rev().find_map(|entry| match &entry.record {
            Record::Planned { plan } => Some(plan),
            _ => None,
        })
    }

    /// The last failure, unless the procedure has got past it.
    pub fn failure(&self) -> Option<&Failure> {
        if self.state() != State::Failed {
            return None;
        }
        self.entries.iter().rev().find_map(|entry| match &entry.record {
            Record::StepFailed { failure, .. } | Record::VerificationFailed { failure } => Some(failure),
            _ => None,
        })
    }

    /// Who is or was last at work on it.
    pub fn last_worker(&self) -> &Who {
        self.entries
            .iter()
            .rev()
            .find_map(|entry| match &entry.record {
                Record::Resumed { who } => Some(who),
                _ => None,
            })
            .unwrap_or(&self.header.who)
    }

    /// How often it was started and resumed.
    pub fn attempts(&self) -> usize {
        1 + self
            .entries
            .iter()
            .filter(|entry| matches!(entry.record, Record::Resumed { .. }))
            .count()
    }

    /// When it was started.
    pub fn started_at(&self) -> Timestamp {
        self.entries[0].at
    }

    /// When the last record was written.
    pub fn last_at(&self) -> Timestamp {
        self.entries[self.entries.len() - 1].at
    }

    /// One line of a list.
    pub fn summary(&self) -> Summary {
        let state = self.state();
        let steps = self.plan().map_or(&[][..], |plan| plan.steps.as_slice());
        let done = steps
            .iter()
            .filter(|step| step.done || self.step(&step.name) == StepState::Done)
            .count();
        Summary {
            id: self.header.id.clone(),
            kind: self.header.kind.clone(),
            title: self.header.title.clone(),
            target: self.header.target.description.clone(),
            state,
            started_at: self.started_at(),
            ended_at: matches!(state, State::Succeeded | State::Aborted).then(|| self.last_at()),
            who: self.header.who.to_string(),
            steps: steps.len(),
            steps_done: done,
            failure: self.failure().cloned(),
        }
    }
}

/// A procedure in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Its identifier.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// What it does.
    pub title: String,
    /// On what.
    pub target: String,
    /// Where it stands.
    pub state: State,
    /// When it was started.
    pub started_at: Timestamp,
    /// When it ended, if it has.
    pub ended_at: Option<Timestamp>,
    /// Who started it.
    pub who: String,
    /// How many steps it has.
    pub steps: usize,
    /// How many are done.
    pub steps_done: usize,
    /// Why it failed, if it stands there.
    pub failure: Option<Failure>,
}

/// Writes a journal. Clones write the same one.
#[derive(Clone)]
pub struct JournalWriter {
    writer: Arc<Mutex<SoleWriter>>,
    /// Called after each record with their number so far: tests kill the process there.
    #[cfg(test)]
    pub(crate) after_write: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for JournalWriter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("JournalWriter")
            .field("writer", &self.writer)
            .finish_non_exhaustive()
    }
}

impl JournalWriter {
    /// Claims a new journal file under a name that no other procedure has, and returns its identifier.
    pub(crate) fn create(directory: &Path, now: Timestamp) -> Result<(Self, String), ProcedureError> {
        let time = now.strftime("%Y%m%dT%H%M%S").to_string();
        let mut number = (now.subsec_nanosecond().unsigned_abs() >> 4) ^ std::process::id().rotate_left(8);
        loop {
            number = number.wrapping_mul(0x9e37_79b1).wrapping_add(1);
            let id = format!("{time}-{:04x}", number >> 16);
            let path = path_of(directory, &id);
            match OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
            {
                Ok(_) => {
                    pgmahout_durable::sync_directory(directory)?;
                    return Ok((
                        Self::open(&path).map_err(|error| Self::unexpected(&path, error))?,
                        id,
                    ));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(DurableError::from_io("create", &path, error).into()),
            }
        }
    }

    /// Goes on with a journal.
    pub(crate) fn open(path: &Path) -> Result<Self, LockError> {
        let writer = SoleWriter::open(path, 0o600)?;
        Ok(Self {
            writer: Arc::new(Mutex::new(writer)),
            #[cfg(test)]
            after_write: None,
        })
    }

    /// Writes a record; when it returns, it is on the disk.
    pub(crate) fn write(&self, record: &Record) -> Result<(), DurableError> {
        let entry = Entry {
            at: Timestamp::now(),
            record: record.clone(),
        };
        let mut writer = self
            .writer
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let line = serde_json::to_vec(&entry).map_err(|error| {
            DurableError::from_io("write a record to", writer.path(), io::Error::from(error))
        })?;
        writer.append(&line)?;
        #[cfg(test)]
        if let Some(after_write) = &self.after_write {
            after_write();
        }
        Ok(())
    }

    fn unexpected(path: &Path, error: LockError) -> ProcedureError {
        match error {
            LockError::File(error) => error.into(),
            _ => ProcedureError::Damaged {
                path: path.display().to_string(),
                reason: "another process has locked it".to_owned(),
            },
        }
    }
}

/// The file of a procedure's journal.
pub(crate) fn path_of(directory: &Path, id: &str) -> PathBuf {
    directory.join(format!("{id}.jsonl"))
}

/// The identifiers of all journals, oldest first.
pub(crate) fn identifiers(directory: &Path) -> Result<Vec<String>, DurableError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(DurableError::from_io("read", directory, error)),
    };
    let mut identifiers = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| DurableError::from_io("read", directory, error))?;
        if let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_suffix(".jsonl"))
        {
            identifiers.push(id.to_owned());
        }
    }
    identifiers.sort();
    Ok(identifiers)
}

#[cfg(test)]
mod tests;
