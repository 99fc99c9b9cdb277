//! What a run is given and what it gives back.

use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::confirm::Confirm;
use crate::context::{Memory, StepContext};
use crate::plan::Plan;
use crate::report::Reporter;

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

impl<'a> Surroundings<'a> {
    pub(super) fn context(self, memory: &'a Memory, resuming: bool) -> StepContext<'a> {
        StepContext {
            reporter: self.reporter,
            cancellation: self.cancellation,
            memory,
            resuming,
        }
    }
}
