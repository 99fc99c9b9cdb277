//! Backups of standbys.

use std::time::Duration;

use pgmahout_backup::physical::create::{CreateError, CreateRequest};
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, StopMode};
use pgmahout_types::BackupLabel;
use pgmahout_types::backup_label::BackupSource;
use pgmahout_types::diagnostic::Diagnose;
use pgmahout_types::repository::Method;
use rstest::rstest;

use crate::support::{Bench, PATIENCE, chain, connection, request};

const ROWS: &str = "CREATE TABLE t AS SELECT n, md5(n::text) || md5((n * 7)::text) AS text \
                    FROM generate_series(1, 100000) AS n";

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_standby_is_restorable(#[values(Major::V15, Major::V18)] major: Major) {
    let bench = Bench::new(major).await;
    bench.server.sql("postgres", ROWS).await;
    let standby = bench.server.standby("second").start().await;
    bench.server.wait_for_replay(&standby).await;
    // Refused unless it is meant.
    let plain = request(&standby);
    let error = bench.try_backup(&plain).await.expect_err("it is a standby");
    assert!(chain(&error).contains("the server is a standby"));
    let from_standby = CreateRequest {
        from_standby: true,
        primary: Some(connection(&bench.server.dsn("postgres"))),
        ..plain
    };
    let created = bench
        .try_backup(&from_standby)
        .await
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(created.method, Method::Standby);
    let manifest = bench.manifest(created.label).await;
    let label = BackupLabel::parse(manifest.header.backup_label.as_bytes()).expect("a label");
    assert_eq!(label.source, BackupSource::Standby);
    let restored = bench.restored(created.label).await;
    assert_eq!(
        restored.query_text("postgres", "SELECT count(*) FROM t").await,
        "100000"
    );
    restored.stop(StopMode::Fast).await;
    // A backup of the primary is compared with it.
    let next = bench.backup().await;
    assert_eq!(next.parent, Some(created.label));
    assert!(
        next.new < created.new / 2,
        "{} of {} is new",
        next.new,
        created.new
    );
}

/// WAL of a standby arrives when the primary has filled a segment; without that, the error says so.
#[tokio::test(flavor = "multi_thread")]
async fn wal_that_a_standby_cannot_switch_is_waited_for() {
    let bench = Bench::new(Major::V18).await;
    let standby = bench.server.standby("second").start().await;
    bench.server.sql("postgres", ROWS).await;
    bench.server.wait_for_replay(&standby).await;
    let request = CreateRequest {
        from_standby: true,
        wal_timeout: Duration::from_millis(500),
        ..request(&standby)
    };
    let error = bench.try_backup(&request).await.expect_err("nobody switches WAL");
    assert!(
        matches!(error, CreateError::WalMissing { standby: true, .. }),
        "{}",
        chain(&error)
    );
    assert!(error.hint().expect("a hint").contains("--primary"));
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_makes_the_backup_of_a_standby_invalid(#[values(Major::V15, Major::V18)] major: Major) {
    let bench = Bench::new(major).await;
    bench.server.sql("postgres", ROWS).await;
    let standby = bench.server.standby("second").start().await;
    bench.server.wait_for_replay(&standby).await;
    let running = bench
        .slow_backup_of(CreateRequest {
            from_standby: true,
            rate_limit: Some(8 << 20),
            ..request(&standby)
        })
        .await;
    standby.promote().await;
    let error = running.await.expect("no panic").expect_err("it was promoted");
    assert!(matches!(error, CreateError::Promoted), "{}", chain(&error));
    assert!(error.hint().is_some());
    let head = bench.repository.head().await.expect("a head");
    assert!(head.backups.is_empty());
}

/// The old primary wrote pages that the new one never saw, with greater LSNs and later times than the new one's:
/// whoever compares those instead of the content keeps the wrong pages.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_after_a_failover_has_the_pages_of_the_new_primary(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let bench = Bench::new(major).await;
    let server = &bench.server;
    server.sql("postgres", ROWS).await;
    server.sql("postgres", "VACUUM FREEZE t").await;
    let standby = bench.server.standby("second").start().await;
    server.wait_for_replay(&standby).await;
    standby
        .sql("postgres", "ALTER SYSTEM SET primary_conninfo = ''")
        .await;
    standby.reload().await;
    poll::until(PATIENCE, "the standby to be left behind", async || {
        standby
            .query_text("postgres", "SELECT count(*) FROM pg_stat_wal_receiver")
            .await
            == "0"
    })
    .await;
    server
        .sql(
            "postgres",
            "UPDATE t SET text = 'lost with the old primary' WHERE n % 50 = 0",
        )
        .await;
    let lost = bench.backup().await;
    standby.promote().await;
    standby
        .sql(
            "postgres",
            "UPDATE t SET text = 'of the new primary' WHERE n % 1000 = 7",
        )
        .await;
    let next = bench
        .try_backup(&request(&standby))
        .await
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(next.parent, Some(lost.label));
    let restored = bench.restored(next.label).await;
    let sum = "SELECT count(*), sum(n), md5(string_agg(text, '' ORDER BY n)) FROM t";
    assert_eq!(
        restored.query_text("postgres", sum).await,
        standby.query_text("postgres", sum).await
    );
    let lost = "SELECT count(*) FROM t WHERE text = 'lost with the old primary'";
    assert_eq!(restored.query_text("postgres", lost).await, "0");
    restored.stop(StopMode::Fast).await;
}
