//! What a procedure is made of.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::confirm::Question;
use crate::context::StepContext;
use crate::error::StepError;
use crate::lock::Target;
use crate::plan::{Plan, PlanDetails};

/// Something that stands in the way, found before anything was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong, one line.
    pub text: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            hint: None,
        }
    }

    /// With advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl<E: pgmahout_types::diagnostic::Diagnose> From<&E> for Problem {
    /// The error with its causes on one line, and its hint.
    fn from(error: &E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        Self {
            text,
            hint: error.hint(),
        }
    }
}

/// Whether a step is done already, as the system itself shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// What the step brings about is there.
    Done,
    /// It is not.
    NotDone,
    /// The system does not show it. Then the journal decides: a step that it says has succeeded is not
    /// made again, one that it says was started is. Such an action must bear being made twice.
    Unknown,
}

/// An operation of several steps that changes a system.
#[async_trait]
pub trait Procedure: Send + Sync {
    /// What kind it is, by which the [`crate::Registry`] builds it again: `dump-restore`. Never changes.
    fn kind(&self) -> &'static str;

    /// Everything that is needed to build it again in another process, by whoever resumes it. Written to
    /// the journal and to the audit log: **no secrets**; references to secrets instead.
    fn parameters(&self) -> serde_json::Value;

    /// What it does, for people: `restore shop.sql.gz into database shop`.
    fn title(&self) -> String;

    /// What it touches: for the lock, the plan and the audit log.
    fn target(&self) -> Target;

    /// Everything that stands in the way, all at once. Changes nothing. `context.resuming` says that some
    /// steps may be done already.
    ///
    /// # Errors
    ///
    /// When looking itself fails; what is found wrong is a [`Problem`].
    async fn preflight(&self, context: &StepContext<'_>) -> Result<Vec<Problem>, StepError>;

    /// What a person wants to know before saying yes: facts, warnings, losses. The steps are added by the
    /// runner. Changes nothing.
    ///
    /// # Errors
    ///
    /// When what is needed for the plan cannot be found out.
    async fn plan(&self, context: &StepContext<'_>) -> Result<PlanDetails, StepError>;

    /// What to ask before the first change; `None` where nothing needs a confirmation.
    fn question(&self, plan: &Plan) -> Option<Question>;

    /// The steps, in order. Their names must be different from each other and the same on every call.
    fn steps(&self) -> Vec<Box<dyn Step>>;

    /// Proves at the end that the whole is as it should be. Says what was proved, a line each.
    ///
    /// # Errors
    ///
    /// When it is not as it should be; the procedure then counts as failed and can be resumed.
    async fn verify(&self, context: &StepContext<'_>) -> Result<Vec<String>, StepError>;

    /// Cleans up when the procedure is given up ([`crate::Runner::abort`]). Says what it did, a line each.
    /// By default everything is left as it is.
    ///
    /// # Errors
    ///
    /// When cleaning up fails; the procedure can then be aborted again.
    async fn abort(&self, context: &StepContext<'_>) -> Result<Vec<String>, StepError> {
        let _ = context;
        Ok(Vec::new())
    }
}

/// One step of a procedure.
#[async_trait]
pub trait Step: Send + Sync {
    /// Its name in the journal: `end-sessions`. Never changes between releases that should be able to
    /// resume each other's procedures.
    fn name(&self) -> &str;

    /// What it does, for the plan: `end the 3 sessions on shop`.
    fn description(&self) -> String;

    /// Whether it loses or overwrites something; marked in the plan.
    fn is_destructive(&self) -> bool {
        false
    }

    /// Whether a later step undoes it on purpose (stop the server ... start the server). On resume the
    /// journal's word is then taken that it was done; any other step is checked again, and made again if
    /// what it brought about is gone.
    fn is_transient(&self) -> bool {
        false
    }

    /// Whether it is done already. Changes nothing.
    ///
    /// # Errors
    ///
    /// When that cannot be found out.
    async fn check(&self, context: &StepContext<'_>) -> Result<Check, StepError>;

    /// Does it. May be killed at any point and made again: then the check has said that it is not done.
    ///
    /// # Errors
    ///
    /// When it fails. The procedure stops there and can be resumed.
    async fn act(&self, context: &StepContext<'_>) -> Result<(), StepError>;

    /// Proves that the action did what it should. By default: the check no longer says that it is not done.
    ///
    /// # Errors
    ///
    /// When it did not.
    async fn verify(&self, context: &StepContext<'_>) -> Result<(), StepError> {
        match self.check(context).await? {
            Check::Done | Check::Unknown => Ok(()),
            Check::NotDone => Err(StepError::failed(
                "it ran without an error, but what it should bring about is not there",
            )),
        }
    }
}
