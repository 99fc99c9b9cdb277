//! The two programs that are compared: how each is told to do the same thing.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgmahout_testkit::account::Account;
use pgmahout_testkit::measure::{self, Measured};
use pgmahout_testkit::postgres::Postgres;
use pgmahout_testkit::proc::reachable;
use pgmahout_testkit::sandbox::Sandbox;

/// The oldest pgBackRest whose figures count.
const PEER_THAT_COUNTS: (u32, u32) = (2, 59);

/// One of the compared programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    /// pgmahout.
    Ours,
    /// pgBackRest, archiving in the background and several segments at once.
    Peer,
    /// pgBackRest as it is without any setting for that: one segment in each call.
    PeerSync,
    /// `zstd -1 -T2` over the same bytes.
    Zstd,
}

impl Tool {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "pgmahout",
            Self::Peer => "pgBackRest",
            Self::PeerSync => "  async=n",
            Self::Zstd => "zstd -1 -T2",
        }
    }

    const fn directory(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Peer => "peer",
            Self::PeerSync => "peer-sync",
            Self::Zstd => "zstd",
        }
    }
}

/// Both programs, their configurations and their repositories.
pub(crate) struct Tools {
    /// Where everything is that the programs read and write.
    pub(crate) place: Sandbox,
    ours: PathBuf,
    peer: Option<PathBuf>,
    cores: usize,
    log: Option<PathBuf>,
}

impl Tools {
    /// With `log`, pgmahout says how long each stage took, and that is added to this file.
    pub(crate) fn new(ours: &Path, peer: Option<&Path>, log: Option<PathBuf>) -> Self {
        let place = Sandbox::new();
        for tool in [Tool::Ours, Tool::Peer, Tool::PeerSync, Tool::Zstd] {
            place.directory(tool.directory());
        }
        Self {
            place,
            ours: reachable(ours),
            peer: peer.map(reachable),
            cores: cores(),
            log,
        }
    }

    /// The programs of this run: the peer may be missing.
    pub(crate) fn both(&self) -> Vec<Tool> {
        let mut tools = vec![Tool::Ours];
        tools.extend(self.peer.is_some().then_some(Tool::Peer));
        tools
    }

    /// The same, with the peer's other way to archive.
    pub(crate) fn archiving(&self) -> Vec<Tool> {
        let mut tools = self.both();
        tools.extend(self.peer.is_some().then_some(Tool::PeerSync));
        tools
    }

    /// A directory of one program.
    pub(crate) fn path(&self, tool: Tool, name: &str) -> PathBuf {
        self.place.path().join(tool.directory()).join(name)
    }

    /// The program's file.
    pub(crate) fn program(&self, tool: Tool) -> &Path {
        match tool {
            Tool::Ours => &self.ours,
            Tool::Peer | Tool::PeerSync => self
                .peer
                .as_deref()
                .expect("it is asked for only where it is there"),
            Tool::Zstd => Path::new("/usr/bin/zstd"),
        }
    }

