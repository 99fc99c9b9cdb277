//! Why a dump could not be made, listed or expired.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use pgmahout_durable::DurableError;
use pgmahout_postgres::connection::ConnectError;
use pgmahout_store::StoreError;
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use tokio_postgres::error::SqlState;

use super::manifest::ManifestError;

/// Why a dump could not be made, listed or expired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// What was asked cannot be meant: two options that exclude each other, for example.
    #[error("{what}")]
    Usage {
        /// What is wrong.
        what: String,
        /// What to type instead.
        hint: String,
    },
    /// The checks before the dump found problems; all of them are listed.
    #[error("the dump cannot be made: {}", Problem::sentence(.problems))]
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
        /// The verb phrase, for example `export a snapshot`.
        doing: &'static str,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A program of PostgreSQL ended with a failure.
    #[error("{program} failed ({}){}", describe_status(*.status), describe_stderr(.stderr))]
    Program {
        /// Its name, for example `pg_dump`.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote to stderr.
        stderr: Vec<String>,
    },
    /// A file could not be written, renamed or removed.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// The repository failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operating system refused something.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// The verb phrase, for example `write`.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A manifest could not be understood.
    #[error("cannot read the manifest of {file}")]
    Manifest {
        /// The dump's file.
        file: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// There is no dump of that name.
    #[error("there is no dump {file} in {place}{}", nearest(.similar))]
    NoSuchDump {
        /// What was asked for.
        file: String,
        /// Where.
        place: String,
        /// What is there under similar names.
        similar: Vec<String>,
    },
    /// The file that was read back is not the one that was written, or is not whole.
    #[error("the dump {file} was written, but {what}; it was removed")]
    ReadBack {
        /// The file.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// Some databases of `--all-databases` could not be dumped.
    #[error("{failed} of {total} databases could not be dumped:{}", describe_members(.errors))]
    Members {
        /// How many failed.
        failed: usize,
        /// How many there are.
        total: usize,
        /// The databases that failed, and why.
        errors: Vec<(String, String)>,
    },
    /// The user or a signal stopped it.
    #[error("the dump was interrupted; nothing was left behind")]
    Interrupted,
    /// The user or a signal stopped `dump expire` in between.
    #[error("interrupted after {removed} were removed; the others were kept")]
    ExpireInterrupted {
        /// How many dumps and bundles are gone.
        removed: usize,
    },
    /// The user or a signal stopped `--all-databases` in between.
    #[error("the dump was interrupted; the complete dumps of other databases were kept: {}", .kept.join(", "))]
    InterruptedAfter {
        /// The files.
        kept: Vec<String>,
    },
}

impl DumpError {
    /// An IO error, told by its cause where durable writes know it.
    pub(crate) fn from_io(doing: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        match DurableError::from_io(doing, path, source) {
            DurableError::Io { action, path, source } => Self::Io {
                doing: action,
                path,
                source,
            },
            known => Self::Durable(known),
        }
    }

    /// An error of writing a dump, which may come from a repository through [`io::Write`].
    pub(crate) fn writing(file: &str, source: io::Error) -> Self {
        match source.downcast::<StoreError>() {
            Ok(error) => Self::Store(error),
            Err(source) => Self::from_io("write", file, source),
        }
    }

    /// Whether the file system or repository was full.
    fn is_no_space(&self) -> bool {
        match self {
            Self::Durable(DurableError::NoSpace { .. }) | Self::Store(StoreError::NoSpace { .. }) => true,
            Self::Program { stderr, .. } => {
                stderr.iter().any(|line| line.contains("No space left on device"))
            }
            _ => false,
        }
    }
}

/// One thing that the checks before a dump found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, on what, and why.
    pub what: String,
    /// What to do about it.
    pub hint: String,
    /// What it means for the exit status.
    pub outcome: Outcome,
}

impl Problem {
    /// From an error that knows its hint.
    pub(crate) fn of(error: &impl Diagnose) -> Self {
        let mut what = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            let text = inner.to_string();
            if !what.ends_with(&text) {
                what.push_str(": ");
                what.push_str(&text);
            }
            source = inner.source();
        }
        Self {
            what,
            hint: error.hint().unwrap_or_default(),
            outcome: error.outcome(),
        }
    }

    fn sentence(problems: &[Self]) -> String {
        match problems {
            [only] => only.what.clone(),
            many => bullets(many.iter().map(|problem| &problem.what)),
        }
    }
}

