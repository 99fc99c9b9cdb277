//! Starting the restored server, and finding out where recovery ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use pgmahout_postgres::binaries::{Binaries, BinaryError, Requirement};
use pgmahout_postgres::conf_file::Configuration;
use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::control::{ControlError, PgCtl, ServerControl as _};
use pgmahout_postgres::params::{ConnectionOptions, ConnectionParameters, Environment};
use pgmahout_procedure::report::{Task, Unit};
use pgmahout_procedure::{Check, Step, StepContext, StepError};
use pgmahout_types::control::ClusterState;
use pgmahout_types::repository::manifest::Manifest;
use pgmahout_types::{ControlFile, HumanDuration, Lsn, TimelineHistory, TimelineId};

use super::error::RestoreError;
use super::moment;
use super::prepare::Shared;
use super::request::{RecoveryEnd, ServerState, StartRequest};
use super::target::TargetAction;

/// How often the server is looked at.
const POLL: Duration = Duration::from_millis(100);
/// Lines of the server's log in an error.
const LOG_LINES: usize = 15;

/// The directory of the programs of the server's version.
pub(crate) fn program(request: &StartRequest, manifest: &Manifest) -> Result<PathBuf, BinaryError> {
    let major = manifest.header.server_version.major();
    let found = Binaries::find("pg_ctl", Requirement::Exactly(major), request.bin_dir.as_deref())?;
    Ok(found.directory().to_owned())
}

/// Where recovery ended, for people.
pub(crate) fn describe(end: &RecoveryEnd) -> String {
    let mut text = match end.state {
        ServerState::Promoted => "recovery has ended, and the server is a primary".to_owned(),
        ServerState::Paused => {
            "recovery has reached the target and is paused; the server is read-only".to_owned()
        }
        ServerState::Stopped => "recovery has reached the target, and the server has shut down".to_owned(),
        ServerState::Standby => "the server is a standby".to_owned(),
    };
    if let Some(lsn) = end.lsn {
        text = format!("{text}; it ended at {lsn}");
    }
    if let Some(timeline) = end.timeline {
        text = format!("{text} of timeline {timeline}");
    }
    if let Some(timeline) = end.new_timeline {
        text = format!("{text}, and is on timeline {timeline} now");
    }
    if let Some(at) = end.last_commit {
        text = format!("{text}; the last commit is of {}", moment::utc(at));
    }
    text
}

/// Starts the server and waits for the end of recovery.
pub(super) struct StartStep(pub(super) Arc<Shared>);

#[async_trait]
impl Step for StartStep {
    fn name(&self) -> &'static str {
        "start"
    }

    fn description(&self) -> String {
        "start the server and wait for the end of recovery".to_owned()
    }

    async fn check(&self, _context: &StepContext<'_>) -> Result<Check, StepError> {
        Ok(Check::Unknown)
    }

    async fn act(&self, context: &StepContext<'_>) -> Result<(), StepError> {
        let shared = &self.0;
        let Some(request) = shared.request.start.clone() else {
            return Ok(());
        };
        check_data_directory(shared, &request)?;
        let bin_dir = program(&request, &shared.manifest)?;
        let data = shared.layout.data().to_owned();
        let mut control = PgCtl::new(bin_dir, &data);
        if let Some(config_file) = &request.config_file {
            control = control.with_config_file(config_file);
        }
        let progress = context
            .reporter
            .start(Task::new("recovering from the archive", Unit::Steps, None));
        let began = Instant::now();
        tokio::select! {
            // pg_ctl goes on without us, and the server with it.
            () = context.cancellation.cancelled() => return Err(StepError::interrupted()),
            started = control.start(request.timeout) => match started {
                // With `shutdown` as the action pg_ctl may find the server gone again.
                Err(error) if !has_stopped_at_target(shared, &data) => return Err(explain(error).into()),
                _ => {}
            },
        }
        let end = loop {
            context.check_cancelled()?;
            if let Some(end) = look(shared, &request, &data, began).await? {
                break end;
            }
            if !control.status().await?.is_running() && !has_stopped_at_target(shared, &data) {
                let log = control.log_tail(LOG_LINES).await.unwrap_or_default();
                return Err(explain(ControlError::Failed {
                    operation: "start",
                    target: control.describe(),
                    output: "the server ended during recovery".to_owned(),
                    log,
                })
                .into());
            }
            if began.elapsed() > request.timeout {
                return Err(RestoreError::Recovery {
                    why: format!("it still ran after {}", HumanDuration(request.timeout)),
                    hint: "it goes on: look at the server's log; give more time with --timeout".to_owned(),
                }
                .into());
            }
            tokio::time::sleep(POLL).await;
        };
        progress.finish(&format!("done in {}", HumanDuration(began.elapsed())));
        shared.set(|outcome| outcome.recovery = Some(end));
        Ok(())
    }
}

