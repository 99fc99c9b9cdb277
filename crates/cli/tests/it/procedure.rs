//! `pgmahout procedure`: what a person sees of journals, and what is refused.

use std::path::Path;

use pgmahout_testkit::proc::{Finished, Pgmahout};
use serde_json::Value;

/// A machine with a state directory of its own.
struct Machine {
    state: tempfile::TempDir,
}

const DONE: &str = "20261121T080000-0001";
const FAILED: &str = "20261121T090000-0002";
const KILLED: &str = "20261121T100000-0003";

fn header(id: &str, title: &str) -> String {
    format!(
        r#"{{"at":"2026-11-21T08:00:00Z","record":"header","schema_version":1,"id":"{id}","kind":"tea","title":"{title}","target":{{"description":"database shop on db1:5432"}},"parameters":{{"cups":2}},"who":{{"user":"ann","user_id":1000,"host":"db1","process":4242}},"version":"0.1.0"}}"#
    )
}

const PLAN: &str = r#"{"at":"2026-11-21T08:00:01Z","record":"planned","plan":{"kind":"tea","title":"make tea","target":"database shop on db1:5432","facts":[],"warnings":[],"losses":[],"steps":[{"name":"boil","description":"boil the water","destructive":false,"done":false},{"name":"pour","description":"pour it","destructive":true,"done":false}]}}"#;

