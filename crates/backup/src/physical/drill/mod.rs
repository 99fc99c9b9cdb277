//! Restoring a backup for real, to know that it can be: into a scratch directory, with a private server that
//! recovers from the archive, is examined and removed again.
//!
//! A drill takes the way that a restore takes in earnest: the same plan, the same files, the same
//! `restore_command`. The server listens on a private socket only, archives nothing, runs no subscriptions, and
//! loads none of `shared_preload_libraries` unless that is asked for: what they do in the background is meant for
//! the real server.
//!
//! What came of it goes into the head, beside the backup
//! ([`BackupEntry::drilled`](pgmahout_types::repository::BackupEntry)), where health and reports see it.
//!
//! [`BackupEntry::drilled`]: pgmahout_types::repository::BackupEntry

mod error;
mod examine;
mod room;
mod server;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgmahout_postgres::binaries::{Binaries, Requirement};
use pgmahout_postgres::throwaway::{ThrowawayHouse, ThrowawayOptions};
use pgmahout_procedure::confirm::Always;
use pgmahout_procedure::report::{Level, Reporter};
use pgmahout_procedure::{RunOptions, Runner, StateDirectory, Surroundings};
use pgmahout_types::repository::head::Examination;
use pgmahout_types::repository::{BackupEntry, Head, Label};
use pgmahout_types::{HumanDuration, Lsn};
use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

pub use error::DrillError;
pub use examine::{Assertion, Finding};

use super::restore::{Aim, Archiving, Remap, Restore, RestoreRequest, Target};
use super::stanza::{LeaseKind, LeaseScope, PhysicalRepository};
use super::wal::WalArchive;

/// Which backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The newest one.
    Newest,
    /// Any one.
    Random,
    /// This one.
    Label(Label),
}

/// To which point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// The end of the archived WAL.
    Latest,
    /// Any position between the end of the backup and the end of the archived WAL.
    Random,
    /// This one.
    Target(Target),
}

/// What a drill does.
#[derive(Debug, Clone)]
pub struct DrillRequest {
    /// Which backup.
    pub which: Which,
    /// To which point.
    pub to: To,
    /// Where the scratch directory is made; `$TMPDIR` or `/tmp` where it is not said.
    pub scratch: Option<PathBuf>,
    /// The directory of PostgreSQL's programs; found where it is not given.
    pub bin_dir: Option<PathBuf>,
    /// What the server fetches WAL with.
    pub restore_command: String,
    /// Threads of the restore, and of amcheck.
    pub jobs: usize,
    /// The roles that are tried for looking at the restored server.
    pub roles: Vec<String>,
    /// What must be true of it.
    pub assertions: Vec<Assertion>,
    /// Whether tables and indexes are checked with pg_amcheck.
    pub amcheck: bool,
    /// Whether `shared_preload_libraries` are loaded.
    pub preload: bool,
    /// How long recovery may take.
    pub timeout: Duration,
    /// Whether the directory is left behind.
    pub keep: bool,
}

/// What a drill found.
#[derive(Debug, Clone, Serialize)]
pub struct DrillReport {
    /// The backup.
    pub label: Label,
    /// Where recovery was to end, for people.
    pub target: String,
    /// The version of the server.
    pub server_version: String,
    /// Bytes that were restored.
    pub bytes: u64,
    /// How long the files took.
    pub restore_seconds: f64,
    /// How long recovery took, from the server's start until it accepted connections.
    pub recovery_seconds: f64,
    /// How long the examination took.
    pub examination_seconds: f64,
    /// The last position that was replayed.
    pub recovered_to: Option<String>,
    /// The time of the last commit that was replayed, in the server's words.
    pub last_commit: Option<String>,
    /// What was examined.
    pub findings: Vec<Finding>,
    /// Whether all was well.
    pub passed: bool,
    /// The directory, where it was left behind.
    pub kept: Option<PathBuf>,
}

impl DrillReport {
    /// From nothing to a server that answers.
    pub fn recovery_time(&self) -> f64 {
        self.restore_seconds + self.recovery_seconds
    }
}

