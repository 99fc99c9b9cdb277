//! Why a physical restore was refused or failed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pgmahout_durable::DurableError;
use pgmahout_postgres::conf_file::ConfError;
use pgmahout_postgres::connection::ConnectError;
use pgmahout_postgres::control::ControlError;
use pgmahout_postgres::throwaway::ThrowawayError;
use pgmahout_procedure::ProcedureError;
use pgmahout_store::StoreError;
use pgmahout_store::framed::FramedError;
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use pgmahout_types::repository::Label;
use pgmahout_types::{Bytes, Lsn, SegmentName, SystemIdentifier, TimelineId};

use super::moment;

/// The target that comes closest to one that cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nearest {
    /// A moment.
    Time(Timestamp),
    /// A position.
    Lsn(Lsn),
}

impl fmt::Display for Nearest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(at) => formatter.write_str(&moment::utc(*at)),
            Self::Lsn(lsn) => write!(formatter, "{lsn}"),
        }
    }
}

impl Nearest {
    /// As an option of the command line.
    fn option(&self) -> String {
        match self {
            Self::Time(at) => format!("--target-time \"{}\"", moment::setting(*at)),
            Self::Lsn(lsn) => format!("--target-lsn {lsn}"),
        }
    }
}

/// Why a physical restore was refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// What was asked cannot be meant.
    #[error("{what}")]
    Usage {
        /// What is wrong.
        what: String,
        /// What to type instead.
        hint: String,
    },
    /// A safety rule forbids it.
    #[error("{what}")]
    Refused {
        /// What stands in the way.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// There is nothing to restore.
    #[error("the repository has no backup of this stanza")]
    NoBackup,
    /// There is no backup of that name.
    #[error("there is no backup {label}")]
    NoSuchBackup {
        /// What was asked for.
        label: Label,
        /// The newest that there is.
        newest: Option<Label>,
    },
    /// The target lies before the backup is consistent.
    #[error(
        "{target} lies before the end of backup {label} ({nearest}), before which no restore of it can stop"
    )]
    BeforeBackup {
        /// The target.
        target: String,
        /// The backup.
        label: Label,
        /// Its end.
        nearest: Nearest,
        /// A backup that ended before the target.
        better: Option<Label>,
    },
    /// The target lies behind the WAL that there is.
    #[error(
        "{target} is not in the archive: {} {missing} is missing on the way along timeline {timeline}, {}",
        if *.is_gap { "there is a gap," } else { "the WAL ends," },
        end(.nearest)
    )]
    BeyondArchive {
        /// The target.
        target: String,
        /// The timeline that was followed.
        timeline: TimelineId,
        /// The last that can be reached.
        nearest: Nearest,
        /// The first segment that is not there.
        missing: SegmentName,
        /// Whether there are others behind it.
        is_gap: bool,
        /// Another timeline that has the position.
        other: Option<TimelineId>,
    },
    /// Nothing is known of the timeline.
    #[error("timeline {timeline} is not in the archive: there is no file {:08X}.history", .timeline.get())]
    UnknownTimeline {
        /// The timeline.
        timeline: TimelineId,
        /// Those that there are.
        known: Vec<TimelineId>,
    },
    /// The backup is of another line of history.
    #[error(
        "backup {label} does not lie on the way to timeline {timeline}: it ends on timeline {on} at {stop}{}",
        match .left { Some(left) => format!(", which timeline {} had left at {left}", .timeline), None => String::new() }
    )]
    NotOnTimeline {
        /// The backup.
        label: Label,
        /// Its timeline.
        on: TimelineId,
        /// Where it ends.
        stop: Lsn,
        /// The timeline that was asked for.
        timeline: TimelineId,
        /// Where that one left the backup's timeline; `None` where it never was on it.
        left: Option<Lsn>,
    },
    /// The backup's own WAL is incomplete.
    #[error(
        "backup {label} cannot be restored: WAL segment {segment}, which it needs, is not in the archive"
    )]
    WalMissing {
        /// The backup.
        label: Label,
        /// The segment.
        segment: SegmentName,
    },
    /// The server would follow another timeline than planned.
    #[error(
        "WAL segment {missing} of timeline {timeline} is not in the archive, but {impostor} is, which the server would \
         replay in its place, and with it changes that are not on timeline {timeline}"
    )]
    LeavesPath {
        /// The segment that belongs there.
        missing: SegmentName,
        /// The one that would be taken.
        impostor: SegmentName,
        /// The timeline.
        timeline: TimelineId,
    },
    /// A server runs on the data directory.
    #[error("a server is running on {}: process {pid}", .directory.display())]
    Running {
        /// The data directory.
        directory: PathBuf,
        /// The process that postmaster.pid names.
        pid: u32,
    },
    /// Sessions of a killed server are left.
    #[error("processes of a killed server still use {} (shared memory segment {shm})", .directory.display())]
    Leftovers {
        /// The data directory.
        directory: PathBuf,
        /// The segment.
        shm: u64,
    },
    /// Another restore is at work.
    #[error("another restore is at work on {}", .directory.display())]
    Busy {
        /// The directory.
        directory: PathBuf,
    },
    /// The directory has something in it.
    #[error("{what} {} is not empty: it has {}", .directory.display(), entries(.found))]
    NotEmpty {
        /// `data directory`, `tablespace`, `WAL directory`.
        what: &'static str,
        /// Which.
        directory: PathBuf,
        /// What is in it, the beginning.
        found: Vec<String>,
        /// Whether it looks like a data directory of the same cluster.
        is_same_cluster: bool,
    },
    /// It is the directory of another cluster.
    #[error(
        "{} is the data directory of another cluster: its system identifier is {found}, the backup's is {expected}",
        .directory.display()
    )]
    OtherCluster {
        /// The directory.
        directory: PathBuf,
        /// Its identifier.
        found: SystemIdentifier,
        /// The backup's.
        expected: SystemIdentifier,
    },
    /// The directory belongs to somebody else.
    #[error("{} belongs to {owner}, and this is {user}: the server would not start on it", .directory.display())]
    WrongOwner {
        /// The directory.
        directory: PathBuf,
        /// Its owner.
        owner: String,
        /// Who runs this.
        user: String,
    },
    /// Root does not know to whom the files are to belong.
    #[error("as root, the owner of the files is not known: {why}")]
    NoOwner {
        /// Why.
        why: String,
        /// The data directory.
        directory: PathBuf,
    },
    /// Not enough room.
    #[error("not enough space on the file system of {}: {} needed, {} free", .path.display(), Bytes::new(*.needed), Bytes::new(*.free))]
    NoSpace {
        /// A directory on it.
        path: PathBuf,
        /// What is to be written, in bytes.
        needed: u64,
        /// What is free, in bytes.
        free: u64,
    },
    /// A file or directory of the target could not be read or written.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// The verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The repository failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object of the repository is damaged.
    #[error("cannot use {object} of the repository")]
    Framed {
        /// Its name.
        object: String,
        /// Why.
        #[source]
        source: FramedError,
    },
    /// What is in the repository contradicts itself.
    #[error("backup {label} is damaged: {why}")]
    Damaged {
        /// The backup.
        label: String,
        /// What was found.
        why: String,
    },
    /// A block is not what was backed up.
    #[error(
        "block {block} of {file} is not what was backed up: its content in {object} has another hash; it was not written"
    )]
    WrongBlock {
        /// The file.
        file: String,
        /// The block, from zero.
        block: u32,
        /// The pack.
        object: String,
    },
    /// The repository's own things: stanza, head, leases, manifests.
    #[error(transparent)]
    Stanza(#[from] crate::physical::stanza::StanzaError),
    /// The configuration of the restored server could not be edited.
    #[error(transparent)]
    Conf(#[from] ConfError),
    /// A small file could not be written.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// The server could not be started.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The live database, or the side server, could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A server refused a statement.
    #[error("cannot {doing}")]
    Sql {
        /// The verb phrase.
        doing: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No side server.
    #[error(transparent)]
    Throwaway(#[from] ThrowawayError),
    /// The side server's files could not be restored.
    #[error(transparent)]
    Side(Box<ProcedureError>),
    /// Recovery did not end as planned.
    #[error("recovery did not reach its target: {why}")]
    Recovery {
        /// What the server says.
        why: String,
        /// What to do.
        hint: String,
    },
    /// A thread of ours ended without a result.
    #[error("internal error: a thread of the restore ended without a result")]
    Thread,
    /// A signal or the user stopped it.
    #[error("the restore was interrupted; {} is incomplete, and no server can start on it", .directory.display())]
    Interrupted {
        /// The data directory.
        directory: PathBuf,
    },
}

fn end(nearest: &Nearest) -> String {
    match nearest {
        Nearest::Time(at) => format!(
            "and the last segment before it was archived at {}",
            moment::utc(*at)
        ),
        Nearest::Lsn(lsn) => format!("and what is before it ends at {lsn}"),
    }
}

fn entries(found: &[String]) -> String {
    match found {
        [] => "something in it".to_owned(),
        [first] => first.clone(),
        [first, second] => format!("{first} and {second}"),
        [first, second, rest @ ..] => format!("{first}, {second} and {} more", rest.len()),
    }
}

impl RestoreError {
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io {
            doing,
            path: path.as_ref().to_owned(),
            source,
        }
    }

    pub(crate) fn damaged(label: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::Damaged {
            label: label.to_string(),
            why: why.to_string(),
        }
    }
}

impl Diagnose for RestoreError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Usage { hint, .. } | Self::Refused { hint, .. } | Self::Recovery { hint, .. } => hint.clone(),
            Self::NoBackup => "see what there is with `pgmahout repo info`, and take one: pgmahout backup create".to_owned(),
            Self::NoSuchBackup { newest, .. } => match newest {
                Some(newest) => format!("list them with `pgmahout backup list`; the newest is {newest}"),
                None => "list them: pgmahout backup list".to_owned(),
            },
            Self::BeforeBackup { better: Some(better), .. } => {
                format!("backup {better} ended before it: leave --backup out, or say --backup {better}")
            }
            Self::BeforeBackup { nearest, .. } => {
                format!("the nearest possible target is {}; older backups: pgmahout backup list", nearest.option())
            }
            Self::BeyondArchive { other: Some(other), .. } => {
                format!("timeline {other} has that position: --target-timeline {other}")
            }
            Self::BeyondArchive { nearest: Nearest::Time(at), is_gap, .. } => {
                let nearest = Nearest::Time(*at).option();
                if *is_gap {
                    format!("the nearest possible target is before {nearest}; a backup behind the gap reaches further: pgmahout wal list")
                } else {
                    format!("leave the target out to go to the end of the archive; the nearest possible one is before {nearest}")
                }
            }
            Self::BeyondArchive { .. } => {
                "leave the target out to go to the end of the archive; see what it has: pgmahout wal list".to_owned()
            }
            Self::UnknownTimeline { known, .. } => {
                let known: Vec<String> = known.iter().map(ToString::to_string).collect();
                format!("the archive has timelines {}; see them with: pgmahout wal list", known.join(", "))
            }
            Self::NotOnTimeline { on, left, label, .. } => match left {
                Some(_) => format!("choose an older backup (pgmahout backup list), or --target-timeline {on} to follow the one of {label}"),
                None => format!("say --target-timeline {on} to follow the timeline of {label}, or choose another backup: pgmahout backup list"),
            },
            Self::WalMissing { .. } => {
                "choose another backup (pgmahout backup list); see what the archive has: pgmahout wal verify".to_owned()
            }
            Self::LeavesPath { timeline, impostor, .. } => format!(
                "archive the missing segment from the server of timeline {timeline}, or follow --target-timeline {}",
                impostor.timeline()
            ),
            Self::Running { directory, .. } => {
                format!("stop it first: pg_ctl stop -D {}", directory.display())
            }
            Self::Leftovers { directory, .. } => {
                format!("end them first: fuser -v {}", directory.display())
            }
            Self::Busy { .. } => "wait for it, or end it; see: pgmahout procedure list".to_owned(),
            Self::NotEmpty { what: "data directory", is_same_cluster: true, .. } => {
                "with --delta only what differs is fetched and what does not belong there removed; with --keep-old the directory is moved aside".to_owned()
            }
            Self::NotEmpty { what: "data directory", .. } => {
                "choose an empty directory, or move this one aside with --keep-old".to_owned()
            }
            Self::NotEmpty { what: "tablespace", directory, .. } => format!(
                "restore it elsewhere with --tablespace OID=DIRECTORY, or reuse {} with --delta",
                directory.display()
            ),
            Self::NotEmpty { .. } => "choose an empty directory, or reuse it with --delta".to_owned(),
            Self::OtherCluster { .. } => {
                "choose another directory, or another --stanza; --keep-old moves this one aside".to_owned()
            }
            Self::WrongOwner { owner, .. } => format!("run this as the owner: sudo -u {owner} pgmahout restore ..."),
            Self::NoOwner { directory, .. } => {
                format!("give the directory to the server's user first: install -d -m 700 -o postgres -g postgres {}", directory.display())
            }
            Self::NoSpace { path, .. } => format!("free some, or restore elsewhere: df -h {}", path.display()),
            Self::Io { source, path, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => "run this as root or as the server's user".to_owned(),
                io::ErrorKind::StorageFull => format!("free some space and continue with --delta: df -h {}", path.display()),
                _ => format!("look at the kernel's log for this file system: dmesg; ls -ld {}", path.display()),
            },
            Self::Store(error) => return error.hint(),
            Self::Framed { source, .. } => return source.hint(),
            Self::Stanza(error) => return error.hint(),
            Self::Conf(error) => return error.hint(),
            Self::Durable(error) => return error.hint(),
            Self::Control(error) => return error.hint(),
            Self::Connect(error) => return error.hint(),
            Self::Throwaway(error) => return error.hint(),
            Self::Side(error) => return error.hint(),
            Self::Sql { .. } => {
                "the server's message above says why; mend that and run the command again: nothing was changed".to_owned()
            }
            Self::Damaged { .. } | Self::WrongBlock { .. } => {
                "restore another backup (pgmahout backup list) or from another repository with --repo NAME; find what else is damaged: pgmahout backup verify".to_owned()
            }
            Self::Thread => "this is a bug in pgmahout; run again with RUST_BACKTRACE=1 and report what it prints".to_owned(),
            Self::Interrupted { .. } => "continue with --delta, or with: pgmahout procedure resume ID".to_owned(),
        })
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Usage { .. } => Outcome::Usage,
            Self::Refused { .. }
            | Self::BeforeBackup { .. }
            | Self::BeyondArchive { .. }
            | Self::UnknownTimeline { .. }
            | Self::NotOnTimeline { .. }
            | Self::LeavesPath { .. }
            | Self::Running { .. }
            | Self::Leftovers { .. }
            | Self::Busy { .. }
            | Self::NotEmpty { .. }
            | Self::OtherCluster { .. }
            | Self::WrongOwner { .. }
            | Self::NoOwner { .. }
            | Self::NoSpace { .. } => Outcome::Refused,
            Self::Store(error) => error.outcome(),
            Self::Framed { source, .. } => source.outcome(),
            Self::Stanza(error) => error.outcome(),
            Self::Conf(error) => error.outcome(),
            Self::Durable(error) => error.outcome(),
            Self::Control(error) => error.outcome(),
            Self::Connect(error) => error.outcome(),
            Self::Throwaway(error) => error.outcome(),
            Self::Side(error) => error.outcome(),
            Self::Interrupted { .. } => Outcome::Interrupted,
            _ => Outcome::Failed,
        }
    }
}
