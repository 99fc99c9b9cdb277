//! `backup create`: a physical backup of a running server.
//!
//! ```text
//! preflight -> lease, head -> older backup, packs that were left -> pg_backup_start -> walk
//!   workers:   read 1 MiB -> page checksums -> hash, compare -> frames of 128 KiB -> pack in memory
//!   uploaders: full packs -> repository
//! pg_control -> pg_backup_stop -> WAL is in the repository -> manifest -> head
//! ```
//!
//! Where the server's disk is out of reach, `BASE_BACKUP` of the replication protocol stands for all from
//! `pg_backup_start` to `pg_backup_stop`: see `remote`. Everything else is the same, and both build on each
//! other's backups.
//!
//! One session holds the server in backup mode from start to stop. What recovery needs to know of the backup
//! (`backup_label`, `tablespace_map`) is what `pg_backup_stop` gives, and goes into the manifest byte for byte;
//! nothing is ever written into the data directory.
//!
//! The backup exists when the head lists it, which is the last step. Whatever fails before leaves the server
//! out of backup mode and the repository as it was, but for packs that nobody refers to: the next backup finds
//! and uses them.
//!
//! # Memory
//!
//! Under 512 MiB whatever the size of the cluster: 256 MiB of packs, 1 MiB of file and about 1 MiB of tables
//! for each worker, 1.5 MiB of page map for each GiB-segment that is being read (twice, with the older one),
//! and about 250 bytes for each file of the cluster.

mod archive;
mod chunk;
mod cluster;
mod control;
mod describe;
mod error;
mod filter;
mod label;
mod local;
mod outside;
mod pack;
mod parent;
mod pipeline;
mod plan;
mod preflight;
mod record;
mod remote;
mod request;
mod resume;
mod segments;
mod server;
mod shared;
mod sink;
mod sparse;
mod throttle;
mod upload;
mod worker;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use pgmahout_procedure::report::{Level, Reporter};
use pgmahout_store::framed::FrameCodec;
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use pgmahout_types::repository::manifest::{WalRange, Work};
use pgmahout_types::repository::{BackupEntry, Head, Label, Method};
use pgmahout_types::{Bytes, Lsn, TimelineHistory, TimelineId};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use error::CreateError;
pub(super) use pack::PackedFrame;
pub(super) use parent::{MapReader, file_id};
pub use request::{CreateRequest, ReadFilter, default_jobs};

use super::page::verify::BadPage;
use super::stanza::{LeaseGuard, LeaseKind, LeaseScope, PhysicalRepository, StanzaError};
use cluster::Cluster;
use describe::Description;
use outside::Outside;
use parent::Parent;
use pipeline::{Made, Pipeline};
use preflight::{Ready, Source};
use resume::Resume;
use server::{Server, Stopped};

/// How often it is looked whether the session still lives.
const WATCH: Duration = Duration::from_secs(5);
/// Older backups that are tried, should the newest not be readable.
const CANDIDATES: usize = 3;
/// Damaged pages that are named in the summary.
const NAMED: usize = 20;

/// A backup that was taken.
#[derive(Debug, Clone, Serialize)]
pub struct Created {
    /// The repository, as messages name it.
    pub repository: String,
    /// The stanza.
    pub stanza: String,
    /// The backup's name.
    pub label: Label,
    /// The backup with which it was compared.
    pub parent: Option<Label>,
    /// How the files were read.
    pub method: Method,
    /// When it began.
    pub start_time: Timestamp,
    /// When the server left backup mode: every later moment can be restored while the WAL is kept.
    pub stop_time: Timestamp,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where it is consistent.
    pub stop_lsn: Lsn,
    /// The WAL that it needs.
    pub wal: WalRange,
    /// How many files it has.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that were read.
    pub read: u64,
    /// Bytes of files that nobody has written to since the older backup, and which were therefore not read.
    pub unread: u64,
    /// Bytes that no older backup had.
    pub new: u64,
    /// Bytes that were taken over from an interrupted backup.
    pub resumed: u64,
    /// Bytes by which the repository grew.
    pub stored: u64,
    /// How many pages are damaged.
    pub damaged_pages: u64,
    /// The first of them.
    pub damaged: Vec<DamagedPage>,
    /// Files that vanished while the backup was taken.
    pub vanished: u64,
    /// Files from outside the data directory that could not be taken along, and why.
    pub not_included: Vec<String>,
    /// How long everything took, in seconds.
    pub seconds: f64,
    /// For how long of that the server was in backup mode, in seconds.
    pub backup_mode_seconds: f64,
    /// For how long of that the last WAL segments were waited for, in seconds.
    pub wal_wait_seconds: f64,
}

