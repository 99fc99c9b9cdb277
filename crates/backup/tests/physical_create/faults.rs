//! What happens to the server, the session or the repository while a backup is taken.

use std::time::Duration;

use pgmahout_backup::physical::create::{CreateError, CreateRequest};
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, StopMode};
use pgmahout_types::ControlFile;
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use rstest::rstest;

use crate::support::{Bench, PATIENCE, chain, control};

/// Read first, since it is the largest: everything else happens meanwhile.
const LARGE: &str = "CREATE TABLE large AS SELECT n, md5(n::text) || md5((n * 7)::text) AS text \
                     FROM generate_series(1, 300000) AS n";

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn files_that_vanish_shrink_and_grow_meanwhile_are_right_after_recovery(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let bench = Bench::new(major).await;
    let server = &bench.server;
    for statement in [
        LARGE,
        "CREATE TABLE vanishing AS SELECT * FROM generate_series(1, 50000) AS n",
        "CREATE TABLE shrinking AS SELECT * FROM generate_series(1, 50000) AS n",
        "CREATE TABLE growing AS SELECT * FROM generate_series(1, 50000) AS n",
        "CREATE TABLE shortened AS SELECT * FROM generate_series(1, 50000) AS n",
        "DELETE FROM shortened WHERE n > 100",
        "CHECKPOINT",
    ] {
        server.sql("postgres", statement).await;
    }
    let shrinking = server
        .query_text("postgres", "SELECT pg_relation_filepath('shortened')")
        .await;
    let listed = std::fs::metadata(server.data_dir().join(&shrinking))
        .expect("it is there")
        .len();
    let growing = server
        .query_text("postgres", "SELECT pg_relation_filepath('growing')")
        .await;
    let listed_growing = std::fs::metadata(server.data_dir().join(&growing))
        .expect("it is there")
        .len();
    let running = bench.slow_backup().await;
    for statement in [
        "DROP TABLE vanishing",
        "TRUNCATE shrinking",
        "INSERT INTO growing SELECT * FROM generate_series(1, 50000)",
        "CREATE TABLE late AS SELECT * FROM generate_series(1, 1000) AS n",
        // Cuts the end of the file off, which keeps its name.
        "VACUUM (TRUNCATE) shortened",
        "CHECKPOINT",
    ] {
        server.sql("postgres", statement).await;
    }
    let latest = control(server).checkpoint_location;
    let created = running
        .await
        .expect("no panic")
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(created.vanished > 0, "nothing vanished: the backup was too quick");
    let files = bench.files(created.label).await;
    let stored = ControlFile::parse(&files[ControlFile::PATH]).expect("a whole one");
    assert!(
        stored.checkpoint_location >= latest,
        "pg_control was not read last"
    );
    assert_eq!(
        files[&growing].len() as u64,
        listed_growing,
        "what it grew by comes from the WAL"
    );
    assert_eq!(files[&shrinking].len() as u64, listed, "its lost end is zero");
    let restored = bench.restored(created.label).await;
    let query = "SELECT (SELECT count(*) FROM large), to_regclass('vanishing') IS NULL, \
                        (SELECT count(*) FROM shrinking), (SELECT count(*) FROM growing), \
                        (SELECT count(*) FROM late), (SELECT count(*) FROM shortened), \
                        pg_relation_size('shortened')";
    assert_eq!(
        restored.query_text("postgres", query).await,
        server.query_text("postgres", query).await
    );
    restored.stop(StopMode::Fast).await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_backup_leaves_backup_mode_and_is_taken_up(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let bench = Bench::new(major).await;
    bench.server.sql("postgres", LARGE).await;
    bench.server.sql("postgres", "VACUUM FREEZE large").await;
    let running = bench.slow_backup().await;
    poll::until(PATIENCE, "some of it is read", async || {
        bench
            .recording
            .tasks()
            .last()
            .is_some_and(|task| task.position > 12 << 20)
    })
    .await;
    bench.cancellation.cancel();
    let error = running.await.expect("no panic").expect_err("it was interrupted");
    assert!(matches!(error, CreateError::Interrupted), "{}", chain(&error));
    assert_eq!(error.outcome(), Outcome::Interrupted);
    poll::until(PATIENCE, "the session is gone", async || {
        bench.sessions().await == "0"
    })
    .await;
    assert_eq!(bench.objects("lease").await, Vec::<String>::new());
    assert_eq!(bench.objects("manifest").await, Vec::<String>::new());
    let left = bench.objects("pack").await;
    assert!(!left.is_empty(), "what was read is kept");

    let bench = bench.uncancelled();
    let created = bench.backup().await;
    assert!(
        created.resumed > 8 << 20,
        "{} bytes were taken over",
        created.resumed
    );
    let restored = bench.restored(created.label).await;
    assert_eq!(
        restored
            .query_text("postgres", "SELECT count(*), sum(n) FROM large")
            .await,
        bench
            .server
            .query_text("postgres", "SELECT count(*), sum(n) FROM large")
            .await
    );
    restored.stop(StopMode::Fast).await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_ended_ends_the_backup(#[values(Major::V15, Major::V18)] major: Major) {
    let bench = Bench::new(major).await;
    bench.server.sql("postgres", LARGE).await;
    let running = bench.slow_backup().await;
    bench
        .server
        .sql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgmahout%backup%'",
        )
        .await;
    let error = running.await.expect("no panic").expect_err("the session is gone");
    assert!(matches!(error, CreateError::Sql { .. }), "{}", chain(&error));
    assert!(error.hint().expect("a hint").contains("what was stored is kept"));
    assert_eq!(bench.objects("manifest").await, Vec::<String>::new());
    assert_eq!(bench.objects("lease").await, Vec::<String>::new());
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn wal_that_does_not_arrive_is_named_and_nothing_is_listed(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let bench = Bench::new(major).await;
    bench.stop_pushing();
    let request = CreateRequest {
        wal_timeout: Duration::from_millis(500),
        ..bench.request()
    };
    let error = bench.try_backup(&request).await.expect_err("no WAL arrives");
    let text = chain(&error);
    assert!(matches!(error, CreateError::WalMissing { .. }), "{text}");
    assert!(text.contains("WAL segment 0000000100000000000000"), "{text}");
    assert!(text.contains("archive_command is \"cp %p"), "{text}");
    assert!(error.hint().expect("a hint").contains("pg_stat_archiver"));
    let head = bench.repository.head().await.expect("a head");
    assert!(head.backups.is_empty());
    assert_eq!(bench.sessions().await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn archiving_that_fails_is_told_with_its_last_failure() {
    let bench = Bench::with(Major::V18, |builder| builder.archive_command("false")).await;
    bench.server.sql("postgres", "SELECT pg_switch_wal()").await;
    poll::until(PATIENCE, "a failure", async || {
        bench
            .server
            .query_text("postgres", "SELECT failed_count > 0 FROM pg_stat_archiver")
            .await
            == "t"
    })
    .await;
    let request = CreateRequest {
        wal_timeout: Duration::from_millis(500),
        ..bench.request()
    };
    let text = chain(&bench.try_backup(&request).await.expect_err("no WAL arrives"));
    assert!(text.contains("archive_command is \"false\""), "{text}");
    assert!(
        text.contains("the last failure was 0000000100000000000000"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_backup_at_the_same_time_is_refused() {
    let bench = Bench::new(Major::V18).await;
    bench.server.sql("postgres", LARGE).await;
    let running = bench.slow_backup().await;
    let error = bench
        .try_backup(&bench.request())
        .await
        .expect_err("one runs already");
    assert!(matches!(error, CreateError::Running { .. }), "{}", chain(&error));
    assert_eq!(error.outcome(), Outcome::Refused);
    bench.cancellation.cancel();
    let _ = running.await;
}
