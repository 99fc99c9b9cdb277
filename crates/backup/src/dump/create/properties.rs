//! What a server keeps about a database outside of it: owner, rights, comment, connection limit, settings.
//!
//! None of it is in a dump of pg_dump without `--create`, nor in `pg_dumpall --globals-only`. The statements
//! are those of `dumpDatabase` and `dumpDatabaseConfig` in src/bin/pg_dump/pg_dump.c, for a database that
//! exists already.

use std::fmt::Write as _;

use pgmahout_postgres::sql::{quote_identifier, quote_literal};
use tokio_postgres::types::Oid;
use tokio_postgres::{Client, Error};

use super::super::manifest::Options;

/// Settings whose value is a list of names, each quoted for itself (`variable_is_guc_list_quote` in
/// src/bin/pg_dump/dumputils.c).
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// The comment of the database `postgres` on every new server.
const DEFAULT_COMMENT: &str = "default administrative connection database";

/// The statements that give the current database its properties; `None` when it has none but the defaults.
/// Owner and rights are among them as far as the options ask for them.
pub(super) async fn statements(client: &Client, options: &Options) -> Result<Option<String>, Error> {
    let row = client
        .query_one(
            "SELECT d.oid, d.datname::text, pg_catalog.pg_get_userbyid(d.datdba)::text, d.datconnlimit, \
                    pg_catalog.shobj_description(d.oid, 'pg_database'), d.datacl IS NOT NULL \
             FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()",
            &[],
        )
        .await?;
    let oid: Oid = row.get(0);
    let name: String = row.get(1);
    let database = quote_identifier(&name);
    let owner: String = row.get(2);
    let mut sql = String::new();
    if options.owner {
        let _ = writeln!(
            sql,
            "ALTER DATABASE {database} OWNER TO {};",
            quote_identifier(&owner)
        );
    }
    let limit: i32 = row.get(3);
    if limit >= 0 {
        let _ = writeln!(sql, "ALTER DATABASE {database} CONNECTION LIMIT {limit};");
    }
    // What initdb says of the database `postgres` is the same everywhere (src/bin/initdb/initdb.c).
    let comment = row
        .get::<_, Option<String>>(4)
        .filter(|comment| comment != DEFAULT_COMMENT);
    if let Some(comment) = comment {
        let _ = writeln!(
            sql,
            "COMMENT ON DATABASE {database} IS {};",
            quote_literal(&comment)
        );
    }
    let labels = client
        .query(
            "SELECT provider, label FROM pg_catalog.pg_shseclabel \
             WHERE classoid = 'pg_catalog.pg_database'::regclass AND objoid = $1 ORDER BY provider",
            &[&oid],
        )
        .await?;
    for row in labels {
        let (provider, label): (String, String) = (row.get(0), row.get(1));
        let _ = writeln!(
            sql,
            "SECURITY LABEL FOR {} ON DATABASE {database} IS {};",
            quote_identifier(&provider),
            quote_literal(&label)
        );
    }
    settings(client, oid, &database, &mut sql).await?;
    if options.acl && row.get(5) {
        rights(client, oid, &database, &owner, &mut sql).await?;
    }
    if sql.is_empty() {
        return Ok(None);
    }
    Ok(Some(format!(
        "--\n-- Properties of database {}: run this once the roles and the database are there\n--\n\n\
         SET client_encoding = 'UTF8';\nSET standard_conforming_strings = on;\n\n{sql}",
        name.replace(['\n', '\r'], " ")
    )))
}

async fn settings(client: &Client, oid: Oid, database: &str, sql: &mut String) -> Result<(), Error> {
    let rows = client
        .query(
            "SELECT r.rolname::text, s.setconfig \
             FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole \
             WHERE s.setdatabase = $1 AND (s.setrole = 0 OR r.oid IS NOT NULL) \
             ORDER BY r.rolname NULLS FIRST",
            &[&oid],
        )
        .await?;
    for row in rows {
        let whose = match row.get::<_, Option<String>>(0) {
            None => format!("DATABASE {database}"),
            Some(role) => format!("ROLE {} IN DATABASE {database}", quote_identifier(&role)),
        };
        for setting in row.get::<_, Vec<String>>(1) {
            if let Some((name, value)) = setting.split_once('=') {
                let _ = writeln!(
                    sql,
                    "ALTER {whose} SET {} TO {};",
                    setting_name(name),
                    setting_value(name, value)
                );
            }
        }
    }
    Ok(())
}

/// The name of a setting: that of an extension has a dot between two identifiers.
fn setting_name(name: &str) -> String {
    name.split('.')
        .map(quote_identifier)
        .collect::<Vec<_>>()
        .join(".")
}

fn setting_value(name: &str, value: &str) -> String {
    if !LISTS.contains(&name.to_ascii_lowercase().as_str()) {
        return quote_literal(value);
    }
    let elements: Vec<String> = list(value).iter().map(|element| quote_literal(element)).collect();
    if elements.is_empty() {
        "''".to_owned()
    } else {
        elements.join(", ")
    }
}

/// The elements of a list of names, without their quotes (`SplitGUCList` in src/bin/pg_dump/dumputils.c).
fn list(value: &str) -> Vec<String> {
    let mut elements = Vec::new();
    let mut element = String::new();
    let (mut quoted, mut was_quoted) = (false, false);
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                element.push('"');
                characters.next();
            }
            '"' => {
                quoted = !quoted;
                was_quoted = true;
            }
            ',' if !quoted => {
                elements.push(std::mem::take(&mut element));
                was_quoted = false;
            }
            _ if !quoted && character.is_whitespace() => {}
            _ => element.push(character),
        }
    }
    if !element.is_empty() || was_quoted || !elements.is_empty() {
        elements.push(element);
    }
    elements
}

async fn rights(
    client: &Client,
    oid: Oid,
    database: &str,
    owner: &str,
    sql: &mut String,
) -> Result<(), Error> {
    let rows = client
        .query(
            "SELECT CASE WHEN a.grantee <> 0 THEN pg_catalog.pg_get_userbyid(a.grantee)::text END, \
                    a.privilege_type::text, a.is_grantable \
             FROM pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a \
             WHERE d.oid = $1 ORDER BY 1 NULLS FIRST, 2, 3",
            &[&oid],
        )
        .await?;
    let _ = writeln!(
        sql,
        "REVOKE ALL ON DATABASE {database} FROM PUBLIC, {};",
        quote_identifier(owner)
    );
    for row in rows {
        let grantee = row
            .get::<_, Option<String>>(0)
            .map_or_else(|| "PUBLIC".to_owned(), |role| quote_identifier(&role));
        let option = if row.get(2) { " WITH GRANT OPTION" } else { "" };
        let _ = writeln!(
            sql,
            "GRANT {} ON DATABASE {database} TO {grantee}{option};",
            row.get::<_, String>(1)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_names_are_quoted_element_by_element() {
        assert_eq!(
            setting_value("search_path", "\"$user\", \"Odd, \"\"One\", public"),
            "'$user', 'Odd, \"One', 'public'"
        );
        assert_eq!(setting_value("search_path", ""), "''");
        assert_eq!(setting_value("search_path", "\"\""), "''");
        assert_eq!(setting_value("work_mem", "64MB"), "'64MB'");
        assert_eq!(setting_value("datestyle", "ISO, DMY"), "'ISO, DMY'");
        assert_eq!(setting_value("app.motto", "it's"), "'it''s'");
    }

    #[test]
    fn the_name_of_a_setting_cannot_leave_its_place() {
        assert_eq!(setting_name("app.motto"), "\"app\".\"motto\"");
    }
}
