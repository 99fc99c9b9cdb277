//! `pgmahout config check`.

use pgmahout_testkit::proc::{Finished, Pgmahout};

fn check() -> Pgmahout {
    Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout")).args(["config", "check"])
}

fn with_file(content: &str) -> Pgmahout {
    let command = check();
    std::fs::write(command.home().join("pgmahout.yml"), content).expect("the home is writable");
    command
}

fn shown(finished: &Finished) -> String {
    format!(
        "status: {:?}\n--- stdout\n{}--- stderr\n{}",
        finished.status, finished.stdout, finished.stderr
    )
}

const FILE: &str = "scope: main\npostgresql:\n  data_dir: /var/lib/postgresql/15/main\n  \
    authentication: {superuser: {username: postgres, password: hunter2}}\n  use_pg_rewindd: yes\n\
    repository:\n  - name: local\n    type: local\n    path: /srv/pgmahout\n    compression: {codec: zstd, level: 3}\n    \
    encryption: {passphrase: file:/nowhere/passphrase}\n    retention: {keep_last: 3, recovery_window: 14d}\n\
    checks:\n  connections.used: [70%, 85%]\n  checksums: off\n  pgbouncer: 'host=x password=hunter2'\n\
    targets: {rpo: 90min}\n";

#[tokio::test]
async fn the_settings_in_force_are_printed_without_secrets() {
    let finished = with_file(FILE).run().await;
    assert!(!finished.stdout.contains("hunter2"), "{}", finished.stdout);
    insta::assert_snapshot!(shown(&finished));
}

#[tokio::test]
async fn what_is_printed_is_itself_a_valid_configuration() {
    let sample = include_str!("../../../../docs/samples/pgmahout.yml");
    let first = with_file(sample).run().await;
    let second = with_file(&first.stdout).run().await;
    assert_eq!(second.status, Some(0), "{}", second.stderr);
    assert_eq!(first.stdout, second.stdout);
}

#[tokio::test]
async fn json_has_settings_and_warnings() {
    let finished = with_file(FILE).arg("--json").run().await;
    assert_eq!(finished.status, Some(0), "{}", finished.stderr);
    let answer: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON on stdout");
    assert_eq!(answer["schema_version"], 1);
    assert_eq!(answer["valid"], true);
    assert_eq!(
        answer["settings"]["repository"][0]["encryption"]["passphrase"],
        "file:/nowhere/passphrase"
    );
    assert_eq!(
        answer["settings"]["postgresql"]["authentication"]["superuser"]["password"],
        "***"
    );
    assert_eq!(answer["settings"]["targets"]["rpo"], "1h30min");
    let warning = answer["warnings"][0].as_str().expect("a warning");
    assert!(
        warning.contains("'use_pg_rewindd'") && warning.contains("'use_pg_rewind'"),
        "{warning}"
    );
    assert!(!finished.stdout.contains("hunter2"));
}

#[tokio::test]
async fn all_errors_are_shown_at_once_with_their_places() {
    let finished = with_file(
        "repository:\n  - name: local\n    type: local\n    path: /srv/pgmahout\n    retension: {keep_last: 3}\n\
         dump:\n  jobs: many\nchecks:\n  queries.long: [1min, 2min, 3min]\n",
    )
    .run()
    .await;
    insta::assert_snapshot!(shown(&finished));
}

#[tokio::test]
async fn a_threshold_that_no_check_has_is_an_error_with_its_place() {
    let finished = with_file("checks:\n  conections.used: [70%, 85%]\n").run().await;
    insta::assert_snapshot!(shown(&finished));
    let finished = with_file("checks:\n  connections.used: [70s, 85s]\n").run().await;
    insta::assert_snapshot!(shown(&finished));
}

#[tokio::test]
async fn secrets_are_looked_up_when_asked_for_and_only_then() {
    let text = "repository:\n  - {name: a, type: local, path: /a, encryption: {passphrase: 'command:touch ran'}}\n\
                postgresql: {dsn: env:PGMAHOUT_TEST_NO_SUCH_DSN}\n";
    let command = with_file(text);
    let ran = command.home().join("ran");
    let home = command.home().to_owned();
    let running = command.spawn();
    let finished = running.wait().await;
    assert_eq!(finished.status, Some(0), "{}", finished.stderr);
    assert!(!ran.exists(), "{}", home.display());
    let finished = with_file(text).arg("--secrets").run().await;
    insta::assert_snapshot!(finished.stderr);
    assert_eq!(finished.status, Some(2));
}

#[tokio::test]
async fn without_a_file_the_defaults_and_the_environment_are_in_force() {
    let finished = check().env("PGMAHOUT_DUMP_DIRECTORY", "/backup").run().await;
    assert_eq!(finished.status, Some(0), "{}", finished.stderr);
    assert!(
        finished.stdout.contains("  directory: /backup\n"),
        "{}",
        finished.stdout
    );
    assert!(
        finished
            .stdout
            .starts_with("# no configuration file; defaults and the environment\n")
    );
    let finished = check()
        .env("PGMAHOUT_CONFIG", "/nowhere/pgmahout.yml")
        .run()
        .await;
    insta::assert_snapshot!(shown(&finished));
}

#[tokio::test]
async fn strict_turns_warnings_into_a_status() {
    assert_eq!(with_file(FILE).run().await.status, Some(0));
    assert_eq!(with_file(FILE).arg("--strict").run().await.status, Some(1));
    assert_eq!(
        with_file("stanza: main\n").arg("--strict").run().await.status,
        Some(0)
    );
}

#[tokio::test]
async fn the_sample_that_ships_passes() {
    let finished = with_file(include_str!("../../../../docs/samples/pgmahout.yml"))
        .arg("--strict")
        .run()
        .await;
    assert_eq!(finished.status, Some(0), "{}", finished.stderr);
    assert_eq!(finished.stderr, "");
}
