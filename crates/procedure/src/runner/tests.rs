use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use pgmahout_testkit::tmpfs::Tmpfs;
use pgmahout_types::diagnostic::Diagnose;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::confirm::{Always, Never};
use crate::context::{Measurement, StepContext};
use crate::definition::{Check, Problem, Step};
use crate::error::StepError;
use crate::lock::Target;
use crate::plan::{Plan, PlanDetails};
use crate::report::{Recording, Silent};

/// Kills this process after so many journal records.
#[derive(Debug, Clone)]
pub(super) struct KillAfter(u64);

impl KillAfter {
    pub(super) fn hook(&self) -> Arc<dyn Fn() + Send + Sync> {
        let (written, limit) = (AtomicU64::new(0), self.0);
        Arc::new(move || {
            if written.fetch_add(1, Ordering::SeqCst) + 1 == limit {
                kill_ourselves();
            }
        })
    }
}

fn kill_ourselves() {
    let process = rustix::process::getpid();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    std::thread::sleep(Duration::from_mins(1));
}

/// A procedure whose effects are files in one directory: it "stops" something, works on it, starts it.
#[derive(Clone)]
struct Works {
    directory: PathBuf,
    /// The step in whose action the process is killed, before or after the effect.
    kill_in: Option<(String, bool)>,
    /// Something in the way.
    problems: Vec<Problem>,
    /// How long the token is at least.
    token_length: usize,
}

const STEPS: [&str; 5] = ["choose", "stop", "append", "copy", "start"];

