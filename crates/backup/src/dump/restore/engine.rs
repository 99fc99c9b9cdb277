//! Fills a database from a dump.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_procedure::report::Progress;
use tokio_util::sync::CancellationToken;

use super::super::read::{last_lines, watch};
use super::counts::{self, CountRow};
use super::error::RestoreError;
use super::procedure::{Mode, Shared};
use super::psql::{self, Load};
use super::tools::Tools;
use super::{fresh, hints};

/// Loads the dump into a database. In one transaction, an error means that nothing has changed; the counts
/// that are returned were right before the commit.
pub(crate) async fn load(
    shared: &Shared,
    target: &ConnectionParameters,
    progress: &dyn Progress,
    cancellation: &CancellationToken,
) -> Result<Vec<CountRow>, RestoreError> {
    let adds = shared.request.selection.data_only || shared.section().tables_created == 0;
    let mut expected = counts::expected(shared.section(), &shared.request.selection);
    if adds && !shared.one_transaction() {
        let connection = Connection::open_secured(target).await?;
        for row in counts::count(&connection, &expected).await? {
            if let Some(rows) = expected.get_mut(&row.table) {
                *rows += row.found.unwrap_or(0);
            }
        }
        connection.close().await;
    }
    if shared.request.jobs > 1 {
        in_parallel(shared, target, cancellation).await?;
    } else {
        let counts = by_psql(shared, target, progress, cancellation).await?;
        if shared.one_transaction() {
            return Ok(counts);
        }
    }
    let connection = Connection::open_secured(target).await?;
    let found = counts::count(&connection, &expected).await?;
    connection.close().await;
    if found.iter().all(CountRow::matches) {
        Ok(found)
    } else {
        let aftermath = if shared.request.mode == Mode::Existing {
            "without a transaction, what was restored stays in the target"
        } else {
            "the new database was dropped and the target is as it was"
        };
        Err(RestoreError::Mismatch {
            rows: found,
            aftermath,
        })
    }
}

async fn by_psql(
    shared: &Shared,
    target: &ConnectionParameters,
    progress: &dyn Progress,
    cancellation: &CancellationToken,
) -> Result<Vec<CountRow>, RestoreError> {
    let administration = fresh::administration(target, &target.database).await?;
    let major = administration.server_version().major();
    administration.close().await;
    let counter = Arc::new(AtomicU64::new(0));
    let mut stream = shared.dump.sql(Arc::clone(&counter)).await?;
    let work = Load {
        tools: Tools::find("psql", major, shared.request.bin_dir.as_deref())?,
        target: target.clone(),
        what: shared.dump.describe().to_owned(),
        selection: shared.selection(),
        before: Some(shared.report.clone()),
        expected: Some(counts::expected(shared.section(), &shared.request.selection)),
        add_present: shared.request.selection.data_only || shared.section().tables_created == 0,
        one_transaction: shared.one_transaction(),
        cancellation: cancellation.clone(),
    };
    let work = tokio::task::spawn_blocking(move || psql::load(&work, &mut stream));
    Ok(watch(work, &counter, progress).await?.counts)
}

/// `pg_restore --jobs`: each object in a transaction of its own.
async fn in_parallel(
    shared: &Shared,
    target: &ConnectionParameters,
    cancellation: &CancellationToken,
) -> Result<(), RestoreError> {
    let tools = shared.dump.archive_tools()?;
    let (path, stdin) = shared.dump.seekable().await?;
    let mut command = tokio::process::Command::new(tools.program("pg_restore"));
    let selection = &shared.request.selection;
    command
        .args(["--no-password", "--exit-on-error", "--jobs"])
        .arg(shared.request.jobs.to_string());
    command.arg("--dbname").arg(connection_string(&target.database));
    for (given, option) in [
        (selection.schema_only, "--schema-only"),
        (selection.data_only, "--data-only"),
        (selection.no_owner, "--no-owner"),
        (selection.no_acl, "--no-acl"),
    ] {
        if given {
            command.arg(option);
        }
    }
    for table in &selection.tables {
        if !table.schema.is_empty() {
            command.arg("--schema").arg(&table.schema);
        }
        command.arg("--table").arg(&table.name);
    }
    for schema in &selection.schemas {
        command.arg("--schema").arg(schema);
    }
    command.arg(&path).env("LC_ALL", "C");
    for (name, value) in target
        .with_application_name("pgmahout dump restore")
        .client_environment()
    {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.process_group(0).kill_on_drop(true);
    command.stdin(stdin.map_or_else(std::process::Stdio::null, std::process::Stdio::from));
    command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().map_err(|source| RestoreError::Io {
        doing: "run",
        what: "pg_restore".to_owned(),
        source,
    })?;
    let stderr = child
        .stderr
        .take()
        .expect("it was piped")
        .into_owned_fd()
        .map(std::fs::File::from);
    let stderr = tokio::task::spawn_blocking(move || stderr.map(last_lines).unwrap_or_default());
    let status = tokio::select! {
        status = child.wait() => status,
        () = cancellation.cancelled() => {
            if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
                // It cancels what its workers are running.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            let _ = tokio::time::timeout(std::time::Duration::from_secs(10), child.wait()).await;
            return Err(RestoreError::Interrupted {
                aftermath: if shared.request.mode == Mode::Existing {
                    "what was restored so far stays in the target"
                } else {
                    "the target is as it was"
                },
            });
        }
    };
    let stderr = stderr.await.unwrap_or_default();
    match status {
        Ok(status) if status.success() => Ok(()),
        _ => {
            let hint = hints::for_lines(&stderr, Some(&target.database));
            Err(RestoreError::ProgramFailed {
                program: "pg_restore",
                target: Some(target.database.clone()),
                stderr,
                hint,
            })
        }
    }
}

/// A connection string with only the database, so that its name is never taken for one.
fn connection_string(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Gathers statistics on everything.
pub(crate) async fn analyze(target: &ConnectionParameters) -> Result<(), RestoreError> {
    let connection = Connection::open(target).await?;
    connection
        .batch_execute("ANALYZE")
        .await
        .map_err(|error| RestoreError::sql("analyze the restored tables", error))?;
    connection.close().await;
    Ok(())
}
