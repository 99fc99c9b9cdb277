//! `dump verify`: the restore test.
//!
//! The dump is restored into a private server that is started for it and removed afterwards, or into a
//! temporary database of a server that was named; the rows are compared, the user's assertions asked, and
//! the result is recorded in the dump's manifest.
//!
//! In the private server, roles that the dump names are created (without login) and so are tablespaces, so
//! that a dump with owners and rights restores as it is. In somebody else's server nothing is created but
//! the temporary database; owners and rights are left out.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_postgres::sql::quote_identifier;
use pgmahout_postgres::throwaway::{ThrowawayHouse, ThrowawayOptions};
use pgmahout_procedure::report::{Level, Reporter, Task, Unit};
use pgmahout_types::version::ServerVersion;
use tokio_postgres::SimpleQueryMessage;
use tokio_util::sync::CancellationToken;

use super::manifest::{DumpManifest, RestoreTest};
use super::read::Dump;
use super::restore::error::RestoreError;
use super::restore::fresh;
use super::restore::tools::Tools;
use super::restore::{CountRow, Mode, Restore, RestoreRequest, engine};
use super::scan::{ScanReport, Section, Selection};

/// Something that must be true of the restored database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assertion {
    /// Its name in reports.
    pub name: String,
    /// A query whose first row's first column must be true.
    pub sql: String,
}

/// What was asked of `dump verify`.
#[derive(Debug, Clone, Default)]
pub struct VerifyRequest {
    /// A server to use; a private one if absent.
    pub server: Option<ConnectionParameters>,
    /// Which database of a pg_dumpall stream.
    pub database: Option<String>,
    /// What must be true.
    pub assertions: Vec<Assertion>,
    /// Where PostgreSQL's programs are.
    pub bin_dir: Option<PathBuf>,
    /// Where the private server lies.
    pub temp_dir: Option<PathBuf>,
}

/// What came out of a restore test that passed.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifyOutcome {
    /// Rows of every table.
    pub counts: Vec<CountRow>,
    /// How many assertions held.
    pub assertions: usize,
    /// The server that it was restored into.
    pub server_version: ServerVersion,
    /// Where: for people.
    pub server: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Whether the manifest has a record of it.
    pub recorded: bool,
}

/// Restores a dump for a test. `report` is what [`Dump::inspect`] gave.
///
/// # Errors
/// When the dump does not restore as it should, which is recorded in its manifest; or when there is no
/// server to try it on, which is not.
pub async fn verify(
    request: &VerifyRequest,
    dump: &Arc<Dump>,
    report: ScanReport,
    reporter: &dyn Reporter,
    cancellation: &CancellationToken,
) -> Result<VerifyOutcome, RestoreError> {
    let started = Instant::now();
    let outcome = match &request.server {
        Some(server) => in_server(request, server, dump, report, reporter, cancellation).await,
        None => in_private(request, dump, report, reporter, cancellation).await,
    };
    let seconds = started.elapsed().as_secs_f64();
    let test = match &outcome {
        Ok(outcome) => RestoreTest {
            at: Timestamp::now(),
            seconds,
            passed: true,
            restored: true,
            server_version: outcome.server_version.to_string(),
            tables_compared: outcome.counts.len() as u64,
            assertions: outcome.assertions as u64,
            detail: None,
        },
        Err(error) if blames_the_dump(error) || matches!(error, RestoreError::Assertions { .. }) => {
            RestoreTest {
                at: Timestamp::now(),
                seconds,
                passed: false,
                restored: !blames_the_dump(error),
                server_version: String::new(),
                tables_compared: 0,
                assertions: 0,
                detail: Some(error.to_string()),
            }
        }
        Err(_) => return outcome,
    };
    let recorded = record(dump, test).await;
    match (outcome, recorded) {
        (Ok(outcome), Ok(recorded)) => Ok(VerifyOutcome {
            seconds,
            recorded,
            ..outcome
        }),
        (Ok(_), Err(error)) => Err(error),
        (Err(error), recorded) => {
            if let Err(failed) = recorded {
                reporter.message(
                    Level::Warning,
                    &format!("the result could not be recorded: {failed}"),
                );
            }
            Err(error)
        }
    }
}