/// Each on a line of its own.
pub(crate) fn bullets(texts: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    texts.into_iter().fold(String::new(), |mut list, text| {
        let _ = write!(list, "\n- {text}");
        list
    })
}

fn nearest(similar: &[String]) -> String {
    if similar.is_empty() {
        String::new()
    } else {
        format!("; similar: {}", similar.join(", "))
    }
}

fn describe_members(errors: &[(String, String)]) -> String {
    bullets(
        errors
            .iter()
            .map(|(database, error)| format!("{database}: {error}")),
    )
}

fn describe_status(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn describe_stderr(lines: &[String]) -> String {
    match lines {
        [] => String::new(),
        lines => format!(":\n{}", lines.join("\n")),
    }
}

/// What to do about a program's failure, by what it said.
fn program_hint(status: ExitStatus, stderr: &[String]) -> String {
    use std::os::unix::process::ExitStatusExt;
    let said = |text: &str| stderr.iter().any(|line| line.contains(text));
    if said("No space left on device") {
        "free some space there or choose another directory; df -h shows what is full".to_owned()
    } else if said("permission denied") {
        "dump as a superuser or the owner of the objects, or as a member of pg_read_all_data".to_owned()
    } else if said("row-level security") || said("row security policy") {
        "the rows that the role may not see would be missing: dump as a superuser or a role with BYPASSRLS"
            .to_owned()
    } else if said("no matching tables") || said("no matching schemas") {
        "check the spelling; a pattern needs double quotes inside for upper case: --table '\"Orders\"'"
            .to_owned()
    } else if said("aborting because of server version mismatch") {
        "install the client programs of the server's major version and name them with --bin-dir".to_owned()
    } else if said("server closed the connection")
        || said("terminating connection")
        || said("the database system is")
    {
        "look at the server's log for why it ended the session, then run the command again".to_owned()
    } else if status.signal() == Some(9) {
        "it was killed from outside, perhaps for lack of memory: see dmesg; then run the command again"
            .to_owned()
    } else {
        "its own message above says why; mend that and run the command again".to_owned()
    }
}

impl Diagnose for DumpError {
    fn hint(&self) -> Option<String> {
        if self.is_no_space() {
            return Some(
                "nothing was left there; free some space, choose another directory, or compress more \
                 (--compress zstd:9)"
                    .to_owned(),
            );
        }
        match self {
            Self::Usage { hint, .. } => Some(hint.clone()),
            Self::Preflight { problems } => match problems.as_slice() {
                [only] => Some(only.hint.clone()),
                many => Some(bullets(many.iter().map(|problem| &problem.hint))),
            },
            Self::Connect(error) => error.hint(),
            Self::Durable(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Program { status, stderr, .. } => Some(program_hint(*status, stderr)),
            Self::Sql { source, .. } => Some(match source.code() {
                Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                    "dump as a superuser, or as a member of pg_read_all_data and pg_read_all_settings"
                        .to_owned()
                }
                _ if source.is_closed() || source.code() == Some(&SqlState::ADMIN_SHUTDOWN) => {
                    "look at the server's log for why it ended the session, then run the command again"
                        .to_owned()
                }
                _ => "the server's message above says why; mend that and run the command again".to_owned(),
            }),
            Self::Io { path, .. } => Some(format!("look at it: ls -ld {}", path.display())),
            Self::Manifest { source, .. } => Some(match source {
                ManifestError::Newer { .. } => "update pgmahout".to_owned(),
                _ => "the dump itself may be sound: `pgmahout dump verify` tries it".to_owned(),
            }),
            Self::NoSuchDump { .. } => Some("`pgmahout dump list` shows what is there".to_owned()),
            Self::ReadBack { .. } => Some(
                "the disk or the storage does not give back what was written: check it (dmesg, SMART), and \
                 dump to another place"
                    .to_owned(),
            ),
            Self::Members { .. } => Some(
                "the other databases' dumps are complete and were kept; mend what is said above and dump \
                 these databases one by one"
                    .to_owned(),
            ),
            Self::ExpireInterrupted { .. } => Some("run the command again to remove the rest".to_owned()),
            Self::Interrupted | Self::InterruptedAfter { .. } => {
                Some("run the command again to make the dump".to_owned())
            }
        }
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
            Self::Durable(error) => error.outcome(),
            Self::Store(error) => error.outcome(),
            Self::Interrupted | Self::InterruptedAfter { .. } | Self::ExpireInterrupted { .. } => {
                Outcome::Interrupted
            }
            _ => Outcome::Failed,
        }
    }
}