/// `data_directory` in `postgresql.conf` would start another server than the restored one.
fn check_data_directory(shared: &Shared, request: &StartRequest) -> Result<(), RestoreError> {
    let data = shared.layout.data();
    let file = request
        .config_file
        .clone()
        .unwrap_or_else(|| data.join("postgresql.conf"));
    let Ok(configuration) = Configuration::read(&file) else {
        return Ok(());
    };
    match configuration.get("data_directory") {
        Some(other) if fs::canonicalize(other).ok() != fs::canonicalize(data).ok() => {
            Err(RestoreError::Refused {
                what: format!(
                    "{} says data_directory = {other}: that server would be started",
                    file.display()
                ),
                hint: format!("correct it, then: pg_ctl start -D {}", data.display()),
            })
        }
        _ => Ok(()),
    }
}

/// The server's log says it best; the hint follows it.
fn explain(error: ControlError) -> RestoreError {
    let log = match &error {
        ControlError::Failed { log, .. } | ControlError::TimedOut { log, .. } => log.clone(),
        _ => String::new(),
    };
    let said = |words: &str| log.contains(words);
    if said("recovery ended before configured recovery target was reached") {
        return RestoreError::Recovery {
            why: format!("the archive ends before it{}", last_commit_of(&log)),
            hint: "choose an earlier target, or leave it out to go to the end of the archive; continue with --delta"
                .to_owned(),
        };
    }
    if said("requested recovery stop point is before consistent recovery point") {
        return RestoreError::Recovery {
            why: "the target lies before the end of the backup".to_owned(),
            hint: "choose an older backup with --backup LABEL, or a later target".to_owned(),
        };
    }
    error.into()
}

fn last_commit_of(log: &str) -> String {
    let words = "last completed transaction was at log time ";
    log.lines()
        .rev()
        .find_map(|line| line.split_once(words))
        .map(|(_, time)| format!("; the last commit is of {time}"))
        .unwrap_or_default()
}

fn control_file(data: &Path) -> Option<ControlFile> {
    ControlFile::parse(&fs::read(data.join(ControlFile::PATH)).ok()?).ok()
}

fn has_stopped_at_target(shared: &Shared, data: &Path) -> bool {
    shared.request.aim.action == TargetAction::Shutdown
        && shared.request.aim.target.is_point()
        && !data.join("postmaster.pid").exists()
        && control_file(data).is_some_and(|control| control.state == ClusterState::ShutDownInRecovery)
}

/// Whether recovery has ended, and where.
async fn look(
    shared: &Shared,
    request: &StartRequest,
    data: &Path,
    began: Instant,
) -> Result<Option<RecoveryEnd>, RestoreError> {
    let seconds = || began.elapsed().as_secs_f64();
    if has_stopped_at_target(shared, data) {
        let control = control_file(data);
        return Ok(Some(RecoveryEnd {
            state: ServerState::Stopped,
            lsn: control
                .as_ref()
                .and_then(|control| control.min_recovery.map(|point| point.lsn)),
            timeline: Some(shared.choice.timeline),
            new_timeline: None,
            last_commit: None,
            reason: None,
            seconds: seconds(),
        }));
    }
    let answer = ask(request, data).await;
    if let Some(answer) = answer {
        let state = match (answer.in_recovery, shared.request.standby.is_some()) {
            (false, _) => ServerState::Promoted,
            (true, true) => ServerState::Standby,
            (true, false) if answer.paused => ServerState::Paused,
            (true, false) => return Ok(None),
        };
        let forked = (state == ServerState::Promoted)
            .then(|| newest_history(data))
            .flatten();
        return Ok(Some(end(
            shared,
            state,
            answer.lsn,
            forked,
            answer.last_commit,
            seconds(),
        )));
    }
    // Not let in: pg_control says whether it is a primary, and nothing about a pause.
    let promoted = control_file(data).is_some_and(|control| control.state == ClusterState::InProduction);
    if promoted && let Some(forked) = newest_history(data) {
        return Ok(Some(end(
            shared,
            ServerState::Promoted,
            None,
            Some(forked),
            None,
            seconds(),
        )));
    }
    Ok(None)
}