/// A page whose checksum is wrong.
#[derive(Debug, Clone, Serialize)]
pub struct DamagedPage {
    /// The file, in the data directory.
    pub file: String,
    /// The page, counted from the beginning of the file.
    pub block: u32,
}

/// Takes a backup of a server into one repository.
///
/// After cancellation the server has left backup mode and the repository is as it was, but for packs that the
/// next backup can use.
///
/// # Errors
///
/// Problems found before anything was done ([`CreateError::Preflight`] lists all of them), and whatever failed
/// afterwards.
pub async fn create(
    request: &CreateRequest,
    repository: &PhysicalRepository,
    reporter: &Arc<dyn Reporter>,
    cancellation: &CancellationToken,
) -> Result<Created, CreateError> {
    // The future is large, and would be so in every caller.
    Box::pin(checked(request, repository, reporter, cancellation)).await
}

async fn checked(
    request: &CreateRequest,
    repository: &PhysicalRepository,
    reporter: &Arc<dyn Reporter>,
    cancellation: &CancellationToken,
) -> Result<Created, CreateError> {
    let begun = Instant::now();
    let ready = Box::pin(unless_cancelled(cancellation, preflight::check(request))).await??;
    let Ready {
        server,
        cluster,
        source,
    } = ready;
    let work = async {
        match &source {
            Source::Directory { control, .. } => repository.check_control(control)?,
            Source::Stream(_) => {
                repository.check_identity(cluster.system_identifier, server.facts.version.major())?;
            }
        }
        let lease = begin_lease(repository).await?;
        let run = Run {
            request,
            repository,
            reporter,
            cancellation,
            server: &server,
            cluster: &cluster,
            lease: &lease,
            begun,
        };
        let taken = Box::pin(run.take(source)).await;
        if let Err(error) = lease.finish().await {
            tracing::debug!(%error, "the lease was not removed; it runs out by itself");
        }
        taken
    };
    match Box::pin(work).await {
        Ok(created) => {
            server.close().await;
            Ok(created)
        }
        Err(error) => {
            server.abandon().await;
            // Whatever noticed it first.
            Err(match error.outcome() {
                Outcome::Interrupted => CreateError::Interrupted,
                _ => error,
            })
        }
    }
}

/// Waits for something that may be dropped when the backup is cancelled.
async fn unless_cancelled<T>(
    cancellation: &CancellationToken,
    work: impl Future<Output = T>,
) -> Result<T, CreateError> {
    tokio::select! {
        done = work => Ok(done),
        () = cancellation.cancelled() => Err(CreateError::Interrupted),
    }
}

/// Takes a lease, and looks whether another backup of the stanza runs.
///
/// Two backups at a time do no harm, but store everything twice. Of two that begin at once the older goes on.
async fn begin_lease(repository: &PhysicalRepository) -> Result<LeaseGuard, CreateError> {
    let lease = repository.lease(LeaseKind::Backup, LeaseScope::All).await?;
    let own = lease.lease();
    let now = lease.written().await?;
    let others = repository.leases(Some(&lease)).await?;
    let running = others.iter().find_map(|seen| {
        let other = seen.lease.as_ref()?;
        let earlier = (other.since, &*seen.id) < (own.since, lease.id());
        let runs = seen.is_alive(now) && !has_ended(&other.owner);
        (other.kind == LeaseKind::Backup && earlier && runs).then_some(other)
    });
    if let Some(other) = running {
        let error = CreateError::Running {
            stanza: repository.stanza().to_string(),
            holder: format!("{}, since {}", other.owner, other.since),
        };
        lease.finish().await?;
        return Err(error);
    }
    Ok(lease)
}

