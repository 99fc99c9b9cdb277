//! Physical backups from the command line, the WAL archived by the program itself.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use pgmahout_testkit::proc::{Finished, Pgmahout, reachable};
use rstest::rstest;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_mins(1);

/// A server that archives with `pgmahout wal push` into two repositories, one of them encrypted.
struct Scene {
    server: Postgres,
    config: PathBuf,
    state: PathBuf,
}

impl Scene {
    async fn new(major: Major) -> Self {
        let server = Postgres::builder(major)
            .data_checksums(true)
            .setting("archive_mode", "on")
            .setting("archive_command", "")
            .start()
            .await;
        let first = server.new_directory("first");
        let second = server.new_directory("second");
        let state = server.new_directory("state");
        let config = server.root_dir().join("pgmahout.yml");
        let passphrase = server.root_dir().join("passphrase");
        std::fs::write(&passphrase, "correct horse battery staple\n").expect("ours");
        std::fs::set_permissions(&passphrase, PermissionsExt::from_mode(0o600)).expect("ours");
        std::fs::write(
            &config,
            format!(
                "stanza: shop\n\
                 repository:\n\
                 \x20 - {{name: local, type: local, path: {first}}}\n\
                 \x20 - name: offsite\n\
                 \x20   type: local\n\
                 \x20   path: {second}\n\
                 \x20   encryption: {{passphrase: \"file:{passphrase}\"}}\n\
                 backup: {{jobs: 2, archive_timeout: 1min}}\n",
                first = first.display(),
                second = second.display(),
                passphrase = passphrase.display(),
            ),
        )
        .expect("ours");
        for file in [&config, &passphrase] {
            server.account().own(file);
        }
        let scene = Self {
            server,
            config,
            state,
        };
        scene.run(&["repo", "init"]).await.expect_status(0);
        let command = format!(
            "PGMAHOUT_STATE_DIR={} {} --config {} wal push %p",
            scene.state.display(),
            reachable(env!("CARGO_BIN_EXE_pgmahout")).display(),
            scene.config.display()
        );
        scene
            .server
            .append_conf(&format!("archive_command = '{command}'"));
        scene.server.sql("postgres", "SELECT pg_reload_conf()").await;
        poll::until(PATIENCE, "the new archive_command", async || {
            let shown = scene.server.query_text("postgres", "SHOW archive_command").await;
            shown.contains("wal push")
        })
        .await;
        scene
    }

    fn pgmahout(&self, arguments: &[&str]) -> Pgmahout {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .as_server_account()
            .arg("--config")
            .arg(&self.config)
            .args(arguments)
            .env("PGMAHOUT_STATE_DIR", &self.state)
            .env("PGHOST", self.server.host())
            .env("PGPORT", self.server.port().to_string())
            .env("PGUSER", "postgres")
    }

