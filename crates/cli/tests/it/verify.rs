//! `verify`: what it proves, what it finds broken, and that it leaves nothing behind.

use std::time::Duration;

use pgmahout_testkit::pgbouncer::PgBouncer;
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use pgmahout_testkit::proc::{Finished, Pgmahout};
use rstest::rstest;
use serde_json::Value;

async fn verify(dsn: &str, arguments: &[&str]) -> (Finished, Value) {
    let finished = Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args([
            "verify",
            "--json",
            "--only",
            "server.reachable,replication",
            "--dsn",
            dsn,
        ])
        .args(arguments)
        .run()
        .await;
    let answer = serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", finished.stdout, finished.stderr));
    (finished, answer)
}

/// The status and the evidence of one part.
fn part(answer: &Value, id: &str) -> (String, String) {
    let found = answer["proof"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|result| result["id"] == id);
    found.map_or_else(
        || {
            let skipped = answer["skipped"]
                .as_array()
                .expect("a list")
                .iter()
                .find(|skipped| skipped["id"] == id);
            let reason = skipped.unwrap_or_else(|| panic!("no {id} in {answer}"))["reason"].as_str();
            ("skipped".to_owned(), reason.expect("a reason").to_owned())
        },
        |result| {
            let text = |name: &str| result[name].as_str().expect("text").to_owned();
            (text("status"), text("evidence"))
        },
    )
}

async fn nothing_left(server: &Postgres) {
    let left = server
        .query_text(
            "postgres",
            "SELECT count(*) FROM pg_namespace WHERE nspname = 'pgmahout'",
        )
        .await;
    assert_eq!(left, "0", "the schema pgmahout was left behind");
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn a_sound_server_is_proved_end_to_end(#[case] major: Major) {
    let server = Postgres::builder(major).archive_to("archive").start().await;
    server.sql("postgres", "CREATE TABLE orders AS SELECT n AS id FROM generate_series(1, 1000) n; CREATE INDEX ON orders (id)").await;
    let standby = server.standby("second").start().await;
    let bouncer = PgBouncer::start(&server, &[("pool_mode", "transaction")]).await;
    let archive = server.root_dir().join("archive");
    server
        .sql(
            "postgres",
            &format!(
                "ALTER SYSTEM SET restore_command = 'cp {}/%f %p'",
                archive.display()
            ),
        )
        .await;
    server.reload().await;
    poll::until(Duration::from_secs(10), "the restore_command", async || {
        !server
            .query_text("postgres", "SHOW restore_command")
            .await
            .is_empty()
    })
    .await;
    let (finished, answer) = verify(
        &server.dsn("postgres"),
        &[
            "--standby",
            &standby.dsn("postgres"),
            "--pooler",
            &bouncer.dsn("postgres"),
            "--table",
            "public.orders",
        ],
    )
    .await;
    finished.expect_status(0);
    for id in [
        "verify.write",
        "verify.standbys",
        "verify.pool",
        "verify.archive",
        "verify.amcheck",
    ] {
        assert_eq!(part(&answer, id).0, "OK", "{id}: {answer}");
    }
    assert!(
        part(&answer, "verify.standbys").1.starts_with("2 of 2"),
        "{answer}"
    );
    assert!(
        part(&answer, "verify.archive").1.contains("read back whole"),
        "{answer}"
    );
    assert_eq!(
        part(&answer, "verify.amcheck").1,
        "1 tables and 1 indexes are consistent"
    );
    nothing_left(&server).await;

    // With the standby's replay stopped the row does not arrive there, and it is said where.
    standby.sql("postgres", "SELECT pg_wal_replay_pause()").await;
    let (finished, answer) = verify(
        &server.dsn("postgres"),
        &[
            "--standby",
            &standby.dsn("postgres"),
            "--patience",
            "1s",
            "--only",
            "server.reachable",
        ],
    )
    .await;
    finished.expect_status(1);
    let (status, evidence) = part(&answer, "verify.standbys");
    assert_eq!(status, "CRIT");
    assert!(evidence.contains("second"), "{evidence}");
    nothing_left(&server).await;
}

#[tokio::test]
async fn a_broken_archive_is_found_by_writing_to_it() {
    let server = Postgres::builder(Major::V15)
        .archive_command("false")
        .start()
        .await;
    let (finished, answer) = verify(&server.dsn("postgres"), &["--patience", "1s"]).await;
    finished.expect_status(1);
    let (status, evidence) = part(&answer, "verify.archive");
    assert_eq!(status, "CRIT");
    assert!(evidence.contains("is not archived after 1 s"), "{evidence}");
    nothing_left(&server).await;
}

#[tokio::test]
async fn a_damaged_index_is_found() {
    let server = Postgres::builder(Major::V18).data_checksums(false).start().await;
    server
        .sql("postgres", "CREATE TABLE t AS SELECT n AS id FROM generate_series(1, 500) n; CREATE INDEX t_id ON t (id); CHECKPOINT")
        .await;
    let path = server
        .query_text("postgres", "SELECT pg_relation_filepath('t_id')")
        .await;
    server.stop(StopMode::Fast).await;
    let file = server.data_dir().join(path);
    let mut bytes = std::fs::read(&file).expect("the index");
    // Two keys of the leaf page change places: the order, which an index is for, is broken.
    let page = &mut bytes[8192..16384];
    let (first, second) = (page.len() - 16 + 8 - 16, page.len() - 16 + 8 - 48);
    for offset in 0..4 {
        page.swap(first + offset, second + offset);
    }
    std::fs::write(&file, bytes).expect("the index is written");
    server.start_again().await;
    let (finished, answer) = verify(&server.dsn("postgres"), &["--table", "public.t"]).await;
    finished.expect_status(1);
    let (status, evidence) = part(&answer, "verify.amcheck");
    assert_eq!(status, "CRIT", "{evidence}");
    nothing_left(&server).await;
}

#[tokio::test]
async fn read_only_writes_nothing_and_a_foreign_schema_is_left_alone() {
    let server = Postgres::start(Major::V15).await;
    server
        .sql(
            "postgres",
            "CREATE SCHEMA pgmahout; CREATE TABLE pgmahout.mine (a int)",
        )
        .await;
    let refused = Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args([
            "verify",
            "--only",
            "server.reachable",
            "--dsn",
            &server.dsn("postgres"),
        ])
        .run()
        .await
        .expect_status(3);
    assert!(
        refused.stderr.contains("was not made by pgmahout verify"),
        "{}",
        refused.stderr
    );
    let before = server
        .query_text(
            "postgres",
            "SELECT pg_current_wal_insert_lsn()::text || txid_current()",
        )
        .await;
    let (finished, answer) = verify(&server.dsn("postgres"), &["--read-only"]).await;
    finished.expect_status(0);
    assert_eq!(
        part(&answer, "verify.write"),
        ("skipped".to_owned(), "--read-only".to_owned())
    );
    assert_eq!(
        server
            .query_text("postgres", "SELECT count(*) FROM pgmahout.mine")
            .await,
        "0"
    );
    assert!(!before.is_empty());
}
