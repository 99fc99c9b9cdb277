//! What the manifest says about the server and the database, asked once, before the dump.
//!
//! Nothing here takes a lock on a user's table.

use std::collections::BTreeMap;

use pgmahout_types::version::ServerVersion;
use tokio_postgres::{Client, Error};

use super::super::manifest::{Database, Extension, Server};

/// Answers about the server and the database.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// The server's version.
    pub(super) version: ServerVersion,
    /// For the manifest; the address is filled in by the caller.
    pub(super) server: Server,
    /// For the manifest.
    pub(super) database: Database,
    /// Whether the role may read password verifiers (`pg_authid`), as `pg_dumpall --globals-only` does.
    pub(super) may_read_passwords: bool,
    /// Whether the Citus extension is there.
    pub(super) has_citus: bool,
}

/// Asks the server.
pub(super) async fn gather(client: &Client) -> Result<Facts, Error> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int4, \
                    pg_catalog.pg_is_in_recovery(), \
                    pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT'), \
                    pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')",
            &[],
        )
        .await?;
    let version = ServerVersion::from_number(row.get::<_, i32>(0).unsigned_abs());
    let system_identifier = if row.get(3) {
        let row = client
            .query_one(
                "SELECT system_identifier::text FROM pg_catalog.pg_control_system()",
                &[],
            )
            .await?;
        Some(row.get(0))
    } else {
        None
    };
    let database = database(client, version).await?;
    let has_citus = database
        .extensions
        .iter()
        .any(|extension| extension.name == "citus");
    Ok(Facts {
        version,
        server: Server {
            version: version.to_string(),
            version_number: version.number(),
            system_identifier,
            address: String::new(),
            in_recovery: row.get(1),
        },
        database,
        may_read_passwords: row.get(2),
        has_citus,
    })
}

async fn database(client: &Client, version: ServerVersion) -> Result<Database, Error> {
    // `daticulocale` became `datlocale` in 17; 14 has neither provider nor version of a database.
    let columns = match version.major() {
        ..=14 => "'c'::\"char\", NULL::text, NULL::text, NULL::text",
        15 | 16 => {
            "d.datlocprovider, d.daticulocale, d.datcollversion, \
             pg_catalog.pg_database_collation_actual_version(d.oid)"
        }
        _ => {
            "d.datlocprovider, d.datlocale, d.datcollversion, \
             pg_catalog.pg_database_collation_actual_version(d.oid)"
        }
    };
    let row = client
        .query_one(
            &format!(
                "SELECT d.datname::text, pg_catalog.pg_encoding_to_char(d.encoding)::text, \
                        d.datcollate::text, d.datctype::text, \
                        pg_catalog.pg_database_size(d.oid), {columns} \
                 FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()"
            ),
            &[],
        )
        .await?;
    let extensions = client
        .query(
            "SELECT e.extname::text, e.extversion, n.nspname::text \
             FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace \
             ORDER BY 1",
            &[],
        )
        .await?
        .iter()
        .map(|row| Extension {
            name: row.get(0),
            version: row.get(1),
            schema: row.get(2),
        })
        .collect();
    let provider = match row.get::<_, i8>(5) as u8 {
        b'i' => "icu",
        b'b' => "builtin",
        _ => "libc",
    };
    Ok(Database {
        name: row.get(0),
        encoding: row.get(1),
        collate: row.get(2),
        ctype: row.get(3),
        size_bytes: row.get::<_, i64>(4).unsigned_abs(),
        locale_provider: provider.to_owned(),
        locale: row.get(6),
        collation_version: row.get(7),
        collation_actual_version: row.get(8),
        collations: collations(client).await?,
        extensions,
    })
}

/// The versions of the collations that user columns name, other than the database's own.
async fn collations(client: &Client) -> Result<BTreeMap<String, Option<String>>, Error> {
    let rows = client
        .query(
            "SELECT DISTINCT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.collname), \
                    c.collversion \
             FROM pg_catalog.pg_attribute a \
             JOIN pg_catalog.pg_class r ON r.oid = a.attrelid \
             JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace \
             WHERE r.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) \
               AND r.relkind IN ('r', 'p', 'm') AND NOT a.attisdropped AND a.attnum > 0 \
               AND c.collname NOT IN ('default', 'C', 'POSIX')",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
