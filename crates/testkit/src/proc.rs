//! Running the program under test, as a user would: arguments, environment, input, signals.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::account::Account;
use crate::processes::{self, Signal};
use crate::sandbox::shared_directory;

/// A command line of the program, in an environment of its own: no variable of the caller's but `PATH`,
/// an empty home and working directory, and its state directory below them.
///
/// The binary's path is `env!("CARGO_BIN_EXE_pgmahout")` in the tests of its package.
#[derive(Debug)]
pub struct Pgmahout {
    binary: PathBuf,
    arguments: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    input: Option<Vec<u8>>,
    timeout: Duration,
    home: tempfile::TempDir,
    directory: Option<PathBuf>,
    account: Option<&'static Account>,
}

/// A command that ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Exit status; `None` when a signal ended it.
    pub status: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it ran.
    pub elapsed: Duration,
}

/// A command that runs. Killed with its children when dropped.
#[derive(Debug)]
pub struct Running {
    child: Option<tokio::process::Child>,
    pid: u32,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    started: Instant,
    timeout: Duration,
    command: Pgmahout,
}

/// The program at a path that the servers' account can reach: where it is, or a copy in a directory that all
/// tests share. Servers run it as archive_command and restore_command.
pub fn reachable(binary: impl AsRef<Path>) -> PathBuf {
    let binary = binary.as_ref();
    let open = |path: &Path| {
        path.metadata()
            .is_ok_and(|metadata| metadata.permissions().mode() & 0o005 == 0o005)
    };
    if !Account::for_servers().is_another() || binary.ancestors().all(open) {
        return binary.to_owned();
    }
    let metadata = binary.metadata().expect("the binary is there");
    let built = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |time| time.as_nanos());
    let directory = shared_directory("programs");
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))
        .expect("the owner may change the mode");
    let copy = directory.join(format!("pgmahout-{}-{built}", metadata.len()));
    if !copy.exists() {
        let temporary = directory.join(format!(".{}-{built}", std::process::id()));
        std::fs::copy(binary, &temporary).expect("the binary can be copied");
        std::fs::rename(&temporary, &copy).expect("the copy can be renamed");
    }
    copy
}

impl Pgmahout {
    /// A command line of the binary, without arguments yet.
    pub fn command(binary: impl AsRef<Path>) -> Self {
        let home = tempfile::Builder::new()
            .prefix("pgmahout-test-home-")
            .tempdir()
            .expect("the temporary directory is writable");
        Self {
            binary: binary.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            input: None,
            timeout: Duration::from_mins(2),
            home,
            directory: None,
            account: None,
        }
    }

    /// Runs it under the servers' account, as a server runs its archive_command: files that it makes belong
    /// to that account, and so does its home.
    pub fn as_server_account(mut self) -> Self {
        let account = Account::for_servers();
        account.own(self.home.path());
        self.binary = reachable(&self.binary);
        self.account = Some(account);
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments
            .extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Gives it an input; without one, standard input is empty and no terminal.
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// Runs it in this directory instead of its empty home.
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// How long it may run (two minutes unless told otherwise); then the test fails.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Its home and, unless told otherwise, its working directory.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The same as a command of the standard library, for tests that need a terminal.
    pub fn to_std(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.binary);
        command
            .args(&self.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("PGMAHOUT_STATE_DIR", self.home.path().join("state"))
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .envs(&self.environment)
            .current_dir(self.directory.as_deref().unwrap_or_else(|| self.home.path()));
        if let Some(account) = self.account.filter(|account| account.is_another()) {
            // The standard library drops the supplementary groups when it changes the user as root.
            command
                .uid(account.uid)
                .gid(account.gid)
                .env("USER", &account.name);
        }
        command
    }

    /// Runs it to its end.
    pub async fn run(self) -> Finished {
        self.spawn().wait().await
    }

    /// [`run`](Self::run) without a runtime.
    pub fn run_blocking(self) -> Finished {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made");
        runtime.block_on(self.run())
    }

    /// Starts it, in a process group of its own as a shell does.
    pub fn spawn(mut self) -> Running {
        let mut command = tokio::process::Command::from(self.to_std());
        let input = self.input.take();
        command
            .process_group(0)
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.binary.display()));
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            tokio::spawn(async move {
                // The program may end without reading its input.
                let _ = stdin.write_all(&input).await;
            });
        }
        let stdout = child.stdout.take().map(|stream| tokio::spawn(read(stream)));
        let stderr = child.stderr.take().map(|stream| tokio::spawn(read(stream)));
        Running {
            pid: child.id().expect("it was not waited for"),
            child: Some(child),
            stdout,
            stderr,
            started: Instant::now(),
            timeout: self.timeout,
            command: self,
        }
    }
}

