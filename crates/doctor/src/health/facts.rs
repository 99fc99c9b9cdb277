//! What every check needs to know of the server, asked once: its version, role, settings and databases,
//! and what the connected role may see.

use std::collections::HashMap;

use pgmahout_types::version::ServerVersion;
use serde::Deserialize;

use super::failure::Failure;
use super::sessions::Lease;

/// Who is asking whom.
#[derive(Debug, Clone, Deserialize)]
struct Identity {
    version: u32,
    in_recovery: bool,
    system_identifier: String,
    timeline: i64,
    started: f64,
    now: f64,
    role: String,
    database: String,
    superuser: bool,
    sees_statistics: bool,
    sees_settings: bool,
    address: Option<String>,
    port: Option<i32>,
    lsn: Option<i64>,
    block_size: i64,
    segment_size: i64,
}

/// The control-file functions are open to everybody (system_functions.sql revokes others, not these).
/// A standby has no current WAL position of its own making.
const IDENTITY: &str = "
SELECT current_setting('server_version_num')::int AS version,
       pg_is_in_recovery() AS in_recovery,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline,
       extract(epoch FROM pg_postmaster_start_time())::float8 AS started,
       extract(epoch FROM clock_timestamp())::float8 AS now,
       current_user::text AS role,
       current_database()::text AS database,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
       pg_has_role('pg_read_all_stats', 'USAGE') AS sees_statistics,
       pg_has_role('pg_read_all_settings', 'USAGE') AS sees_settings,
       host(inet_server_addr()) AS address,
       inet_server_port() AS port,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::int8 END AS lsn,
       current_setting('block_size')::int8 AS block_size,
       (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_segment_size') AS segment_size";

/// A setting as `pg_settings` shows it.
#[derive(Debug, Clone, Deserialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value, in the unit.
    pub setting: Option<String>,
    /// `kB`, `8kB`, `MB`, `s`, `ms`, `min`, or none.
    pub unit: Option<String>,
    /// Changed in the files, and only a restart puts it in force.
    pub pending_restart: bool,
    /// Where the value comes from.
    pub source: String,
    /// `file:line` where that is a file that the role may know of.
    pub place: Option<String>,
}

const SETTINGS: &str = "
SELECT name, setting, unit, pending_restart, source,
       CASE WHEN sourcefile IS NOT NULL THEN sourcefile || ':' || sourceline END AS place
  FROM pg_settings";

/// A database of the server.
#[derive(Debug, Clone, Deserialize)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Whether new databases are copied from it.
    pub template: bool,
    /// Whether anybody may connect to it.
    pub allows_connections: bool,
    /// Whether this role may.
    pub may_connect: bool,
    /// `age(datfrozenxid)`.
    pub xid_age: i64,
    /// `mxid_age(datminmxid)`.
    pub multixid_age: i64,
}

impl Database {
    /// Whether its tables are looked at, where the role may connect.
    pub fn is_looked_into(&self) -> bool {
        self.allows_connections && !self.template
    }
}

const DATABASES: &str = "
SELECT d.datname::text AS name, d.datistemplate AS template, d.datallowconn AS allows_connections,
       has_database_privilege(d.oid, 'CONNECT') AS may_connect,
       age(d.datfrozenxid) AS xid_age, mxid_age(d.datminmxid) AS multixid_age
  FROM pg_database d
 ORDER BY d.datname";

/// What is known of the server for the length of a run.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Its version.
    pub version: ServerVersion,
    /// Whether it replays WAL.
    pub in_recovery: bool,
    /// The cluster's identity, which a primary and its standbys share.
    pub system_identifier: String,
    /// The timeline of its last checkpoint.
    pub timeline: i64,
    /// When it started, in seconds since the epoch by its own clock.
    pub started: f64,
    /// Its clock, in seconds since the epoch.
    pub now: f64,
    /// The role that asks.
    pub role: String,
    /// The database that the connection parameters name.
    pub database: String,
    /// Whether the role sees other sessions: a superuser or a member of `pg_read_all_stats`.
    pub sees_statistics: bool,
    /// Whether the role sees every setting.
    pub sees_settings: bool,
    /// The address and port that the server sees itself connected on; none over a socket.
    pub address: Option<(String, i32)>,
    /// The primary's WAL position when asked, in bytes since 0/0; none on a standby.
    pub lsn: Option<i64>,
    /// Bytes of a page.
    pub block_size: i64,
    /// Bytes of a WAL segment.
    pub segment_size: i64,
    /// All settings that the role may see.
    pub settings: HashMap<String, Setting>,
    /// All databases.
    pub databases: Vec<Database>,
}

