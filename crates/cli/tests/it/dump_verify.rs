//! `dump verify`: the restore test, its record, and that it leaves nothing behind.

use std::path::Path;

use pgmahout_backup::dump::manifest::DumpManifest;
use pgmahout_testkit::postgres::Major;
use rstest::rstest;

use crate::dump_roundtrip::{dump, output, pgmahout, shop};

fn manifest(directory: &Path) -> DumpManifest {
    let bytes = std::fs::read(directory.join("dump.manifest.json")).expect("a manifest");
    DumpManifest::from_slice(&bytes).expect("it can be read")
}

#[rstest]
#[case(Major::V15, "plain")]
#[case(Major::V15, "directory")]
#[case(Major::V18, "custom")]
#[tokio::test]
async fn a_dump_that_restores_is_recorded_as_such(#[case] major: Major, #[case] format: &str) {
    let server = shop(major).await;
    let directory = server.new_directory("dumps");
    let parent = server.new_directory("private");
    let parent_text = parent.display().to_string();
    server.sql("postgres", "CREATE ROLE alice").await;
    server.sql("shop", "ALTER TABLE shop.orders OWNER TO alice").await;
    dump(
        &server,
        &directory,
        &["create", "shop", "dump", "--format", format, "--owner", "--acl"],
    )
    .run()
    .await
    .expect_status(0);
    // The server that was dumped is not needed.
    let finished = dump(
        &server,
        &directory,
        &[
            "verify",
            "dump",
            "--temp-dir",
            &parent_text,
            "--assert",
            "SELECT count(*) = 5000 FROM shop.orders",
        ],
    )
    .env("PGPORT", "1")
    .run()
    .await
    .expect_status(0);
    assert!(
        finished
            .stdout
            .contains("dump restores: 9 tables, 11503 rows, 1 assertions"),
        "{}",
        finished.stdout
    );
    let tests = manifest(&directory).verification.restores;
    assert_eq!(tests.len(), 1);
    assert!(
        tests[0].passed && tests[0].tables_compared == 9 && tests[0].assertions == 1,
        "{tests:?}"
    );
    assert!(tests[0].seconds > 0.0 && !tests[0].server_version.is_empty());
    assert_eq!(
        std::fs::read_dir(&parent).expect("readable").count(),
        0,
        "the private server was left behind"
    );
}

#[tokio::test]
async fn an_assertion_that_does_not_hold_fails_the_test_and_is_recorded() {
    let server = shop(Major::V15).await;
    let directory = server.new_directory("dumps");
    dump(&server, &directory, &["create", "shop", "dump"])
        .run()
        .await
        .expect_status(0);
    let configuration = directory.join("pgmahout.yml");
    std::fs::write(
        &configuration,
        "dump:\n  assertions:\n    - name: orders are recent\n      sql: SELECT max(placed) > '2099-01-01' FROM shop.orders\n    - name: of another database\n      sql: SELECT false\n      database: other\n",
    )
    .expect("written");
    for (sql, said) in [
        ("SELECT NULL::bool", "it returned NULL"),
        ("SELECT 1", "it returned 1"),
        ("SELECT x", "does not exist"),
    ] {
        let finished = dump(&server, &directory, &["verify", "dump", "--assert", sql])
            .run()
            .await
            .expect_status(1);
        assert!(finished.stderr.contains(said), "{}", finished.stderr);
        assert!(
            finished.stderr.contains("orders are recent: it is false"),
            "{}",
            finished.stderr
        );
        assert!(
            !finished.stderr.contains("of another database"),
            "{}",
            finished.stderr
        );
    }
    let tests = manifest(&directory).verification.restores;
    assert_eq!(tests.len(), 3);
    assert!(tests.iter().all(|test| {
        !test.passed
            && test.restored
            && test
                .detail
                .as_deref()
                .is_some_and(|text| text.contains("orders are recent"))
    }));
    let listed = pgmahout(&server, &directory, &["dump", "list", "--json"])
        .run()
        .await
        .expect_status(0);
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).expect("JSON");
    assert_eq!(
        listed["dumps"][0]["trust"], "read-back",
        "what was expected is missing, not the dump: {listed}"
    );
}

#[tokio::test]
async fn expire_keeps_what_just_failed_its_test() {
    let server = shop(Major::V15).await;
    let directory = server.new_directory("dumps");
    for name in ["p1", "p2", "p3"] {
        dump(&server, &directory, &["create", "shop", name])
            .run()
            .await
            .expect_status(0);
    }
    for name in ["p2", "p3"] {
        dump(&server, &directory, &["verify", name, "--assert", "select false"])
            .run()
            .await
            .expect_status(1);
    }
    for policy in [
        &["--keep-within", "30d"][..],
        &["--keep-daily", "7", "--keep-last", "5", "--remove-recent"],
    ] {
        pgmahout(&server, &directory, &["dump", "expire", ".", "--yes"])
            .args(policy)
            .run()
            .await
            .expect_status(0);
        for name in ["p1", "p2", "p3"] {
            assert!(directory.join(name).exists(), "{name} is gone with {policy:?}");
        }
    }
}

#[tokio::test]
async fn a_dump_with_a_user_mapping_restores() {
    let server = shop(Major::V15).await;
    let directory = server.new_directory("dumps");
    server
        .sql("postgres", "CREATE ROLE app_owner; CREATE ROLE \"Odd One\"")
        .await;
    server
        .sql(
            "shop",
            "CREATE EXTENSION postgres_fdw;
             CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw;
             CREATE USER MAPPING FOR app_owner SERVER elsewhere OPTIONS (user 'x');
             CREATE USER MAPPING FOR \"Odd One\" SERVER elsewhere",
        )
        .await;
    dump(&server, &directory, &["create", "shop", "dump"])
        .run()
        .await
        .expect_status(0);
    dump(&server, &directory, &["verify", "dump"])
        .run()
        .await
        .expect_status(0);
}

#[tokio::test]
async fn a_damaged_dump_is_recorded_as_failed() {
    let server = shop(Major::V15).await;
    let directory = server.new_directory("dumps");
    dump(&server, &directory, &["create", "shop", "dump"])
        .run()
        .await
        .expect_status(0);
    let mut bytes = std::fs::read(directory.join("dump")).expect("there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(directory.join("dump"), bytes).expect("written");
    let finished = dump(&server, &directory, &["verify", "dump"])
        .run()
        .await
        .expect_status(1);
    assert!(finished.stderr.contains("dump is damaged"), "{}", finished.stderr);
    let tests = manifest(&directory).verification.restores;
    assert!(tests.len() == 1 && !tests[0].passed, "{tests:?}");
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn a_given_server_gets_a_temporary_database_and_loses_it_again(#[case] major: Major) {
    let server = shop(major).await;
    let directory = server.new_directory("dumps");
    std::fs::write(directory.join("dump"), output(&server, "pg_dump", &["-Fc"], None)).expect("written");
    let databases = "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database";
    let before = server.query_text("postgres", databases).await;
    let dsn = server.dsn("postgres");
    let finished = dump(&server, &directory, &["verify", "dump", "--server", &dsn])
        .run()
        .await
        .expect_status(0);
    assert!(finished.stderr.contains("no manifest"), "{}", finished.stderr);
    dump(
        &server,
        &directory,
        &["verify", "dump", "--server", &dsn, "--assert", "SELECT false"],
    )
    .run()
    .await
    .expect_status(1);
    assert_eq!(server.query_text("postgres", databases).await, before);
}
