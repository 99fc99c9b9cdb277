//! The session that holds the snapshot of a dump.
//!
//! `pg_export_snapshot()` lets other sessions see exactly what this one sees, as long as its transaction
//! lives (PostgreSQL documentation, "Snapshot Synchronization Functions"). pg_dump gets the snapshot by
//! `--snapshot`, the counting session by `SET TRANSACTION SNAPSHOT`.

use jiff::Timestamp;
use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;

use super::super::error::DumpError;
use super::super::manifest::Snapshot;
use super::facts::{self, Facts};

/// What begins a transaction of ours. Timeouts that an administrator set for ordinary sessions must not
/// end the snapshot in the middle of a dump; pg_dump switches the same ones off for itself.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; \
                     SET LOCAL idle_in_transaction_session_timeout = 0; \
                     SET LOCAL statement_timeout = 0; \
                     SET LOCAL lock_timeout = 0; \
                     SET LOCAL row_security = off";

/// The session, with what it learnt.
#[derive(Debug)]
pub(super) struct Session {
    connection: Connection,
    /// About server and database.
    pub(super) facts: Facts,
    /// The snapshot.
    pub(super) snapshot: Snapshot,
    /// Under which name our sessions, pg_dump's too, stand in `pg_stat_activity`.
    application_name: String,
}

impl Session {
    /// Opens the transaction on an open connection and exports its snapshot.
    pub(super) async fn begin(connection: Connection) -> Result<Self, DumpError> {
        let sql = |doing| move |source| DumpError::Sql { doing, source };
        let mut facts = facts::gather(&connection)
            .await
            .map_err(sql("ask the server about the database"))?;
        let parameters = connection.parameters();
        facts.server.address = parameters
            .hosts
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        let application_name = format!("pgmahout dump {}", connection.backend_pid());
        begin(&connection, facts.version.major())
            .await
            .map_err(sql("begin the dump's transaction"))?;
        let position = if facts.server.in_recovery {
            "pg_last_wal_replay_lsn"
        } else {
            "pg_current_wal_insert_lsn"
        };
        // A function may be revoked from the role; the position is nice to have, the snapshot is not.
        let row = connection
            .query_one(
                &format!(
                    "SELECT pg_catalog.pg_export_snapshot(), pg_catalog.clock_timestamp(), \
                            CASE WHEN pg_catalog.has_function_privilege('pg_catalog.{position}()', 'EXECUTE') \
                                 THEN pg_catalog.{position}()::text END"
                ),
                &[],
            )
            .await
            .map_err(sql("export a snapshot"))?;
        let snapshot = Snapshot {
            id: row.get(0),
            taken_at: row.get::<_, Timestamp>(1),
            lsn: row.get(2),
        };
        Ok(Self {
            connection,
            facts,
            snapshot,
            application_name,
        })
    }

    /// The connection that holds the snapshot.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// How pg_dump and the counting session reach the same server, under our name.
    pub(super) fn parameters(&self) -> ConnectionParameters {
        self.connection
            .parameters()
            .with_application_name(&self.application_name)
    }

    /// A second session that sees the same snapshot.
    pub(super) async fn companion(&self) -> Result<Connection, DumpError> {
        let connection = Connection::open_secured(&self.parameters()).await?;
        let sql = |source| DumpError::Sql {
            doing: "take up the snapshot",
            source,
        };
        begin(&connection, self.facts.version.major())
            .await
            .map_err(sql)?;
        let statement = format!(
            "SET TRANSACTION SNAPSHOT '{}'",
            self.snapshot.id.replace('\'', "''")
        );
        connection.batch_execute(&statement).await.map_err(sql)?;
        Ok(connection)
    }

    /// Ends sessions that a killed pg_dump left behind on the server: one that waits for a lock does not
    /// notice that its client is gone. Best effort; the sessions are our own role's, under our name.
    pub(super) async fn end_leftovers(&self) {
        let _ = self
            .connection
            .execute(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
                 WHERE application_name = $1 AND pid <> pg_catalog.pg_backend_pid()",
                &[&self.application_name],
            )
            .await;
    }

    /// Ends the transaction and the session.
    pub(super) async fn end(self) {
        // Nothing was written, so how it ends does not matter, only that it does.
        let _ = self.connection.batch_execute("ROLLBACK").await;
        self.connection.close().await;
    }
}

async fn begin(connection: &Connection, major: u32) -> Result<(), tokio_postgres::Error> {
    connection.batch_execute(BEGIN).await?;
    if major >= 17 {
        connection
            .batch_execute("SET LOCAL transaction_timeout = 0")
            .await?;
    }
    Ok(())
}
