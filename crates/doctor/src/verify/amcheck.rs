//! Heap and B-tree consistency by the amcheck extension, within a time budget.
//!
//! The same functions as `pg_amcheck --heapallindexed` runs: `verify_heapam` on tables and
//! `bt_index_check(index, heapallindexed => true)` on their valid B-tree indexes (PostgreSQL documentation,
//! "amcheck"). They take no lock stronger than ACCESS SHARE. Done in this session, because the budget then
//! ends at a statement, and what was checked is known exactly.

use std::time::{Duration, Instant};

use pgmahout_postgres::connection::Connection;
use tokio_postgres::error::SqlState;

use super::{Part, VerifyOptions, failed};
use crate::health::{Finding, Measure, Rows};

/// How long a relation's lock is waited for: its turn passes, the others' comes.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

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
    let mut left_out = Rows::new(["relation", "why it was not checked"]);
    let (mut tables, mut indexes) = (0_usize, 0_usize);
    for relation in &relations {
        let left = options.amcheck_budget.saturating_sub(begun.elapsed());
        if left.is_zero() {
            left_out.push([relation.name.clone(), "no time was left".to_owned()]);
            continue;
        }
        let limit = format!(
            "SET statement_timeout = {}; SET lock_timeout = {}",
            left.as_millis().max(1),
            LOCK_TIMEOUT.as_millis()
        );
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
            Err(error) => {
                let Some(answer) = error.as_db_error() else {
                    return failed("run amcheck", &error);
                };
                match *answer.code() {
                    SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED => {
                        damage.push([relation.name.clone(), answer.message().to_owned()]);
                    }
                    // Dropped since it was listed: nothing to check any more.
                    SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_OBJECT => {}
                    SqlState::INSUFFICIENT_PRIVILEGE => {
                        reset(connection).await;
                        return Part::Found(Finding::unknown(
                            format!("this role may not run amcheck's functions: {}", answer.message()),
                            Some(format!(
                                "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {}",
                                connection.parameters().user
                            )),
                        ));
                    }
                    SqlState::QUERY_CANCELED => {
                        left_out.push([relation.name.clone(), "no time was left".to_owned()]);
                    }
                    SqlState::LOCK_NOT_AVAILABLE => {
                        left_out.push([
                            relation.name.clone(),
                            "somebody holds an exclusive lock on it".to_owned(),
                        ]);
                    }
                    _ => left_out.push([relation.name.clone(), answer.message().to_owned()]),
                }
            }
        }
    }
    reset(connection).await;
    let took = Measure::seconds(begun.elapsed().as_secs_f64());
    if !damage.is_empty() {
        return Part::Found(
            Finding::crit(format!("{} inconsistencies in the database's files", damage.total))
                .measured(took)
                .rows(damage)
                .hint("stop writing, copy the data directory before anything else, then restore from a sound backup"),
        );
    }
    let checked = format!("{tables} tables and {indexes} indexes are consistent");
    if left_out.is_empty() {
        return Part::Found(Finding::ok(checked).measured(took));
    }
    let rest = format!("{checked}; {} relations were not checked", left_out.total);
    // A sample is whatever the budget allows; what was asked for by name must have been checked.
    if options.tables.is_empty() && tables > 0 {
        return Part::Found(Finding::ok(rest).measured(took).rows(left_out));
    }
    Part::Found(
        Finding::unknown(rest, None)
            .measured(took)
            .rows(left_out)
            .hint("give it more time (--amcheck-budget 10min), and see who holds locks: pgmahout health --only 'locks.*,connections.*'"),
    )
}

/// Takes the limits of the checks back.
async fn reset(connection: &Connection) {
    // A session that fails even this fails its next statement too, and says why.
    let _ = connection
        .batch_execute("RESET statement_timeout; RESET lock_timeout")
        .await;
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
