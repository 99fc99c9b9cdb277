//! Which cluster this is: from its pg_control, or from the running server.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pgmahout_postgres::connection::Connection;
use pgmahout_types::repository::stanza_info::StanzaSystem;
use pgmahout_types::{ControlFile, SegmentSize, SystemIdentifier};

use crate::failure::Failure;

/// How often a torn pg_control is read again: the server writes it in place.
const ATTEMPTS: u32 = 20;

/// The cluster of a data directory.
pub(super) async fn of_directory(data_dir: &Path) -> Result<StanzaSystem, Failure> {
    let path = data_dir.join(ControlFile::PATH);
    let mut attempt = 0;
    let control = loop {
        attempt += 1;
        let bytes = std::fs::read(&path).map_err(|error| {
            Failure::caused_by(format!("cannot read {}", path.display()), error)
                .hint("name the data directory with --data-dir, run as its owner, or leave it to the running server")
        })?;
        match ControlFile::parse(&bytes) {
            Ok(control) => break control,
            Err(_) if attempt < ATTEMPTS => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            Err(error) => {
                return Err(Failure::from(error).context(format!("cannot understand {}", path.display())));
            }
        }
    };
    StanzaSystem::new(&control, Timestamp::now()).ok_or_else(|| {
        Failure::caused_by(
            format!(
                "{} is of a PostgreSQL that this pgmahout does not know",
                path.display()
            ),
            format!(
                "the version of its system catalogs is {}",
                control.catalog_version
            ),
        )
        .hint("use a newer pgmahout")
    })
}

/// The cluster of a running server.
pub(super) async fn of_server(connection: &Connection) -> Result<StanzaSystem, Failure> {
    let row = connection
        .query_one(
            "SELECT c.system_identifier, c.pg_control_version, c.catalog_version_no, s.setting::bigint \
             FROM pg_catalog.pg_control_system() c, pg_catalog.pg_settings s WHERE s.name = 'wal_segment_size'",
            &[],
        )
        .await
        .map_err(|error| Failure::caused_by("cannot ask the server which cluster it is", error))?;
    let (system, control, catalog, segment): (i64, i32, i32, i64) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    let size = SegmentSize::new(segment.cast_unsigned())?;
    Ok(StanzaSystem {
        system_identifier: SystemIdentifier::new(system.cast_unsigned()),
        major: connection.server_version().major(),
        control_version: control.cast_unsigned(),
        catalog_version: catalog.cast_unsigned(),
        wal_segment_size: size,
        since: Timestamp::now(),
    })
}

/// Where the server's files are, if it says so and is not on another machine.
pub(super) async fn data_directory(connection: &Connection) -> Option<PathBuf> {
    let row = connection
        .query_one("SELECT pg_catalog.current_setting('data_directory')", &[])
        .await
        .ok()?;
    row.try_get::<_, String>(0).ok().map(PathBuf::from)
}
