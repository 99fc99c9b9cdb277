//! Throw-away servers: a private PostgreSQL that pgmahout starts itself, for the demo and for restore
//! tests of backups.
//!
//! The server listens on a Unix-domain socket in a directory of its own (mode 0700), on no network
//! address, so that any number of them run side by side and nobody else reaches them. It is removed when
//! the value is dropped; and when the process is killed outright, by a small watcher process that waits
//! for the end of a pipe.
//!
//! PostgreSQL refuses to run as root: there the server runs as `postgres`, or `nobody` where that
//! account does not exist.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pgmahout_types::diagnostic::{Diagnose, Outcome};
use thiserror::Error;

use crate::connection::Connection;
use crate::params::{ConnectionOptions, ConnectionParameters, Environment, ParameterError};

/// The port in the socket's name. No network port is opened.
const PORT: u16 = 5432;

/// The longest path that a Unix-domain socket may have, less what PostgreSQL appends
/// (`UNIXSOCK_PATH_BUFLEN` in `src/include/libpq/pqcomm.h`: `sizeof(sun_path)`, 108 on Linux).
const LONGEST_SOCKET_DIRECTORY: usize = 108 - "/.s.PGSQL.5432".len() - 1;

/// How long a server may take to accept connections or to stop.
const PATIENCE: Duration = Duration::from_mins(1);

/// What waits for our death: reads until the pipe ends, then stops the servers and removes the directory.
const WATCHER: &str = r#"
cat >/dev/null
for pidfile in "$1"/*/postmaster.pid; do
  [ -f "$pidfile" ] && kill -QUIT "$(head -n 1 "$pidfile")" 2>/dev/null
done
for attempt in 1 2 3 4 5 6 7 8 9 10; do
  ls "$1"/*/postmaster.pid >/dev/null 2>&1 || break
  sleep 0.2
done
[ "$2" = keep ] || rm -rf "$1"
"#;

/// Why a throw-away server could not be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ThrowawayError {
    /// The directory could not be made or handed to the server's user.
    #[error("cannot prepare the directory {path} for a throw-away server")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Running as root, and no account that could run the server.
    #[error("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody' to run it as")]
    NoAccount,
    /// One of PostgreSQL's programs could not be started at all.
    #[error("cannot run {program}")]
    Program {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// One of PostgreSQL's programs failed.
    #[error("{program} failed with {status}:\n{output}")]
    ProgramFailed {
        /// The program.
        program: PathBuf,
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// The server did not accept connections in time, or ended.
    #[error("the throw-away server in {data_directory} {what}; its log ends with:\n{log}")]
    NotReady {
        /// Its data directory.
        data_directory: PathBuf,
        /// What happened instead.
        what: &'static str,
        /// The end of its log.
        log: String,
    },
    /// Its connection parameters could not be made.
    #[error("cannot connect to the throw-away server")]
    Parameters(#[source] ParameterError),
}

impl Diagnose for ThrowawayError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Directory { .. } => {
                "set TMPDIR to a directory with free space that the server's user can reach".into()
            }
            Self::NoAccount => {
                "install PostgreSQL's package, which creates the user: apt-get install postgresql".into()
            }
            Self::Program { .. } => {
                "give the directory of PostgreSQL's server programs with --bin-dir".into()
            }
            Self::ProgramFailed { .. } | Self::NotReady { .. } => {
                "run again with -v, and look at free disk space, shared memory and the lines above".into()
            }
            Self::Parameters(source) => return source.hint(),
        })
    }

    fn outcome(&self) -> Outcome {
        Outcome::Failed
    }
}

/// How the servers are made.
#[derive(Debug, Clone)]
pub struct ThrowawayOptions {
    /// Directory of `initdb`, `postgres`, `pg_basebackup`.
    pub bin_dir: PathBuf,
    /// Directory under which the servers' own directory is made; `None`: `$TMPDIR` or `/tmp`.
    pub parent: Option<PathBuf>,
    /// Settings for `postgresql.conf`, beside the ones that make the server private.
    pub settings: Vec<(String, String)>,
    /// Whether the directory is left behind.
    pub keep: bool,
}

/// The account that a server runs as.
#[derive(Debug, Clone, Copy)]
struct Account {
    user: u32,
    group: u32,
}

/// A directory of throw-away servers that end together.
#[derive(Debug)]
pub struct ThrowawayHouse {
    root: PathBuf,
    options: ThrowawayOptions,
    account: Option<Account>,
    watcher: Option<Child>,
}

