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

/// How many sequences of a database are looked at in one run, of those with less than int8's whole range
/// and of those with all of it. What is left over takes its turn in the next runs; what was found to be
/// half used is looked at every time.
const NARROW_IN_A_RUN: usize = 800;
const WIDE_IN_A_RUN: usize = 200;

/// From which share on a sequence is looked at in every run.
pub(super) const WATCHED_FROM: f64 = 0.5;

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
  (SELECT * FROM relation
    WHERE dead > least(current_setting('autovacuum_vacuum_threshold')::bigint, DEAD_ROWS)
       OR (dead > 0 AND reloptions IS NOT NULL)
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
    /// Its OID.
    pub oid: i64,
    /// Whether it has less than the whole range of int8.
    #[serde(default)]
    narrow: bool,
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
    /// Whether its own range ends before that of the column or, without one, of int8.
    #[serde(default)]
    pub ends_by_itself: bool,
    /// Whether its own range is that of its type.
    #[serde(default)]
    pub ends_with_its_type: bool,
    /// Whether its row can be read, which tells the value that comes first after a restart.
    #[serde(default)]
    selectable: bool,
    /// Whether somebody has locked it against being read.
    #[serde(default)]
    pub locked: bool,
    /// The last value given out; none before the first, or where it was not read.
    #[serde(default)]
    pub last_value: Option<i64>,
}

/// A column is fed by a sequence that it owns (serial, identity) or that its default calls.
const SEQUENCES: &str = "
WITH sequence AS MATERIALIZED (
  SELECT seqrelid, seqtypid <> 'int8'::regtype
                   OR CASE WHEN seqincrement > 0 THEN seqmax < 9223372036854775807
                           ELSE seqmin > -9223372036854775808 END AS narrow
    FROM pg_sequence),
chosen AS MATERIALIZED (
  (SELECT * FROM sequence WHERE narrow ORDER BY seqrelid::bigint <= NARROW_TURN, seqrelid LIMIT NARROW_MOST)
  UNION
  (SELECT * FROM sequence WHERE NOT narrow ORDER BY seqrelid::bigint <= WIDE_TURN, seqrelid LIMIT WIDE_MOST)
  UNION
  (SELECT * FROM sequence WHERE seqrelid IN (WATCHED)))
SELECT s.oid::bigint AS oid, s.narrow, format('%I.%I', s.schema, s.relname) AS name, quote_ident(s.schema) AS schema,
       fed.column, fed.column_type, s.seqstart AS start, s.seqincrement AS increment,
       greatest(s.seqmin, coalesce(fed.lowest, s.seqmin)) AS lowest,
       least(s.seqmax, coalesce(fed.highest, s.seqmax)) AS highest,
       s.seqcycle AND s.seqmax <= coalesce(fed.highest, s.seqmax) AS cycles,
       CASE WHEN s.seqincrement > 0 THEN s.seqmax < coalesce(fed.highest, 9223372036854775807)
            ELSE s.seqmin > coalesce(fed.lowest, -9223372036854775808) END AS ends_by_itself,
       CASE WHEN s.seqincrement > 0
            THEN s.seqmax = CASE s.seqtypid WHEN 'int2'::regtype THEN 32767 WHEN 'int4'::regtype THEN 2147483647
                                            ELSE 9223372036854775807 END
            ELSE s.seqmin = CASE s.seqtypid WHEN 'int2'::regtype THEN -32768 WHEN 'int4'::regtype THEN -2147483648
                                            ELSE -9223372036854775808 END END AS ends_with_its_type,
       has_sequence_privilege(s.oid, 'SELECT') AS selectable,
       has_sequence_privilege(s.oid, 'SELECT, USAGE') AS readable
  FROM (SELECT c.oid, c.relname, n.nspname AS schema, q.*, chosen.narrow
          FROM chosen JOIN pg_sequence q USING (seqrelid)
          JOIN pg_class c ON c.oid = q.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
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
    /// The sequences that were looked at.
    pub sequences: Result<Vec<Sequence>, Failure>,
    /// How many there are in all.
    pub sequence_count: usize,
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
    let turn = Turn::of(context, &database);
    // From how many dead rows on vacuum.dead_tuples judges a table.
    let dead_rows = context
        .limit("vacuum.dead_tuples.rows")
        .and_then(|limit| limit.warn)
        .map_or(0, |rows| rows as i64 - 1)
        .max(0);
    let tables = async || {
        if !passes.tables {
            return Ok(Vec::new());
        }
        let mut lease = context.sessions().lease(place).await?;
        if facts.version.major() >= 15 {
            // Each entry is read once: reading it in place is cheaper than copying it first. A server that
            // refuses answers the question all the same.
            let _ = lease.execute("SET stats_fetch_consistency = none").await;
        }
        lease
            .rows(&TABLES.replace("DEAD_ROWS", &dead_rows.to_string()))
            .await
    };
    let indexes = async || {
        if !passes.indexes {
            return Ok(Vec::new());
        }
        context.sessions().lease(place).await?.rows(INDEXES).await
    };
    let sequences = async || {
        if !passes.sequences {
            return Ok((Vec::new(), 0));
        }
        let mut lease = context.sessions().lease(place).await?;
        let read = read_sequences(&mut lease, &turn).await?;
        turn.remember(context, &database, &read.0);
        Ok(read)
    };
    // The sessions of the database that everybody else asks are used side by side; another database gets
    // one session, one question after the other.
    let (tables, (indexes, sequences)) = if place.is_none() {
        futures::join!(tables(), async { (indexes().await, sequences().await) })
    } else {
        (tables().await, (indexes().await, sequences().await))
    };
    let (sequences, sequence_count) = match sequences {
        Ok((sequences, count)) => (Ok(sequences), count),
        Err(failure) => (Err(failure), 0),
    };
    DatabaseSurvey {
        database,
        tables,
        indexes,
        sequences,
        sequence_count,
    }
}

