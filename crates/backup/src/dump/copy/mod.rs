//! `dump copy`: one database into another, as a stream.
//!
//! pg_dump's output goes through the scanner into one psql, without a file in between. The target is a fresh
//! database under a temporary name that only its owner and superusers may enter; masks are applied in the
//! same transaction, when all rows are there and before indexes, constraints and triggers are built on them:
//! no trigger sees the unmasked values, unique and foreign keys are checked on the masked ones, and no
//! transaction ever shows an unmasked row. Masked tables are rewritten before the database gets its name, so
//! that the old values do not even lie in dead rows. (Superusers of the target can read its WAL.)

use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_procedure::report::{Level, Reporter, Task, Unit};
use pgmahout_types::version::ServerVersion;
use tokio_util::sync::CancellationToken;

use super::read::{last_lines, watch};
use super::restore::error::RestoreError;
use super::restore::fresh::{self, Properties};
use super::restore::psql::{self, Load, SqlSource};
use super::restore::tools::Tools;
use super::restore::{CountRow, TargetFacts, counts, engine, hints};
use super::scan::{Selection, TableName, names};

/// One column that is not copied as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// The table.
    pub table: TableName,
    /// The column.
    pub column: String,
    /// What takes its place: an SQL expression over the row's columns.
    pub expression: String,
}

impl Mask {
    /// Reads `[SCHEMA.]TABLE.COLUMN=EXPRESSION`; names may be in double quotes; the schema is `public` when
    /// it is not given.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn parse(text: &str) -> Result<Self, RestoreError> {
        let wrong = || {
            RestoreError::Usage {
            what: format!("\"{text}\" is no mask"),
            hint: "write [SCHEMA.]TABLE.COLUMN=EXPRESSION, for example customers.email=\"'c' || id || '@example.org'\"".to_owned(),
        }
        };
        let mut parts = Vec::new();
        let mut rest = text;
        loop {
            let (part, after) = if let Some(quoted) = rest.strip_prefix('"') {
                let mut name = String::new();
                let mut characters = quoted.char_indices().peekable();
                let end = loop {
                    match characters.next() {
                        Some((_, '"')) if characters.peek().is_some_and(|(_, next)| *next == '"') => {
                            characters.next();
                            name.push('"');
                        }
                        Some((index, '"')) => break index + 1,
                        Some((_, other)) => name.push(other),
                        None => return Err(wrong()),
                    }
                };
                (name, &quoted[end..])
            } else {
                let end = rest.find(['.', '=']).ok_or_else(wrong)?;
                (rest[..end].trim().to_lowercase(), &rest[end..])
            };
            if part.is_empty() {
                return Err(wrong());
            }
            parts.push(part);
            if let Some(after) = after.strip_prefix('.') {
                rest = after;
            } else {
                rest = after.strip_prefix('=').ok_or_else(wrong)?;
                break;
            }
        }
        let expression = rest.trim().to_owned();
        let (table, column) = match parts.as_slice() {
            [table, column] => (TableName::new("public", table), column.clone()),
            [schema, table, column] => (TableName::new(schema, table), column.clone()),
            _ => return Err(wrong()),
        };
        // The expression becomes part of a statement; it may not end it.
        let report = super::scan::scan(format!("SELECT ({expression});").as_bytes());
        let section = &report.sections[0];
        let is_one = section.statements == 1 && section.metas.is_empty() && report.unfinished.is_none();
        if expression.is_empty() || !is_one || report.sections.len() > 1 {
            return Err(wrong());
        }
        Ok(Self {
            table,
            column,
            expression,
        })
    }
}

/// The statements that mask: one per table, so that expressions see the row as it was.
fn statements(masks: &[Mask]) -> Vec<String> {
    let mut tables: Vec<&TableName> = masks.iter().map(|mask| &mask.table).collect();
    tables.sort();
    tables.dedup();
    tables
        .into_iter()
        .map(|table| {
            let sets: Vec<String> = masks
                .iter()
                .filter(|mask| mask.table == *table)
                .map(|mask| format!("{} = ({})", names::quote_name(&mask.column), mask.expression))
                .collect();
            // Names in expressions are found as in a session on the source.
            format!(
                "SET LOCAL search_path = {}, public;\nUPDATE {} SET {};\nSET LOCAL search_path = ''",
                names::quote_name(&table.schema),
                table.to_sql(),
                sets.join(", ")
            )
        })
        .collect()
}

