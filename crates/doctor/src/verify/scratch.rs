//! The schema of our own, and the row that is followed.

use std::time::Instant;

use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;

use super::{Part, VerifyError, failed};
use crate::health::{Finding, Measure};

/// Marks the schema as ours, so that the leftover of a killed run is dropped and nobody else's is.
const MARK: &str = "made by pgmahout verify; safe to drop";

/// Makes the schema and its table; drops the leftover of a run that was killed.
pub(super) async fn create(connection: &Connection) -> Result<(), VerifyError> {
    let server = |action| move |source| VerifyError::Server { action, source };
    let existing = connection
        .query_opt(
            "SELECT pg_catalog.obj_description(oid, 'pg_namespace') FROM pg_catalog.pg_namespace WHERE nspname = 'pgmahout'",
            &[],
        )
        .await
        .map_err(server("look for the schema pgmahout"))?;
    if let Some(row) = existing {
        if row.get::<_, Option<String>>(0).as_deref() != Some(MARK) {
            return Err(VerifyError::ForeignSchema);
        }
        remove(connection).await?;
    }
    connection
        .batch_execute(&format!(
            "CREATE SCHEMA pgmahout;
             COMMENT ON SCHEMA pgmahout IS '{MARK}';
             CREATE TABLE pgmahout.verify (id integer PRIMARY KEY, token text NOT NULL, turn integer NOT NULL)"
        ))
        .await
        .map_err(server("make the schema pgmahout"))
}

/// Drops the schema.
pub(super) async fn remove(connection: &Connection) -> Result<(), VerifyError> {
    connection
        .batch_execute("DROP SCHEMA IF EXISTS pgmahout CASCADE")
        .await
        .map_err(|source| VerifyError::Server {
            action: "drop the schema pgmahout",
            source,
        })
}

/// Writes the row and reads it back in another session.
pub(super) async fn write_and_read(connection: &Connection) -> Part {
    let begun = Instant::now();
    let written = connection
        .query_one(
            "INSERT INTO pgmahout.verify VALUES (1, pg_catalog.gen_random_uuid()::text, 0) RETURNING token",
            &[],
        )
        .await;
    let token: String = match written {
        Ok(row) => row.get(0),
        Err(error) => return failed("write a row", &error),
    };
    let took = begun.elapsed().as_secs_f64();
    let reader = match Connection::open_secured(connection.parameters()).await {
        Ok(reader) => reader,
        Err(error) => {
            return Part::Found(Finding::crit(format!(
                "a second session to read the row was refused: {error}"
            )));
        }
    };
    let read = reader
        .query_opt("SELECT token FROM pgmahout.verify WHERE id = 1", &[])
        .await;
    reader.close().await;
    match read {
        Ok(Some(row)) if row.get::<_, String>(0) == token => Part::Found(
            Finding::ok("a row was written, committed, and read back by another session")
                .measured(Measure::seconds(took)),
        ),
        Ok(_) => Part::Found(Finding::crit(
            "the row that was committed is not there for another session",
        )),
        Err(error) => failed("read the row back", &error),
    }
}

/// Reads and changes the row through the pooler.
pub(super) async fn through_pooler(pooler: &ConnectionParameters) -> Part {
    let begun = Instant::now();
    let session = match Connection::open(pooler).await {
        Ok(session) => session,
        Err(error) => {
            return Part::Found(
                Finding::crit(format!(
                    "no session through the pooler at {}: {error}",
                    pooler.describe()
                ))
                .hint("look at the pooler's own view: psql -d pgbouncer -c 'SHOW POOLS'"),
            );
        }
    };
    // The simple protocol: a pooler in transaction mode before 1.21 knows no prepared statements.
    let changed = session
        .simple_query("UPDATE pgmahout.verify SET turn = turn + 1 WHERE id = 1 RETURNING turn")
        .await;
    session.close().await;
    match changed {
        Ok(messages)
            if messages
                .iter()
                .any(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(_))) =>
        {
            Part::Found(
                Finding::ok("the row was read and changed through the pooler")
                    .measured(Measure::seconds(begun.elapsed().as_secs_f64())),
            )
        }
        Ok(_) => Part::Found(
            Finding::crit("the pooler leads to a server that does not have the row: not this primary")
                .hint("compare the pooler's [databases] section with the primary's address"),
        ),
        Err(error) => failed("change the row through the pooler", &error),
    }
}
