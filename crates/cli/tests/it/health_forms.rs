//! The forms of the answer: for people, Nagios, Prometheus, JSON, watched on a terminal; and what is refused.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use pgmahout_testkit::processes::describe_children;
use serde_json::{Value, json};

use crate::health_run::{Operator, PATIENCE};

/// A Nagios line taken apart as Nagios does.
struct Nagios {
    state: String,
    text: String,
    /// Label to value, unit, warning, critical.
    performance: BTreeMap<String, (f64, String, String, String)>,
}

fn parse_nagios(line: &str) -> Nagios {
    let (text, performance) = line
        .trim_end_matches('\n')
        .split_once('|')
        .expect("performance data");
    assert!(
        !line.trim_end_matches('\n').contains('\n'),
        "one line only: {line}"
    );
    let (name, rest) = text.split_once(' ').expect("a name");
    assert_eq!(name, "PGMAHOUT");
    let (state, text) = rest.split_once(" - ").expect("a state");
    let mut items = BTreeMap::new();
    let mut left = performance.trim();
    while let Some(quoted) = left.strip_prefix('\'') {
        let (label, rest) = quoted.split_once("'=").expect("a label in quotes");
        let (item, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut fields = item.split(';');
        let value = fields.next().expect("a value");
        let digits = value
            .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '-')
            .unwrap_or(value.len());
        let number = value[..digits]
            .parse()
            .unwrap_or_else(|error| panic!("{error}: {item}"));
        let unit = value[digits..].to_owned();
        assert!(
            ["", "s", "%", "B"].contains(&unit.as_str()),
            "not a unit of Nagios: {item}"
        );
        let warn = fields.next().expect("a warning field").to_owned();
        let crit = fields.next().expect("a critical field").to_owned();
        assert!(
            items
                .insert(label.to_owned(), (number, unit, warn, crit))
                .is_none(),
            "{label} twice"
        );
        left = rest.trim_start();
    }
    assert!(left.is_empty(), "not performance data: {left}");
    Nagios {
        state: state.to_owned(),
        text: text.to_owned(),
        performance: items,
    }
}

fn schema() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/health.schema.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("the schema")).expect("JSON")
}

#[tokio::test]
async fn nagios_gets_one_line_with_performance_data_and_its_own_exit_status() {
    let server = Postgres::builder(Major::V18).setting("fsync", "on").start().await;
    let operator = Operator::of(&server);
    let only = [
        "--format",
        "nagios",
        "--only",
        "connections.*,settings.safety,prepared_transactions,wal.size",
    ];
    let finished = operator.run(&only).await;
    let good = parse_nagios(&finished.stdout);
    assert_eq!(
        (finished.status, good.state.as_str()),
        (Some(0), "OK"),
        "{}",
        finished.stdout
    );
    let used = &good.performance["connections.used"];
    assert_eq!(
        (used.1.as_str(), used.2.as_str(), used.3.as_str()),
        ("%", "80", "90")
    );
    assert_eq!(good.performance["connections.idle_in_transaction"].1, "s");
    assert!(good.performance["wal.size.bytes"].0 > 1e6 && good.performance["wal.size.bytes"].1 == "B");

    server
        .sql("postgres", "ALTER SYSTEM SET synchronous_commit = off")
        .await;
    server.reload().await;
    let finished = operator.run(&only).await;
    let warning = parse_nagios(&finished.stdout);
    assert_eq!((finished.status, warning.state.as_str()), (Some(1), "WARNING"));
    assert!(
        warning
            .text
            .contains("settings.safety WARN: synchronous_commit is off"),
        "{}",
        warning.text
    );

    server.sql("postgres", "ALTER SYSTEM SET fsync = off").await;
    server.reload().await;
    let finished = operator.run(&only).await;
    assert_eq!(
        (finished.status, parse_nagios(&finished.stdout).state.as_str()),
        (Some(2), "CRITICAL")
    );

    server.sql("postgres", "CREATE ROLE stranger LOGIN").await;
    let stranger = Operator::with_role(&server, "stranger");
    let finished = stranger
        .run(&[
            "--format",
            "nagios",
            "--only",
            "connections.used,wal.size,prepared_transactions",
        ])
        .await;
    assert_eq!(
        (finished.status, parse_nagios(&finished.stdout).state.as_str()),
        (Some(3), "UNKNOWN")
    );

    server.stop(StopMode::Fast).await;
    let finished = operator.run(&["--format", "nagios"]).await;
    assert_eq!(finished.status, Some(2));
    assert!(
        finished
            .stdout
            .starts_with("PGMAHOUT CRITICAL - 1 critical; server.reachable CRIT: "),
        "{}",
        finished.stdout
    );
    assert_eq!(finished.stdout.lines().count(), 1);
}

