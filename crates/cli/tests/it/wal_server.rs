//! The WAL archive between real servers.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use pgmahout_testkit::proc::{Finished, Pgmahout, reachable};
use rstest::rstest;

use crate::archived::{Archived, Storage};

const PATIENCE: Duration = Duration::from_secs(90);

/// A server that archives with `pgmahout wal push`.
struct Scene {
    server: Postgres,
    config: PathBuf,
    repository: PathBuf,
    state: PathBuf,
}

impl Scene {
    async fn new(major: Major, mebibytes: u32) -> Self {
        let server = Postgres::builder(major)
            .own_system_identifier()
            .initdb_arg(&format!("--wal-segsize={mebibytes}"))
            .archive_command("false")
            .setting("archive_timeout", "0")
            .start()
            .await;
        let root = server.new_directory("pgmahout");
        let scene = Self {
            config: root.join("pgmahout.yml"),
            repository: root.join("repository"),
            state: root.join("state"),
            server,
        };
        scene.write_config(&scene.config, "main");
        scene
            .pgmahout(&["repo", "init", "--data-dir"])
            .arg(scene.server.data_dir())
            .run()
            .await
            .expect_status(0);
        scene.archive(&scene.server, &scene.config).await;
        scene
    }

    fn write_config(&self, path: &std::path::Path, stanza: &str) {
        let text = format!(
            "stanza: {stanza}\nrepository:\n  - {{name: local, type: local, path: {}}}\n",
            self.repository.display()
        );
        fs::write(path, text).expect("written");
        self.server.account().own(path);
    }

    fn pgmahout(&self, arguments: &[&str]) -> Pgmahout {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .as_server_account()
            .env("PGMAHOUT_STATE_DIR", &self.state)
            .arg("--config")
            .arg(&self.config)
            .args(arguments)
    }

    async fn run(&self, arguments: &[&str]) -> Finished {
        self.pgmahout(arguments).run().await
    }

    /// The beginning of a command line as a server runs it.
    fn line(&self, config: &std::path::Path) -> String {
        format!(
            "PGMAHOUT_STATE_DIR={} {} --config {} wal",
            self.state.display(),
            reachable(env!("CARGO_BIN_EXE_pgmahout")).display(),
            config.display()
        )
    }

    /// Makes a server archive.
    async fn archive(&self, server: &Postgres, config: &std::path::Path) {
        server
            .sql(
                "postgres",
                &format!(
                    "ALTER SYSTEM SET archive_command = '{} push %p'",
                    self.line(config)
                ),
            )
            .await;
        server.reload().await;
    }

    /// Waits until everything that was written is archived.
    async fn archived(&self, server: &Postgres) -> String {
        let segment = server
            .query_text(
                "postgres",
                // The last byte's: 15 and 16 name different segments for a position on a border.
                "SELECT pg_walfile_name(pg_logical_emit_message(false, 'test', 'last') - 1::numeric)",
            )
            .await;
        server.sql("postgres", "SELECT pg_switch_wal()").await;
        let object = self.repository.join("stanza/main/wal").join(&segment[..8]);
        let object = object.join(&segment[8..16]).join(&segment);
        poll::until(
            PATIENCE,
            &format!("{segment} to be archived: {}", server.log()),
            async || object.exists(),
        )
        .await;
        segment
    }