impl ThrowawayHouse {
    /// Makes the directory and starts the watcher.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made or handed to the server's user.
    pub fn create(options: ThrowawayOptions) -> Result<Self, ThrowawayError> {
        let account = if rustix::process::geteuid().is_root() {
            Some(unprivileged_account()?)
        } else {
            None
        };
        let parent = options.parent.clone().unwrap_or_else(std::env::temp_dir);
        let mut root = fresh_directory(&parent, account)?;
        if root.join("standby-socket").as_os_str().len() > LONGEST_SOCKET_DIRECTORY {
            let _ = fs::remove_dir(&root);
            root = fresh_directory(Path::new("/tmp"), account)?;
        }
        let watcher = Command::new("sh")
            .args(["-c", WATCHER, "pgmahout-watcher"])
            .arg(&root)
            .arg(if options.keep { "keep" } else { "remove" })
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|source| ThrowawayError::Program {
                program: "sh".into(),
                source,
            })?;
        Ok(Self {
            root,
            options,
            account,
            watcher: Some(watcher),
        })
    }

    /// The directory of everything.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes and starts a fresh server (`initdb`, without fsync).
    ///
    /// # Errors
    ///
    /// When one of PostgreSQL's programs fails or the server does not come up.
    pub async fn server(&self, name: &str) -> Result<ThrowawayServer, ThrowawayError> {
        let data_directory = self.root.join(name);
        self.run(
            "initdb",
            &[
                "-D".into(),
                data_directory.clone().into(),
                "-U".into(),
                "postgres".into(),
                "--auth=trust".into(),
                "--encoding=UTF8".into(),
                "--locale=C".into(),
                "--no-sync".into(),
                "--data-checksums".into(),
            ],
        )
        .await?;
        self.start(name, data_directory).await
    }

    /// Makes and starts a streaming standby of `primary`, with a replication slot of its name.
    ///
    /// # Errors
    ///
    /// When one of PostgreSQL's programs fails or the server does not come up.
    pub async fn standby(
        &self,
        primary: &ThrowawayServer,
        name: &str,
    ) -> Result<ThrowawayServer, ThrowawayError> {
        let data_directory = self.root.join(name);
        self.run(
            "pg_basebackup",
            &[
                "-D".into(),
                data_directory.clone().into(),
                "-d".into(),
                format!(
                    "host={} port={PORT} user=postgres application_name={name}",
                    primary.socket_directory.display()
                )
                .into(),
                "--checkpoint=fast".into(),
                "--wal-method=stream".into(),
                "--create-slot".into(),
                "--slot".into(),
                name.into(),
                "--write-recovery-conf".into(),
                "--no-sync".into(),
            ],
        )
        .await?;
        self.start(name, data_directory).await
    }

    async fn start(&self, name: &str, data_directory: PathBuf) -> Result<ThrowawayServer, ThrowawayError> {
        let socket_directory = self.root.join(format!("{name}-socket"));
        if !socket_directory.exists() {
            private_directory(&socket_directory, self.account)?;
        }
        let mut lines = String::new();
        let own = [
            ("listen_addresses", String::new()),
            ("unix_socket_directories", socket_directory.display().to_string()),
            ("port", PORT.to_string()),
            ("fsync", "off".into()),
            ("cluster_name", name.to_owned()),
        ];
        for (key, value) in own.iter().cloned().chain(
            self.options
                .settings
                .iter()
                .map(|(key, value)| (key.as_str(), value.clone())),
        ) {
            let _ = writeln!(lines, "{key} = '{}'", value.replace('\'', "''"));
        }
        let directory_error = |path: &Path| {
            let path = path.to_owned();
            move |source| ThrowawayError::Directory { path, source }
        };
        let extra = data_directory.join("pgmahout.conf");
        fs::write(&extra, lines).map_err(directory_error(&extra))?;
        self.hand_over(&extra)?;
        let configuration = data_directory.join("postgresql.conf");
        let text = fs::read_to_string(&configuration).map_err(directory_error(&configuration))?;
        let include = "include 'pgmahout.conf'\n";
        if !text.ends_with(include) {
            fs::write(&configuration, format!("{text}{include}")).map_err(directory_error(&configuration))?;
        }
        let mut server = ThrowawayServer {
            log: self.root.join(format!("{name}.log")),
            program: self.options.bin_dir.join("postgres"),
            arguments: Vec::new(),
            account: self.account,
            socket_directory,
            data_directory,
            child: None,
        };
        server.start().await?;
        Ok(server)
    }

    /// Makes a directory in this one, private to the servers' user: for a server whose data directory is made in
    /// another way. Named like a server it is looked after by the watcher.
    ///
    /// # Errors
    ///
    /// When it cannot be made or handed over.
    pub fn directory(&self, name: &str) -> Result<PathBuf, ThrowawayError> {
        let path = self.root.join(name);
        private_directory(&path, self.account)?;
        Ok(path)
    }

    /// Writes a file in this directory that the servers can read.
    ///
    /// # Errors
    ///
    /// When it cannot be written or handed over.
    pub fn write_file(&self, name: &str, content: &str) -> Result<PathBuf, ThrowawayError> {
        let path = self.root.join(name);
        fs::write(&path, content).map_err(|source| ThrowawayError::Directory {
            path: path.clone(),
            source,
        })?;
        self.hand_over(&path)?;
        Ok(path)
    }

    /// Starts a server on a data directory that is there, with these settings on its command line, and does not
    /// wait for it: it may have to recover first. It is private as the others are; the data directory is made by
    /// [`ThrowawayHouse::directory`].
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn launch(&self, name: &str, settings: &[(&str, String)]) -> Result<ThrowawayServer, ThrowawayError> {
        let socket_directory = self.root.join(format!("{name}-socket"));
        if !socket_directory.exists() {
            private_directory(&socket_directory, self.account)?;
        }
        let own = [
            ("listen_addresses", String::new()),
            ("unix_socket_directories", socket_directory.display().to_string()),
            ("port", PORT.to_string()),
        ];
        let arguments = own
            .iter()
            .chain(settings)
            .flat_map(|(key, value)| ["-c".into(), format!("{key}={value}").into()])
            .collect();
        let mut server = ThrowawayServer {
            log: self.root.join(format!("{name}.log")),
            program: self.options.bin_dir.join("postgres"),
            arguments,
            account: self.account,
            socket_directory,
            data_directory: self.root.join(name),
            child: None,
        };
        server.spawn()?;
        Ok(server)
    }

    fn hand_over(&self, path: &Path) -> Result<(), ThrowawayError> {
        if let Some(account) = self.account {
            chown(path, Some(account.user), Some(account.group)).map_err(|source| {
                ThrowawayError::Directory {
                    path: path.to_owned(),
                    source,
                }
            })?;
        }
        Ok(())
    }

    async fn run(&self, program: &str, arguments: &[OsString]) -> Result<(), ThrowawayError> {
        let program = self.options.bin_dir.join(program);
        let mut command = command_as(&program, self.account);
        command
            .args(arguments)
            .current_dir(&self.root)
            .stdin(Stdio::null());
        let output: Output = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|source| ThrowawayError::Program {
                program: program.clone(),
                source,
            })?;
        if output.status.success() {
            return Ok(());
        }
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Err(ThrowawayError::ProgramFailed {
            program,
            status: output.status.to_string(),
            output: last_lines(&text),
        })
    }
}

