//! Fresh databases that take the place of others.
//!
//! A restore that makes or replaces a database fills a new one under a temporary name, which nobody but its
//! owner and superusers may enter, and renames it when everything in it is right. Until then the target is
//! untouched; the exchange itself is one transaction of two renames. `ALTER DATABASE ... RENAME` holds a
//! lock that keeps new sessions out while it waits up to five seconds for the others to go
//! (`RenameDatabase` and `CountOtherDBBackends`), and meanwhile another session of ours ends them: so no
//! client that reconnects quickly can win that race.

use std::fmt::Write as _;
use std::time::Duration;

use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_postgres::sql::{quote_identifier, quote_literal};
use serde_json::Value;

use super::super::manifest;
use super::error::RestoreError;

/// What temporary names begin with.
pub(crate) const PREFIX: &str = "pgmahout_restore_";

/// What the names of replaced databases begin with, from the exchange until they are dropped.
pub(crate) const REPLACED_PREFIX: &str = "pgmahout_old_";

/// How often the exchange of databases is tried against sessions that come back.
const TRIES: u32 = 5;

/// What makes a database what it is, apart from its contents.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Properties {
    /// `ENCODING ... LC_COLLATE ...`: what CREATE DATABASE wants.
    pub(crate) locale: String,
    owner: Option<String>,
    tablespace: Option<String>,
    /// Statements with `%` for the database's quoted name: rights, settings, limit, comment.
    after: Vec<String>,
    /// Whether everybody may connect.
    open: bool,
}

/// A connection for statements that cannot run in the target: to `postgres`, or `template1` where that is
/// the target or missing.
pub(crate) async fn administration(
    parameters: &ConnectionParameters,
    target: &str,
) -> Result<Connection, RestoreError> {
    let first = if target == "postgres" {
        "template1"
    } else {
        "postgres"
    };
    match Connection::open_secured(&parameters.with_database(first)).await {
        Ok(connection) => Ok(connection),
        Err(error) => match Connection::open_secured(&parameters.with_database("template1")).await {
            Ok(connection) => Ok(connection),
            Err(_) => Err(error.into()),
        },
    }
}

/// Whether a database exists.
pub(crate) async fn exists(administration: &Connection, name: &str) -> Result<bool, RestoreError> {
    oid(administration, name).await.map(|oid| oid.is_some())
}

/// Its identity.
pub(crate) async fn oid(administration: &Connection, name: &str) -> Result<Option<u32>, RestoreError> {
    let row = administration
        .query_opt(
            "SELECT oid FROM pg_catalog.pg_database WHERE datname = $1",
            &[&name],
        )
        .await
        .map_err(|error| RestoreError::sql("look for the database", error))?;
    Ok(row.map(|row| row.get(0)))
}

fn provider_clause(provider: &str, locale: Option<&str>, rules: Option<&str>) -> String {
    let mut text = String::new();
    match (provider, locale) {
        ("i" | "icu", Some(locale)) => {
            let _ = write!(text, " LOCALE_PROVIDER icu ICU_LOCALE {}", quote_literal(locale));
            if let Some(rules) = rules {
                let _ = write!(text, " ICU_RULES {}", quote_literal(rules));
            }
        }
        ("b" | "builtin", Some(locale)) => {
            let _ = write!(
                text,
                " LOCALE_PROVIDER builtin BUILTIN_LOCALE {}",
                quote_literal(locale)
            );
        }
        _ => text.push_str(" LOCALE_PROVIDER libc"),
    }
    text
}