/// Whether an error says something about the dump, not about where it was tried, nor about what is expected of
/// its rows. A dump that is blamed counts for nothing in retention, so in doubt it is not.
fn blames_the_dump(error: &RestoreError) -> bool {
    match error {
        RestoreError::Damaged { .. } | RestoreError::Mismatch { .. } => true,
        RestoreError::ProgramFailed { stderr, .. } => {
            !stderr.iter().any(|line| blames_the_place(line))
                && stderr.iter().any(|line| line.contains("ERROR:"))
        }
        _ => false,
    }
}

/// Whether a message of a program or of the server tells of what the place of the test lacks: a role, an
/// extension, a library, a locale, rights, space, memory, or the server itself (PostgreSQL documentation,
/// appendix "PostgreSQL Error Codes": classes 08, 53, 57 and 58 in the words of the source).
fn blames_the_place(message: &str) -> bool {
    const WORDS: [&str; 24] = [
        "No space left on device",
        "Disk quota exceeded",
        "Input/output error",
        "could not extend file",
        "could not write",
        "could not open extension control file",
        "could not access file",
        "could not load library",
        "is not available",
        "must be loaded via",
        "invalid locale name",
        "permission denied",
        "must be owner",
        "must be superuser",
        "must be able to SET ROLE",
        "must be member of role",
        "out of memory",
        "out of shared memory",
        "remaining connection slots",
        "terminating connection",
        "server closed the connection",
        "connection to server",
        "could not connect",
        "unrecognized configuration parameter",
    ];
    let missing = message.contains("does not exist")
        && ["role \"", "tablespace \""]
            .iter()
            .any(|word| message.contains(word));
    missing || message.contains("canceling statement") || WORDS.iter().any(|word| message.contains(word))
}

/// Records a dump whose reading already failed: [`Dump::inspect`] gave this error.
///
/// # Errors
/// When the manifest cannot be written.
pub async fn record_failure(dump: &Dump, error: &RestoreError) -> Result<bool, RestoreError> {
    if !blames_the_dump(error) {
        return Ok(false);
    }
    let test = RestoreTest {
        at: Timestamp::now(),
        seconds: 0.0,
        passed: false,
        restored: false,
        server_version: String::new(),
        tables_compared: 0,
        assertions: 0,
        detail: Some(error.to_string()),
    };
    record(dump, test).await
}

/// Adds a record to the manifest, as it is now. `false`: there is no manifest.
async fn record(dump: &Dump, test: RestoreTest) -> Result<bool, RestoreError> {
    let Some((place, name)) = dump.stored() else {
        return Ok(false);
    };
    let manifest_name = DumpManifest::name_for(name);
    let Some(bytes) = place.read(&manifest_name).await? else {
        return Ok(false);
    };
    let mut manifest =
        DumpManifest::from_slice(&bytes).map_err(|source| super::error::DumpError::Manifest {
            file: dump.describe().to_owned(),
            source,
        })?;
    manifest.verification.restores.push(test);
    place.write(&manifest_name, manifest.to_vec()).await?;
    Ok(true)
}

/// The database of the test in a private server.
const DATABASE: &str = "restore_test";

/// What its comment says, should it be left behind.
const NOTE: &str = "pgmahout: a restore test; drop it when none is running";

