//! Looking at the restored server: every database opens, amcheck finds nothing, the assertions hold.

use std::path::Path;
use std::process::Stdio;

use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::{ConnectionOptions, ConnectionParameters, Environment};
use pgmahout_postgres::throwaway::{ThrowawayError, ThrowawayServer};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{DrillError, DrillRequest};

/// The most lines of pg_amcheck's output that are kept.
const MOST_LINES: usize = 20;

/// Something that must be true of the restored server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assertion {
    /// Its name, for people.
    pub name: String,
    /// A query whose first value must be true.
    pub sql: String,
    /// In which database; `postgres` where it is not said.
    pub database: Option<String>,
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub what: String,
    /// Whether it was well.
    pub passed: bool,
    /// In words.
    pub detail: String,
}

impl Finding {
    fn new(what: impl Into<String>, passed: bool, detail: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            passed,
            detail: detail.into(),
        }
    }
}

pub(super) async fn examine(
    server: &ThrowawayServer,
    bin_dir: &Path,
    request: &DrillRequest,
    cancellation: &CancellationToken,
) -> Result<Vec<Finding>, DrillError> {
    let look = async {
        let (role, connection) = connect(server, &request.roles).await?;
        let mut findings = vec![databases(server, &role, &connection).await];
        connection.close().await;
        if request.amcheck {
            findings.push(amcheck(server, bin_dir, &role, request.jobs).await);
        }
        for assertion in &request.assertions {
            findings.push(assert(server, &role, assertion).await);
        }
        Ok(findings)
    };
    tokio::select! {
        findings = look => findings,
        () = cancellation.cancelled() => Err(DrillError::Cancelled),
    }
}

fn parameters(
    server: &ThrowawayServer,
    role: &str,
    database: &str,
) -> Result<ConnectionParameters, DrillError> {
    let options = ConnectionOptions {
        host: Some(server.socket_directory().display().to_string()),
        port: Some(server.port().to_string()),
        user: Some(role.to_owned()),
        database: Some(database.to_owned()),
        ..ConnectionOptions::default()
    };
    ConnectionParameters::resolve(&options, &Environment::default())
        .map_err(|error| DrillError::Scratch(ThrowawayError::Parameters(error)))
}

/// Connects as the first of the roles that can.
async fn connect(server: &ThrowawayServer, roles: &[String]) -> Result<(String, Connection), DrillError> {
    let mut last = None;
    for role in roles {
        for database in ["postgres", "template1"] {
            match Connection::open_secured(&parameters(server, role, database)?).await {
                Ok(connection) => return Ok((role.clone(), connection)),
                Err(error) => last = Some(error),
            }
        }
    }
    match last {
        Some(source) => Err(DrillError::Role {
            roles: roles.join(", "),
            source,
        }),
        None => Err(DrillError::Server {
            what: "cannot be asked: no role was named".to_owned(),
            log: server.log_tail(),
        }),
    }
}

/// Opens every database, and reads its catalog of relations.
async fn databases(server: &ThrowawayServer, role: &str, connection: &Connection) -> Finding {
    const WHAT: &str = "databases";
    let names = connection
        .query(
            "SELECT datname::text FROM pg_catalog.pg_database WHERE datallowconn ORDER BY 1",
            &[],
        )
        .await;
    let names: Vec<String> = match names {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => return Finding::new(WHAT, false, format!("cannot be listed: {error}")),
    };
    let mut relations = 0_i64;
    for name in &names {
        let counted = async {
            let parameters = parameters(server, role, name).map_err(|error| error.to_string())?;
            let connection = Connection::open_secured(&parameters)
                .await
                .map_err(|error| error.to_string())?;
            let row = connection
                .query_one("SELECT count(*) FROM pg_catalog.pg_class", &[])
                .await
                .map_err(|error| error.to_string())?;
            connection.close().await;
            Ok::<i64, String>(row.get(0))
        };
        match counted.await {
            Ok(count) => relations += count,
            Err(error) => return Finding::new(WHAT, false, format!("{name} cannot be opened: {error}")),
        }
    }
    Finding::new(
        WHAT,
        true,
        format!("{} open, with {relations} relations", names.len()),
    )
}

/// Tables and indexes, each row of the one in the other.
async fn amcheck(server: &ThrowawayServer, bin_dir: &Path, role: &str, jobs: usize) -> Finding {
    const WHAT: &str = "amcheck";
    let program = bin_dir.join("pg_amcheck");
    let mut command = tokio::process::Command::new(&program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(&name);
        }
    }
    let output = command
        .args(["--all", "--heapallindexed", "--install-missing", "--no-password"])
        .arg(format!("--jobs={}", jobs.clamp(1, 16)))
        .arg("--host")
        .arg(server.socket_directory())
        .arg(format!("--port={}", server.port()))
        .arg(format!("--username={role}"))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let output = match output {
        Ok(output) => output,
        Err(error) => return Finding::new(WHAT, false, format!("cannot run {}: {error}", program.display())),
    };
    if output.status.success() {
        return Finding::new(WHAT, true, "every table and B-tree index is consistent");
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().take(MOST_LINES).collect();
    Finding::new(WHAT, false, lines.join("\n"))
}

async fn assert(server: &ThrowawayServer, role: &str, assertion: &Assertion) -> Finding {
    let what = format!("assertion \"{}\"", assertion.name);
    let database = assertion.database.as_deref().unwrap_or("postgres");
    let asked = async {
        let parameters = parameters(server, role, database).map_err(|error| error.to_string())?;
        // The user's own question, with the user's own path.
        let connection = Connection::open(&parameters)
            .await
            .map_err(|error| error.to_string())?;
        let rows = connection
            .simple_query(&assertion.sql)
            .await
            .map_err(|error| error.to_string())?;
        let value = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        });
        connection.close().await;
        Ok::<_, String>(value)
    };
    match asked.await {
        Ok(Some(Some(value))) if matches!(value.as_str(), "t" | "true") => Finding::new(what, true, "true"),
        Ok(Some(value)) => Finding::new(
            what,
            false,
            format!("it is {}", value.unwrap_or_else(|| "NULL".to_owned())),
        ),
        Ok(None) => Finding::new(what, false, "the query returned no row"),
        Err(error) => Finding::new(what, false, error),
    }
}
