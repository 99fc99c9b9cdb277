//! Control by a systemd unit.

use super::command;
use super::{ControlError, PgCtl, ServerControl, ServerStatus, StopMode};
use async_trait::async_trait;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;
use tokio::process::Command;

/// A server that a unit runs, so that systemd knows about every stop and start.
#[derive(Debug, Clone)]
pub struct Systemd {
    unit: String,
    programs: Option<PathBuf>,
    pg_ctl: Option<PgCtl>,
}

/// Lines of the journal in an error.
const LOG_LINES: usize = 15;

impl Systemd {
    /// The unit, for example `postgresql@15-main`.
    pub fn new(unit: impl Into<String>) -> Self {
        Self {
            unit: unit.into(),
            programs: None,
            pg_ctl: None,
        }
    }

    /// With `systemctl` and `journalctl` in this directory instead of on `$PATH`.
    pub fn with_programs_in(mut self, directory: impl Into<PathBuf>) -> Self {
        self.programs = Some(directory.into());
        self
    }

    /// With the data directory too, for promoting, which systemd has no word for.
    pub fn with_pg_ctl(mut self, pg_ctl: PgCtl) -> Self {
        self.pg_ctl = Some(pg_ctl);
        self
    }

    fn program(&self, name: &str) -> PathBuf {
        self.programs
            .as_ref()
            .map_or_else(|| PathBuf::from(name), |directory| directory.join(name))
    }

    async fn run(&self, program: &Path, arguments: &[&str]) -> Result<Output, ControlError> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("SYSTEMD_COLORS", "0")
            .env("LC_ALL", "C.UTF-8");
        command::run(&mut command, program).await
    }

    /// Runs `systemctl VERB UNIT` within the limit. systemd goes on with its job after that.
    async fn systemctl(
        &self,
        operation: &'static str,
        arguments: &[&str],
        timeout: Duration,
    ) -> Result<(), ControlError> {
        let program = self.program("systemctl");
        let all: Vec<&str> = arguments.iter().copied().chain(["--", &self.unit]).collect();
        let limited = tokio::time::timeout(timeout, self.run(&program, &all)).await;
        let log = async || self.log_tail(LOG_LINES).await.unwrap_or_default();
        match limited {
            Ok(output) => {
                let output = output?;
                if output.status.success() {
                    return Ok(());
                }
                Err(ControlError::Failed {
                    operation,
                    target: self.describe(),
                    output: command::said(&output),
                    log: log().await,
                })
            }
            Err(_) => Err(ControlError::TimedOut {
                operation,
                target: self.describe(),
                timeout,
                log: log().await,
            }),
        }
    }
}

/// How long answers without waiting may take.
const QUICK: Duration = Duration::from_secs(30);

#[async_trait]
impl ServerControl for Systemd {
    fn describe(&self) -> String {
        format!("unit {}", self.unit)
    }

    async fn status(&self) -> Result<ServerStatus, ControlError> {
        let program = self.program("systemctl");
        let output = self
            .run(
                &program,
                &[
                    "show",
                    "--property=LoadState,ActiveState,SubState,MainPID",
                    "--",
                    &self.unit,
                ],
            )
            .await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let property = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .unwrap_or_default()
                .trim()
        };
        if !output.status.success() {
            return Err(ControlError::Failed {
                operation: "ask for the status of",
                target: self.describe(),
                output: command::said(&output),
                log: String::new(),
            });
        }
        if property("LoadState") == "not-found" {
            return Err(ControlError::NoSuchServer {
                target: self.describe(),
                hint: "list the units with: systemctl list-units --all 'postgresql*'".to_owned(),
            });
        }
        let pid = property("MainPID").parse().ok().filter(|pid| *pid != 0);
        match (property("ActiveState"), property("SubState")) {
            // Debian's postgresql.service only starts the others and exits.
            ("active", "exited") => Err(ControlError::MetaUnit {
                target: self.describe(),
            }),
            ("active" | "reloading" | "activating" | "deactivating", _) => Ok(ServerStatus::Running { pid }),
            _ => Ok(ServerStatus::Stopped),
        }
    }

    async fn start(&self, timeout: Duration) -> Result<(), ControlError> {
        self.systemctl("start", &["start"], timeout).await?;
        if self.status().await?.is_running() {
            return Ok(());
        }
        Err(ControlError::Failed {
            operation: "start",
            target: self.describe(),
            output: "systemd started the unit, and it has ended again".to_owned(),
            log: self.log_tail(LOG_LINES).await.unwrap_or_default(),
        })
    }

    async fn stop(&self, mode: StopMode, timeout: Duration) -> Result<(), ControlError> {
        if !self.status().await?.is_running() {
            return Ok(());
        }
        // The units' own stop is a fast one. For the others the signal comes first; the stop that follows
        // keeps systemd from starting the server again.
        if mode != StopMode::Fast {
            let signal = format!("--signal={}", mode.signal());
            self.systemctl("stop", &["kill", "--kill-whom=main", &signal], QUICK)
                .await?;
            if mode == StopMode::Smart {
                self.wait_until_stopped(timeout).await?;
            }
        }
        self.systemctl("stop", &["stop"], timeout).await
    }

    async fn reload(&self) -> Result<(), ControlError> {
        if !self.status().await?.is_running() {
            return Err(ControlError::NotRunning {
                operation: "reload",
                target: self.describe(),
            });
        }
        self.systemctl("reload", &["reload"], QUICK).await
    }

    async fn promote(&self, timeout: Duration) -> Result<(), ControlError> {
        match &self.pg_ctl {
            Some(pg_ctl) => pg_ctl.promote(timeout).await,
            None => Err(ControlError::Unsupported {
                operation: "promote",
                target: self.describe(),
                reason: "systemd has no word for it",
                instead: "give --data-dir as well, or run: SELECT pg_promote()",
            }),
        }
    }

    async fn log_tail(&self, lines: usize) -> Result<String, ControlError> {
        let program = self.program("journalctl");
        let count = format!("--lines={lines}");
        let unit = format!("--unit={}", self.unit);
        let output = self
            .run(&program, &[&unit, &count, "--no-pager", "--output=cat"])
            .await?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Systemd {
    async fn wait_until_stopped(&self, timeout: Duration) -> Result<(), ControlError> {
        let deadline = tokio::time::Instant::now() + timeout;
        while self.status().await?.is_running() {
            if tokio::time::Instant::now() >= deadline {
                return Err(ControlError::TimedOut {
                    operation: "stop",
                    target: self.describe(),
                    timeout,
                    log: self.log_tail(LOG_LINES).await.unwrap_or_default(),
                });
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }
}
