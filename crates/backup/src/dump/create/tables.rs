//! Which tables' rows are in a dump, and how many rows they have.
//!
//! A plain dump is counted while it passes ([`super::super::scan`]); custom and directory archives are
//! counted in SQL by a second session that sees the dump's snapshot, smallest tables first, until the time
//! budget is used up; what is left keeps the planner's estimate and is marked so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Oid;
use tokio_postgres::{Client, Error};
use tokio_util::sync::CancellationToken;

use super::super::manifest::{CountMode, Options, Precision, TableRows};
use super::pattern::Pattern;

/// A table that can have rows of its own in a dump.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Table {
    /// Its `pg_class` oid, which archives of pg_dump record.
    pub(super) oid: Oid,
    /// Its schema.
    pub(super) schema: String,
    /// Its name.
    pub(super) name: String,
    /// `relpages`, to count small ones first.
    pub(super) pages: i32,
    /// `reltuples`, where the table was ever analysed.
    pub(super) estimate: Option<u64>,
    /// Whether an extension made it: its rows are configuration, restored in part by `CREATE EXTENSION`,
    /// and not to be compared.
    pub(super) of_extension: bool,
    /// Whether it is unlogged: a standby has no rows of it.
    pub(super) unlogged: bool,
}

/// Patterns as arrays for [`matches`]: schemas and names.
fn taken_apart(patterns: &[String]) -> (Vec<Option<String>>, Vec<String>) {
    patterns
        .iter()
        .map(|text| Pattern::parse(text))
        .map(|pattern| (pattern.schema, pattern.name))
        .unzip()
}

/// The condition that a table `c` in a namespace `n` matches one of the patterns in two parameters. A name
/// without a schema means what it means on the path in a third one: `pg_table_is_visible` for a search path
/// that is not in force.
fn matches(schemas: u8, names: u8, path: u8) -> String {
    format!(
        "EXISTS (SELECT FROM ROWS FROM (pg_catalog.unnest(${schemas}::text[]), pg_catalog.unnest(${names}::text[])) \
         AS p(schema, name) \
         WHERE c.relname OPERATOR(pg_catalog.~) p.name COLLATE pg_catalog.default \
           AND CASE WHEN p.schema IS NULL THEN n.nspname OPERATOR(pg_catalog.=) ANY (${path}::name[]) AND NOT EXISTS ( \
                        SELECT FROM pg_catalog.pg_class o \
                        JOIN pg_catalog.pg_namespace m ON m.oid OPERATOR(pg_catalog.=) o.relnamespace \
                        WHERE o.relname OPERATOR(pg_catalog.=) c.relname \
                          AND pg_catalog.array_position(${path}::name[], m.nspname) \
                              OPERATOR(pg_catalog.<) pg_catalog.array_position(${path}::name[], n.nspname)) \
                    ELSE n.nspname OPERATOR(pg_catalog.~) p.schema COLLATE pg_catalog.default END)"
    )
}

/// How many names go into one pattern.
const NAMES_IN_A_PATTERN: usize = 200;

/// The options with the partitions of the tables that are named. pg_dump takes a pattern for the partitioned
/// table alone, which has no rows itself (`--table-and-children` is of PostgreSQL 16, and only of its own
/// programs).
///
/// Included are all tables that inherit from one that is named, since a query of it shows their rows; rows are
/// left out of partitions only.
pub(super) async fn with_partitions(client: &Client, options: &Options) -> Result<Options, Error> {
    let mut expanded = options.clone();
    expanded
        .tables
        .extend(below(client, &options.tables, false).await?);
    expanded
        .exclude_table_data
        .extend(below(client, &options.exclude_table_data, true).await?);
    Ok(expanded)
}

/// Patterns of exactly the tables that inherit, directly or not, from those that the patterns match.
async fn below(client: &Client, patterns: &[String], only_partitions: bool) -> Result<Vec<String>, Error> {
    if patterns.is_empty() {
        return Ok(Vec::new());
    }
    let path = usual_path(client).await?;
    let (schemas, names) = taken_apart(patterns);
    let rows = client
        .query(
            &format!(
                "WITH RECURSIVE named AS ( \
                     SELECT c.oid FROM pg_catalog.pg_class c \
                     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                     WHERE c.relkind IN ('r', 'p') AND {named}), \
                 below(oid) AS ( \
                     SELECT oid FROM named \
                     UNION \
                     SELECT i.inhrelid FROM pg_catalog.pg_inherits i \
                     JOIN below b ON b.oid = i.inhparent \
                     JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid \
                     WHERE c.relispartition OR NOT $4) \
                 SELECT n.nspname::text, c.relname::text FROM below b \
                 JOIN pg_catalog.pg_class c ON c.oid = b.oid \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE b.oid NOT IN (SELECT oid FROM named) ORDER BY 1, 2",
                named = matches(1, 2, 3),
            ),
            &[&schemas, &names, &path, &only_partitions],
        )
        .await?;
    let mut by_schema: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in rows {
        by_schema
            .entry(row.get(0))
            .or_default()
            .push(quoted(&row.get::<_, String>(1)));
    }
    Ok(by_schema
        .iter()
        .flat_map(|(schema, names)| {
            names
                .chunks(NAMES_IN_A_PATTERN)
                .map(|names| format!("{}.({})", quoted(schema), names.join("|")))
        })
        .collect())
}

