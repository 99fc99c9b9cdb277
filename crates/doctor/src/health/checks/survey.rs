//! Tables, indexes and sequences of every database: one pass each, shared by the checks that need them.
//!
//! Sizes come from `relpages`, counts from the statistics of the rows that may matter. Nothing here opens a
//! user's table. A sequence can only be read by opening it, so sequences that somebody has locked against
//! that are left unread, and the others are read a few at a time: the locks taken last to the end of the
//! statement, and the server's lock table is everybody's.

use futures::StreamExt as _;
use serde::Deserialize;

use crate::health::context::Context;
use crate::health::facts::Facts;
use crate::health::failure::Failure;
use crate::health::sessions::Lease;

/// How many sequences are read in one statement.
const SEQUENCES_AT_ONCE: usize = 200;

/// A table that is among the oldest or has dead rows.
#[derive(Debug, Clone, Deserialize)]
pub struct Table {
    /// Qualified and quoted; a TOAST table by its owner.
    pub name: String,
    /// `age(relfrozenxid)`.
    pub xid_age: Option<i64>,
    /// `mxid_age(relminmxid)`.
    pub multixid_age: Option<i64>,
    /// Dead rows, estimated by the statistics.
    pub dead: i64,
    /// Live rows, estimated by the statistics.
    pub live: i64,
    /// `reltuples`: rows when last vacuumed or analyzed, below zero before that.
    pub estimated_rows: f64,
    /// Size of the main fork when last vacuumed or analyzed.
    pub bytes: i64,
    /// Seconds since the last vacuum of either kind.
    pub vacuumed: Option<f64>,
    /// Storage parameters, `name=value`.
    pub options: Option<Vec<String>>,
}

/// One pass over pg_class. The statistics functions read shared memory and take no lock on the table
/// (pgstatfuncs.c); the dead rows are asked for each table, the rest only for those chosen.
const TABLES: &str = "
WITH relation AS MATERIALIZED (
  SELECT c.oid, c.relname, c.relnamespace, c.relkind, c.relpages, c.reltuples, c.reloptions,
         CASE WHEN c.relfrozenxid <> '0' THEN age(c.relfrozenxid) END AS xid_age,
         CASE WHEN c.relminmxid <> '0' THEN mxid_age(c.relminmxid) END AS multixid_age,
         pg_stat_get_dead_tuples(c.oid) AS dead
    FROM pg_class c
   WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't'),
chosen AS (
  (SELECT * FROM relation WHERE xid_age IS NOT NULL ORDER BY xid_age DESC LIMIT 20)
  UNION
  (SELECT * FROM relation WHERE multixid_age IS NOT NULL ORDER BY multixid_age DESC LIMIT 20)
  UNION
  (SELECT * FROM relation WHERE dead > current_setting('autovacuum_vacuum_threshold')::bigint
    ORDER BY dead DESC LIMIT 300))
SELECT CASE WHEN owner.oid IS NULL THEN format('%I.%I', n.nspname, r.relname)
            ELSE format('%I.%I (TOAST)', owner_schema.nspname, owner.relname) END AS name,
       r.xid_age, r.multixid_age, r.dead,
       pg_stat_get_live_tuples(r.oid) AS live,
       r.reltuples::float8 AS estimated_rows,
       r.relpages::bigint * current_setting('block_size')::bigint AS bytes,
       extract(epoch FROM clock_timestamp() - greatest(pg_stat_get_last_vacuum_time(r.oid),
                                          pg_stat_get_last_autovacuum_time(r.oid)))::float8 AS vacuumed,
       r.reloptions AS options
  FROM chosen r
  JOIN pg_namespace n ON n.oid = r.relnamespace
  LEFT JOIN pg_class owner
         ON r.relkind = 't' AND r.relname ~ '^pg_toast_[0-9]+$'
        AND owner.oid = CASE WHEN r.relname ~ '^pg_toast_[0-9]+$' THEN substring(r.relname, 10)::oid END
        AND owner.reltoastrelid = r.oid
  LEFT JOIN pg_namespace owner_schema ON owner_schema.oid = owner.relnamespace";

/// An index that cannot be used, or is not kept up to date.
#[derive(Debug, Clone, Deserialize)]
pub struct BrokenIndex {
    /// Qualified and quoted.
    pub name: String,
    /// Its table, qualified and quoted.
    pub table: String,
    /// Whether it enforces uniqueness.
    pub unique: bool,
    /// Whether it belongs to a partitioned table.
    pub partitioned: bool,
    /// Whether it is maintained by writes although no query uses it.
    pub ready: bool,
    /// Its size when last looked at by the server.
    pub bytes: i64,
    /// Whether a session is building or dropping it now.
    pub in_progress: bool,
}

