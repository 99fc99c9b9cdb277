//! For tests only: starts real PostgreSQL, PgBouncer and S3, and injects faults.
//!
//! Everything a test starts is its own: a private directory, a free loopback port, an unprivileged
//! account when the test runs as root. It ends with the value that stands for it, also when the test
//! panics, and also when the test process is killed (a watchdog per directory sees its end).
//!
//! A testkit reports by panicking with everything that is known about the failure: whoever calls it
//! is a test. It knows none of the other crates of this workspace.
#![allow(
    clippy::missing_panics_doc,
    reason = "every function of a testkit fails the test by panicking; each says why in its message"
)]

pub mod account;
pub mod certificates;
pub mod contents;
pub mod measure;
pub mod pgbouncer;
pub mod poll;
pub mod ports;
pub mod postgres;
pub mod proc;
pub mod processes;
pub mod proxy;
pub mod recorder;
pub mod s3;
pub mod sandbox;
pub mod tmpfs;
pub mod workload;
