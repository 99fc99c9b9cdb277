//! How every operation of more than one step runs: preflight, plan, confirmation, journal, resume,
//! verification.

pub mod confirm;
pub mod report;
