//! Health checks, active verification and reports.
//!
//! [`health`] holds the checks and how they run. Everything here reads; what it reads and why it says so
//! travels in its results, and the command line renders them.

pub mod health;
pub mod report;
pub mod role;
pub mod verify;
