//! One error of each kind, as a person and as a program reads it.

use std::time::Duration;

use pgmahout_testkit::postgres::Major;
use pgmahout_testkit::proc::{Finished, Pgmahout};

fn pgmahout(arguments: &[&str]) -> Pgmahout {
    Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout")).args(arguments)
}

fn shown(finished: &Finished) -> String {
    format!(
        "status: {}\n--- stdout\n{}--- stderr\n{}",
        finished
            .status
            .map_or_else(|| "none".to_owned(), |status| status.to_string()),
        finished.stdout,
        finished.stderr
    )
}

/// What differs from run to run, replaced.
fn filtered(assertion: impl FnOnce()) {
    insta::with_settings!({filters => vec![
        (r"/tmp/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*", "[PATH]"),
        (r"port \d{4,5}", "port [PORT]"),
    ]}, { assertion() });
}

#[tokio::test]
async fn failed_a_server_that_is_not_there() {
    let finished = pgmahout(&[
        "role",
        "create-monitor",
        "-h",
        "127.0.0.1",
        "-p",
        "1",
        "-U",
        "postgres",
        "-d",
        "postgres",
    ])
    .run()
    .await;
    filtered(|| insta::assert_snapshot!(shown(&finished)));
}

#[tokio::test]
async fn failed_the_same_as_json() {
    let finished = pgmahout(&[
        "role",
        "create-monitor",
        "--json",
        "-h",
        "127.0.0.1",
        "-p",
        "1",
        "-U",
        "postgres",
        "-d",
        "postgres",
    ])
    .run()
    .await;
    let answer: serde_json::Value = serde_json::from_str(&finished.stderr).expect("JSON on stderr");
    assert_eq!(answer["error"]["exit_status"], 1);
    assert!(answer["error"]["hint"].is_string());
    assert!(finished.stdout.is_empty());
}

#[tokio::test]
async fn usage_an_option_that_does_not_exist() {
    let finished = pgmahout(&["health", "--onyl", "locks.*"]).run().await;
    filtered(|| insta::assert_snapshot!(shown(&finished)));
}

#[tokio::test]
async fn usage_a_threshold_that_does_not_exist() {
    let finished = pgmahout(&["health", "-h", "/nowhere", "--set", "connection.used=70%,85%"])
        .run()
        .await;
    filtered(|| insta::assert_snapshot!(shown(&finished)));
}

#[tokio::test]
async fn usage_a_misspelt_key_in_the_configuration() {
    let directory = tempfile::tempdir_in("/tmp").expect("a directory");
    let file = directory.path().join("pgmahout.yml");
    std::fs::write(&file, "scope: main\ndump:\n  directroy: /backup\n").expect("the file");
    let finished = pgmahout(&["config", "check", "--config"]).arg(&file).run().await;
    filtered(|| insta::assert_snapshot!(shown(&finished)));
}

#[tokio::test]
async fn refused_a_file_that_exists() {
    let directory = tempfile::tempdir_in("/tmp").expect("a directory");
    let file = directory.path().join("report.md");
    std::fs::write(&file, "mine").expect("the file");
    let finished = pgmahout(&["report", "health", "-h", "/nowhere", "-o"])
        .arg(&file)
        .run()
        .await;
    filtered(|| insta::assert_snapshot!(shown(&finished)));
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "mine");
}

#[tokio::test]
async fn interrupted_a_demo() {
    let running = pgmahout(&["demo", "--bin-dir"])
        .arg(Major::V15.bin_dir())
        .timeout(Duration::from_mins(1))
        .spawn();
    tokio::time::sleep(Duration::from_millis(700)).await;
    running.interrupt();
    let finished = running.wait().await;
    assert_eq!(
        finished.status,
        Some(130),
        "{}{}",
        finished.stdout,
        finished.stderr
    );
    filtered(|| insta::assert_snapshot!(finished.stderr));
}