#[tokio::test]
async fn prometheus_gets_a_whole_file_that_its_own_format_allows() {
    let server = Postgres::start(Major::V15).await;
    let operator = Operator::of(&server);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("pgmahout.prom");
    let finished = operator
        .run(&[
            "--format",
            "prometheus",
            "--interval",
            "10ms",
            "-o",
            file.to_str().expect("a name"),
        ])
        .await
        .expect_status(0);
    assert!(finished.stdout.is_empty(), "{}", finished.stdout);
    let text = std::fs::read_to_string(&file).expect("the file");
    assert!(text.ends_with('\n'));
    let (mut helped, mut typed, mut series) = (Vec::new(), Vec::new(), Vec::new());
    let mut family = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().expect("a name").to_owned();
            assert!(!helped.contains(&family), "{family} twice");
            helped.push(family.clone());
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            assert_eq!(kind, format!("{family} gauge"));
            typed.push(family.clone());
        } else {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            assert!(name.starts_with(&family), "{name} is not of {family}");
            value
                .parse::<f64>()
                .unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(!series.contains(&name), "{name} twice");
            series.push(name);
        }
    }
    assert_eq!(helped, typed);
    let target = format!("127.0.0.1:{}", server.port());
    let status = format!("pgmahout_health_status{{target=\"{target}\",check=\"server.reachable\"}} 0");
    assert!(text.contains(&status), "{text}");
    assert!(text.contains("pgmahout_health_value_ratio{"), "{text}");
}

