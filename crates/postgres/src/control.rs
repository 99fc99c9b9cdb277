//! Controlling a local server: one trait, whatever starts and stops it.
//!
//! * [`PgCtl`]: PostgreSQL's own `pg_ctl` on a data directory.
//! * [`Systemd`]: a unit, through `systemctl`. Tested against a stand-in for `systemctl`: the commands are
//!   what is proved, not systemd.
//! * [`Docker`]: a container, through the engine's socket. Tested against a stand-in for the engine that
//!   serves the documented endpoints.
//!
//! Nothing here kills a server by SIGKILL, whatever the time limit: after a limit the operation fails and
//! the server is in the state that it is in.

mod command;
mod docker;
mod pg_ctl;
mod systemd;

pub use docker::Docker;
pub use pg_ctl::PgCtl;
pub use systemd::Systemd;

use async_trait::async_trait;
use pgmahout_types::diagnostic::Diagnose;
use std::path::PathBuf;
use std::time::Duration;

/// How a server is stopped (`pg_ctl` documentation, `-m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum StopMode {
    /// Waits for clients to leave.
    Smart,
    /// Ends sessions, writes a checkpoint.
    #[default]
    Fast,
    /// Without a checkpoint: the next start recovers from the log.
    Immediate,
}

impl StopMode {
    /// pg_ctl's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Smart => "smart",
            Self::Fast => "fast",
            Self::Immediate => "immediate",
        }
    }

    /// The signal that asks the postmaster for it (documentation, "Shutting Down the Server").
    pub(crate) fn signal(self) -> &'static str {
        match self {
            Self::Smart => "SIGTERM",
            Self::Fast => "SIGINT",
            Self::Immediate => "SIGQUIT",
        }
    }
}

/// Whether the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerStatus {
    /// The postmaster runs; whether it accepts connections is another question.
    Running {
        /// Its process id on this machine, where it can be told.
        pid: Option<u32>,
    },
    /// It does not.
    Stopped,
}

impl ServerStatus {
    /// Whether the server runs.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running { .. })
    }
}

/// Starts, stops and signals one server.
#[async_trait]
pub trait ServerControl: std::fmt::Debug + Send + Sync {
    /// What is controlled and how, for plans and messages: `data directory /x by pg_ctl`.
    fn describe(&self) -> String;

    /// Whether the server runs.
    ///
    /// # Errors
    ///
    /// When that cannot be told.
    async fn status(&self) -> Result<ServerStatus, ControlError>;

    /// Starts it and waits until it is up. A server that runs already is fine.
    ///
    /// # Errors
    ///
    /// When it does not come up within `timeout`; the error holds the end of its log.
    async fn start(&self, timeout: Duration) -> Result<(), ControlError>;

    /// Stops it and waits for its end. A server that does not run is fine.
    ///
    /// # Errors
    ///
    /// When it still runs after `timeout`; it may stop later.
    async fn stop(&self, mode: StopMode, timeout: Duration) -> Result<(), ControlError>;

    /// Stops it, where it runs, and starts it; each may take `timeout`.
    ///
    /// # Errors
    ///
    /// As for stop and start.
    async fn restart(&self, mode: StopMode, timeout: Duration) -> Result<(), ControlError> {
        self.stop(mode, timeout).await?;
        self.start(timeout).await
    }

    /// Has it read its configuration files again. Whether it likes them only it can say.
    ///
    /// # Errors
    ///
    /// When it does not run or cannot be signalled.
    async fn reload(&self) -> Result<(), ControlError>;

    /// Promotes a standby and waits until it is a primary.
    ///
    /// # Errors
    ///
    /// When it is no standby, or still one after `timeout`.
    async fn promote(&self, timeout: Duration) -> Result<(), ControlError>;

    /// The last lines of what it logged where we can see it.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    async fn log_tail(&self, lines: usize) -> Result<String, ControlError>;
}