fn line(record: &str) -> String {
    format!(r#"{{"at":"2026-11-21T08:00:02Z",{record}}}"#)
}

impl Machine {
    fn new() -> Self {
        let machine = Self {
            state: tempfile::tempdir().expect("a directory"),
        };
        std::fs::create_dir(machine.state.path().join("procedures")).expect("the directory");
        machine
    }

    fn with_journals() -> Self {
        let machine = Self::new();
        machine.journal(
            DONE,
            &[
                header(DONE, "make tea"),
                PLAN.to_owned(),
                line(r#""record":"step_found","step":"boil""#),
                line(r#""record":"step_started","step":"pour""#),
                line(r#""record":"step_succeeded","step":"pour""#),
                line(r#""record":"verified","findings":["the tea is hot"]"#),
                line(r#""record":"ended","result":"succeeded""#),
            ],
        );
        machine.journal(
            FAILED,
            &[
                header(FAILED, "make more tea"),
                PLAN.to_owned(),
                line(r#""record":"step_started","step":"boil""#),
                line(r#""record":"step_succeeded","step":"boil""#),
                line(r#""record":"step_started","step":"pour""#),
                line(
                    r#""record":"step_failed","step":"pour","failure":{"message":"the cup is full","causes":["gravity"],"hint":"drink"}"#,
                ),
            ],
        );
        machine.journal(
            KILLED,
            &[
                header(KILLED, "make tea again"),
                PLAN.to_owned(),
                line(r#""record":"step_started","step":"boil""#),
                r#"{"at":"2026-11-21T08:0"#.to_owned(),
            ],
        );
        machine
    }

    fn path(&self, id: &str) -> std::path::PathBuf {
        self.state.path().join("procedures").join(format!("{id}.jsonl"))
    }

    /// The last line stays without its end, as a crash may leave it, unless it is a whole record.
    fn journal(&self, id: &str, lines: &[String]) {
        let mut text = lines.join("\n");
        if text.ends_with('}') {
            text.push('\n');
        }
        std::fs::write(self.path(id), text).expect("the journal");
    }

    fn command(&self, arguments: &[&str]) -> Pgmahout {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .arg("procedure")
            .args(arguments)
            .env("PGMAHOUT_STATE_DIR", self.state.path())
            .env("PGMAHOUT_RUN_DIR", self.state.path().join("run"))
    }

    async fn run(&self, arguments: &[&str]) -> Finished {
        self.command(arguments).run().await
    }

    fn shown(&self, finished: &Finished) -> String {
        let text = format!(
            "status: {:?}\n--- stdout\n{}--- stderr\n{}",
            finished.status, finished.stdout, finished.stderr
        );
        text.replace(&self.state.path().display().to_string(), "[STATE]")
    }
}

fn json(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).expect("JSON on stdout")
}

#[tokio::test]
async fn the_list_shows_where_each_procedure_stands() {
    let machine = Machine::with_journals();
    insta::assert_snapshot!(machine.shown(&machine.run(&["list"]).await));
    let unfinished = json(&machine.run(&["list", "--unfinished", "--json"]).await);
    let states: Vec<_> = unfinished["procedures"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|procedure| {
            (
                procedure["id"].as_str().unwrap_or_default(),
                procedure["state"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    assert_eq!(states, [(KILLED, "interrupted"), (FAILED, "failed")]);
    let limited = machine.run(&["list", "--limit", "1"]).await;
    assert!(
        limited.stdout.contains(KILLED) && !limited.stdout.contains(DONE),
        "{}",
        limited.stdout
    );
    assert!(
        limited.stderr.contains("2 more: --limit 0 shows all"),
        "{}",
        limited.stderr
    );
}

#[tokio::test]
async fn a_machine_without_procedures_says_so() {
    let finished = Machine::new().run(&["list"]).await;
    assert_eq!((finished.status, finished.stdout.as_str()), (Some(0), ""));
    assert!(
        finished.stderr.contains("There are no procedures in "),
        "{}",
        finished.stderr
    );
}

#[tokio::test]
async fn a_damaged_journal_is_named_and_hides_no_other() {
    let machine = Machine::with_journals();
    std::fs::write(machine.path("20261121T110000-0004"), "{\"nonsense\":1}\n").expect("the journal");
    let finished = machine.run(&["list"]).await;
    assert_eq!(finished.status, Some(0));
    assert!(
        finished
            .stderr
            .contains("20261121T110000-0004.jsonl is damaged: line 1"),
        "{}",
        finished.stderr
    );
    assert!(finished.stdout.contains(FAILED));
    let finished = machine.run(&["show", "20261121T11"]).await;
    assert_eq!(finished.status, Some(1), "{}", finished.stderr);
}

#[tokio::test]
async fn a_procedure_is_shown_with_its_journal() {
    let machine = Machine::with_journals();
    insta::assert_snapshot!(machine.shown(&machine.run(&["show", "20261121T09"]).await));
    let shown = json(&machine.run(&["show", DONE, "--json"]).await);
    assert_eq!(shown["schema_version"], 1);
    assert_eq!(shown["procedure"]["state"], "succeeded");
    assert_eq!(shown["parameters"]["cups"], 2);
    assert_eq!(shown["steps"][0]["state"], "done");
    assert_eq!(shown["records"].as_array().map(Vec::len), Some(7));
}

#[tokio::test]
async fn what_cannot_be_resumed_is_refused_with_the_reason() {
    let machine = Machine::with_journals();
    let mut text = String::new();
    for id in [DONE, FAILED, "20261121", "1999"] {
        text.push_str(&machine.shown(&machine.run(&["resume", id, "--yes"]).await));
        text.push('\n');
    }
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn giving_up_needs_a_yes_and_is_final() {
    let machine = Machine::with_journals();
    let before = std::fs::read(machine.path(KILLED)).expect("the journal");
    let refused = machine.run(&["abort", KILLED]).await;
    insta::assert_snapshot!(machine.shown(&refused));
    assert_eq!(refused.status, Some(3));
    assert_eq!(std::fs::read(machine.path(KILLED)).expect("the journal"), before);

    let dry = machine.run(&["abort", KILLED, "--dry-run"]).await;
    assert_eq!(dry.status, Some(0), "{}", dry.stderr);
    assert!(dry.stdout.contains("1. boil the water: begun"), "{}", dry.stdout);
    assert_eq!(std::fs::read(machine.path(KILLED)).expect("the journal"), before);

    let given_up = machine.run(&["abort", KILLED, "--yes"]).await;
    assert_eq!(given_up.status, Some(0), "{}", given_up.stderr);
    assert_eq!(
        given_up.stdout,
        format!("Given up: make tea again (procedure {KILLED}).\n")
    );
    let shown = json(&machine.run(&["show", KILLED, "--json"]).await);
    assert_eq!(shown["procedure"]["state"], "aborted");
    let again = machine.run(&["abort", KILLED, "--yes"]).await;
    assert_eq!(again.status, Some(3));
    assert!(
        again.stderr.contains("has ended already (aborted)"),
        "{}",
        again.stderr
    );
    let audit = std::fs::read_to_string(machine.state.path().join("audit.jsonl")).expect("the audit log");
    let record: Value = serde_json::from_str(audit.trim()).expect("one record");
    assert_eq!(
        (record["id"].as_str(), record["result"].as_str()),
        (Some(KILLED), Some("aborted"))
    );
}

#[tokio::test]
async fn a_procedure_that_somebody_is_at_work_on_is_left_alone() {
    let machine = Machine::with_journals();
    let _writer = pgmahout_durable::SoleWriter::open(machine.path(KILLED), 0o600).expect("the journal");
    let listed = json(&machine.run(&["list", "--json"]).await);
    assert_eq!(listed["procedures"][0]["state"], "running");
    for command in ["resume", "abort"] {
        let finished = machine.run(&[command, KILLED, "--yes"]).await;
        assert_eq!(finished.status, Some(3), "{}", finished.stderr);
        assert!(
            finished.stderr.contains("is running, as process 4242"),
            "{}",
            finished.stderr
        );
    }
}

#[tokio::test]
async fn an_unusable_state_directory_is_an_error_with_the_variable_to_set() {
    let machine = Machine::with_journals();
    let blocked = machine.state.path().join("file");
    std::fs::write(&blocked, "").expect("the file");
    let finished = machine
        .command(&["show", "2026"])
        .env("PGMAHOUT_STATE_DIR", Path::new(&blocked))
        .run()
        .await;
    assert!(finished.status != Some(0));
    assert!(finished.stderr.starts_with("error: "), "{}", finished.stderr);
}