impl Works {
    fn in_directory(directory: &Path) -> Self {
        Self {
            directory: directory.to_path_buf(),
            kill_in: None,
            problems: Vec::new(),
            token_length: 0,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

#[async_trait]
impl Procedure for Works {
    fn kind(&self) -> &'static str {
        "works"
    }

    fn parameters(&self) -> Value {
        json!({ "directory": self.directory })
    }

    fn title(&self) -> String {
        "work on the works".to_owned()
    }

    fn target(&self) -> Target {
        Target::new("the works")
            .system_identifier(7_u64)
            .data_directory(&self.directory)
    }

    async fn preflight(&self, _: &StepContext<'_>) -> Result<Vec<Problem>, StepError> {
        Ok(self.problems.clone())
    }

    async fn plan(&self, _: &StepContext<'_>) -> Result<PlanDetails, StepError> {
        Ok(PlanDetails::new().fact("files", "3").loss("the old token"))
    }

    fn question(&self, _: &Plan) -> Option<Question> {
        Some(Question::type_yes("Work on the works?"))
    }

    fn steps(&self) -> Vec<Box<dyn Step>> {
        STEPS
            .into_iter()
            .map(|name| {
                Box::new(Work {
                    name,
                    works: self.clone(),
                }) as Box<dyn Step>
            })
            .collect()
    }

    async fn verify(&self, _: &StepContext<'_>) -> Result<Vec<String>, StepError> {
        let expected = format!("{}\n", self.read("token"));
        if self.read("effects") == expected && self.read("copy") == expected && !self.path("stopped").exists()
        {
            Ok(vec!["one effect, one copy".to_owned()])
        } else {
            Err(StepError::failed("the works are not as they should be"))
        }
    }

    async fn abort(&self, _: &StepContext<'_>) -> Result<Vec<String>, StepError> {
        let _ = fs::remove_file(self.path("stopped"));
        Ok(vec!["started again".to_owned()])
    }
}

struct Work {
    name: &'static str,
    works: Works,
}

impl Work {
    fn kill(&self, after: bool) {
        if self
            .works
            .kill_in
            .as_ref()
            .is_some_and(|(step, when)| step == self.name && *when == after)
        {
            kill_ourselves();
        }
    }
}

#[async_trait]
impl Step for Work {
    fn name(&self) -> &str {
        self.name
    }

    fn description(&self) -> String {
        format!("{} the works", self.name)
    }

    fn is_destructive(&self) -> bool {
        self.name == "append"
    }

    fn is_transient(&self) -> bool {
        self.name == "stop"
    }

    async fn check(&self, context: &StepContext<'_>) -> Result<Check, StepError> {
        let works = &self.works;
        let done = match self.name {
            "choose" => context.memory.get::<String>("token").is_some(),
            "stop" => works.path("stopped").exists(),
            "append" => works
                .read("effects")
                .lines()
                .any(|line| line == works.read("token")),
            // Nothing shows whether the copy was made on purpose: the journal decides.
            "copy" => return Ok(Check::Unknown),
            "start" => works.path("started").exists() && !works.path("stopped").exists(),
            other => panic!("{other}"),
        };
        Ok(if done { Check::Done } else { Check::NotDone })
    }

    async fn act(&self, context: &StepContext<'_>) -> Result<(), StepError> {
        let works = &self.works;
        pgmahout_durable::append_line(works.path("actions"), self.name.as_bytes(), 0o600)?;
        self.kill(false);
        if ["append", "copy"].contains(&self.name) && !works.path("stopped").exists() {
            return Err(StepError::refused("the works are running"));
        }
        match self.name {
            "choose" => {
                // Different on each run: a resumed one must go on with the one it had.
                let filling = "=".repeat(works.token_length);
                let token = format!("token of process {}{filling}", std::process::id());
                context.memory.set("token", token)?;
            }
            "stop" => {
                let token: String = context.memory.get("token").expect("chosen before");
                pgmahout_durable::write_atomically(works.path("token"), token.as_bytes(), 0o600)?;
                pgmahout_durable::write_atomically(works.path("stopped"), b"", 0o600)?;
                context
                    .memory
                    .measured(Measurement::Downtime(Duration::from_millis(1500)))?;
            }
            "append" => {
                pgmahout_durable::append_line(works.path("effects"), works.read("token").as_bytes(), 0o600)?;
            }
            "copy" => {
                let effects = works.read("effects");
                pgmahout_durable::write_atomically(works.path("copy"), effects.as_bytes(), 0o600)?;
            }
            "start" => {
                pgmahout_durable::write_atomically(works.path("started"), b"", 0o600)?;
                pgmahout_durable::remove_durably(works.path("stopped"))?;
            }
            other => panic!("{other}"),
        }
        self.kill(true);
        Ok(())
    }
}

fn runner(directory: &Path) -> Runner {
    Runner::at(StateDirectory::at(directory.join("state")))
        .with_locks(LockDirectories::at([directory.to_path_buf()]))
}

fn registry<'a>() -> Registry<'a> {
    let mut registry = Registry::new();
    registry.register("works", |parameters: Value| async move {
        let directory = parameters["directory"].as_str().expect("written by parameters()");
        Ok(Box::new(Works::in_directory(Path::new(directory))) as Box<dyn Procedure>)
    });
    registry
}

struct Stage {
    directory: tempfile::TempDir,
    works: Works,
    runner: Runner,
    cancellation: CancellationToken,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            works: Works::in_directory(directory.path()),
            runner: runner(directory.path()),
            cancellation: CancellationToken::new(),
            directory,
        }
    }

    fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            confirm: &Always,
            reporter: &Silent,
            cancellation: &self.cancellation,
        }
    }

    async fn run(&self) -> Result<Ended, ProcedureError> {
        self.runner
            .run(&self.works, RunOptions::default(), self.surroundings())
            .await
    }

    async fn resume(&self, id: &str) -> Result<Ended, ProcedureError> {
        self.runner
            .resume(id, &registry(), RunOptions::default(), self.surroundings())
            .await
    }

    fn locks(&self) -> LockDirectories {
        LockDirectories::at([self.directory.path().to_path_buf()])
    }

    fn only(&self) -> Summary {
        let (mut summaries, damaged) = self.runner.list().unwrap();
        assert!(damaged.is_empty(), "{damaged:?}");
        assert_eq!(summaries.len(), 1, "{summaries:?}");
        summaries.remove(0)
    }

    fn audit(&self) -> Vec<AuditRecord> {
        audit::read(&self.runner.state().audit_log()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn done(ended: Ended) -> Report {
    match ended {
        Ended::Done(report) => report,
        Ended::DryRun(plan) => panic!("only planned: {plan}"),
    }
}

#[tokio::test]
async fn a_procedure_runs_its_steps_verifies_and_leaves_one_audit_record() {
    let stage = Stage::new();
    let recording = Recording::default();
    let surroundings = Surroundings {
        reporter: &recording,
        ..stage.surroundings()
    };
    let report = done(
        stage
            .runner
            .run(&stage.works, RunOptions::default(), surroundings)
            .await
            .unwrap(),
    );
    assert!(report.steps.iter().map(|step| step.name.as_str()).eq(STEPS));
    assert!(report.steps.iter().all(|step| step.result == StepResult::Made));
    assert_eq!(report.verified, ["one effect, one copy"]);
    assert_eq!(report.downtime_seconds, Some(1.5));
    assert!(recording.said("will be lost: the old token"));
    assert!(recording.said("step 3/5: append the works"));

    let summary = stage.only();
    assert_eq!(
        (summary.state, summary.steps_done, summary.steps),
        (State::Succeeded, 5, 5)
    );
    let [record] = &stage.audit()[..] else {
        panic!("{:?}", stage.audit())
    };
    assert_eq!(
        (record.id.as_str(), record.result),
        (report.id.as_str(), AuditResult::Succeeded)
    );
    assert_eq!(record.downtime_seconds, Some(1.5));
    assert_eq!(record.parameters, stage.works.parameters());
    let error = stage.resume(&report.id).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("procedure {} has ended already (succeeded)", report.id)
    );
    assert_eq!(error.outcome().exit_code(), 3);
}

#[tokio::test]
async fn a_dry_run_shows_the_plan_and_changes_nothing() {
    let stage = Stage::new();
    let options = RunOptions {
        dry_run: true,
        ..RunOptions::default()
    };
    let never = Surroundings {
        confirm: &Never,
        ..stage.surroundings()
    };
    let Ended::DryRun(plan) = stage.runner.run(&stage.works, options, never).await.unwrap() else {
        panic!("it ran");
    };
    assert!(stage.names().is_empty(), "{:?}", stage.names());
    insta::assert_snapshot!(plan.to_string(), @r"
    Plan: work on the works
      on the works
      files  3
      1. choose the works
      2. stop the works
      3. append the works  [destructive]
      4. copy the works
      5. start the works
      will be lost: the old token
    ");
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(serde_json::from_value::<Plan>(json).unwrap(), plan);
}

#[tokio::test]
async fn preflight_lists_all_problems_at_once() {
    let mut stage = Stage::new();
    stage.works.problems = vec![
        Problem::new("the disk is full").hint("df -h"),
        Problem::new("the server is down"),
        Problem::new("the moon is wrong").hint("wait"),
    ];
    let error = stage.run().await.unwrap_err();
    insta::assert_snapshot!(error.to_string(), @r"
    cannot work on the works: 3 problems stand in the way
      - the disk is full
        df -h
      - the server is down
      - the moon is wrong
        wait
    ");
    assert_eq!(error.outcome().exit_code(), 3);
    assert!(stage.runner.list().unwrap().0.is_empty());
    stage.works.problems.truncate(1);
    let error = stage.run().await.unwrap_err();
    assert_eq!(error.to_string(), "cannot work on the works: the disk is full");
    assert_eq!(error.hint().unwrap(), "df -h");
}

#[tokio::test]
async fn without_a_terminal_and_without_yes_it_refuses_with_status_3_and_no_journal() {
    let stage = Stage::new();
    let never = Surroundings {
        confirm: &Never,
        ..stage.surroundings()
    };
    let error = stage
        .runner
        .run(&stage.works, RunOptions::default(), never)
        .await
        .unwrap_err();
    assert_eq!(error.outcome().exit_code(), 3);
    assert!(error.hint().unwrap().contains("--yes"));
    assert!(stage.runner.list().unwrap().0.is_empty());
    assert!(!stage.works.path("token").exists());
}

#[tokio::test]
async fn a_second_procedure_on_the_same_target_is_refused_and_told_by_whom() {
    let stage = Stage::new();
    let locks = LockDirectories::at([stage.directory.path().to_path_buf()]);
    let held = locks
        .acquire(
            &stage.works.target(),
            "the other one",
            Duration::ZERO,
            &stage.cancellation,
        )
        .await
        .unwrap();
    let error = stage.run().await.unwrap_err();
    assert_eq!(error.to_string(), "another operation is at work on the works");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("the other one"), "{cause}");
    assert_eq!(error.outcome().exit_code(), 3);
    assert!(stage.runner.list().unwrap().0.is_empty());
    drop(held);
    stage.run().await.unwrap();
}

#[tokio::test]
async fn a_failed_step_names_how_to_go_on_and_goes_on_there() {
    let stage = Stage::new();
    // A directory in the way of the file that 'copy' writes.
    fs::create_dir(stage.works.path("copy")).unwrap();
    let error = stage.run().await.unwrap_err();
    let id = stage.only().id;
    assert_eq!(error.to_string(), format!("step 'copy' of procedure {id} failed"));
    assert!(
        error
            .hint()
            .unwrap()
            .contains(&format!("pgmahout procedure resume {id}"))
    );
    let summary = stage.only();
    assert_eq!((summary.state, summary.steps_done), (State::Failed, 3));
    assert!(summary.failure.unwrap().message.contains("copy"));

    // Still failing, it says so again; then it is mended.
    assert!(matches!(
        stage.resume(&id).await,
        Err(ProcedureError::Step { .. })
    ));
    fs::remove_dir(stage.works.path("copy")).unwrap();
    let report = done(stage.resume(&id[..10]).await.unwrap());
    let results: Vec<_> = report.steps.iter().map(|step| step.result).collect();
    assert_eq!(results[..3], [StepResult::Found; 3]);
    assert_eq!(results[3..], [StepResult::Made; 2]);
    let results: Vec<_> = stage
        .audit()
        .iter()
        .map(|record| (record.result, record.attempts))
        .collect();
    assert_eq!(
        results,
        [
            (AuditResult::Failed, 1),
            (AuditResult::Failed, 2),
            (AuditResult::Succeeded, 3)
        ]
    );
}

#[tokio::test]
async fn what_was_undone_meanwhile_is_done_again_unless_it_was_transient() {
    let stage = Stage::new();
    fs::create_dir(stage.works.path("copy")).unwrap();
    assert!(stage.run().await.is_err());
    fs::remove_dir(stage.works.path("copy")).unwrap();
    fs::remove_file(stage.works.path("effects")).unwrap();
    done(stage.resume(&stage.only().id).await.unwrap());
    assert_eq!(stage.works.read("effects").lines().count(), 1);
    let actions = stage.works.read("actions");
    assert_eq!(actions.lines().filter(|action| *action == "append").count(), 2);
    assert_eq!(actions.lines().filter(|action| *action == "stop").count(), 1);
}

#[tokio::test]
async fn a_signal_stops_it_before_the_next_step_with_status_130() {
    let stage = Stage::new();
    stage.cancellation.cancel();
    let error = stage.run().await.unwrap_err();
    assert_eq!(error.outcome().exit_code(), 130);
    let summary = stage.only();
    assert_eq!((summary.state, summary.steps_done), (State::Interrupted, 0));
    let fresh = CancellationToken::new();
    let surroundings = Surroundings {
        cancellation: &fresh,
        ..stage.surroundings()
    };
    stage
        .runner
        .resume(&summary.id, &registry(), RunOptions::default(), surroundings)
        .await
        .unwrap();
    assert_eq!(stage.only().state, State::Succeeded);
}

#[tokio::test]
async fn a_full_disk_under_the_journal_stops_it_before_the_next_action() {
    let Ok(disk) = Tmpfs::new(1 << 20) else { return };
    let stage = Stage::new();
    let runner = Runner::at(StateDirectory::at(disk.path().join("state"))).with_locks(stage.locks());
    runner.state().ensure().unwrap();
    // Room for the journal, but not for a fact of this length.
    let filler = disk.fill(16 << 10);
    let mut works = stage.works.clone();
    works.token_length = 64 << 10;
    let error = runner
        .run(&works, RunOptions::default(), stage.surroundings())
        .await
        .unwrap_err();
    let ProcedureError::Step { id, step, source } = &error else {
        panic!("{error}")
    };
    assert_eq!(step, "choose");
    assert!(source.to_string().contains("no space left"), "{source}");
    assert!(error.hint().unwrap().contains("df -h"));
    assert!(!works.path("stopped").exists());
    fs::remove_file(filler).unwrap();
    let ended = runner
        .resume(id, &registry(), RunOptions::default(), stage.surroundings())
        .await
        .unwrap();
    assert_eq!(done(ended).verified, ["one effect, one copy"]);
}

#[tokio::test]
async fn what_cannot_be_recorded_at_the_end_names_the_procedure_to_resume() {
    let stage = Stage::new();
    // A directory in the way of the audit log.
    fs::create_dir_all(stage.runner.state().audit_log()).unwrap();
    let error = stage.run().await.unwrap_err();
    let id = stage.only().id;
    assert!(
        matches!(&error, ProcedureError::Record { id: stopped, .. } if *stopped == id),
        "{error}"
    );
    assert!(
        error
            .hint()
            .unwrap()
            .contains(&format!("pgmahout procedure resume {id}"))
    );
    fs::remove_dir(stage.runner.state().audit_log()).unwrap();
    let report = done(stage.resume(&id).await.unwrap());
    assert!(report.steps.iter().all(|step| step.result == StepResult::Found));
    assert_eq!(stage.audit().len(), 1);
}

#[tokio::test]
async fn a_dry_run_of_a_resume_shows_what_is_left_and_changes_nothing() {
    let stage = Stage::new();
    fs::create_dir(stage.works.path("copy")).unwrap();
    assert!(stage.run().await.is_err());
    let id = stage.only().id;
    let before = fs::read(journal::path_of(&stage.runner.state().procedures(), &id)).unwrap();
    let options = RunOptions {
        dry_run: true,
        ..RunOptions::default()
    };
    let Ended::DryRun(plan) = stage
        .runner
        .resume(&id, &registry(), options, stage.surroundings())
        .await
        .unwrap()
    else {
        panic!("it ran");
    };
    let done: Vec<bool> = plan.steps.iter().map(|step| step.done).collect();
    assert_eq!(done, [true, true, true, false, false]);
    assert_eq!(
        fs::read(journal::path_of(&stage.runner.state().procedures(), &id)).unwrap(),
        before
    );
}

#[tokio::test]
async fn aborting_cleans_up_and_is_final() {
    let stage = Stage::new();
    fs::create_dir(stage.works.path("copy")).unwrap();
    assert!(stage.run().await.is_err());
    let id = stage.only().id;
    let never = Surroundings {
        confirm: &Never,
        ..stage.surroundings()
    };
    let error = stage.runner.abort(&id, &registry(), never).await.unwrap_err();
    assert_eq!(error.outcome().exit_code(), 3);
    assert!(stage.works.path("stopped").exists());
    let (journal, findings) = stage
        .runner
        .abort(&id, &registry(), stage.surroundings())
        .await
        .unwrap();
    assert_eq!(journal.state(), State::Aborted);
    assert_eq!(findings, ["started again"]);
    assert!(!stage.works.path("stopped").exists());
    assert!(matches!(
        stage.resume(&id).await,
        Err(ProcedureError::Ended { state: "aborted", .. })
    ));
    let results: Vec<_> = stage.audit().iter().map(|record| record.result).collect();
    assert_eq!(results, [AuditResult::Failed, AuditResult::Aborted]);
}

#[tokio::test]
async fn an_unknown_kind_can_be_aborted_but_not_resumed() {
    let stage = Stage::new();
    fs::create_dir(stage.works.path("copy")).unwrap();
    assert!(stage.run().await.is_err());
    let id = stage.only().id;
    let empty = Registry::new();
    let error = stage
        .runner
        .resume(&id, &empty, RunOptions::default(), stage.surroundings())
        .await
        .unwrap_err();
    assert!(matches!(&error, ProcedureError::UnknownKind { kind, .. } if kind == "works"));
    assert!(error.hint().unwrap().contains("procedure abort"));
    stage
        .runner
        .abort(&id, &empty, stage.surroundings())
        .await
        .unwrap();
}

#[tokio::test]
async fn identifiers_are_found_by_their_beginning_if_only_one_fits() {
    let stage = Stage::new();
    let missing = stage.runner.show("2026").unwrap_err();
    assert_eq!(missing.outcome().exit_code(), 2);
    let first = done(stage.run().await.unwrap()).id;
    assert_eq!(stage.runner.show(&first[..6]).unwrap().header.id, first);
    assert!(matches!(
        stage.runner.show(""),
        Err(ProcedureError::NotFound { .. })
    ));
    stage.run().await.unwrap();
    assert!(matches!(
        stage.runner.show("2"),
        Err(ProcedureError::Ambiguous { .. })
    ));
}

/// Has no steps.
struct Nothing;
#[async_trait]
impl Procedure for Nothing {
    fn kind(&self) -> &'static str {
        "nothing"
    }
    fn parameters(&self) -> Value {
        Value::Null
    }
    fn title(&self) -> String {
        "do nothing".to_owned()
    }
    fn target(&self) -> Target {
        Target::new("nothing")
    }
    async fn preflight(&self, _: &StepContext<'_>) -> Result<Vec<Problem>, StepError> {
        Ok(Vec::new())
    }
    async fn plan(&self, _: &StepContext<'_>) -> Result<PlanDetails, StepError> {
        Ok(PlanDetails::new())
    }
    fn question(&self, _: &Plan) -> Option<Question> {
        Some(Question::yes_no("Sure?"))
    }
    fn steps(&self) -> Vec<Box<dyn Step>> {
        Vec::new()
    }
    async fn verify(&self, context: &StepContext<'_>) -> Result<Vec<String>, StepError> {
        context
            .memory
            .measured(Measurement::DataLoss("0 rows".to_owned()))?;
        Ok(Vec::new())
    }
}

#[tokio::test]
async fn nothing_is_asked_when_everything_is_done_already() {
    let stage = Stage::new();
    stage.run().await.unwrap();
    let never = Surroundings {
        confirm: &Never,
        ..stage.surroundings()
    };
    let report = done(
        stage
            .runner
            .run(&Nothing, RunOptions::default(), never)
            .await
            .unwrap(),
    );
    assert_eq!(report.data_loss.as_deref(), Some("0 rows"));
    let again = stage.runner.run(&stage.works, RunOptions::default(), never).await;
    assert!(matches!(again, Err(ProcedureError::Confirm(_))));
}

/// Not a test of its own: what the next ones run and kill.
#[tokio::test]
#[ignore = "runs as the child of the tests that kill it"]
async fn child_that_runs_or_resumes() {
    let Some(directory) = std::env::var_os("PGMAHOUT_TEST_DIRECTORY").map(PathBuf::from) else {
        return;
    };
    let variable = |name: &str| std::env::var(name).ok();
    let mut works = Works::in_directory(&directory);
    works.kill_in = variable("PGMAHOUT_TEST_KILL_IN").map(|text| {
        text.split_once(' ')
            .map(|(step, when)| (step.to_owned(), when == "after"))
            .unwrap()
    });
    let mut runner = runner(&directory);
    runner.kill_after = variable("PGMAHOUT_TEST_KILL_AFTER").map(|text| KillAfter(text.parse().unwrap()));
    let surroundings = Surroundings {
        confirm: &Always,
        reporter: &Silent,
        cancellation: &CancellationToken::new(),
    };
    let (known, damaged) = runner.list().unwrap();
    assert!(damaged.is_empty(), "{damaged:?}");
    match known.first().map(|summary| summary.state) {
        None => runner
            .run(&works, RunOptions::default(), surroundings)
            .await
            .map(|_| ())
            .unwrap(),
        Some(State::Succeeded) => {}
        Some(State::Interrupted) => {
            let mut registry = Registry::new();
            registry.register("works", |_| {
                let works = works.clone();
                async move { Ok(Box::new(works) as Box<dyn Procedure>) }
            });
            let id = &known[0].id;
            runner
                .resume(id, &registry, RunOptions::default(), surroundings)
                .await
                .map(|_| ())
                .unwrap();
        }
        Some(other) => panic!("unexpected state {other:?}"),
    }
}

/// Whether the child ended by itself (and then well), rather than by the kill that was asked for.
fn child(directory: &Path, environment: &BTreeMap<&str, String>) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "runner::tests::child_that_runs_or_resumes",
        ])
        .env("PGMAHOUT_TEST_DIRECTORY", directory)
        .envs(environment)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if output.status.signal() == Some(9) {
        return false;
    }
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    true
}