/// Concurrent builds name their index in the progress view; plain ones give 0 and are invisible until
/// committed. Dropping concurrently locks the index itself, which a mere user of it does not do in these
/// modes (indexcmds.c, index.c).
const INDEXES: &str = "
SELECT format('%I.%I', n.nspname, c.relname) AS name, format('%I.%I', tn.nspname, t.relname) AS table,
       i.indisunique AS unique, c.relkind = 'I' AS partitioned, i.indisready AS ready,
       c.relpages::bigint * current_setting('block_size')::bigint AS bytes,
       EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid)
       OR EXISTS (SELECT FROM pg_locks l
                   WHERE l.locktype = 'relation' AND l.relation = i.indexrelid AND l.granted
                     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                     AND l.mode IN ('ShareUpdateExclusiveLock', 'AccessExclusiveLock')) AS in_progress
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_class t ON t.oid = i.indrelid
  JOIN pg_namespace tn ON tn.oid = t.relnamespace
 WHERE NOT (i.indisvalid AND i.indisready AND i.indislive)
 ORDER BY 2, 1 LIMIT 200";

/// A sequence and what it feeds.
#[derive(Debug, Clone, Deserialize)]
pub struct Sequence {
    oid: i64,
    /// Qualified and quoted.
    pub name: String,
    /// Its schema, quoted.
    pub schema: String,
    /// The column it feeds, with its table, where there is one.
    pub column: Option<String>,
    /// The column's type.
    pub column_type: Option<String>,
    /// The least value of the column's type, or of the sequence.
    pub lowest: i64,
    /// The greatest value of the column's type and the sequence.
    pub highest: i64,
    /// The first value.
    pub start: i64,
    /// The step.
    pub increment: i64,
    /// Whether it starts over by itself before the column's range ends.
    pub cycles: bool,
    /// Whether the role may read it.
    pub readable: bool,
    /// Whether somebody has locked it against being read.
    #[serde(default)]
    pub locked: bool,
    /// The last value given out; none before the first, or where it was not read.
    #[serde(default)]
    pub last_value: Option<i64>,
}

/// A column is fed by a sequence that it owns (serial, identity) or that its default calls.
const SEQUENCES: &str = "
SELECT s.oid::bigint AS oid, format('%I.%I', s.schema, s.relname) AS name, quote_ident(s.schema) AS schema,
       fed.column, fed.column_type, s.seqstart AS start, s.seqincrement AS increment,
       greatest(s.seqmin, coalesce(fed.lowest, s.seqmin)) AS lowest,
       least(s.seqmax, coalesce(fed.highest, s.seqmax)) AS highest,
       s.seqcycle AND s.seqmax <= coalesce(fed.highest, s.seqmax) AS cycles,
       has_sequence_privilege(s.oid, 'SELECT, USAGE') AS readable
  FROM (SELECT c.oid, c.relname, n.nspname AS schema, q.*
          FROM pg_sequence q JOIN pg_class c ON c.oid = q.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE NOT pg_is_other_temp_schema(n.oid)
           AND NOT (pg_is_in_recovery() AND c.relpersistence <> 'p')) s
  LEFT JOIN LATERAL (
    SELECT format('%I.%I.%I', tn.nspname, t.relname, a.attname) AS column,
           format_type(a.atttypid, NULL) AS column_type,
           CASE a.atttypid WHEN 'int2'::regtype THEN -32768 WHEN 'int4'::regtype THEN -2147483648 END AS lowest,
           CASE a.atttypid WHEN 'int2'::regtype THEN 32767 WHEN 'int4'::regtype THEN 2147483647 END AS highest
      FROM (SELECT d.refobjid AS relation, d.refobjsubid AS attribute
              FROM pg_depend d
             WHERE d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.objsubid = 0
               AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
            UNION
            SELECT x.adrelid, x.adnum
              FROM pg_depend d JOIN pg_attrdef x ON x.oid = d.objid
             WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = s.oid
               AND d.classid = 'pg_attrdef'::regclass) link
      JOIN pg_attribute a ON a.attrelid = link.relation AND a.attnum = link.attribute AND NOT a.attisdropped
      JOIN pg_class t ON t.oid = a.attrelid
      JOIN pg_namespace tn ON tn.oid = t.relnamespace
     ORDER BY CASE a.atttypid WHEN 'int2'::regtype THEN 1 WHEN 'int4'::regtype THEN 2 ELSE 3 END LIMIT 1) fed ON true";

