//! Control of a server in a Docker container, made from an image like the official one: the postmaster is
//! the container's main process, `PGDATA` names the data directory, the user is `postgres`.

use super::{ControlError, ServerControl, ServerStatus, StopMode};
use async_trait::async_trait;
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::query_parameters::{KillContainerOptionsBuilder, LogsOptionsBuilder};
use futures::{Stream, StreamExt};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

/// A server in a container.
#[derive(Debug, Clone)]
pub struct Docker {
    container: String,
    socket: PathBuf,
}

/// Lines of the log in an error.
const LOG_LINES: usize = 15;
/// Between two looks at the container.
const PAUSE: Duration = Duration::from_millis(200);
/// How long one answer of the engine may take, in seconds.
const ENGINE_PATIENCE: u64 = 120;

impl Docker {
    /// The container by name or id, through the engine at `$DOCKER_HOST` (a Unix socket) or
    /// `/var/run/docker.sock`.
    pub fn new(container: impl Into<String>) -> Self {
        let socket = std::env::var("DOCKER_HOST")
            .ok()
            .and_then(|host| host.strip_prefix("unix://").map(PathBuf::from))
            .unwrap_or_else(|| PathBuf::from("/var/run/docker.sock"));
        Self {
            container: container.into(),
            socket,
        }
    }

    /// The same through the engine at this socket.
    pub fn with_socket(mut self, socket: impl Into<PathBuf>) -> Self {
        self.socket = socket.into();
        self
    }

    async fn engine(&self) -> Result<bollard::Docker, ControlError> {
        let unreachable = |error: bollard::errors::Error| ControlError::Program {
            program: self.socket.clone(),
            source: std::io::Error::other(error.to_string()),
        };
        bollard::Docker::connect_with_unix(
            &self.socket.display().to_string(),
            ENGINE_PATIENCE,
            bollard::API_DEFAULT_VERSION,
        )
        .map_err(unreachable)?
        // Engines refuse clients that speak a newer version than they do.
        .negotiate_version()
        .await
        .map_err(unreachable)
    }

    fn failed(&self, operation: &'static str, error: bollard::errors::Error) -> ControlError {
        match error {
            bollard::errors::Error::DockerResponseServerError { status_code: 404, .. } => {
                ControlError::NoSuchServer {
                    target: self.describe(),
                    hint: "list the containers with: docker ps --all".to_owned(),
                }
            }
            bollard::errors::Error::DockerResponseServerError { message, .. } => ControlError::Failed {
                operation,
                target: self.describe(),
                output: message,
                log: String::new(),
            },
            other => ControlError::Program {
                program: self.socket.clone(),
                source: std::io::Error::other(other.to_string()),
            },
        }
    }

    /// Runs pg_ctl inside, as the server's user; the script is fixed, the words are its arguments.
    async fn pg_ctl(&self, operation: &'static str, words: &[&str]) -> Result<(), ControlError> {
        if !self.status().await?.is_running() {
            return Err(ControlError::NotRunning {
                operation,
                target: self.describe(),
            });
        }
        let engine = self.engine().await?;
        let failed = |error| self.failed(operation, error);
        let script = r#"exec pg_ctl -D "${PGDATA:-/var/lib/postgresql/data}" "$@""#;
        let command: Vec<&str> = ["sh", "-c", script, "pg_ctl"]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        let created = engine
            .create_exec(
                &self.container,
                CreateExecOptions {
                    attach_stdout: Some(true),
                    attach_stderr: Some(true),
                    user: Some("postgres"),
                    cmd: Some(command),
                    ..CreateExecOptions::default()
                },
            )
            .await
            .map_err(failed)?;
        let mut output = String::new();
        if let StartExecResults::Attached { output: stream, .. } =
            engine.start_exec(&created.id, None).await.map_err(failed)?
        {
            output = gather(stream).await.map_err(failed)?;
        }
        let inspected = engine.inspect_exec(&created.id).await.map_err(failed)?;
        if inspected.exit_code == Some(0) {
            return Ok(());
        }
        let output = output.split_whitespace().collect::<Vec<_>>().join(" ");
        Err(ControlError::Failed {
            operation,
            target: self.describe(),
            output,
            log: String::new(),
        })
    }

