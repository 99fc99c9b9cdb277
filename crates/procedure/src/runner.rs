//! Runs procedures: lock, preflight, plan, confirmation, steps, verification, audit record.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgmahout_durable::{DurableError, LockError};
use pgmahout_types::diagnostic::Outcome;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::audit::{self, AuditRecord, AuditResult};
use crate::confirm::{Confirm, Question};
use crate::context::{Memory, StepContext};
use crate::definition::{Check, Procedure, Step};
use crate::error::{Cause, ProcedureError, StepError};
use crate::journal::{
    self, EndResult, Failure, Header, Journal, JournalWriter, Record, SCHEMA_VERSION, State, StepState,
    Summary,
};
use crate::lock::{LockDirectories, TargetLock};
use crate::plan::{Plan, PlannedStep};
use crate::registry::Registry;
use crate::report::{Level, Reporter};
use crate::state::StateDirectory;
use crate::who::Who;

/// How to run.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// Stop after the plan and change nothing: no lock, no journal.
    pub dry_run: bool,
    /// How long to wait for somebody else's procedure on the same target.
    pub lock_patience: Duration,
}

/// How a run ended that did not fail.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// Only the plan was asked for.
    DryRun(Plan),
    /// It is done.
    Done(Report),
}

/// How a step came to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepResult {
    /// Its action was made in this run.
    Made,
    /// It was done already.
    Found,
}

/// One step of a [`Report`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepReport {
    /// Its name in the journal.
    pub name: String,
    /// What it does.
    pub description: String,
    /// How it came to be done.
    pub result: StepResult,
    /// How long it took in this run, in seconds.
    pub seconds: f64,
}

/// What a finished procedure has to say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Its identifier.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// What it did.
    pub title: String,
    /// On what.
    pub target: String,
    /// The steps, in order.
    pub steps: Vec<StepReport>,
    /// What the closing verification proved.
    pub verified: Vec<String>,
    /// How long this run took, in seconds.
    pub seconds: f64,
    /// How long clients could not work, in seconds, where that was measured.
    pub downtime_seconds: Option<f64>,
    /// What was lost, where that was measured.
    pub data_loss: Option<String>,
}

/// Everything that a run talks to.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Who answers questions.
    pub confirm: &'a dyn Confirm,
    /// Where to report to.
    pub reporter: &'a dyn Reporter,
    /// Cancelled when a signal asks us to stop.
    pub cancellation: &'a CancellationToken,
}

/// Runs, resumes, lists and aborts procedures whose journals are in one state directory.
#[derive(Debug, Clone)]
pub struct Runner {
    state: StateDirectory,
    /// Where targets are locked; found out when it is needed unless a test says it.
    locks: Option<LockDirectories>,
    #[cfg(test)]
    kill_after: Option<KillAfter>,
}

