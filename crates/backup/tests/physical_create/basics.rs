//! A backup has what the cluster has, and stores what no older backup has.

use pgmahout_testkit::postgres::{Major, StopMode};
use rstest::rstest;

use crate::support::Bench;

const ROWS: &str = "CREATE TABLE t AS SELECT n, md5(n::text) || md5((n * 7)::text) AS text \
                    FROM generate_series(1, 100000) AS n";

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_full_backup_is_the_cluster(#[values(Major::V15, Major::V18)] major: Major) {
    let bench = Bench::new(major).await;
    bench.server.sql("postgres", ROWS).await;
    let created = bench.backup().await;
    assert_eq!(created.parent, None);
    assert_eq!(created.damaged_pages, 0);
    let restored = bench.restored(created.label).await;
    let sum = "SELECT count(*), sum(n), md5(string_agg(text, '' ORDER BY n)) FROM t";
    assert_eq!(
        restored.query_text("postgres", sum).await,
        bench.server.query_text("postgres", sum).await
    );
    restored.stop(StopMode::Fast).await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_in_which_nothing_changed_stores_nothing(#[values(Major::V15, Major::V18)] major: Major) {
    let bench = Bench::new(major).await;
    bench.server.sql("postgres", ROWS).await;
    bench.server.sql("postgres", "VACUUM FREEZE t").await;
    let first = bench.backup().await;
    let before = bench.pack_bytes();
    let second = bench.backup().await;
    assert_eq!(second.parent, Some(first.label));
    let grown = bench.pack_bytes() - before;
    // pg_control, and what the checkpoint itself writes of transaction status.
    assert!(grown < 16 << 10, "{grown} bytes");
    assert!(second.new < 200_000, "{} bytes are new", second.new);
    let (first, second) = (bench.files(first.label).await, bench.files(second.label).await);
    let differing: Vec<&String> = second
        .iter()
        .filter(|(path, content)| first.get(*path) != Some(content))
        .map(|(path, _)| path)
        .collect();
    assert!(differing.len() < 8, "{differing:?}");
    assert_eq!(first.len(), second.len());
}
