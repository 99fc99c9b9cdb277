//! Why a physical backup could not be taken.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgmahout_postgres::connection::ConnectError;
use pgmahout_postgres::connection::replication::ReplicationError;
use pgmahout_store::StoreError;
use pgmahout_types::HumanDuration;
use pgmahout_types::backup_label::BackupLabelError;
use pgmahout_types::control::ControlFileError;
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use pgmahout_types::repository::Label;
use tokio_postgres::error::SqlState;

use crate::dump::error::{Problem, bullets};

/// Why a physical backup could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// What was asked for cannot be meant.
    #[error("{what}")]
    Usage {
        /// What is wrong.
        what: String,
        /// What to type instead.
        hint: String,
    },
    /// The checks before the backup found problems; all of them are listed.
    #[error("the backup cannot be taken: {}", sentence(.problems))]
    Preflight {
        /// What was found; never empty.
        problems: Vec<Problem>,
    },
    /// The server could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refused a statement, or the connection broke.
    #[error("cannot {doing}")]
    Sql {
        /// The verb phrase, for example `begin backup mode`.
        doing: &'static str,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The server does not send its files, or not all of them.
    #[error("cannot {doing}")]
    Replication {
        /// The verb phrase, for example `begin the base backup`.
        doing: &'static str,
        /// Why.
        #[source]
        source: ReplicationError,
    },
    /// The pg_control that the server sent was damaged on the way, or just being written.
    #[error("the server sent a pg_control that cannot be used")]
    SentControl {
        /// Why.
        #[source]
        source: ControlFileError,
    },
    /// The server answered what no known server answers.
    #[error("the server's answer is not understood: {what}")]
    Unexpected {
        /// What it answered.
        what: String,
    },
    /// The server's `backup_label` could not be understood.
    #[error("the server's backup label is not understood")]
    Label(#[from] BackupLabelError),
    /// pg_control stayed unreadable.
    #[error("cannot use {}", .path.display())]
    Control {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ControlFileError,
    },
    /// A file or directory of the cluster could not be read.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// The verb phrase, for example `read`.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The data directory cannot be walked.
    #[error(transparent)]
    Files(#[from] crate::physical::files::walk::WalkError),
    /// The repository's own things: stanza, head, leases, manifests.
    #[error(transparent)]
    Stanza(#[from] crate::physical::stanza::StanzaError),
    /// The repository failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A pack, a map or the manifest could not be made.
    #[error("cannot make {what}")]
    Framed {
        /// For example `a pack of the backup`.
        what: &'static str,
        /// Why.
        #[source]
        source: pgmahout_store::framed::FramedError,
    },
    /// The map of a file could not be made.
    #[error("cannot make the page map of a file")]
    Map(#[source] pgmahout_types::repository::page_map::PageMapError),
    /// A file has more blocks than a page map can hold.
    #[error("a file of {} in the data directory is too large for a backup", pgmahout_types::Bytes::new(*.bytes))]
    FileTooLarge {
        /// Its bytes.
        bytes: u64,
    },
    /// A manifest could not be read or written.
    #[error(transparent)]
    Manifest(#[from] pgmahout_types::repository::manifest::ManifestError),
    /// The standby followed its primary to another timeline while its files were read.
    #[error(
        "the standby went from timeline {from} to {to} while the backup was taken, which makes the backup invalid"
    )]
    TimelineChanged {
        /// Where it began.
        from: pgmahout_types::TimelineId,
        /// Where it ended.
        to: pgmahout_types::TimelineId,
    },
    /// A file has other content than in the older backup, though its file system says that nobody has written to it.
    #[error("{} has changed since the backup {}, but not its times: what else was not read cannot be relied on", file.display(), label(*since))]
    Untraced {
        /// The file.
        file: PathBuf,
        /// The older backup.
        since: Option<Label>,
    },
    /// The server was promoted, or became a standby, while its files were read.
    #[error("the server was promoted while the backup was taken, which makes the backup invalid")]
    Promoted,
    /// WAL of the backup did not arrive in the repository in time.
    #[error("{}", wal_missing(.missing, *.waited, .repository, .archiver))]
    WalMissing {
        /// The segments that are not there, the first ones.
        missing: Vec<String>,
        /// How long it was waited for them.
        waited: Duration,
        /// Name and place of the repository.
        repository: String,
        /// What the server's archiver says.
        archiver: String,
        /// Whether the server is a standby.
        standby: bool,
    },
    /// A WAL segment is in the repository, but is not what it should be.
    #[error("WAL segment {segment} in the repository cannot be used: {why}")]
    WalUnusable {
        /// The segment.
        segment: String,
        /// Why.
        why: String,
    },
    /// Another backup of the stanza runs.
    #[error("another backup of stanza {stanza} is running: {holder}")]
    Running {
        /// The stanza.
        stanza: String,
        /// What is known of it.
        holder: String,
    },
    /// Several repositories, and some failed.
    #[error("the backup failed in {} of {total} repositories: {}", .failed.len(), .failed.join("; "))]
    Repositories {
        /// Names and reasons.
        failed: Vec<String>,
        /// How many there are.
        total: usize,
    },
    /// A thread of ours panicked.
    #[error("internal error: a thread of the backup ended without a result")]
    Thread,
    /// A signal or the user stopped it.
    #[error(
        "the backup was interrupted; the server has left backup mode, and what was stored is kept for the next one"
    )]
    Interrupted,
}

impl CreateError {
    pub(super) fn io(doing: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io {
            doing,
            path: path.as_ref().to_owned(),
            source,
        }
    }
}

fn sentence(problems: &[Problem]) -> String {
    match problems {
        [only] => only.what.clone(),
        many => bullets(many.iter().map(|problem| &problem.what)),
    }
}

fn wal_missing(missing: &[String], waited: Duration, repository: &str, archiver: &str) -> String {
    let which = match missing {
        [only] => format!("WAL segment {only} is"),
        [first, second] => format!("WAL segments {first} and {second} are"),
        [first, .., last] => format!("{} WAL segments from {first} to {last} are", missing.len()),
        [] => "WAL is".to_owned(),
    };
    format!(
        "{which} not in repository {repository} after {}, so the backup would not be restorable{}{archiver}",
        HumanDuration(waited),
        if archiver.is_empty() { "" } else { ": " }
    )
}

fn replication_hint(error: &ReplicationError) -> String {
    error.hint().unwrap_or_else(|| {
        match error {
            ReplicationError::Server { .. } => {
                "the server's message above says why; mend that and run the command again: what was stored is kept"
            }
            _ => {
                "look at the server's log for why it ended the session, and at the network between; then run the \
                 command again: what was stored is kept"
            }
        }
        .to_owned()
    })
}

fn label(since: Option<Label>) -> String {
    since.map_or_else(|| "before".to_owned(), |label| label.to_string())
}

impl Diagnose for CreateError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Usage { hint, .. } => hint,
            Self::Preflight { problems } => {
                return Some(match problems.as_slice() {
                    [only] => only.hint.clone(),
                    many => bullets(many.iter().map(|problem| &problem.hint)),
                });
            }
            Self::Connect(error) => return error.hint(),
            Self::Files(error) => return error.hint(),
            Self::Stanza(error) => return error.hint(),
            Self::Store(error) => return error.hint(),
            Self::Framed { source, .. } => return source.hint(),
            Self::Map(error) => return error.hint(),
            Self::Manifest(error) => return error.hint(),
            Self::Label(error) => return error.hint(),
            Self::Control { source, .. } => return source.hint(),
            Self::Sql { source, .. } => match source.code() {
                Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                    "connect as a superuser, or grant the role EXECUTE on pg_backup_start and pg_backup_stop and \
                     membership in pg_read_all_settings"
                }
                Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) => {
                    "the server's message above says what it lacks; for archiving: pgmahout wal enable"
                }
                _ if source.is_closed() || source.code() == Some(&SqlState::ADMIN_SHUTDOWN) => {
                    "look at the server's log for why it ended the session, then run the command again: what was \
                     stored is kept"
                }
                _ => "the server's message above says why; mend that and run the command again",
            },
            Self::Replication { source, .. } => return Some(replication_hint(source)),
            Self::SentControl { .. } => {
                "the server was perhaps just writing it: run the command again; what was stored is kept"
            }
            Self::Unexpected { .. } => "look at `SELECT version()`: PostgreSQL 14 to 18 are supported",
            Self::Io { source, path, .. } => {
                return Some(if source.kind() == io::ErrorKind::PermissionDenied {
                    "run pgmahout as the server's own account: sudo -u postgres pgmahout backup create"
                        .to_owned()
                } else {
                    format!(
                        "look at it: ls -ld {}; and at the kernel's messages: dmesg",
                        path.display()
                    )
                });
            }
            Self::FileTooLarge { .. } => {
                "PostgreSQL splits its own files into parts of 1 GiB: move what else is there out of the data directory"
            }
            Self::Untraced { .. } => {
                "take the backup with --read-filter none, which reads everything, and find out what changes files behind \
                 the file system's back"
            }
            Self::Promoted | Self::TimelineChanged { .. } => {
                "run the command again: it takes a new backup of the server as it is now"
            }
            Self::WalMissing { standby: true, .. } => {
                "a standby cannot switch WAL: make the primary archive (SELECT pg_switch_wal() there), or name it with \
                 --primary; then run the command again: what was stored is kept"
            }
            Self::WalMissing { .. } => {
                "look at the archiver: SELECT * FROM pg_stat_archiver, and the server's log; then run the command again: \
                 what was stored is kept"
            }
            Self::WalUnusable { .. } => {
                "the archive holds WAL of something else under this name: pgmahout wal verify"
            }
            Self::Running { .. } => "wait until it has ended; a crashed one is forgotten after some minutes",
            Self::Repositories { .. } => "mend what is said above and run the command again with --repo NAME",
            Self::Thread => {
                "this is a bug in pgmahout; run again with RUST_BACKTRACE=1 and report what it prints"
            }
            Self::Interrupted => "run the command again: it goes on with what was stored",
        };
        Some(text.to_owned())
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Usage { .. } => Outcome::Usage,
            Self::Preflight { problems } => {
                if problems.iter().any(|problem| problem.outcome == Outcome::Failed) {
                    Outcome::Failed
                } else {
                    problems
                        .first()
                        .map_or(Outcome::Failed, |problem| problem.outcome)
                }
            }
            Self::Connect(error) => error.outcome(),
            Self::Files(error) => error.outcome(),
            Self::Stanza(error) => error.outcome(),
            Self::Store(error) => error.outcome(),
            Self::Running { .. } => Outcome::Refused,
            Self::Interrupted => Outcome::Interrupted,
            _ => Outcome::Failed,
        }
    }
}
