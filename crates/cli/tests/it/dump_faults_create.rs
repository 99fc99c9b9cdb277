//! What goes wrong while a dump is made: a clear error, a status other than 0, no file, no temporary, no
//! session on the server.

use std::path::Path;
use std::time::Duration;

use pgmahout_testkit::account::Account;
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::{Pgmahout, Running};
use pgmahout_testkit::processes::{self, Signal};
use pgmahout_testkit::tmpfs::Tmpfs;
use rstest::rstest;

const PATIENCE: Duration = Duration::from_secs(30);

/// Long enough that a fault hits it in the middle: 60 MB that compress badly.
const LARGE: &str = "
    CREATE TABLE large AS SELECT i AS id, md5(i::text) || md5((i * 7)::text) || md5((i * 11)::text)
        || md5((i * 13)::text) AS text FROM generate_series(1, 400000) i";

async fn server_with(major: Major, statements: &str) -> Postgres {
    let server = Postgres::start(major).await;
    server.createdb("shop").await;
    server.sql("shop", statements).await;
    server
}

fn create(server: &Postgres, directory: &Path, arguments: &[&str]) -> Pgmahout {
    Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args(["dump", "create", "shop", "out.dump"])
        .args(arguments)
        .arg("--bin-dir")
        .arg(server.bin_dir())
        .env("PGHOST", server.host())
        .env("PGPORT", server.port().to_string())
        .env("PGUSER", "postgres")
        .current_dir(directory)
}

/// Everything in a directory, hidden files and directories too.
fn everything(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("the directory can be read");
    entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

fn assert_nothing_left(directory: &Path) {
    assert_eq!(everything(directory), Vec::<String>::new());
}

async fn assert_no_session(server: &Postgres) {
    let query = "SELECT count(*)::text FROM pg_stat_activity \
                 WHERE application_name ~ '^(pgmahout|pg_dump)' \
                   AND application_name <> current_setting('application_name')";
    poll::until(PATIENCE, "the dump's sessions are gone", async || {
        server.query_text("postgres", query).await == "0"
    })
    .await;
}

/// Waits until the dump has written something, and returns pg_dump's process.
async fn midway(running: &Running, directory: &Path) -> u32 {
    poll::value(PATIENCE, "the dump is under way", async || {
        let mut written = 0;
        let mut directories = vec![directory.to_path_buf()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).ok()?.flatten() {
                let metadata = entry.metadata().ok()?;
                written += if metadata.is_file() { metadata.len() } else { 0 };
                if metadata.is_dir() {
                    directories.push(entry.path());
                }
            }
        }
        let child = processes::describe_children(running.pid())
            .into_iter()
            .find(|process| process.title.contains("pg_dump") && !process.title.contains("pg_dumpall"))?;
        (written > 1_000_000).then_some(child.pid)
    })
    .await
}

const SLOW: [&str; 4] = ["--compress", "gzip:9", "--compress-threads", "1"];

