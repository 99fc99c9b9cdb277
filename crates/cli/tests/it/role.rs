//! The monitoring role: what it gets, what it never gets, and that its password stays a secret.

use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::Pgmahout;
use rstest::rstest;

fn pgmahout(server: &Postgres, arguments: &[&str]) -> Pgmahout {
    Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args(arguments)
        .args(["--dsn", &server.dsn("postgres")])
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn the_monitoring_role_sees_statistics_and_no_tables(#[case] major: Major) {
    let server = Postgres::builder(major)
        .password("super")
        .setting("log_statement", "all")
        .start()
        .await;
    server.createdb("shop").await;
    server.sql("shop", "CREATE TABLE secrets (a text)").await;
    let directory = server.new_directory("monitor");
    let file = directory.join("password");

    let refused = pgmahout(&server, &["role", "create-monitor"])
        .run()
        .await
        .expect_status(3);
    assert!(refused.stderr.contains("--yes"), "{}", refused.stderr);
    let dry = pgmahout(&server, &["role", "create-monitor", "--dry-run"])
        .run()
        .await
        .expect_status(0);
    assert!(dry.stderr.contains("GRANT pg_monitor"), "{}", dry.stderr);
    let count = "SELECT count(*) FROM pg_roles WHERE rolname = 'pgmahout_monitor'";
    assert_eq!(
        server.query_text("postgres", count).await,
        "0",
        "a dry run made the role"
    );

    let made = pgmahout(&server, &["role", "create-monitor", "--yes"])
        .arg(format!("--generate-password={}", file.display()))
        .run()
        .await
        .expect_status(0);
    let password = std::fs::read_to_string(&file)
        .expect("the password file")
        .trim()
        .to_owned();
    assert!(password.len() >= 32);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("it exists").permissions());
    assert_eq!(mode & 0o777, 0o600);
    for place in [&made.stdout, &made.stderr, &server.log()] {
        assert!(!place.contains(&password), "the password leaked");
    }
    let powers =
        "SELECT rolsuper::text || rolcreaterole || rolreplication || pg_has_role(oid, 'pg_monitor', 'USAGE')
                  FROM pg_roles WHERE rolname = 'pgmahout_monitor'";
    assert_eq!(server.query_text("postgres", powers).await, "falsefalsefalsetrue");

    // It logs in with the password, and reads nobody's rows.
    let as_monitor = Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args([
            "health",
            "--json",
            "--dsn",
            &server.dsn_as("pgmahout_monitor", Some(&password), "shop"),
        ])
        .run()
        .await;
    assert!(
        as_monitor.stdout.contains("\"connections.used\""),
        "{}{}",
        as_monitor.stdout,
        as_monitor.stderr
    );
    let denied = server
        .query_text(
            "shop",
            "SELECT has_table_privilege('pgmahout_monitor', 'secrets', 'SELECT')::text",
        )
        .await;
    assert_eq!(denied, "false");

    // Once more: up to date, not an error.
    let again = pgmahout(&server, &["role", "create-monitor", "--yes"])
        .run()
        .await
        .expect_status(0);
    assert!(again.stdout.contains("is up to date"), "{}", again.stdout);
}

#[tokio::test]
async fn a_role_that_could_do_more_is_not_taken_for_monitoring() {
    let server = Postgres::start(Major::V15).await;
    server.sql("postgres", "CREATE ROLE boss LOGIN SUPERUSER").await;
    let refused = pgmahout(&server, &["role", "create-monitor", "boss", "--yes"])
        .run()
        .await
        .expect_status(3);
    assert!(refused.stderr.contains("is a superuser"), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("hint: choose another name"),
        "{}",
        refused.stderr
    );
    server.sql("postgres", "CREATE ROLE weak LOGIN").await;
    let refused = Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args([
            "role",
            "create-monitor",
            "--yes",
            "--dsn",
            &server.dsn_as("weak", None, "postgres"),
        ])
        .run()
        .await
        .expect_status(1);
    assert!(refused.stderr.contains("--print"), "{}", refused.stderr);
}

#[tokio::test]
async fn the_printed_script_runs_in_psql() {
    let server = Postgres::start(Major::V18).await;
    let script = pgmahout(&server, &["role", "create-monitor", "watcher", "--print"])
        .run()
        .await
        .expect_status(0);
    server.psql("postgres", &script.stdout);
    let count = "SELECT count(*) FROM pg_roles WHERE rolname = 'watcher' AND rolcanlogin";
    assert_eq!(server.query_text("postgres", count).await, "1");
}
