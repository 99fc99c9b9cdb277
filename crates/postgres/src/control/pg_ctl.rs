//! Control by `pg_ctl` on a data directory.

use super::command::{self, Owner};
use super::{ControlError, ServerControl, ServerStatus, StopMode, last_lines};
use async_trait::async_trait;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

/// A server on a data directory of this machine. As root, everything runs as the directory's owner.
#[derive(Debug, Clone)]
pub struct PgCtl {
    bin_dir: PathBuf,
    data_dir: PathBuf,
    config_file: Option<PathBuf>,
    log_file: Option<PathBuf>,
}

/// Lines of the log in an error.
const LOG_LINES: usize = 15;

impl PgCtl {
    /// The server on `data_dir`, by the programs in `bin_dir`, which must be of its version.
    pub fn new(bin_dir: impl Into<PathBuf>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            bin_dir: bin_dir.into(),
            data_dir: data_dir.into(),
            config_file: None,
            log_file: None,
        }
    }

    /// With `postgresql.conf` elsewhere, as Debian keeps it.
    pub fn with_config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.config_file = Some(path.into());
        self
    }

    /// With what the server prints going to this file; otherwise to `log/startup.log` in the data
    /// directory.
    pub fn with_log_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.log_file = Some(path.into());
        self
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Where the server's output goes when it is started from here.
    pub fn log_file(&self) -> PathBuf {
        self.log_file
            .clone()
            .unwrap_or_else(|| self.data_dir.join("log/startup.log"))
    }

    fn program(&self) -> PathBuf {
        self.bin_dir.join("pg_ctl")
    }

    fn owner(&self) -> Result<Owner, ControlError> {
        if !self.data_dir.join("PG_VERSION").exists() {
            return Err(ControlError::NoSuchServer {
                target: self.describe(),
                hint: "ask the server for its data directory: SHOW data_directory".to_owned(),
            });
        }
        Owner::of(&self.data_dir)
    }

    async fn run(&self, arguments: &[&OsStr]) -> Result<Output, ControlError> {
        let program = self.program();
        // Another program may stand between us and it, and would report its absence as its own failure.
        std::fs::metadata(&program).map_err(|source| ControlError::Program {
            program: program.clone(),
            source,
        })?;
        let mut all: Vec<&OsStr> = arguments.to_vec();
        all.extend([OsStr::new("-D"), self.data_dir.as_os_str()]);
        command::run(&mut self.owner()?.command(&program, &all), &program).await
    }

    fn failed(&self, operation: &'static str, output: &Output, log: String) -> ControlError {
        ControlError::Failed {
            operation,
            target: self.describe(),
            output: command::said(output),
            log,
        }
    }

    /// The command line that starts the server, but for the data directory.
    fn start_arguments(&self, timeout: Duration) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["start".into(), "-w".into(), "-s".into(), "-t".into()];
        arguments.push(whole_seconds(timeout).into());
        arguments.push("-l".into());
        arguments.push(self.log_file().into());
        if let Some(config_file) = &self.config_file {
            // pg_ctl hands options to a shell: one quoted word.
            let quoted = format!(
                "'config_file={}'",
                config_file.display().to_string().replace('\'', "'\\''")
            );
            arguments.push("-o".into());
            arguments.push(format!("-c {quoted}").into());
        }
        arguments
    }

    /// Makes the directory of the default log, owned as the data directory is.
    fn prepare_log(&self, owner: &Owner) {
        if self.log_file.is_some() {
            return;
        }
        let directory = self.data_dir.join("log");
        if !directory.exists() {
            use std::os::unix::fs::DirBuilderExt;
            // If this fails, pg_ctl says so with the path.
            let _ = std::fs::DirBuilder::new().mode(0o700).create(&directory);
            let _ = std::os::unix::fs::chown(&directory, Some(owner.uid), Some(owner.gid));
        }
    }

    /// The log since `from`, and of the collector's newest file if the server went over to one.
    fn log_since(&self, from: u64) -> String {
        let bytes = std::fs::read(self.log_file()).unwrap_or_default();
        let start = usize::try_from(from).unwrap_or(0).min(bytes.len());
        last_lines(&String::from_utf8_lossy(&bytes[start..]), LOG_LINES)
    }

    fn log_length(&self) -> u64 {
        std::fs::metadata(self.log_file()).map_or(0, |metadata| metadata.len())
    }
}

