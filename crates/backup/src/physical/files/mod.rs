//! Files of a data directory: what they are, where they are, and how to read them quietly.
//!
//! [`classify`] is pure: it knows PostgreSQL's rules for paths. [`walk`] applies them to a directory and its
//! tablespaces. [`residency`] reads files and leaves the kernel's page cache as it was.

pub mod classify;
pub mod owners;
pub mod residency;
pub(crate) mod stamp;
pub mod walk;
