//! `dump copy`: a database from server to server, masked before anyone can log in.

use pgmahout_testkit::contents;
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::{Finished, Pgmahout};
use rstest::rstest;

use crate::dump_roundtrip::{assert_same, everything, shop};

async fn copy(from: &str, to: &str, server: &Postgres, arguments: &[&str]) -> Finished {
    Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args(["dump", "copy", "--from", from, "--to", to, "--yes", "--bin-dir"])
        .arg(server.bin_dir())
        .args(arguments)
        .run()
        .await
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn a_copy_is_the_same(#[case] major: Major) {
    let production = shop(major).await;
    let staging = Postgres::start(major).await;
    copy(&production.dsn("shop"), &staging.dsn("shop"), &staging, &[])
        .await
        .expect_status(0);
    assert_same(
        &everything(&production, "shop").await,
        &everything(&staging, "shop").await,
        "copy",
    );
    let finished = copy(&production.dsn("shop"), &staging.dsn("shop"), &staging, &[])
        .await
        .expect_status(3);
    assert!(
        finished.stderr.contains("exists already") && finished.stderr.contains("--clean"),
        "{}",
        finished.stderr
    );
    copy(
        &production.dsn("shop"),
        &staging.dsn("shop"),
        &staging,
        &["--clean"],
    )
    .await
    .expect_status(0);
    assert_same(
        &everything(&production, "shop").await,
        &everything(&staging, "shop").await,
        "copy",
    );
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn masked_columns_are_seen_by_nothing_unmasked(#[case] major: Major) {
    let production = shop(major).await;
    // An audit trigger would keep what a mask takes away.
    production
        .sql(
            "shop",
            "CREATE TABLE shop.audit (old_name text);
             CREATE FUNCTION shop.audit() RETURNS trigger LANGUAGE plpgsql AS
               'BEGIN INSERT INTO shop.audit VALUES (OLD.name); RETURN NEW; END';
             CREATE TRIGGER audit AFTER UPDATE ON shop.customers FOR EACH ROW EXECUTE FUNCTION shop.audit();
             CREATE INDEX ON shop.customers (name);
             CREATE MATERIALIZED VIEW shop.names AS SELECT name FROM shop.customers",
        )
        .await;
    let before = contents::digests(&production, "shop").await;
    let masks = [
        "--mask",
        "shop.customers.name='Customer no. ' || id",
        "--mask",
        "shop.customers.address=md5(address) || '@example.org'",
        "--mask",
        "shop.customers.profile=NULL",
        "--mask",
        "shop.events.body='{}'::jsonb",
    ];
    copy(
        &production.dsn("shop"),
        &production.dsn("masked"),
        &production,
        &masks,
    )
    .await
    .expect_status(0);
    let question = "SELECT concat_ws(' ', count(*), count(*) FILTER (WHERE name = 'Customer no. ' || id), \
                    count(*) FILTER (WHERE address ~ '^[0-9a-f]{32}@example.org$'), count(profile), sum(name_length)) FROM shop.customers";
    let length: usize = (1..=1000).map(|id| format!("Customer no. {id}").len()).sum();
    assert_eq!(
        production.query_text("masked", question).await,
        format!("1000 1000 1000 0 {length}")
    );
    assert_eq!(
        production
            .query_text("masked", "SELECT count(*) FROM shop.audit")
            .await,
        "0"
    );
    assert_eq!(
        production
            .query_text(
                "masked",
                "SELECT count(*) FROM shop.names WHERE name ~ '^Customer no. '"
            )
            .await,
        "1000"
    );
    assert_eq!(
        production
            .query_text("masked", "SELECT count(*) FROM shop.events WHERE body <> '{}'")
            .await,
        "0"
    );
    let after = contents::digests(&production, "masked").await;
    assert_eq!(before.get("shop.orders"), after.get("shop.orders"));
    assert_eq!(
        contents::digests(&production, "shop").await,
        before,
        "the source was changed"
    );
    // No page of a masked table holds an old value: they were rewritten.
    let dead = "SELECT pg_stat_get_dead_tuples('shop.customers'::regclass)";
    assert_eq!(production.query_text("masked", dead).await, "0");
}

#[tokio::test]
async fn a_mask_that_fails_or_names_nothing_leaves_no_copy() {
    let production = shop(Major::V15).await;
    let databases = "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database";
    let before = production.query_text("postgres", databases).await;
    for (mask, status, words) in [
        ("shop.customers.nmae=NULL", 2, "names no column"),
        ("shop.customers.name_length=1", 2, "generated column"),
        ("shop.customers=1", 2, "names no column"),
        ("shop.customers.name=NULL", 1, "violates not-null constraint"),
        ("shop.orders.id=1", 1, "could not create unique index"),
        ("shop.orders.customer=-1", 1, "violates foreign key constraint"),
        ("shop.customers.name=1); DROP TABLE x; --", 2, "is no mask"),
    ] {
        let finished = copy(
            &production.dsn("shop"),
            &production.dsn("masked"),
            &production,
            &["--mask", mask],
        )
        .await
        .expect_status(status);
        assert!(finished.stderr.contains(words), "{mask}: {}", finished.stderr);
        assert!(finished.stderr.contains("hint:"), "{mask}: {}", finished.stderr);
        assert_eq!(
            production.query_text("postgres", databases).await,
            before,
            "{mask}"
        );
    }
}

#[tokio::test]
async fn a_database_is_not_copied_onto_itself() {
    let production = shop(Major::V15).await;
    let finished = copy(
        &production.dsn("shop"),
        &production.dsn("shop"),
        &production,
        &["--clean"],
    )
    .await
    .expect_status(3);
    assert!(
        finished.stderr.contains("the same database"),
        "{}",
        finished.stderr
    );
}

#[tokio::test]
async fn a_table_without_anything_built_on_it_is_masked_too() {
    let production = Postgres::start(Major::V15).await;
    production.createdb("bare").await;
    production
        .sql(
            "bare",
            "CREATE TABLE people AS SELECT n AS id, 'secret ' || n AS name FROM generate_series(1, 100) n",
        )
        .await;
    let masks = ["--mask", "people.name='masked'"];
    copy(
        &production.dsn("bare"),
        &production.dsn("masked"),
        &production,
        &masks,
    )
    .await
    .expect_status(0);
    let unmasked = "SELECT count(*) FROM people WHERE name <> 'masked'";
    assert_eq!(production.query_text("masked", unmasked).await, "0");
    assert_eq!(
        production
            .query_text("masked", "SELECT count(*) FROM people")
            .await,
        "100"
    );
}
