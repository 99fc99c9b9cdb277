//! Real PostgreSQL servers, each on its own directory and port.
//!
//! ```no_run
//! use pgmahout_testkit::postgres::{Major, Postgres};
//!
//! # async fn example() {
//! for major in Major::all() {
//!     let server = Postgres::builder(major).setting("max_connections", "20").start().await;
//!     server.sql("postgres", "CREATE TABLE t AS SELECT 1 AS id").await;
//!     assert_eq!(server.query_text("postgres", "SELECT id FROM t").await, "1");
//! } // stopped and removed here
//! # }
//! ```
//!
//! The superuser is `postgres`. Connections are trusted unless [`PostgresBuilder::password`] is used.
//! `initdb` runs once per major version and options; each server gets a copy, so all servers with the
//! same options share one system identifier unless [`PostgresBuilder::own_system_identifier`] is asked for.
//! Settings stand in `postgresql.conf`, so that `ALTER SYSTEM`, `pg_ctl` and pending restarts behave as
//! on any server. `fsync` is off unless the test turns it on.

mod builder;
mod control;
mod major;
mod sql;
mod standby;
mod template;

use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;

pub use builder::PostgresBuilder;
pub use control::StopMode;
pub use major::Major;
pub use standby::StandbyBuilder;

use crate::account::Account;
use crate::ports::Port;
use crate::sandbox::Sandbox;

/// A server of one test: stopped and removed when dropped.
#[derive(Debug)]
pub struct Postgres {
    major: Major,
    bin_dir: PathBuf,
    sandbox: Sandbox,
    data_dir: PathBuf,
    port: Port,
    password: Option<String>,
    child: Mutex<Option<Child>>,
    leftovers: Mutex<control::Leftovers>,
}

impl Postgres {
    /// Describes a server to start.
    pub fn builder(major: Major) -> PostgresBuilder {
        PostgresBuilder::new(major)
    }

    /// Starts a server with the testkit's default settings.
    pub async fn start(major: Major) -> Self {
        Self::builder(major).start().await
    }

    /// The server's major version.
    pub fn major(&self) -> Major {
        self.major
    }

    /// Where `pg_dump`, `pg_ctl` and the rest of this server's version are.
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// One program of this server's version.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// The TCP address it listens on.
    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    /// The TCP port, which also names the socket.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The directory of its Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.sandbox.path()
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The private directory that holds data directory, socket and log; goes with the server.
    pub fn root_dir(&self) -> &Path {
        self.sandbox.path()
    }

    /// Makes a directory beside the data directory that the server may write (an archive, a tablespace).
    pub fn new_directory(&self, name: &str) -> PathBuf {
        self.sandbox.directory(name)
    }

    /// The superuser's password, where there is one.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// The account the server runs under.
    pub fn account(&self) -> &'static Account {
        Account::for_servers()
    }

    /// Connection URI of the superuser over TCP, with the password where there is one.
    pub fn dsn(&self, database: &str) -> String {
        self.dsn_as("postgres", self.password.as_deref(), database)
    }

    /// Connection URI of any user over TCP. The parts are not escaped.
    pub fn dsn_as(&self, user: &str, password: Option<&str>, database: &str) -> String {
        let password = password
            .map(|password| format!(":{password}"))
            .unwrap_or_default();
        format!(
            "postgresql://{user}{password}@{}:{}/{database}",
            self.host(),
            self.port()
        )
    }

    /// Path of the server's log.
    pub fn log_path(&self) -> PathBuf {
        self.sandbox.path().join("server.log")
    }

    /// The server's log so far, of all its starts.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Adds a line to `postgresql.conf` (the last one wins); [`reload`](Self::reload) or
    /// [`restart`](Self::restart) makes it count.
    pub fn append_conf(&self, line: &str) {
        append(&self.data_dir.join("postgresql.conf"), line);
    }

    /// Puts lines at the head of `pg_hba.conf`; [`reload`](Self::reload) makes them count.
    pub fn prepend_hba(&self, lines: &str) {
        let path = self.data_dir.join("pg_hba.conf");
        let before = std::fs::read_to_string(&path).expect("pg_hba.conf is readable");
        // Written in place, so that owner and mode stay.
        std::fs::write(&path, format!("{lines}\n{before}")).expect("pg_hba.conf is writable");
    }
}

fn append(path: &Path, line: &str) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(path)
        .unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
    writeln!(file, "{line}").unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

/// A value as `postgresql.conf` wants it.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests;