impl Facts {
    /// Asks the server.
    ///
    /// # Errors
    ///
    /// [`Failure`] of the first question that was not answered.
    pub async fn ask(lease: &mut Lease<'_>) -> Result<Self, Failure> {
        let identity: Identity = lease.rows(IDENTITY).await?.pop().ok_or_else(|| Failure::Answer {
            message: "no row about the server itself".to_owned(),
        })?;
        let settings: Vec<Setting> = lease.rows(SETTINGS).await?;
        let databases: Vec<Database> = lease.rows(DATABASES).await?;
        Ok(Self {
            version: ServerVersion::from_number(identity.version),
            in_recovery: identity.in_recovery,
            system_identifier: identity.system_identifier,
            timeline: identity.timeline,
            started: identity.started,
            now: identity.now,
            role: identity.role,
            database: identity.database,
            sees_statistics: identity.superuser || identity.sees_statistics,
            sees_settings: identity.superuser || identity.sees_settings,
            address: identity.address.zip(identity.port),
            lsn: identity.lsn,
            block_size: identity.block_size,
            segment_size: identity.segment_size,
            settings: settings
                .into_iter()
                .map(|setting| (setting.name.clone(), setting))
                .collect(),
            databases,
        })
    }

    /// Whether there are databases to look into beside the one of the connection. Templates are none: a
    /// session in template1 keeps others from creating databases.
    pub fn looks_into_several_databases(&self) -> bool {
        self.databases
            .iter()
            .any(|database| database.is_looked_into() && database.name != self.database)
    }

    /// A setting's text.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name)?.setting.as_deref()
    }

    /// A setting that is a whole number, in its own unit.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.setting(name)?.parse().ok()
    }

    /// A setting that is an amount of memory, in bytes; none where it is not, or is negative (off).
    pub fn bytes(&self, name: &str) -> Option<i64> {
        let setting = self.settings.get(name)?;
        let factor = match setting.unit.as_deref()? {
            "B" => 1,
            "kB" => 1024,
            "8kB" => 8 * 1024,
            "16MB" => 16 * 1024 * 1024,
            "MB" => 1024 * 1024,
            "GB" => 1024 * 1024 * 1024,
            _ => return None,
        };
        let number: i64 = setting.setting.as_deref()?.parse().ok()?;
        (number >= 0).then_some(number * factor)
    }

    /// Whether a setting is on; none where it cannot be seen.
    pub fn is_on(&self, name: &str) -> Option<bool> {
        self.setting(name).map(|value| value == "on")
    }

    /// Replaces `{role}` in a GRANT by the role that asks, quoted where it must be.
    pub fn grant(&self, template: &str) -> String {
        template.replace("{role}", &quote_identifier(&self.role))
    }
}

/// An identifier as SQL needs it: bare where that is unambiguous, quoted otherwise.
pub fn quote_identifier(name: &str) -> String {
    let bare = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name
            .chars()
            .all(|other| other.is_ascii_lowercase() || other.is_ascii_digit() || other == '_')
        && !RESERVED.contains(&name);
    if bare {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// Words that cannot be names without quotes and that people do use as names (PostgreSQL documentation,
/// appendix "SQL Key Words").
const RESERVED: &[&str] = &[
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "case",
    "check",
    "column",
    "constraint",
    "create",
    "default",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "from",
    "grant",
    "group",
    "having",
    "in",
    "into",
    "limit",
    "not",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "primary",
    "references",
    "select",
    "some",
    "table",
    "then",
    "to",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "when",
    "where",
    "window",
    "with",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_where_sql_needs_it() {
        for (name, quoted) in [
            ("monitor", "monitor"),
            ("Monitor", "\"Monitor\""),
            ("user", "\"user\""),
            ("a-b", "\"a-b\""),
            ("a\"b", "\"a\"\"b\""),
            ("1st", "\"1st\""),
        ] {
            assert_eq!(quote_identifier(name), quoted);
        }
    }
}