/// One backup.
struct Run<'a> {
    request: &'a CreateRequest,
    repository: &'a PhysicalRepository,
    reporter: &'a Arc<dyn Reporter>,
    cancellation: &'a CancellationToken,
    server: &'a Server,
    cluster: &'a Cluster,
    lease: &'a LeaseGuard,
    begun: Instant,
}

/// All files, and where the backup began and ended.
struct Copied {
    made: Made,
    stopped: Stopped,
    stop_time: Timestamp,
    /// For how long the server was in backup mode.
    backup_mode: Duration,
    /// The history file of the timeline, where there is one.
    history: Option<Vec<u8>>,
}

impl Run<'_> {
    async fn take(&self, source: Source) -> Result<Created, CreateError> {
        // Everything that is reused is looked for after this head: see `Head::publish`.
        let head = self.repository.head().await?;
        let parent = unless_cancelled(self.cancellation, self.parent(&head)).await??;
        self.lease
            .narrow(parent.as_ref().map(|parent| parent.label))
            .await?;
        let parent_label = parent.as_ref().map(|parent| parent.label);
        let label = next_label(&head, Timestamp::now(), self.reporter.as_ref())?;
        self.lease.change(|lease| lease.run = Some(label)).await?;
        let resume = self.resume(parent.as_ref(), &head).await?;

        let start_time = Timestamp::now();
        self.reporter.message(
            Level::Detail,
            if self.request.fast_checkpoint {
                "waiting for a checkpoint"
            } else {
                "waiting for a checkpoint, which is spread out: --checkpoint fast would make it at once"
            },
        );
        let remote = matches!(source, Source::Stream(_));
        let copied = match source {
            Source::Directory { data_dir, .. } => {
                Box::pin(self.copy_directory(&data_dir, parent, resume, label)).await?
            }
            Source::Stream(stream) => Box::pin(self.copy_stream(*stream, parent, resume, label)).await?,
        };
        let Copied {
            made,
            stopped,
            stop_time,
            backup_mode,
            history,
        } = copied;
        let timeline = server::start_timeline(&stopped.parsed);
        self.check_timeline(&made, timeline)?;

        let segments = segments::needed(
            stopped.parsed.start.lsn,
            stopped.stop,
            &TimelineHistory::root(timeline),
            self.cluster.wal_segment_size,
        );
        let waited = Instant::now();
        self.wait_for_wal(&segments).await?;
        let wal_wait = waited.elapsed();

        let outside = self.take_outside(label).await?;
        let not_included = outside.missing.clone();
        let (bad, unlisted) = settle(&made, stopped.stop);
        let counts = &made.counts;
        let work = Work {
            read: counts.read.load(Ordering::Relaxed) + outside.read,
            new: counts.new.load(Ordering::Relaxed) + outside.read,
            stored: made.stored + outside.stored(),
            resumed: counts.resumed.load(Ordering::Relaxed),
        };
        let unread = counts.unread.load(Ordering::Relaxed);
        let vanished = counts.vanished.load(Ordering::Relaxed);
        let damaged = bad
            .iter()
            .take(NAMED)
            .map(|(number, page)| DamagedPage {
                file: String::from_utf8_lossy(&made.list.file(*number as usize).path()).into_owned(),
                block: page.block,
            })
            .collect();
        let damaged_pages = bad.len() as u64 + unlisted;
        let (repository, version) = (self.repository.clone(), self.server.facts.version);
        let (method, annotations) = (self.method(remote), self.request.annotations.clone());
        let start_lsn = stopped.parsed.start.lsn;
        let (stop_lsn, codec_segments) = (stopped.stop, segments.clone());
        let progress = made.progress;
        let made = Made {
            progress: Box::new(pgmahout_procedure::report::Silent),
            ..made
        };
        let manifest = tokio::task::spawn_blocking(move || {
            let description = Description {
                label,
                method,
                version,
                parent: parent_label,
                start: start_lsn,
                start_time,
                stop_time,
                timeline,
                segments: &codec_segments,
                stopped: &stopped,
                history,
                annotations,
                bad: &bad,
                work,
                outside,
            };
            describe::manifest(&repository, &made, description)
        })
        .await
        .map_err(|_| CreateError::Thread)??;
        unless_cancelled(self.cancellation, self.lease.hold()).await??;
        self.repository.write_manifest(&manifest).await?;
        let entry = manifest.entry();
        self.repository
            .publish(&entry, head.epoch, &manifest.references())
            .await?;
        progress.finish("");
        Ok(Created {
            repository: self.repository.description(),
            stanza: self.repository.stanza().to_string(),
            label,
            parent: parent_label,
            method: entry.method,
            start_time,
            stop_time,
            timeline,
            start_lsn,
            stop_lsn,
            wal: entry.wal,
            files: entry.files,
            bytes: entry.bytes,
            read: work.read,
            unread,
            new: work.new,
            resumed: work.resumed,
            stored: work.stored + manifest.stored(),
            damaged_pages,
            damaged,
            vanished,
            not_included,
            seconds: self.begun.elapsed().as_secs_f64(),
            backup_mode_seconds: backup_mode.as_secs_f64(),
            wal_wait_seconds: wal_wait.as_secs_f64(),
        })
    }

    /// The configuration that goes along.
    async fn take_outside(&self, run: Label) -> Result<Outside, CreateError> {
        let repository = self.repository.blocking();
        let codec = self
            .request
            .codec
            .unwrap_or_else(|| FrameCodec::from(self.repository.repository().compression()));
        let include = self.request.include.clone();
        tokio::task::spawn_blocking(move || outside::take(&repository, codec, run, &include))
            .await
            .map_err(|_| CreateError::Thread)?
    }

    fn method(&self, remote: bool) -> Method {
        if remote {
            Method::Remote
        } else if self.server.facts.in_recovery {
            Method::Standby
        } else {
            Method::Local
        }
    }

    /// The newest backup that can be read and compared with.
    async fn parent(&self, head: &Head) -> Result<Option<Parent>, CreateError> {
        let usable: Vec<&BackupEntry> = parent::usable(
            head,
            self.cluster.system_identifier,
            self.server.facts.version.major(),
        )
        .take(CANDIDATES)
        .collect();
        for entry in usable {
            match Parent::load(self.repository, entry, self.cluster).await {
                Ok(Some(mut parent)) => {
                    parent.leave_behind(sparse::mostly_dead(self.repository, head, &parent).await);
                    return Ok(Some(parent));
                }
                Ok(None) => {}
                Err(error) if is_damage(&error) => self.reporter.message(
                    Level::Warning,
                    &format!(
                        "the backup {} cannot be read, so that nothing of it is built on: {}; \
                         pgmahout backup verify {} says more",
                        entry.label,
                        crate::dump::error::Problem::of(&error).what,
                        entry.label
                    ),
                ),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// What an interrupted backup left.
    async fn resume(&self, parent: Option<&Parent>, head: &Head) -> Result<Option<Resume>, CreateError> {
        if !self.request.resume {
            return Ok(None);
        }
        let known: HashSet<_> = parent.iter().flat_map(|parent| parent.packs()).collect();
        let now = self.lease.written().await?;
        let candidates = resume::candidates(self.repository, &known, now, self.cancellation).await?;
        if candidates.is_empty() {
            return Ok(None);
        }
        let repository = self.repository.blocking();
        let listed: HashSet<Label> = head.labels().collect();
        let resume = tokio::task::spawn_blocking(move || Resume::load(repository, candidates, &listed))
            .await
            .map_err(|_| CreateError::Thread)?;
        if let Some(resume) = &resume {
            let (packs, bytes) = resume.size();
            self.reporter.message(
                Level::Detail,
                &format!(
                    "looking for what can be used of {packs} packs ({}) that no backup names",
                    Bytes::new(bytes)
                ),
            );
            // A collection leaves what a running backup may have written itself.
            let oldest: SystemTime = resume.oldest;
            self.lease
                .change(|lease| {
                    let oldest = Timestamp::try_from(oldest).ok();
                    lease.objects_since = lease.objects_since.min(oldest).or(lease.objects_since);
                })
                .await?;
        }
        Ok(resume)
    }

    /// The threads, but for what differs between the sources of files.
    fn pipeline(&self, run: Label, start: Lsn) -> Pipeline {
        Pipeline {
            repository: self.repository.blocking(),
            parent: None,
            resume: None,
            run,
            codec: self
                .request
                .codec
                .unwrap_or_else(|| FrameCodec::from(self.repository.repository().compression())),
            jobs: self.request.jobs,
            nice: self.request.nice,
            start,
            cluster: *self.cluster,
            progress: Box::new(pgmahout_procedure::report::Silent),
            cancellation: self.cancellation.clone(),
        }
    }

    /// Recovery follows one timeline from the start to the stop.
    fn check_timeline(&self, made: &Made, started: TimelineId) -> Result<(), CreateError> {
        if !self.server.facts.in_recovery {
            return Ok(());
        }
        match made.control.min_recovery.and_then(|point| point.timeline) {
            Some(ended) if ended != started => Err(CreateError::TimelineChanged {
                from: started,
                to: ended,
            }),
            _ => Ok(()),
        }
    }

    async fn wait_for_wal(&self, segments: &[pgmahout_types::SegmentName]) -> Result<(), CreateError> {
        if let Some(primary) = self
            .request
            .primary
            .as_ref()
            .filter(|_| self.server.facts.in_recovery)
        {
            unless_cancelled(self.cancellation, server::switch_wal(primary)).await??;
        }
        let begun = Instant::now();
        let expected = archive::Expected {
            system_identifier: self.cluster.system_identifier,
            segment_size: self.cluster.wal_segment_size,
        };
        self.reporter.message(
            Level::Detail,
            &format!("waiting for {} WAL segments in the repository", segments.len()),
        );
        let missing = archive::wait(
            self.repository,
            segments,
            expected,
            self.request.wal_timeout,
            self.cancellation,
        )
        .await?;
        if missing.is_empty() {
            return Ok(());
        }
        Err(CreateError::WalMissing {
            missing: missing.iter().map(ToString::to_string).collect(),
            waited: begun.elapsed(),
            repository: self.repository.description(),
            archiver: self.server.archiver().await.describe(),
            standby: self.server.facts.in_recovery,
        })
    }
}

/// Whether the owner of a lease was a process of this host that is gone: a killed one leaves its lease behind.
/// Where that is wrong, because hosts share a name, two backups run at a time.
fn has_ended(owner: &str) -> bool {
    let host = rustix::system::uname();
    owner
        .rsplit_once(':')
        .filter(|(name, process)| {
            *name == host.nodename().to_string_lossy() && process.bytes().all(|byte| byte.is_ascii_digit())
        })
        .is_some_and(|(_, process)| !std::path::Path::new("/proc").join(process).exists())
}

/// A label behind all others: labels are in the order of the backups, whatever the clock does.
fn next_label(head: &Head, now: Timestamp, reporter: &dyn Reporter) -> Result<Label, CreateError> {
    let id = pack::random_id()?;
    let [high, low, ..] = *id.as_bytes();
    let suffix = u16::from_be_bytes([high, low]);
    let newest = head.backups.last().map(|newest| newest.label);
    if let Some(newest) = newest
        && label::is_behind(newest, now)
    {
        let text = format!(
            "this host's clock is behind the newest backup, {newest}: the new one is named as if it came right after it; look at the clock"
        );
        reporter.message(Level::Warning, &text);
    }
    Ok(label::next(newest, now, suffix))
}

/// Whether an older backup is damaged, rather than out of reach.
fn is_damage(error: &CreateError) -> bool {
    match error {
        CreateError::Stanza(StanzaError::Store(_) | StanzaError::Cancelled) => false,
        CreateError::Stanza(error) if error.is_not_found() => true,
        CreateError::Stanza(_) | CreateError::Unexpected { .. } | CreateError::Framed { .. } => true,
        _ => false,
    }
}

/// The pages that are damaged, now that it is known where the backup ended, and how many are not listed.
fn settle(made: &Made, stop: Lsn) -> (Vec<(u32, BadPage)>, u64) {
    let findings = &made.findings;
    let mut bad = findings.bad.clone();
    bad.extend(
        findings
            .suspects
            .iter()
            .filter_map(|(number, suspect)| Some((*number, suspect.settle(stop)?))),
    );
    bad.sort_unstable_by_key(|(number, page)| (*number, page.block));
    (bad, findings.unlisted)
}
