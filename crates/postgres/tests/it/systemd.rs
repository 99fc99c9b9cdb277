//! systemd control against a stand-in for `systemctl` and `journalctl` that records what it is asked.

use pgmahout_postgres::control::{ControlError, ServerControl, ServerStatus, StopMode, Systemd};
use pgmahout_types::diagnostic::Diagnose;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

struct StandIn {
    directory: tempfile::TempDir,
}

impl StandIn {
    /// A unit in this state.
    fn new(state: &str) -> Self {
        let stand_in = Self {
            directory: tempfile::tempdir().expect("temporary directory"),
        };
        stand_in.set_state(state);
        stand_in.script(
            "systemctl",
            "#!/bin/sh\ncd \"$(dirname \"$0\")\"\necho \"$*\" >> calls\n\
             case $1 in\n\
             show) cat state ;;\n\
             start) [ -f broken ] && { echo 'Job for x.service failed.' >&2; exit 1; }; cp running state ;;\n\
             stop) cp stopped state ;;\n\
             kill) [ \"$3\" = --signal=SIGTERM ] && cp stopped state ;;\n\
             esac\nexit 0\n",
        );
        stand_in.script(
            "journalctl",
            "#!/bin/sh\necho 'FATAL:  could not bind to anything'\n",
        );
        stand_in.write("running", &state_text("active", "running", 4711));
        stand_in.write("stopped", &state_text("inactive", "dead", 0));
        stand_in
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).expect("written");
    }

    fn set_state(&self, state: &str) {
        self.write("state", state);
    }

    fn script(&self, name: &str, content: &str) {
        self.write(name, content);
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o755))
            .expect("executable");
    }

    fn control(&self) -> Systemd {
        Systemd::new("postgresql@15-main").with_programs_in(self.directory.path())
    }

    fn changes(&self) -> Vec<String> {
        std::fs::read_to_string(self.path("calls"))
            .unwrap_or_default()
            .lines()
            .filter(|call| !call.starts_with("show"))
            .map(str::to_owned)
            .collect()
    }
}

fn state_text(active: &str, sub: &str, pid: u32) -> String {
    format!("LoadState=loaded\nActiveState={active}\nSubState={sub}\nMainPID={pid}\n")
}

#[tokio::test]
async fn a_unit_is_started_reloaded_and_stopped_by_its_name() {
    let stand_in = StandIn::new(&state_text("inactive", "dead", 0));
    let control = stand_in.control();
    assert_eq!(control.status().await.expect("told"), ServerStatus::Stopped);
    assert!(matches!(
        control.reload().await,
        Err(ControlError::NotRunning { .. })
    ));
    control.start(LIMIT).await.expect("starts");
    assert_eq!(
        control.status().await.expect("told"),
        ServerStatus::Running { pid: Some(4711) }
    );
    control.reload().await.expect("reloads");
    control.stop(StopMode::Fast, LIMIT).await.expect("stops");
    control.start(LIMIT).await.expect("starts");
    control.stop(StopMode::Smart, LIMIT).await.expect("stops");
    control.start(LIMIT).await.expect("starts");
    control.stop(StopMode::Immediate, LIMIT).await.expect("stops");
    assert_eq!(
        stand_in.changes(),
        [
            "start -- postgresql@15-main",
            "reload -- postgresql@15-main",
            "stop -- postgresql@15-main",
            "start -- postgresql@15-main",
            "kill --kill-whom=main --signal=SIGTERM -- postgresql@15-main",
            "stop -- postgresql@15-main",
            "start -- postgresql@15-main",
            "kill --kill-whom=main --signal=SIGQUIT -- postgresql@15-main",
            "stop -- postgresql@15-main",
        ]
    );
}

#[tokio::test]
async fn a_unit_that_fails_to_start_shows_its_journal() {
    let stand_in = StandIn::new(&state_text("failed", "failed", 0));
    stand_in.write("broken", "");
    let error = stand_in.control().start(LIMIT).await.expect_err("fails");
    assert!(error.to_string().contains("Job for x.service failed."), "{error}");
    assert!(
        error.to_string().contains("could not bind to anything"),
        "{error}"
    );
    assert!(error.hint().is_some_and(|hint| hint.contains("ss -ltnp")));
}

#[tokio::test]
async fn units_that_control_no_server_are_refused() {
    let stand_in = StandIn::new(&state_text("active", "exited", 0));
    let error = stand_in
        .control()
        .status()
        .await
        .expect_err("the unit of all servers");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("postgresql@15-main")),
        "{error}"
    );
    stand_in.set_state("LoadState=not-found\nActiveState=inactive\nSubState=dead\nMainPID=0\n");
    let error = stand_in.control().status().await.expect_err("missing");
    assert_eq!(error.to_string(), "there is no unit postgresql@15-main");
    let error = stand_in
        .control()
        .promote(LIMIT)
        .await
        .expect_err("no word for it");
    assert!(error.hint().is_some_and(|hint| hint.contains("pg_promote")));
    let error = Systemd::new("x")
        .with_programs_in("/nonexistent")
        .status()
        .await
        .expect_err("no systemd");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("does not run systemd")),
        "{error}"
    );
}