#[tokio::test]
async fn json_is_what_the_schema_says_for_every_kind_of_answer() {
    let schema = schema();
    let validator = jsonschema::draft202012::new(&schema).expect("a schema of 2020-12");
    let check = |json: &Value| {
        let errors: Vec<String> = validator
            .iter_errors(json)
            .map(|error| format!("{error} at {}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{errors:#?} in {json}");
    };
    let server = Postgres::builder(Major::V18)
        .setting("max_prepared_transactions", "2")
        .start()
        .await;
    let operator = Operator::of(&server);
    check(&operator.look(&[]).await.json);
    server.sql("postgres", "CREATE TABLE t (id serial); CREATE ROLE stranger LOGIN; CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor").await;
    server
        .sql(
            "postgres",
            "BEGIN; INSERT INTO t DEFAULT VALUES; PREPARE TRANSACTION 'p'",
        )
        .await;
    let faulty = operator
        .look(&["--set", "prepared_transactions=1us,1ms", "--interval", "10ms"])
        .await;
    faulty
        .answer("prepared_transactions")
        .is("CRIT", "p of postgres", "ROLLBACK PREPARED");
    check(&faulty.json);
    check(&Operator::with_role(&server, "stranger").look(&[]).await.json);
    check(&Operator::with_role(&server, "monitor").look(&[]).await.json);
    server.stop(StopMode::Fast).await;
    let unreachable = operator.look(&[]).await;
    check(&unreachable.json);

    // The schema says no to what is not such an answer.
    for broken in [
        json!({}),
        {
            let mut json = unreachable.json.clone();
            json["status"] = json!("FINE");
            json
        },
        {
            let mut json = faulty.json.clone();
            json["results"][0]["evidence"] = json!(null);
            json
        },
        {
            let mut json = faulty.json.clone();
            json["surprise"] = json!(1);
            json
        },
        {
            let mut json = faulty.json.clone();
            json["schema_version"] = json!(99);
            json
        },
    ] {
        assert!(!validator.is_valid(&broken), "{broken}");
    }
}

#[tokio::test]
async fn people_read_what_is_not_ok_and_a_line_of_counts() {
    let server = Postgres::builder(Major::V18).setting("fsync", "on").start().await;
    let operator = Operator::of(&server);
    let only = ["--only", "connections.used,settings.safety,wal.archiving"];
    let target = format!("127.0.0.1:{}", server.port());
    let good = operator.run(&only).await.expect_status(0);
    assert!(
        good.stdout
            .starts_with(&format!("{target}: 2 OK; 1 does not apply; in ")),
        "{}",
        good.stdout
    );
    assert_eq!(good.stdout.lines().count(), 1);
    let all = operator
        .run(&[only.as_slice(), &["--all"]].concat())
        .await
        .expect_status(0);
    assert!(all.stdout.contains("OK       connections.used"), "{}", all.stdout);
    assert!(all.stdout.contains("(warn 80 %, crit 90 %)"), "{}", all.stdout);
    assert!(
        all.stdout.contains("wal.archiving: archive_mode is off"),
        "{}",
        all.stdout
    );

    server
        .sql("postgres", "ALTER SYSTEM SET synchronous_commit = off")
        .await;
    server.reload().await;
    let warned = operator.run(&only).await.expect_status(0);
    assert!(
        warned
            .stdout
            .starts_with("WARN     settings.safety  synchronous_commit is off"),
        "{}",
        warned.stdout
    );
    assert!(
        warned
            .stdout
            .contains("hint: ALTER SYSTEM SET synchronous_commit"),
        "{}",
        warned.stdout
    );
    assert!(
        !warned.stdout.contains("connections.used"),
        "what is OK is not listed: {}",
        warned.stdout
    );
    operator
        .run(&[only.as_slice(), &["--strict"]].concat())
        .await
        .expect_status(1);
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_with_the_nearest_name() {
    let operator = Operator::with_dsn("postgresql://127.0.0.1:1/postgres");
    for (arguments, message, hint) in [
        (
            ["--set", "connections.usd=70%,85%"],
            "there is no threshold named `connections.usd`",
            "`connections.used`",
        ),
        (
            ["--set", "connections.used=70,85"],
            "cannot set the thresholds of `connections.used`",
            "--list",
        ),
        (
            ["--set", "connections.used=90%,80%"],
            "lies beyond its critical one",
            "WARN,CRIT",
        ),
        (
            ["--only", "replication.slot"],
            "no check matches `replication.slot`",
            "`replication.slots`",
        ),
        (["--skip", "nothing.at.all.like.it"], "no check matches", "--list"),
        (["--watch", "99ms"], "must be at least 100ms", "--help"),
        (["--watch", "0s"], "must be at least 100ms", "--help"),
        (
            ["--only=locks*", "--skip=locks.*"],
            "no check is left to run",
            "--skip",
        ),
    ] {
        let finished = operator.run(&arguments).await.expect_status(2);
        assert!(
            finished.stderr.contains(message),
            "no `{message}` in {}",
            finished.stderr
        );
        assert!(
            finished.stderr.contains(hint),
            "no `{hint}` in {}",
            finished.stderr
        );
        assert!(finished.stdout.is_empty());
    }
    // Metrics were written: that they are bad ones is for the alerts to say.
    let metrics = operator.run(&["--format", "prometheus"]).await.expect_status(0);
    assert!(
        metrics.stdout.contains("check=\"server.reachable\"} 2\n"),
        "{}",
        metrics.stdout
    );
    let text = operator.run(&["--all"]).await.expect_status(1);
    assert!(
        text.stdout
            .contains("\nNot looked at:\n  server.role: no session on the server"),
        "{}",
        text.stdout
    );
    let counts = text.stdout.lines().last().expect("the counts");
    assert!(
        counts.contains("1 CRIT; ") && counts.contains(" not looked at; "),
        "{counts}"
    );
    // An unreachable server is a result and no error; nothing else is asked.
    let look = operator.look(&[]).await;
    look.answer("server.reachable").is("CRIT", "127.0.0.1", "");
    assert_eq!(look.exit_status, Some(1));
    assert_eq!(look.ids("UNKNOWN"), Vec::<&str>::new());
    let listed = operator.run(&["--list"]).await.expect_status(0);
    for id in [
        "connections.used",
        "replication.lag_bytes",
        "locks.waiting.share",
        "vacuum.xid_age.freeze",
    ] {
        assert!(listed.stdout.contains(id), "no {id} in {}", listed.stdout);
    }
}

#[tokio::test]
async fn a_server_that_is_down_does_not_hide_the_one_that_is_up() {
    let up = Postgres::start(Major::V15).await;
    let down = Postgres::start(Major::V15).await;
    let operator = Operator::of_both(&down, &up);
    let only = ["--only", "server.reachable,connections.used"];
    let look = operator.look(&only).await;
    assert_eq!(
        (
            look.answer_of("server.reachable", &down).status(),
            look.exit_status
        ),
        ("OK", Some(0))
    );
    down.stop(StopMode::Fast).await;
    let look = operator.look(&only).await;
    look.answer_of("server.reachable", &down)
        .is("CRIT", "127.0.0.1", "");
    look.answer_of("server.reachable", &up).is_ok();
    look.answer_of("connections.used", &up).is_ok();
    assert_eq!(look.exit_status, Some(1));
    // One that takes connections and answers nothing is no different, and is not waited for without end.
    down.start_again().await;
    down.sigstop();
    let look = operator.look(&only).await;
    look.answer_of("server.reachable", &down)
        .is("CRIT", "no answer within", "");
    look.answer_of("connections.used", &up).is_ok();
    down.sigcont();
    let look = operator.look(&only).await;
    look.answer_of("server.reachable", &down).is_ok();
}

/// The server itself counts: a role that is allowed three connections is refused a fourth, and the log says
/// so.
#[tokio::test]
async fn at_most_three_connections_are_open_at_any_moment() {
    let server = Postgres::start(Major::V15).await;
    for name in ["one", "two", "three", "four", "five", "six"] {
        server.createdb(name).await;
    }
    server
        .sql(
            "postgres",
            "CREATE ROLE monitor LOGIN CONNECTION LIMIT 3; GRANT pg_monitor TO monitor",
        )
        .await;
    let operator = Operator::with_role(&server, "monitor");
    let refused = "too many connections for role";
    for _ in 0..5 {
        let look = operator.look(&["--skip", "host.*"]).await;
        look.answer("indexes.invalid").is_ok();
        // The next run's first must not meet the last run's last, which pg_stat_activity forgets a little early.
        poll::until(PATIENCE, "the run's backends to be gone", async || {
            describe_children(server.pid())
                .iter()
                .all(|backend| !backend.title.contains(" monitor "))
        })
        .await;
    }
    assert!(!server.log().contains(refused), "{}", server.log());

    // The limit is what would have shown it.
    let mut clients = Vec::new();
    let mut config = server.config("postgres");
    config.user("monitor");
    for _ in 0..3 {
        clients.push(server.connect(&config).await.expect("three are allowed"));
    }
    operator
        .check("server.reachable", &[])
        .await
        .is("CRIT", refused, "connection");
}

#[tokio::test]
async fn the_monitoring_role_sees_everything_and_another_role_says_what_it_lacks() {
    let server = Postgres::builder(Major::V18)
        .archive_command("true")
        .start()
        .await;
    server
        .sql(
            "postgres",
            "CREATE ROLE monitor LOGIN; GRANT pg_monitor, pg_read_all_settings TO monitor; CREATE ROLE \"Stranger\" LOGIN",
        )
        .await;
    server.createdb("shop").await;
    let monitor = Operator::with_role(&server, "monitor");
    let look = monitor.look(&["--interval", "10ms"]).await;
    assert!(
        look.ids("UNKNOWN").is_empty(),
        "{:?} in {}",
        look.ids("UNKNOWN"),
        look.json
    );

    let stranger = Operator::with_role(&server, "Stranger");
    let look = stranger.look(&["--interval", "10ms"]).await;
    for id in [
        "connections.used",
        "connections.idle_in_transaction",
        "queries.long",
        "locks.waiting",
        "xmin.horizon",
        "wal.archiving",
        "wal.size",
        "indexes.invalid",
    ] {
        let answer = look.answer(id);
        assert_eq!(answer.status(), "UNKNOWN", "{}", answer.0);
        assert_eq!(
            answer.0["unseen"]["grant"], "GRANT pg_monitor TO \"Stranger\"",
            "{}",
            answer.0
        );
    }
    assert_eq!(
        look.answer("settings.pending_restart").text("hint"),
        "GRANT pg_read_all_settings TO \"Stranger\""
    );

    // A database that it may not connect to is not a healthy one.
    server
        .sql("postgres", "REVOKE CONNECT ON DATABASE shop FROM PUBLIC")
        .await;
    let answer = monitor.check("indexes.invalid", &[]).await;
    answer.is(
        "UNKNOWN",
        "may not connect to shop",
        "GRANT CONNECT ON DATABASE shop TO monitor",
    );
    server.sql("postgres", answer.text("hint")).await;
    monitor.check("indexes.invalid", &[]).await.is_ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_terminal_is_redrawn_and_marks_what_has_changed() {
    let server = Postgres::builder(Major::V15)
        .setting("max_prepared_transactions", "2")
        .start()
        .await;
    server.sql("postgres", "CREATE TABLE t (id int)").await;
    let operator = Operator::of(&server);
    let command = operator.command(&[
        "--watch",
        "100ms",
        "--only",
        "prepared_transactions",
        "--set",
        "prepared_transactions=1us,1h",
    ]);
    let pair = portable_pty::native_pty_system()
        .openpty(portable_pty::PtySize {
            rows: 24,
            cols: 120,
            pixel_width: 0,
            pixel_height: 0,
        })
        .expect("a pseudo-terminal");
    let standard = command.to_std();
    let mut builder = portable_pty::CommandBuilder::new(standard.get_program());
    builder.args(standard.get_args());
    builder.env_clear();
    for (name, value) in standard.get_envs() {
        if let Some(value) = value {
            builder.env(name, value);
        }
    }
    builder.env("TERM", "xterm-256color");
    builder.cwd(command.home());
    let mut child = pair.slave.spawn_command(builder).expect("the program starts");
    drop(pair.slave);
    let screen = Arc::new(Mutex::new(vt100::Parser::new(24, 120, 0)));
    let mut output = pair.master.try_clone_reader().expect("the terminal's output");
    let drawn = Arc::clone(&screen);
    let reading = std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count) = output.read(&mut bytes) {
            if count == 0 {
                break;
            }
            drawn.lock().expect("no panic").process(&bytes[..count]);
        }
    });
    let shown = || screen.lock().expect("no panic").screen().contents();

    poll::until(PATIENCE, "the first screen", async || shown().contains("1 OK")).await;
    assert!(!shown().contains("WARN"), "{}", shown());
    server
        .sql(
            "postgres",
            "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'forgotten'",
        )
        .await;
    poll::until(PATIENCE, "the fault, marked", async || {
        let text = shown();
        text.contains("* WARN")
            && text.contains("forgotten")
            && text.contains("(was OK)")
            && text.contains("1 WARN")
    })
    .await;
    let text = shown();
    assert_eq!(
        text.matches("127.0.0.1:").count(),
        1,
        "redrawn, not printed again:\n{text}"
    );
    assert!(
        !text.contains("1 OK"),
        "nothing of the last screen is left:\n{text}"
    );
    server.sql("postgres", "ROLLBACK PREPARED 'forgotten'").await;
    poll::until(PATIENCE, "the fault to be gone", async || {
        let text = shown();
        text.contains("1 OK") && !text.contains("WARN")
    })
    .await;

    pair.master
        .take_writer()
        .expect("the keyboard")
        .write_all(b"\x03")
        .expect("Ctrl-C");
    let status = tokio::task::spawn_blocking(move || child.wait().expect("its end"))
        .await
        .expect("no panic");
    assert_eq!(status.exit_code(), 130);
    drop(pair.master);
    reading.join().expect("no panic");
}

#[tokio::test]
async fn watching_without_a_terminal_prints_again() {
    let server = Postgres::start(Major::V15).await;
    let operator = Operator::of(&server);
    let running = operator
        .command(&["--watch", "100ms", "--only", "connections.used", "--all"])
        .spawn();
    let question = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgmahout'";
    let mut seen = 0;
    poll::until(PATIENCE, "a few runs", async || {
        if server.query_text("postgres", question).await != "0" {
            seen += 1;
        }
        seen > 3
    })
    .await;
    running.interrupt();
    let finished = running.wait().await;
    assert_eq!(finished.status, Some(130), "{}", finished.stderr);
    assert!(
        finished.stdout.matches("connections.used").count() > 1,
        "{}",
        finished.stdout
    );
    assert!(
        !finished.stdout.contains('\x1b'),
        "no escape sequence without a terminal: {}",
        finished.stdout
    );
}