/// The patterns of what is left out that match nothing, each with its option. pg_dump's `--strict-names` is
/// only for what is included.
pub(super) async fn without_a_match(
    client: &Client,
    options: &Options,
) -> Result<Vec<(&'static str, String)>, Error> {
    let path = usual_path(client).await?;
    let mut unmatched = Vec::new();
    for (option, patterns) in [
        ("--exclude-table", &options.exclude_tables),
        ("--exclude-table-data", &options.exclude_table_data),
    ] {
        for pattern in patterns {
            let (schemas, names) = taken_apart(std::slice::from_ref(pattern));
            let question = format!(
                "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND {})",
                matches(1, 2, 3)
            );
            if !client
                .query_one(&question, &[&schemas, &names, &path])
                .await?
                .get::<_, bool>(0)
            {
                unmatched.push((option, pattern.clone()));
            }
        }
    }
    for pattern in &options.exclude_schemas {
        let question = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace n \
                        WHERE n.nspname OPERATOR(pg_catalog.~) $1 COLLATE pg_catalog.default)";
        let row = client
            .query_one(question, &[&Pattern::parse(pattern).name])
            .await?;
        if !row.get::<_, bool>(0) {
            unmatched.push(("--exclude-schema", pattern.clone()));
        }
    }
    Ok(unmatched)
}

/// The schemas on the role's usual search path in this database, which our sessions do not use.
async fn usual_path(client: &Client) -> Result<Vec<String>, Error> {
    let messages = client
        .simple_query(
            "SET LOCAL search_path TO DEFAULT; \
             SELECT pg_catalog.unnest(pg_catalog.current_schemas(false))::pg_catalog.text AS schema; \
             SET LOCAL search_path TO pg_catalog",
        )
        .await?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .collect())
}

/// The ordinary tables that the options select: no partitioned parents, foreign tables or views.
///
/// Whether pg_dump really put a table's rows into the archive is known only afterwards (it leaves out
/// unlogged tables on a standby, for example); callers then drop what is not in it.
pub(super) async fn select(client: &Client, options: &Options) -> Result<Vec<Table>, Error> {
    let names = |patterns: &[String]| -> Vec<String> {
        patterns.iter().map(|text| Pattern::parse(text).name).collect()
    };
    let path = usual_path(client).await?;
    let (include_schemas, include_names) = taken_apart(&options.tables);
    let mut excluded = options.exclude_tables.clone();
    excluded.extend(options.exclude_table_data.iter().cloned());
    let (exclude_schemas, exclude_names) = taken_apart(&excluded);
    let rows = client
        .query(
            &format!(
                "SELECT c.oid, n.nspname::text, c.relname::text, c.relpages, c.reltuples, \
                        EXISTS (SELECT FROM pg_catalog.pg_depend d \
                                WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid \
                                  AND d.deptype = 'e'), \
                        c.relpersistence = 'u' \
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind = 'r' AND c.relpersistence <> 't' \
                   AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
                   AND n.nspname !~ '^pg_(toast|temp|toast_temp)' \
                   AND CASE WHEN pg_catalog.cardinality($1::text[]) > 0 THEN {included} \
                            ELSE (pg_catalog.cardinality($5::text[]) = 0 OR EXISTS ( \
                                    SELECT FROM pg_catalog.unnest($5::text[]) AS p(name) \
                                    WHERE n.nspname OPERATOR(pg_catalog.~) p.name COLLATE pg_catalog.default)) \
                                 AND NOT EXISTS ( \
                                    SELECT FROM pg_catalog.unnest($6::text[]) AS p(name) \
                                    WHERE n.nspname OPERATOR(pg_catalog.~) p.name COLLATE pg_catalog.default) \
                       END \
                   AND NOT {excluded} \
                 ORDER BY 2, 3",
                included = matches(2, 1, 7),
                excluded = matches(4, 3, 7),
            ),
            &[
                &include_names,
                &include_schemas,
                &exclude_names,
                &exclude_schemas,
                &names(&options.schemas),
                &names(&options.exclude_schemas),
                &path,
            ],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let tuples: f32 = row.get(4);
            Table {
                oid: row.get(0),
                schema: row.get(1),
                name: row.get(2),
                pages: row.get(3),
                estimate: (tuples >= 0.0).then_some(tuples as u64),
                of_extension: row.get(5),
                unlogged: row.get(6),
            }
        })
        .collect())
}