/// Holds a drill, and records how it went.
///
/// Cancelled, the server is stopped and the scratch directory removed; nothing is recorded.
///
/// # Errors
///
/// When it could not be held; or when the backup could not be restored, which is recorded. What the examination
/// finds is no error but in the report.
pub async fn drill(
    repository: &PhysicalRepository,
    request: &DrillRequest,
    reporter: &dyn Reporter,
    cancellation: &CancellationToken,
) -> Result<DrillReport, DrillError> {
    let lease = repository.lease(LeaseKind::Drill, LeaseScope::All).await?;
    let head = repository.head().await?;
    let entry = choose(repository, &head, request.which)?.clone();
    lease.narrow([entry.label]).await?;
    let began = Instant::now();
    let held = hold(repository, &entry, request, reporter, cancellation).await;
    if let Err(error) = lease.finish().await {
        tracing::warn!(%error, "the lease of this drill runs out by itself");
    }
    let examination = match &held {
        Ok(report) => Some(Examination {
            at: Timestamp::now(),
            passed: report.passed,
            detail: detail(report),
            seconds: began.elapsed().as_secs(),
        }),
        Err(error) if error.is_the_backups_fault() && !cancellation.is_cancelled() => Some(Examination {
            at: Timestamp::now(),
            passed: false,
            detail: error.to_string().lines().next().unwrap_or_default().to_owned(),
            seconds: began.elapsed().as_secs(),
        }),
        Err(_) => None,
    };
    if let Some(examination) = examination {
        let recorded = repository
            .swap(|head: &mut Head| {
                for backup in &mut head.backups {
                    if backup.label == entry.label {
                        backup.drilled = Some(examination.clone());
                    }
                }
                Ok::<_, DrillError>(())
            })
            .await;
        match (recorded, &held) {
            (Err(error), Ok(_)) => return Err(error),
            (Err(error), Err(_)) => tracing::warn!(%error, "the result of the drill cannot be recorded"),
            (Ok(()), _) => {}
        }
    }
    held
}

fn choose<'a>(
    repository: &PhysicalRepository,
    head: &'a Head,
    which: Which,
) -> Result<&'a BackupEntry, DrillError> {
    let none = || DrillError::NoBackup {
        stanza: repository.stanza().to_string(),
    };
    match which {
        Which::Newest => head.backups.last().ok_or_else(none),
        Which::Label(label) => Ok(repository.backup_in(head, label)?),
        Which::Random => {
            let count = head.backups.len().max(1) as u64;
            let number = usize::try_from(random() % count).unwrap_or(0);
            head.backups.get(number).ok_or_else(none)
        }
    }
}

async fn hold(
    repository: &PhysicalRepository,
    entry: &BackupEntry,
    request: &DrillRequest,
    reporter: &dyn Reporter,
    cancellation: &CancellationToken,
) -> Result<DrillReport, DrillError> {
    let (header, end) = repository
        .read_manifest_ends(entry.label, Some(entry.manifest))
        .await?;
    let major = header.server_version.major();
    let bin_dir = Binaries::find(
        "postgres",
        Requirement::Exactly(major),
        request.bin_dir.as_deref(),
    )?
    .directory()
    .to_owned();
    let parent = request.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let wal = wal_bytes(repository, entry, cancellation).await?;
    room::check(&parent, &end, wal)?;
    let (target, described) = target(repository, entry, &request.to, cancellation).await?;
    reporter.message(
        Level::Info,
        &format!(
            "restoring backup {} to {described} under {}",
            entry.label,
            parent.display()
        ),
    );

    let house = ThrowawayHouse::create(ThrowawayOptions {
        bin_dir: bin_dir.clone(),
        parent: Some(parent),
        settings: Vec::new(),
        keep: request.keep,
    })?;
    // In its place before the restore, which gives everything to the owner of this directory.
    let data = house.directory(server::NAME)?;
    let tablespaces = header
        .tablespaces
        .iter()
        .filter(|tablespace| !tablespace.in_place);
    let mut moved = Vec::new();
    for tablespace in tablespaces {
        let path = house.directory(&format!("tablespace-{}", tablespace.oid))?;
        moved.push((tablespace.oid.to_string(), path));
    }
    let restore = RestoreRequest {
        remap: Remap {
            data_dir: data.clone(),
            wal_dir: None,
            tablespaces: moved,
        },
        aim: Aim {
            target,
            ..Aim::default()
        }
        .checked()?,
        label: Some(entry.label),
        delta: false,
        keep_old: false,
        archiving: Archiving::Off,
        standby: None,
        databases: Vec::new(),
        include: None,
        jobs: request.jobs,
        received: None,
        restore_command: request.restore_command.clone(),
        start: None,
        parameters: json!({}),
    };
    let began = Instant::now();
    let procedure = Restore::prepare(repository.clone(), restore, cancellation).await?;
    if let Some(obstacle) = procedure.obstacle().await {
        return Err(obstacle.into());
    }
    // The journal of a drill is of no use after it: it ends with the scratch directory.
    let runner = Runner::at(StateDirectory::at(house.root().join("state")));
    let quiet = Quiet(reporter);
    let surroundings = Surroundings {
        confirm: &Always,
        reporter: &quiet,
        cancellation,
    };
    runner
        .run(&procedure, RunOptions::default(), surroundings)
        .await
        .map_err(|error| {
            if cancellation.is_cancelled() {
                DrillError::Cancelled
            } else {
                DrillError::Procedure(error)
            }
        })?;
    let restored = began.elapsed();
    drop(procedure);

    let began = Instant::now();
    let mut running = server::start(&house, &data, request)?;
    server::wait(&mut running, request.timeout, cancellation).await?;
    let recovered = began.elapsed();
    reporter.message(
        Level::Info,
        &format!(
            "restored in {}, recovered in {}; examining",
            HumanDuration(restored),
            HumanDuration(recovered)
        ),
    );

    let began = Instant::now();
    let progress = server::Progress::of(&running);
    let findings = examine::examine(&running, &bin_dir, request, cancellation).await?;
    running.stop().await;
    Ok(DrillReport {
        label: entry.label,
        target: described,
        server_version: header.server_version.to_string(),
        bytes: end.bytes,
        restore_seconds: restored.as_secs_f64(),
        recovery_seconds: recovered.as_secs_f64(),
        examination_seconds: began.elapsed().as_secs_f64(),
        recovered_to: progress.redo_done,
        last_commit: progress.last_commit,
        passed: findings.iter().all(|finding| finding.passed),
        findings,
        kept: request.keep.then(|| house.root().to_owned()),
    })
}

