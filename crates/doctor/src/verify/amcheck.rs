//! Heap and B-tree consistency by the amcheck extension, within a time budget.
//!
//! The same functions as `pg_amcheck --heapallindexed` runs: `verify_heapam` on tables and
//! `bt_index_check(index, heapallindexed => true)` on their valid B-tree indexes (PostgreSQL documentation,
//! "amcheck"). They take no lock stronger than ACCESS SHARE. Done in this session, because the budget then
//! ends at a statement, and what was checked is known exactly.

use std::time::Instant;

use pgmahout_postgres::connection::Connection;

use super::{Part, VerifyOptions, failed};
use crate::health::{Finding, Measure, Rows};

/// A relation to check.
struct Relation {
    oid: u32,
    name: String,
    index: bool,
}

/// Checks the tables named, or as many as the budget allows.
pub(super) async fn check(connection: &Connection, options: &VerifyOptions, writes: bool) -> Part {
    if options.amcheck_budget.is_zero() {
        return Part::Skipped("its time budget is zero".to_owned());
    }
    let schema = match extension_schema(connection, writes).await {
        Ok(schema) => schema,
        Err(part) => return part,
    };
    let relations = match relations(connection, &options.tables).await {
        Ok(relations) => relations,
        Err(part) => return part,
    };
    let begun = Instant::now();
    let mut damage = Rows::new(["relation", "finding"]);
    let (mut tables, mut indexes, mut unfinished) = (0_usize, 0_usize, 0_usize);
    for relation in &relations {
        let left = options.amcheck_budget.saturating_sub(begun.elapsed());
        if left.is_zero() {
            unfinished += 1;
            continue;
        }
        let limit = format!("SET statement_timeout = {}", left.as_millis().max(1));
        if let Err(error) = connection.batch_execute(&limit).await {
            return failed("limit the time of amcheck", &error);
        }
        let question = if relation.index {
            format!(
                "SELECT NULL::text FROM {schema}.bt_index_check({}::oid::regclass, true)",
                relation.oid
            )
        } else {
            format!(
                "SELECT format('block %s: %s', blkno, msg) FROM {schema}.verify_heapam({}::oid::regclass) LIMIT 20",
                relation.oid
            )
        };
        match connection.query(&question, &[]).await {
            Ok(rows) => {
                for row in rows.iter().filter_map(|row| row.get::<_, Option<String>>(0)) {
                    damage.push([relation.name.clone(), row]);
                }
                if relation.index { indexes += 1 } else { tables += 1 }
            }
            Err(error) => match error.as_db_error() {
                Some(answer) if *answer.code() == tokio_postgres::error::SqlState::QUERY_CANCELED => {
                    unfinished += 1;
                }
                // Dropped since it was listed: nothing to check any more.
                Some(answer) if *answer.code() == tokio_postgres::error::SqlState::UNDEFINED_TABLE => {}
                Some(answer) if *answer.code() == tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE => {
                    let _ = connection.batch_execute("RESET statement_timeout").await;
                    return Part::Found(Finding::unknown(
                        format!("this role may not run amcheck's functions: {}", answer.message()),
                        Some(format!(
                            "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {}",
                            connection.parameters().user
                        )),
                    ));
                }
                Some(answer) => damage.push([relation.name.clone(), answer.message().to_owned()]),
                None => return failed("run amcheck", &error),
            },
        }
    }
    let _ = connection.batch_execute("RESET statement_timeout").await;
    let took = Measure::seconds(begun.elapsed().as_secs_f64());
    if !damage.is_empty() {
        return Part::Found(
            Finding::crit(format!("{} inconsistencies in the database's files", damage.total))
                .measured(took)
                .rows(damage)
                .hint("stop writing, copy the data directory before anything else, then restore from a sound backup"),
        );
    }
    let rest = match unfinished {
        0 => String::new(),
        left => format!("; {left} relations were left for want of time"),
    };
    Part::Found(
        Finding::ok(format!(
            "{tables} tables and {indexes} indexes are consistent{rest}"
        ))
        .measured(took),
    )
}

/// The schema of the extension, which is made for the while where it is not there.
async fn extension_schema(connection: &Connection, writes: bool) -> Result<String, Part> {
    let question = "SELECT quote_ident(n.nspname) FROM pg_catalog.pg_extension e
                    JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'amcheck'";
    let existing = connection
        .query_opt(question, &[])
        .await
        .map_err(|error| failed("look for amcheck", &error))?;
    if let Some(row) = existing {
        return Ok(row.get(0));
    }
    if !writes {
        return Err(Part::Skipped(
            "the amcheck extension is not installed in this database".to_owned(),
        ));
    }
    match connection
        .batch_execute("CREATE EXTENSION amcheck SCHEMA pgmahout")
        .await
    {
        Ok(()) => Ok("pgmahout".to_owned()),
        Err(error) => {
            let message = error
                .as_db_error()
                .map_or_else(|| error.to_string(), |answer| answer.message().to_owned());
            Err(Part::Found(Finding::unknown(
                format!("amcheck is not installed and cannot be: {message}"),
                Some("CREATE EXTENSION amcheck".to_owned()),
            )))
        }
    }
}

/// Tables, each followed by its indexes.
async fn relations(connection: &Connection, wanted: &[String]) -> Result<Vec<Relation>, Part> {
    for name in wanted {
        let found = connection
            .query_one("SELECT pg_catalog.to_regclass($1) IS NOT NULL", &[name])
            .await
            .map_err(|error| failed("look for the tables named", &error))?;
        if !found.get::<_, bool>(0) {
            return Err(Part::Found(
                Finding::crit(format!("the table {name} does not exist")).hint("name it as schema.table"),
            ));
        }
    }
    // relpersistence: temporary tables of other sessions cannot be read, unlogged ones are empty on standbys.
    let rows = connection
        .query(
            "WITH chosen AS (
                 SELECT c.oid, c.oid::regclass::text AS name, row_number() OVER (ORDER BY random()) AS place
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p' AND n.nspname <> 'pgmahout'
                   AND (cardinality($1::text[]) = 0 OR c.oid = ANY (SELECT pg_catalog.to_regclass(w) FROM unnest($1::text[]) w)))
             SELECT oid, name, false AS index, place FROM chosen
             UNION ALL
             SELECT i.indexrelid, i.indexrelid::regclass::text, true, place
             FROM chosen JOIN pg_catalog.pg_index i ON i.indrelid = chosen.oid
             JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
             JOIN pg_catalog.pg_am a ON a.oid = c.relam
             WHERE a.amname = 'btree' AND i.indisvalid AND i.indisready
             ORDER BY place, index",
            &[&wanted],
        )
        .await
        .map_err(|error| failed("list the tables to check", &error))?;
    Ok(rows
        .iter()
        .map(|row| Relation {
            oid: row.get(0),
            name: row.get(1),
            index: row.get(2),
        })
        .collect())
}
