//! A failover, a promotion in the middle of a backup, and the return of the old primary.

use std::process::Command;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use rstest::rstest;

use super::{Point, asked_for, assert_has, labels, moment, point, point_of, prove, run, slow_backup, take};
use crate::archived::{Archived, PATIENCE, Storage};

async fn scene(major: Major) -> (Archived, Postgres) {
    let scene = Archived::with(major, Storage::Directory, true, |builder| {
        builder
            .setting("wal_keep_size", "1GB")
            .setting("autovacuum", "off")
    })
    .await;
    run(
        &scene.server,
        "postgres",
        &[
            "CREATE TABLE t (n int PRIMARY KEY, text text)",
            "INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 20000) n",
            "CREATE TABLE emptied AS SELECT n, md5(n::text) FROM generate_series(1, 5000) n",
        ],
    )
    .await;
    let command = scene.archive_command_elsewhere("second");
    let standby = scene
        .server
        .standby("second")
        .setting("archive_command", &command)
        .start()
        .await;
    (scene, standby)
}

/// Makes an old primary a standby of the new one.
async fn rewind(old: &Postgres, new: &Postgres) {
    old.stop(StopMode::Fast).await;
    // The new timeline is in pg_control of the source, and the old one's slot is the new one's too.
    run(
        new,
        "postgres",
        &[
            "CHECKPOINT",
            "SELECT pg_create_physical_replication_slot('second')",
        ],
    )
    .await;
    let mut command: Command = old.server_command("pg_rewind");
    command
        .arg("--target-pgdata")
        .arg(old.data_dir())
        .arg("--source-server")
        .arg(format!(
            "host={} port={} user=postgres dbname=postgres",
            new.socket_dir().display(),
            new.port()
        ))
        .arg("--write-recovery-conf");
    let output = command.output().expect("pg_rewind runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    old.settle(&[]);
    old.start_again().await;
    new.wait_for_replay(old).await;
    poll::until(PATIENCE, "streaming", async || {
        old.query_text("postgres", "SELECT status FROM pg_stat_wal_receiver")
            .await
            == "streaming"
    })
    .await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_and_a_rewound_primary_are_only_further_increments(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let (scene, standby) = scene(major).await;
    let old = &scene.server;
    let first = point(&scene, old, "first").await;
    run(
        old,
        "postgres",
        &["UPDATE t SET text = reverse(text) WHERE n % 7 = 0"],
    )
    .await;
    let before = moment(old, "before").await;
    old.wait_for_replay(&standby).await;

    // The old primary lives on for a while, and archives rows that the new one does not know.
    standby.promote().await;
    run(
        old,
        "postgres",
        &[
            "INSERT INTO t SELECT n, 'lost' FROM generate_series(30001, 32000) n",
            "VACUUM FULL emptied",
        ],
    )
    .await;
    let lost = moment(old, "lost").await;
    let new = &standby;
    run(
        new,
        "postgres",
        &[
            "INSERT INTO t SELECT n, 'new' FROM generate_series(30001, 31000) n",
            "TRUNCATE emptied",
            "CREATE DATABASE later STRATEGY wal_log",
        ],
    )
    .await;
    let second = point(&scene, new, "second").await;
    assert_eq!(second.parent(), first.label);
    assert_eq!(second.json["timeline"], 2, "{}", second.json);
    assert!(
        second.number("new") < first.number("new") / 2,
        "{} after {}",
        second.json,
        first.json
    );

    rewind(old, new).await;
    run(
        new,
        "postgres",
        &[
            "DELETE FROM t WHERE n % 5 = 0",
            "INSERT INTO emptied VALUES (1, 'one')",
        ],
    )
    .await;
    new.wait_for_replay(old).await;
    let primary = new.dsn("postgres");
    let json = take(&scene, old, &["--from-standby", "--primary", &primary]).await;
    let third = point_of(json, new, "third").await;
    assert_eq!(third.parent(), second.label);
    assert_eq!(third.json["method"], "standby", "{}", third.json);
    assert_eq!(third.json["timeline"], 2, "{}", third.json);
    assert!(third.number("new") < first.number("new") / 2, "{}", third.json);

    // Without any choice it is the newest backup and the new timeline.
    let newest = scene.restored(&[]).await;
    assert_has(newest, &third.after.contents, "the newest").await;
    if asked_for().is_some() {
        prove(&scene, &second, &second.after, &[]).await;
        prove(&scene, &second, &third.after, &[]).await;
    }
    prove(&scene, &first, &third.after, &[]).await;
    prove(&scene, &first, &before, &["--target-timeline", "1"]).await;
    prove(&scene, &first, &lost, &["--target-timeline", "1"]).await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_during_the_backup_of_a_standby_leaves_no_backup_and_says_so(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let (scene, standby) = scene(major).await;
    let first: Point = point(&scene, &scene.server, "first").await;
    scene.server.wait_for_replay(&standby).await;
    let primary = scene.server.dsn("postgres");
    let running = slow_backup(
        &scene,
        &standby,
        "8MB",
        &["--from-standby", "--primary", &primary],
    )
    .await;
    standby.promote().await;
    let finished = running.wait().await.expect_status(1);
    assert!(
        finished
            .stderr
            .contains("the server was promoted while the backup was taken, which makes the backup invalid"),
        "{}",
        finished.stderr
    );
    assert!(
        finished
            .stderr
            .contains(r#""hint":"run the command again: it takes a new backup"#),
        "{}",
        finished.stderr
    );
    assert_eq!(labels(&scene).await, [first.label.as_str()]);
    // What it says is true: the command without --from-standby takes one, of the new timeline.
    scene.server.stop(StopMode::Fast).await;
    run(&standby, "postgres", &["DELETE FROM t WHERE n % 2 = 0"]).await;
    let second = point(&scene, &standby, "second").await;
    assert_eq!(second.json["timeline"], 2);
    prove(&scene, &second, &second.after, &[]).await;
}
