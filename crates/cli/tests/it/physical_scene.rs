//! A server that archives with the program itself into a repository of its own, for the tests of physical
//! backups.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::{Finished, Pgmahout, reachable};
use serde_json::Value;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// The server, its configuration file and its repository.
pub(crate) struct Scene {
    pub(crate) server: Postgres,
    pub(crate) config: PathBuf,
    pub(crate) repository: PathBuf,
}

impl Scene {
    /// A server with a repository that is set up, encrypted by a key file where that is wanted.
    pub(crate) async fn new(major: Major, encrypted: bool) -> Self {
        let scene = Self::without_repository(major, encrypted).await;
        scene.run(&["repo", "init"]).await.expect_status(0);
        scene.archive().await;
        scene
    }

    /// The same before `repo init`; nothing is archived yet.
    pub(crate) async fn without_repository(major: Major, encrypted: bool) -> Self {
        let server = Postgres::builder(major)
            .own_system_identifier()
            .data_checksums(true)
            .archive_command("")
            .setting("wal_keep_size", "0")
            .setting("max_wal_size", "256MB")
            .start()
            .await;
        let directory = server.new_directory("pgmahout");
        let repository = directory.join("repository");
        let encryption = if encrypted {
            let key = directory.join("key");
            fs::write(&key, "ab".repeat(32)).expect("written");
            private(&key);
            server.account().own(&key);
            format!("\n    encryption: {{key_file: {}}}", key.display())
        } else {
            String::new()
        };
        let config = directory.join("pgmahout.yml");
        let text = format!(
            "stanza: main\npostgresql:\n  data_dir: {}\n  bin_dir: {}\nrepository:\n  - name: local\n    type: local\n    path: {}{encryption}\n",
            server.data_dir().display(),
            server.bin_dir().display(),
            repository.display(),
        );
        fs::write(&config, text).expect("written");
        server.account().own(&config);
        Self {
            server,
            config,
            repository,
        }
    }

    /// Lets the server archive into the repository.
    pub(crate) async fn archive(&self) {
        let command = format!(
            "PGMAHOUT_STATE_DIR={} {} --config {} wal push %p",
            self.state().display(),
            reachable(env!("CARGO_BIN_EXE_pgmahout")).display(),
            self.config.display()
        );
        let statement = format!("ALTER SYSTEM SET archive_command = '{command}'");
        self.server.sql("postgres", &statement).await;
        self.server.reload().await;
    }

    /// The state directory of all commands.
    pub(crate) fn state(&self) -> PathBuf {
        self.config.with_file_name("state")
    }

    /// The program, as the server's user, with this configuration and server.
    pub(crate) fn pgmahout(&self, arguments: &[&str]) -> Pgmahout {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .as_server_account()
            .arg("--config")
            .arg(&self.config)
            .args(arguments)
            .env("PGMAHOUT_STATE_DIR", self.state())
            .env("PGHOST", self.server.host())
            .env("PGPORT", self.server.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .timeout(Duration::from_mins(3))
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Finished {
        self.pgmahout(arguments).run().await
    }

    /// The JSON that a command prints that must end with this status.
    pub(crate) async fn json(&self, arguments: &[&str], status: i32) -> Value {
        let finished = self
            .pgmahout(arguments)
            .arg("--json")
            .run()
            .await
            .expect_status(status);
        serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|error| panic!("{error}: {} {}", finished.stdout, finished.stderr))
    }

    /// Takes a backup; its label.
    pub(crate) async fn backup(&self) -> String {
        self.run(&["backup", "create"]).await.expect_status(0);
        let listed = self.json(&["backup", "list"], 0).await;
        let backups = listed["repositories"][0]["backups"]
            .as_array()
            .expect("a list")
            .clone();
        let newest = backups
            .iter()
            .filter_map(|backup| backup["label"].as_str())
            .max()
            .expect("a backup");
        newest.to_owned()
    }

    /// Ends the current segment and waits until it is in the repository.
    pub(crate) async fn archive_all(&self) {
        let segment = self
            .server
            .query_text(
                "postgres",
                "SELECT pg_walfile_name(pg_logical_emit_message(false, 'test', 'something'))",
            )
            .await;
        self.server.sql("postgres", "SELECT pg_switch_wal()").await;
        let name = segment.trim().to_owned();
        let object = self
            .repository
            .join("stanza/main/wal")
            .join(&name[..8])
            .join(&name[8..16])
            .join(&name);
        poll::until(PATIENCE, "the segment is in the repository", async || {
            object.exists()
        })
        .await;
    }

    /// A table that fills some megabytes of pages that differ.
    pub(crate) async fn fill(&self, rows: u32) {
        self.server
            .sql(
                "postgres",
                &format!(
                    "CREATE TABLE IF NOT EXISTS filled (id int PRIMARY KEY, text text); \
                     INSERT INTO filled SELECT n, md5(n::text) || md5((n * 7)::text) FROM generate_series(1, {rows}) n \
                     ON CONFLICT (id) DO UPDATE SET text = reverse(filled.text); CHECKPOINT"
                ),
            )
            .await;
    }

    /// All objects of the repository but leases and checks, by name.
    pub(crate) fn objects(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut left = vec![self.repository.clone()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(&directory).expect("readable") {
                let path = entry.expect("readable").path();
                if path.is_dir() {
                    left.push(path);
                } else if !path.to_string_lossy().contains("/lease/") {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

fn private(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("ours");
}
