//! Black-box tests of the binary: arguments, exit status, stdout, stderr, against real servers.

mod completion;
mod config;
mod demo;
mod dump_copy;
mod dump_create;
mod dump_detect;
mod dump_expire;
mod dump_faults_create;
mod dump_faults_restore;
mod dump_restore;
mod dump_roundtrip;
mod dump_verify;
mod errors;
mod guide;
mod health_forms;
mod health_host;
mod health_objects;
mod health_replication;
mod health_run;
mod health_sessions;
mod health_wal;
mod help;
mod procedure;
mod report;
mod role;
mod verify;
