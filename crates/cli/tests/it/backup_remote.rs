//! Physical backups through the replication protocol, of servers whose disk is out of reach.

use std::path::PathBuf;

use pgmahout_testkit::contents;
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use pgmahout_testkit::proc::{Finished, Pgmahout};
use pgmahout_testkit::proxy::{Mode, Proxy};
use rstest::rstest;
use serde_json::Value;

use crate::archived::{Archived, PATIENCE, Storage, recovered};
use crate::backup_rounds::assert_pages_are_sound;

const ROWS: &str = "CREATE TABLE filled AS SELECT n AS id, md5(n::text) || md5((n * 7)::text) AS text \
                    FROM generate_series(1, 150000) n; \
                    CREATE INDEX ON filled (text); CREATE UNLOGGED TABLE fleeting AS SELECT 1 AS a";
/// More than this is new only where nothing was found in the older backup.
const LITTLE: u64 = 1 << 20;

fn remote(scene: &Archived, more: &[&str]) -> Pgmahout {
    scene
        .pgmahout(&["backup", "create", "--remote"])
        .args(more)
        .env("PGHOST", "127.0.0.1")
}

fn created(finished: &Finished) -> Value {
    let json: Value = serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", finished.stdout, finished.stderr));
    json["backups"][0].clone()
}

