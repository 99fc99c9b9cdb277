//! Faults in the database itself: indexes, sequences, dead rows, old ids, settings, pages.

use std::io::{Seek as _, SeekFrom, Write as _};

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use rstest::rstest;

use crate::health_run::{Operator, PATIENCE};

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn invalid_indexes_are_found_in_every_database_but_not_while_they_are_built(#[case] major: Major) {
    let server = Postgres::start(major).await;
    server.createdb("Shop \"1\"").await;
    let database = "Shop \"1\"";
    server
        .sql(
            database,
            "CREATE TABLE orders (number int); INSERT INTO orders VALUES (7), (7)",
        )
        .await;
    let operator = Operator::of(&server);
    let answer = operator.check("indexes.invalid", &[]).await;
    answer.is_ok();
    assert_eq!(
        answer.evidence(),
        "every index of 2 databases is valid; not looked into, being templates or closed to everybody: template0, \
         template1"
    );

    let client = server.client(database).await;
    client
        .batch_execute("CREATE UNIQUE INDEX CONCURRENTLY orders_number ON orders (number)")
        .await
        .expect_err("the numbers are not unique");
    let answer = operator.check("indexes.invalid", &[]).await;
    answer
        .is(
            "WARN",
            "public.orders_number on public.orders in Shop \"1\"",
            "DROP INDEX CONCURRENTLY",
        )
        .shows("orders_number");
    assert!(answer.text("hint").contains("duplicates"), "{}", answer.0);
    client
        .batch_execute("DROP INDEX CONCURRENTLY orders_number")
        .await
        .expect("the index goes");
    operator.check("indexes.invalid", &[]).await.is_ok();

    // One that is being built waits for this transaction, and is no fault.
    let holder = server.client(database).await;
    holder
        .batch_execute("BEGIN; INSERT INTO orders VALUES (8)")
        .await
        .expect("the insert");
    let building = tokio::spawn(async move {
        client
            .batch_execute("CREATE INDEX CONCURRENTLY orders_again ON orders (number)")
            .await
    });
    poll::until(PATIENCE, "the index to be begun", async || {
        server
            .query_text(database, "SELECT count(*) FROM pg_index WHERE NOT indisvalid")
            .await
            == "1"
    })
    .await;
    let answer = operator.check("indexes.invalid", &[]).await;
    answer.is_ok();
    assert!(
        answer.evidence().contains("1 index is being built"),
        "{}",
        answer.0
    );
    holder.batch_execute("COMMIT").await.expect("the commit");
    building.await.expect("no panic").expect("the index is built");
    operator.check("indexes.invalid", &[]).await.is_ok();
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn a_sequence_near_its_end_is_unknown_to_who_may_not_read_it_and_critical_to_who_may(
    #[case] major: Major,
) {
    let server = Postgres::start(major).await;
    server
        .sql(
            "postgres",
            "CREATE ROLE monitor LOGIN; GRANT pg_monitor, pg_read_all_settings TO monitor;
             CREATE TABLE events (id serial PRIMARY KEY)",
        )
        .await;
    let superuser = Operator::of(&server);
    let monitor = Operator::with_role(&server, "monitor");
    superuser.check("sequences.used", &[]).await.is_ok();

    server
        .sql("postgres", "SELECT setval('events_id_seq', 2147483000)")
        .await;
    let answer = superuser.check("sequences.used", &[]).await;
    answer
        .is("CRIT", "feeds public.events.id, integer", "bigint")
        .shows("2147483000");
    assert!(answer.evidence().contains("647 values left"), "{}", answer.0);

    // pg_sequences shows NULL to this role: that must not pass for an unused sequence.
    let answer = monitor.check("sequences.used", &[]).await;
    assert_eq!(answer.status(), "UNKNOWN", "{}", answer.0);
    let grant = answer.0["unseen"]["grant"]
        .as_str()
        .expect("the statement that shows it")
        .to_owned();
    assert_eq!(grant, "GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO monitor");
    server.sql("postgres", &grant).await;
    monitor
        .check("sequences.used", &[])
        .await
        .is("CRIT", "public.events_id_seq", "bigint");

    // The column's range ends before its sequence's.
    server
        .sql(
            "postgres",
            "ALTER TABLE events ALTER id TYPE bigint; ALTER SEQUENCE events_id_seq AS bigint;
             CREATE SEQUENCE numbers; CREATE TABLE small (number smallint DEFAULT nextval('numbers'));
             SELECT setval('numbers', 26000)",
        )
        .await;
    superuser.check("sequences.used", &[]).await.is(
        "WARN",
        "feeds public.small.number, smallint",
        "from smallint to bigint",
    );
    server
        .sql("postgres", "ALTER TABLE small ALTER number TYPE bigint")
        .await;
    superuser.check("sequences.used", &[]).await.is_ok();

    // One that counts down, and one that starts over by itself.
    server
        .sql(
            "postgres",
            "CREATE SEQUENCE down INCREMENT -1 MINVALUE -100 MAXVALUE -1; SELECT setval('down', -80);
             CREATE SEQUENCE round MAXVALUE 10 CYCLE; SELECT setval('round', 10)",
        )
        .await;
    superuser
        .check("sequences.used", &[])
        .await
        .is("WARN", "public.down", "ALTER SEQUENCE public.down");
    server.sql("postgres", "DROP SEQUENCE down").await;
    superuser.check("sequences.used", &[]).await.is_ok();

    // Somebody has it locked: health does not wait, and does not say that it saw it.
    let holder = server.client("postgres").await;
    holder
        .batch_execute("BEGIN; ALTER SEQUENCE numbers INCREMENT 2")
        .await
        .expect("the lock");
    superuser
        .check("sequences.used", &[])
        .await
        .is("UNKNOWN", "locked by a running DDL", "look again");
    holder.batch_execute("ROLLBACK").await.expect("the end");
    superuser.check("sequences.used", &[]).await.is_ok();
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn dead_rows_and_a_vacuum_that_never_comes_are_seen(#[case] major: Major) {
    let server = Postgres::start(major).await;
    server
        .sql(
            "postgres",
            "CREATE TABLE churn (id int) WITH (autovacuum_enabled = false);
             INSERT INTO churn SELECT generate_series(1, 40000); ANALYZE churn",
        )
        .await;
    let operator = Operator::of(&server);
    let waits = ["--set", "vacuum.autovacuum=1ms"];
    operator.check("vacuum.dead_tuples", &[]).await.is_ok();
    operator.check("vacuum.autovacuum", &waits).await.is_ok();

    server.sql("postgres", "DELETE FROM churn WHERE id > 25000").await;
    let answer = operator.wait_for("vacuum.dead_tuples", &[], "WARN").await;
    answer
        .is(
            "WARN",
            "public.churn in postgres has 15,000 dead rows",
            "VACUUM (VERBOSE) public.churn",
        )
        .shows("never");
    // More than half dead is only critical where it is large.
    server.sql("postgres", "DELETE FROM churn WHERE id > 1000").await;
    poll::until(PATIENCE, "39,000 dead rows", async || {
        operator
            .check("vacuum.dead_tuples", &[])
            .await
            .evidence()
            .contains("39,000")
    })
    .await;
    assert_eq!(operator.check("vacuum.dead_tuples", &[]).await.status(), "WARN");

    let answer = operator.wait_for("vacuum.autovacuum", &waits, "WARN").await;
    answer.is(
        "WARN",
        "1 table waits for vacuum, the longest public.churn",
        "ALTER TABLE public.churn RESET (autovacuum_enabled)",
    );
    server.sql("postgres", "VACUUM churn").await;
    operator.wait_for("vacuum.dead_tuples", &[], "OK").await.is_ok();
    operator.check("vacuum.autovacuum", &waits).await.is_ok();

    server.sql("postgres", "ALTER SYSTEM SET autovacuum = off").await;
    server.reload().await;
    operator.check("vacuum.autovacuum", &[]).await.is(
        "CRIT",
        "autovacuum is off",
        "ALTER SYSTEM SET autovacuum = on",
    );
    operator.check("settings.safety", &[]).await.shows("autovacuum");
    server.sql("postgres", "ALTER SYSTEM RESET autovacuum").await;
    server.reload().await;
    operator.check("vacuum.autovacuum", &[]).await.is_ok();
}

#[tokio::test]
async fn old_transaction_ids_are_measured_in_every_database_and_gone_when_frozen() {
    let server = Postgres::start(Major::V18).await;
    let operator = Operator::of(&server);
    let low = ["--set", "vacuum.xid_age=0.0001%,99%"];
    server
        .sql(
            "postgres",
            "DO $$ BEGIN FOR i IN 1..4000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$",
        )
        .await;
    let answer = operator.check("vacuum.xid_age", &low).await;
    answer
        .is("WARN", "transaction ids old", "VACUUM (FREEZE, VERBOSE)")
        .shows("pg_catalog");
    assert!(
        answer.0["figures"].to_string().contains("vacuum.xid_age.freeze"),
        "{}",
        answer.0
    );
    // Against the age from which autovacuum freezes by itself, of which these few are little.
    operator
        .check("vacuum.xid_age", &["--set", "vacuum.xid_age.freeze=0.001%,"])
        .await
        .is("WARN", "ids old", "FREEZE");
    operator.check("vacuum.multixid_age", &[]).await.is_ok();

    server
        .sql("postgres", "ALTER DATABASE template0 ALLOW_CONNECTIONS true")
        .await;
    server
        .sql("postgres", "CREATE DATABASE \"Closed\" TEMPLATE template0")
        .await;
    for database in ["postgres", "template1", "template0"] {
        server.sql(database, "VACUUM (FREEZE)").await;
    }
    // The worst is one that nobody can enter: no table of another database is blamed for it.
    server
        .sql("postgres", "ALTER DATABASE \"Closed\" ALLOW_CONNECTIONS false")
        .await;
    let answer = operator.check("vacuum.xid_age", &low).await;
    answer.is(
        "WARN",
        "database Closed is",
        "ALTER DATABASE \"Closed\" ALLOW_CONNECTIONS true",
    );
    assert!(answer.0["rows"].is_null(), "{}", answer.0);
    server
        .sql(
            "postgres",
            "ALTER DATABASE \"Closed\" ALLOW_CONNECTIONS true; ALTER DATABASE \"Closed\" IS_TEMPLATE true",
        )
        .await;
    operator.check("vacuum.xid_age", &low).await.is(
        "WARN",
        "database Closed is",
        "connected to Closed: VACUUM (FREEZE) (it is a template",
    );
    server.sql("Closed", "VACUUM (FREEZE)").await;
    operator.check("vacuum.xid_age", &low).await.is_ok();
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn settings_that_risk_data_or_wait_for_a_restart_are_named(#[case] major: Major) {
    let server = Postgres::builder(major).setting("fsync", "on").start().await;
    let operator = Operator::of(&server);
    operator.check("settings.safety", &[]).await.is_ok();
    operator.check("settings.pending_restart", &[]).await.is_ok();

    server.sql("postgres", "ALTER SYSTEM SET fsync = off; ").await;
    server
        .sql("postgres", "ALTER SYSTEM SET synchronous_commit = off")
        .await;
    server
        .sql("postgres", "ALTER SYSTEM SET max_connections = 55")
        .await;
    server.reload().await;
    let answer = operator.check("settings.safety", &[]).await;
    answer
        .is(
            "CRIT",
            "fsync is off: a crash of the machine destroys the cluster",
            "ALTER SYSTEM SET fsync = 'on'",
        )
        .shows("postgresql.auto.conf");
    assert!(
        answer.evidence().contains("synchronous_commit is off"),
        "{}",
        answer.0
    );
    operator
        .wait_for("settings.pending_restart", &[], "WARN")
        .await
        .is("WARN", "max_connections", "plan a restart")
        .shows("100")
        .shows("55")
        .shows("postgresql.auto.conf:");
    // Who may not read the files is told no wrong place.
    server
        .sql(
            "postgres",
            "CREATE ROLE monitor LOGIN; GRANT pg_monitor, pg_read_all_settings TO monitor",
        )
        .await;
    Operator::with_role(&server, "monitor")
        .check("settings.pending_restart", &[])
        .await
        .is("WARN", "max_connections", "plan a restart")
        .shows("only superusers see it")
        .shows("postgresql.auto.conf, postgresql.conf or a file that it includes");

    server.sql("postgres", "ALTER SYSTEM RESET fsync").await;
    server.reload().await;
    assert_eq!(operator.check("settings.safety", &[]).await.status(), "WARN");
    server.sql("postgres", "ALTER SYSTEM RESET ALL").await;
    server.reload().await;
    operator.check("settings.safety", &[]).await.is_ok();
    operator
        .wait_for("settings.pending_restart", &[], "OK")
        .await
        .is_ok();
}

#[tokio::test]
async fn a_damaged_page_is_critical_and_missing_checksums_are_a_warning() {
    let without = Postgres::start(Major::V15).await;
    Operator::of(&without)
        .check("checksums", &[])
        .await
        .is("WARN", "disabled", "pg_checksums --enable");
    drop(without);

    let server = Postgres::builder(Major::V15).data_checksums(true).start().await;
    let operator = Operator::of(&server);
    operator.check("checksums", &[]).await.is_ok();
    server
        .sql(
            "postgres",
            "CREATE TABLE damaged AS SELECT generate_series(1, 1000) AS n",
        )
        .await;
    let path = server
        .query_text("postgres", "SELECT pg_relation_filepath('damaged')")
        .await;
    server.stop(pgmahout_testkit::postgres::StopMode::Fast).await;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .open(server.data_dir().join(path))
        .expect("the table's file");
    file.seek(SeekFrom::Start(4000)).expect("within the first page");
    file.write_all(b"damage").expect("the bytes");
    drop(file);
    server.start_again().await;
    let client = server.client("postgres").await;
    client
        .batch_execute("SELECT * FROM damaged")
        .await
        .expect_err("the page is damaged");
    drop(client);
    let answer = operator.wait_for("checksums", &[], "CRIT").await;
    answer
        .is("CRIT", "failure of checksums since", "copy the data directory")
        .shows("postgres");
    server
        .sql("postgres", "DROP TABLE damaged; SELECT pg_stat_reset()")
        .await;
    operator.wait_for("checksums", &[], "OK").await.is_ok();
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn nothing_waits_behind_an_exclusive_lock(#[case] major: Major) {
    let server = Postgres::start(major).await;
    server
        .sql(
            "postgres",
            "CREATE TABLE locked (id int PRIMARY KEY, note text); CREATE TABLE leaving (id int); CREATE TABLE changing (id int);
             INSERT INTO locked SELECT n, repeat('x', 3000) FROM generate_series(1, 100) n; ANALYZE;
             CREATE TABLE parted (id int) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parted DEFAULT;
             CREATE MATERIALIZED VIEW summary AS SELECT count(*) FROM locked",
        )
        .await;
    let holder = server.client("postgres").await;
    holder
        .batch_execute(
            "BEGIN; LOCK TABLE locked, parted IN ACCESS EXCLUSIVE MODE; DROP TABLE leaving; CREATE TABLE coming (id int);
             ALTER TABLE changing ADD COLUMN more int; TRUNCATE locked; CREATE INDEX ON coming (id);
             REFRESH MATERIALIZED VIEW summary",
        )
        .await
        .expect("the locks");
    let operator = Operator::of(&server);
    let look = operator.look(&["--interval", "10ms"]).await;
    assert!(
        look.ids("UNKNOWN").is_empty(),
        "{:?} in {}",
        look.ids("UNKNOWN"),
        look.json
    );
    look.answer("indexes.invalid").is_ok();
    holder.batch_execute("ROLLBACK").await.expect("the end");
}
