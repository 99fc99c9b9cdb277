//! One table as it was: a side server at the target, and the rows of the table copied into a live database
//! under another name.
//!
//! Of the side server only the database with the table is restored; it listens on a private socket, archives
//! nothing, and is removed afterwards. The live database gets a new table with the same columns, in one
//! transaction: constraints, indexes and rights are left to whoever merges the rows.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{SinkExt as _, StreamExt as _};
use pgmahout_postgres::binaries::{Binaries, Requirement};
use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_postgres::sql::quote_identifier;
use pgmahout_postgres::throwaway::{ThrowawayHouse, ThrowawayOptions, ThrowawayServer};
use pgmahout_procedure::confirm::Always;
use pgmahout_procedure::report::{Level, Reporter, Task, Unit};
use pgmahout_procedure::{RunOptions, Runner, StateDirectory, Surroundings};
use pgmahout_types::ControlFile;
use pgmahout_types::control::ClusterState;
use pgmahout_types::repository::Label;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::error::RestoreError;
use super::layout::Remap;
use super::procedure::Restore;
use super::request::RestoreRequest;
use super::settings::Archiving;
use super::target::{Aim, TargetAction};
use crate::physical::stanza::PhysicalRepository;

/// The name of the side server's data directory.
const NAME: &str = "restored";
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(100);

