//! Faults outside the database that health must see: a full disk, an expiring certificate, clients waiting
//! in PgBouncer, messages in the log, the user's own checks.

use std::time::Duration;

use pgmahout_testkit::certificates::{Authority, Validity};
use pgmahout_testkit::pgbouncer::PgBouncer;
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::Pgmahout;
use pgmahout_testkit::tmpfs::Tmpfs;
use serde_json::Value;

async fn health(arguments: &[&str]) -> Value {
    let state = tempfile::tempdir().expect("a directory");
    health_with(
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout")).env("PGMAHOUT_STATE_DIR", state.path()),
        arguments,
    )
    .await
}

async fn health_with(command: Pgmahout, arguments: &[&str]) -> Value {
    let finished = command.args(["health", "--json"]).args(arguments).run().await;
    serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", finished.stdout, finished.stderr))
}

/// The one result of this id.
fn result<'a>(answer: &'a Value, id: &str) -> &'a Value {
    let found: Vec<&Value> = answer["results"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|result| result["id"] == id)
        .collect();
    assert_eq!(found.len(), 1, "{id} in {answer}");
    found[0]
}

fn status<'a>(answer: &'a Value, id: &str) -> &'a str {
    result(answer, id)["status"].as_str().expect("a status")
}

fn text<'a>(answer: &'a Value, id: &str, field: &str) -> &'a str {
    result(answer, id)[field]
        .as_str()
        .unwrap_or_else(|| panic!("no {field} in {}", result(answer, id)))
}