async fn in_private(
    request: &VerifyRequest,
    dump: &Arc<Dump>,
    report: ScanReport,
    reporter: &dyn Reporter,
    cancellation: &CancellationToken,
) -> Result<VerifyOutcome, RestoreError> {
    let restore = prepare(request, dump, report, None)?;
    let major = restore.source_version().map_or(0, ServerVersion::major);
    let tools = Tools::find("initdb", major, request.bin_dir.as_deref())?;
    reporter.message(
        Level::Info,
        &format!("starting a private PostgreSQL {} for the test", tools.version),
    );
    let options = ThrowawayOptions {
        bin_dir: tools.directory.clone(),
        parent: request.temp_dir.clone(),
        settings: [
            ("autovacuum", "off"),
            ("full_page_writes", "off"),
            ("max_wal_size", "2GB"),
            ("wal_level", "minimal"),
            ("max_wal_senders", "0"),
            ("allow_in_place_tablespaces", "on"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec(),
        keep: false,
    };
    let house = ThrowawayHouse::create(options)?;
    let mut server = house.server("verify").await?;
    let parameters = server.parameters(DATABASE)?;
    let work = async {
        let administration = fresh::administration(&parameters, DATABASE).await?;
        furnish(&administration, restore.shared().section()).await?;
        restore
            .create_fresh(&administration, DATABASE, NOTE, reporter)
            .await?;
        let restore = restore.into_target(parameters.clone());
        try_out(
            request,
            &restore,
            &parameters,
            reporter,
            cancellation,
            "a private server",
        )
        .await
    };
    let outcome = work.await;
    server.stop().await;
    outcome
}

/// Roles and tablespaces that the dump takes for granted.
async fn furnish(administration: &Connection, section: &Section) -> Result<(), RestoreError> {
    let named = section.owners.iter().chain(&section.grantees);
    for role in named.chain(&section.mapped).collect::<BTreeSet<_>>() {
        let role = quote_identifier(role);
        // Those that are there, such as postgres, are there.
        let statement = format!(
            "DO $pgmahout$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object OR reserved_name THEN NULL; END $pgmahout$"
        );
        administration
            .batch_execute(&statement)
            .await
            .map_err(|error| RestoreError::sql(format!("create role {role} in the private server"), error))?;
    }
    for tablespace in &section.tablespaces {
        let statement = format!("CREATE TABLESPACE {} LOCATION ''", quote_identifier(tablespace));
        administration.batch_execute(&statement).await.map_err(|error| {
            RestoreError::sql(
                format!("create tablespace {tablespace} in the private server"),
                error,
            )
        })?;
    }
    Ok(())
}

async fn in_server(
    request: &VerifyRequest,
    server: &ConnectionParameters,
    dump: &Arc<Dump>,
    report: ScanReport,
    reporter: &dyn Reporter,
    cancellation: &CancellationToken,
) -> Result<VerifyOutcome, RestoreError> {
    let temporary = fresh::temporary_name()?;
    let parameters = server.with_database(&temporary);
    let restore = prepare(request, dump, report, Some(parameters.clone()))?;
    let administration = fresh::administration(server, &temporary).await?;
    restore
        .create_fresh(&administration, &temporary, NOTE, reporter)
        .await?;
    let outcome = try_out(
        request,
        &restore,
        &parameters,
        reporter,
        cancellation,
        &server.describe(),
    )
    .await;
    let dropped = fresh::drop_database(&administration, &temporary).await;
    match (outcome, dropped) {
        (Ok(outcome), Ok(())) => Ok(outcome),
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
    }
}

fn prepare(
    request: &VerifyRequest,
    dump: &Arc<Dump>,
    report: ScanReport,
    foreign: Option<ConnectionParameters>,
) -> Result<Restore, RestoreError> {
    let is_foreign = foreign.is_some();
    let target = match foreign {
        Some(parameters) => parameters,
        // Replaced as soon as the private server is there.
        None => ConnectionParameters::resolve(
            &pgmahout_postgres::params::ConnectionOptions::default(),
            &pgmahout_postgres::params::Environment::default().with_os_user("postgres"),
        )
        .map_err(|error| RestoreError::Usage {
            what: error.to_string(),
            hint: "see --help".to_owned(),
        })?,
    };
    let restore = Restore::new(
        RestoreRequest {
            target,
            mode: Mode::New,
            selection: Selection {
                no_owner: is_foreign,
                no_acl: is_foreign,
                no_subscriptions: true,
                ..Selection::default()
            },
            database: request.database.clone(),
            jobs: 1,
            no_transaction: false,
            bin_dir: request.bin_dir.clone(),
            backup_first: None,
            parameters: serde_json::Value::Null,
        },
        Arc::clone(dump),
        report,
    );
    match restore.unfit() {
        Some(error) => Err(error),
        None => Ok(restore),
    }
}

async fn try_out(
    request: &VerifyRequest,
    restore: &Restore,
    parameters: &ConnectionParameters,
    reporter: &dyn Reporter,
    cancellation: &CancellationToken,
    server: &str,
) -> Result<VerifyOutcome, RestoreError> {
    let shared = restore.shared();
    let progress = reporter.start(Task::new(
        format!("restoring {} for a test", shared.dump.describe()),
        Unit::Bytes,
        shared.dump.stored_bytes(),
    ));
    let counts = engine::load(shared, parameters, progress.as_ref(), cancellation).await?;
    progress.finish("");
    let connection = Connection::open(parameters).await?;
    let server_version = connection.server_version();
    let mut failed = Vec::new();
    for assertion in &request.assertions {
        if let Err(what) = ask(&connection, assertion).await {
            failed.push(format!("{}: {what}", assertion.name));
        }
    }
    connection.close().await;
    if !failed.is_empty() {
        return Err(RestoreError::Assertions { failed });
    }
    Ok(VerifyOutcome {
        counts,
        assertions: request.assertions.len(),
        server_version,
        server: server.to_owned(),
        seconds: 0.0,
        recorded: false,
    })
}

/// Asks one assertion. What came instead of true is the error.
async fn ask(connection: &Connection, assertion: &Assertion) -> Result<(), String> {
    let messages = connection.simple_query(&assertion.sql).await.map_err(|error| {
        error
            .as_db_error()
            .map_or_else(|| error.to_string(), |error| error.message().to_owned())
    })?;
    let value = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
        _ => None,
    });
    match value {
        None => Err("it returned no row".to_owned()),
        Some(None) => Err("it returned NULL".to_owned()),
        Some(Some(value)) if value == "t" => Ok(()),
        Some(Some(value)) if value == "f" => Err("it is false".to_owned()),
        Some(Some(value)) => Err(format!("it returned {value}, which is not true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(lines: &[&str]) -> RestoreError {
        RestoreError::ProgramFailed {
            program: "psql",
            target: None,
            stderr: lines.iter().map(|line| (*line).to_owned()).collect(),
            hint: None,
        }
    }

    #[test]
    fn what_the_place_of_the_test_lacks_is_not_the_fault_of_the_dump() {
        for lines in [
            &["psql:<stdin>:5: ERROR:  role \"app_owner\" does not exist"][..],
            &["ERROR:  extension \"postgis\" is not available"],
            &["ERROR:  could not extend file \"base/1/2\": No space left on device"],
            &["ERROR:  could not access file \"$libdir/timescaledb\": No such file or directory"],
            &[
                "ERROR:  syntax error",
                "PANIC:  could not write to file: No space left on device",
            ],
            &["server closed the connection unexpectedly"],
            &["ERROR:  permission denied to create extension \"file_fdw\""],
            &["Killed"],
            &[],
        ] {
            assert!(!blames_the_dump(&failed(lines)), "{lines:?}");
        }
        let assertion = RestoreError::Assertions {
            failed: vec!["select false".to_owned()],
        };
        assert!(!blames_the_dump(&assertion));
    }

    #[test]
    fn errors_of_its_own_statements_are_the_fault_of_the_dump() {
        for line in [
            "psql:<stdin>:5: ERROR:  syntax error at or near \"CREAT\"",
            "ERROR:  relation \"orders\" does not exist",
            "ERROR:  could not create unique index \"orders_pkey\"",
        ] {
            assert!(blames_the_dump(&failed(&[line])), "{line}");
        }
        let damaged = RestoreError::Damaged {
            what: "dump".to_owned(),
            why: "it was cut".to_owned(),
        };
        assert!(blames_the_dump(&damaged));
    }
}
