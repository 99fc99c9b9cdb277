//! Black-box tests of the binary: arguments, exit status, stdout, stderr, against real servers.

mod completion;
mod config;
mod demo;
mod errors;
mod guide;
mod health_host;
mod help;
mod procedure;
mod report;
mod role;
mod verify;
