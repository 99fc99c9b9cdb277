//! One run: preflight, plan and question; then the steps, each written down before and after.

use std::path::PathBuf;
use std::time::Instant;

use pgmahout_durable::DurableError;
use pgmahout_types::diagnostic::Outcome;

use super::outcome::{Report, StepReport, StepResult, Surroundings};
use crate::audit::{self, AuditRecord, AuditResult};
use crate::context::{Memory, StepContext};
use crate::definition::{Check, Procedure, Step};
use crate::error::{Cause, ProcedureError, StepError};
use crate::journal::{EndResult, Failure, Journal, JournalWriter, Record, StepState};
use crate::plan::{Plan, PlannedStep};
use crate::report::Level;

/// One run of one procedure, from the first record of its journal on.
pub(super) struct Run<'a> {
    pub(super) procedure: &'a dyn Procedure,
    pub(super) steps: Vec<Box<dyn Step>>,
    pub(super) path: PathBuf,
    pub(super) id: String,
    pub(super) writer: JournalWriter,
    /// What the journal said when this run began.
    pub(super) before: Option<Journal>,
    pub(super) memory: Memory,
    pub(super) started: Instant,
    pub(super) audit_log: PathBuf,
}

/// Preflight and plan.
pub(super) async fn prepare(
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
pub(super) fn ask(
    procedure: &dyn Procedure,
    plan: &Plan,
    surroundings: Surroundings<'_>,
) -> Result<(), ProcedureError> {
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
    pub(super) async fn make(self, surroundings: Surroundings<'_>) -> Result<Report, ProcedureError> {
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