    /// What both were told, for the reader of the figures.
    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "{}", version(&self.ours, "--version"));
        let Some(peer) = &self.peer else {
            let _ = writeln!(text, "no pgBackRest: name one with --peer");
            return text;
        };
        let version = version(peer, "version");
        let _ = writeln!(text, "{version}");
        if number(&version) < PEER_THAT_COUNTS {
            let (major, minor) = PEER_THAT_COUNTS;
            let _ = writeln!(
                text,
                "  older than {major}.{minor}: this run shows only that the comparison works; name a newer one with \
                 --peer"
            );
        }
        let options = self.peer_options(Tool::Peer).join(" ");
        let _ = writeln!(text, "  {options}");
        let _ = writeln!(text, "  and for WAL also archive-async=n, its default");
        text
    }

    fn peer_options(&self, tool: Tool) -> Vec<String> {
        let is_async = if tool == Tool::PeerSync { "n" } else { "y" };
        [
            "compress-type=zst",
            "compress-level=1",
            &format!("process-max={}", self.cores),
            "repo1-bundle=y",
            "repo1-block=y",
            "checksum-page=y",
            "start-fast=y",
            "expire-auto=n",
            &format!("archive-async={is_async}"),
            "archive-get-queue-max=1GiB",
            "log-level-file=off",
            "log-level-console=off",
            "log-level-stderr=warn",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// An empty repository for this cluster, in place of the one before.
    pub(crate) fn fresh_repository(&self, tool: Tool, server: &Postgres) {
        for name in ["repository", "state", "spool"] {
            let path = self.path(tool, name);
            if path.exists() {
                std::fs::remove_dir_all(&path).expect("it is ours");
            }
            self.place.directory(
                path.strip_prefix(self.place.path())
                    .expect("it is below")
                    .to_str()
                    .expect("plain"),
            );
        }
        let mut command = match tool {
            Tool::Ours => {
                self.place
                    .file(self.path(tool, "pgmahout.yml"), self.our_configuration(server));
                let mut command = self.command(tool, server);
                command
                    .args(["repo", "init", "--data-dir"])
                    .arg(server.data_dir());
                command
            }
            Tool::Peer | Tool::PeerSync => {
                self.place.file(
                    self.path(tool, "pgbackrest.conf"),
                    self.peer_configuration(tool, server),
                );
                let mut command = self.command(tool, server);
                command.args(["stanza-create", "--no-online"]);
                command
            }
            Tool::Zstd => return,
        };
        run(&mut command);
    }

    fn our_configuration(&self, server: &Postgres) -> String {
        format!(
            "stanza: main\npostgresql: {{ data_dir: {}, bin_dir: {} }}\nrepository:\n  \
             - {{ name: local, type: local, path: {}, compression: {{ codec: zstd, level: 1 }} }}\n",
            server.data_dir().display(),
            server.bin_dir().display(),
            self.path(Tool::Ours, "repository").display()
        )
    }

    fn peer_configuration(&self, tool: Tool, server: &Postgres) -> String {
        let path = |name: &str| self.path(tool, name).display().to_string();
        format!(
            "[global]\nrepo1-path={}\nspool-path={}\nlock-path={}\nlog-path={}\n{}\n\n\
             [main]\npg1-path={}\npg1-port={}\npg1-socket-path={}\npg1-user=postgres\n",
            path("repository"),
            path("spool"),
            path("state"),
            path("state"),
            self.peer_options(tool).join("\n"),
            server.data_dir().display(),
            server.port(),
            server.socket_dir().display()
        )
    }

    /// A command line of the program, under the servers' account, without its verb yet.
    pub(crate) fn command(&self, tool: Tool, server: &Postgres) -> Command {
        let mut command = Account::for_servers().command(self.program(tool));
        for (name, value) in self.environment(tool) {
            command.env(name, value);
        }
        command
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null());
        match tool {
            Tool::Ours => {
                command
                    .env("PGHOST", server.socket_dir())
                    .env("PGPORT", server.port().to_string())
                    .env("PGUSER", "postgres")
                    .arg("--config")
                    .arg(self.path(tool, "pgmahout.yml"));
                if self.log.is_some() {
                    command.arg("-vv");
                }
            }
            Tool::Peer | Tool::PeerSync => {
                command
                    .arg(format!(
                        "--config={}",
                        self.path(tool, "pgbackrest.conf").display()
                    ))
                    .arg("--stanza=main");
            }
            Tool::Zstd => {}
        }
        command
    }

    fn environment(&self, tool: Tool) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("HOME", self.path(tool, "state")),
            ("PGMAHOUT_STATE_DIR", self.path(tool, "state")),
        ]
    }

    /// What stands in `archive_command`, for a shell.
    pub(crate) fn push_command(&self, tool: Tool) -> String {
        let action = match tool {
            Tool::Ours => "wal push",
            _ => "archive-push",
        };
        self.shell(tool, action)
    }

    /// What stands in `restore_command` of the server in this directory, for a shell.
    pub(crate) fn fetch_command(&self, tool: Tool, data_dir: &Path) -> String {
        match tool {
            Tool::Ours => self.shell(tool, "wal fetch"),
            _ => self.shell(tool, &format!("--pg1-path={} archive-get", data_dir.display())),
        }
    }

    fn shell(&self, tool: Tool, action: &str) -> String {
        let mut words: Vec<String> = self
            .environment(tool)
            .iter()
            .map(|(name, value)| format!("{name}={}", value.display()))
            .collect();
        words.push(self.program(tool).display().to_string());
        let configuration = match tool {
            Tool::Ours => "pgmahout.yml",
            _ => "pgbackrest.conf --stanza=main",
        };
        words.push(format!("--config={}", self.path(tool, configuration).display()));
        words.push(action.to_owned());
        words.join(" ")
    }

    /// A backup of the running server. The first one in a repository is a full one.
    pub(crate) fn backup(&self, tool: Tool, server: &Postgres) -> Measured {
        let mut command = match tool {
            Tool::Ours => {
                let mut command = self.command(tool, server);
                command.args(["backup", "create"]);
                command
            }
            Tool::Peer | Tool::PeerSync => {
                let mut command = self.command(tool, server);
                // Full where there is none yet; it says so as a warning.
                command.args(["--type=incr", "--log-level-stderr=error", "backup"]);
                command
            }
            Tool::Zstd => {
                let file = self.path(tool, "files.zst");
                let mut command = Account::for_servers().command("bash");
                command
                    .args([
                        "-c",
                        "set -o pipefail; cd \"$0\" && find . -path ./pg_wal -prune -o -type f -print0 | sort -z | \
                         xargs -0 cat | zstd -q -f -1 -T2 -o \"$1\"",
                    ])
                    .arg(server.data_dir())
                    .arg(file)
                    .stdin(std::process::Stdio::null())
                    .stdout(std::process::Stdio::null());
                command
            }
        };
        self.measured(&mut command)
    }

    /// A restore of the newest backup into a directory, which is empty but with `delta`.
    pub(crate) fn restore(&self, tool: Tool, server: &Postgres, into: &Path, delta: bool) -> Measured {
        let mut command = self.command(tool, server);
        match tool {
            Tool::Ours => command.args(["restore", "--yes", "--data-dir"]).arg(into),
            Tool::Peer | Tool::PeerSync => command
                .arg(format!("--pg1-path={}", into.display()))
                .arg("restore"),
            Tool::Zstd => unreachable!("it restores nothing"),
        };
        if delta {
            command.arg("--delta");
        }
        self.measured(&mut command)
    }

    /// What our restore of the newest backup would do.
    pub(crate) fn plan(&self, server: &Postgres) -> Measured {
        let mut command = self.command(Tool::Ours, server);
        let into = self.path(Tool::Ours, "restored");
        command.args(["restore", "--dry-run", "--data-dir"]).arg(into);
        self.measured(&mut command)
    }

    /// Removes what was restored: the disk may be small.
    pub(crate) fn remove_restored(&self) {
        for tool in [Tool::Ours, Tool::Peer] {
            let _ = std::fs::remove_dir_all(self.path(tool, "restored"));
        }
    }

    fn measured(&self, command: &mut Command) -> Measured {
        let measured = measure::run(command);
        assert!(
            measured.status.success(),
            "{command:?} ended with {}:\n{}",
            measured.status,
            measured.stderr
        );
        if let Some(log) = &self.log {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(log);
            let mut file = file.unwrap_or_else(|error| panic!("{}: {error}", log.display()));
            let text = format!("{command:?}: {:?}\n{}\n", measured.elapsed, measured.stderr);
            std::io::Write::write_all(&mut file, text.as_bytes()).expect("the disk has room");
        }
        measured
    }

    /// Bytes of the backups in the repository, without the archived WAL.
    pub(crate) fn stored(&self, tool: Tool) -> u64 {
        let repository = self.path(tool, "repository");
        let wal = match tool {
            Tool::Ours => repository.join("stanza/main/wal"),
            _ => repository.join("archive"),
        };
        bytes_below(&repository) - bytes_below(&wal)
    }
}

/// Runs a command that is not measured.
pub(crate) fn run(command: &mut Command) {
    let output = command
        .stdout(std::process::Stdio::piped())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Bytes of all files below a directory.
pub(crate) fn bytes_below(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

fn version(program: &Path, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The number in `pgBackRest 2.59.1`; nothing for a text without one.
fn number(version: &str) -> (u32, u32) {
    let text = version.split_whitespace().last().unwrap_or_default();
    let mut parts = text.split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    });
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