#[tokio::test]
async fn a_full_tablespace_is_critical_until_there_is_room_again() {
    let disk = match Tmpfs::new(32 << 20) {
        Ok(disk) => disk,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let server = Postgres::start(Major::V15).await;
    let location = disk.path().join("space");
    std::fs::create_dir(&location).expect("a directory");
    server.account().own(&location);
    server
        .sql(
            "postgres",
            &format!("CREATE TABLESPACE small LOCATION '{}'", location.display()),
        )
        .await;
    let arguments = ["--dsn", &server.dsn("postgres"), "--only", "disk.used"];

    let filler = disk.fill(1 << 20);
    let answer = health(&arguments).await;
    assert_eq!(status(&answer, "disk.used"), "CRIT");
    assert!(
        text(&answer, "disk.used", "evidence").starts_with("tablespace small"),
        "{answer}"
    );
    assert!(
        text(&answer, "disk.used", "hint").contains("never delete files in pg_wal"),
        "{answer}"
    );
    assert!(
        result(&answer, "disk.used")["rows"]
            .to_string()
            .contains("pg_wal"),
        "{answer}"
    );

    std::fs::remove_file(filler).expect("the filler goes");
    // The machine's own disk may be full too; what was made full is not the worst any more.
    let answer = health(&arguments).await;
    assert!(
        !text(&answer, "disk.used", "evidence").starts_with("tablespace small"),
        "{answer}"
    );
    let generous = [arguments.as_slice(), &["--set", "disk.used=99.8%,99.9%"]].concat();
    assert_eq!(status(&health(&generous).await, "disk.used"), "OK");
}

#[tokio::test]
async fn an_expiring_certificate_is_seen_where_it_is_served() {
    let authority = Authority::new("test authority");
    let soon = authority.server(
        "localhost",
        &["localhost", "127.0.0.1"],
        Validity::ends_in(Duration::from_hours(72)),
    );
    let server = Postgres::builder(Major::V15)
        .tls(&soon.certificate, &soon.key)
        .start()
        .await;
    let arguments = ["--dsn", &server.dsn("postgres"), "--only", "tls"];
    let answer = health(&arguments).await;
    assert_eq!(status(&answer, "tls"), "CRIT");
    assert!(text(&answer, "tls", "evidence").contains("localhost"), "{answer}");
    assert!(text(&answer, "tls", "hint").contains("renew"), "{answer}");

    // A renewed file helps nobody until it is loaded.
    let fresh = authority.server(
        "localhost",
        &["localhost", "127.0.0.1"],
        Validity::ends_in(Duration::from_hours(24 * 365)),
    );
    let certificate = server.query_text("postgres", "SHOW ssl_cert_file").await;
    let key = server.query_text("postgres", "SHOW ssl_key_file").await;
    std::fs::write(server.data_dir().join(certificate), &fresh.certificate).expect("the certificate");
    std::fs::write(server.data_dir().join(key), &fresh.key).expect("the key");
    assert_eq!(
        status(&health(&arguments).await, "tls"),
        "CRIT",
        "the file was judged, not what is served"
    );
    server.reload().await;
    poll::until(
        Duration::from_secs(10),
        "the new certificate to be served",
        async || status(&health(&arguments).await, "tls") == "OK",
    )
    .await;
}

#[tokio::test]
async fn an_expired_certificate_and_no_tls_at_all_are_told_apart() {
    let authority = Authority::new("test authority");
    let old = authority.server(
        "localhost",
        &["localhost"],
        Validity::ended(Duration::from_hours(48)),
    );
    let server = Postgres::builder(Major::V15)
        .tls(&old.certificate, &old.key)
        .start()
        .await;
    let arguments = ["--dsn", &server.dsn("postgres"), "--only", "tls"];
    let answer = health(&arguments).await;
    assert_eq!(status(&answer, "tls"), "CRIT");
    assert!(text(&answer, "tls", "evidence").contains("expired"), "{answer}");
    server.sql("postgres", "ALTER SYSTEM SET ssl = off").await;
    server.reload().await;
    poll::until(Duration::from_secs(10), "TLS to be off", async || {
        let answer = health(&arguments).await;
        status(&answer, "tls") == "WARN" && text(&answer, "tls", "evidence").contains("ssl is off")
    })
    .await;
}

#[tokio::test]
async fn clients_that_wait_in_the_pooler_are_seen_and_gone_when_served() {
    let server = Postgres::start(Major::V15).await;
    let bouncer = PgBouncer::start(
        &server,
        &[
            ("pool_mode", "transaction"),
            ("default_pool_size", "1"),
            ("reserve_pool_size", "0"),
        ],
    )
    .await;
    let dsn = server.dsn("postgres");
    let pooler = bouncer.dsn("postgres");
    let arguments = [
        "--dsn",
        &dsn,
        "--pooler",
        &pooler,
        "--only",
        "pool.*",
        "--set",
        "pool.waiting=100ms,1h",
    ];
    let answer = health(&arguments).await;
    assert_eq!(status(&answer, "pool.reachable"), "OK");
    assert_eq!(status(&answer, "pool.waiting"), "OK");

    let holder = bouncer.client("postgres").await;
    holder
        .batch_execute("BEGIN; SELECT 1")
        .await
        .expect("the pool's one server");
    let waiter = bouncer.client("postgres").await;
    let waiting = tokio::spawn(async move { waiter.simple_query("SELECT 2").await.map(|_| ()) });
    poll::until(
        Duration::from_secs(20),
        "health to see the waiting client",
        async || {
            let answer = health(&arguments).await;
            status(&answer, "pool.waiting") == "WARN"
                && text(&answer, "pool.waiting", "evidence").starts_with("1 clients wait")
                && text(&answer, "pool.waiting", "hint").contains("default_pool_size")
                && status(&answer, "pool.saturation") == "CRIT"
        },
    )
    .await;
    holder
        .batch_execute("COMMIT")
        .await
        .expect("the server is given back");
    waiting.await.expect("no panic").expect("the waiter is served");
    assert_eq!(status(&health(&arguments).await, "pool.waiting"), "OK");

    bouncer.console("PAUSE postgres").await;
    let answer = health(&arguments).await;
    assert_eq!(status(&answer, "pool.paused"), "CRIT");
    assert!(
        text(&answer, "pool.paused", "hint").contains("RESUME"),
        "{answer}"
    );
    bouncer.console("RESUME postgres").await;
    assert_eq!(status(&health(&arguments).await, "pool.paused"), "OK");

    let mut bouncer = bouncer;
    bouncer.stop();
    let answer = health(&arguments).await;
    assert_eq!(status(&answer, "pool.reachable"), "CRIT");
    assert!(
        text(&answer, "pool.reachable", "evidence").contains("does not answer"),
        "{answer}"
    );
}

#[tokio::test]
async fn errors_in_the_log_are_counted_from_run_to_run() {
    let server = Postgres::builder(Major::V18)
        .setting("logging_collector", "on")
        .start()
        .await;
    let state = server.new_directory("state");
    let dsn = server.dsn("postgres");
    let run = async || {
        health_with(
            Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout")).env("PGMAHOUT_STATE_DIR", &state),
            &["--dsn", &dsn, "--only", "log.errors", "--set", "log.errors=5,"],
        )
        .await
    };
    assert_eq!(status(&run().await, "log.errors"), "OK");
    let client = server.client("postgres").await;
    for _ in 0..8 {
        client
            .batch_execute("SELECT 1/0")
            .await
            .expect_err("a division by zero");
    }
    let seen = poll::value(
        Duration::from_secs(10),
        "the errors to be in the log",
        async || {
            let answer = run().await;
            (status(&answer, "log.errors") == "WARN").then_some(answer)
        },
    )
    .await;
    assert!(
        result(&seen, "log.errors")["rows"]
            .to_string()
            .contains("division by zero"),
        "{seen}"
    );
    assert_eq!(
        status(&run().await, "log.errors"),
        "OK",
        "old errors were counted again"
    );
}

#[tokio::test]
async fn the_users_own_checks_answer_with_their_rows_and_thresholds() {
    let server = Postgres::start(Major::V15).await;
    server.sql("postgres", "CREATE TABLE outbox (id int, status text); INSERT INTO outbox SELECT n, 'pending' FROM generate_series(1, 50) n").await;
    let directory = server.new_directory("configuration");
    let file = directory.join("pgmahout.yml");
    std::fs::write(
        &file,
        "checks:\n  custom:\n    - name: outbox\n      sql: SELECT count(*) AS pending FROM outbox WHERE status = 'pending'\n      \
         warn: 10\n      crit: 100\n    - name: key_tables\n      tables: [public.outbox, public.orders]\n    \
         - name: application\n      tcp: 127.0.0.1:1\n",
    )
    .expect("the configuration");
    let dsn = server.dsn("postgres");
    let config = file.display().to_string();
    let arguments = ["--config", &config, "--dsn", &dsn, "--only", "custom.*"];
    let answer = health(&arguments).await;
    assert_eq!(status(&answer, "custom.outbox"), "WARN");
    assert_eq!(text(&answer, "custom.outbox", "evidence"), "pending = 50");
    assert_eq!(status(&answer, "custom.key_tables"), "CRIT");
    assert!(
        text(&answer, "custom.key_tables", "evidence").contains("public.orders"),
        "{answer}"
    );
    assert_eq!(status(&answer, "custom.application"), "CRIT");

    server
        .sql(
            "postgres",
            "UPDATE outbox SET status = 'processed'; CREATE TABLE orders ()",
        )
        .await;
    let answer = health(&arguments).await;
    assert_eq!(
        (
            status(&answer, "custom.outbox"),
            status(&answer, "custom.key_tables")
        ),
        ("OK", "OK")
    );

    // A role that may not read the table learns what it could not see.
    server
        .sql("postgres", "CREATE ROLE blind LOGIN IN ROLE pg_monitor")
        .await;
    let dsn = server.dsn_as("blind", None, "postgres");
    let answer = health(&["--config", &config, "--dsn", &dsn, "--only", "custom.outbox"]).await;
    assert_eq!(status(&answer, "custom.outbox"), "UNKNOWN");
    assert!(
        text(&answer, "custom.outbox", "hint").contains("GRANT SELECT"),
        "{answer}"
    );
}

#[tokio::test]
async fn the_age_of_the_newest_dump_and_of_its_restore_test_are_checked() {
    let server = Postgres::start(Major::V15).await;
    server
        .sql("postgres", "CREATE TABLE t AS SELECT generate_series(1, 10)")
        .await;
    let directory = server.new_directory("dumps");
    let file = server.new_directory("configuration").join("pgmahout.yml");
    std::fs::write(&file, format!("dump:\n  directory: {}\n", directory.display()))
        .expect("the configuration");
    let (config, dsn) = (file.display().to_string(), server.dsn("postgres"));
    let arguments = ["--config", &config, "--dsn", &dsn, "--only", "backup.*"];

    let answer = health(&arguments).await;
    assert_eq!(
        status(&answer, "backup.age"),
        "CRIT",
        "no backup at all: {answer}"
    );

    let dump = directory.join("postgres.sql.gz");
    let bin = server.bin_dir().display().to_string();
    let pgmahout = |verb: &str| {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .args(["dump", verb])
            .args(["--bin-dir", &bin])
    };
    pgmahout("create")
        .arg("postgres")
        .arg(&dump)
        .args(["--dsn", &dsn])
        .run()
        .await
        .expect_status(0);
    let answer = health(&arguments).await;
    assert_eq!(status(&answer, "backup.age"), "OK", "{answer}");
    assert_ne!(
        status(&answer, "backup.restore_test"),
        "OK",
        "never restored: {answer}"
    );
    assert!(
        text(&answer, "backup.restore_test", "hint").contains("dump verify"),
        "{answer}"
    );

    pgmahout("verify").arg(&dump).run().await.expect_status(0);
    assert_eq!(status(&health(&arguments).await, "backup.restore_test"), "OK");
    let old = [arguments.as_slice(), &["--set", "backup.age=0.001s,1ms"]].concat();
    assert_eq!(status(&health(&old).await, "backup.age"), "CRIT");
}

#[tokio::test]
async fn the_sample_configuration_checks_an_outbox_an_audit_log_and_key_tables() {
    let server = Postgres::start(Major::V18).await;
    server.createdb("somabrain").await;
    server
        .sql(
            "somabrain",
            "CREATE TABLE audit_log (id serial PRIMARY KEY, created_at timestamp DEFAULT now());
             CREATE TABLE outbox_events (id serial PRIMARY KEY, event_type text, created_at timestamp DEFAULT now(), status text DEFAULT 'pending');
             INSERT INTO outbox_events (event_type, created_at) SELECT 'mail', now() - interval '1 hour' FROM generate_series(1, 150)",
        )
        .await;
    let sample = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/samples/pgmahout.yml");
    let (config, dsn) = (sample.display().to_string(), server.dsn("postgres"));
    let arguments = [
        "--config",
        &config,
        "--dsn",
        &dsn,
        "--only",
        "custom.*",
        "--skip",
        "custom.application",
    ];
    let answer = health(&arguments).await;
    assert_eq!(status(&answer, "custom.recent_audits"), "WARN", "{answer}");
    assert_eq!(status(&answer, "custom.outbox_pending"), "WARN", "{answer}");
    assert_eq!(
        result(&answer, "custom.outbox_pending")["rows"]["rows"]
            .as_array()
            .map(Vec::len),
        Some(20)
    );
    assert_eq!(status(&answer, "custom.outbox_size"), "OK", "{answer}");
    assert_eq!(
        status(&answer, "custom.key_tables"),
        "CRIT",
        "the audit log is empty: {answer}"
    );

    server
        .sql(
            "somabrain",
            "INSERT INTO audit_log DEFAULT VALUES; UPDATE outbox_events SET status = 'processed'",
        )
        .await;
    let answer = health(&arguments).await;
    for id in [
        "custom.recent_audits",
        "custom.outbox_pending",
        "custom.key_tables",
    ] {
        assert_eq!(status(&answer, id), "OK", "{answer}");
    }
}
