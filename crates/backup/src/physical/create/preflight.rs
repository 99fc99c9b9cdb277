//! The checks before a backup: all problems are found before any is reported.

use std::fs;
use std::path::{Path, PathBuf};

use pgmahout_postgres::connection::replication::ReplicationConnection;
use pgmahout_types::ControlFile;
use pgmahout_types::diagnostic::Outcome;
use pgmahout_types::version::ServerVersion;

use super::cluster::Cluster;
use super::control;
use super::error::CreateError;
use super::remote::Stream;
use super::request::CreateRequest;
use super::server::{Server, ServerFacts};
use crate::dump::error::Problem;
use crate::physical::page::BLOCK_SIZE;

/// The oldest major version whose backup functions are known.
const OLDEST_MAJOR: u32 = 14;

/// How far apart postmaster.pid and the server may say that it started, in seconds: the server notes the time
/// a little later than it writes the file's.
const START_TOLERANCE: i64 = 60;

/// The oldest major version that sends all archives in one copy.
const OLDEST_REMOTE: u32 = 15;

/// What the checks found to work with.
pub(super) struct Ready {
    pub(super) server: Server,
    pub(super) cluster: Cluster,
    pub(super) source: Source,
}

/// Where the files come from.
pub(super) enum Source {
    /// The data directory.
    Directory {
        data_dir: PathBuf,
        control: Box<ControlFile>,
    },
    /// The replication protocol.
    Stream(Box<Stream>),
}

/// Connects, and looks at the server and, where the files are read from there, its data directory.
pub(super) async fn check(request: &CreateRequest) -> Result<Ready, CreateError> {
    let server = Server::connect(&request.connection).await?;
    let problems = server_problems(request, &server.facts);
    let checked = if request.remote {
        stream(&server, problems).await
    } else {
        directory(request, &server.facts, problems).await
    };
    match checked {
        Ok((cluster, source)) => Ok(Ready {
            server,
            cluster,
            source,
        }),
        Err(error) => {
            server.close().await;
            Err(error)
        }
    }
}

/// Opens a session that can send the files.
async fn stream(server: &Server, mut problems: Vec<Problem>) -> Result<(Cluster, Source), CreateError> {
    let facts = &server.facts;
    if facts.version.major() < OLDEST_REMOTE {
        problems.push(problem(
            &format!(
                "PostgreSQL {} sends its files in a way that is not understood",
                facts.version
            ),
            "--remote is for PostgreSQL 15 and later: leave it out, on the server's own machine",
            Outcome::Refused,
        ));
        return Err(CreateError::Preflight { problems });
    }
    let remote = server.remote_facts().await?;
    if !remote.may_replicate {
        problems.push(problem(
            &format!(
                "the role {} may not replicate, and so may not receive the server's files",
                facts.role
            ),
            &format!(
                "ALTER ROLE {} REPLICATION",
                pgmahout_postgres::sql::quote_identifier(&facts.role)
            ),
            Outcome::Failed,
        ));
    }
    if remote.max_wal_senders == 0 {
        problems.push(problem(
            "max_wal_senders is 0: the server sends nothing to anybody",
            "ALTER SYSTEM SET max_wal_senders = 10, and restart the server",
            Outcome::Refused,
        ));
    }
    if !problems.is_empty() {
        return Err(CreateError::Preflight { problems });
    }
    let refused = |source| CreateError::Replication {
        doing: "begin a replication session",
        source,
    };
    let mut connection = ReplicationConnection::open(&server.connection)
        .await
        .map_err(refused)?;
    let identity = connection.identify().await.map_err(refused)?;
    if identity.system != remote.cluster.system_identifier {
        return Err(CreateError::Unexpected {
            what: format!(
                "the replication session reached the cluster {}, and the other session {}",
                identity.system, remote.cluster.system_identifier
            ),
        });
    }
    let cluster = remote.cluster;
    let stream = Stream {
        connection,
        facts: remote,
    };
    Ok((cluster, Source::Stream(Box::new(stream))))
}

/// Looks at the data directory.
async fn directory(
    request: &CreateRequest,
    facts: &ServerFacts,
    mut problems: Vec<Problem>,
) -> Result<(Cluster, Source), CreateError> {
    let data_dir = request.data_dir.clone().or_else(|| facts.data_directory.clone());
    let looked = if let Some(data_dir) = data_dir {
        let looked = tokio::task::spawn_blocking(move || {
            let found = control::read(&data_dir);
            (data_dir, found)
        });
        Some(looked.await.map_err(|_| CreateError::Thread)?)
    } else {
        problems.push(problem(
            "the data directory is not known: the role may not see the setting data_directory",
            &format!(
                "name it with --data-dir, or: GRANT pg_read_all_settings TO {}",
                pgmahout_postgres::sql::quote_identifier(&facts.role)
            ),
            Outcome::Usage,
        ));
        None
    };
    let found = match looked {
        Some((data_dir, Ok((_, control)))) => {
            problems.extend(directory_problems(&data_dir, &control, facts));
            Some((data_dir, control))
        }
        Some((_, Err(error))) => {
            problems.push(Problem::of(&error));
            None
        }
        None => None,
    };
    match found {
        Some((data_dir, control)) if problems.is_empty() => Ok((
            Cluster::from(&control),
            Source::Directory {
                data_dir,
                control: Box::new(control),
            },
        )),
        _ => Err(CreateError::Preflight { problems }),
    }
}

