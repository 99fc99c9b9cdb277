//! `pgmahout health` on a server with many tables: `cargo xtask bench health`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "prints its figures")]

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::{measure, poll};

const DATABASE: &str = "postgres";
/// The sessions of the program that is measured.
const OURS: &str = "application_name LIKE 'pgmahout%' AND application_name <> 'pgmahout-testkit'";

fn main() {
    let mut tables = 20_000_u32;
    let mut rounds = 21_usize;
    let mut binary = None;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_else(|| usage(&word));
        match word.as_str() {
            "--tables" => tables = value.parse().unwrap_or_else(|_| usage(&word)),
            "--rounds" => rounds = value.parse().unwrap_or_else(|_| usage(&word)),
            "--binary" => binary = Some(PathBuf::from(value)),
            _ => usage(&word),
        }
    }
    let binary = binary.unwrap_or_else(|| usage("--binary"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    for major in Major::all() {
        runtime.block_on(measure_on(major, &binary, tables, rounds));
    }
}

async fn measure_on(major: Major, binary: &PathBuf, tables: u32, rounds: usize) {
    let server = Postgres::builder(major)
        .setting("shared_buffers", "256MB")
        .setting("max_wal_size", "4GB")
        .start()
        .await;
    println!("PostgreSQL {major}: making {tables} tables with two indexes each");
    server.psql(
        DATABASE,
        &format!(
            "DO $$ BEGIN FOR i IN 1..{tables} LOOP
                 EXECUTE format('CREATE TABLE t%s (id bigserial PRIMARY KEY, name text)', i);
                 EXECUTE format('CREATE INDEX ON t%s (name)', i);
                 IF i % 100 = 0 THEN COMMIT; END IF;
             END LOOP; END $$;
             DO $$ BEGIN FOR i IN 1..{tables} LOOP
                 EXECUTE format('INSERT INTO t%s (name) VALUES (''x'')', i);
                 IF i % 1000 = 0 THEN COMMIT; END IF;
             END LOOP; END $$;
             SELECT format('VACUUM ANALYZE pg_catalog.%I', relname) FROM pg_class
             WHERE relkind = 'r' AND relnamespace = 'pg_catalog'::regnamespace AND NOT relisshared \\gexec
             CHECKPOINT;"
        ),
    );
    let home = tempfile::tempdir().expect("the temporary directory is writable");
    let health = || {
        let mut command = Command::new(binary);
        command
            .args(["health", "--dsn", &server.dsn(DATABASE)])
            .env("HOME", home.path())
            .env("PGMAHOUT_STATE_DIR", home.path().join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let started = Instant::now();
        let status = command.status().expect("pgmahout starts");
        // Findings end it with 1; anything else is a failure of the run.
        assert!(
            matches!(status.code(), Some(0 | 1)),
            "pgmahout health ended with {status}"
        );
        started.elapsed()
    };
    for _ in 0..3 {
        health();
    }
    server.append_conf("log_min_duration_statement = 20");
    server.reload().await;
    let log_begin = server.log().len();
    let times: Vec<Duration> = (0..rounds).map(|_| health()).collect();

    let stop = Arc::new(AtomicBool::new(false));
    let watcher = tokio::spawn(watch(server.client(DATABASE).await, Arc::clone(&stop)));
    for _ in 0..5 {
        tokio::task::block_in_place(health);
        // The sessions of one run are not to be counted with those of the next.
        poll::until(
            Duration::from_secs(10),
            "the end of the run's sessions",
            async || {
                let text = format!("SELECT count(*) FROM pg_stat_activity WHERE {OURS}");
                server.query_text(DATABASE, &text).await == "0"
            },
        )
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    let connections = watcher.await.expect("the watcher does not panic");
    println!(
        "PostgreSQL {major}: pgmahout health with {tables} tables and {} indexes: median {} ms, fastest {} ms, \
         slowest {} ms of {rounds} warm runs; at most {connections} connections seen",
        2 * tables,
        measure::median(&times).as_millis(),
        times.iter().min().map_or(0, Duration::as_millis),
        times.iter().max().map_or(0, Duration::as_millis),
    );
    for (time, statement) in slowest(&server.log()[log_begin..]) {
        println!("    {time:7.0} ms {statement}");
    }
}

/// The slowest statements of the server's log, each once, with their time in milliseconds.
fn slowest(log: &str) -> Vec<(f64, String)> {
    let mut statements: Vec<(f64, String)> = Vec::new();
    for (_, rest) in log
        .match_indices("duration: ")
        .map(|(at, mark)| log.split_at(at + mark.len()))
    {
        let Some((time, text)) = rest.split_once(" ms") else {
            continue;
        };
        let Ok(time) = time.parse() else { continue };
        let words: Vec<&str> = text.split_whitespace().take(30).collect();
        let text = words.join(" ");
        match statements.iter_mut().find(|(_, known)| *known == text) {
            Some((most, _)) => *most = most.max(time),
            None => statements.push((time, text)),
        }
    }
    statements.sort_by(|left, right| right.0.total_cmp(&left.0));
    statements.truncate(8);
    statements
}

/// The most sessions of pgmahout seen at once.
async fn watch(client: tokio_postgres::Client, stop: Arc<AtomicBool>) -> i64 {
    let question = format!("SELECT count(*) FROM pg_stat_activity WHERE {OURS}");
    let mut most = 0;
    while !stop.load(Ordering::Relaxed) {
        let row = client
            .query_one(&question, &[])
            .await
            .expect("the server answers");
        most = most.max(row.get(0));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    most
}

fn usage(word: &str) -> ! {
    eprintln!("error: {word}: usage: --binary PATH [--tables N] [--rounds N]");
    std::process::exit(2)
}
