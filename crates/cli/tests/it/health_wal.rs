//! Faults of WAL: archiving that fails, slots that keep or have lost it.

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use rstest::rstest;

use crate::archived::{Archived, Storage};
use crate::health_run::{Operator, PATIENCE};

/// Writes about this many segments of 1 MB.
async fn write_wal(server: &Postgres, segments: usize) {
    for _ in 0..segments {
        server
            .sql(
                "postgres",
                "SELECT pg_logical_emit_message(false, 'test', repeat('x', 500000))",
            )
            .await;
        server.sql("postgres", "SELECT pg_switch_wal()").await;
    }
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn archiving_that_fails_is_critical_until_it_works_again(#[case] major: Major) {
    let server = Postgres::builder(major)
        .initdb_arg("--wal-segsize=1")
        .archive_command("true")
        .start()
        .await;
    let operator = Operator::of(&server);
    write_wal(&server, 1).await;
    let answer = operator.wait_for("wal.archiving", &[], "OK").await;
    answer.is_ok();
    poll::until(PATIENCE, "a segment to be archived", async || {
        operator
            .check("wal.archiving", &[])
            .await
            .evidence()
            .contains("was archived")
    })
    .await;

    server
        .sql("postgres", "ALTER SYSTEM SET archive_command = 'false'")
        .await;
    server.reload().await;
    write_wal(&server, 2).await;
    let answer = operator.wait_for("wal.archiving", &[], "CRIT").await;
    answer.is(
        "CRIT",
        "archiving fails",
        "the server's log has the command's own words",
    );
    assert!(answer.value() >= 1.0, "segments wait: {}", answer.0);

    // No command at all is not a failure, and nothing is archived either.
    server
        .sql("postgres", "ALTER SYSTEM SET archive_command = ''")
        .await;
    server.reload().await;
    assert!(
        operator
            .check("wal.archiving", &[])
            .await
            .evidence()
            .contains("neither archive_command nor")
    );

    server.sql("postgres", "ALTER SYSTEM RESET archive_command").await;
    server.reload().await;
    poll::until(PATIENCE, "archiving to work again", async || {
        write_wal(&server, 1).await;
        operator.check("wal.archiving", &[]).await.status() == "OK"
    })
    .await;
    server
        .sql("postgres", "ALTER SYSTEM SET archive_mode = off")
        .await;
    server.restart().await;
    let look = operator.look(&["--only", "wal.archiving"]).await;
    assert_eq!(look.skipped("wal.archiving"), "archive_mode is off");
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn a_slot_that_nobody_reads_is_seen_by_the_wal_it_keeps_and_by_losing_it(#[case] major: Major) {
    let server = Postgres::builder(major)
        .initdb_arg("--wal-segsize=1")
        .setting("min_wal_size", "2MB")
        .setting("max_wal_size", "4MB")
        .setting("wal_level", "logical")
        .start()
        .await;
    let operator = Operator::of(&server);
    let keeps = [
        "--set",
        "replication.slots=5MB,1TB",
        "--set",
        "replication.slots.disk=,",
    ];
    let look = operator.look(&["--only", "replication.slots,wal.size"]).await;
    assert_eq!(look.skipped("replication.slots"), "there is no replication slot");
    look.answer("wal.size").is_ok();

    server
        .sql(
            "postgres",
            "SELECT pg_create_physical_replication_slot('gone', true)",
        )
        .await;
    operator.check("replication.slots", &keeps).await.is_ok();
    write_wal(&server, 24).await;
    server.sql("postgres", "CHECKPOINT").await;
    let answer = operator.check("replication.slots", &keeps).await;
    assert!(answer.status() == "WARN", "{}", answer.0);
    assert!(
        answer.text("hint").contains("pg_drop_replication_slot('gone')"),
        "{}",
        answer.0
    );
    answer.shows("gone");
    assert!(answer.value() > 20e6, "{}", answer.0);
    operator
        .check("wal.size", &["--set", "wal.size.disk=,"])
        .await
        .is("CRIT", "max_wal_size is 4 MB", "replication.slots");

    // The limit on what a slot may keep: now its WAL goes, and it is lost.
    server
        .sql("postgres", "ALTER SYSTEM SET max_slot_wal_keep_size = '2MB'")
        .await;
    server.reload().await;
    server.sql("postgres", "CHECKPOINT").await;
    write_wal(&server, 2).await;
    server.sql("postgres", "CHECKPOINT").await;
    let answer = operator.wait_for("replication.slots", &keeps, "CRIT").await;
    answer.is(
        "CRIT",
        "slot gone is lost",
        "SELECT pg_drop_replication_slot('gone'), and build its consumer anew",
    );
    assert!(!answer.text("hint").contains("bring"), "{}", answer.0);
    server
        .sql("postgres", "SELECT pg_drop_replication_slot('gone')")
        .await;
    server
        .sql("postgres", "ALTER SYSTEM RESET max_slot_wal_keep_size")
        .await;
    server.reload().await;

    // A logical slot holds old catalog rows too; since when, only the time between two looks can tell.
    server
        .sql(
            "postgres",
            "SELECT pg_create_logical_replication_slot('feed', 'pgoutput')",
        )
        .await;
    let horizon = ["--set", "xmin.horizon=1ms,1h"];
    let answer = operator.wait_for("xmin.horizon", &horizon, "WARN").await;
    answer.is(
        "WARN",
        "slot feed has held xmin",
        "pg_drop_replication_slot('feed')",
    );
    assert!(answer.evidence().contains("at least"), "{}", answer.0);
    server
        .sql("postgres", "SELECT pg_drop_replication_slot('feed')")
        .await;
    operator.check("xmin.horizon", &horizon).await.is_ok();
    server.sql("postgres", "CHECKPOINT").await;
    operator.wait_for("wal.size", &[], "OK").await.is_ok();
}

#[tokio::test]
async fn a_segment_that_was_lost_from_the_archive_is_critical_until_the_next_backup() {
    let scene = Archived::new(Major::V18, Storage::Directory, false).await;
    let gap = async |status: i32| {
        let arguments = ["health", "--json", "--only", "backup.wal_gap"];
        let finished = scene.pgmahout(&arguments).run().await.expect_status(status);
        let json: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
        json.to_string()
    };
    scene.run(&["backup", "create"]).await;
    let mut written = Vec::new();
    for _ in 0..3 {
        scene.archive_all().await;
        let archived = scene
            .server
            .query_text("postgres", "SELECT last_archived_wal FROM pg_stat_archiver")
            .await;
        written.push(archived);
    }
    assert!(gap(0).await.contains("every segment"));
    let lost = &written[1];
    let object = scene
        .repository
        .join(format!("stanza/main/wal/{}/{}/{lost}", &lost[..8], &lost[8..16]));
    std::fs::remove_file(object).expect("it was archived");
    let answer = gap(1).await;
    assert!(
        answer.contains("\"CRIT\"") && answer.contains(lost.as_str()),
        "{answer}"
    );
    assert!(answer.contains("pgmahout backup create"), "{answer}");
    scene.run(&["backup", "create"]).await;
    assert!(gap(0).await.contains("every segment"));
}
