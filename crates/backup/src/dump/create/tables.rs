//! Which tables' rows are in a dump, and how many rows they have.
//!
//! A plain dump is counted while it passes ([`super::super::scan`]); custom and directory archives are
//! counted in SQL by a second session that sees the dump's snapshot, smallest tables first, until the time
//! budget is used up; what is left keeps the planner's estimate and is marked so.

use std::collections::BTreeSet;
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
}

/// Whether a name without a schema means the table, on the path `$7`: `pg_table_is_visible` for a search path
/// that is not in force.
const VISIBLE: &str = "(n.nspname OPERATOR(pg_catalog.=) ANY ($7::name[]) AND NOT EXISTS ( \
    SELECT FROM pg_catalog.pg_class o JOIN pg_catalog.pg_namespace m ON m.oid OPERATOR(pg_catalog.=) o.relnamespace \
    WHERE o.relname OPERATOR(pg_catalog.=) c.relname \
      AND pg_catalog.array_position($7::name[], m.nspname) \
          OPERATOR(pg_catalog.<) pg_catalog.array_position($7::name[], n.nspname)))";

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
    let arrays = |patterns: &[String]| -> (Vec<Option<String>>, Vec<String>) {
        patterns
            .iter()
            .map(|text| Pattern::parse(text))
            .map(|pattern| (pattern.schema, pattern.name))
            .unzip()
    };
    let names = |patterns: &[String]| -> Vec<String> {
        patterns.iter().map(|text| Pattern::parse(text).name).collect()
    };
    let path = usual_path(client).await?;
    let (include_schemas, include_names) = arrays(&options.tables);
    let mut excluded = options.exclude_tables.clone();
    excluded.extend(options.exclude_table_data.iter().cloned());
    let (exclude_schemas, exclude_names) = arrays(&excluded);
    let matches = |schemas: u8, names: u8| {
        format!(
            "EXISTS (SELECT FROM ROWS FROM (pg_catalog.unnest(${schemas}::text[]), pg_catalog.unnest(${names}::text[])) \
             AS p(schema, name) \
             WHERE c.relname OPERATOR(pg_catalog.~) p.name COLLATE pg_catalog.default \
               AND CASE WHEN p.schema IS NULL THEN {VISIBLE} \
                        ELSE n.nspname OPERATOR(pg_catalog.~) p.schema COLLATE pg_catalog.default END)"
        )
    };
    let rows = client
        .query(
            &format!(
                "SELECT c.oid, n.nspname::text, c.relname::text, c.relpages, c.reltuples, \
                        EXISTS (SELECT FROM pg_catalog.pg_depend d \
                                WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid \
                                  AND d.deptype = 'e') \
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
                included = matches(2, 1),
                excluded = matches(4, 3),
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
