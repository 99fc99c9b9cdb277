//! How every operation of more than one step runs.
//!
//! A [`Procedure`] is a list of [`Step`]s, each with a check that says whether it is already done, an
//! action and a verification; and for the whole a preflight, a plan and a closing verification. The
//! [`Runner`] takes the lock, runs the preflight, shows the plan, asks, and then makes the steps, each
//! written to a [`journal`] before and after. A procedure that was killed at any point goes on with
//! [`Runner::resume`] at the first step whose check is not satisfied. At the end there is one [`audit`]
//! record.
//!
//! How to write one: implement [`Procedure`] and its steps, so that everything that the steps need is in
//! [`Procedure::parameters`] or in the [`Memory`]; register the kind in the [`Registry`], so that
//! `pgmahout procedure resume` can build it again from its parameters.
//!
//! Nothing here knows PostgreSQL, and nothing here prints: [`report`] and [`confirm`] are traits that the
//! command line implements.

pub mod audit;
pub mod confirm;
mod context;
mod definition;
mod error;
pub mod journal;
pub mod lock;
mod plan;
mod registry;
pub mod report;
mod runner;
mod state;
mod who;

pub use context::{Measurement, Memory, StepContext};
pub use definition::{Check, Problem, Procedure, Step};
pub use error::{Cause, ProcedureError, StepError};
pub use lock::Target;
pub use plan::{Fact, Plan, PlanDetails, PlannedStep};
pub use registry::Registry;
pub use runner::{Ended, Report, RunOptions, Runner, StepReport, StepResult, Surroundings};
pub use state::{StateDirectory, StateError};
pub use who::Who;
