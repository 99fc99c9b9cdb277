//! Health checks: what is wrong with a server, on which evidence, and what to do about it.
//!
//! A [`Check`] asks one question and answers with [`CheckResult`]s; the
//! [`runner`] asks all that were selected, on at most three connections for each server, and collects a
//! [`HealthReport`]. The checks themselves are in [`checks`]; the [`mod@format`]s turn a
//! report into text for machines.
//!
//! Two rules hold everywhere:
//!
//! - No result is better than its evidence. What could not be seen is UNKNOWN, with the statement that would
//!   show it; a NULL is never OK.
//! - Nothing here waits behind somebody's lock: sizes come from `relpages`, never from functions that open
//!   the table, and every session has a `lock_timeout` of half a second.

pub mod check;
pub mod checks;
pub mod context;
pub mod facts;
pub mod failure;
pub mod format;
pub mod limits;
pub mod measure;
pub mod report;
pub mod result;
pub mod runner;
pub mod sample;
pub mod select;
pub mod sessions;
pub mod sources;
pub mod status;
pub mod target;

pub use check::{Check, Verdict};
pub use context::Context;
pub use failure::Failure;
pub use limits::{Limit, LimitError, Limits, Thresholds};
pub use measure::{Measure, Unit};
pub use report::{Counts, HealthReport};
pub use result::{CheckResult, Finding, Rows, Skipped, Unseen};
pub use runner::{Request, Runner};
pub use select::Selection;
pub use status::Status;
pub use target::{Expectations, Role, Target};