impl Properties {
    /// Those of an existing database.
    pub(crate) async fn of(administration: &Connection, name: &str) -> Result<Self, RestoreError> {
        let sql = |error| RestoreError::sql("read the properties of the database", error);
        // As JSON, since the columns differ by version: daticulocale became datlocale in 17.
        let row = administration
            .query_one(
                "SELECT to_jsonb(d) - 'datacl', pg_catalog.pg_encoding_to_char(d.encoding), \
                        pg_catalog.pg_get_userbyid(d.datdba)::text, \
                        CASE WHEN d.dattablespace <> (SELECT o.dattablespace FROM pg_catalog.pg_database AS o \
                                                       WHERE o.datname = 'template0') THEN t.spcname::text END, d.datacl IS NULL, d.oid, \
                        pg_catalog.shobj_description(d.oid, 'pg_database') \
                 FROM pg_catalog.pg_database AS d \
                 JOIN pg_catalog.pg_tablespace AS t ON t.oid = d.dattablespace WHERE d.datname = $1",
                &[&name],
            )
            .await
            .map_err(sql)?;
        let facts: Value = row.get(0);
        let text = |key: &str| facts.get(key).and_then(Value::as_str);
        let mut locale = format!(
            "ENCODING {} LC_COLLATE {} LC_CTYPE {}",
            quote_literal(row.get(1)),
            quote_literal(text("datcollate").unwrap_or("C")),
            quote_literal(text("datctype").unwrap_or("C")),
        );
        let other = text("datlocale").or_else(|| text("daticulocale"));
        locale.push_str(&provider_clause(
            text("datlocprovider").unwrap_or("c"),
            other,
            text("daticurules"),
        ));
        let oid: u32 = row.get(5);
        let mut after = Vec::new();
        if let Some(limit) = facts
            .get("datconnlimit")
            .and_then(Value::as_i64)
            .filter(|limit| *limit >= 0)
        {
            after.push(format!("ALTER DATABASE % CONNECTION LIMIT {limit}"));
        }
        if let Some(comment) = row.get::<_, Option<String>>(6) {
            after.push(format!(
                "COMMENT ON DATABASE % IS {}",
                escape(&quote_literal(&comment))
            ));
        }
        after.extend(Self::rights(administration, oid).await?);
        after.extend(Self::settings(administration, oid).await?);
        Ok(Self {
            locale,
            owner: Some(row.get(2)),
            // Naming the one that it gets anyway needs a right on it that owners of databases lack.
            tablespace: row.get(3),
            open: row.get(4),
            after,
        })
    }

    async fn rights(administration: &Connection, oid: u32) -> Result<Vec<String>, RestoreError> {
        let rows = administration
            .query(
                "SELECT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(r.rolname) END, \
                        a.privilege_type, a.is_grantable \
                 FROM pg_catalog.pg_database AS d, pg_catalog.aclexplode(d.datacl) AS a \
                 LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = a.grantee \
                 WHERE d.oid = $1 AND (a.grantee = 0 OR r.oid IS NOT NULL)",
                &[&oid],
            )
            .await
            .map_err(|error| RestoreError::sql("read the rights on the database", error))?;
        Ok(rows
            .iter()
            .map(|row| {
                let (grantee, privilege, grantable): (String, String, bool) =
                    (row.get(0), row.get(1), row.get(2));
                let option = if grantable { " WITH GRANT OPTION" } else { "" };
                format!("GRANT {privilege} ON DATABASE % TO {}{option}", escape(&grantee))
            })
            .collect())
    }

    async fn settings(administration: &Connection, oid: u32) -> Result<Vec<String>, RestoreError> {
        // Lists of names are stored as they are written; everything else is one string
        // (makeAlterConfigCommand and variable_is_guc_list_quote in src/bin/pg_dump/dumputils.c).
        const LISTS: [&str; 6] = [
            "local_preload_libraries",
            "search_path",
            "session_preload_libraries",
            "shared_preload_libraries",
            "temp_tablespaces",
            "unix_socket_directories",
        ];
        let rows = administration
            .query(
                "SELECT r.rolname::text, s.setting FROM pg_catalog.pg_db_role_setting AS d \
                 CROSS JOIN LATERAL pg_catalog.unnest(d.setconfig) AS s (setting) \
                 LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = d.setrole WHERE d.setdatabase = $1",
                &[&oid],
            )
            .await
            .map_err(|error| RestoreError::sql("read the settings of the database", error))?;
        let mut statements = Vec::new();
        for row in rows {
            let (role, setting): (Option<String>, String) = (row.get(0), row.get(1));
            let Some((name, value)) = setting.split_once('=') else {
                continue;
            };
            let value = if LISTS.contains(&name) && !value.is_empty() {
                value.to_owned()
            } else {
                quote_literal(value)
            };
            let whom = match role {
                Some(role) => format!("ROLE {} IN DATABASE %", escape(&quote_identifier(&role))),
                None => "DATABASE %".to_owned(),
            };
            statements.push(format!(
                "ALTER {whom} SET {} TO {}",
                name.split('.')
                    .map(quote_identifier)
                    .collect::<Vec<_>>()
                    .join("."),
                escape(&value)
            ));
        }
        Ok(statements)
    }

