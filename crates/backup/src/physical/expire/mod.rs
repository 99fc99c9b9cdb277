//! Removing backups that the retention policy no longer keeps, and collecting what nobody needs any more.

pub mod policy;
