//! The session with the server that a backup is taken of: what it must know, how backup mode begins and
//! ends.
//!
//! Backup mode belongs to one session: the server leaves it when the session ends, however it ends
//! (`do_pg_abort_backup` in `src/backend/access/transam/xlog.c`). So whatever fails, closing is enough.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_types::version::ServerVersion;
use pgmahout_types::{BackupLabel, Lsn, SystemIdentifier, TimelineId};
use tokio_postgres::Row;

use super::error::CreateError;

/// What the server says of itself before the backup.
#[derive(Debug, Clone)]
pub(super) struct ServerFacts {
    /// Its version.
    pub(super) version: ServerVersion,
    /// Its cluster.
    pub(super) system_identifier: SystemIdentifier,
    /// Whether it is a standby.
    pub(super) in_recovery: bool,
    /// `data_directory`; `None` where the role may not see it.
    pub(super) data_directory: Option<PathBuf>,
    /// `port`.
    pub(super) port: String,
    /// When the postmaster began, in seconds since 1970.
    pub(super) started_at: i64,
    /// `archive_mode`.
    pub(super) archive_mode: String,
    /// `wal_level`.
    pub(super) wal_level: String,
    /// Bytes in a page.
    pub(super) block_size: u32,
    /// The functions of backup mode that the role may not call.
    pub(super) missing_functions: Vec<String>,
    /// The role, for the GRANT that would help.
    pub(super) role: String,
}

/// What the server's archiver says.
#[derive(Debug, Clone, Default)]
pub(crate) struct ArchiverFacts {
    /// `archive_command` (or the library); `None` where the role may not see it.
    pub(crate) command: Option<String>,
    /// The last file that was archived, and when.
    pub(crate) last_archived: Option<(String, String)>,
    /// The last file that could not be archived, and when.
    pub(crate) last_failed: Option<(String, String)>,
}

/// What `pg_backup_stop` gave, or came among the files of a base backup.
#[derive(Debug, Clone)]
pub(super) struct Stopped {
    /// WAL is needed up to here.
    pub(super) stop: Lsn,
    /// `backup_label`, byte for byte.
    pub(super) label: Vec<u8>,
    /// What it says.
    pub(super) parsed: BackupLabel,
    /// `tablespace_map`, byte for byte; empty where there are no tablespaces.
    pub(super) tablespace_map: Vec<u8>,
    /// The names of the tablespaces, by their numbers. One that was dropped since has none.
    pub(super) tablespace_names: BTreeMap<u32, String>,
}

/// The session.
pub(super) struct Server {
    pub(super) connection: Connection,
    pub(super) facts: ServerFacts,
    /// 14 has the functions under other names.
    old_names: bool,
}

/// Settings that would end the session, or change what it is told, while it waits for the files.
const SETTINGS: &str = "SET statement_timeout = 0; SET lock_timeout = 0; \
                        SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0; \
                        SET client_min_messages = 'error'";

impl Server {
    /// Connects and asks.
    pub(super) async fn connect(parameters: &ConnectionParameters) -> Result<Self, CreateError> {
        let connection =
            Connection::open_secured(&parameters.with_application_name("pgmahout backup")).await?;
        connection
            .batch_execute(SETTINGS)
            .await
            .map_err(sql("prepare the session"))?;
        let version = connection.server_version();
        let old_names = version.major() < 15;
        let facts = gather(&connection, version, old_names).await?;
        Ok(Self {
            connection,
            facts,
            old_names,
        })
    }

    /// Begins backup mode and waits for the checkpoint; gives the position at which replay will begin.
    ///
    /// Dropping the future leaves the statement running in the server: call [`Server::abandon`].
    pub(super) async fn start(&self, label: &str, fast: bool) -> Result<Lsn, CreateError> {
        let statement = if self.old_names {
            "SELECT pg_catalog.pg_start_backup($1, $2, false)::text"
        } else {
            "SELECT pg_catalog.pg_backup_start($1, $2)::text"
        };
        let row = self
            .connection
            .query_one(statement, &[&label, &fast])
            .await
            .map_err(sql("begin backup mode"))?;
        let text: String = row.get(0);
        text.parse().map_err(|_| unexpected("pg_backup_start", &text))
    }

