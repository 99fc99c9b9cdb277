//! `dump restore`: targets, selections, refusals, and what a replaced database keeps.

use pgmahout_testkit::contents;
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use rstest::rstest;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::dump_roundtrip::{assert_same, dump, everything, output, pgmahout, shop};

async fn scene(major: Major) -> (Postgres, PathBuf) {
    let server = shop(major).await;
    let directory = server.new_directory("dumps");
    dump(&server, &directory, &["create", "shop", "dump"])
        .run()
        .await
        .expect_status(0);
    (server, directory)
}

#[tokio::test]
async fn a_missing_database_is_an_error_that_says_how_to_create_it() {
    let (server, directory) = scene(Major::V15).await;
    let finished = dump(&server, &directory, &["restore", "dump", "nowhere"])
        .run()
        .await
        .expect_status(3);
    assert!(
        finished.stderr.contains("database \"nowhere\" does not exist"),
        "{}",
        finished.stderr
    );
    assert!(finished.stderr.contains("--create"), "{}", finished.stderr);
    assert_eq!(
        server
            .query_text(
                "postgres",
                "SELECT count(*) FROM pg_database WHERE datname = 'nowhere'"
            )
            .await,
        "0"
    );
    dump(&server, &directory, &["restore", "dump", "nowhere", "--create"])
        .run()
        .await
        .expect_status(0);
    let finished = dump(&server, &directory, &["restore", "dump", "nowhere", "--create"])
        .run()
        .await
        .expect_status(3);
    assert!(finished.stderr.contains("exists already"), "{}", finished.stderr);
}

