//! A server as a user sets it up: a configuration file, a repository, and an archive_command that is
//! `pgmahout wal push`. Everything runs under the servers' account, as on a real host.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres, PostgresBuilder};
use pgmahout_testkit::proc::{self, Pgmahout};
use pgmahout_testkit::s3::S3Server;
use pgmahout_testkit::sandbox::Sandbox;

/// How long anything of a small cluster may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// Where the repository is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    Directory,
    S3,
}

/// A server that archives into a repository of its own.
pub(crate) struct Archived {
    pub(crate) server: Postgres,
    /// Kept alive with the scene.
    pub(crate) s3: Option<S3Server>,
    /// The repository's directory, where it is one.
    pub(crate) repository: PathBuf,
    configuration: PathBuf,
    state: PathBuf,
    sandbox: Sandbox,
}

impl Archived {
    /// A server with page checksums whose repository is set up and whose first segment has arrived.
    pub(crate) async fn new(major: Major, storage: Storage, encrypted: bool) -> Self {
        Self::with(major, storage, encrypted, |builder| builder).await
    }

    /// [`new`](Self::new) with further settings of the server.
    pub(crate) async fn with(
        major: Major,
        storage: Storage,
        encrypted: bool,
        settings: impl FnOnce(PostgresBuilder) -> PostgresBuilder,
    ) -> Self {
        let sandbox = Sandbox::new();
        let state = sandbox.directory("state");
        let configuration = sandbox.path().join("pgmahout.yml");
        let repository = sandbox.path().join("repository");
        let s3 = (storage == Storage::S3).then(S3Server::start);
        let builder = Postgres::builder(major)
            .own_system_identifier()
            .data_checksums(true)
            .setting("track_commit_timestamp", "on")
            .setting("wal_level", "replica")
            .archive_command(&archive_command(&configuration, &state));
        let server = settings(builder).start().await;
        let scene = Self {
            server,
            s3,
            repository,
            configuration,
            state,
            sandbox,
        };
        scene.write_configuration(encrypted);
        scene.run(&["repo", "init"]).await;
        scene.archive_all().await;
        scene
    }

    fn write_configuration(&self, encrypted: bool) {
        let mut text = format!(
            "stanza: main\npostgresql:\n  data_dir: {}\n  bin_dir: {}\nrepository:\n  - name: main\n",
            self.server.data_dir().display(),
            self.server.bin_dir().display()
        );
        if let Some(s3) = &self.s3 {
            write!(
                text,
                "    type: s3\n    bucket: {}\n    prefix: pg\n    endpoint: {}\n    region: {}\n    path_style: true\n    \
                 access_key: file:{}\n    secret_key: file:{}\n",
                s3.bucket(),
                s3.endpoint(),
                s3.region(),
                self.file("access_key", s3.access_key()).display(),
                self.file("secret_key", s3.secret_key()).display(),
            )
            .expect("writing to a String");
        } else {
            writeln!(text, "    type: local\n    path: {}", self.repository.display())
                .expect("writing to a String");
        }
        text.push_str("    compression: { codec: zstd, level: 1 }\n    retention: { keep_last: 2 }\n");
        if encrypted {
            let key = self.file("key", "5f".repeat(32));
            writeln!(text, "    encryption: {{ key_file: {} }}", key.display()).expect("writing to a String");
        }
        self.file("pgmahout.yml", text);
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        self.sandbox.file(name, content)
    }

    /// An archive_command into the repository for another host: it remembers in a place of its own.
    pub(crate) fn archive_command_elsewhere(&self, host: &str) -> String {
        archive_command(&self.configuration, &self.sandbox.directory(host))
    }

    /// The configuration file, to be changed.
    pub(crate) fn configuration(&self) -> &Path {
        &self.configuration
    }

    /// Another, empty directory for the server's account: what a host remembers, or a disk.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        self.sandbox.directory(name)
    }

    /// The state directory of all commands.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// The program at this server and its repository.
    pub(crate) fn pgmahout(&self, arguments: &[&str]) -> Pgmahout {
        self.pgmahout_at(&self.server, arguments)
    }

    /// The program at another server of the same cluster.
    pub(crate) fn pgmahout_at(&self, server: &Postgres, arguments: &[&str]) -> Pgmahout {
        self.pgmahout_as_tests(server, arguments).as_server_account()
    }

    /// The program under the tests' own account, which may be root.
    pub(crate) fn pgmahout_as_tests(&self, server: &Postgres, arguments: &[&str]) -> Pgmahout {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .args(arguments)
            .env("PGHOST", server.socket_dir())
            .env("PGPORT", server.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .env("PGMAHOUT_CONFIG", &self.configuration)
            .env("PGMAHOUT_STATE_DIR", &self.state)
            .timeout(PATIENCE)
    }

    /// Runs it and gives its output; panics where it fails.
    pub(crate) async fn run(&self, arguments: &[&str]) -> String {
        self.pgmahout(arguments).run().await.expect_status(0).stdout
    }

    /// Ends the current segment and waits until all WAL up to now is archived.
    pub(crate) async fn archive_all(&self) {
        archive_all(&self.server).await;
    }

    /// The command that restores into a directory.
    pub(crate) fn restore(&self, data_dir: &Path, arguments: &[&str]) -> Pgmahout {
        self.pgmahout(&["restore", "--yes", "--data-dir"])
            .arg(data_dir)
            .args(arguments)
    }

    /// Restores into a new server, starts it and waits for the end of recovery.
    pub(crate) async fn restored(&self, arguments: &[&str]) -> Postgres {
        let copy = Postgres::vacant(self.server.major());
        self.restore(copy.data_dir(), arguments)
            .run()
            .await
            .expect_status(0);
        recovered(&copy).await;
        copy
    }
}

/// Starts a restored server and waits for the end of recovery.
pub(crate) async fn recovered(copy: &Postgres) {
    copy.settle(&[]);
    copy.start_again().await;
    poll::until(PATIENCE, "the end of recovery", async || {
        copy.query_text("postgres", "SELECT pg_is_in_recovery()").await == "f"
    })
    .await;
}

fn archive_command(configuration: &Path, state: &Path) -> String {
    format!(
        "PGMAHOUT_CONFIG={} PGMAHOUT_STATE_DIR={} {} wal push %p",
        configuration.display(),
        state.display(),
        proc::reachable(env!("CARGO_BIN_EXE_pgmahout")).display()
    )
}

/// Ends a server's current segment and waits until all its WAL up to now is archived.
pub(crate) async fn archive_all(server: &Postgres) {
    // A segment in which nothing stands yet would not be switched.
    server
        .sql(
            "postgres",
            "SELECT pg_logical_emit_message(false, 'test', 'something')",
        )
        .await;
    let segment = server
        .query_text("postgres", "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        .await;
    server.sql("postgres", "SELECT pg_switch_wal()").await;
    poll::until(PATIENCE, "the segment's arrival in the archive", async || {
        server
            .query_text(
                "postgres",
                &format!("SELECT coalesce(last_archived_wal >= '{segment}', false) FROM pg_stat_archiver"),
            )
            .await
            == "t"
    })
    .await;
}
