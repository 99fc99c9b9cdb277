//! Runs procedures: lock, preflight, plan, confirmation, steps, verification, audit record.

mod outcome;
mod run;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgmahout_durable::LockError;

pub use outcome::{Ended, Report, RunOptions, StepReport, StepResult, Surroundings};
use run::{Run, ask, prepare};
#[cfg(test)]
use tests::KillAfter;

use crate::audit::{self, AuditRecord, AuditResult};
use crate::confirm::Question;
use crate::context::Memory;
use crate::definition::Procedure;
use crate::error::ProcedureError;
use crate::journal::{
    self, EndResult, Header, Journal, JournalWriter, Record, SCHEMA_VERSION, State, Summary,
};
use crate::lock::{LockDirectories, TargetLock};
use crate::registry::Registry;
use crate::report::{Level, Reporter};
use crate::state::StateDirectory;
use crate::who::Who;

/// Runs, resumes, lists and aborts procedures whose journals are in one state directory.
#[derive(Debug, Clone)]
pub struct Runner {
    state: StateDirectory,
    /// Where targets are locked; found out when it is needed unless a test says it.
    locks: Option<LockDirectories>,
    #[cfg(test)]
    kill_after: Option<KillAfter>,
}

impl Runner {
    /// With the state directory of this process, which is created when something is to be written.
    ///
    /// # Errors
    ///
    /// When there is no place for one.
    pub fn new() -> Result<Self, ProcedureError> {
        Ok(Self::at(StateDirectory::locate()?))
    }

    /// With this state directory.
    pub fn at(state: StateDirectory) -> Self {
        Self {
            state,
            locks: None,
            #[cfg(test)]
            kill_after: None,
        }
    }

    /// With targets locked in these directories.
    pub fn with_locks(mut self, locks: LockDirectories) -> Self {
        self.locks = Some(locks);
        self
    }

    /// The state directory.
    pub fn state(&self) -> &StateDirectory {
        &self.state
    }

