//! What changed between two backups is in the second one, and little else is stored for it.

use std::collections::BTreeSet;

use pgmahout_testkit::postgres::{Major, StopMode};
use pgmahout_types::repository::manifest::{Content, Entry};
use rstest::rstest;

use crate::support::Bench;

/// Rows that do not compress, in pages that hint bits no longer change.
async fn frozen_table(bench: &Bench, rows: u32) {
    bench
        .server
        .sql(
            "postgres",
            &format!(
                "CREATE TABLE t AS SELECT n, md5(n::text) || md5((n * 7)::text) AS text \
                 FROM generate_series(1, {rows}) AS n"
            ),
        )
        .await;
    bench.server.sql("postgres", "VACUUM FREEZE t").await;
}

async fn path_of(bench: &Bench, relation: &str) -> String {
    bench
        .server
        .query_text("postgres", &format!("SELECT pg_relation_filepath('{relation}')"))
        .await
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn one_changed_page_is_stored_as_one_page(#[values(Major::V15, Major::V18)] major: Major) {
    let bench = Bench::new(major).await;
    frozen_table(&bench, 200_000).await;
    bench.backup().await;
    let before = bench.pack_bytes();
    bench
        .server
        .sql("postgres", "UPDATE t SET n = -n WHERE n = 1000")
        .await;
    let second = bench.backup().await;
    let grown = bench.pack_bytes() - before;
    assert!(grown < 120_000, "{grown} bytes for one row");
    let path = path_of(&bench, "t").await;
    let manifest = bench.manifest(second.label).await;
    let table = manifest
        .entries
        .iter()
        .find_map(|entry| match entry {
            Entry::File(file) if file.path.to_string() == path => Some(file),
            _ => None,
        })
        .expect("the table is in the backup");
    let Content::Map(content) = &table.content else {
        panic!("a large table has a map of its own");
    };
    assert!(
        content.base.is_some(),
        "what changed is kept beside the older map"
    );
    let restored = bench.restored(second.label).await;
    assert_eq!(
        restored
            .query_text("postgres", "SELECT n FROM t WHERE n < 0")
            .await,
        "-1000"
    );
    restored.stop(StopMode::Fast).await;
}

/// Each of these replaces or makes files; a restore of the backup behind it has all of it.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_is_in_the_next_backup(#[values(Major::V15, Major::V18)] major: Major) {
    let bench = Bench::new(major).await;
    let server = &bench.server;
    frozen_table(&bench, 20_000).await;
    for statement in [
        "CREATE TABLE emptied AS SELECT * FROM t",
        "CREATE TABLE rewritten AS SELECT * FROM t",
        "CREATE TABLE dropped AS SELECT * FROM t",
        "CREATE TABLE grown AS SELECT * FROM t",
    ] {
        server.sql("postgres", statement).await;
    }
    let first = bench.backup().await;
    let tablespace = server.new_directory("outside");
    let mut statements = vec![
        "TRUNCATE emptied".to_owned(),
        "DELETE FROM rewritten WHERE n % 2 = 0".to_owned(),
        "VACUUM FULL rewritten".to_owned(),
        "DROP TABLE dropped".to_owned(),
        "INSERT INTO grown SELECT * FROM grown".to_owned(),
        format!("CREATE TABLESPACE outside LOCATION '{}'", tablespace.display()),
        "CREATE TABLE elsewhere TABLESPACE outside AS SELECT * FROM t".to_owned(),
        "CREATE DATABASE by_copy STRATEGY file_copy".to_owned(),
        "CREATE DATABASE by_wal STRATEGY wal_log TEMPLATE template0".to_owned(),
    ];
    statements.push("CREATE INDEX ON grown (text)".to_owned());
    for statement in statements {
        server.sql("postgres", &statement).await;
    }
    server
        .sql("by_wal", "CREATE TABLE here AS SELECT 42 AS answer")
        .await;
    let second = bench.backup().await;
    assert_eq!(second.parent, Some(first.label));
    let manifest = bench.manifest(second.label).await;
    assert_eq!(manifest.header.tablespaces.len(), 1);
    assert_eq!(
        manifest.header.tablespaces[0].path.as_path(),
        tablespace.as_path()
    );
    let restored = bench.restored(second.label).await;
    let query = "SELECT (SELECT count(*) FROM emptied), (SELECT count(*) FROM rewritten), \
                        (SELECT count(*) FROM grown), (SELECT count(*) FROM elsewhere), \
                        to_regclass('dropped') IS NULL, \
                        (SELECT md5(string_agg(text, '' ORDER BY n, text)) FROM grown)";
    assert_eq!(
        restored.query_text("postgres", query).await,
        server.query_text("postgres", query).await
    );
    assert_eq!(
        restored.query_text("by_wal", "SELECT answer FROM here").await,
        "42"
    );
    assert_eq!(restored.query_text("by_copy", "SELECT 1").await, "1");
    restored.stop(StopMode::Fast).await;
    // The first backup is as it was.
    let restored = bench.restored_to(first.label, "immediate").await;
    assert_eq!(
        restored
            .query_text("postgres", "SELECT count(*) FROM dropped")
            .await,
        "20000"
    );
    restored.stop(StopMode::Fast).await;
}