/// A server could not be controlled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The program or engine that controls it cannot be had.
    #[error("cannot run {program}")]
    Program {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It answered with a failure.
    #[error("cannot {operation} {target}: {output}{}", log_lines(log))]
    Failed {
        /// `start`, `stop`, ...
        operation: &'static str,
        /// What.
        target: String,
        /// What the program said.
        output: String,
        /// The end of the server's log.
        log: String,
    },
    /// The time is over.
    #[error("{target} did not {operation} within {} s{}", timeout.as_secs_f64(), log_lines(log))]
    TimedOut {
        /// `start`, `stop`, ...
        operation: &'static str,
        /// What.
        target: String,
        /// The limit.
        timeout: Duration,
        /// The end of the server's log.
        log: String,
    },
    /// The server does not run, and the operation needs that.
    #[error("cannot {operation} {target}: the server does not run")]
    NotRunning {
        /// What was asked for.
        operation: &'static str,
        /// What.
        target: String,
    },
    /// There is no such data directory, unit or container.
    #[error("there is no {target}")]
    NoSuchServer {
        /// What.
        target: String,
        /// How to find the right one.
        hint: String,
    },
    /// The unit stands for all servers of the machine.
    #[error("{target} stands for all servers of this machine and controls none itself")]
    MetaUnit {
        /// The unit.
        target: String,
    },
    /// This way of control cannot do it.
    #[error("cannot {operation} {target} this way: {reason}")]
    Unsupported {
        /// What was asked for.
        operation: &'static str,
        /// What.
        target: String,
        /// Why.
        reason: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// A file beside the server cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn log_lines(log: &str) -> String {
    if log.trim().is_empty() {
        return String::new();
    }
    log.trim_end()
        .lines()
        .fold("; the log's last lines:".to_owned(), |text, line| {
            text + "\n    " + line
        })
}

impl Diagnose for ControlError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Program { program, .. } => match program.file_name().and_then(|name| name.to_str()) {
                Some("pg_ctl") => "give the directory of PostgreSQL's server programs with --bin-dir".to_owned(),
                Some("systemctl" | "journalctl") => {
                    "this machine does not run systemd: give --data-dir or --container instead of --unit".to_owned()
                }
                _ => "see whether the Docker engine runs and this user may use it: docker ps".to_owned(),
            },
            Self::Failed { operation: "start", log, .. } | Self::TimedOut { operation: "start", log, .. } => {
                start_hint(log)
            }
            Self::Failed { .. } => "read the server's log, and run this as root or as the server's user".to_owned(),
            Self::TimedOut { operation: "stop", .. } => {
                "sessions or archiving may hold it up: look at the log, wait, or stop it with mode fast or immediate"
                    .to_owned()
            }
            Self::TimedOut { .. } => "look at the server's log, and try again with more time".to_owned(),
            Self::NotRunning { .. } => "start the server first".to_owned(),
            Self::NoSuchServer { hint, .. } => hint.clone(),
            Self::MetaUnit { .. } => {
                "name the server's own unit, for example postgresql@15-main; list them with: systemctl list-units 'postgresql@*'"
                    .to_owned()
            }
            Self::Unsupported { instead, .. } => (*instead).to_owned(),
            Self::Unreadable { .. } => "run this as root or as the server's user".to_owned(),
        })
    }
}

/// What the log's own words point at. English only: a hint may be general, never wrong.
fn start_hint(log: &str) -> String {
    let known = [
        (
            "could not bind",
            "another process has the port: see which with: ss -ltnp; or change port",
        ),
        (
            "invalid value for parameter",
            "correct the setting that the log names, then start again",
        ),
        (
            "unrecognized configuration parameter",
            "correct the setting that the log names, then start again",
        ),
        (
            "lock file",
            "another server may run on this data directory: look before removing anything",
        ),
        (
            "could not map anonymous shared memory",
            "lower shared_buffers, or give the machine more memory or huge pages",
        ),
        (
            "has group or world access",
            "chmod 700 the data directory, and 600 the key file that the log names",
        ),
        (
            "No space left on device",
            "free some space on the file system of the data directory",
        ),
        (
            "could not load pg_hba.conf",
            "correct pg_hba.conf in the line that the log names",
        ),
        (
            "could not access file",
            "the library in shared_preload_libraries is not installed: install it or leave it out",
        ),
        (
            "configuration file",
            "correct the line that the log names, then start again",
        ),
        (
            "incompatible with server",
            "use the server programs of the data directory's version: --bin-dir",
        ),
    ];
    known
        .iter()
        .find(|(words, _)| log.contains(words))
        .map_or(
            "correct what the log's last lines name, then start again",
            |(_, hint)| hint,
        )
        .to_owned()
}

/// The last lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