    /// Runs a procedure from its beginning.
    ///
    /// After a cancellation the steps done so far stay done; the one that was being made is in whatever
    /// state it left; [`Runner::resume`] goes on from there.
    ///
    /// # Errors
    ///
    /// See [`ProcedureError`]. Before the first record of the journal nothing was changed.
    pub async fn run(
        &self,
        procedure: &dyn Procedure,
        options: RunOptions,
        surroundings: Surroundings<'_>,
    ) -> Result<Ended, ProcedureError> {
        let title = procedure.title();
        let memory = Memory::unkept();
        let context = surroundings.context(&memory, false);
        if options.dry_run {
            return prepare(procedure, &context, None).await.map(Ended::DryRun);
        }
        self.ensure_state(surroundings.reporter)?;
        let _lock = self
            .lock(procedure, &title, options.lock_patience, surroundings)
            .await?;
        let plan = prepare(procedure, &context, None).await?;
        ask(procedure, &plan, surroundings)?;

        let (writer, id) = JournalWriter::create(&self.state.procedures(), Timestamp::now())?;
        let writer = self.hooked(writer);
        let header = Header {
            schema_version: SCHEMA_VERSION,
            id: id.clone(),
            kind: procedure.kind().to_owned(),
            title,
            target: procedure.target(),
            parameters: procedure.parameters(),
            who: Who::current(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let unrecorded = |source| ProcedureError::Record {
            id: id.clone(),
            source,
        };
        writer.write(&Record::Header(header)).map_err(unrecorded)?;
        writer.write(&Record::Planned { plan }).map_err(unrecorded)?;
        let run = Run {
            procedure,
            steps: procedure.steps(),
            path: journal::path_of(&self.state.procedures(), &id),
            id,
            writer,
            before: None,
            memory,
            started: Instant::now(),
            audit_log: self.state.audit_log(),
        };
        run.make(surroundings).await.map(Ended::Done)
    }

    /// Goes on with a procedure that failed, was interrupted or killed, at the first step whose check is not
    /// satisfied. `id` may be the beginning of an identifier. `registry` builds it again.
    ///
    /// # Errors
    ///
    /// See [`ProcedureError`].
    pub async fn resume(
        &self,
        id: &str,
        registry: &Registry<'_>,
        options: RunOptions,
        surroundings: Surroundings<'_>,
    ) -> Result<Ended, ProcedureError> {
        let id = self.find(id)?;
        let path = journal::path_of(&self.state.procedures(), &id);
        let (writer, before) = if options.dry_run {
            (None, self.unfinished(&id)?)
        } else {
            // The lock on the journal first: only then does it stand still.
            let writer = self.claim(&id)?;
            (Some(writer), self.unfinished_claimed(&id)?)
        };
        let header = &before.header;
        let procedure = match registry.build(&header.kind, header.parameters.clone()) {
            Some(building) => building.await.map_err(|error| ProcedureError::Rebuild {
                id: id.clone(),
                source: error.into_cause(),
            })?,
            None => {
                return Err(ProcedureError::UnknownKind {
                    id,
                    kind: header.kind.clone(),
                });
            }
        };
        let procedure = procedure.as_ref();
        let memory = Memory::with_values(before.memory());
        let context = surroundings.context(&memory, true);
        let Some(writer) = writer else {
            return prepare(procedure, &context, Some(&before))
                .await
                .map(Ended::DryRun);
        };
        let _lock = self
            .lock(procedure, &header.title, options.lock_patience, surroundings)
            .await?;
        let plan = prepare(procedure, &context, Some(&before)).await?;
        ask(procedure, &plan, surroundings)?;
        let unrecorded = |source| ProcedureError::Record {
            id: id.clone(),
            source,
        };
        writer
            .write(&Record::Resumed { who: Who::current() })
            .map_err(unrecorded)?;
        writer.write(&Record::Planned { plan }).map_err(unrecorded)?;
        let run = Run {
            procedure,
            steps: procedure.steps(),
            path,
            id,
            writer,
            before: Some(before),
            memory,
            started: Instant::now(),
            audit_log: self.state.audit_log(),
        };
        run.make(surroundings).await.map(Ended::Done)
    }

    /// Gives up a procedure: cleans up as its kind does ([`Procedure::abort`]; steps that are done stay
    /// done) and marks it as aborted. One that this release does not know, or that cannot be built
    /// again, is only marked. Returns what cleaning up has done, or what may be left behind.
    ///
    /// # Errors
    ///
    /// See [`ProcedureError`].
    pub async fn abort(
        &self,
        id: &str,
        registry: &Registry<'_>,
        surroundings: Surroundings<'_>,
    ) -> Result<(Journal, Vec<String>), ProcedureError> {
        let id = self.find(id)?;
        let writer = self.claim(&id)?;
        let journal = self.unfinished_claimed(&id)?;
        let header = &journal.header;
        // Giving up must not need what the procedure needed: a file that is gone may be the reason for it.
        let procedure = match registry.build(&header.kind, header.parameters.clone()) {
            Some(building) => match building.await {
                Ok(procedure) => Some(procedure),
                Err(error) => {
                    surroundings.reporter.message(
                        Level::Warning,
                        &format!(
                            "the procedure cannot be built again, so that nothing will be cleaned up: {error}"
                        ),
                    );
                    None
                }
            },
            None => None,
        };
        let _lock = match &procedure {
            Some(procedure) => Some(
                self.lock(procedure.as_ref(), &header.title, Duration::ZERO, surroundings)
                    .await?,
            ),
            None => None,
        };
        let summary = journal.summary();
        surroundings.confirm.ask(&Question::yes_no(format!(
            "Give up procedure {id} ({}), of which {} of {} steps are done?",
            header.title, summary.steps_done, summary.steps
        )))?;
        let memory = Memory::with_values(journal.memory());
        let findings = match &procedure {
            Some(procedure) => procedure
                .abort(&surroundings.context(&memory, true))
                .await
                .map_err(|error| ProcedureError::Abort {
                    id: id.clone(),
                    source: error.into_cause(),
                })?,
            None => leftovers(&journal),
        };
        audit::append(
            &self.state.audit_log(),
            &AuditRecord::new(
                &journal,
                &memory,
                AuditResult::Aborted,
                journal.failure().cloned(),
            ),
        )?;
        writer.write(&Record::Ended {
            result: EndResult::Aborted,
        })?;
        drop(writer);
        let path = journal::path_of(&self.state.procedures(), &id);
        Ok((Journal::read(&path)?.unwrap_or(journal), findings))
    }

    /// All procedures, oldest first. Journals that cannot be read are in the second list, as errors.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<(Vec<Summary>, Vec<ProcedureError>), ProcedureError> {
        let directory = self.state.procedures();
        let (mut summaries, mut damaged) = (Vec::new(), Vec::new());
        for id in journal::identifiers(&directory)? {
            match Journal::read(&journal::path_of(&directory, &id)) {
                Ok(Some(journal)) => summaries.push(journal.summary()),
                Ok(None) => {}
                Err(error) => damaged.push(error),
            }
        }
        Ok((summaries, damaged))
    }

    /// The journal of one procedure. `id` may be the beginning of an identifier.
    ///
    /// # Errors
    ///
    /// When there is none, or it cannot be read.
    pub fn show(&self, id: &str) -> Result<Journal, ProcedureError> {
        let id = self.find(id)?;
        self.read(&id)
    }

    /// The full identifier that begins like this.
    fn find(&self, id: &str) -> Result<String, ProcedureError> {
        let not_found = || ProcedureError::NotFound {
            id: id.to_owned(),
            directory: self.state.procedures().display().to_string(),
        };
        let mut candidates = journal::identifiers(&self.state.procedures())?;
        if candidates.iter().any(|known| known == id) {
            return Ok(id.to_owned());
        }
        candidates.retain(|known| !id.is_empty() && known.starts_with(id));
        match candidates.len() {
            0 => Err(not_found()),
            1 => Ok(candidates.remove(0)),
            _ => Err(ProcedureError::Ambiguous {
                id: id.to_owned(),
                candidates,
            }),
        }
    }

    fn read(&self, id: &str) -> Result<Journal, ProcedureError> {
        Journal::read(&journal::path_of(&self.state.procedures(), id))?.ok_or_else(|| {
            ProcedureError::NotFound {
                id: id.to_owned(),
                directory: self.state.procedures().display().to_string(),
            }
        })
    }

    /// The journal of a procedure that has not ended and that nobody is at work on.
    fn unfinished(&self, id: &str) -> Result<Journal, ProcedureError> {
        let journal = self.read(id)?;
        match journal.state() {
            State::Running => Err(ProcedureError::Running {
                id: id.to_owned(),
                process: journal.last_worker().process,
            }),
            state @ (State::Succeeded | State::Aborted) => Err(ProcedureError::Ended {
                id: id.to_owned(),
                state: state.as_str(),
            }),
            State::Interrupted | State::Failed => Ok(journal),
        }
    }

    /// The same, when it is ourselves who hold the lock on the journal.
    fn unfinished_claimed(&self, id: &str) -> Result<Journal, ProcedureError> {
        let mut journal = self.read(id)?;
        journal.alive = false;
        match journal.state() {
            state @ (State::Succeeded | State::Aborted) => Err(ProcedureError::Ended {
                id: id.to_owned(),
                state: state.as_str(),
            }),
            _ => Ok(journal),
        }
    }

    /// Opens a journal for writing.
    fn claim(&self, id: &str) -> Result<JournalWriter, ProcedureError> {
        match JournalWriter::open(&journal::path_of(&self.state.procedures(), id)) {
            Ok(writer) => Ok(self.hooked(writer)),
            Err(LockError::File(error)) => Err(error.into()),
            Err(_) => {
                let process = self.read(id)?.last_worker().process;
                Err(ProcedureError::Running {
                    id: id.to_owned(),
                    process,
                })
            }
        }
    }

    fn ensure_state(&self, reporter: &dyn Reporter) -> Result<(), ProcedureError> {
        self.state.ensure()?;
        if let Some(fallback) = self.state.fallback() {
            let path = self.state.path().display();
            reporter.message(
                Level::Warning,
                &format!("{fallback}; the journal is kept in {path} instead"),
            );
        }
        Ok(())
    }

    async fn lock(
        &self,
        procedure: &dyn Procedure,
        title: &str,
        patience: Duration,
        surroundings: Surroundings<'_>,
    ) -> Result<TargetLock, ProcedureError> {
        let target = procedure.target();
        let prepared;
        let directories = if let Some(directories) = &self.locks {
            directories
        } else {
            prepared = LockDirectories::prepare(self.state.path()).map_err(ProcedureError::NoLocks)?;
            &prepared
        };
        directories
            .acquire(&target, title, patience, surroundings.cancellation)
            .await
            .map_err(|source| ProcedureError::Locked {
                target: target.description,
                source,
            })
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests hook the writer here")]
    fn hooked(&self, writer: JournalWriter) -> JournalWriter {
        writer
    }

    #[cfg(test)]
    fn hooked(&self, mut writer: JournalWriter) -> JournalWriter {
        writer.after_write = self.kill_after.as_ref().map(KillAfter::hook);
        writer
    }
}

/// What a procedure that cannot clean up may have left behind: the names of databases that it noted, by our
/// convention under names that end in `_database`.
fn leftovers(journal: &Journal) -> Vec<String> {
    journal
        .memory()
        .iter()
        .filter(|(name, _)| name.ends_with("_database"))
        .filter_map(|(_, value)| value.as_str())
        .map(|database| {
            format!(
                "database {database} may be left behind ({}); look at it, and drop it: dropdb {database}",
                journal.header.target.description
            )
        })
        .collect()
}