/// One run of one procedure, from the first record of its journal on.
struct Run<'a> {
    procedure: &'a dyn Procedure,
    steps: Vec<Box<dyn Step>>,
    path: PathBuf,
    id: String,
    writer: JournalWriter,
    /// What the journal said when this run began.
    before: Option<Journal>,
    memory: Memory,
    started: Instant,
    audit_log: PathBuf,
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
    /// done) and marks it as aborted. A kind that this release does not know is only marked. Returns what
    /// cleaning up has done.
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
        let procedure = match registry.build(&header.kind, header.parameters.clone()) {
            Some(building) => Some(building.await.map_err(|error| ProcedureError::Rebuild {
                id: id.clone(),
                source: error.into_cause(),
            })?),
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
            None => Vec::new(),
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

impl<'a> Surroundings<'a> {
    fn context(self, memory: &'a Memory, resuming: bool) -> StepContext<'a> {
        StepContext {
            reporter: self.reporter,
            cancellation: self.cancellation,
            memory,
            resuming,
        }
    }
}

/// Preflight and plan.
async fn prepare(
    procedure: &dyn Procedure,
    context: &StepContext<'_>,
    before: Option<&Journal>,
) -> Result<Plan, ProcedureError> {
    let title = procedure.title();
    let failed = |title: &str, error: StepError| ProcedureError::Prepare {
        title: title.to_owned(),
        source: error.into_cause(),
    };
    let problems = procedure
        .preflight(context)
        .await
        .map_err(|error| failed(&title, error))?;
    if !problems.is_empty() {
        return Err(ProcedureError::Preflight { title, problems });
    }
    let details = procedure
        .plan(context)
        .await
        .map_err(|error| failed(&title, error))?;
    let mut steps = Vec::new();
    for step in procedure.steps() {
        let recorded = before
            .map(|journal| journal.step(step.name()))
            .unwrap_or_default();
        steps.push(PlannedStep {
            name: step.name().to_owned(),
            description: step.description(),
            destructive: step.is_destructive(),
            // A later step may be unable to look before an earlier one is made: then it is not done.
            done: is_done(step.as_ref(), recorded, context).await.unwrap_or(false),
        });
    }
    Ok(Plan {
        kind: procedure.kind().to_owned(),
        title,
        target: procedure.target().description,
        details,
        steps,
    })
}

/// Shows the plan and asks, unless there is nothing left to do.
fn ask(procedure: &dyn Procedure, plan: &Plan, surroundings: Surroundings<'_>) -> Result<(), ProcedureError> {
    surroundings.reporter.plan(&plan.to_string());
    if plan.steps.iter().all(|step| step.done) {
        return Ok(());
    }
    if let Some(question) = procedure.question(plan) {
        surroundings.confirm.ask(&question)?;
    }
    Ok(())
}

/// Whether a step need not be made, by the system and by the journal.
async fn is_done(step: &dyn Step, recorded: StepState, context: &StepContext<'_>) -> Result<bool, StepError> {
    if recorded == StepState::Done && step.is_transient() {
        return Ok(true);
    }
    Ok(match step.check(context).await? {
        Check::Done => true,
        Check::NotDone => false,
        Check::Unknown => recorded == StepState::Done,
    })
}

impl Run<'_> {
    async fn make(self, surroundings: Surroundings<'_>) -> Result<Report, ProcedureError> {
        debug_assert!(
            self.steps
                .iter()
                .enumerate()
                .all(|(at, step)| { self.steps[..at].iter().all(|other| other.name() != step.name()) }),
            "the journal tells steps apart by their names"
        );
        self.memory
            .keep_in(self.writer.clone())
            .map_err(|source| self.unrecorded(source))?;
        let context = surroundings.context(&self.memory, self.before.is_some());
        let mut reports = Vec::new();
        for (number, step) in self.steps.iter().enumerate() {
            if surroundings.cancellation.is_cancelled() {
                return Err(self.interrupted(step.name()));
            }
            let place = format!("step {}/{}", number + 1, self.steps.len());
            match self.make_step(step.as_ref(), &place, &context).await {
                Ok(report) => reports.push(report),
                Err(failure) => return Err(self.step_failed(step.name(), failure, surroundings)),
            }
        }
        let verified = match self.procedure.verify(&context).await {
            Ok(verified) => verified,
            Err(_) if surroundings.cancellation.is_cancelled() => {
                return Err(self.interrupted("closing verification"));
            }
            Err(error) => return Err(self.verification_failed(error.into_cause())),
        };
        self.end(&verified).map_err(|error| match error {
            ProcedureError::Write(source) => self.unrecorded(source),
            other => other,
        })?;
        Ok(Report {
            kind: self.procedure.kind().to_owned(),
            title: self.procedure.title(),
            target: self.procedure.target().description,
            steps: reports,
            verified,
            seconds: self.started.elapsed().as_secs_f64(),
            downtime_seconds: self.memory.downtime().map(|downtime| downtime.as_secs_f64()),
            data_loss: self.memory.data_loss(),
            id: self.id,
        })
    }

    /// Writes down that it is done.
    fn end(&self, verified: &[String]) -> Result<(), ProcedureError> {
        self.writer.write(&Record::Verified {
            findings: verified.to_vec(),
        })?;
        // The audit record first: killed between the two, the resumed run finds it and ends the journal.
        self.audit(AuditResult::Succeeded, None)?;
        self.writer.write(&Record::Ended {
            result: EndResult::Succeeded,
        })?;
        Ok(())
    }

    fn unrecorded(&self, source: DurableError) -> ProcedureError {
        ProcedureError::Record {
            id: self.id.clone(),
            source,
        }
    }

    async fn make_step(
        &self,
        step: &dyn Step,
        place: &str,
        context: &StepContext<'_>,
    ) -> Result<StepReport, StepError> {
        let started = Instant::now();
        let name = step.name();
        let recorded = self
            .before
            .as_ref()
            .map(|journal| journal.step(name))
            .unwrap_or_default();
        let report = |result| StepReport {
            name: name.to_owned(),
            description: step.description(),
            result,
            seconds: started.elapsed().as_secs_f64(),
        };
        if is_done(step, recorded, context).await? {
            // Killed between the action and its verification: the verification is still owed.
            if matches!(recorded, StepState::Started | StepState::Failed) {
                step.verify(context).await?;
            }
            context.reporter.message(
                Level::Info,
                &format!("{place}: {}: done already", step.description()),
            );
            if recorded != StepState::Done {
                self.writer.write(&Record::StepFound {
                    step: name.to_owned(),
                })?;
            }
            return Ok(report(StepResult::Found));
        }
        context
            .reporter
            .message(Level::Info, &format!("{place}: {}", step.description()));
        self.writer.write(&Record::StepStarted {
            step: name.to_owned(),
        })?;
        step.act(context).await?;
        step.verify(context).await?;
        self.writer.write(&Record::StepSucceeded {
            step: name.to_owned(),
        })?;
        Ok(report(StepResult::Made))
    }

    fn step_failed(&self, step: &str, error: StepError, surroundings: Surroundings<'_>) -> ProcedureError {
        if error.outcome() == Outcome::Interrupted || surroundings.cancellation.is_cancelled() {
            return self.interrupted(step);
        }
        let cause = error.into_cause();
        let failure = Failure::of(&cause);
        self.note(&Record::StepFailed {
            step: step.to_owned(),
            failure: failure.clone(),
        });
        self.note_audit(AuditResult::Failed, Some(failure));
        ProcedureError::Step {
            id: self.id.clone(),
            step: step.to_owned(),
            source: cause,
        }
    }

    fn verification_failed(&self, cause: Cause) -> ProcedureError {
        let failure = Failure::of(&cause);
        self.note(&Record::VerificationFailed {
            failure: failure.clone(),
        });
        self.note_audit(AuditResult::Failed, Some(failure));
        ProcedureError::Verification {
            id: self.id.clone(),
            source: cause,
        }
    }

    fn interrupted(&self, step: &str) -> ProcedureError {
        self.note(&Record::Interrupted {
            step: step.to_owned(),
        });
        self.note_audit(AuditResult::Interrupted, None);
        ProcedureError::Interrupted {
            id: self.id.clone(),
            step: step.to_owned(),
        }
    }

    /// Writes a record beside an error that matters more than whether this works.
    fn note(&self, record: &Record) {
        if let Err(error) = self.writer.write(record) {
            tracing::error!(procedure = self.id, %error, "cannot write to the journal");
        }
    }

    fn note_audit(&self, result: AuditResult, failure: Option<Failure>) {
        if let Err(error) = self.audit(result, failure) {
            tracing::error!(procedure = self.id, %error, "cannot write to the audit log");
        }
    }

    fn audit(&self, result: AuditResult, failure: Option<Failure>) -> Result<(), ProcedureError> {
        let journal = Journal::read(&self.path)?.ok_or_else(|| ProcedureError::Damaged {
            path: self.path.display().to_string(),
            reason: "its first record is gone".to_owned(),
        })?;
        audit::append(
            &self.audit_log,
            &AuditRecord::new(&journal, &self.memory, result, failure),
        )
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
use tests::KillAfter;