impl Running {
    /// Its process id, which is also its process group.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its home directory.
    pub fn home(&self) -> &Path {
        self.command.home()
    }

    /// Sends a signal to the program alone.
    pub fn signal(&self, signal: Signal) {
        processes::signal(self.pid, signal);
    }

    /// Control-C as a terminal sends it: SIGINT to the program and its children.
    pub fn interrupt(&self) {
        self.signal_group(Signal::INT);
    }

    /// Kills the program alone (SIGKILL) when it has run for `delay`, if it still runs then.
    pub async fn kill_after(self, delay: Duration) -> Finished {
        tokio::time::sleep_until((self.started + delay).into()).await;
        self.signal(Signal::KILL);
        self.wait().await
    }

    /// Waits for its end and collects its output.
    pub async fn wait(mut self) -> Finished {
        let mut child = self.child.take().expect("it is waited for once");
        let Ok(status) = tokio::time::timeout(self.timeout, child.wait()).await else {
            self.signal_group(Signal::KILL);
            let _ = child.wait().await;
            let output = [self.stdout.take(), self.stderr.take()];
            let mut text = String::new();
            for stream in output.into_iter().flatten() {
                text += &String::from_utf8_lossy(&stream.await.unwrap_or_default());
            }
            panic!(
                "{:?} still ran after {:?}:\n{text}",
                self.command.arguments, self.timeout
            );
        };
        let status = status.expect("a child can be waited for");
        let elapsed = self.started.elapsed();
        let (stdout, stderr) = tokio::join!(collect(self.stdout.take()), collect(self.stderr.take()));
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        Finished {
            status: status.code(),
            signal,
            stdout,
            stderr,
            elapsed,
        }
    }

    fn signal_group(&self, signal: Signal) {
        let raw = i32::try_from(self.pid).expect("process ids fit an i32");
        if let Some(group) = Pid::from_raw(raw) {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.signal_group(Signal::KILL);
        }
    }
}

impl Finished {
    /// Panics with all output unless it ended with this status; returns itself.
    pub fn expect_status(self, status: i32) -> Self {
        assert_eq!(
            self.status,
            Some(status),
            "signal {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.signal,
            self.stdout,
            self.stderr
        );
        self
    }
}

async fn read(mut stream: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    bytes
}

/// What the stream brought. Children that outlive the program may hold it open: they get two seconds.
async fn collect(stream: Option<JoinHandle<Vec<u8>>>) -> String {
    let Some(stream) = stream else {
        return String::new();
    };
    let bytes = tokio::time::timeout(Duration::from_secs(2), stream).await;
    bytes
        .ok()
        .and_then(Result::ok)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_is_run_in_an_environment_of_its_own() {
        let finished = Pgmahout::command("/bin/sh")
            .args(["-c", "cat; env; pwd; echo bad >&2; exit 3"])
            .env("PGHOST", "here")
            .stdin("question\n")
            .run()
            .await
            .expect_status(3);
        assert!(finished.stdout.starts_with("question\n"));
        assert!(finished.stdout.contains("PGHOST=here"));
        assert!(!finished.stdout.contains("CARGO"));
        assert_eq!(finished.stderr, "bad\n");
    }

    #[tokio::test]
    async fn a_command_can_be_killed_and_interrupted() {
        let running = Pgmahout::command("/bin/sh")
            .args(["-c", "exec sleep 100"])
            .spawn();
        assert_eq!(
            running.kill_after(Duration::from_millis(50)).await.signal,
            Some(9)
        );
        let running = Pgmahout::command("/bin/sleep").arg("100").spawn();
        running.interrupt();
        assert_eq!(running.wait().await.signal, Some(2));
    }
}