/// The table without a figure, or with the planner's.
pub(super) fn estimated(table: &Table, mode: CountMode) -> TableRows {
    let rows = if mode == CountMode::None {
        None
    } else {
        table.estimate
    };
    TableRows {
        schema: table.schema.clone(),
        name: table.name.clone(),
        rows,
        precision: if rows.is_some() {
            Precision::Estimate
        } else {
            Precision::None
        },
    }
}

/// Counts in the session's transaction, which must see the dump's snapshot. Never longer than `budget`.
///
/// After cancellation the rest is estimated.
pub(super) async fn count(
    client: &Client,
    tables: &[Table],
    budget: Duration,
    cancellation: &CancellationToken,
) -> Result<Vec<(Oid, TableRows)>, Error> {
    let started = Instant::now();
    let mut order: Vec<&Table> = tables.iter().filter(|table| !table.of_extension).collect();
    order.sort_by_key(|table| table.pages);
    let mut counted = Vec::with_capacity(order.len());
    for table in order {
        let left = budget.saturating_sub(started.elapsed());
        let rows = if left < Duration::from_millis(1) || cancellation.is_cancelled() {
            estimated(table, CountMode::Exact)
        } else {
            match count_one(client, table, left).await? {
                Some(rows) => TableRows {
                    schema: table.schema.clone(),
                    name: table.name.clone(),
                    rows: Some(rows),
                    precision: Precision::Exact,
                },
                None => estimated(table, CountMode::Exact),
            }
        };
        counted.push((table.oid, rows));
    }
    Ok(counted)
}

/// Counts one table; `None` when it took too long or may not be read.
async fn count_one(client: &Client, table: &Table, limit: Duration) -> Result<Option<u64>, Error> {
    let milliseconds = limit.as_millis().clamp(1, i32::MAX as u128);
    client
        .batch_execute(&format!(
            "SAVEPOINT count; SET LOCAL statement_timeout = {milliseconds}"
        ))
        .await?;
    let statement = format!(
        "SELECT count(*) FROM ONLY {}.{}",
        quoted(&table.schema),
        quoted(&table.name)
    );
    match client.query_one(&statement, &[]).await {
        Ok(row) => {
            client.batch_execute("RELEASE SAVEPOINT count").await?;
            Ok(Some(row.get::<_, i64>(0).unsigned_abs()))
        }
        Err(error)
            if [
                SqlState::QUERY_CANCELED,
                SqlState::INSUFFICIENT_PRIVILEGE,
                SqlState::LOCK_NOT_AVAILABLE,
            ]
            .iter()
            .any(|state| error.code() == Some(state)) =>
        {
            client
                .batch_execute("ROLLBACK TO SAVEPOINT count; RELEASE SAVEPOINT count")
                .await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// An identifier in double quotes.
pub(super) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// The oids of `TABLE DATA` entries in what `pg_restore --list` prints: `dump id; catalog oid, object oid,
/// description ..` (`PrintTOCSummary` in src/bin/pg_dump/pg_backup_archiver.c; entries of table data have
/// the catalog oid 0 and the table's own).
pub(super) fn table_data_in_list(list: &str) -> BTreeSet<Oid> {
    list.lines()
        .filter(|line| !line.starts_with(';'))
        .filter_map(|line| {
            let (_, rest) = line.split_once("; ")?;
            let mut words = rest.splitn(3, ' ');
            let (_catalog, oid, entry) = (words.next()?, words.next()?, words.next()?);
            if entry.starts_with("TABLE DATA ") {
                oid.parse().ok()
            } else {
                None
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_an_archive_names_tables_by_oid() {
        let list = ";\n; Archive created at 2026-11-21 03:15:00 UTC\n;     dbname: shop\n;\n\
                    3321; 1262 16384 DATABASE - shop postgres\n\
                    215; 1259 16386 TABLE public orders postgres\n\
                    3315; 0 16386 TABLE DATA public orders postgres\n\
                    3316; 0 16999 TABLE DATA odd name with TABLE DATA postgres\n\
                    3322; 0 0 SEQUENCE SET public orders_id_seq postgres\n";
        assert_eq!(table_data_in_list(list), BTreeSet::from([16386, 16999]));
    }

    #[test]
    fn identifiers_are_quoted() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