impl Drop for ThrowawayHouse {
    fn drop(&mut self) {
        // The watcher does the same work whether we end well or are killed: stop what runs, remove.
        if let Some(mut watcher) = self.watcher.take() {
            drop(watcher.stdin.take());
            let _ = watcher.wait();
        }
    }
}

/// A private server; stopped when dropped.
#[derive(Debug)]
pub struct ThrowawayServer {
    data_directory: PathBuf,
    socket_directory: PathBuf,
    log: PathBuf,
    program: PathBuf,
    arguments: Vec<OsString>,
    account: Option<Account>,
    child: Option<Child>,
}

impl ThrowawayServer {
    /// Its data directory.
    pub fn data_directory(&self) -> &Path {
        &self.data_directory
    }

    /// The directory of its socket: the host to connect to.
    pub fn socket_directory(&self) -> &Path {
        &self.socket_directory
    }

    /// The port in its socket's name.
    pub fn port(&self) -> u16 {
        PORT
    }

    /// The file of its log.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// How to connect to one of its databases as the superuser.
    ///
    /// # Errors
    ///
    /// When the parameters do not resolve, which an unusual path could cause.
    pub fn parameters(&self, database: &str) -> Result<ConnectionParameters, ThrowawayError> {
        let options = ConnectionOptions {
            host: Some(self.socket_directory.display().to_string()),
            port: Some(PORT.to_string()),
            user: Some("postgres".into()),
            database: Some(database.into()),
            ..ConnectionOptions::default()
        };
        ConnectionParameters::resolve(&options, &Environment::default()).map_err(ThrowawayError::Parameters)
    }