/// Whose turn it is among the sequences of a database.
struct Turn {
    /// The last of each kind that was looked at.
    narrow: i64,
    wide: i64,
    /// Those that are looked at every time.
    watched: Vec<i64>,
    /// Whether all are looked at.
    all: bool,
}

impl Turn {
    fn of(context: &Context, database: &str) -> Self {
        let values = context.previous().map(|sample| &sample.values);
        let value = |what: &str| {
            let key = format!("sequences.used {what} {database}");
            values
                .and_then(|values| values.get(&key))
                .map_or(0, |oid| *oid as i64)
        };
        let watched = format!("sequences.used watched {database} ");
        Self {
            narrow: value("narrow"),
            wide: value("wide"),
            watched: values
                .into_iter()
                .flatten()
                .filter_map(|(key, _)| key.strip_prefix(&watched)?.parse().ok())
                .collect(),
            all: context.is_asked_for("sequences.used"),
        }
    }

    fn question(&self) -> String {
        let limit = |most: usize| {
            if self.all {
                "ALL".to_owned()
            } else {
                most.to_string()
            }
        };
        let watched: Vec<String> = self.watched.iter().chain([&0]).map(ToString::to_string).collect();
        SEQUENCES
            .replace("NARROW_TURN", &self.narrow.to_string())
            .replace("NARROW_MOST", &limit(NARROW_IN_A_RUN))
            .replace("WIDE_TURN", &self.wide.to_string())
            .replace("WIDE_MOST", &limit(WIDE_IN_A_RUN))
            .replace("WATCHED", &watched.join(", "))
    }

    /// Where the next run goes on. The window may have gone round, so it is the last one before the gap.
    fn remember(&self, context: &Context, database: &str, sequences: &[Sequence]) {
        let last = |narrow: bool, turn: i64, most: usize| {
            let mut seen: Vec<i64> = sequences
                .iter()
                .filter(|sequence| sequence.narrow == narrow && !self.watched.contains(&sequence.oid))
                .map(|sequence| sequence.oid)
                .collect();
            seen.sort_unstable_by_key(|oid| (*oid <= turn, *oid));
            seen.truncate(most);
            seen.last().copied().unwrap_or(0)
        };
        let narrow = last(true, self.narrow, NARROW_IN_A_RUN);
        let wide = last(false, self.wide, WIDE_IN_A_RUN);
        context.remember(|sample| {
            for (what, oid) in [("narrow", narrow), ("wide", wide)] {
                sample
                    .values
                    .insert(format!("sequences.used {what} {database}"), oid as f64);
            }
            for sequence in sequences {
                if let Some(share) = super::sequences::share(sequence).filter(|share| *share >= WATCHED_FROM)
                {
                    sample.values.insert(
                        format!("sequences.used watched {database} {}", sequence.oid),
                        share,
                    );
                }
            }
        });
    }
}

/// How many sequences there are; one index-only look, next to nothing.
const SEQUENCE_COUNT: &str = "SELECT count(*) AS count FROM pg_sequence";

#[derive(Deserialize)]
struct SequenceCount {
    count: usize,
}

/// The sequences whose turn it is, and how many there are in all.
async fn read_sequences(lease: &mut Lease<'_>, turn: &Turn) -> Result<(Vec<Sequence>, usize), Failure> {
    let count: Vec<SequenceCount> = lease.rows(SEQUENCE_COUNT).await?;
    let mut sequences: Vec<Sequence> = lease.rows(&turn.question()).await?;
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
        // After a restart, and before the first use, there is no last value: the next one stands in the
        // sequence's own row.
        let unused: Vec<String> = some
            .iter()
            .filter(|sequence| sequence.last_value.is_none() && sequence.selectable && !sequence.locked)
            .map(|sequence| {
                format!(
                    "SELECT {}::bigint AS oid, false AS locked, last_value FROM {}",
                    sequence.oid, sequence.name
                )
            })
            .collect();
        if unused.is_empty() {
            continue;
        }
        let values: Vec<SequenceValue> = lease.rows(&unused.join(" UNION ALL ")).await?;
        for value in values {
            if let Some(sequence) = some.iter_mut().find(|sequence| sequence.oid == value.oid) {
                sequence.last_value = value.last_value.filter(|next| *next != sequence.start);
            }
        }
    }
    let count = count.first().map_or(0, |count| count.count).max(sequences.len());
    Ok((sequences, count))
}