    async fn run(&self, arguments: &[&str]) -> Finished {
        self.pgmahout(arguments).run().await
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let finished = self
            .pgmahout(arguments)
            .arg("--json")
            .run()
            .await
            .expect_status(0);
        serde_json::from_str(&finished.stdout).expect("one JSON object")
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_into_every_repository_and_is_listed_shown_and_annotated(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let scene = Scene::new(major).await;
    let empty = scene.run(&["backup", "list"]).await.expect_status(0);
    assert!(
        empty.stderr.contains("no backups of stanza shop"),
        "{}",
        empty.stderr
    );

    let created = scene
        .run(&["backup", "create", "--annotate", "reason=before the migration"])
        .await
        .expect_status(0);
    let labels: Vec<&str> = created.stdout.lines().collect();
    assert_eq!(labels.len(), 2, "{}", created.stdout);
    assert!(
        created.stderr.contains("the first one, compared with nothing"),
        "{}",
        created.stderr
    );
    assert!(created.stderr.contains("restorable to"), "{}", created.stderr);

    let listed = scene.json(&["backup", "list"]).await;
    assert_eq!(listed["schema_version"], 1);
    for (index, label) in labels.iter().enumerate() {
        let backup = &listed["repositories"][index]["backups"][0];
        assert_eq!(backup["label"], *label);
        assert_eq!(backup["annotations"]["reason"], "before the migration");
    }
    let text = scene.run(&["backup", "list"]).await.expect_status(0).stdout;
    assert!(text.contains("reason=before the migration"), "{text}");

    let second = scene.json(&["backup", "create", "--repo", "offsite"]).await;
    assert_eq!(second["failed"], Value::Array(Vec::new()));
    let second = &second["backups"][0];
    assert_eq!(second["parent"], labels[1]);
    assert_eq!(second["method"], "local");
    assert_eq!(second["damaged_pages"], 0);
    let label = second["label"].as_str().expect("a label");

    let shown = scene
        .run(&["backup", "show", "--repo", "offsite"])
        .await
        .expect_status(0)
        .stdout;
    assert!(shown.contains(label), "{shown}");
    assert!(shown.contains("all pages were right"), "{shown}");
    let shown = scene
        .json(&["backup", "show", label, "--files", "--repo", "offsite"])
        .await;
    let files = shown["files"].as_array().expect("files");
    assert!(files.iter().any(|file| file["path"] == "global/pg_control"));
    assert_eq!(shown["manifest"]["parent"], labels[1]);

    let noted = scene
        .run(&[
            "backup",
            "annotate",
            label,
            "checked=yes",
            "--pin",
            "--repo",
            "offsite",
        ])
        .await
        .expect_status(0);
    assert!(noted.stdout.contains("checked=yes, pinned"), "{}", noted.stdout);
    let listed = scene.json(&["backup", "list", "--repo", "offsite"]).await;
    let backup = &listed["repositories"][0]["backups"][1];
    assert_eq!(backup["pinned"], true);
    assert_eq!(backup["annotations"]["checked"], "yes");
    let unknown = scene
        .run(&["backup", "annotate", "20200101T000000Z-0000", "a=b"])
        .await
        .expect_status(2);
    assert!(
        unknown
            .stderr
            .contains("hint: list what is there: pgmahout backup list")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_pages_are_status_1_unless_they_are_allowed() {
    let scene = Scene::new(Major::V15).await;
    let server = &scene.server;
    server
        .sql(
            "postgres",
            "CREATE TABLE t AS SELECT * FROM generate_series(1, 5000) AS n",
        )
        .await;
    let path = server
        .query_text("postgres", "SELECT pg_relation_filepath('t')")
        .await;
    server.stop(StopMode::Fast).await;
    std::fs::File::options()
        .write(true)
        .open(server.data_dir().join(&path))
        .and_then(|file| file.write_all_at(b"damage", 8192 + 4000))
        .expect("ours");
    server.start_again().await;
    let finished = scene
        .run(&["backup", "create", "--repo", "local"])
        .await
        .expect_status(1);
    let expected = format!("warning: 1 damaged page: {path} page 1");
    assert!(finished.stderr.contains(&expected), "{}", finished.stderr);
    // It is kept.
    let shown = scene
        .run(&["backup", "show", "--repo", "local"])
        .await
        .expect_status(0);
    assert!(
        shown.stdout.contains(&format!("{path} page 1")),
        "{}",
        shown.stdout
    );
    scene
        .run(&["backup", "create", "--repo", "local", "--allow-checksum-failures"])
        .await
        .expect_status(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_c_ends_a_backup_with_status_130_and_backup_mode() {
    let scene = Scene::new(Major::V18).await;
    let running = scene
        .pgmahout(&["backup", "create", "--repo", "local", "--rate-limit", "1MB"])
        .spawn();
    let started = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgmahout backup'";
    let packs = scene.server.root_dir().join("first/stanza/shop/lease");
    poll::until(PATIENCE, "the backup runs", async || {
        scene.server.query_text("postgres", started).await == "1"
            && std::fs::read_dir(&packs).is_ok_and(|mut entries| entries.next().is_some())
    })
    .await;
    running.interrupt();
    let finished = running.wait().await.expect_status(130);
    assert!(
        finished.stderr.contains("error: the backup was interrupted"),
        "{}",
        finished.stderr
    );
    assert!(finished.stderr.contains("hint: run the command again"));
    assert_eq!(finished.stdout, "");
    poll::until(PATIENCE, "the session is gone", async || {
        scene.server.query_text("postgres", started).await == "0"
    })
    .await;
    let listed = scene.json(&["backup", "list", "--repo", "local"]).await;
    assert_eq!(listed["repositories"][0]["backups"], Value::Array(Vec::new()));
}

/// A killed program's session ends with it, and the next backup does not wait for anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backup_blocks_nothing() {
    let scene = Scene::new(Major::V15).await;
    let running = scene
        .pgmahout(&["backup", "create", "--repo", "local", "--rate-limit", "4MB"])
        .spawn();
    let started = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgmahout backup'";
    poll::until(PATIENCE, "the backup runs", async || {
        scene.server.query_text("postgres", started).await == "1"
    })
    .await;
    let killed = running.kill_after(Duration::from_secs(2)).await;
    assert_eq!(killed.signal, Some(9));
    poll::until(PATIENCE, "the session is gone", async || {
        scene.server.query_text("postgres", started).await == "0"
    })
    .await;
    // Its lease says where it ran, and nobody runs there any more.
    scene
        .run(&["backup", "create", "--repo", "local"])
        .await
        .expect_status(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_fails_does_not_keep_the_other_from_its_backup() {
    let scene = Scene::new(Major::V18).await;
    // The archiver goes on with the repository that is left.
    let settings = std::fs::read_to_string(&scene.config).expect("ours");
    std::fs::write(&scene.config, settings + "wal: {min_repositories: 1}\n").expect("ours");
    let descriptor = scene.server.root_dir().join("second/repository");
    std::fs::remove_file(descriptor).expect("ours");
    let finished = scene.run(&["backup", "create"]).await;
    assert_ne!(finished.status, Some(0));
    assert_eq!(finished.stdout.lines().count(), 1, "{}", finished.stdout);
    assert!(
        finished
            .stderr
            .contains("error: the backup failed in 1 of 2 repositories"),
        "{}",
        finished.stderr
    );
    assert!(finished.stderr.contains("offsite"), "{}", finished.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_archiving_no_backup_is_taken() {
    let server = Postgres::start(Major::V18).await;
    let repository = server.new_directory("repository");
    let command = |arguments: &[&str]| {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .args(arguments)
            .arg("--repo")
            .arg(&repository)
            .env("PGHOST", server.host())
            .env("PGPORT", server.port().to_string())
            .env("PGUSER", "postgres")
    };
    command(&["repo", "init"]).run().await.expect_status(0);
    let finished = command(&["backup", "create"]).run().await.expect_status(3);
    assert!(
        finished.stderr.contains("archive_mode is off"),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("hint: pgmahout wal enable"),
        "{}",
        finished.stderr
    );
    let usage = command(&["backup", "create", "--annotate", "nothing"])
        .run()
        .await
        .expect_status(2);
    assert!(usage.stderr.contains("is not KEY=VALUE"), "{}", usage.stderr);
    let usage = command(&["backup", "create", "--compress", "gzip"])
        .run()
        .await
        .expect_status(2);
    assert!(
        usage.stderr.contains("not compressed by gzip"),
        "{}",
        usage.stderr
    );
}