/// What was asked of `dump copy`.
#[derive(Debug, Clone)]
pub struct CopyRequest {
    /// The server and the database to copy.
    pub from: ConnectionParameters,
    /// The server and the database to make.
    pub to: ConnectionParameters,
    /// Whether an existing database is replaced.
    pub replace: bool,
    /// Columns that are not copied as they are.
    pub masks: Vec<Mask>,
    /// Definitions only.
    pub schema_only: bool,
    /// Tables whose rows are not copied, as pg_dump's patterns.
    pub exclude_table_data: Vec<String>,
    /// Whether owners and rights come along.
    pub owner: bool,
    /// Where PostgreSQL's programs are.
    pub bin_dir: Option<PathBuf>,
}

/// What a copy will do, found out before.
#[derive(Debug)]
pub struct CopyPlan {
    request: CopyRequest,
    /// The source, as it is.
    pub source: TargetFacts,
    /// The target, if there is one.
    pub target: Option<TargetFacts>,
    source_version: ServerVersion,
}

/// What was copied.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyOutcome {
    /// Rows of every table.
    pub counts: Vec<CountRow>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Looks at both servers. Changes nothing.
///
/// # Errors
/// When one cannot be reached, or the copy cannot be made.
pub async fn plan(request: CopyRequest) -> Result<CopyPlan, RestoreError> {
    let from = Connection::open_secured(&request.from).await?;
    let source_version = from.server_version();
    let source = counts::look(&from).await?;
    for mask in &request.masks {
        check_mask(&from, mask).await?;
    }
    let administration = fresh::administration(&request.to, &request.to.database).await?;
    let server = administration.server_version();
    if server.major() < source_version.major() {
        return Err(RestoreError::Refused {
            what: request.from.describe(),
            why: format!("it is on PostgreSQL {source_version}, and the target server is {server}"),
            hint: format!(
                "copy into a server of version {} or newer",
                source_version.major()
            ),
        });
    }
    if !server.is_supported() {
        return Err(RestoreError::Refused {
            what: request.to.describe(),
            why: format!("its server has version {server}, which this pgmahout does not write to"),
            hint: "use a newer pgmahout".to_owned(),
        });
    }
    let name = &request.to.database;
    let target = if fresh::exists(&administration, name).await? {
        let connection = Connection::open_secured(&request.to).await?;
        let facts = counts::look(&connection).await?;
        connection.close().await;
        Some(facts)
    } else {
        None
    };
    if let Some(target) = &target {
        if target.instance == source.instance && request.from.database == *name {
            return Err(RestoreError::Refused {
                what: request.from.describe(),
                why: "source and target are the same database".to_owned(),
                hint: "name another database in --to".to_owned(),
            });
        }
        if !request.replace {
            return Err(RestoreError::Refused {
                what: request.from.describe(),
                why: format!("the target database \"{name}\" exists already"),
                hint: "choose another name in --to, or replace it with --clean".to_owned(),
            });
        }
        if let Some(bound) = target.bound.first() {
            return Err(RestoreError::Refused {
                what: request.from.describe(),
                why: format!("the target \"{name}\" cannot be replaced while {bound} belongs to it"),
                hint: "drop it first, and make it again afterwards, or choose another name in --to"
                    .to_owned(),
            });
        }
        if name.starts_with("template") {
            return Err(RestoreError::Refused {
                what: request.from.describe(),
                why: format!("\"{name}\" is a template of new databases"),
                hint: "choose another name in --to".to_owned(),
            });
        }
    }
    from.close().await;
    Ok(CopyPlan {
        request,
        source,
        target,
        source_version,
    })
}