/// Files are compared by what is in them: times and sizes prove nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_no_time_stamp_shows_is_in_the_next_backup() {
    let bench = Bench::new(Major::V18).await;
    let path = bench.server.data_dir().join("pg_ident.conf");
    let first = bench.backup().await;
    let metadata = std::fs::metadata(&path).expect("it is there");
    let content = std::fs::read(&path).expect("ours");
    let mut changed = content.clone();
    changed[2] ^= 1;
    std::fs::write(&path, &changed).expect("ours");
    std::fs::File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_modified(metadata.modified().expect("a time")))
        .expect("ours");
    let second = bench.backup().await;
    assert_eq!(bench.files(first.label).await["pg_ident.conf"], content);
    assert_eq!(bench.files(second.label).await["pg_ident.conf"], changed);
}

/// Free space maps change without WAL: nothing but their content shows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_free_space_map_is_compared_by_its_content() {
    let bench = Bench::new(Major::V18).await;
    frozen_table(&bench, 50_000).await;
    let path = format!("{}_fsm", path_of(&bench, "t").await);
    bench.server.sql("postgres", "CHECKPOINT").await;
    bench.backup().await;
    let file = bench.server.data_dir().join(&path);
    let metadata = std::fs::metadata(&file).expect("VACUUM made it");
    let mut content = std::fs::read(&file).expect("ours");
    *content.last_mut().expect("it has pages") ^= 1;
    std::fs::write(&file, &content).expect("ours");
    std::fs::File::options()
        .write(true)
        .open(&file)
        .and_then(|file| file.set_modified(metadata.modified().expect("a time")))
        .expect("ours");
    let second = bench.backup().await;
    assert!(bench.files(second.label).await[&path] == content);
}

/// Any number of small changes: maps are never kept as changes of changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_series_of_backups_stays_restorable_and_small() {
    let bench = Bench::new(Major::V15).await;
    frozen_table(&bench, 50_000).await;
    bench.backup().await;
    let full = bench.pack_bytes();
    let mut last = None;
    for round in 1..=5 {
        bench
            .server
            .sql(
                "postgres",
                &format!("UPDATE t SET text = 'round {round}' WHERE n = {}", round * 9000),
            )
            .await;
        last = Some(bench.backup().await);
    }
    let last = last.expect("there were rounds").label;
    assert!(
        bench.pack_bytes() < full + full / 4,
        "{} after {full}",
        bench.pack_bytes()
    );
    let restored = bench.restored(last).await;
    assert_eq!(
        restored
            .query_text("postgres", "SELECT count(*) FROM t WHERE text LIKE 'round%'")
            .await,
        "5"
    );
    restored.stop(StopMode::Fast).await;
    let manifest = bench.manifest(last).await;
    let listed: BTreeSet<_> = manifest.end.packs.iter().map(|pack| pack.id).collect();
    assert_eq!(listed.len(), manifest.end.packs.len(), "a pack is listed twice");
}