/// pg_ctl takes whole seconds.
fn whole_seconds(timeout: Duration) -> String {
    timeout.as_secs().max(1).to_string()
}

#[async_trait]
impl ServerControl for PgCtl {
    fn describe(&self) -> String {
        format!("data directory {} by pg_ctl", self.data_dir.display())
    }

    async fn status(&self) -> Result<ServerStatus, ControlError> {
        let output = self.run(&[OsStr::new("status")]).await?;
        match output.status.code() {
            // pg_ctl documentation: 3 the server does not run, 4 no accessible data directory.
            Some(0) => {
                let file = std::fs::read_to_string(self.data_dir.join("postmaster.pid")).unwrap_or_default();
                let pid = file.lines().next().and_then(|line| line.trim().parse().ok());
                Ok(ServerStatus::Running { pid })
            }
            Some(3) => Ok(ServerStatus::Stopped),
            _ => Err(self.failed("ask for the status of", &output, String::new())),
        }
    }

    async fn start(&self, timeout: Duration) -> Result<(), ControlError> {
        if self.status().await?.is_running() {
            return Ok(());
        }
        self.prepare_log(&self.owner()?);
        let before = self.log_length();
        let arguments = self.start_arguments(timeout);
        let arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
        let output = self.run(&arguments).await?;
        if output.status.success() {
            return Ok(());
        }
        let log = self.log_since(before);
        // The postmaster is there and not ready yet: pg_ctl only stopped waiting.
        if self.status().await?.is_running() {
            return Err(ControlError::TimedOut {
                operation: "start",
                target: self.describe(),
                timeout,
                log,
            });
        }
        Err(self.failed("start", &output, log))
    }

    async fn stop(&self, mode: StopMode, timeout: Duration) -> Result<(), ControlError> {
        if !self.status().await?.is_running() {
            return Ok(());
        }
        let before = self.log_length();
        let seconds = whole_seconds(timeout);
        let arguments = ["stop", "-w", "-s", "-m", mode.as_str(), "-t", &seconds].map(OsStr::new);
        let output = self.run(&arguments).await?;
        if output.status.success() || !self.status().await?.is_running() {
            return Ok(());
        }
        let log = self.log_since(before);
        Err(ControlError::TimedOut {
            operation: "stop",
            target: self.describe(),
            timeout,
            log,
        })
    }

    async fn reload(&self) -> Result<(), ControlError> {
        if !self.status().await?.is_running() {
            return Err(ControlError::NotRunning {
                operation: "reload",
                target: self.describe(),
            });
        }
        let output = self.run(&["reload", "-s"].map(OsStr::new)).await?;
        if output.status.success() {
            Ok(())
        } else {
            Err(self.failed("reload", &output, String::new()))
        }
    }

    async fn promote(&self, timeout: Duration) -> Result<(), ControlError> {
        if !self.status().await?.is_running() {
            return Err(ControlError::NotRunning {
                operation: "promote",
                target: self.describe(),
            });
        }
        let seconds = whole_seconds(timeout);
        let output = self
            .run(&["promote", "-w", "-s", "-t", &seconds].map(OsStr::new))
            .await?;
        if output.status.success() {
            Ok(())
        } else {
            Err(self.failed("promote", &output, String::new()))
        }
    }

    async fn log_tail(&self, lines: usize) -> Result<String, ControlError> {
        let path = self.log_file();
        let bytes = std::fs::read(&path).map_err(|source| ControlError::Unreadable { path, source })?;
        Ok(last_lines(&String::from_utf8_lossy(&bytes), lines))
    }
}