async fn check_mask(from: &Connection, mask: &Mask) -> Result<(), RestoreError> {
    let found = from
        .query_opt(
            "SELECT a.attgenerated::text FROM pg_catalog.pg_attribute AS a \
             JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid \
             JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = $2 AND a.attname = $3 AND a.attnum > 0 AND NOT a.attisdropped",
            &[&mask.table.schema, &mask.table.name, &mask.column],
        )
        .await
        .map_err(|error| RestoreError::sql("look for the columns to mask", error))?;
    let what = format!("the mask of {}.{}", mask.table, mask.column);
    match found {
        None => Err(RestoreError::Usage {
            what: format!("{what} names no column of the source"),
            hint: "write [SCHEMA.]TABLE.COLUMN=EXPRESSION; names in upper case stand in double quotes"
                .to_owned(),
        }),
        Some(row) if !row.get::<_, String>(0).is_empty() => Err(RestoreError::Usage {
            what: format!("{what} is of a generated column"),
            hint: "mask the columns that it is generated from".to_owned(),
        }),
        Some(_) => Ok(()),
    }
}

/// Copies.
///
/// # Errors
/// When anything fails; the target is then as it was.
pub async fn run(
    plan: &CopyPlan,
    reporter: &dyn Reporter,
    cancellation: &CancellationToken,
) -> Result<CopyOutcome, RestoreError> {
    let started = Instant::now();
    let request = &plan.request;
    let administration = fresh::administration(&request.to, &request.to.database).await?;
    let tools = Tools::find(
        "psql",
        administration.server_version().major(),
        request.bin_dir.as_deref(),
    )?;
    let properties = properties(request, &administration).await?;
    let temporary = fresh::temporary_name()?;
    let note = format!(
        "pgmahout: an unfinished copy of {}; drop it when no copy is running",
        request.from.database
    );
    create(
        &administration,
        &temporary,
        &properties,
        &plan.source.encoding,
        &note,
    )
    .await?;
    let filled = fill(plan, tools, &temporary, reporter, cancellation).await;
    let published = match filled {
        Ok(counts) => fresh::publish(
            &request.to,
            &temporary,
            &request.to.database,
            &fresh::replaced_name()?,
            &properties,
        )
        .await
        .map(|_| counts),
        Err(error) => Err(error),
    };
    match published {
        Ok(counts) => Ok(CopyOutcome {
            counts,
            seconds: started.elapsed().as_secs_f64(),
        }),
        Err(error) => {
            if let Err(left) = fresh::drop_database(&administration, &temporary).await {
                reporter.message(
                    Level::Warning,
                    &format!("the unfinished database {temporary} is left behind ({left}); it holds unmasked rows at most in dead space; drop it: dropdb {temporary}"),
                );
            }
            Err(error)
        }
    }
}

async fn properties(request: &CopyRequest, administration: &Connection) -> Result<Properties, RestoreError> {
    if fresh::exists(administration, &request.to.database).await? {
        return Properties::of(administration, &request.to.database).await;
    }
    let source = fresh::administration(&request.from, &request.from.database).await?;
    let of_source = Properties::of(&source, &request.from.database).await?;
    Ok(of_source.only_locale())
}

async fn create(
    administration: &Connection,
    temporary: &str,
    properties: &Properties,
    encoding: &str,
    note: &str,
) -> Result<(), RestoreError> {
    match fresh::create(administration, temporary, properties, note).await {
        Ok(()) => Ok(()),
        // A locale that the other system lacks.
        Err(error) => fresh::create(
            administration,
            temporary,
            &Properties::with_encoding(Some(encoding)),
            note,
        )
        .await
        .map_err(|_| error),
    }
}

async fn fill(
    plan: &CopyPlan,
    tools: Tools,
    temporary: &str,
    reporter: &dyn Reporter,
    cancellation: &CancellationToken,
) -> Result<Vec<CountRow>, RestoreError> {
    let request = &plan.request;
    let counter = Arc::new(AtomicU64::new(0));
    let progress = reporter.start(Task::new(
        format!("copying {}", request.from.database),
        Unit::Bytes,
        None,
    ));
    let database = request.to.with_database(temporary);
    let mut source = Source::start(plan, Arc::clone(&counter))?;
    let load = Load {
        tools,
        target: database.clone(),
        what: request.from.describe(),
        selection: Selection {
            one_transaction: true,
            no_owner: !request.owner,
            no_acl: !request.owner,
            after_rows: statements(&request.masks),
            ..Selection::default()
        },
        before: None,
        expected: None,
        add_present: false,
        one_transaction: true,
        cancellation: cancellation.clone(),
    };
    let work = tokio::task::spawn_blocking(move || psql::load(&load, &mut source));
    let loaded = watch(work, &counter, progress.as_ref()).await?;
    progress.finish("");
    let connection = Connection::open(&database).await?;
    let mut tables: Vec<&TableName> = request.masks.iter().map(|mask| &mask.table).collect();
    tables.sort();
    tables.dedup();
    for table in tables {
        connection
            .batch_execute(&format!("VACUUM (FULL) {}", table.to_sql()))
            .await
            .map_err(|error| RestoreError::sql(format!("rewrite the masked table {table}"), error))?;
    }
    connection.close().await;
    engine::analyze(&database).await?;
    Ok(loaded.counts)
}

