//! No result is better than its evidence, and looking harms nobody: what a first user's test found.

use std::process::Stdio;

use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::Pgmahout;
use rstest::rstest;
use serde_json::Value;

fn pgmahout() -> Pgmahout {
    Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
}

async fn health(arguments: &[&str]) -> Value {
    let finished = pgmahout().args(["health", "--json"]).args(arguments).run().await;
    serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", finished.stdout, finished.stderr))
}

/// The one result.
fn only(answer: &Value) -> &Value {
    let results = answer["results"].as_array().expect("a list");
    assert_eq!(results.len(), 1, "{answer}");
    &results[0]
}

/// Functions that would win over the system's by their argument types, were their schema on the path.
const TRAPS: &str = "
CREATE TABLE public.caught (who text, what text);
GRANT ALL ON public.caught TO PUBLIC;
CREATE FUNCTION public.trap(what text) RETURNS void LANGUAGE plpgsql AS
  $$ BEGIN RAISE LOG 'TRAPPED % in %', current_user, what; END $$;
CREATE FUNCTION public.format(text, name, name) RETURNS text LANGUAGE plpgsql AS
  $$ BEGIN PERFORM public.trap('format'); RETURN 'trapped'; END $$;
CREATE FUNCTION public.row_to_json(anyelement) RETURNS json LANGUAGE plpgsql AS
  $$ BEGIN PERFORM public.trap('row_to_json'); RETURN pg_catalog.to_json($1); END $$;
CREATE FUNCTION public.host(text) RETURNS text LANGUAGE plpgsql AS
  $$ BEGIN PERFORM public.trap('host'); RETURN $1; END $$;
CREATE FUNCTION public.count(integer) RETURNS bigint LANGUAGE sql AS $$ SELECT 1::bigint $$;
";

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn nobodys_functions_run_with_the_rights_of_who_looks(#[case] major: Major) {
    let server = Postgres::start(major).await;
    server.createdb("shop").await;
    server.sql("shop", TRAPS).await;
    server
        .sql("shop", "CREATE TABLE t (id smallserial PRIMARY KEY); INSERT INTO t DEFAULT VALUES; CREATE TABLE d AS SELECT 1 AS a UNION ALL SELECT 1")
        .await;
    let client = server.client("shop").await;
    client
        .batch_execute("CREATE UNIQUE INDEX CONCURRENTLY broken ON d (a)")
        .await
        .expect_err("duplicates");
    let dsn = server.dsn("shop");
    let directory = server.new_directory("dumps");
    let bin = server.bin_dir().display().to_string();
    let file = directory.join("shop.sql.gz").display().to_string();
    for arguments in [
        vec!["health", "--interval", "100ms"],
        vec!["report", "health"],
        vec!["verify", "--skip", "host", "--patience", "2s"],
        vec!["role", "create-monitor", "--yes"],
        vec!["dump", "create", "shop", &file, "--bin-dir", &bin],
        vec!["dump", "restore", &file, "--into", "again", "--bin-dir", &bin],
    ] {
        pgmahout().args(&arguments).args(["--dsn", &dsn]).run().await;
        let log = server.log();
        let trapped: Vec<&str> = log.lines().filter(|line| line.contains("TRAPPED")).collect();
        assert!(
            trapped.is_empty(),
            "{arguments:?} ran another's function: {trapped:?}"
        );
    }
    assert!(directory.join("shop.sql.gz").exists());
}

#[tokio::test]
async fn a_lock_is_not_taken_for_damage_nor_for_soundness() {
    let server = Postgres::start(Major::V18).await;
    server
        .sql(
            "postgres",
            "CREATE TABLE t AS SELECT n AS id FROM generate_series(1, 100) n; CREATE INDEX ON t (id)",
        )
        .await;
    let holder = server.client("postgres").await;
    holder
        .batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("the lock");
    let dsn = server.dsn("postgres");
    let finished = pgmahout()
        .args([
            "verify",
            "--json",
            "--only",
            "server.reachable",
            "--table",
            "public.t",
            "--dsn",
            &dsn,
        ])
        .run()
        .await;
    let answer: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let proof = answer["proof"].as_array().expect("a list");
    let result = proof
        .iter()
        .find(|result| result["id"] == "verify.amcheck")
        .expect("the part");
    assert_eq!(result["status"], "UNKNOWN", "{result}");
    assert!(result["rows"].to_string().contains("exclusive lock"), "{result}");
    assert!(
        !result.to_string().contains("restore from a sound backup"),
        "{result}"
    );
}