#[rstest]
#[tokio::test]
async fn a_killed_pg_dump_leaves_nothing(
    #[values(Major::V15, Major::V18)] major: Major,
    #[values("plain", "custom", "directory")] format: &str,
) {
    let server = server_with(major, LARGE).await;
    let directory = tempfile::tempdir().expect("a directory");
    let running = create(&server, directory.path(), &SLOW)
        .args(["--format", format])
        .spawn();
    let pg_dump = midway(&running, directory.path()).await;
    processes::signal(pg_dump, Signal::KILL);
    let finished = running.wait().await.expect_status(1);
    assert!(
        finished
            .stderr
            .contains("error: pg_dump failed (killed by signal 9)"),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("hint: it was killed from outside"),
        "{}",
        finished.stderr
    );
    assert_eq!(finished.stdout, "");
    assert_nothing_left(directory.path());
    assert_no_session(&server).await;
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn a_server_that_dies_midway_leaves_nothing(#[case] major: Major) {
    let server = server_with(major, LARGE).await;
    let directory = tempfile::tempdir().expect("a directory");
    let running = create(&server, directory.path(), &SLOW).spawn();
    midway(&running, directory.path()).await;
    server.kill().await;
    let finished = running.wait().await.expect_status(1);
    assert!(
        finished.stderr.contains("error: pg_dump failed (status 1)"),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("hint: look at the server's log"),
        "{}",
        finished.stderr
    );
    assert_nothing_left(directory.path());
}

#[rstest]
#[tokio::test]
async fn a_full_disk_is_said_and_leaves_nothing(#[values("plain", "custom", "directory")] format: &str) {
    let server = server_with(Major::V15, LARGE).await;
    let disk = match Tmpfs::new(12 * 1024 * 1024) {
        Ok(disk) => disk,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let finished = create(&server, disk.path(), &["--skip-space-check", "--format", format])
        .run()
        .await
        .expect_status(1);
    assert!(
        finished.stderr.to_lowercase().contains("no space left"),
        "{}",
        finished.stderr
    );
    assert!(!finished.stderr.contains("Broken pipe"), "{}", finished.stderr);
    assert!(
        finished
            .stderr
            .contains("hint: nothing was left there; free some space"),
        "{}",
        finished.stderr
    );
    assert_nothing_left(disk.path());
    assert_no_session(&server).await;
    // And before it comes to that, the estimate stops it.
    let small = Tmpfs::new(1024 * 1024).expect("a second one");
    let finished = create(&server, small.path(), &["--format", format])
        .run()
        .await
        .expect_status(1);
    assert!(finished.stderr.contains("needs about"), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("--skip-space-check"),
        "{}",
        finished.stderr
    );
    assert_nothing_left(small.path());
    assert_no_session(&server).await;
}

#[tokio::test]
async fn an_existing_file_is_kept_unless_forced() {
    let server = server_with(Major::V18, "CREATE TABLE t AS SELECT 1 AS a").await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("out.dump");
    std::fs::write(&file, "precious").expect("written");
    let refused = create(&server, directory.path(), &[])
        .run()
        .await
        .expect_status(3);
    assert!(
        refused.stderr.contains("out.dump exists already"),
        "{}",
        refused.stderr
    );
    assert!(
        refused
            .stderr
            .contains("hint: choose another name, or overwrite it with --force"),
        "{}",
        refused.stderr
    );
    assert_eq!(std::fs::read(&file).expect("there"), b"precious");
    assert_eq!(everything(directory.path()), ["out.dump"]);
    create(&server, directory.path(), &["--force"])
        .run()
        .await
        .expect_status(0);
    assert_ne!(std::fs::read(&file).expect("there"), b"precious");
    assert!(directory.path().join("out.dump.manifest.json").exists());
}

#[tokio::test]
async fn an_unwritable_directory_is_said_before_anything_is_dumped() {
    let server = server_with(Major::V15, "CREATE TABLE t AS SELECT 1 AS a").await;
    let closed = server.new_directory("closed");
    let programs = server.new_directory("programs");
    let binary = programs.join("pgmahout");
    std::fs::copy(env!("CARGO_BIN_EXE_pgmahout"), &binary).expect("the binary is copied");
    let mode = std::os::unix::fs::PermissionsExt::from_mode;
    std::fs::set_permissions(&binary, mode(0o755)).expect("mode");
    std::fs::set_permissions(&closed, mode(0o555)).expect("mode");
    let mut command = Account::for_servers().command(&binary);
    command
        .args(["dump", "create", "shop"])
        .arg(closed.join("out.dump"))
        .arg("--bin-dir")
        .arg(server.bin_dir())
        .env("PGHOST", server.host())
        .env("PGPORT", server.port().to_string())
        .env("PGUSER", "postgres")
        .current_dir(server.root_dir());
    let output = command.output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("permission denied"), "{stderr}");
    assert!(stderr.contains("hint: see who may write there"), "{stderr}");
    assert_nothing_left(&closed);
    std::fs::set_permissions(&closed, mode(0o755)).expect("mode");
}

#[tokio::test]
async fn a_missing_program_is_named_with_its_package() {
    let server = server_with(Major::V15, "CREATE TABLE t AS SELECT 1 AS a").await;
    let directory = tempfile::tempdir().expect("a directory");
    let empty = tempfile::tempdir().expect("a directory");
    let finished = Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args([
            "dump",
            "create",
            "shop",
            "out.dump",
            "--dsn",
            &server.dsn("shop"),
            "--bin-dir",
        ])
        .arg(empty.path())
        .current_dir(directory.path())
        .run()
        .await
        .expect_status(1);
    for program in ["pg_dump", "pg_dumpall", "pg_restore"] {
        assert!(
            finished
                .stderr
                .contains(&format!("no {program} of version 15 or newer found")),
            "{}",
            finished.stderr
        );
    }
    assert!(
        finished.stderr.contains("postgresql-client-15"),
        "{}",
        finished.stderr
    );
    assert_nothing_left(directory.path());
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_one_are_told_apart_and_never_shown() {
    let server = Postgres::builder(Major::V15).password("r1ghtword").start().await;
    let directory = tempfile::tempdir().expect("a directory");
    let run = |password: Option<&'static str>| {
        let mut command = Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .args([
                "dump",
                "create",
                "postgres",
                "out.dump",
                "--dsn",
                &server.dsn_as("postgres", None, "postgres"),
            ])
            .arg("--bin-dir")
            .arg(server.bin_dir())
            .current_dir(directory.path());
        if let Some(password) = password {
            command = command.env("PGPASSWORD", password);
        }
        command.run()
    };
    let wrong = run(Some("wr0ngword")).await.expect_status(1);
    assert!(
        wrong.stderr.contains("password authentication failed"),
        "{}",
        wrong.stderr
    );
    assert!(wrong.stderr.contains("hint:"), "{}", wrong.stderr);
    assert!(!wrong.stderr.contains("wr0ngword"), "{}", wrong.stderr);
    let missing = run(None).await.expect_status(1);
    assert!(missing.stderr.contains("password"), "{}", missing.stderr);
    assert!(missing.stderr.contains("hint:"), "{}", missing.stderr);
    assert_nothing_left(directory.path());
    let right = run(Some("r1ghtword")).await.expect_status(0);
    assert!(!format!("{}{}", right.stdout, right.stderr).contains("r1ghtword"));
}

#[tokio::test]
async fn a_missing_database_is_answered_with_the_nearest_names() {
    let server = server_with(Major::V18, "CREATE TABLE t AS SELECT 1 AS a").await;
    let directory = tempfile::tempdir().expect("a directory");
    let finished = Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args([
            "dump",
            "create",
            "shpo",
            "--dsn",
            &server.dsn("postgres"),
            "--bin-dir",
        ])
        .arg(server.bin_dir())
        .current_dir(directory.path())
        .run()
        .await
        .expect_status(1);
    assert!(
        finished
            .stderr
            .contains("database \"shpo\" does not exist on 127.0.0.1:"),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("hint: did you mean \"shop\"?"),
        "{}",
        finished.stderr
    );
    assert_nothing_left(directory.path());
}

#[tokio::test]
async fn all_problems_are_listed_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let empty = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("out.dump"), "precious").expect("written");
    let finished = Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args(["dump", "create", "shop", "out.dump", "--json", "-h"])
        .arg(empty.path())
        .arg("--bin-dir")
        .arg(empty.path())
        .current_dir(directory.path())
        .run()
        .await
        .expect_status(1);
    let error: serde_json::Value = serde_json::from_str(&finished.stderr).expect("one JSON object");
    let message = error["error"]["message"].as_str().expect("a message");
    for part in [
        "out.dump exists already",
        "cannot connect",
        "no pg_dump of any version found",
    ] {
        assert!(message.contains(part), "{part} is missing in {message}");
    }
    assert_eq!(
        std::fs::read(directory.path().join("out.dump")).expect("there"),
        b"precious"
    );
}