fn number(backup: &Value, key: &str) -> u64 {
    backup[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {backup}"))
}

async fn listed(scene: &Archived) -> usize {
    let list: Value =
        serde_json::from_str(&scene.run(&["backup", "list", "--json"]).await).expect("one JSON object");
    list["repositories"][0]["backups"]
        .as_array()
        .expect("a list")
        .len()
}

/// Waits until the server sends nothing to anybody, and so is out of backup mode.
async fn nobody_receives(server: &Postgres) {
    poll::until(PATIENCE, "the replication session's end", async || {
        server
            .query_text(
                "postgres",
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'",
            )
            .await
            == "0"
    })
    .await;
}

/// Remote and local backups are built on each other, whichever comes first, and restore the same.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_sends_is_a_backup_like_any_other(#[values(Major::V15, Major::V18)] major: Major) {
    let scene = Archived::with(major, Storage::Directory, true, |builder| {
        builder.setting("allow_in_place_tablespaces", "on")
    })
    .await;
    let server = &scene.server;
    let place = server.new_directory("place");
    server
        .sql("postgres", "CREATE ROLE carrier LOGIN REPLICATION")
        .await;
    server.sql("postgres", "CREATE TABLESPACE here LOCATION ''").await;
    let statement = format!("CREATE TABLESPACE elsewhere LOCATION '{}'", place.display());
    server.sql("postgres", &statement).await;
    server.sql("postgres", ROWS).await;
    server
        .sql(
            "postgres",
            "CREATE TABLE placed TABLESPACE elsewhere AS SELECT * FROM filled; \
             CREATE TABLE here TABLESPACE here AS SELECT * FROM filled WHERE id < 1000",
        )
        .await;
    // The first who looks at rows changes their pages.
    server.sql("postgres", "VACUUM (FREEZE)").await;
    server.sql("postgres", "CHECKPOINT").await;

    // A role that may replicate and nothing else is not even told where the data directory is.
    let full = remote(&scene, &["--json", "--data-dir", "/nowhere"])
        .env("PGUSER", "carrier")
        .run()
        .await;
    let full = created(&full.expect_status(0));
    assert_eq!(full["method"], "remote");
    assert_eq!(full["parent"], Value::Null);
    assert!(number(&full, "new") > 20 * LITTLE, "{full}");

    server
        .sql(
            "postgres",
            "UPDATE placed SET text = 'changed' WHERE id % 1000 = 0; CHECKPOINT",
        )
        .await;
    let mut last = full.clone();
    for kind in ["remote", "local", "remote"] {
        let backup = if kind == "remote" {
            created(&remote(&scene, &["--json"]).run().await.expect_status(0))
        } else {
            created(
                &scene
                    .pgmahout(&["backup", "create", "--json"])
                    .run()
                    .await
                    .expect_status(0),
            )
        };
        assert_eq!(backup["method"], kind);
        assert_eq!(backup["parent"], last["label"]);
        assert!(number(&backup, "new") < 3 * LITTLE, "{backup}");
        assert!(number(&backup, "stored") < LITTLE, "{backup}");
        // Nobody leaves out what the other takes.
        let difference = number(&backup, "files").abs_diff(number(&last, "files"));
        assert!(difference < 20, "{backup} after {last}");
        last = backup;
    }
    let shown = scene.run(&["backup", "show", "--json", "--files"]).await;
    let shown: Value = serde_json::from_str(&shown).expect("one JSON object");
    let paths: Vec<&str> = shown["files"]
        .as_array()
        .expect("files")
        .iter()
        .filter_map(|file| file["path"].as_str())
        .collect();
    assert!(paths.contains(&"global/pg_control"));
    for path in &paths {
        let name = path.rsplit('/').next().unwrap_or(path);
        assert!(
            !["backup_label", "tablespace_map", "postmaster.pid"].contains(&name),
            "{path}"
        );
    }

    scene.archive_all().await;
    let copy = Postgres::vacant(major);
    let target: PathBuf = copy.new_directory("moved");
    let mapped = format!("elsewhere={}", target.display());
    scene
        .restore(copy.data_dir(), &["--tablespace", &mapped])
        .run()
        .await
        .expect_status(0);
    recovered(&copy).await;
    assert_eq!(contents::digests(&copy, "postgres").await, {
        // Unlogged tables are empty after a recovery.
        server.sql("postgres", "TRUNCATE fleeting").await;
        contents::digests(server, "postgres").await
    });
    assert_pages_are_sound(copy, "restored from what the server sent").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_receive_the_files_is_told_what_is_missing() {
    let scene = Archived::with(Major::V18, Storage::Directory, false, |builder| {
        builder
            .setting("max_wal_senders", "1")
            .setting("max_replication_slots", "1")
    })
    .await;
    let server = &scene.server;
    server
        .sql(
            "postgres",
            "CREATE ROLE plain LOGIN; CREATE ROLE stranger LOGIN REPLICATION",
        )
        .await;
    let finished = remote(&scene, &[])
        .env("PGUSER", "plain")
        .run()
        .await
        .expect_status(1);
    assert!(
        finished.stderr.contains("the role plain may not replicate"),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("hint: ALTER ROLE \"plain\" REPLICATION"),
        "{}",
        finished.stderr
    );

    server.prepend_hba("host replication stranger 127.0.0.1/32 reject");
    server.reload().await;
    let finished = remote(&scene, &[])
        .env("PGUSER", "stranger")
        .run()
        .await
        .expect_status(1);
    assert!(finished.stderr.contains("pg_hba.conf"), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("a line for replication"),
        "{}",
        finished.stderr
    );

    let running = remote(&scene, &["--rate-limit", "1MB"]).spawn();
    poll::until(PATIENCE, "the only sender is in use", async || {
        server
            .query_text(
                "postgres",
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'",
            )
            .await
            == "1"
    })
    .await;
    let finished = remote(&scene, &[]).run().await.expect_status(1);
    assert!(
        finished.stderr.contains("all of max_wal_senders are in use"),
        "{}",
        finished.stderr
    );
    // And whoever interrupts the first sets the server free.
    running.interrupt();
    let finished = running.wait().await.expect_status(130);
    assert!(
        finished.stderr.contains("error: the backup was interrupted"),
        "{}",
        finished.stderr
    );
    nobody_receives(server).await;
    assert_eq!(listed(&scene).await, 0);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_leaves_no_backup_and_what_was_stored_is_used(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let scene = Archived::new(major, Storage::Directory, false).await;
    scene.server.sql("postgres", ROWS).await;
    scene.server.sql("postgres", "CHECKPOINT").await;
    let proxy = Proxy::start(&format!("127.0.0.1:{}", scene.server.port()));
    proxy.set(Mode::CutAfter(30 << 20));
    let port = proxy.port().to_string();
    let finished = remote(&scene, &[])
        .env("PGPORT", &port)
        .run()
        .await
        .expect_status(1);
    assert!(finished.stderr.contains("error: cannot"), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("what was stored is kept"),
        "{}",
        finished.stderr
    );
    assert_eq!(listed(&scene).await, 0);
    nobody_receives(&scene.server).await;
    proxy.set(Mode::Pass);
    let finished = remote(&scene, &["--json"])
        .env("PGPORT", &port)
        .run()
        .await
        .expect_status(0);
    let backup = created(&finished);
    assert!(number(&backup, "resumed") > LITTLE, "{backup}");
    assert_eq!(listed(&scene).await, 1);
    scene.run(&["backup", "verify", "--full"]).await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn damaged_pages_that_are_sent_are_status_1_and_in_the_backup(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    use std::os::unix::fs::FileExt as _;

    let scene = Archived::new(major, Storage::Directory, false).await;
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
    let finished = remote(&scene, &["--json"]).run().await.expect_status(1);
    let backup = created(&finished);
    assert_eq!(backup["damaged_pages"], 1, "{backup}");
    assert_eq!(backup["damaged"][0]["file"], path);
    assert_eq!(backup["damaged"][0]["block"], 1);
    assert_eq!(listed(&scene).await, 1);
    remote(&scene, &["--allow-checksum-failures"])
        .run()
        .await
        .expect_status(0);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_sends_its_files_as_well(#[values(Major::V15, Major::V18)] major: Major) {
    let scene = Archived::new(major, Storage::Directory, false).await;
    let standby = scene
        .server
        .standby("second")
        .setting("archive_mode", "off")
        .start()
        .await;
    scene.server.sql("postgres", ROWS).await;
    scene.server.wait_for_replay(&standby).await;
    let primary = scene.server.dsn("postgres");
    let finished = scene
        .pgmahout_at(
            &standby,
            &[
                "backup",
                "create",
                "--remote",
                "--from-standby",
                "--json",
                "--primary",
            ],
        )
        .arg(&primary)
        .run()
        .await
        .expect_status(0);
    let backup = created(&finished);
    assert_eq!(backup["method"], "remote");
    scene.archive_all().await;
    let copy = scene.restored(&[]).await;
    assert_eq!(
        contents::digests(&copy, "postgres").await.get("filled"),
        contents::digests(&scene.server, "postgres").await.get("filled")
    );
    assert_pages_are_sound(copy, "restored from what a standby sent").await;

    // A promotion makes it invalid, and it says so.
    let running = scene
        .pgmahout_at(&standby, &["backup", "create", "--remote", "--rate-limit", "2MB"])
        .spawn();
    poll::until(PATIENCE, "the standby sends", async || {
        standby
            .query_text(
                "postgres",
                "SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 1000000",
            )
            .await
            == "1"
    })
    .await;
    standby.promote().await;
    let finished = running.wait().await.expect_status(1);
    assert!(
        finished.stderr.contains("the server was promoted"),
        "{}",
        finished.stderr
    );
    assert_eq!(listed(&scene).await, 1);
}