    /// A copy of the server without WAL, that will fetch what it needs.
    fn copy(&self, signal: &str, settings: &[(&str, &str)]) -> Postgres {
        let copy = Postgres::vacant(self.server.major());
        let output = self
            .server
            .server_command("pg_basebackup")
            .args([
                "--no-password",
                "-U",
                "postgres",
                "-X",
                "none",
                "--no-sync",
                "-c",
                "fast",
            ])
            .args([
                "-h",
                self.server.host(),
                "-p",
                &self.server.port().to_string(),
                "-D",
            ])
            .arg(copy.data_dir())
            .output()
            .expect("it runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        // What was set with ALTER SYSTEM is the original's.
        fs::write(copy.data_dir().join("postgresql.auto.conf"), "").expect("written");
        let fetch = format!("{} fetch %f \"%p\"", self.line(&self.config));
        let push = format!("{} push %p", self.line(&self.config));
        let mut all = vec![
            ("restore_command", fetch.as_str()),
            ("archive_command", push.as_str()),
        ];
        all.extend_from_slice(settings);
        copy.settle(&all);
        fs::write(copy.data_dir().join(signal), "").expect("written");
        copy.account().own(copy.data_dir());
        copy.account().own(&copy.data_dir().join(signal));
        copy
    }
}

#[rstest]
#[case::pg15(Major::V15, 1)]
#[case::pg18(Major::V18, 1)]
#[case::pg18_usual_segments(Major::V18, 16)]
#[tokio::test]
async fn archived_wal_brings_a_recovery_to_the_last_row(#[case] major: Major, #[case] mebibytes: u32) {
    let scene = Scene::new(major, mebibytes).await;
    scene.server.sql("postgres", "CREATE TABLE orders (id int)").await;
    let copy = scene.copy("recovery.signal", &[("archive_mode", "on")]);
    for round in 0..8 {
        scene
            .server
            .sql(
                "postgres",
                &format!(
                    "INSERT INTO orders SELECT {round}; SELECT pg_logical_emit_message(false, 'x', repeat('y', 300000)); \
                     SELECT pg_switch_wal()"
                ),
            )
            .await;
    }
    scene
        .server
        .sql("postgres", "INSERT INTO orders VALUES (99)")
        .await;
    scene.archived(&scene.server).await;
    scene.server.stop(StopMode::Fast).await;

    copy.start_again().await;
    poll::until(PATIENCE, "the end of recovery", async || {
        copy.query_text("postgres", "SELECT pg_is_in_recovery()").await == "f"
    })
    .await;
    let rows = copy
        .query_text("postgres", "SELECT count(*), max(id) FROM orders")
        .await;
    assert_eq!(rows, "9|99");

    // The promotion's history goes into the archive, and the new timeline is part of the tree.
    copy.sql("postgres", "INSERT INTO orders VALUES (100)").await;
    let segment = scene.archived(&copy).await;
    assert!(segment.starts_with("00000002"), "{segment}");
    let listed = scene.run(&["--json", "wal", "list"]).await.expect_status(0);
    let list: serde_json::Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let timelines = &list["repositories"][0]["timelines"];
    assert_eq!(timelines[1]["timeline"], 2);
    assert_eq!(timelines[1]["parent"]["timeline"], 1);
    scene.run(&["wal", "verify"]).await.expect_status(0);
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn a_recovery_stops_where_the_archive_cannot_be_read(#[case] major: Major) {
    let scene = Scene::new(major, 1).await;
    scene.server.sql("postgres", "CREATE TABLE orders (id int)").await;
    let copy = scene.copy("recovery.signal", &[("archive_mode", "off")]);
    scene
        .server
        .sql("postgres", "INSERT INTO orders VALUES (1)")
        .await;
    scene.archived(&scene.server).await;
    let away = scene.repository.with_extension("away");
    fs::rename(&scene.repository, &away).expect("renamed");
    copy.try_start_again().await.expect_err("it must not be promoted");
    assert!(
        copy.data_dir().join("recovery.signal").exists(),
        "the recovery is not over: {}",
        copy.log()
    );
    fs::rename(&away, &scene.repository).expect("renamed");
    copy.start_again().await;
    poll::until(PATIENCE, "the end of recovery", async || {
        copy.query_text("postgres", "SELECT count(*) FROM orders").await == "1"
    })
    .await;
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn a_hot_standby_outlives_an_outage_of_the_archive(#[case] major: Major) {
    let scene = Scene::new(major, 1).await;
    scene.server.sql("postgres", "CREATE TABLE orders (id int)").await;
    let standby = scene.copy(
        "standby.signal",
        &[("hot_standby", "on"), ("wal_retrieve_retry_interval", "200ms")],
    );
    scene.archived(&scene.server).await;
    standby.start_again().await;
    let away = scene.repository.with_extension("away");
    fs::rename(&scene.repository, &away).expect("renamed");
    scene
        .server
        .sql("postgres", "INSERT INTO orders VALUES (1)")
        .await;
    scene.server.sql("postgres", "SELECT pg_switch_wal()").await;
    poll::until(PATIENCE, "the standby to ask in vain", async || {
        standby.log().contains("cannot be used")
            || standby.log().contains("not set up")
            || standby.log().contains("does not exist")
            || standby.log().contains("error:")
    })
    .await;
    assert_eq!(
        standby
            .query_text("postgres", "SELECT count(*) FROM orders")
            .await,
        "0"
    );
    fs::rename(&away, &scene.repository).expect("renamed");
    poll::until(PATIENCE, "the standby to follow again", async || {
        standby
            .query_text("postgres", "SELECT count(*) FROM orders")
            .await
            == "1"
    })
    .await;
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn two_clusters_cannot_archive_into_one_stanza(#[case] major: Major) {
    let scene = Scene::new(major, 1).await;
    scene.archived(&scene.server).await;
    let other = Postgres::builder(major)
        .own_system_identifier()
        .initdb_arg("--wal-segsize=1")
        .archive_command("false")
        .start()
        .await;
    scene.archive(&other, &scene.config).await;
    other.sql("postgres", "SELECT pg_switch_wal()").await;
    poll::until(PATIENCE, "the other server to be refused", async || {
        other.log().contains("belongs to cluster")
    })
    .await;
    // The message is in the log before the server has counted the failure.
    poll::until(PATIENCE, "the other server to count that", async || {
        other
            .query_text("postgres", "SELECT failed_count > 0 FROM pg_stat_archiver")
            .await
            == "t"
    })
    .await;
    let archived = other
        .query_text("postgres", "SELECT archived_count FROM pg_stat_archiver")
        .await;
    assert_eq!(archived, "0");
    scene.run(&["wal", "verify"]).await.expect_status(0);
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn enabling_ends_with_a_segment_that_was_read_back_and_disabling_undoes_it(#[case] major: Major) {
    let server = Postgres::builder(major)
        .own_system_identifier()
        .initdb_arg("--wal-segsize=1")
        .setting("archive_mode", "on")
        .start()
        .await;
    let root = server.new_directory("a place with blanks");
    let scene = Scene {
        config: root.join("pgmahout.yml"),
        repository: root.join("repository"),
        state: root.join("state"),
        server,
    };
    scene.write_config(&scene.config, "main");
    let dsn = scene.server.dsn("postgres");
    let enable = ["wal", "enable", "--dsn", &dsn];
    let refused = scene.run(&[&enable[..], &["--yes"]].concat()).await;
    assert_ne!(refused.status, Some(0), "there is no repository yet");
    scene
        .pgmahout(&["repo", "init", "--data-dir"])
        .arg(scene.server.data_dir())
        .run()
        .await
        .expect_status(0);
    let planned = scene
        .run(&[&enable[..], &["--dry-run"]].concat())
        .await
        .expect_status(0);
    assert!(planned.stdout.contains("archive_command"), "{}", planned.stdout);
    scene.run(&enable).await.expect_status(3);
    let shown = scene.server.query_text("postgres", "SHOW archive_command").await;
    assert_eq!(shown, "", "nothing was changed");

    let enabled = scene
        .run(&[&enable[..], &["--yes"]].concat())
        .await
        .expect_status(0);
    assert!(enabled.stdout.contains("read back"), "{}", enabled.stdout);
    let shown = scene.server.query_text("postgres", "SHOW archive_command").await;
    assert!(shown.ends_with("wal push %p") && shown.contains('\''), "{shown}");
    scene.run(&["wal", "verify"]).await.expect_status(0);
    // Again changes nothing.
    scene
        .run(&[&enable[..], &["--yes"]].concat())
        .await
        .expect_status(0);

    let disable = ["wal", "disable", "--dsn", &dsn];
    let planned = scene
        .run(
            &[
                &disable[..],
                &["--dry-run", "--data-dir", "/nowhere", "--bin-dir", "/nowhere"],
            ]
            .concat(),
        )
        .await
        .expect_status(0);
    assert!(planned.stdout.contains("will be lost"), "{}", planned.stdout);
    scene
        .run(&[&disable[..], &["--yes"]].concat())
        .await
        .expect_status(3);
}

/// A copy that recovers for longer than its WAL is kept must not be promoted where the archive now begins.
#[tokio::test]
async fn wal_that_retention_removed_is_not_called_absent_in_a_recovery() {
    let scene = Archived::new(Major::V15, Storage::Directory, false).await;
    let segment = "SELECT pg_walfile_name(pg_current_wal_lsn())";
    let first = scene.server.query_text("postgres", segment).await;
    for _ in 0..4 {
        scene
            .server
            .sql("postgres", "CREATE TABLE t (); DROP TABLE t")
            .await;
        scene.archive_all().await;
        scene.run(&["backup", "create"]).await;
    }
    scene.run(&["backup", "expire", "--yes", "--grace", "0s"]).await;
    let copy = scene.directory("copy");
    let copy = {
        let pg_wal = copy.join("pg_wal");
        std::fs::create_dir(&pg_wal).expect("ours");
        scene.server.account().own(&pg_wal);
        pg_wal
    };
    let target = copy.join("RECOVERYXLOG");
    let target = target.to_str().expect("plain");
    for (signal, status) in [("recovery.signal", 126), ("standby.signal", 1)] {
        std::fs::write(copy.with_file_name(signal), "").expect("ours");
        let fetched = scene
            .pgmahout(&["wal", "fetch", &first, target])
            .run()
            .await
            .expect_status(status);
        if status == 126 {
            assert!(
                fetched.stderr.contains("has been removed by retention"),
                "{}",
                fetched.stderr
            );
        }
    }
    let never = "0000000100000000000000F0";
    std::fs::remove_file(copy.with_file_name("standby.signal")).expect("ours");
    scene
        .pgmahout(&["wal", "fetch", never, target])
        .run()
        .await
        .expect_status(1);
}
