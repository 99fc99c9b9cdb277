//! Relations, databases and tablespaces that are rewritten, emptied, made and dropped.

use std::time::Duration;

use pgmahout_testkit::postgres::{Major, Postgres};
use rstest::rstest;

use super::{first_backup, is_in_packs, point, point_of, prove, restored_files, run, slow_backup, take};
use crate::archived::{Archived, Storage, recovered};

/// Tables that the upheavals happen to, with indexes, and large values outside of their rows.
const TABLES: &[&str] = &[
    "CREATE TABLE kept (n int PRIMARY KEY, text text)",
    "INSERT INTO kept SELECT n, md5(n::text) FROM generate_series(1, 20000) n",
    "CREATE TABLE rewritten (n int PRIMARY KEY, text text); CREATE INDEX ON rewritten (text)",
    "INSERT INTO rewritten SELECT n, repeat(md5(n::text), 3) FROM generate_series(1, 10000) n",
    "CREATE TABLE emptied (n int PRIMARY KEY, text text)",
    "ALTER TABLE emptied ALTER text SET STORAGE EXTERNAL",
    "INSERT INTO emptied SELECT n, repeat(md5(n::text), 100) FROM generate_series(1, 500) n",
    "CREATE TABLE dropped AS SELECT n, md5(n::text) AS text FROM generate_series(1, 10000) n",
    "CREATE TABLE clustered (n int PRIMARY KEY, text text); CREATE INDEX by_text ON clustered (text)",
    "INSERT INTO clustered SELECT n, md5(n::text) FROM generate_series(1, 5000) n",
    "CREATE MATERIALIZED VIEW summed AS SELECT count(*), sum(n) FROM kept",
    "CREATE TABLE parts (n int, text text) PARTITION BY RANGE (n)",
    "CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (1000)",
    "INSERT INTO parts SELECT n, md5(n::text) FROM generate_series(1, 999) n",
    "CREATE TABLE moved AS SELECT n, md5(n::text) AS text FROM generate_series(1, 5000) n",
];

const UPHEAVALS: &[&str] = &[
    "UPDATE kept SET text = reverse(text) WHERE n % 97 = 0",
    "DELETE FROM rewritten WHERE n % 3 = 0",
    "VACUUM FULL rewritten",
    "TRUNCATE emptied",
    "INSERT INTO emptied SELECT n, repeat(md5((n + 3)::text), 100) FROM generate_series(1, 400) n",
    "DROP TABLE dropped",
    "CLUSTER clustered USING by_text",
    "REINDEX TABLE kept",
    "REFRESH MATERIALIZED VIEW summed",
    "CREATE TABLE high PARTITION OF parts FOR VALUES FROM (1000) TO (2000)",
    "INSERT INTO parts SELECT n, md5(n::text) FROM generate_series(1000, 1999) n",
    "ALTER TABLE parts ALTER text TYPE char(40)",
    "VACUUM FULL pg_class",
    "VACUUM (FREEZE) kept",
    // A transaction that never commits leaves pages, and relations that are gone again.
    "BEGIN; CREATE TABLE never AS SELECT * FROM kept; UPDATE kept SET text = ''; ROLLBACK",
];

async fn scene(major: Major, encrypted: bool) -> Archived {
    Archived::with(major, Storage::Directory, encrypted, |builder| {
        builder
            .setting("allow_in_place_tablespaces", "on")
            .setting("autovacuum", "off")
    })
    .await
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rewritten_emptied_and_dropped_relations_and_new_databases_are_restored_from_every_backup(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let scene = scene(major, true).await;
    let server = &scene.server;
    run(server, "postgres", TABLES).await;
    run(
        server,
        "postgres",
        &[
            "CREATE DATABASE template_of_ours",
            "CREATE DATABASE gone",
            "CREATE TABLESPACE inside LOCATION ''",
            "CREATE TABLESPACE inside_gone LOCATION ''",
            "CREATE TABLE placed TABLESPACE inside AS SELECT n FROM generate_series(1, 5000) n",
            "CREATE TABLE placed_gone TABLESPACE inside_gone AS SELECT n FROM generate_series(1, 5000) n",
        ],
    )
    .await;
    run(
        server,
        "template_of_ours",
        &["CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 3000) n"],
    )
    .await;
    let first = point(&scene, server, "first").await;

    run(server, "postgres", UPHEAVALS).await;
    run(
        server,
        "postgres",
        &[
            "CREATE DATABASE by_copy STRATEGY file_copy TEMPLATE template_of_ours",
            "CREATE DATABASE by_wal STRATEGY wal_log TEMPLATE template_of_ours",
            "DROP DATABASE gone",
            "DROP TABLE placed_gone",
            "DROP TABLESPACE inside_gone",
            "CREATE TABLESPACE inside_new LOCATION ''",
            "CREATE DATABASE inside STRATEGY file_copy TEMPLATE template_of_ours TABLESPACE inside_new",
            "ALTER TABLE moved SET TABLESPACE inside_new",
            "ALTER DATABASE template_of_ours SET TABLESPACE inside",
        ],
    )
    .await;
    for database in ["by_copy", "by_wal", "inside"] {
        run(
            server,
            database,
            &[
                "UPDATE t SET n = -n WHERE n % 10 = 0",
                "CREATE TABLE own AS SELECT 1 AS n",
            ],
        )
        .await;
    }
    let second = point(&scene, server, "second").await;
    assert_eq!(second.parent(), first.label);

    prove(&scene, &second, &second.after, &[]).await;
    prove(&scene, &first, &first.after, &[]).await;
    // The same upheavals, as the WAL tells them.
    prove(&scene, &first, &second.after, &[]).await;
}

/// Files appear, vanish, shrink and are replaced while they are listed and read.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upheavals_during_a_backup_are_in_it(#[values(Major::V15, Major::V18)] major: Major) {
    let scene = scene(major, false).await;
    let server = &scene.server;
    run(server, "postgres", TABLES).await;
    run(
        server,
        "postgres",
        &[
            "CREATE DATABASE gone",
            "CREATE TABLESPACE inside_gone LOCATION ''",
            "CREATE TABLE placed_gone TABLESPACE inside_gone AS SELECT n FROM generate_series(1, 5000) n",
        ],
    )
    .await;
    let first = point(&scene, server, "first").await;
    let running = slow_backup(&scene, server, "8MB", &[]).await;
    run(
        server,
        "postgres",
        &[
            "CREATE DATABASE by_copy STRATEGY file_copy",
            "DROP DATABASE gone",
            "DROP TABLE placed_gone",
            "DROP TABLESPACE inside_gone",
            "CREATE TABLESPACE inside_new LOCATION ''",
            "CREATE DATABASE by_wal STRATEGY wal_log TABLESPACE inside_new",
        ],
    )
    .await;
    run(server, "postgres", UPHEAVALS).await;
    for database in ["by_copy", "by_wal"] {
        run(
            server,
            database,
            &["CREATE TABLE own AS SELECT n, md5(n::text) FROM generate_series(1, 1000) n"],
        )
        .await;
    }
    run(server, "postgres", &["CHECKPOINT"]).await;
    let started = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgmahout backup'";
    assert_eq!(
        server.query_text("postgres", started).await,
        "1",
        "the backup was too quick"
    );
    let finished = running.wait().await.expect_status(0);
    let second = point_of(first_backup(&finished.stdout), server, "second").await;
    assert_eq!(second.parent(), first.label);
    prove(&scene, &second, &second.after, &[]).await;
    prove(&scene, &first, &first.after, &[]).await;
}

