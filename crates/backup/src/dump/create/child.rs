//! Running PostgreSQL's programs: their output as a stream, their words shown, their status never lost.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pgmahout_procedure::report::{Level, Reporter};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::super::error::DumpError;
use super::outlet::CHUNK;

/// How many of the last lines of stderr an error repeats.
const KEPT_LINES: usize = 12;

/// How long a program may take to give up its sessions after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A program to run, with everything that decides how.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// Its name for people: `pg_dump`.
    pub(super) name: &'static str,
    /// Where it is.
    pub(super) path: PathBuf,
    /// Its arguments; no secret among them.
    pub(super) arguments: Vec<OsString>,
    /// Variables to set, or to remove, as [`pgmahout_postgres::params`] gives them.
    pub(super) environment: Vec<(OsString, Option<OsString>)>,
}

/// A running program.
pub(super) struct Running {
    name: &'static str,
    child: Child,
    stderr: JoinHandle<Said>,
    reporter: Arc<dyn Reporter>,
}

impl Running {
    /// Starts the program. Its stderr goes to the reporter, line by line.
    ///
    /// It gets a process group of its own, so that a Ctrl-C at the terminal reaches only us, and we end it
    /// in order.
    pub(super) fn start(
        program: &Program,
        stdin: Stdio,
        stdout: Stdio,
        reporter: &Arc<dyn Reporter>,
    ) -> Result<Self, DumpError> {
        let mut command = Command::new(&program.path);
        command
            .args(&program.arguments)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::piped());
        for (name, value) in &program.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        // Messages in one language, so that hints can be given for them; everything else as it was.
        if let Some(everything) = std::env::var_os("LC_ALL").filter(|value| !value.is_empty()) {
            command.env_remove("LC_ALL").env("LC_CTYPE", everything);
        }
        command.env("LC_MESSAGES", "C");
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|source| DumpError::Io {
            doing: "run",
            path: program.path.clone(),
            source,
        })?;
        let stderr = child.stderr.take().expect("stderr was piped");
        let stderr = tokio::spawn(relay(program.name, stderr, Arc::clone(reporter)));
        Ok(Self {
            name: program.name,
            child,
            stderr,
            reporter: Arc::clone(reporter),
        })
    }

    /// The program's output, as a blocking file with a large pipe buffer. Once.
    pub(super) fn output(&mut self) -> Result<File, DumpError> {
        let stdout = self
            .child
            .stdout
            .take()
            .expect("stdout was piped and not taken before");
        let pipe = stdout.into_owned_fd().map_err(|source| DumpError::Io {
            doing: "read the output of",
            path: PathBuf::from(self.name),
            source,
        })?;
        // Less is slower, not wrong: an unprivileged user may have used up the pages for pipes.
        let _ = rustix::pipe::fcntl_setpipe_size(&pipe, CHUNK);
        Ok(File::from(pipe))
    }

    /// The program's input, as a blocking file. Once.
    pub(super) fn input(&mut self) -> Result<File, DumpError> {
        let stdin = self
            .child
            .stdin
            .take()
            .expect("stdin was piped and not taken before");
        let pipe = stdin.into_owned_fd().map_err(|source| DumpError::Io {
            doing: "write the input of",
            path: PathBuf::from(self.name),
            source,
        })?;
        let _ = rustix::pipe::fcntl_setpipe_size(&pipe, CHUNK);
        Ok(File::from(pipe))
    }

    /// Waits for the end. Cancellation-safe: may be called again.
    pub(super) async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Ends it: SIGTERM, on which pg_dump cancels its queries on the server, then SIGKILL.
    pub(super) async fn terminate(&mut self) {
        if let Some(pid) = self
            .child
            .id()
            .and_then(|pid| rustix::process::Pid::from_raw(pid as i32))
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            if tokio::time::timeout(GRACE, self.child.wait()).await.is_ok() {
                return;
            }
            let _ = self.child.kill().await;
        }
    }

    /// The error of a failed status, with the last lines of stderr; nothing for success.
    pub(super) async fn check(self, status: ExitStatus) -> Result<(), DumpError> {
        let said = self.stderr.await.unwrap_or_default();
        if !status.success() {
            return Err(DumpError::Program {
                program: self.name.to_owned(),
                status,
                stderr: said.lines,
            });
        }
        if said.failing {
            for line in said.lines {
                self.reporter.message(Level::Warning, &line);
            }
        }
        Ok(())
    }
}

/// Shows each line and keeps the last ones. From the first error on they are only kept: they are shown in
/// the error of the whole, or by [`Running::check`] if the status says success all the same.
async fn relay(name: &'static str, stderr: impl AsyncRead + Unpin, reporter: Arc<dyn Reporter>) -> Said {
    let mut kept = VecDeque::new();
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    let mut failing = false;
    while let Ok(count) = reader.read_until(b'\n', &mut line).await {
        if count == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        if text.is_empty() {
            continue;
        }
        failing |= text.contains(": error: ") || text.contains(": fatal: ");
        if !failing {
            let shown = if text.starts_with(name) {
                text.clone()
            } else {
                format!("{name}: {text}")
            };
            let level = if is_chatter(&text) {
                Level::Detail
            } else {
                Level::Warning
            };
            reporter.message(level, &shown);
        }
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(text);
    }
    Said {
        lines: kept.into(),
        failing,
    }
}

/// What a program said.
#[derive(Default)]
struct Said {
    /// The last lines.
    lines: Vec<String>,
    /// Whether an error was among all of them.
    failing: bool,
}

/// What `--verbose` adds is only of interest to who asked for it.
fn is_chatter(line: &str) -> bool {
    ![
        "error", "warning", "fatal", "FATAL", "ERROR", "WARNING", "detail", "hint", "DETAIL", "HINT", "Query",
    ]
    .iter()
    .any(|word| line.contains(word))
        && (line.contains(": dumping ") || line.contains(": reading ") || line.contains(": saving "))
}
