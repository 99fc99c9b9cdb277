//! Starting, stopping, killing and freezing a server.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::Postgres;
use crate::account::Account;
use crate::processes::{self, Process, Signal};

/// How long a start, a stop or a promotion may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(20);

/// How to stop (PostgreSQL documentation, "Shutting Down the Server").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for the clients to leave.
    Smart,
    /// Ends the sessions, writes a checkpoint.
    Fast,
    /// Ends at once, without a checkpoint: crash recovery at the next start.
    Immediate,
}

/// Shared memory that a killed server leaves behind.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    files: Vec<PathBuf>,
    system_v: Option<String>,
}

impl Postgres {
    /// Starts the server program in the background.
    pub(super) fn spawn(&self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("the log is writable");
        Account::for_servers().own(&self.log_path());
        let errors = log.try_clone().expect("a file descriptor can be duplicated");
        let child = Account::for_servers()
            .command(self.program("postgres"))
            .arg("-D")
            .arg(&self.data_dir)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .expect("the server program starts");
        *self.child() = Some(child);
    }

    pub(super) async fn wait_until_ready(&self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.is_ready() {
                return Ok(());
            }
            let ended = match self.child().as_mut() {
                Some(child) => child.try_wait().map_err(|error| error.to_string())?,
                None => None,
            };
            if let Some(status) = ended {
                return Err(format!(
                    "the server ended with {status} at its start:\n{}",
                    self.log_tail()
                ));
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "the server is not ready after {PATIENCE:?}:\n{}",
                    self.log_tail()
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Ready for connections, or a standby that takes none (`postmaster.pid` line 8, `pidfile.h`).
    fn is_ready(&self) -> bool {
        let Ok(text) = std::fs::read_to_string(self.data_dir.join("postmaster.pid")) else {
            return false;
        };
        let lines: Vec<&str> = text.lines().collect();
        let ours = self
            .child()
            .as_ref()
            .is_none_or(|child| lines.first() == Some(&&*child.id().to_string()));
        ours && lines
            .get(7)
            .is_some_and(|status| matches!(status.trim(), "ready" | "standby"))
    }

    /// Starts a server that was stopped or killed, with the same data directory, port and settings.
    pub async fn start_again(&self) {
        self.try_start_again()
            .await
            .unwrap_or_else(|problem| panic!("{problem}"));
    }

    /// [`start_again`](Self::start_again) for a server that may be unable to start.
    ///
    /// # Errors
    /// Says why it did not start, with the end of its log.
    pub async fn try_start_again(&self) -> Result<(), String> {
        assert!(self.running_pid().is_none(), "the server is still running");
        self.spawn();
        self.wait_until_ready().await?;
        // The start has removed the old segment.
        self.leftovers().system_v = None;
        Ok(())
    }

    /// Stops the server and waits for its end.
    pub async fn stop(&self, mode: StopMode) {
        let pid = self.pid();
        processes::signal(pid, mode.signal());
        let deadline = Instant::now() + PATIENCE;
        while !self.is_gone(pid) {
            assert!(
                Instant::now() < deadline,
                "no {mode:?} stop within {PATIENCE:?}:\n{}",
                self.log_tail()
            );
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Stops (fast) and starts again.
    pub async fn restart(&self) {
        self.stop(StopMode::Fast).await;
        self.start_again().await;
    }

    /// `SIGKILL` for the postmaster and all its children, as the out-of-memory killer or a lost machine
    /// would; returns when they are gone.
    pub async fn kill(&self) {
        let pid = self.pid();
        self.kill_all(pid);
        let deadline = Instant::now() + PATIENCE;
        while !self.is_gone(pid) {
            assert!(
                Instant::now() < deadline,
                "killed, but not gone within {PATIENCE:?}"
            );
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn kill_all(&self, pid: u32) {
        let children = processes::children_of(pid);
        let mut leftovers = self.leftovers();
        for process in children.iter().chain([&pid]) {
            leftovers.files.extend(processes::shared_memory_files(*process));
        }
        let segment = self.pid_file_line(6);
        leftovers.system_v = segment.and_then(|line| line.split_whitespace().nth(1).map(str::to_owned));
        drop(leftovers);
        processes::signal(pid, Signal::KILL);
        for child in &children {
            processes::signal(*child, Signal::KILL);
        }
        crate::poll::blocking_until(PATIENCE, "the end of the killed server's processes", || {
            children.iter().all(|child| !processes::is_running(*child))
        });
    }

    /// Freezes the postmaster and all its children.
    pub fn sigstop(&self) {
        self.signal_all(Signal::STOP);
    }

    /// Ends [`sigstop`](Self::sigstop).
    pub fn sigcont(&self) {
        self.signal_all(Signal::CONT);
    }

    fn signal_all(&self, signal: Signal) {
        let pid = self.pid();
        processes::signal(pid, signal);
        for child in processes::children_of(pid) {
            processes::signal(child, signal);
        }
    }

    /// The server's child processes with their titles (`postgres: walreceiver streaming 0/3000148`).
    pub fn processes(&self) -> Vec<Process> {
        processes::describe_children(self.pid())
    }

    /// Reloads the configuration and waits until sessions started from now on see it.
    pub async fn reload(&self) {
        let before = self.query_text("postgres", "SELECT pg_conf_load_time()").await;
        processes::signal(self.pid(), Signal::HUP);
        crate::poll::until(PATIENCE, "the reloaded configuration", async || {
            self.query_text("postgres", "SELECT pg_conf_load_time()").await != before
        })
        .await;
    }

    /// The postmaster's process id; panics when the server does not run.
    pub fn pid(&self) -> u32 {
        self.running_pid()
            .unwrap_or_else(|| panic!("the server does not run:\n{}", self.log_tail()))
    }

    /// Whether the server runs, whoever started it.
    pub fn is_running(&self) -> bool {
        self.running_pid().is_some()
    }

    /// From `postmaster.pid`, as the test may have restarted the server by other means; checked against
    /// the process's working directory, which is the data directory.
    fn running_pid(&self) -> Option<u32> {
        let pid: u32 = self.pid_file_line(0)?.trim().parse().ok()?;
        let directory = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        (directory == self.data_dir && !self.is_gone(pid)).then_some(pid)
    }

    fn pid_file_line(&self, index: usize) -> Option<String> {
        let text = std::fs::read_to_string(self.data_dir.join("postmaster.pid")).ok()?;
        text.lines().nth(index).map(str::to_owned)
    }

    fn is_gone(&self, pid: u32) -> bool {
        let mut child = self.child();
        if let Some(running) = child.as_mut().filter(|running| running.id() == pid) {
            if matches!(running.try_wait(), Ok(None)) {
                return false;
            }
            *child = None;
            return true;
        }
        !processes::is_running(pid)
    }

    pub(super) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<std::process::Child>> {
        self.child
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn leftovers(&self) -> std::sync::MutexGuard<'_, Leftovers> {
        self.leftovers
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn end(&self) {
        if let Some(pid) = self.running_pid() {
            self.signal_all(Signal::CONT);
            // Immediate: nothing of it is needed any more, and it removes its shared memory.
            processes::signal(pid, Signal::QUIT);
            let deadline = Instant::now() + Duration::from_secs(10);
            while !self.is_gone(pid) && Instant::now() < deadline {
                std::thread::sleep(PAUSE);
            }
            if !self.is_gone(pid) {
                self.kill_all(pid);
            }
        }
        if let Some(mut child) = self.child().take() {
            // Ended by itself, or never became ready.
            let _ = child.kill();
            let _ = child.wait();
        }
        let leftovers = std::mem::take(&mut *self.leftovers());
        for file in leftovers.files {
            let _ = std::fs::remove_file(file);
        }
        if let Some(identifier) = leftovers.system_v {
            let _ = Account::for_servers()
                .command("ipcrm")
                .args(["-m", &identifier])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "shown with the failed test only")]
            {
                eprintln!(
                    "--- log of PostgreSQL {} on port {} ---\n{}",
                    self.major,
                    self.port(),
                    self.log_tail()
                );
            }
        }
        self.end();
    }
}

impl StopMode {
    fn signal(self) -> Signal {
        match self {
            Self::Smart => Signal::TERM,
            Self::Fast => Signal::INT,
            Self::Immediate => Signal::QUIT,
        }
    }
}
