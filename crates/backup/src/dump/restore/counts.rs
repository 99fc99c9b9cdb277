//! Row counts: expected from the manifest or the dump, found in the target.

use std::collections::{BTreeMap, BTreeSet};

use pgmahout_postgres::connection::Connection;
use pgmahout_types::version::ServerVersion;

use super::super::manifest::{DumpManifest, Precision};
use super::super::scan::{ScanReport, Section, Selection, TableName};
use super::error::RestoreError;

/// One table, before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountRow {
    /// The table.
    pub table: TableName,
    /// The rows that should be there.
    pub expected: u64,
    /// The rows that are there; `None`: no such table.
    pub found: Option<u64>,
}

impl CountRow {
    /// Whether they are the same.
    pub fn matches(&self) -> bool {
        self.found == Some(self.expected)
    }
}

/// What must be in the target after the restore: the rows of the dump, for every selected table, and those
/// that were there before.
pub(crate) fn expected(section: &Section, selection: &Selection) -> BTreeMap<TableName, u64> {
    section
        .tables
        .iter()
        .filter(|(table, _)| selection.takes_rows_of(table) && is_readable(table))
        .map(|(table, rows)| (table.clone(), *rows))
        .collect()
}

/// How many tables are restored uncounted, since their names cannot be read.
pub(crate) fn unread(section: &Section) -> usize {
    section.tables.keys().filter(|table| !is_readable(table)).count()
}

/// Names in an encoding that we do not read cannot be asked for; such a table is restored uncounted.
fn is_readable(table: &TableName) -> bool {
    let unreadable = char::REPLACEMENT_CHARACTER;
    !table.schema.contains(unreadable) && !table.name.contains(unreadable)
}

/// Where the manifest and the dump itself contradict each other, a sentence each.
pub(crate) fn contradictions(manifest: &DumpManifest, report: &ScanReport, section: &Section) -> Vec<String> {
    if !manifest.options.contents.has_rows() || report.sections.len() > 1 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut listed = BTreeSet::new();
    for table in &manifest.tables {
        let name = TableName::new(&table.schema, &table.name);
        listed.insert(name.clone());
        let (Some(rows), Precision::Exact) = (table.rows, table.precision) else {
            continue;
        };
        let is_plain = name.name.is_ascii() && name.schema.is_ascii();
        if !is_plain && !super::super::scan::names::is_readable(section.encoding.as_deref()) {
            continue;
        }
        // A dump of INSERT statements says nothing of empty tables.
        match section.tables.get(&name) {
            Some(in_dump) if *in_dump == rows => {}
            None if rows == 0 => {}
            Some(in_dump) => found.push(format!(
                "{name} has {in_dump} rows in the dump and {rows} in its manifest"
            )),
            None => found.push(format!(
                "{name} has {rows} rows in the manifest and is not in the dump"
            )),
        }
    }
    if !manifest.tables.is_empty() {
        let more = section
            .tables
            .iter()
            .filter(|(table, rows)| **rows > 0 && !listed.contains(table) && is_readable(table));
        found.extend(more.map(|(table, _)| format!("{table} is in the dump and not in its manifest")));
    }
    found
}

/// The statement that tells which of these tables are there, as numbered rows of relkind. Partitioned
/// tables are counted with their partitions, all others by themselves, as COPY does it. A `!` follows where
/// row-level security is forced on us as the owner: such a table can only be counted between [`unforce`] and
/// a rollback.
pub(crate) fn kinds_query(tables: &[TableName]) -> String {
    use super::super::scan::names::quote_text;
    let values: Vec<String> = tables
        .iter()
        .enumerate()
        .map(|(index, table)| {
            format!(
                "({index},{},{})",
                quote_text(&table.schema),
                quote_text(&table.name)
            )
        })
        .collect();
    format!(
        "SELECT v.n, c.relkind::text || CASE WHEN c.relforcerowsecurity \
                AND pg_catalog.row_security_active(c.oid) \
                AND pg_catalog.pg_has_role(c.relowner, 'USAGE') THEN '!' ELSE '' END \
         FROM (VALUES {}) AS v (n, s, t) \
         JOIN pg_catalog.pg_namespace AS n ON n.nspname = v.s \
         JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = v.t",
        values.join(",")
    )
}

/// The statement after which an owner sees all rows of a table with FORCE ROW LEVEL SECURITY. For a
/// (sub)transaction that is rolled back.
pub(crate) fn unforce(table: &TableName) -> String {
    format!("ALTER TABLE ONLY {} NO FORCE ROW LEVEL SECURITY", table.to_sql())
}

/// The expression that counts a table.
pub(crate) fn count_from(table: &TableName, kind: char) -> String {
    let only = if matches!(kind, 'p' | 'v' | 'm' | 'f') {
        ""
    } else {
        "ONLY "
    };
    format!("pg_catalog.count(*) FROM {only}{}", table.to_sql())
}

