use std::process::Command;
use std::time::Duration;

use super::*;
use crate::poll;
use crate::processes;

#[tokio::test]
async fn a_server_of_each_version_starts_answers_and_leaves_nothing() {
    for major in Major::all() {
        let server = Postgres::builder(major).setting("work_mem", "5MB").start().await;
        let version = server.query_text("postgres", "SHOW server_version_num").await;
        assert_eq!(version.parse::<u32>().unwrap() / 10_000, major.number());
        assert_eq!(server.query_text("postgres", "SHOW work_mem").await, "5MB");
        assert_eq!(
            server
                .query_text("postgres", "SELECT 1, NULL, 'x' UNION ALL SELECT 2, 'y', NULL")
                .await,
            "1||x\n2|y|"
        );
        assert_eq!(server.psql("postgres", "SELECT 42;"), "42");
        let (root, pid) = (server.root_dir().to_owned(), server.pid());
        drop(server);
        assert!(!root.exists());
        assert!(!processes::is_running(pid));
    }
}

#[tokio::test]
async fn a_standby_streams_and_can_be_promoted() {
    for major in Major::all() {
        let primary = Postgres::builder(major).password("secret").start().await;
        let standby = primary.standby("second").start().await;
        primary
            .sql(
                "postgres",
                "CREATE TABLE t AS SELECT generate_series(1, 10) AS id",
            )
            .await;
        primary.wait_for_replay(&standby).await;
        assert_eq!(
            standby.query_text("postgres", "SELECT count(*) FROM t").await,
            "10"
        );
        let slots = primary
            .query_text("postgres", "SELECT slot_name, active FROM pg_replication_slots")
            .await;
        assert_eq!(slots, "second|t");
        primary.kill().await;
        standby.promote().await;
        standby.sql("postgres", "INSERT INTO t VALUES (11)").await;
    }
}

#[tokio::test]
async fn a_killed_server_recovers_and_a_stopped_one_starts_again() {
    let server = Postgres::start(Major::V15).await;
    server.sql("postgres", "CREATE TABLE t AS SELECT 1 AS id").await;
    let children = server.processes();
    assert!(
        children
            .iter()
            .any(|process| process.title.contains("checkpointer")),
        "{children:?}"
    );
    server.kill().await;
    assert!(children.iter().all(|process| !processes::is_running(process.pid)));
    assert!(!server.is_running());
    server.start_again().await;
    assert_eq!(server.query_text("postgres", "SELECT id FROM t").await, "1");
    server.append_conf("work_mem = '7MB'");
    server.reload().await;
    assert_eq!(server.query_text("postgres", "SHOW work_mem").await, "7MB");
    server.restart().await;
    server.stop(StopMode::Immediate).await;
    assert!(!server.is_running());
}

#[tokio::test]
async fn a_frozen_server_goes_on_when_told() {
    let server = Postgres::start(Major::V18).await;
    let client = server.client("postgres").await;
    server.sigstop();
    let answer = tokio::time::timeout(Duration::from_millis(200), client.simple_query("SELECT 1")).await;
    assert!(answer.is_err(), "a frozen server answered");
    server.sigcont();
    client.simple_query("SELECT 1").await.unwrap();
    server.sigstop();
    // Dropped while frozen: must still end.
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let problem = Postgres::builder(Major::V15)
        .setting("shared_buffers", "-5")
        .try_start()
        .await
        .unwrap_err();
    assert!(problem.contains("shared_buffers"), "{problem}");
}

#[tokio::test]
async fn archiving_and_extensions_are_set_up_when_asked_for() {
    let server = Postgres::builder(Major::V15)
        .archive_to("archive")
        .with_extension("pg_stat_statements")
        .initdb_arg("--wal-segsize=1")
        .start()
        .await;
    server.createdb("shop").await;
    server
        .query_text("shop", "SELECT count(*) FROM pg_stat_statements")
        .await;
    server.query_text("shop", "SELECT pg_switch_wal()").await;
    let archive = server.root_dir().join("archive");
    poll::until(Duration::from_secs(30), "an archived segment", async || {
        std::fs::read_dir(&archive)
            .unwrap()
            .flatten()
            .any(|entry| entry.metadata().unwrap().len() == 1 << 20)
    })
    .await;
}

#[tokio::test]
async fn a_password_is_asked_for() {
    let server = Postgres::builder(Major::V15).password("secret").start().await;
    let mut config = server.config("postgres");
    config.password("wrong");
    assert!(server.connect(&config).await.is_err());
    assert_eq!(
        server.dsn("shop"),
        format!("postgresql://postgres:secret@127.0.0.1:{}/shop", server.port())
    );
}

#[tokio::test]
async fn servers_share_a_system_identifier_unless_told_otherwise() {
    let identifier = "SELECT system_identifier FROM pg_control_system()";
    let first = Postgres::start(Major::V15)
        .await
        .query_text("postgres", identifier)
        .await;
    let second = Postgres::builder(Major::V15)
        .own_system_identifier()
        .start()
        .await;
    assert_ne!(second.query_text("postgres", identifier).await, first);
}

const MARK: &str = "PGMAHOUT_TESTKIT_VICTIM";

#[tokio::test]
#[ignore = "no test of its own: the process that `the_server_of_a_killed_test_ends_too` kills"]
async fn victim() {
    let report = std::env::var(MARK).unwrap();
    let server = Postgres::start(Major::V15).await;
    std::fs::write(
        report,
        format!("{} {}", server.pid(), server.root_dir().display()),
    )
    .unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn the_server_of_a_killed_test_ends_too() {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report");
    let mut test = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "postgres::tests::victim"])
        .env(MARK, &report)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let (pid, root) = poll::value(Duration::from_mins(1), "the victim's server", async || {
        let text = std::fs::read_to_string(&report).ok()?;
        let (pid, root) = text.split_once(' ')?;
        Some((pid.parse::<u32>().unwrap(), std::path::PathBuf::from(root)))
    })
    .await;
    assert!(processes::is_running(pid));
    test.kill().unwrap();
    test.wait().unwrap();
    poll::until(Duration::from_secs(30), "the end of the server", async || {
        !processes::is_running(pid) && !root.exists()
    })
    .await;
}