    /// Starts the program.
    fn spawn(&mut self) -> Result<(), ThrowawayError> {
        let open = || -> io::Result<(fs::File, fs::File)> {
            let file = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
            Ok((file.try_clone()?, file))
        };
        let (stdout, stderr) = open().map_err(|source| ThrowawayError::Directory {
            path: self.log.clone(),
            source,
        })?;
        let child = command_as(&self.program, self.account)
            .arg("-D")
            .arg(&self.data_directory)
            .args(&self.arguments)
            .current_dir(&self.data_directory)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            // A Ctrl-C at the terminal is for pgmahout, which then stops the server in order.
            .process_group(0)
            .spawn()
            .map_err(|source| ThrowawayError::Program {
                program: self.program.clone(),
                source,
            })?;
        self.child = Some(child);
        Ok(())
    }

    /// Whether the server's process runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    /// The end of its log: twelve lines.
    pub fn log_tail(&self) -> String {
        last_lines(&fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// Starts the server again after [`Self::stop`].
    ///
    /// # Errors
    ///
    /// When it does not accept connections in time.
    pub async fn start(&mut self) -> Result<(), ThrowawayError> {
        self.spawn()?;
        let deadline = Instant::now() + PATIENCE;
        let parameters = self.parameters("postgres")?;
        loop {
            if let Ok(connection) = Connection::open(&parameters).await {
                connection.close().await;
                return Ok(());
            }
            let ended = match self.child.as_mut().map(Child::try_wait) {
                Some(Ok(None)) => None,
                _ => Some("ended while starting"),
            };
            let what = ended.or_else(|| (Instant::now() > deadline).then_some("does not accept connections"));
            if let Some(what) = what {
                let log = last_lines(&fs::read_to_string(&self.log).unwrap_or_default());
                self.end(rustix::process::Signal::QUIT);
                return Err(ThrowawayError::NotReady {
                    data_directory: self.data_directory.clone(),
                    what,
                    log,
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops the server in fast mode (`SIGINT`) and waits for its end.
    pub async fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(&child, rustix::process::Signal::INT);
            let deadline = Instant::now() + PATIENCE;
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    signal(&child, rustix::process::Signal::QUIT);
                    let _ = child.wait();
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    fn end(&mut self, how: rustix::process::Signal) {
        if let Some(mut child) = self.child.take() {
            signal(&child, how);
            let _ = child.wait();
        }
    }
}

impl Drop for ThrowawayServer {
    fn drop(&mut self) {
        self.end(rustix::process::Signal::QUIT);
    }
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    if let Some(pid) = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        // It may have ended already; then there is nothing to stop.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// A program with a bare environment, under the server's account.
fn command_as(program: &Path, account: Option<Account>) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    for name in ["PATH", "LANG", "TZ", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if let Some(account) = account {
        command.uid(account.user).gid(account.group);
    }
    command
}

fn fresh_directory(parent: &Path, account: Option<Account>) -> Result<PathBuf, ThrowawayError> {
    for attempt in 0u32.. {
        let name = format!("pgmahout-{}-{attempt}", std::process::id());
        let path = parent.join(name);
        match private_directory(&path, account) {
            Err(ThrowawayError::Directory { source, .. })
                if source.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => {}
            result => return result.map(|()| path),
        }
    }
    unreachable!("the loop above returns before its counter ends")
}

fn private_directory(path: &Path, account: Option<Account>) -> Result<(), ThrowawayError> {
    let error = |source| ThrowawayError::Directory {
        path: path.to_owned(),
        source,
    };
    fs::DirBuilder::new().mode(0o700).create(path).map_err(error)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(error)?;
    if let Some(account) = account {
        chown(path, Some(account.user), Some(account.group)).map_err(error)?;
    }
    Ok(())
}

/// The user and group numbers of `postgres`, else of `nobody`, from the password file (passwd(5)).
fn unprivileged_account() -> Result<Account, ThrowawayError> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then_some(())?;
            let user = fields.nth(1)?.parse().ok()?;
            let group = fields.next()?.parse().ok()?;
            Some(Account { user, group })
        })
    };
    find("postgres")
        .or_else(|| find("nobody"))
        .ok_or(ThrowawayError::NoAccount)
}

/// The last twelve lines: enough to see why, little enough to read.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