    /// Those of a dumped database, as far as a manifest tells them.
    pub(crate) fn of_manifest(database: &manifest::Database) -> Self {
        let mut locale = format!("ENCODING {}", quote_literal(&database.encoding));
        if !database.collate.is_empty() && !database.ctype.is_empty() {
            let _ = write!(
                locale,
                " LC_COLLATE {} LC_CTYPE {}",
                quote_literal(&database.collate),
                quote_literal(&database.ctype)
            );
            locale.push_str(&provider_clause(
                &database.locale_provider,
                database.locale.as_deref(),
                None,
            ));
        }
        Self {
            locale,
            open: true,
            ..Self::default()
        }
    }

    /// The server's defaults, in this encoding if one is known.
    pub(crate) fn with_encoding(encoding: Option<&str>) -> Self {
        let locale = match encoding {
            Some(encoding) => format!("ENCODING {}", quote_literal(encoding)),
            None => String::new(),
        };
        Self {
            locale,
            open: true,
            ..Self::default()
        }
    }

    /// Encoding and locale of these, and nothing else.
    pub(crate) fn only_locale(self) -> Self {
        Self {
            locale: self.locale,
            open: true,
            ..Self::default()
        }
    }

    /// An encoding that goes with no locale but C.
    pub(crate) fn in_c(encoding: &str) -> Self {
        let locale = format!(
            "ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C' LOCALE_PROVIDER libc",
            quote_literal(encoding)
        );
        Self {
            locale,
            open: true,
            ..Self::default()
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('%', "%%")
}

fn fill(statement: &str, name: &str) -> String {
    let mut text = String::with_capacity(statement.len() + name.len());
    let mut characters = statement.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '%' if characters.peek() == Some(&'%') => {
                characters.next();
                text.push('%');
            }
            '%' => text.push_str(name),
            other => text.push(other),
        }
    }
    text
}

async fn execute(connection: &Connection, statement: &str, doing: &str) -> Result<(), RestoreError> {
    connection
        .batch_execute(statement)
        .await
        .map_err(|error| RestoreError::sql(doing, error))
}

/// A temporary name that is not taken.
pub(crate) fn temporary_name() -> Result<String, RestoreError> {
    Ok(format!("{PREFIX}{}", &super::psql::nonce()?[..12]))
}

/// A name that is not taken, for a database that is replaced.
pub(crate) fn replaced_name() -> Result<String, RestoreError> {
    Ok(format!("{REPLACED_PREFIX}{}", &super::psql::nonce()?[..12]))
}

/// Creates an empty database that only its owner and superusers may enter.
pub(crate) async fn create(
    administration: &Connection,
    name: &str,
    properties: &Properties,
    note: &str,
) -> Result<(), RestoreError> {
    let quoted = quote_identifier(name);
    let mut statement = format!(
        "CREATE DATABASE {quoted} TEMPLATE template0 {}",
        properties.locale
    );
    if let Some(owner) = &properties.owner {
        let _ = write!(statement, " OWNER {}", quote_identifier(owner));
    }
    if let Some(tablespace) = &properties.tablespace {
        let _ = write!(statement, " TABLESPACE {}", quote_identifier(tablespace));
    }
    execute(administration, &statement, "create a database for the restore").await?;
    let close = format!("REVOKE ALL ON DATABASE {quoted} FROM PUBLIC");
    execute(administration, &close, "close the new database to others").await?;
    let comment = format!("COMMENT ON DATABASE {quoted} IS {}", quote_literal(note));
    execute(administration, &comment, "describe the new database").await
}

/// Drops a database, ending its sessions. Nothing if there is none.
pub(crate) async fn drop_database(administration: &Connection, name: &str) -> Result<(), RestoreError> {
    let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote_identifier(name));
    execute(administration, &statement, &format!("drop database \"{name}\"")).await
}

/// Drops what was replaced. The new database is in place already.
pub(crate) async fn drop_replaced(administration: &Connection, old: &str) -> Result<(), RestoreError> {
    let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote_identifier(old));
    let doing = format!("drop the replaced database, now called \"{old}\" (the new one is in its place)");
    execute(administration, &statement, &doing).await
}