fn problem(what: &str, hint: &str, outcome: Outcome) -> Problem {
    Problem {
        what: what.to_owned(),
        hint: hint.to_owned(),
        outcome,
    }
}

/// What the server's own words rule out.
fn server_problems(request: &CreateRequest, facts: &ServerFacts) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !(OLDEST_MAJOR..=ServerVersion::NEWEST_MAJOR).contains(&facts.version.major()) {
        problems.push(problem(
            &format!(
                "PostgreSQL {} is not a version that this program knows",
                facts.version
            ),
            "update pgmahout; physical backups are made of PostgreSQL 14 to 18",
            Outcome::Refused,
        ));
    }
    // A base backup needs none of them.
    if !facts.missing_functions.is_empty() && !request.remote {
        problems.push(problem(
            &format!(
                "the role {} may not call {}",
                facts.role,
                facts.missing_functions.join(" and ")
            ),
            &format!(
                "GRANT EXECUTE ON FUNCTION {} TO {}",
                facts.missing_functions.join(", "),
                pgmahout_postgres::sql::quote_identifier(&facts.role)
            ),
            Outcome::Failed,
        ));
    }
    match (request.from_standby, facts.in_recovery) {
        (true, false) => problems.push(problem(
            "the server is no standby, and --from-standby was given",
            "connect to a standby, or leave --from-standby out",
            Outcome::Refused,
        )),
        (false, true) if !request.remote => problems.push(problem(
            "the server is a standby",
            "say that this is meant with --from-standby, or connect to the primary",
            Outcome::Refused,
        )),
        _ => {}
    }
    if facts.wal_level == "minimal" {
        problems.push(problem(
            "wal_level is minimal: the WAL does not hold enough to restore a backup",
            "pgmahout wal enable",
            Outcome::Refused,
        ));
    }
    // On a standby the primary archives; whether it does, waiting for the WAL will tell.
    if facts.archive_mode == "off" && !request.skip_archive_check && !facts.in_recovery {
        problems.push(problem(
            "archive_mode is off: the WAL of the backup would not reach the repository, and nothing could be restored",
            "pgmahout wal enable; where the WAL comes another way (pgmahout wal receive): --no-archive-check",
            Outcome::Refused,
        ));
    }
    if facts.block_size as usize != BLOCK_SIZE {
        problems.push(problem(
            &format!(
                "the server has pages of {} bytes, and only {BLOCK_SIZE} are known",
                facts.block_size
            ),
            "back it up with pg_dump: pgmahout dump create",
            Outcome::Refused,
        ));
    }
    problems
}

/// Whether the directory is that of the server.
fn directory_problems(data_dir: &Path, control: &ControlFile, facts: &ServerFacts) -> Vec<Problem> {
    let mut problems = Vec::new();
    let place = data_dir.display();
    let other = "name the server's own directory with --data-dir: SHOW data_directory";
    if control.system_identifier != facts.system_identifier {
        problems.push(problem(
            &format!(
                "{place} is of the cluster with system identifier {}, and the server is of {}",
                control.system_identifier, facts.system_identifier
            ),
            other,
            Outcome::Refused,
        ));
        return problems;
    }
    if control
        .major()
        .is_some_and(|major| major != facts.version.major())
    {
        problems.push(problem(
            &format!(
                "{place} is of another major version than the server, {}",
                facts.version
            ),
            other,
            Outcome::Refused,
        ));
    }
    // A standby has the primary's system identifier: only the running server itself can tell them apart.
    let path = data_dir.join("postmaster.pid");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let mut lines = text.lines().skip(2);
            let started: Option<i64> = lines.next().and_then(|line| line.trim().parse().ok());
            let port = lines.next().map(str::trim);
            let is_same = started
                .is_some_and(|started| (facts.started_at - started).abs() <= START_TOLERANCE)
                && port == Some(facts.port.as_str());
            if !is_same {
                problems.push(problem(
                    &format!(
                        "{place} is the directory of another server than the one on port {}",
                        facts.port
                    ),
                    other,
                    Outcome::Refused,
                ));
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => problems.push(problem(
            &format!("no server runs on {place}, which has no postmaster.pid"),
            other,
            Outcome::Refused,
        )),
        Err(error) => problems.push(Problem::of(&CreateError::io("read", &path, error))),
    }
    problems
}
