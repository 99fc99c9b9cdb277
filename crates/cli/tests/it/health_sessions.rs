//! Faults that sessions make: each is made, seen, ended, and then no longer seen.

use pgmahout_testkit::postgres::{Major, Postgres};
use rstest::rstest;
use tokio_postgres::Client;

use crate::health_run::Operator;

/// Waits until the last run's sessions have given their places back.
async fn gone(client: &Client) {
    let left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgmahout'";
    pgmahout_testkit::poll::until(
        crate::health_run::PATIENCE,
        "the last run to be gone",
        async || {
            client
                .query_one(left, &[])
                .await
                .expect("the view")
                .get::<_, i64>(0)
                == 0
        },
    )
    .await;
}

async fn process_of(client: &Client) -> i32 {
    client
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .expect("an open session")
        .get(0)
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn sessions_that_hold_things_up_are_named_until_they_go(#[case] major: Major) {
    let server = Postgres::builder(major)
        .setting("max_prepared_transactions", "5")
        .start()
        .await;
    server.sql("postgres", "CREATE TABLE accounts (id int PRIMARY KEY, amount int); INSERT INTO accounts VALUES (1, 1), (2, 2)").await;
    let operator = Operator::of(&server);

    // Idle in a transaction, with a lock and a snapshot.
    let idle = ["--set", "connections.idle_in_transaction=1ms,1h"];
    let horizon = ["--set", "xmin.horizon=1ms,1h"];
    operator
        .check("connections.idle_in_transaction", &idle)
        .await
        .is_ok();
    operator.check("xmin.horizon", &horizon).await.is_ok();
    let holder = server.client("postgres").await;
    let head = process_of(&holder).await;
    holder
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; UPDATE accounts SET amount = 0 WHERE id = 1")
        .await
        .expect("the update");
    let answer = operator
        .wait_for("connections.idle_in_transaction", &idle, "WARN")
        .await;
    answer
        .is(
            "WARN",
            &format!("pid {head}"),
            &format!("pg_terminate_backend({head})"),
        )
        .shows("UPDATE accounts");
    let answer = operator.wait_for("xmin.horizon", &horizon, "WARN").await;
    answer.is(
        "WARN",
        &format!("session {head}"),
        &format!("pg_terminate_backend({head})"),
    );
    let answer = operator
        .check(
            "connections.idle_in_transaction",
            &["--set", "connections.idle_in_transaction=1us,1ms"],
        )
        .await;
    assert_eq!(answer.status(), "CRIT");

    // A queue behind it: one waits for the row, one for the whole table, and so does everybody after.
    let waiting = ["--set", "locks.waiting=1ms,1h", "--set", "locks.waiting.share=,"];
    operator.check("locks.waiting", &waiting).await.is_ok();
    let mut queue = Vec::new();
    for statement in [
        "UPDATE accounts SET amount = 5 WHERE id = 1",
        "ALTER TABLE accounts ADD COLUMN note text",
    ] {
        let client = server.client("postgres").await;
        queue.push(tokio::spawn(async move { client.batch_execute(statement).await }));
        let waits = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query = '{statement}'"
        );
        pgmahout_testkit::poll::until(crate::health_run::PATIENCE, "a session that waits", async || {
            server.query_text("postgres", &waits).await == "1"
        })
        .await;
    }
    let answer = operator.wait_for("locks.waiting", &waiting, "WARN").await;
    answer
        .is("WARN", "2 sessions wait for a lock", &format!("pid IN ({head})"))
        .shows("AccessExclusiveLock");
    // Nobody else in the server is active: all of those that are wait, and for long enough.
    let answer = operator
        .wait_for("locks.waiting", &["--set", "locks.waiting=1h,1h"], "CRIT")
        .await;
    assert!(
        answer.0["figures"].to_string().contains("locks.waiting.share"),
        "{}",
        answer.0
    );
    holder.batch_execute("COMMIT").await.expect("the commit");
    for waiter in queue {
        waiter.await.expect("no panic").expect("the queue moves on");
    }
    operator.check("locks.waiting", &waiting).await.is_ok();
    operator
        .check("connections.idle_in_transaction", &idle)
        .await
        .is_ok();
    operator.check("xmin.horizon", &horizon).await.is_ok();

    // A long statement.
    let long = ["--set", "queries.long=1ms,1h"];
    operator.check("queries.long", &long).await.is_ok();
    let runner = server.client("postgres").await;
    let process = process_of(&runner).await;
    let sleeping = tokio::spawn(async move { runner.batch_execute("SELECT pg_sleep(600)").await });
    let answer = operator.wait_for("queries.long", &long, "WARN").await;
    answer.is(
        "WARN",
        "SELECT pg_sleep(600)",
        &format!("pg_cancel_backend({process})"),
    );
    server
        .sql("postgres", &format!("SELECT pg_cancel_backend({process})"))
        .await;
    sleeping
        .await
        .expect("no panic")
        .expect_err("the statement was cancelled");
    operator.check("queries.long", &long).await.is_ok();

    // A statement that carries a password is not shown.
    let secret = server.client("postgres").await;
    secret
        .batch_execute("BEGIN; ALTER ROLE postgres PASSWORD 'hunter2'")
        .await
        .expect("the statement");
    let finished = operator
        .run(&["--all", "--set", "connections.idle_in_transaction=1us,1h"])
        .await;
    assert!(!finished.stdout.contains("hunter2"), "{}", finished.stdout);
    assert!(
        finished.stdout.contains("it mentions a password"),
        "{}",
        finished.stdout
    );
    drop(secret);

    // A prepared transaction that everybody has forgotten.
    let prepared = ["--set", "prepared_transactions=1ms,1h"];
    operator.check("prepared_transactions", &prepared).await.is_ok();
    server
        .sql(
            "postgres",
            "BEGIN; UPDATE accounts SET amount = 9 WHERE id = 2; PREPARE TRANSACTION 'it''s lost'",
        )
        .await;
    let answer = operator
        .wait_for("prepared_transactions", &prepared, "WARN")
        .await;
    answer.is(
        "WARN",
        "it's lost of postgres in postgres",
        "ROLLBACK PREPARED 'it''s lost'",
    );
    let answer = operator.wait_for("xmin.horizon", &horizon, "WARN").await;
    answer.is(
        "WARN",
        "prepared transaction it's lost",
        "COMMIT PREPARED 'it''s lost'",
    );
    server.restart().await;
    let answer = operator
        .wait_for("prepared_transactions", &prepared, "WARN")
        .await;
    answer.is("WARN", "it's lost", "ROLLBACK PREPARED");
    server.sql("postgres", "ROLLBACK PREPARED 'it''s lost'").await;
    operator.check("prepared_transactions", &prepared).await.is_ok();
    operator.check("xmin.horizon", &horizon).await.is_ok();
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn connections_near_their_limit_are_counted_as_the_server_counts_them(#[case] major: Major) {
    // 18 can keep connections for a role other than superusers; they are not everybody's either.
    let mut builder = Postgres::builder(major)
        .setting("max_connections", "12")
        .setting("superuser_reserved_connections", "3");
    if major == Major::V18 {
        builder = builder.setting("reserved_connections", "1");
    }
    let server = builder.start().await;
    let allowed = if major == Major::V18 { 8 } else { 9 };
    let operator = Operator::of(&server);
    operator.check("connections.used", &[]).await.is_ok();

    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(server.client("postgres").await);
    }
    let answer = operator.check("connections.used", &[]).await;
    let expected = if major == Major::V18 { "CRIT" } else { "WARN" };
    answer
        .is(
            expected,
            &format!("8 of {allowed} connections are used"),
            "pooler",
        )
        .shows("pgmahout-testkit");

    // Two places are left: health goes on with those, and sees everything all the same.
    gone(&clients[0]).await;
    for _ in 0..2 {
        clients.push(server.client("postgres").await);
    }
    let look = operator.look(&["--interval", "10ms"]).await;
    assert_eq!(look.answer("connections.used").status(), "CRIT");
    assert!(
        look.ids("UNKNOWN").is_empty(),
        "{:?} in {}",
        look.ids("UNKNOWN"),
        look.json
    );
    assert_eq!(look.exit_status, Some(1));

    // None is left: that is a result too.
    gone(&clients[0]).await;
    for _ in 0..2 {
        clients.push(server.client("postgres").await);
    }
    gone(&clients[0]).await;
    let look = operator.look(&[]).await;
    look.answer("server.reachable")
        .is("CRIT", "too many clients", "connection");
    assert_eq!(
        look.skipped("connections.used"),
        "not looked at: no session on the server; see server.reachable"
    );

    drop(clients);
    operator.wait_for("connections.used", &[], "OK").await.is_ok();
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn what_happened_since_the_last_run_is_judged_and_what_was_before_is_not(#[case] major: Major) {
    let server = Postgres::builder(major)
        .setting("deadlock_timeout", "10ms")
        .start()
        .await;
    server
        .sql(
            "postgres",
            "CREATE TABLE pair (id int PRIMARY KEY, n int); INSERT INTO pair VALUES (1, 0), (2, 0);
             CREATE TABLE large (filler char(1000)) WITH (autovacuum_enabled = false);
             INSERT INTO large SELECT 'x' FROM generate_series(1, 24000)",
        )
        .await;
    server.sql("postgres", "VACUUM ANALYZE large").await;
    let operator = Operator::of(&server);
    let only = ["--only", "deadlocks,transactions.rollback_ratio,cache.hit_ratio"];

    // The first run has nothing to compare with, and says so rather than OK.
    let first = operator.look(&only).await;
    for id in ["deadlocks", "transactions.rollback_ratio", "cache.hit_ratio"] {
        first
            .answer(id)
            .is("UNKNOWN", "without an earlier sample", "--interval 1s");
    }
    assert_eq!(first.json["status"], "WARN", "UNKNOWN counts as WARN");
    assert_eq!(first.exit_status, Some(0));
    let with_interval = Operator::of(&server)
        .look(&[only.as_slice(), &["--interval", "10ms"]].concat())
        .await;
    assert!(with_interval.ids("UNKNOWN").is_empty(), "{}", with_interval.json);
    operator.check("deadlocks", &[]).await.is_ok();

    let one = server.client("postgres").await;
    let other = server.client("postgres").await;
    one.batch_execute("BEGIN; UPDATE pair SET n = 1 WHERE id = 1")
        .await
        .expect("the first lock");
    other
        .batch_execute("BEGIN; UPDATE pair SET n = 1 WHERE id = 2")
        .await
        .expect("the second lock");
    let (left, right) = tokio::join!(
        one.batch_execute("UPDATE pair SET n = 2 WHERE id = 2"),
        other.batch_execute("UPDATE pair SET n = 2 WHERE id = 1")
    );
    assert!(
        left.is_err() != right.is_err(),
        "exactly one of them is the victim"
    );
    drop((one, other));
    // The same run must see the rollbacks: they count once the session that made them has ended.
    let counted = "SELECT sum(xact_rollback) > 300 FROM pg_stat_database";
    let failing = server.client("postgres").await;
    for _ in 0..301 {
        failing
            .batch_execute("SELECT 1 / 0")
            .await
            .expect_err("a division by zero");
    }
    drop(failing);
    let reading = server.client("postgres").await;
    for _ in 0..3 {
        reading
            .batch_execute("SELECT count(*) FROM large")
            .await
            .expect("the table is read");
    }
    drop(reading);
    pgmahout_testkit::poll::until(crate::health_run::PATIENCE, "the counters", async || {
        server.query_text("postgres", counted).await == "t"
            && server
                .query_text("postgres", "SELECT sum(blks_read) > 9000 FROM pg_stat_database")
                .await
                == "t"
    })
    .await;
    let look = operator.look(&only).await;
    look.answer("deadlocks")
        .is("WARN", "1 deadlock in", "deadlock detected")
        .shows("postgres");
    look.answer("transactions.rollback_ratio")
        .is("CRIT", "transactions in", "ERROR")
        .shows("postgres");
    look.answer("cache.hit_ratio")
        .is("CRIT", "answered by the shared buffers", "shared_buffers");
    assert_eq!(look.exit_status, Some(1));

    let after = operator.look(&only).await;
    for id in ["deadlocks", "transactions.rollback_ratio", "cache.hit_ratio"] {
        after.answer(id).is_ok();
    }

    // Counters that were reset in between do not count backwards.
    server.sql("postgres", "SELECT pg_stat_reset()").await;
    operator.look(&only).await.answer("deadlocks").is_ok();
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn a_queue_behind_a_prepared_transaction_names_it_and_how_to_decide_it(#[case] major: Major) {
    let server = Postgres::builder(major)
        .setting("max_prepared_transactions", "5")
        .start()
        .await;
    server.createdb("other").await;
    server.sql("other", "CREATE TABLE accounts (id int)").await;
    let oid = server
        .query_text("other", "SELECT 'accounts'::regclass::oid::text")
        .await;
    server
        .sql(
            "other",
            "BEGIN; LOCK TABLE accounts IN ROW EXCLUSIVE MODE; PREPARE TRANSACTION 'it''s lost'",
        )
        .await;
    // This one is no obstacle to anybody.
    server
        .sql(
            "other",
            "BEGIN; LOCK TABLE accounts IN ACCESS SHARE MODE; PREPARE TRANSACTION 'harmless'",
        )
        .await;
    let client = server.client("other").await;
    let statement = "LOCK TABLE accounts IN SHARE MODE";
    let waiter =
        tokio::spawn(async move { client.batch_execute(&format!("BEGIN; {statement}; COMMIT")).await });
    let operator = Operator::of(&server);
    let waiting = ["--set", "locks.waiting=1ms,1h", "--set", "locks.waiting.share=,"];
    let answer = operator.wait_for("locks.waiting", &waiting, "WARN").await;
    answer
        .is(
            "WARN",
            &format!("ShareLock on relation with OID {oid} in database other, held up by prepared transaction it's lost"),
            "connected to other: ROLLBACK PREPARED 'it''s lost' or COMMIT PREPARED",
        )
        .shows("prepared transaction it's lost in other");
    assert!(!answer.0.to_string().contains("harmless"), "{}", answer.0);
    assert!(!answer.text("hint").contains("pid IN"), "{}", answer.0);
    server.sql("other", "ROLLBACK PREPARED 'it''s lost'").await;
    waiter.await.expect("no panic").expect("the queue moves on");
    operator.check("locks.waiting", &waiting).await.is_ok();
}

#[rstest]
#[case::pg15(Major::V15)]
#[case::pg18(Major::V18)]
#[tokio::test]
async fn a_running_vacuum_holds_no_old_row_versions(#[case] major: Major) {
    let server = Postgres::start(major).await;
    server
        .sql(
            "postgres",
            "CREATE TABLE large (filler char(2000)) WITH (autovacuum_enabled = false);
             INSERT INTO large SELECT 'x' FROM generate_series(1, 4000)",
        )
        .await;
    let client = server.client("postgres").await;
    let process = process_of(&client).await;
    let vacuum = tokio::spawn(async move {
        client
            .batch_execute("SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1")
            .await?;
        client.batch_execute("VACUUM (FREEZE) large").await
    });
    pgmahout_testkit::poll::until(crate::health_run::PATIENCE, "the vacuum to run", async || {
        let scans = "SELECT count(*) FROM pg_stat_progress_vacuum WHERE heap_blks_scanned > 2";
        server.query_text("postgres", scans).await == "1"
    })
    .await;
    Operator::of(&server)
        .check("xmin.horizon", &["--set", "xmin.horizon=1ms,1h"])
        .await
        .is_ok();
    server
        .sql("postgres", &format!("SELECT pg_cancel_backend({process})"))
        .await;
    vacuum
        .await
        .expect("no panic")
        .expect_err("the vacuum was still running");
}
