//! Black-box tests of the binary: arguments, exit status, stdout, stderr, against real servers.

mod completion;
mod demo;
mod errors;
mod health_host;
mod help;
mod report;
mod role;
mod verify;