/// After any kill: one effect, one copy, the same token throughout, nothing left stopped, every action that
/// the system shows made at most once after its effect was there, one final audit record.
fn assert_as_if_never_killed(stage: &Stage, what: &str) {
    let works = &stage.works;
    let token = works.read("token");
    assert!(token.starts_with("token of process "), "{what}: {token}");
    assert_eq!(works.read("effects"), format!("{token}\n"), "{what}");
    assert_eq!(works.read("copy"), format!("{token}\n"), "{what}");
    assert!(
        works.path("started").exists() && !works.path("stopped").exists(),
        "{what}"
    );
    assert_eq!(stage.only().state, State::Succeeded, "{what}");
    let finals: Vec<_> = stage
        .audit()
        .into_iter()
        .filter(|record| record.result == AuditResult::Succeeded)
        .collect();
    assert_eq!(finals.len(), 1, "{what}: {finals:?}");
    assert!(
        finals[0].downtime_seconds.unwrap_or(0.0) <= 1.5,
        "{what}: {finals:?}"
    );
}

#[test]
fn killed_after_any_journal_record_it_resumes_to_the_same_end() {
    let mut kills = 0;
    for first in 1_u64.. {
        let stage = Stage::new();
        let directory = stage.directory.path();
        let kill = |after: u64| BTreeMap::from([("PGMAHOUT_TEST_KILL_AFTER", after.to_string())]);
        if child(directory, &kill(first)) {
            break;
        }
        kills += 1;
        // Killed again early in the resumed run, and then left alone.
        for second in [1, 3] {
            child(directory, &kill(second));
        }
        assert!(child(directory, &BTreeMap::new()));
        let what = format!("killed after record {first}");
        assert_as_if_never_killed(&stage, &what);
        // A kill between records never repeats an action whose effect is there; the 'copy' that nothing
        // shows may be repeated, and gives the same.
        for name in ["stop", "append", "start"] {
            let actions = stage.works.read("actions");
            let made = actions.lines().filter(|action| *action == name).count();
            assert_eq!(made, 1, "{what}: {name} in {actions}");
        }
    }
    // Header, plan, started and succeeded of five steps, two facts, verified, ended.
    assert_eq!(kills, 16);
}