fn end(
    shared: &Shared,
    state: ServerState,
    lsn: Option<Lsn>,
    forked: Option<TimelineHistory>,
    last_commit: Option<Timestamp>,
    seconds: f64,
) -> RecoveryEnd {
    let parent = forked.as_ref().and_then(|history| history.parent().cloned());
    RecoveryEnd {
        state,
        lsn: parent.as_ref().map(|parent| parent.switchpoint).or(lsn),
        timeline: Some(
            parent
                .as_ref()
                .map_or(shared.choice.timeline, |parent| parent.timeline),
        ),
        new_timeline: forked.map(|history| history.timeline()),
        last_commit,
        reason: parent
            .map(|parent| parent.reason)
            .filter(|reason| !reason.is_empty()),
        seconds,
    }
}

/// The history of the timeline that the server has begun.
fn newest_history(data: &Path) -> Option<TimelineHistory> {
    let listing = fs::read_dir(data.join("pg_wal")).ok()?;
    let newest = listing
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name();
            let digits = name.to_str()?.strip_suffix(".history")?.to_owned();
            TimelineId::new(u32::from_str_radix(&digits, 16).ok()?)
        })
        .max()?;
    let path = data.join("pg_wal").join(format!("{:08X}.history", newest.get()));
    TimelineHistory::parse(newest, &fs::read(path).ok()?).ok()
}

/// What the server says of itself.
struct Answer {
    in_recovery: bool,
    paused: bool,
    lsn: Option<Lsn>,
    last_commit: Option<Timestamp>,
}

/// Asks over the socket that postmaster.pid names; `None` where it does not let us in, or not yet.
async fn ask(request: &StartRequest, data: &Path) -> Option<Answer> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let lines: Vec<&str> = text.lines().collect();
    let (port, socket, address) = (lines.get(3)?, lines.get(4)?, lines.get(5).unwrap_or(&""));
    let host = if socket.is_empty() { *address } else { *socket };
    let options = ConnectionOptions {
        host: (!host.is_empty()).then(|| (*host).to_owned()),
        port: Some((*port).to_owned()),
        user: Some(request.user.clone().unwrap_or_else(|| "postgres".to_owned())),
        database: Some("postgres".to_owned()),
        ..ConnectionOptions::default()
    };
    let parameters = ConnectionParameters::resolve(&options, &Environment::current()).ok()?;
    let connection = Connection::open_secured(&parameters).await.ok()?;
    let row = connection
        .query_one(
            "SELECT pg_catalog.pg_is_in_recovery(), \
                    CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_get_wal_replay_pause_state() = 'paused' \
                         ELSE false END, \
                    pg_catalog.pg_last_wal_replay_lsn()::text, \
                    (pg_catalog.extract('epoch', pg_catalog.pg_last_xact_replay_timestamp()) * 1000000)::bigint",
            &[],
        )
        .await;
    connection.close().await;
    let row = row.ok()?;
    Some(Answer {
        in_recovery: row.get(0),
        paused: row.get(1),
        lsn: row.get::<_, Option<String>>(2).and_then(|text| text.parse().ok()),
        last_commit: row
            .get::<_, Option<i64>>(3)
            .and_then(|micros| Timestamp::from_microsecond(micros).ok()),
    })
}
