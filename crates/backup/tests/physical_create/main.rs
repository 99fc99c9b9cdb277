//! Physical backups of real servers.

mod basics;
mod support;