/// What is asked.
#[derive(Debug, Clone)]
pub struct ExtractRequest {
    /// Where recovery of the side server ends.
    pub aim: Aim,
    /// The backup, where one was named.
    pub label: Option<Label>,
    /// The database with the table, in the backup.
    pub database: String,
    /// The table's schema.
    pub schema: String,
    /// The table.
    pub table: String,
    /// The live database that gets the rows.
    pub into: ConnectionParameters,
    /// The name of the new table, in the same schema.
    pub new_name: String,
    /// The directory of PostgreSQL's programs; found where it is not given.
    pub bin_dir: Option<PathBuf>,
    /// Where the side server's files are; the system's directory for temporary files where it is not given.
    pub scratch: Option<PathBuf>,
    /// Threads.
    pub jobs: usize,
    /// What the side server fetches WAL with.
    pub restore_command: String,
    /// How long its recovery may take.
    pub timeout: Duration,
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Extracted {
    /// The backup that it came from.
    pub label: Label,
    /// The new table, quoted where it must be.
    pub table: String,
    /// Its rows.
    pub rows: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

fn sql(doing: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> RestoreError {
    let doing = doing.into();
    move |source| RestoreError::Sql { doing, source }
}

/// Copies the table.
///
/// # Errors
/// When the target cannot be reached, the table is not there at the target, or the new one is there already;
/// the live database is then as it was.
pub async fn extract(
    repository: &PhysicalRepository,
    request: &ExtractRequest,
    reporter: &Arc<dyn Reporter>,
    cancellation: &CancellationToken,
) -> Result<Extracted, RestoreError> {
    let began = Instant::now();
    let new_table = format!(
        "{}.{}",
        quote_identifier(&request.schema),
        quote_identifier(&request.new_name)
    );
    let live = Connection::open_secured(&request.into).await?;
    check_target(&live, request, &new_table).await?;
    let major = repository
        .stanza_info()
        .history
        .last()
        .map_or(0, |system| system.major);
    let program = Binaries::find(
        "postgres",
        Requirement::Exactly(major),
        request.bin_dir.as_deref(),
    )
    .map_err(|error| RestoreError::Refused {
        hint: pgmahout_types::diagnostic::Diagnose::hint(&error).unwrap_or_default(),
        what: error.to_string(),
    })?;
    let house = ThrowawayHouse::create(ThrowawayOptions {
        bin_dir: program.directory().to_owned(),
        parent: request.scratch.clone(),
        settings: Vec::new(),
        keep: false,
    })?;
    let label = side_files(repository, request, &house, reporter, cancellation).await?;
    let mut server = side_server(&house)?;
    let progress = reporter.start(Task::new("recovering the side server", Unit::Steps, None));
    wait(&mut server, request.timeout, cancellation).await?;
    progress.finish("");
    let copied = copy(&server, &live, request, &new_table).await;
    server.stop().await;
    live.close().await;
    Ok(Extracted {
        label,
        table: new_table,
        rows: copied?,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// The live database must be able to take the table, before anything long begins.
async fn check_target(
    live: &Connection,
    request: &ExtractRequest,
    new_table: &str,
) -> Result<(), RestoreError> {
    let row = live
        .query_one(
            "SELECT pg_catalog.to_regclass($1) IS NOT NULL, pg_catalog.to_regnamespace($2) IS NOT NULL",
            &[&new_table, &quote_identifier(&request.schema)],
        )
        .await
        .map_err(sql("look at the live database"))?;
    if row.get::<_, bool>(0) {
        return Err(RestoreError::Refused {
            what: format!("the live database has a table {new_table} already"),
            hint: "give the new table another name with --as NAME, or drop this one".to_owned(),
        });
    }
    if !row.get::<_, bool>(1) {
        return Err(RestoreError::Refused {
            what: format!("the live database has no schema {}", request.schema),
            hint: format!("create it: CREATE SCHEMA {}", quote_identifier(&request.schema)),
        });
    }
    Ok(())
}

/// Restores the side server's files.
async fn side_files(
    repository: &PhysicalRepository,
    request: &ExtractRequest,
    house: &ThrowawayHouse,
    reporter: &Arc<dyn Reporter>,
    cancellation: &CancellationToken,
) -> Result<Label, RestoreError> {
    let data_dir = house.directory(NAME)?;
    let wanted = |label, tablespaces| RestoreRequest {
        remap: Remap {
            data_dir: data_dir.clone(),
            wal_dir: None,
            tablespaces,
        },
        aim: Aim {
            action: TargetAction::Promote,
            ..request.aim.clone()
        },
        label,
        delta: false,
        keep_old: false,
        archiving: Archiving::Off,
        standby: None,
        databases: vec![request.database.clone()],
        include: None,
        jobs: request.jobs,
        received: None,
        restore_command: request.restore_command.clone(),
        start: None,
        parameters: serde_json::json!({}),
    };
    let mut restore = Restore::prepare(
        repository.clone(),
        wanted(request.label, Vec::new()),
        cancellation,
    )
    .await?;
    let mut tablespaces = Vec::new();
    for oid in restore.tablespaces() {
        tablespaces.push((oid.to_string(), house.directory(&format!("tablespace-{oid}"))?));
    }
    if !tablespaces.is_empty() {
        let label = restore.label();
        restore.release().await;
        restore =
            Restore::prepare(repository.clone(), wanted(Some(label), tablespaces), cancellation).await?;
    }
    if let Some(obstacle) = restore.obstacle().await {
        return Err(obstacle);
    }
    reporter.message(
        Level::Info,
        &format!(
            "restoring database {} of backup {} to the side",
            request.database,
            restore.label()
        ),
    );
    // Its journal ends with the scratch directory.
    let runner = Runner::at(StateDirectory::at(house.root().join("state")));
    let quiet = pgmahout_procedure::report::Silent;
    let surroundings = Surroundings {
        confirm: &Always,
        reporter: &quiet,
        cancellation,
    };
    let made = runner.run(&restore, RunOptions::default(), surroundings).await;
    restore.release().await;
    made.map_err(|error| RestoreError::Side(Box::new(error)))?;
    Ok(restore.label())
}

fn side_server(house: &ThrowawayHouse) -> Result<ThrowawayServer, RestoreError> {
    let data = house.root().join(NAME);
    let control = control(&data)?;
    let hba = house.write_file("pg_hba.conf", "local all all trust\n")?;
    let ident = house.write_file("pg_ident.conf", "")?;
    let mut settings = vec![
        ("hba_file", hba.display().to_string()),
        ("ident_file", ident.display().to_string()),
        ("external_pid_file", String::new()),
        ("ssl", "off".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        ("archive_mode", "off".to_owned()),
        ("max_logical_replication_workers", "0".to_owned()),
        ("synchronous_standby_names", String::new()),
        ("shared_preload_libraries", String::new()),
        ("fsync", "off".to_owned()),
        ("shared_buffers", "128MB".to_owned()),
        ("huge_pages", "off".to_owned()),
        ("hot_standby", "off".to_owned()),
        ("max_connections", control.max_connections.to_string()),
        (
            "max_prepared_transactions",
            control.max_prepared_transactions.to_string(),
        ),
    ];
    if !data.join("postgresql.conf").exists() {
        let file = house.write_file("postgresql.conf", "")?;
        settings.push(("config_file", file.display().to_string()));
    }
    Ok(house.launch(NAME, &settings)?)
}

fn control(data: &std::path::Path) -> Result<ControlFile, RestoreError> {
    let path = data.join(ControlFile::PATH);
    let bytes = fs::read(&path).map_err(|error| RestoreError::io("read", &path, error))?;
    ControlFile::parse(&bytes)
        .map_err(|error| RestoreError::io("understand", &path, std::io::Error::other(error)))
}

/// Waits until the side server has recovered and takes connections.
async fn wait(
    server: &mut ThrowawayServer,
    timeout: Duration,
    cancellation: &CancellationToken,
) -> Result<(), RestoreError> {
    let deadline = Instant::now() + timeout;
    loop {
        let ended = !server.is_running();
        if ended || Instant::now() > deadline {
            return Err(RestoreError::Recovery {
                why: format!(
                    "the side server {}; its log ends with:\n{}",
                    if ended { "ended" } else { "still recovers" },
                    server.log_tail()
                ),
                hint:
                    "correct what the log names; choose an earlier target, or give more time with --timeout"
                        .to_owned(),
            });
        }
        let data = server.data_directory();
        let ready = fs::read_to_string(data.join("postmaster.pid"))
            .is_ok_and(|text| text.lines().nth(7).is_some_and(|status| status.trim() == "ready"));
        // Torn for a moment while the server writes it: then the next look sees it.
        if ready && control(data).is_ok_and(|control| control.state == ClusterState::InProduction) {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = cancellation.cancelled() => {
                server.stop().await;
                return Err(RestoreError::Interrupted { directory: server.data_directory().to_owned() });
            }
        }
    }
}

/// Opens the side server as a role that it has.
async fn open_side(server: &ThrowawayServer, request: &ExtractRequest) -> Result<Connection, RestoreError> {
    let parameters = server.parameters(&request.database)?;
    let mut last = None;
    for user in ["postgres", request.into.user.as_str()] {
        let mut parameters = parameters.clone();
        user.clone_into(&mut parameters.user);
        match Connection::open_secured(&parameters).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or(RestoreError::Thread, RestoreError::from))
}

async fn copy(
    server: &ThrowawayServer,
    live: &Connection,
    request: &ExtractRequest,
    new_table: &str,
) -> Result<u64, RestoreError> {
    let side = open_side(server, request).await?;
    let table = format!(
        "{}.{}",
        quote_identifier(&request.schema),
        quote_identifier(&request.table)
    );
    let columns = side
        .query(
            "SELECT pg_catalog.quote_ident(a.attname), pg_catalog.format_type(a.atttypid, a.atttypmod) \
             FROM pg_catalog.pg_attribute a \
             WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped \
             ORDER BY a.attnum",
            &[&table],
        )
        .await
        .map_err(sql(format!("look at {table} as it was")))?;
    if columns.is_empty() {
        return Err(RestoreError::Recovery {
            why: format!(
                "at the target, database {} has no table {table}",
                request.database
            ),
            hint: "check the name, and choose a target at which the table was there".to_owned(),
        });
    }
    let names: Vec<String> = columns.iter().map(|row| row.get::<_, String>(0)).collect();
    let definitions: Vec<String> = columns
        .iter()
        .map(|row| format!("{} {}", row.get::<_, String>(0), row.get::<_, String>(1)))
        .collect();
    let names = names.join(", ");
    live.batch_execute(&format!(
        "BEGIN; CREATE TABLE {new_table} ({})",
        definitions.join(", ")
    ))
    .await
    .map_err(sql(format!("create {new_table}")))?;
    let rows = side
        .copy_out(&format!("COPY (SELECT {names} FROM {table}) TO STDOUT"))
        .await
        .map_err(sql(format!("read {table} as it was")))?;
    let sink = live
        .copy_in::<_, bytes::Bytes>(&format!("COPY {new_table} ({names}) FROM STDIN"))
        .await
        .map_err(sql(format!("fill {new_table}")))?;
    let mut rows = std::pin::pin!(rows);
    let mut sink = std::pin::pin!(sink);
    while let Some(bytes) = rows.next().await {
        let bytes = bytes.map_err(sql(format!("read {table} as it was")))?;
        sink.send(bytes).await.map_err(sql(format!("fill {new_table}")))?;
    }
    let count = sink.finish().await.map_err(sql(format!("fill {new_table}")))?;
    live.batch_execute("COMMIT")
        .await
        .map_err(sql(format!("keep {new_table}")))?;
    side.close().await;
    Ok(count)
}