    /// Ends backup mode, without waiting for the archive: that is our own business.
    ///
    /// The server gives the two files as text, which the protocol would convert to the client's encoding.
    /// As `bytea` they come as they are; `byteain` wants its backslashes doubled.
    pub(super) async fn stop(&self) -> Result<Stopped, CreateError> {
        let function = if self.old_names {
            "pg_catalog.pg_stop_backup(false, false)"
        } else {
            "pg_catalog.pg_backup_stop(false)"
        };
        let statement = format!(
            r"SELECT lsn::text,
                     pg_catalog.replace(labelfile, E'\\', E'\\\\')::pg_catalog.bytea,
                     pg_catalog.replace(spcmapfile, E'\\', E'\\\\')::pg_catalog.bytea
              FROM {function}"
        );
        let row = match self.connection.query_one(&statement, &[]).await {
            Ok(row) => row,
            Err(error) if self.facts.in_recovery && error.code().is_some() && self.was_promoted().await => {
                return Err(CreateError::Promoted);
            }
            Err(error) => return Err(sql("end backup mode")(error)),
        };
        let text: String = row.get(0);
        let label: Vec<u8> = row.get(1);
        let parsed = BackupLabel::parse(&label)?;
        Ok(Stopped {
            stop: text.parse().map_err(|_| unexpected("pg_backup_stop", &text))?,
            parsed,
            label,
            tablespace_map: row.get::<_, Option<Vec<u8>>>(2).unwrap_or_default(),
            tablespace_names: self.tablespace_names().await?,
        })
    }

    /// The names of the tablespaces, by their numbers. One that is not UTF-8 is left out.
    pub(super) async fn tablespace_names(&self) -> Result<BTreeMap<u32, String>, CreateError> {
        let rows = self
            .connection
            .query("SELECT oid, spcname::text FROM pg_catalog.pg_tablespace", &[])
            .await
            .map_err(sql("ask for the names of the tablespaces"))?;
        let names = rows
            .iter()
            .filter_map(|row| Some((row.try_get(0).ok()?, row.try_get(1).ok()?)));
        Ok(names.collect())
    }

    /// Whether a server that was a standby is none any more.
    pub(super) async fn was_promoted(&self) -> bool {
        matches!(self.in_recovery().await, Ok(false))
    }

    /// Whether the server is a standby now.
    pub(super) async fn in_recovery(&self) -> Result<bool, CreateError> {
        let row = self
            .connection
            .query_one("SELECT pg_catalog.pg_is_in_recovery()", &[])
            .await
            .map_err(sql("ask the server whether it still is what it was"))?;
        Ok(row.get(0))
    }

    /// Looks whether the session still lives, and the server still is what it was when the backup began.
    pub(super) async fn watch(&self, every: Duration) -> CreateError {
        loop {
            tokio::time::sleep(every).await;
            match self.in_recovery().await {
                Ok(now) if now == self.facts.in_recovery => {}
                Ok(_) => return CreateError::Promoted,
                Err(error) => return error,
            }
        }
    }

    /// What the archiver says; nothing where that cannot be asked.
    pub(super) async fn archiver(&self) -> ArchiverFacts {
        archiver(&self.connection).await.unwrap_or_default()
    }

    /// Ends the session, and with it backup mode, cancelling what still runs.
    pub(super) async fn abandon(self) {
        // A checkpoint that is waited for would go on for minutes. Whether the request arrives or not, the
        // session is closed next.
        let _ = self.connection.cancel_handle().cancel().await;
        self.connection.close().await;
    }

    /// Ends the session after backup mode.
    pub(super) async fn close(self) {
        self.connection.close().await;
    }
}

