//! Removing dumps that a retention policy no longer keeps.

pub mod plan;
pub mod policy;