#[tokio::test]
async fn dead_rows_are_judged_whatever_autovacuum_is_set_to() {
    let server = Postgres::builder(Major::V15)
        .setting("autovacuum", "off")
        .setting("autovacuum_vacuum_threshold", "200000")
        .start()
        .await;
    server
        .sql(
            "postgres",
            "CREATE TABLE t AS SELECT generate_series(1, 60000) AS n",
        )
        .await;
    server.sql("postgres", "DELETE FROM t WHERE n > 10000").await;
    let dsn = server.dsn("postgres");
    pgmahout_testkit::poll::until(
        std::time::Duration::from_secs(20),
        "the statistics to show the dead rows",
        async || {
            let answer = health(&["--dsn", &dsn, "--only", "vacuum.dead_tuples"]).await;
            only(&answer)["status"] == "WARN"
        },
    )
    .await;
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn a_sequence_set_to_its_end_and_one_with_its_own_end_are_seen(#[case] major: Major) {
    let server = Postgres::start(major).await;
    server
        .sql(
            "postgres",
            "CREATE TABLE restarted (id serial); ALTER SEQUENCE restarted_id_seq RESTART WITH 2147483647;
             CREATE TABLE fresh (id serial)",
        )
        .await;
    let dsn = server.dsn("postgres");
    let arguments = ["--dsn", &dsn, "--only", "sequences.used"];
    let answer = health(&arguments).await;
    assert_eq!(only(&answer)["status"], "CRIT", "{answer}");
    assert!(
        only(&answer)["evidence"].to_string().contains("restarted_id_seq"),
        "{answer}"
    );
    assert!(only(&answer)["hint"].to_string().contains("bigint"), "{answer}");

    server
        .sql(
            "postgres",
            "DROP TABLE restarted; CREATE SEQUENCE short MAXVALUE 1000; CREATE TABLE fed (id int DEFAULT nextval('short'));
             SELECT setval('short', 990)",
        )
        .await;
    let answer = health(&arguments).await;
    assert_eq!(only(&answer)["status"], "CRIT", "{answer}");
    let hint = only(&answer)["hint"].as_str().expect("a hint").to_owned();
    assert!(hint.contains("ALTER SEQUENCE public.short NO MAXVALUE"), "{hint}");
    server
        .sql("postgres", "ALTER SEQUENCE public.short NO MAXVALUE NO MINVALUE")
        .await;
    assert_eq!(
        only(&health(&arguments).await)["status"],
        "OK",
        "the hint did not help"
    );
}

#[tokio::test]
async fn thousands_of_sequences_take_turns_and_a_full_one_is_never_forgotten() {
    let server = Postgres::start(Major::V18).await;
    for some in (0..1500).collect::<Vec<_>>().chunks(300) {
        let statements: Vec<String> = some
            .iter()
            .map(|n| format!("CREATE SEQUENCE s{n} AS integer"))
            .collect();
        server.sql("postgres", &statements.join(";")).await;
    }
    server.sql("postgres", "SELECT setval('s1400', 2147480000)").await;
    let state = server.new_directory("state");
    let dsn = server.dsn("postgres");
    let look = async || {
        let finished = pgmahout()
            .args(["health", "--json", "--skip", "host,disk,tls", "--dsn", &dsn])
            .env("PGMAHOUT_STATE_DIR", &state)
            .run()
            .await;
        let answer: Value = serde_json::from_str(&finished.stdout).expect("JSON");
        let results = answer["results"].as_array().expect("a list").clone();
        results
            .into_iter()
            .find(|result| result["id"] == "sequences.used")
            .expect("the check")
    };
    let first = look().await;
    assert!(
        first["evidence"]
            .to_string()
            .contains("of 1500 sequences were looked at"),
        "{first}"
    );
    let mut seen = vec![first["status"].clone(), look().await["status"].clone()];
    assert!(
        seen.iter().any(|status| status == "CRIT"),
        "not found in two turns: {seen:?}"
    );
    for _ in 0..3 {
        seen.push(look().await["status"].clone());
    }
    assert!(
        seen[2..].iter().all(|status| status == "CRIT"),
        "forgotten: {seen:?}"
    );
    server.sql("postgres", "SELECT setval('s1400', 1)").await;
    assert_eq!(look().await["status"], "OK");
    let all = health(&["--dsn", &dsn, "--only", "sequences.used"]).await;
    assert!(
        !only(&all)["evidence"].to_string().contains("take turns"),
        "{all}"
    );
}

#[test]
fn output_that_could_not_be_written_is_a_failure() {
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("the full device");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_pgmahout"))
        .args(["completions", "bash"])
        .env_clear()
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("cannot write the result") && stderr.contains("hint:"),
        "{stderr}"
    );
}

#[tokio::test]
async fn the_plan_for_a_monitoring_role_is_what_will_be_done() {
    let server = Postgres::start(Major::V15).await;
    server
        .sql(
            "postgres",
            "CREATE ROLE boss LOGIN SUPERUSER; CREATE ROLE watcher LOGIN",
        )
        .await;
    let dsn = server.dsn("postgres");
    let role = |name: &'static str, how: &'static str| {
        pgmahout()
            .args(["role", "create-monitor", name, how, "--dsn", &dsn])
            .run()
    };
    role("boss", "--dry-run").await.expect_status(3);
    let plan = role("watcher", "--dry-run").await.expect_status(0);
    assert!(!plan.stderr.contains("CREATE ROLE"), "{}", plan.stderr);
    let script = role("watcher", "--print").await.expect_status(0);
    server.psql("postgres", &script.stdout);
}