/// Makes the primary of a standby begin a new segment, so that the last one is archived.
pub(super) async fn switch_wal(primary: &ConnectionParameters) -> Result<(), CreateError> {
    let connection = Connection::open_secured(&primary.with_application_name("pgmahout backup")).await?;
    let switched = connection
        .query_one("SELECT pg_catalog.pg_switch_wal()::text", &[])
        .await
        .map_err(sql("switch to a new WAL segment on the primary"));
    connection.close().await;
    switched.map(|_| ())
}

pub(super) fn sql(doing: &'static str) -> impl FnOnce(tokio_postgres::Error) -> CreateError {
    move |source| CreateError::Sql { doing, source }
}

pub(super) fn unexpected(function: &str, value: &str) -> CreateError {
    CreateError::Unexpected {
        what: format!("{function} gave \"{value}\""),
    }
}

/// One question for everything. What the role may not see is NULL: rows of `pg_settings` that are for
/// `pg_read_all_settings` are then not there.
async fn gather(
    connection: &Connection,
    version: ServerVersion,
    old_names: bool,
) -> Result<ServerFacts, CreateError> {
    let functions: &[&str] = if old_names {
        &[
            "pg_catalog.pg_start_backup(text, boolean, boolean)",
            "pg_catalog.pg_stop_backup(boolean, boolean)",
        ]
    } else {
        &[
            "pg_catalog.pg_backup_start(text, boolean)",
            "pg_catalog.pg_backup_stop(boolean)",
        ]
    };
    let row: Row = connection
        .query_one(
            "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()), \
                    pg_catalog.pg_is_in_recovery(), \
                    (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'data_directory'), \
                    pg_catalog.current_setting('port'), \
                    pg_catalog.extract('epoch', pg_catalog.pg_postmaster_start_time())::bigint, \
                    pg_catalog.current_setting('archive_mode'), \
                    pg_catalog.current_setting('wal_level'), \
                    pg_catalog.current_setting('block_size')::int, \
                    ARRAY(SELECT f FROM pg_catalog.unnest($1::text[]) AS f \
                          WHERE NOT pg_catalog.has_function_privilege(f, 'EXECUTE')), \
                    current_user::text",
            &[&functions],
        )
        .await
        .map_err(sql("ask the server what it is"))?;
    Ok(ServerFacts {
        version,
        system_identifier: SystemIdentifier::from_bigint(row.get(0)),
        in_recovery: row.get(1),
        data_directory: row.get::<_, Option<String>>(2).map(PathBuf::from),
        port: row.get(3),
        started_at: row.get(4),
        archive_mode: row.get(5),
        wal_level: row.get(6),
        block_size: row.get::<_, i32>(7).unsigned_abs(),
        missing_functions: row.get(8),
        role: row.get(9),
    })
}

async fn archiver(connection: &Connection) -> Result<ArchiverFacts, tokio_postgres::Error> {
    let row = connection
        .query_one(
            "SELECT (SELECT COALESCE(NULLIF(pg_catalog.max(CASE WHEN name = 'archive_library' THEN setting END), ''), \
                                     pg_catalog.max(CASE WHEN name = 'archive_command' THEN setting END)) \
                     FROM pg_catalog.pg_settings WHERE name IN ('archive_command', 'archive_library')), \
                    last_archived_wal, last_archived_time::text, last_failed_wal, last_failed_time::text \
             FROM pg_catalog.pg_stat_archiver",
            &[],
        )
        .await?;
    let pair = |name: usize, time: usize| -> Option<(String, String)> {
        Some((
            row.get::<_, Option<String>>(name)?,
            row.get::<_, Option<String>>(time).unwrap_or_default(),
        ))
    };
    Ok(ArchiverFacts {
        command: row.get(0),
        last_archived: pair(1, 2),
        last_failed: pair(3, 4),
    })
}

/// The timeline that a backup began on.
pub(super) fn start_timeline(label: &BackupLabel) -> TimelineId {
    label
        .start_timeline
        .unwrap_or_else(|| label.start.file.timeline())
}