/// A running pg_dump. Its end is an end only when it ended well.
struct Source {
    child: Child,
    stdout: ChildStdout,
    stderr: Option<JoinHandle<Vec<String>>>,
    counter: Arc<AtomicU64>,
    ended: bool,
}

impl Source {
    fn start(plan: &CopyPlan, counter: Arc<AtomicU64>) -> Result<Self, RestoreError> {
        use std::os::unix::process::CommandExt as _;
        let request = &plan.request;
        let tools = Tools::find("pg_dump", plan.source_version.major(), request.bin_dir.as_deref())?;
        let mut command = Command::new(tools.program("pg_dump"));
        command.args(["--format=plain", "--no-password"]);
        if !request.owner {
            command.args(["--no-owner", "--no-acl"]);
        }
        if request.schema_only {
            command.arg("--schema-only");
        }
        for pattern in &request.exclude_table_data {
            command.arg(format!("--exclude-table-data={pattern}"));
        }
        for (name, value) in request
            .from
            .with_application_name("pgmahout dump copy")
            .client_environment()
        {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("LC_ALL", "C").process_group(0);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| RestoreError::Io {
            doing: "run",
            what: "pg_dump".to_owned(),
            source,
        })?;
        let stdout = child.stdout.take().expect("it was piped");
        let stderr = child.stderr.take().expect("it was piped");
        let stderr = std::thread::spawn(move || last_lines(stderr));
        Ok(Self {
            child,
            stdout,
            stderr: Some(stderr),
            counter,
            ended: false,
        })
    }
}

impl SqlSource for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        let count = self.stdout.read(buffer)?;
        self.counter.fetch_add(count as u64, Ordering::Relaxed);
        if count == 0 {
            let status = self.child.wait()?;
            let stderr = self
                .stderr
                .take()
                .and_then(|thread| thread.join().ok())
                .unwrap_or_default();
            if !status.success() {
                let hint = hints::for_lines(&stderr, None);
                return Err(io::Error::other(RestoreError::ProgramFailed {
                    program: "pg_dump",
                    target: None,
                    stderr,
                    hint: hint.or_else(|| {
                        Some("everything was rolled back and the target is as it was".to_owned())
                    }),
                }));
            }
            self.ended = true;
        }
        Ok(count)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // Harmless for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_with_and_without_schema_and_quotes() {
        let mask = Mask::parse("customers.Email='c' || id || '@example.org'").unwrap();
        assert_eq!(mask.table, TableName::new("public", "customers"));
        assert_eq!(
            (mask.column.as_str(), mask.expression.as_str()),
            ("email", "'c' || id || '@example.org'")
        );
        let mask = Mask::parse("\"Odd.S\".\"T \"\"x\"\"\".\"C=d\"=NULL").unwrap();
        assert_eq!(mask.table, TableName::new("Odd.S", "T \"x\""));
        assert_eq!((mask.column.as_str(), mask.expression.as_str()), ("C=d", "NULL"));
        for text in [
            "a=1",
            "a.b",
            "a.b=",
            ".b=1",
            "a.b.c.d=1",
            "a.b=1); DROP TABLE x; --",
            "a.b='",
            "a.b=\\! rm",
            "\"a.b=1",
        ] {
            assert!(Mask::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn columns_of_one_table_are_masked_in_one_statement() {
        let masks = [
            Mask::parse("t.a=1").unwrap(),
            Mask::parse("s.u.b=2").unwrap(),
            Mask::parse("t.c=a").unwrap(),
        ];
        let statements = statements(&masks);
        assert_eq!(statements.len(), 2);
        assert!(
            statements[0].contains("UPDATE \"public\".\"t\" SET \"a\" = (1), \"c\" = (a);"),
            "{statements:?}"
        );
    }
}