#[test]
fn killed_inside_any_action_it_resumes_to_the_same_end() {
    for step in STEPS {
        for when in ["before", "after"] {
            let stage = Stage::new();
            let directory = stage.directory.path();
            let kill = BTreeMap::from([("PGMAHOUT_TEST_KILL_IN", format!("{step} {when}"))]);
            assert!(!child(directory, &kill), "{step} {when}");
            assert!(child(directory, &BTreeMap::new()));
            assert_as_if_never_killed(&stage, &format!("killed {when} the effect of {step}"));
        }
    }
}

#[test]
fn a_running_procedure_is_seen_as_running_and_not_resumed_twice() {
    let stage = Stage::new();
    let kill = BTreeMap::from([("PGMAHOUT_TEST_KILL_AFTER", "4".to_owned())]);
    assert!(!child(stage.directory.path(), &kill));
    let id = stage.only().id;
    assert_eq!(stage.only().state, State::Interrupted);
    let path = journal::path_of(&stage.runner.state().procedures(), &id);
    let _writer = JournalWriter::open(&path).unwrap();
    assert_eq!(stage.only().state, State::Running);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let error = runtime.block_on(stage.resume(&id)).unwrap_err();
    assert!(matches!(error, ProcedureError::Running { .. }), "{error}");
    assert_eq!(error.outcome().exit_code(), 3);
}