/// Gives the new database its properties and its name; what had that name before gets the name `old` and is
/// dropped. Returns how long no client could use the target.
pub(crate) async fn publish(
    parameters: &ConnectionParameters,
    temporary: &str,
    target: &str,
    old: &str,
    properties: &Properties,
) -> Result<Duration, RestoreError> {
    let administration = administration(parameters, target).await?;
    let quoted = quote_identifier(temporary);
    execute(
        &administration,
        &format!("COMMENT ON DATABASE {quoted} IS NULL"),
        "describe the new database",
    )
    .await?;
    for statement in &properties.after {
        execute(
            &administration,
            &fill(statement, &quoted),
            "give the new database its rights and settings",
        )
        .await?;
    }
    if properties.open {
        let statement = format!("GRANT CONNECT, TEMPORARY ON DATABASE {quoted} TO PUBLIC");
        execute(&administration, &statement, "open the new database").await?;
    }
    let replaces = exists(&administration, target).await?;
    let mut statements = String::from("BEGIN;");
    if replaces {
        let _ = write!(
            statements,
            " ALTER DATABASE {} RENAME TO {};",
            quote_identifier(target),
            quote_identifier(old)
        );
    }
    let _ = write!(
        statements,
        " ALTER DATABASE {quoted} RENAME TO {}; COMMIT",
        quote_identifier(target)
    );
    let helper = self::administration(parameters, target).await?;
    let mut began = std::time::Instant::now();
    for attempt in 1.. {
        if attempt == 1 {
            began = std::time::Instant::now();
        }
        let rename = administration.batch_execute(&statements);
        tokio::pin!(rename);
        let outcome = loop {
            tokio::select! {
                outcome = &mut rename => break outcome,
                () = tokio::time::sleep(Duration::from_millis(50)) => end_sessions(&helper, &[target, temporary]).await?,
            }
        };
        match outcome {
            Ok(()) => break,
            Err(error) if attempt < TRIES && error.code().is_some_and(|code| code.code() == "55006") => {
                execute(&administration, "ROLLBACK", "give up the exchange of databases").await?;
            }
            Err(error) => {
                let _ = administration.batch_execute("ROLLBACK").await;
                return Err(RestoreError::sql(
                    format!("give the new database the name \"{target}\""),
                    error,
                ));
            }
        }
    }
    let time = began.elapsed();
    if replaces {
        drop_replaced(&administration, old).await?;
    }
    Ok(time)
}

/// Ends all sessions on these databases but ours.
async fn end_sessions(connection: &Connection, databases: &[&str]) -> Result<(), RestoreError> {
    connection
        .execute(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
              WHERE datname = ANY ($1) AND pid <> pg_catalog.pg_backend_pid()",
            &[&databases],
        )
        .await
        .map(drop)
        .map_err(|error| RestoreError::sql("end the sessions on the target", error))
}

/// Databases that interrupted restores have left behind.
pub(crate) async fn leftovers(administration: &Connection) -> Result<Vec<String>, RestoreError> {
    unused(administration, PREFIX).await
}

/// Databases that were replaced and not dropped.
pub(crate) async fn replaced(administration: &Connection) -> Result<Vec<String>, RestoreError> {
    unused(administration, REPLACED_PREFIX).await
}

async fn unused(administration: &Connection, prefix: &str) -> Result<Vec<String>, RestoreError> {
    let pattern = format!("^{prefix}[0-9a-f]{{12}}$");
    let rows = administration
        .query(
            "SELECT d.datname::text FROM pg_catalog.pg_database AS d WHERE d.datname ~ $1 AND NOT EXISTS \
             (SELECT FROM pg_catalog.pg_stat_activity AS a WHERE a.datid = d.oid)",
            &[&pattern],
        )
        .await
        .map_err(|error| RestoreError::sql("look for leftovers of other restores", error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_signs_in_comments_do_not_become_names() {
        let statement = format!("COMMENT ON DATABASE % IS {}", escape("'100% %%'"));
        assert_eq!(
            fill(&statement, "\"a\""),
            "COMMENT ON DATABASE \"a\" IS '100% %%'"
        );
    }
}