/// Counts tables over a connection of ours.
pub(crate) async fn count(
    connection: &Connection,
    expected: &BTreeMap<TableName, u64>,
) -> Result<Vec<CountRow>, RestoreError> {
    let mut rows = Vec::with_capacity(expected.len());
    let tables: Vec<TableName> = expected.keys().cloned().collect();
    // Policies must not hide rows: an error is better than a wrong number.
    connection
        .batch_execute("SET row_security = off")
        .await
        .map_err(|error| RestoreError::sql("turn off row-level security", error))?;
    for chunk in tables.chunks(500) {
        let kinds = connection
            .query(kinds_query(chunk).as_str(), &[])
            .await
            .map_err(|error| RestoreError::sql("look up the restored tables", error))?;
        let kinds: BTreeMap<usize, (char, bool)> = kinds
            .iter()
            .filter_map(|row| {
                let kind: &str = row.get(1);
                let index = usize::try_from(row.get::<_, i32>(0)).ok()?;
                Some((index, (kind.chars().next()?, kind.ends_with('!'))))
            })
            .collect();
        for (index, table) in chunk.iter().enumerate() {
            let found = match kinds.get(&index) {
                None => None,
                Some((kind, is_forced)) => {
                    let failed = |error| RestoreError::sql(format!("count the rows of {table}"), error);
                    if *is_forced {
                        let begin = format!("BEGIN; {}", unforce(table));
                        connection.batch_execute(&begin).await.map_err(failed)?;
                    }
                    let statement = format!("SELECT {}", count_from(table, *kind));
                    let row = connection
                        .query_one(statement.as_str(), &[])
                        .await
                        .map_err(failed)?;
                    if *is_forced {
                        connection.batch_execute("ROLLBACK").await.map_err(failed)?;
                    }
                    Some(row.get::<_, i64>(0).unsigned_abs())
                }
            };
            rows.push(CountRow {
                table: table.clone(),
                expected: expected[table],
                found,
            });
        }
    }
    Ok(rows)
}

/// What a database holds, roughly: for plans.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TargetFacts {
    /// Tables outside the system's schemas.
    pub tables: u64,
    /// Their rows, by the planner's figures and the statistics collector's.
    pub rows: u64,
    /// The size of the database in bytes.
    pub bytes: u64,
    /// Its encoding.
    pub encoding: String,
    /// Other sessions on it.
    pub sessions: u64,
    /// Its extensions.
    pub extensions: Vec<String>,
    /// The server.
    pub version: Option<ServerVersion>,
    /// The running server: its start and its port, which no copy of it shares.
    pub instance: String,
    /// Logical replication slots and subscriptions that are bound to it.
    pub bound: Vec<String>,
    /// Prepared transactions in it.
    pub prepared_transactions: u64,
}

/// Looks at the database that we are connected to.
pub(crate) async fn look(connection: &Connection) -> Result<TargetFacts, RestoreError> {
    let sql = |error| RestoreError::sql("look at the target", error);
    // The greater of the two figures: a table that was never analyzed has reltuples -1, and the cumulative
    // statistics start at zero after a crash.
    let row = connection
        .query_one(
            "SELECT pg_catalog.count(*), \
                    coalesce(sum(greatest(c.reltuples::bigint, coalesce(s.n_live_tup, 0), 0)), 0)::bigint, \
                    pg_catalog.pg_database_size(pg_catalog.current_database()), \
                    pg_catalog.current_setting('server_encoding'), \
                    (SELECT count(*) FROM pg_catalog.pg_stat_activity AS a \
                      WHERE a.datname = pg_catalog.current_database() AND a.pid <> pg_catalog.pg_backend_pid() \
                        AND a.backend_type = 'client backend'), \
                    (SELECT count(*) FROM pg_catalog.pg_prepared_xacts AS p \
                      WHERE p.database = pg_catalog.current_database()) \
             FROM pg_catalog.pg_class AS c \
             JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
             LEFT JOIN pg_catalog.pg_stat_all_tables AS s ON s.relid = c.oid \
             WHERE c.relkind = 'r' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'",
            &[],
        )
        .await
        .map_err(sql)?;
    let number = |index: usize| row.get::<_, i64>(index).unsigned_abs();
    let mut facts = TargetFacts {
        tables: number(0),
        rows: number(1),
        bytes: number(2),
        encoding: row.get(3),
        sessions: number(4),
        prepared_transactions: number(5),
        version: Some(connection.server_version()),
        ..TargetFacts::default()
    };
    let rows = connection
        .query("SELECT extname::text FROM pg_catalog.pg_extension", &[])
        .await
        .map_err(sql)?;
    facts.extensions = rows.iter().map(|row| row.get(0)).collect();
    let rows = connection
        .query(
            "SELECT 'replication slot ' || slot_name FROM pg_catalog.pg_replication_slots \
              WHERE database = pg_catalog.current_database()",
            &[],
        )
        .await
        .map_err(sql)?;
    facts.bound = rows.iter().map(|row| row.get(0)).collect();
    let rows = connection
        .query(
            "SELECT 'subscription ' || s.subname FROM pg_catalog.pg_subscription AS s \
             JOIN pg_catalog.pg_database AS d ON d.oid = s.subdbid \
             WHERE d.datname = pg_catalog.current_database()",
            &[],
        )
        .await
        .map_err(sql)?;
    facts.bound.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    facts.instance = connection
        .query_one(
            "SELECT concat(pg_catalog.pg_postmaster_start_time(), ' ', pg_catalog.current_setting('port'))",
            &[],
        )
        .await
        .map_err(sql)?
        .get(0);
    Ok(facts)
}