/// Values of some sequences; reading takes a ROW EXCLUSIVE lock on each (sequence.c, init_sequence), which
/// these modes conflict with.
const SEQUENCE_VALUES: &str = "
WITH locked AS MATERIALIZED (
  SELECT l.relation FROM pg_locks l
   WHERE l.locktype = 'relation' AND l.granted
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
     AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
SELECT c.oid::bigint AS oid, locked.relation IS NOT NULL AS locked,
       CASE WHEN locked.relation IS NULL THEN pg_sequence_last_value(c.oid) END AS last_value
  FROM pg_class c LEFT JOIN (SELECT DISTINCT relation FROM locked) locked ON locked.relation = c.oid
 WHERE c.relkind = 'S' AND c.oid IN (OIDS)";

#[derive(Deserialize)]
struct SequenceValue {
    oid: i64,
    locked: bool,
    last_value: Option<i64>,
}

/// What one database has.
#[derive(Debug)]
pub struct DatabaseSurvey {
    /// Its name.
    pub database: String,
    /// Tables that may matter.
    pub tables: Result<Vec<Table>, Failure>,
    /// Indexes that are not valid.
    pub indexes: Result<Vec<BrokenIndex>, Failure>,
    /// All sequences.
    pub sequences: Result<Vec<Sequence>, Failure>,
}

/// What all databases have.
#[derive(Debug, Default)]
pub struct Survey {
    /// Each database that could be connected to, by name.
    pub databases: Vec<DatabaseSurvey>,
    /// Databases that the role may not connect to.
    pub closed: Vec<String>,
}

impl Survey {
    /// The statement that opens the closed databases to the role.
    pub fn connect_grant(&self, facts: &Facts) -> Option<String> {
        if self.closed.is_empty() {
            return None;
        }
        let names: Vec<_> = self
            .closed
            .iter()
            .map(|name| crate::health::facts::quote_identifier(name))
            .collect();
        Some(facts.grant(&format!(
            "GRANT CONNECT ON DATABASE {} TO {{role}}",
            names.join(", ")
        )))
    }
}

/// Which passes the selected checks need.
#[derive(Clone, Copy)]
struct Passes {
    tables: bool,
    indexes: bool,
    sequences: bool,
}

/// Looks at every database. Templates are left alone: a session in template1 keeps others from creating
/// databases.
pub(in crate::health) async fn collect(context: &Context) -> Survey {
    let Ok(facts) = context.facts() else {
        return Survey::default();
    };
    let selects = |id: &str| context.selection.selects(id);
    let passes = Passes {
        tables: [
            "vacuum.xid_age",
            "vacuum.multixid_age",
            "vacuum.dead_tuples",
            "vacuum.autovacuum",
        ]
        .into_iter()
        .any(selects),
        indexes: selects("indexes.invalid"),
        sequences: selects("sequences.used"),
    };
    let mut survey = Survey::default();
    let mut open = Vec::new();
    for database in &facts.databases {
        if !database.is_looked_into() {
            continue;
        }
        if database.may_connect {
            open.push(database.name.clone());
        } else {
            survey.closed.push(database.name.clone());
        }
    }
    let home = &facts.database;
    survey.databases = futures::stream::iter(open)
        .map(|name| async move {
            let place = (name != *home).then_some(name.as_str());
            look(context, facts, place, name.clone(), passes).await
        })
        .buffered(crate::health::sessions::MOST_SESSIONS)
        .collect()
        .await;
    survey
}

async fn look(
    context: &Context,
    facts: &Facts,
    place: Option<&str>,
    database: String,
    passes: Passes,
) -> DatabaseSurvey {
    let mut lease = match context.sessions().lease(place).await {
        Ok(lease) => lease,
        Err(failure) => {
            return DatabaseSurvey {
                database,
                tables: Err(failure.clone()),
                indexes: Err(failure.clone()),
                sequences: Err(failure),
            };
        }
    };
    let tables = if passes.tables {
        if facts.version.major() >= 15 {
            // Each entry is read once: reading it in place is cheaper than copying it first. A server that
            // refuses answers the question all the same.
            let _ = lease.execute("SET stats_fetch_consistency = none").await;
        }
        lease.rows(TABLES).await
    } else {
        Ok(Vec::new())
    };
    let indexes = if passes.indexes {
        lease.rows(INDEXES).await
    } else {
        Ok(Vec::new())
    };
    let sequences = if passes.sequences {
        read_sequences(&mut lease).await
    } else {
        Ok(Vec::new())
    };
    DatabaseSurvey {
        database,
        tables,
        indexes,
        sequences,
    }
}

async fn read_sequences(lease: &mut Lease<'_>) -> Result<Vec<Sequence>, Failure> {
    let mut sequences: Vec<Sequence> = lease.rows(SEQUENCES).await?;
    let mut readable: Vec<&mut Sequence> = sequences
        .iter_mut()
        .filter(|sequence| sequence.readable)
        .collect();
    for some in readable.chunks_mut(SEQUENCES_AT_ONCE) {
        let oids: Vec<_> = some.iter().map(|sequence| sequence.oid.to_string()).collect();
        let values: Vec<SequenceValue> = lease
            .rows(&SEQUENCE_VALUES.replace("OIDS", &oids.join(", ")))
            .await?;
        for value in values {
            if let Some(sequence) = some.iter_mut().find(|sequence| sequence.oid == value.oid) {
                sequence.locked = value.locked;
                sequence.last_value = value.last_value;
            }
        }
    }
    Ok(sequences)
}