    async fn log(&self) -> String {
        self.log_tail(LOG_LINES).await.unwrap_or_default()
    }
}

async fn gather(
    mut stream: impl Stream<Item = Result<LogOutput, bollard::errors::Error>> + Unpin,
) -> Result<String, bollard::errors::Error> {
    let mut text = String::new();
    while let Some(part) = stream.next().await {
        text.push_str(&part?.to_string());
    }
    Ok(text)
}

#[async_trait]
impl ServerControl for Docker {
    fn describe(&self) -> String {
        format!("container {}", self.container)
    }

    async fn status(&self) -> Result<ServerStatus, ControlError> {
        let engine = self.engine().await?;
        let inspected = engine
            .inspect_container(&self.container, None)
            .await
            .map_err(|error| self.failed("ask for the status of", error))?;
        let state = inspected.state.unwrap_or_default();
        if state.running == Some(true) {
            let pid = state
                .pid
                .and_then(|pid| u32::try_from(pid).ok())
                .filter(|pid| *pid != 0);
            return Ok(ServerStatus::Running { pid });
        }
        Ok(ServerStatus::Stopped)
    }

    /// Waits until `pg_isready` inside says that the server accepts connections.
    async fn start(&self, timeout: Duration) -> Result<(), ControlError> {
        let deadline = Instant::now() + timeout;
        if !self.status().await?.is_running() {
            let engine = self.engine().await?;
            engine
                .start_container(&self.container, None)
                .await
                .map_err(|error| self.failed("start", error))?;
        }
        loop {
            if !self.status().await?.is_running() {
                return Err(ControlError::Failed {
                    operation: "start",
                    target: self.describe(),
                    output: "the container has ended again".to_owned(),
                    log: self.log().await,
                });
            }
            if self.is_ready().await? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ControlError::TimedOut {
                    operation: "start",
                    target: self.describe(),
                    timeout,
                    log: self.log().await,
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// By the mode's signal, and never by the engine's own stop, which kills when its time is over.
    async fn stop(&self, mode: StopMode, timeout: Duration) -> Result<(), ControlError> {
        if !self.status().await?.is_running() {
            return Ok(());
        }
        let engine = self.engine().await?;
        let options = KillContainerOptionsBuilder::new().signal(mode.signal()).build();
        engine
            .kill_container(&self.container, Some(options))
            .await
            .map_err(|error| self.failed("stop", error))?;
        let deadline = Instant::now() + timeout;
        while self.status().await?.is_running() {
            if Instant::now() >= deadline {
                return Err(ControlError::TimedOut {
                    operation: "stop",
                    target: self.describe(),
                    timeout,
                    log: self.log().await,
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Inside by pg_ctl: a signal through the engine would count as a stop by hand, and the container
    /// would not be started again with the machine.
    async fn reload(&self) -> Result<(), ControlError> {
        self.pg_ctl("reload", &["reload", "-s"]).await
    }

    async fn promote(&self, timeout: Duration) -> Result<(), ControlError> {
        let seconds = timeout.as_secs().max(1).to_string();
        self.pg_ctl("promote", &["promote", "-w", "-s", "-t", &seconds])
            .await
    }

    async fn log_tail(&self, lines: usize) -> Result<String, ControlError> {
        let engine = self.engine().await?;
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .tail(&lines.to_string())
            .build();
        gather(Box::pin(engine.logs(&self.container, Some(options))))
            .await
            .map_err(|error| self.failed("read the log of", error))
    }
}

impl Docker {
    async fn is_ready(&self) -> Result<bool, ControlError> {
        let engine = self.engine().await?;
        let failed = |error| self.failed("start", error);
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            user: Some("postgres"),
            cmd: Some(vec!["pg_isready", "-q"]),
            ..CreateExecOptions::default()
        };
        // A container that is just going down refuses; the caller looks at it again.
        let Ok(created) = engine.create_exec(&self.container, options).await else {
            return Ok(false);
        };
        if let StartExecResults::Attached { output, .. } =
            engine.start_exec(&created.id, None).await.map_err(failed)?
        {
            gather(output).await.map_err(failed)?;
        }
        Ok(engine.inspect_exec(&created.id).await.map_err(failed)?.exit_code == Some(0))
    }
}