/// One line for the head.
fn detail(report: &DrillReport) -> String {
    match report.findings.iter().find(|finding| !finding.passed) {
        Some(failed) => format!(
            "{}: {}",
            failed.what,
            failed.detail.lines().next().unwrap_or_default()
        ),
        None => format!(
            "restored to {} in {:.0} s and recovered in {:.0} s",
            report.target, report.restore_seconds, report.recovery_seconds
        ),
    }
}

/// The target, and how people call it.
async fn target(
    repository: &PhysicalRepository,
    entry: &BackupEntry,
    to: &To,
    cancellation: &CancellationToken,
) -> Result<(Target, String), DrillError> {
    match to {
        To::Latest => Ok((Target::Latest, "the end of the archive".to_owned())),
        To::Target(target) => Ok((target.clone(), format!("{target:?}").to_lowercase())),
        To::Random => {
            // Every byte before the last segment was written; in the last one the server may have left the rest.
            let end = last_whole_segment(repository, entry, cancellation).await?;
            let first = entry.stop_lsn.as_u64();
            match end.filter(|end| *end > first) {
                Some(end) => {
                    let lsn = Lsn::new(first + 1 + random() % (end - first));
                    Ok((Target::Lsn(lsn), format!("position {lsn}")))
                }
                None => Ok((Target::Immediate, "the end of the backup".to_owned())),
            }
        }
    }
}

/// Where the last segment begins that the archive has without a gap from the end of the backup on.
async fn last_whole_segment(
    repository: &PhysicalRepository,
    entry: &BackupEntry,
    cancellation: &CancellationToken,
) -> Result<Option<u64>, DrillError> {
    let archive = WalArchive::new(repository.clone());
    let inventory = archive.list(cancellation).await.map_err(DrillError::Archive)?;
    let last = inventory.unbroken_until(entry.wal.last);
    Ok(last
        .and_then(|segment| segment.start(inventory.segment_size).ok())
        .map(Lsn::as_u64))
}

/// Bytes of WAL that the server may have to fetch.
async fn wal_bytes(
    repository: &PhysicalRepository,
    entry: &BackupEntry,
    cancellation: &CancellationToken,
) -> Result<u64, DrillError> {
    let end = last_whole_segment(repository, entry, cancellation).await?;
    Ok(end.map_or(0, |end| end.saturating_sub(entry.start_lsn.as_u64())))
}

/// A random number; zero should the system have none, which is as good as any.
fn random() -> u64 {
    let mut bytes = [0; 8];
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Progress and warnings of the restore, without its plan and its talk.
struct Quiet<'a>(&'a dyn Reporter);

impl Reporter for Quiet<'_> {
    fn message(&self, level: Level, text: &str) {
        if level == Level::Warning {
            self.0.message(level, text);
        }
    }

    fn plan(&self, _text: &str) {}

    fn start(&self, task: pgmahout_procedure::report::Task) -> Box<dyn pgmahout_procedure::report::Progress> {
        self.0.start(task)
    }
}