#[tokio::test]
async fn a_missing_file_and_a_dry_run_change_nothing() {
    let (server, directory) = scene(Major::V15).await;
    let finished = dump(&server, &directory, &["restore", "nothing.sql.gz", "shop"])
        .run()
        .await
        .expect_status(1);
    assert!(
        finished.stderr.contains("there is no dump at nothing.sql.gz"),
        "{}",
        finished.stderr
    );
    let before = everything(&server, "shop").await;
    let finished = dump(
        &server,
        &directory,
        &["restore", "dump", "shop", "--clean", "--dry-run"],
    )
    .run()
    .await
    .expect_status(0);
    assert!(
        finished
            .stdout
            .contains("will be lost: everything in database shop"),
        "{}",
        finished.stdout
    );
    assert!(
        finished
            .stdout
            .contains("9 tables with 11503 rows, 2 large objects"),
        "{}",
        finished.stdout
    );
    assert_same(&before, &everything(&server, "shop").await, "a dry run");
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn what_is_already_there_makes_the_restore_fail_and_stay_as_it_was(#[case] major: Major) {
    let (server, directory) = scene(major).await;
    server.createdb("target").await;
    server
        .sql(
            "target",
            "CREATE TABLE public.plain (precious text); INSERT INTO plain VALUES ('x')",
        )
        .await;
    let before = everything(&server, "target").await;
    let finished = dump(&server, &directory, &["restore", "dump", "target"])
        .run()
        .await
        .expect_status(1);
    assert!(
        finished.stderr.contains("relation \"plain\" already exists"),
        "{}",
        finished.stderr
    );
    assert!(finished.stderr.contains("--clean"), "{}", finished.stderr);
    assert_same(&before, &everything(&server, "target").await, "a failed restore");
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn a_replaced_database_keeps_its_owner_rights_settings_and_comment(#[case] major: Major) {
    let (server, directory) = scene(major).await;
    let source = everything(&server, "shop").await;
    server
        .sql("postgres", "CREATE ROLE alice; CREATE ROLE bob LOGIN")
        .await;
    server
        .sql(
            "postgres",
            "CREATE DATABASE target OWNER alice CONNECTION LIMIT 50",
        )
        .await;
    server
        .sql(
            "postgres",
            r#"REVOKE ALL ON DATABASE target FROM PUBLIC;
               GRANT CONNECT ON DATABASE target TO bob WITH GRANT OPTION;
               COMMENT ON DATABASE target IS '100% of it''s "data"';
               ALTER DATABASE target SET search_path = "$user", shop, public;
               ALTER DATABASE target SET work_mem = '8MB';
               ALTER ROLE bob IN DATABASE target SET statement_timeout = '3s'"#,
        )
        .await;
    server.sql("target", "CREATE TABLE old AS SELECT 1 AS a").await;
    let properties = "SELECT concat_ws(' | ', pg_get_userbyid(datdba), datconnlimit, datacl, shobj_description(d.oid, 'pg_database'),
        encoding, datcollate, (SELECT string_agg(concat(setrole::regrole, setconfig), ';' ORDER BY setrole) FROM pg_db_role_setting WHERE setdatabase = d.oid))
        FROM pg_database d WHERE datname = 'target'";
    let before = server.query_text("postgres", properties).await;
    // A client that is connected all the time, and comes back at once.
    let idle = server.client("target").await;
    let finished = dump(&server, &directory, &["restore", "dump", "target", "--clean"])
        .run()
        .await
        .expect_status(0);
    assert!(
        idle.simple_query("SELECT 1").await.is_err(),
        "the session on the old database lives"
    );
    assert!(
        finished.stderr.contains("1 other session on it"),
        "{}",
        finished.stderr
    );
    let order = |text: &str| {
        let mut parts: Vec<String> = text
            .split(['|', ';', ',', '{', '}'])
            .map(|part| part.trim().to_owned())
            .collect();
        parts.sort();
        parts
    };
    assert_eq!(
        order(&server.query_text("postgres", properties).await),
        order(&before)
    );
    let mut after = everything(&server, "target").await;
    let mut source = source;
    // The settings of the database are no part of its content.
    after.remove("definitions");
    source.remove("definitions");
    assert_same(&source, &after, "--clean");
    assert_eq!(
        server
            .query_text(
                "postgres",
                "SELECT count(*) FROM pg_database WHERE datname ~ '^pgmahout'"
            )
            .await,
        "0"
    );
}

#[tokio::test]
async fn replacing_a_database_is_confirmed_and_templates_are_not_replaced() {
    let (server, directory) = scene(Major::V15).await;
    server.createdb("target").await;
    server
        .sql(
            "target",
            "CREATE TABLE big AS SELECT n FROM generate_series(1, 20000) n; ANALYZE",
        )
        .await;
    let before = contents::digests(&server, "target").await;
    let finished = pgmahout(
        &server,
        &directory,
        &["dump", "restore", "dump", "target", "--clean"],
    )
    .run()
    .await
    .expect_status(3);
    assert!(finished.stderr.contains("--yes"), "{}", finished.stderr);
    assert!(
        finished
            .stderr
            .contains("the target holds more rows than the dump"),
        "{}",
        finished.stderr
    );
    let finished = dump(&server, &directory, &["restore", "dump", "template1", "--clean"])
        .run()
        .await
        .expect_status(3);
    assert!(finished.stderr.contains("template"), "{}", finished.stderr);
    assert_eq!(contents::digests(&server, "target").await, before);
}

#[tokio::test]
async fn a_failed_replacement_leaves_the_old_database_in_use() {
    let (server, directory) = scene(Major::V15).await;
    server.createdb("target").await;
    server.sql("target", "CREATE TABLE old AS SELECT 1 AS a").await;
    let text = String::from_utf8(output(&server, "pg_dump", &[], None)).expect("UTF-8");
    std::fs::write(
        directory.join("broken"),
        text.replace("REFRESH MATERIALIZED", "REFRESH NOTHING"),
    )
    .expect("written");
    let idle = server.client("target").await;
    dump(&server, &directory, &["restore", "broken", "target", "--clean"])
        .run()
        .await
        .expect_status(1);
    assert!(
        idle.simple_query("SELECT a FROM old").await.is_ok(),
        "the session was ended for nothing"
    );
    assert_eq!(
        server
            .query_text(
                "postgres",
                "SELECT count(*) FROM pg_database WHERE datname ~ '^pgmahout'"
            )
            .await,
        "0"
    );
    // A name that a failed --into was to have is free.
    dump(&server, &directory, &["restore", "broken", "--into", "new"])
        .run()
        .await
        .expect_status(1);
    assert_eq!(
        server
            .query_text(
                "postgres",
                "SELECT count(*) FROM pg_database WHERE datname = 'new'"
            )
            .await,
        "0"
    );
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn a_stream_that_would_leave_the_target_is_refused(#[case] major: Major) {
    let (server, directory) = scene(major).await;
    server.createdb("target").await;
    let before = everything(&server, "target").await;
    let shop_before = everything(&server, "shop").await;
    let write = |name: &str, bytes: &[u8]| std::fs::write(directory.join(name), bytes).expect("written");
    let plain = String::from_utf8(output(&server, "pg_dump", &[], None)).expect("UTF-8");
    write("cluster", &output(&server, "pg_dumpall", &[], None));
    write("create", &output(&server, "pg_dump", &["--create"], None));
    write(
        "shell",
        plain
            .replacen(
                "SET lock_timeout",
                "\\! touch /tmp/should-not-exist\nSET lock_timeout",
                1,
            )
            .as_bytes(),
    );
    write(
        "middle",
        plain
            .replacen(
                "SET lock_timeout = 0;",
                "SELECT 1 \\gexec\nSET lock_timeout = 0;",
                1,
            )
            .as_bytes(),
    );
    write("after", format!("{plain}\nDROP TABLE public.plain;\n").as_bytes());
    write(
        "backquote",
        plain.replacen("\\restrict ", "\\restrict `id`", 1).as_bytes(),
    );
    for (file, words) in [
        (
            "cluster",
            vec!["a pg_dumpall stream", "\\connect", "--database", "shop"],
        ),
        (
            "create",
            vec!["creates its database", "\\connect shop", "--database shop"],
        ),
        ("shell", vec!["\\! touch", "line "]),
        ("middle", vec!["\\gexec", "line "]),
        ("after", vec!["a statement follows the end of the dump"]),
        ("backquote", vec!["\\restrict `id`"]),
    ] {
        let finished = dump(&server, &directory, &["restore", file, "target"])
            .run()
            .await
            .expect_status(3);
        for word in words {
            assert!(
                finished.stderr.contains(word),
                "no \"{word}\" for {file} in:\n{}",
                finished.stderr
            );
        }
        assert!(finished.stderr.contains("hint:"), "{}", finished.stderr);
    }
    assert_same(&before, &everything(&server, "target").await, "a refused stream");
    assert_same(
        &shop_before,
        &everything(&server, "shop").await,
        "a refused stream",
    );
    dump(
        &server,
        &directory,
        &["restore", "create", "target", "--database", "shop"],
    )
    .run()
    .await
    .expect_status(0);
    assert_same(
        &shop_before,
        &everything(&server, "target").await,
        "the section of a dump with --create",
    );
}

#[tokio::test]
async fn all_problems_are_listed_at_once() {
    let (server, directory) = scene(Major::V15).await;
    server.sql("postgres", "CREATE ROLE ghost").await;
    server.sql("shop", "ALTER TABLE shop.orders OWNER TO ghost").await;
    let mut text = String::from_utf8(output(&server, "pg_dump", &[], None)).expect("UTF-8");
    text = text.replacen(
        "CREATE SCHEMA shop;",
        "CREATE EXTENSION IF NOT EXISTS no_such_thing WITH SCHEMA public;\nCREATE SCHEMA shop;",
        1,
    );
    std::fs::write(directory.join("needy"), text).expect("written");
    server.sql("shop", "REASSIGN OWNED BY ghost TO postgres").await;
    server.sql("postgres", "DROP ROLE ghost").await;
    let finished = dump(&server, &directory, &["restore", "needy", "nowhere"])
        .run()
        .await
        .expect_status(3);
    for word in [
        "nowhere\" does not exist",
        "extension \"no_such_thing\"",
        "role \"ghost\"",
        "--owner-map ghost=",
        "--create",
    ] {
        assert!(
            finished.stderr.contains(word),
            "no \"{word}\" in:\n{}",
            finished.stderr
        );
    }
}

#[tokio::test]
async fn owners_are_mapped_or_left_out() {
    let server = shop(Major::V15).await;
    let directory = server.new_directory("dumps");
    server
        .sql("postgres", "CREATE ROLE alice; CREATE ROLE \"Bob B\"")
        .await;
    server
        .sql(
            "shop",
            "ALTER TABLE shop.orders OWNER TO alice; GRANT SELECT ON shop.customers TO alice",
        )
        .await;
    for (name, format) in [("plain", "-Fp"), ("custom", "-Fc")] {
        std::fs::write(directory.join(name), output(&server, "pg_dump", &[format], None)).expect("written");
        let mapped = ["restore", name, "--into", "again", "--owner-map", "alice=Bob B"];
        dump(&server, &directory, &mapped).run().await.expect_status(0);
        let owner = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'shop.orders'::regclass";
        assert_eq!(server.query_text("again", owner).await, "Bob B");
        let right = "SELECT has_table_privilege('Bob B', 'shop.customers', 'SELECT'), has_table_privilege('alice', 'shop.customers', 'SELECT')";
        assert_eq!(
            server
                .query_text(
                    "again",
                    &format!("SELECT concat(a, b) FROM ({right}) AS q (a, b)")
                )
                .await,
            "tf"
        );
        server.sql("postgres", "DROP DATABASE again").await;
        dump(
            &server,
            &directory,
            &["restore", name, "--into", "again", "--no-owner", "--no-acl"],
        )
        .run()
        .await
        .expect_status(0);
        assert_eq!(server.query_text("again", owner).await, "postgres");
        server.sql("postgres", "DROP DATABASE again").await;
    }
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn a_part_of_a_dump_can_be_restored(#[case] major: Major) {
    let server = shop(major).await;
    let directory = server.new_directory("dumps");
    let before = contents::digests(&server, "shop").await;
    for format in ["plain", "custom"] {
        dump(
            &server,
            &directory,
            &["create", "shop", format, "--format", format],
        )
        .run()
        .await
        .expect_status(0);
        // Definitions, then rows into them.
        dump(
            &server,
            &directory,
            &["restore", format, "--into", "again", "--schema-only"],
        )
        .run()
        .await
        .expect_status(0);
        assert_eq!(
            server
                .query_text("again", "SELECT count(*) FROM shop.orders")
                .await,
            "0"
        );
        // A dropped table comes back with its keys, indexes and sequences.
        server.sql("postgres", "DROP DATABASE again").await;
        server
            .sql("postgres", "CREATE DATABASE again TEMPLATE shop")
            .await;
        server.sql("again", "DROP TABLE shop.orders CASCADE").await;
        dump(
            &server,
            &directory,
            &["restore", format, "again", "--table", "shop.orders"],
        )
        .run()
        .await
        .expect_status(0);
        let after = contents::digests(&server, "again").await;
        for name in ["shop.orders", "shop.customers", "shop.orders_id_seq"] {
            assert_eq!(after.get(name), before.get(name), "{name}");
        }
        let made = "SELECT count(*) FROM pg_constraint WHERE conrelid = 'shop.orders'::regclass AND contype IN ('p', 'f', 'c')";
        assert_eq!(server.query_text("again", made).await, "3");
        assert_eq!(
            server
                .query_text(
                    "again",
                    "SELECT count(*) FROM pg_indexes WHERE indexname = 'orders_by_customer'"
                )
                .await,
            "1"
        );
        server.sql("postgres", "DROP DATABASE again").await;
        // One schema.
        let odd = "Odd \"Schema\" Ünïcode";
        dump(
            &server,
            &directory,
            &["restore", format, "--into", "again", "--schema", odd],
        )
        .run()
        .await
        .expect_status(0);
        let tables = contents::digests(&server, "again").await;
        assert_eq!(tables.len(), 1, "{tables:?}");
        server.sql("postgres", "DROP DATABASE again").await;
    }
    let finished = dump(
        &server,
        &directory,
        &["restore", "plain", "--into", "again", "--table", "shop.orderz"],
    )
    .run()
    .await
    .expect_status(3);
    assert!(finished.stderr.contains("shop.orderz"), "{}", finished.stderr);
}

#[tokio::test]
async fn a_newer_dump_is_refused_by_an_older_server() {
    let newer = shop(Major::V18).await;
    let older = Postgres::start(Major::V15).await;
    let directory = newer.new_directory("dumps");
    dump(&newer, &directory, &["create", "shop", "plain"])
        .run()
        .await
        .expect_status(0);
    let finished = pgmahout(
        &older,
        &directory,
        &["dump", "restore", "plain", "--into", "shop", "--yes"],
    )
    .run()
    .await
    .expect_status(3);
    assert!(
        finished.stderr.contains("the dump comes from PostgreSQL 18"),
        "{}",
        finished.stderr
    );
    // The other way round is how one upgrades.
    let older_shop = shop(Major::V15).await;
    dump(
        &older_shop,
        &directory,
        &["create", "shop", "old", "--format", "custom"],
    )
    .run()
    .await
    .expect_status(0);
    dump(&newer, &directory, &["restore", "old", "--into", "upgraded"])
        .run()
        .await
        .expect_status(0);
    assert_eq!(
        contents::digests(&newer, "upgraded").await,
        contents::digests(&older_shop, "shop").await
    );
}

#[tokio::test]
async fn statements_that_no_transaction_takes_are_found_before() {
    let (server, directory) = scene(Major::V15).await;
    let text = String::from_utf8(output(&server, "pg_dump", &[], None)).expect("UTF-8");
    let text = text.replacen("CREATE INDEX orders", "CREATE INDEX CONCURRENTLY orders", 1);
    std::fs::write(directory.join("concurrent"), text).expect("written");
    let finished = dump(&server, &directory, &["restore", "concurrent", "--into", "again"])
        .run()
        .await
        .expect_status(3);
    assert!(
        finished.stderr.contains("CREATE INDEX CONCURRENTLY") && finished.stderr.contains("--no-transaction"),
        "{}",
        finished.stderr
    );
    let before = contents::digests(&server, "shop").await;
    dump(
        &server,
        &directory,
        &["restore", "concurrent", "--into", "again", "--no-transaction"],
    )
    .run()
    .await
    .expect_status(0);
    assert_eq!(contents::digests(&server, "again").await, before);
}

#[tokio::test]
async fn the_result_is_one_json_object() {
    let (server, directory) = scene(Major::V15).await;
    let finished = dump(
        &server,
        &directory,
        &["restore", "dump", "--into", "again", "--json"],
    )
    .run()
    .await
    .expect_status(0);
    let answer: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(answer["schema_version"], 1);
    assert_eq!(answer["database"], "again");
    let orders = answer["tables"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|table| table["name"] == "orders");
    let orders = orders.expect("orders are in it");
    assert_eq!(
        (orders["expected"].as_u64(), orders["found"].as_u64()),
        (Some(5000), Some(5000))
    );
}

#[tokio::test]
async fn clients_that_come_back_at_once_do_not_keep_a_database_from_being_replaced() {
    let (server, directory) = scene(Major::V15).await;
    server.createdb("target").await;
    let config = server.config("target");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut clients = Vec::new();
    for _ in 0..4 {
        let (config, stop) = (config.clone(), std::sync::Arc::clone(&stop));
        clients.push(tokio::spawn(async move {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                if let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await {
                    let driver = tokio::spawn(connection);
                    while client.simple_query("SELECT 1").await.is_ok()
                        && !stop.load(std::sync::atomic::Ordering::Relaxed)
                    {}
                    driver.abort();
                }
            }
        }));
    }
    poll::until(Duration::from_secs(30), "the clients are there", async || {
        server
            .query_text(
                "postgres",
                "SELECT count(*) FROM pg_stat_activity WHERE datname = 'target'",
            )
            .await
            != "0"
    })
    .await;
    dump(&server, &directory, &["restore", "dump", "target", "--clean"])
        .run()
        .await
        .expect_status(0);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for client in clients {
        let _ = client.await;
    }
    assert_eq!(
        server
            .query_text("target", "SELECT count(*) FROM shop.orders")
            .await,
        "5000"
    );
}

#[tokio::test]
async fn the_target_is_dumped_before_when_that_is_asked_for() {
    let (server, directory) = scene(Major::V15).await;
    server.createdb("target").await;
    server
        .sql(
            "target",
            "CREATE TABLE old AS SELECT n FROM generate_series(1, 7) n",
        )
        .await;
    let before = everything(&server, "target").await;
    let arguments = [
        "restore",
        "dump",
        "target",
        "--clean",
        "--backup-first",
        "before.sql.gz",
    ];
    let finished = dump(&server, &directory, &arguments).run().await.expect_status(0);
    assert!(finished.stderr.contains("before.sql.gz"), "{}", finished.stderr);
    dump(
        &server,
        &directory,
        &["restore", "before.sql.gz", "--into", "again"],
    )
    .run()
    .await
    .expect_status(0);
    assert_same(&before, &everything(&server, "again").await, "--backup-first");
    // Without that dump nothing is restored: the file is there already.
    let now = everything(&server, "target").await;
    let finished = dump(&server, &directory, &arguments).run().await;
    assert_ne!(finished.status, Some(0));
    assert!(finished.stderr.contains("before.sql.gz"), "{}", finished.stderr);
    assert_same(
        &now,
        &everything(&server, "target").await,
        "a refused --backup-first",
    );
}

#[tokio::test]
async fn a_killed_restore_is_resumed_from_its_journal() {
    let (server, directory) = scene(Major::V15).await;
    server.createdb("bench").await;
    pgmahout_testkit::workload::load_pgbench(&server, "bench", 3);
    server.createdb("target").await;
    dump(&server, &directory, &["create", "bench", "large"])
        .run()
        .await
        .expect_status(0);
    let state = server.new_directory("state");
    let running = dump(&server, &directory, &["restore", "large", "target", "--clean"])
        .env("PGMAHOUT_STATE_DIR", &state)
        .spawn();
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgmahout dump restore' AND query ~ '^COPY'";
    poll::until(Duration::from_mins(1), "psql copies rows", async || {
        server.query_text("postgres", busy).await != "0"
    })
    .await;
    let finished = running.kill_after(Duration::ZERO).await;
    assert_eq!(finished.signal, Some(9));
    let list = pgmahout(
        &server,
        &directory,
        &["procedure", "list", "--unfinished", "--json"],
    )
    .env("PGMAHOUT_STATE_DIR", &state)
    .run()
    .await
    .expect_status(0);
    let list: serde_json::Value = serde_json::from_str(&list.stdout).expect("JSON");
    let id = list["procedures"][0]["id"]
        .as_str()
        .expect("an identifier")
        .to_owned();
    pgmahout(&server, Path::new("/"), &["procedure", "resume", &id, "--yes"])
        .env("PGMAHOUT_STATE_DIR", &state)
        .run()
        .await
        .expect_status(0);
    assert_eq!(
        contents::digests(&server, "target").await,
        contents::digests(&server, "bench").await
    );
    let left = "SELECT count(*) FROM pg_database WHERE datname ~ '^pgmahout'";
    assert_eq!(server.query_text("postgres", left).await, "0");
}