#[rstest]
#[tokio::test]
async fn an_interrupted_dump_ends_with_130_and_leaves_nothing(
    #[values(Signal::INT, Signal::TERM)] signal: Signal,
    #[values("plain", "directory")] format: &str,
) {
    let server = server_with(Major::V15, LARGE).await;
    let directory = tempfile::tempdir().expect("a directory");
    let running = create(&server, directory.path(), &SLOW)
        .args(["--format", format])
        .spawn();
    midway(&running, directory.path()).await;
    running.signal(signal);
    let finished = running.wait().await.expect_status(130);
    assert!(
        finished
            .stderr
            .contains("the dump was interrupted; nothing was left behind"),
        "{}",
        finished.stderr
    );
    assert_nothing_left(directory.path());
    assert_no_session(&server).await;
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn a_dump_that_waits_for_a_lock_can_be_interrupted_and_stops_waiting(#[case] major: Major) {
    let server = server_with(major, "CREATE TABLE t AS SELECT 1 AS a").await;
    let directory = tempfile::tempdir().expect("a directory");
    let locker = server.client("shop").await;
    locker
        .batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("locked");
    let running = create(&server, directory.path(), &[]).spawn();
    let waits = "SELECT count(*)::text FROM pg_stat_activity \
                 WHERE application_name ~ '^pgmahout dump' AND wait_event_type = 'Lock'";
    poll::until(PATIENCE, "pg_dump waits for the lock", async || {
        server.query_text("postgres", waits).await == "1"
    })
    .await;
    // pg_dump dies without a word; its session on the server would go on waiting for the lock.
    let pg_dump = processes::describe_children(running.pid())
        .into_iter()
        .find(|process| process.title.contains("pg_dump"))
        .expect("it runs");
    processes::signal(pg_dump.pid, Signal::KILL);
    running.wait().await.expect_status(1);
    assert_no_session(&server).await;
    let running = create(&server, directory.path(), &[]).spawn();
    poll::until(PATIENCE, "pg_dump waits for the lock", async || {
        server.query_text("postgres", waits).await == "1"
    })
    .await;
    running.interrupt();
    running.wait().await.expect_status(130);
    assert_no_session(&server).await;
    assert_nothing_left(directory.path());
    locker.batch_execute("ROLLBACK").await.expect("unlocked");
}

#[tokio::test]
async fn one_database_of_all_that_fails_does_not_take_the_others_with_it() {
    let server = server_with(Major::V15, "CREATE TABLE t AS SELECT 1 AS a").await;
    server.createdb("closed").await;
    server.sql("closed", "CREATE TABLE secret (a int)").await;
    server.sql("postgres", "CREATE ROLE clerk LOGIN").await;
    server.sql("shop", "GRANT SELECT ON t TO clerk").await;
    server
        .sql("postgres", "REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
        .await;
    let directory = tempfile::tempdir().expect("a directory");
    let finished = Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args([
            "dump",
            "create",
            "--all-databases",
            "--dsn",
            &server.dsn_as("clerk", None, "postgres"),
            "--bin-dir",
        ])
        .arg(server.bin_dir())
        .current_dir(directory.path())
        .run()
        .await
        .expect_status(1);
    assert!(
        finished.stderr.contains("1 of 3 databases could not be dumped"),
        "{}",
        finished.stderr
    );
    assert!(finished.stderr.contains("closed: "), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("roles without their passwords"),
        "{}",
        finished.stderr
    );
    let mut left = everything(directory.path());
    left.retain(|name| !name.ends_with(".manifest.json"));
    assert_eq!(left.len(), 2, "the dumps of postgres and shop: {left:?}");
    assert!(
        left.iter()
            .all(|name| !name.contains("bundle") && !name.contains("globals")),
        "{left:?}"
    );
}

#[tokio::test]
async fn options_that_cannot_be_meant_are_refused_before_anything_is_tried() {
    let directory = tempfile::tempdir().expect("a directory");
    for (arguments, part) in [
        (vec!["--jobs", "4"], "only the directory form"),
        (
            vec!["--set", "full,orders"],
            "\"orders\" is none of full, schema, data",
        ),
        (vec!["--compress", "brotli"], "unknown compression `brotli`"),
        (vec!["--passphrase", "hunter2"], "can be read by every user"),
        (
            vec!["--schema-only", "--exclude-table-data", "x"],
            "cannot leave out the rows",
        ),
        (
            vec!["--repo", "nowhere"],
            "there is no repository named \"nowhere\"",
        ),
        (vec!["--encrypt"], "there is no terminal to ask on"),
    ] {
        let finished = Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .args(["dump", "create", "shop"])
            .args(&arguments)
            .args(["-h", "/nonexistent"])
            .current_dir(directory.path())
            .run()
            .await;
        assert!(
            matches!(finished.status, Some(2 | 3)),
            "{arguments:?}: {}",
            finished.stderr
        );
        assert!(
            finished.stderr.contains(part),
            "{arguments:?}: {}",
            finished.stderr
        );
        assert!(
            finished.stderr.contains("hint:"),
            "{arguments:?}: {}",
            finished.stderr
        );
        assert!(!finished.stderr.contains("hunter2"), "{}", finished.stderr);
    }
    assert_nothing_left(directory.path());
}