/// Nothing of an unlogged table is stored but that it is there.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unlogged_tables_are_restored_empty_and_not_a_byte_of_them_is_stored(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    const LOGGED: &str = "LoggedPageOfTheTable";
    const UNLOGGED: &str = "UnloggedPageOfTheTable";
    let scene = scene(major, false).await;
    let server = &scene.server;
    let packs = |text: &str| is_in_packs(&scene.repository, text);
    let filled = |name: &str, kind: &str, text: &str, rows: u32| {
        format!(
            "CREATE {kind} TABLE {name} (n int PRIMARY KEY, text text); \
             INSERT INTO {name} SELECT n, '{text}' || md5(n::text) FROM generate_series(1, {rows}) n; \
             VACUUM {name}; CHECKPOINT"
        )
    };
    let size = "SELECT pg_total_relation_size('large')";
    for statement in filled("logged", "", LOGGED, 2000).split("; ") {
        run(server, "postgres", &[statement]).await;
    }
    for statement in filled("small", "UNLOGGED", UNLOGGED, 2000).split("; ") {
        run(server, "postgres", &[statement]).await;
    }
    let json = take(&scene, server, &["--compress", "none"]).await;
    let first = point_of(json, server, "first").await;
    assert!(packs(LOGGED), "what is stored can be found in the repository");
    assert!(!packs(UNLOGGED), "an unlogged table is in the repository");

    for statement in filled("large", "UNLOGGED", UNLOGGED, 100_000).split("; ") {
        run(server, "postgres", &[statement]).await;
    }
    let bytes: u64 = server
        .query_text("postgres", size)
        .await
        .parse()
        .expect("a number");
    let json = take(&scene, server, &["--compress", "none"]).await;
    let second = point_of(json, server, "second").await;
    assert!(!packs(UNLOGGED), "an unlogged table is in the repository");
    assert!(bytes > 8 << 20, "{bytes}");
    assert!(second.number("stored") < bytes / 4, "{}", second.json);
    assert!(
        second.number("bytes") < first.number("bytes") + (1 << 20),
        "{}",
        second.json
    );
    // What becomes logged is stored, and what becomes unlogged is no longer.
    run(
        server,
        "postgres",
        &["ALTER TABLE small SET LOGGED", "ALTER TABLE logged SET UNLOGGED"],
    )
    .await;
    let json = take(&scene, server, &["--compress", "none"]).await;
    let third = point_of(json, server, "third").await;
    assert!(packs(UNLOGGED));

    for point in [&first, &second, &third] {
        prove(&scene, point, &point.after, &[]).await;
    }
    // They take rows again.
    let copy = restored_files(&scene, &second, &second.after, &[]).await;
    let path = server
        .query_text("postgres", "SELECT pg_relation_filepath('large')")
        .await;
    assert!(!copy.data_dir().join(&path).exists());
    assert!(copy.data_dir().join(format!("{path}_init")).exists());
    recovered(&copy).await;
    writes(&copy, "large").await;
}

async fn writes(copy: &Postgres, table: &str) {
    let statement = format!("INSERT INTO {table} VALUES (1, 'new')");
    tokio::time::timeout(Duration::from_mins(1), copy.sql("postgres", &statement))
        .await
        .expect("it takes rows");
    let count = copy
        .query_text("postgres", &format!("SELECT count(*) FROM {table}"))
        .await;
    assert_eq!(count, "1");
}
