//! Faults of replication, as the primary sees them, as the standby sees them, and as both do.

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use rstest::rstest;

use crate::health_run::{Operator, PATIENCE};

/// Replication's own checks; nothing else of a standby that was just built matters here.
const ONLY: [&str; 2] = ["--only", "replication.*"];
/// Thresholds that a test can reach.
const LOW: [&str; 4] = [
    "--set",
    "replication.lag_bytes=100kB,1GB",
    "--set",
    "replication.lag_seconds=1ms,1h",
];

async fn write(primary: &Postgres) {
    primary
        .sql("postgres", "INSERT INTO shop SELECT generate_series(1, 20000)")
        .await;
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn lag_is_told_from_both_ends_and_a_dead_standby_is_never_at_zero(#[case] major: Major) {
    let primary = Postgres::start(major).await;
    primary.sql("postgres", "CREATE TABLE shop (id int)").await;
    let standby = primary.standby("second").start().await;
    primary.wait_for_replay(&standby).await;
    let of_primary = Operator::of(&primary);
    let of_standby = Operator::of(&standby);
    let of_both = Operator::of_both(&primary, &standby);
    let expected = ["--expect-standbys", "1"];

    // All is well, from every side. A transaction first, so that the standby has a time to tell.
    write(&primary).await;
    primary.wait_for_replay(&standby).await;
    let well = [ONLY.as_slice(), &expected].concat();
    for operator in [&of_primary, &of_both] {
        poll::until(PATIENCE, "replication to be well", async || {
            let look = operator.look(&well).await;
            look.results()
                .filter(|result| result["id"] != "replication.conflicts")
                .all(|result| result["status"] == "OK")
        })
        .await;
    }
    let look = of_standby.look(&ONLY).await;
    for id in [
        "replication.receiver",
        "replication.lag_bytes",
        "replication.lag_seconds",
    ] {
        look.answer(id).is_ok();
    }
    assert_eq!(look.skipped("replication.standbys"), "this server is a standby");

    // Replay is paused: everything arrives and nothing is applied.
    standby.sql("postgres", "SELECT pg_wal_replay_pause()").await;
    write(&primary).await;
    let lagging = [ONLY.as_slice(), &LOW].concat();
    poll::until(
        PATIENCE,
        "the standby to receive what it does not replay",
        async || {
            let lag = "SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) > 500000";
            standby.query_text("postgres", lag).await == "t"
        },
    )
    .await;
    let look = of_standby.look(&lagging).await;
    look.answer("replication.lag_bytes")
        .is("WARN", "replay is paused", "pg_get_wal_replay_pause_state");
    look.answer("replication.lag_seconds").is(
        "WARN",
        "replay has not caught up",
        "pg_get_wal_replay_pause_state",
    );
    look.answer("replication.receiver").is_ok();
    let answer = of_primary.wait_for("replication.lag_bytes", &LOW, "WARN").await;
    answer.is("WARN", "second", "on the standby").shows("streaming");
    standby.sql("postgres", "SELECT pg_wal_replay_resume()").await;
    of_standby
        .wait_for("replication.lag_seconds", &LOW, "OK")
        .await
        .is_ok();
    of_primary
        .wait_for("replication.lag_bytes", &LOW, "OK")
        .await
        .is_ok();

    // The walreceiver dies. What was received is all replayed, and that is not lag 0.
    let conninfo = standby.query_text("postgres", "SHOW primary_conninfo").await;
    standby
        .sql(
            "postgres",
            "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'",
        )
        .await;
    standby.reload().await;
    poll::until(PATIENCE, "the walreceiver to be gone", async || {
        standby
            .query_text("postgres", "SELECT count(*) FROM pg_stat_wal_receiver")
            .await
            == "0"
    })
    .await;
    write(&primary).await;
    let same = "SELECT pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()";
    poll::until(PATIENCE, "everything received to be replayed", async || {
        standby.query_text("postgres", same).await == "t"
    })
    .await;
    let look = of_standby.look(&lagging).await;
    look.answer("replication.receiver")
        .is("CRIT", "receives nothing", "primary_conninfo");
    look.answer("replication.lag_bytes")
        .is("UNKNOWN", "no walreceiver is streaming", "ask both in one run");
    let answer = look.answer("replication.lag_seconds");
    answer.is(
        "WARN",
        "no walreceiver is running: nothing arrives",
        "replication.receiver",
    );
    assert!(answer.value() > 0.0, "{}", answer.0);
    assert_eq!(look.exit_status, Some(1));
    let look = of_both.look(&lagging).await;
    let answer = look.answer_of("replication.lag_bytes", &standby);
    answer.is("WARN", "behind the primary", "on the standby");
    assert!(answer.value() > 500_000.0, "{}", answer.0);
    let look = of_primary
        .look(
            &[
                ONLY.as_slice(),
                &expected,
                &["--set", "replication.slots=100kB,1TB"],
            ]
            .concat(),
        )
        .await;
    look.answer("replication.standbys")
        .is("CRIT", "0 of 1 standby streaming", "pgmahout health -h STANDBY");
    look.answer("replication.slots").is(
        "WARN",
        "inactive slot second",
        "pg_drop_replication_slot('second')",
    );
    // Nobody is expected: then nobody is missing.
    let look = of_primary.look(&["--only", "replication.standbys"]).await;
    assert_eq!(
        look.skipped("replication.standbys"),
        "no standby is expected and none is connected"
    );

    let restored = format!(
        "ALTER SYSTEM SET primary_conninfo = '{}'",
        conninfo.replace('\'', "''")
    );
    standby.sql("postgres", &restored).await;
    standby.reload().await;
    of_standby
        .wait_for("replication.receiver", &[], "OK")
        .await
        .is_ok();
    of_standby
        .wait_for("replication.lag_seconds", &LOW, "OK")
        .await
        .is_ok();
    of_primary
        .wait_for("replication.standbys", &expected, "OK")
        .await
        .is_ok();

    // Commits that wait for a synchronous standby which is not there.
    primary
        .sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'third'")
        .await;
    primary.reload().await;
    of_primary
        .check("replication.standbys", &[])
        .await
        .is("CRIT", "commits wait", "STANDBY");
    primary
        .sql("postgres", "ALTER SYSTEM RESET synchronous_standby_names")
        .await;
    primary.reload().await;
    of_primary.check("replication.standbys", &[]).await.is_ok();
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn a_standby_answers_every_check_and_a_wrong_role_is_critical(#[case] major: Major) {
    let primary = Postgres::start(major).await;
    primary
        .sql("postgres", "CREATE TABLE shop (id serial PRIMARY KEY, n int) WITH (autovacuum_enabled = false); INSERT INTO shop (n) SELECT generate_series(1, 1000)")
        .await;
    let standby = primary
        .standby("second")
        .setting("max_standby_streaming_delay", "0")
        .start()
        .await;
    primary.wait_for_replay(&standby).await;
    let operator = Operator::of(&standby);

    // No question fails for asking a standby what only a primary has.
    let look = operator.look(&["--interval", "10ms"]).await;
    assert!(
        look.ids("UNKNOWN").is_empty(),
        "{:?} in {}",
        look.ids("UNKNOWN"),
        look.json
    );

    operator
        .check("server.role", &["--expect-role", "primary"])
        .await
        .is("CRIT", "expected a primary, but it is a standby", "two primaries");
    let answer = operator
        .check(
            "server.role",
            &["--expect-role", "standby", "--set", "server.role.uptime=0s,"],
        )
        .await;
    assert!(
        answer.evidence().starts_with("standby, PostgreSQL"),
        "{}",
        answer.0
    );
    assert_ne!(answer.status(), "CRIT");
    // It was started a moment ago.
    let answer = operator.check("server.role", &[]).await;
    assert_eq!(answer.status(), "WARN", "{}", answer.0);

    // A query on the standby that vacuum on the primary gets in the way of.
    let first = operator.check("replication.conflicts", &[]).await;
    first.is_ok();
    let reader = standby.client("postgres").await;
    reader
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM shop")
        .await
        .expect("a snapshot on the standby");
    primary.sql("postgres", "DELETE FROM shop").await;
    primary.sql("postgres", "VACUUM shop").await;
    poll::until(PATIENCE, "recovery to cancel the reader", async || {
        reader.batch_execute("SELECT count(*) FROM shop").await.is_err()
    })
    .await;
    drop(reader);
    let counted = "SELECT sum(conflicts) > 0 FROM pg_stat_database";
    poll::until(PATIENCE, "the conflict to be counted", async || {
        standby.query_text("postgres", counted).await == "t"
    })
    .await;
    operator
        .check("replication.conflicts", &[])
        .await
        .is("WARN", "recovery cancelled 1 statement", "hot_standby_feedback")
        .shows("postgres");
    operator.check("replication.conflicts", &[]).await.is_ok();
}

/// A standby that has paused replay reports nothing more: the last measurement must not pass for the lag.
#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn the_primary_does_not_take_an_old_measurement_for_the_lag(#[case] major: Major) {
    let primary = Postgres::start(major).await;
    primary.sql("postgres", "CREATE TABLE shop (id int)").await;
    // It reports what it receives, and then nothing more for an hour.
    let standby = primary
        .standby("second")
        .setting("wal_receiver_status_interval", "3600")
        .start()
        .await;
    write(&primary).await;
    primary.wait_for_replay(&standby).await;
    standby.sql("postgres", "SELECT pg_wal_replay_pause()").await;
    poll::until(PATIENCE, "replay to be paused", async || {
        standby
            .query_text("postgres", "SELECT pg_get_wal_replay_pause_state()")
            .await
            == "paused"
    })
    .await;
    write(&primary).await;
    let answer = Operator::of(&primary)
        .wait_for(
            "replication.lag_seconds",
            &["--set", "replication.lag_seconds=3s,1h"],
            "WARN",
        )
        .await;
    answer.is("WARN", "outstanding by its last report", "on the standby");
    standby.sql("postgres", "SELECT pg_wal_replay_resume()").await;
    Operator::of(&primary)
        .wait_for("replication.lag_seconds", &[], "OK")
        .await
        .is_ok();
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn a_standby_that_paused_for_its_settings_is_not_told_to_resume(#[case] major: Major) {
    let primary = Postgres::start(major).await;
    primary.sql("postgres", "CREATE TABLE shop (id int)").await;
    let standby = primary.standby("second").start().await;
    // A transaction, so that the standby has a time to tell.
    write(&primary).await;
    primary.wait_for_replay(&standby).await;
    primary
        .sql("postgres", "ALTER SYSTEM SET max_locks_per_transaction = 200")
        .await;
    primary.restart().await;
    poll::until(PATIENCE, "the standby to pause", async || {
        standby
            .query_text("postgres", "SELECT pg_get_wal_replay_pause_state()")
            .await
            == "paused"
    })
    .await;
    write(&primary).await;
    let answer = Operator::of(&standby)
        .wait_for("replication.lag_seconds", &LOW, "WARN")
        .await;
    answer.is(
        "WARN",
        "replay is paused",
        "'insufficient parameter settings', replay has paused because",
    );
    let both = Operator::of_both(&primary, &standby);
    poll::until(PATIENCE, "the lag", async || {
        let look = both.look(&[ONLY.as_slice(), &LOW].concat()).await;
        look.answer_of("replication.lag_seconds", &standby).status() == "WARN"
    })
    .await;
    let look = both.look(&[ONLY.as_slice(), &LOW].concat()).await;
    let answer = look.answer_of("replication.lag_seconds", &standby);
    answer.is(
        "WARN",
        "replay is paused",
        "max_locks_per_transaction is 64 here and 200 on",
    );
    assert!(
        !answer.text("hint").contains("pg_wal_replay_resume"),
        "{}",
        answer.0
    );
}
