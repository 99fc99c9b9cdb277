//! `log.errors`: what the server wrote into its log since the last run.
//!
//! Follows the file that `pg_current_logfile` names, or the one of the configuration, by offset and inode;
//! plain, CSV and JSON logs alike. FATAL messages about clients (a wrong password, an unknown database) are
//! theirs, and not counted.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::Deserialize;

use super::locality;
use crate::health::{Check, Context, Failure, Finding, Limit, Measure, Rows, Unit, Verdict};

/// How much of a log is read in one run.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// How much of the log's end is searched for a PANIC at the first look.
const FIRST_LOOK: u64 = 256 * 1024;

/// The check, with the log's file where the configuration names it.
pub fn checks(log_file: Option<PathBuf>) -> Vec<Box<dyn Check>> {
    vec![Box::new(LogErrors { file: log_file })]
}

struct LogErrors {
    file: Option<PathBuf>,
}

const LIMITS: &[Limit] = &[Limit::above("log.errors", Unit::PerMinute, Some(10.0), None)];

#[derive(Deserialize)]
struct Current {
    file: Option<String>,
}

/// What was counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    panics: usize,
    fatals: usize,
    errors: usize,
    /// The last few of each, the worst first in the result.
    lines: Vec<(&'static str, String)>,
}

#[async_trait]
impl Check for LogErrors {
    fn id(&self) -> &str {
        "log.errors"
    }

    fn title(&self) -> &str {
        "PANIC, FATAL and ERROR messages in the server's log since the last run"
    }

    fn limits(&self) -> &[Limit] {
        LIMITS
    }

    fn grant(&self) -> &str {
        // pg_monitor may call it only since 16.
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_current_logfile() TO {role}"
    }

    async fn run(&self, context: &Context) -> Result<Verdict, Failure> {
        if !locality::is_local(context)? {
            return Ok(Verdict::not_applicable("the server's log is on another host"));
        }
        let path = match self.find(context).await? {
            Ok(path) => path,
            Err(reason) => return Ok(Verdict::not_applicable(reason)),
        };
        let now = context.facts()?.now;
        let previous = context.previous().and_then(|sample| {
            let value = |name: &str| sample.values.get(name).copied();
            Some((
                value("log.errors inode")?,
                value("log.errors offset")?,
                value("log.errors looked")?,
            ))
        });
        let followed = follow(
            &path,
            previous.map(|(inode, offset, _)| (inode as u64, offset as u64)),
        );
        let (inode, end, text) = match followed {
            Ok(read) => read,
            Err(error) => {
                return Ok(Finding::unknown(
                    format!("cannot read the log {}: {error}", path.display()),
                    None,
                )
                .hint("run as the server's operating system user, a member of group adm, or root")
                .into());
            }
        };
        context.remember(|sample| {
            sample.values.insert("log.errors inode".to_owned(), inode as f64);
            sample.values.insert("log.errors offset".to_owned(), end as f64);
            sample.values.insert("log.errors looked".to_owned(), now);
        });
        let count = count(&text, Form::of(&path));
        Ok(judge(context, &path, &count, previous.map(|(.., taken)| now - taken)).into())
    }
}

impl LogErrors {
    /// The log's file, or why there is none to read.
    async fn find(&self, context: &Context) -> Result<Result<PathBuf, String>, Failure> {
        if let Some(path) = &self.file {
            return Ok(Ok(path.clone()));
        }
        let facts = context.facts()?;
        if facts.is_on("logging_collector") != Some(true) {
            return Ok(Err("the server does not write its log itself; name the file in the configuration's checks.log_file".to_owned()));
        }
        let current: Current = context.row("SELECT pg_current_logfile() AS file").await?;
        let Some(file) = current.file else {
            return Ok(Err("the server has no log file yet".to_owned()));
        };
        Ok(match locality::data_directory(context)? {
            Ok(directory) => Ok(directory.join(file)),
            Err(reason) => Err(reason),
        })
    }
}

fn judge(context: &Context, path: &Path, count: &Count, seconds: Option<f64>) -> Finding {
    // Below a minute a single message would look like a flood.
    let minutes = seconds.map(|seconds| (seconds / 60.0).max(1.0));
    let trouble = (count.panics + count.fatals + count.errors) as f64;
    let mut rows = Rows::new(["severity", "message"]);
    for (severity, line) in &count.lines {
        rows.push([(*severity).to_owned(), line.clone()]);
    }
    let evidence = format!(
        "{} PANIC, {} FATAL, {} ERROR in {} {}",
        count.panics,
        count.fatals,
        count.errors,
        path.display(),
        seconds.map_or_else(
            || "at the first look".to_owned(),
            |seconds| format!("in the last {}", Measure::seconds(seconds.max(0.0)))
        )
    );
    let rate = Measure::new(minutes.map_or(0.0, |minutes| trouble / minutes), Unit::PerMinute);
    let finding = Finding::judged(rate, context.limit("log.errors"), evidence).rows(rows);
    let finding = if count.panics > 0 {
        finding.at_least(crate::health::Status::Crit)
    } else {
        finding
    };
    finding.hint(format!("read it: tail -n 100 {}", path.display()))
}

/// What was added to a file since a known place in it: its inode, its end, the text.
fn follow(path: &Path, known: Option<(u64, u64)>) -> std::io::Result<(u64, u64, String)> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let (inode, length) = (metadata.ino(), metadata.len());
    let start = match known {
        // Another file since: what was added to the old one is lost to us, the new one is read whole.
        Some((old, _)) if old != inode => 0,
        Some((_, offset)) if offset <= length => offset,
        Some(_) => 0,
        None => length.saturating_sub(FIRST_LOOK),
    };
    let start = start.max(length.saturating_sub(MOST_BYTES));
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(length - start).read_to_end(&mut bytes)?;
    Ok((inode, length, String::from_utf8_lossy(&bytes).into_owned()))
}

/// How the log is written (PostgreSQL documentation, "Error Reporting and Logging": `log_destination`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Csv,
    Json,
}

impl Form {
    fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("csv") => Self::Csv,
            Some("json") => Self::Json,
            _ => Self::Plain,
        }
    }

    /// The message of a line of this severity, if it is one.
    fn message<'a>(self, line: &'a str, severity: &str) -> Option<&'a str> {
        let marker = match self {
            Self::Plain => format!("{severity}:  "),
            Self::Csv => format!(",{severity},"),
            Self::Json => format!("\"error_severity\":\"{severity}\""),
        };
        let place = line.find(&marker)?;
        // In the plain form a statement that is quoted in a message may contain the word, but then the
        // line starts with a tab or with another severity before it.
        if self == Self::Plain && (line.starts_with('\t') || line[..place].contains(":  ")) {
            return None;
        }
        Some(&line[place + marker.len()..])
    }
}

/// FATAL messages that are the client's fault, by what they contain.
const CLIENTS: &[&str] = &[
    "authentication failed",
    "no pg_hba.conf entry",
    "does not exist",
    "does not accept connections",
    "terminating connection due to",
    "too many clients",
    "too many connections",
    "remaining connection slots",
    "the database system is",
    "connection to client lost",
    "canceling authentication",
    "unsupported frontend protocol",
    "no PostgreSQL user name",
    "is not permitted to log in",
    "invalid startup packet",
];

fn count(text: &str, form: Form) -> Count {
    let mut count = Count::default();
    for line in text.lines() {
        let found = ["PANIC", "FATAL", "ERROR"]
            .into_iter()
            .find_map(|severity| Some((severity, form.message(line, severity)?)));
        let Some((severity, message)) = found else {
            continue;
        };
        match severity {
            "PANIC" => count.panics += 1,
            "FATAL" if CLIENTS.iter().any(|client| message.contains(client)) => continue,
            "FATAL" => count.fatals += 1,
            _ => count.errors += 1,
        }
        if count.lines.len() == Rows::MOST {
            count.lines.remove(0);
        }
        count.lines.push((severity, message.chars().take(200).collect()));
    }
    count
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn messages_are_counted_in_every_form_and_clients_faults_are_not() {
        let plain = "2026-01-01 [1] ERROR:  relation \"a\" does not exist\n\
                     2026-01-01 [1] STATEMENT:  SELECT 'PANIC:  no'\n\
                     \tFATAL:  continued statement text\n\
                     2026-01-01 [2] FATAL:  password authentication failed for user \"x\"\n\
                     2026-01-01 [3] FATAL:  could not write lock file\n\
                     2026-01-01 [4] PANIC:  could not write to file\n\
                     2026-01-01 [5] LOG:  saw ERROR:  in a message\n";
        let counted = count(plain, Form::Plain);
        assert_eq!(
            (counted.panics, counted.fatals, counted.errors),
            (1, 1, 1),
            "{counted:?}"
        );
        let csv = "2026-01-01,,,1,,x,1,,2026,,0,ERROR,22012,\"division by zero\",,\n";
        assert_eq!(count(csv, Form::Csv).errors, 1);
        let json = "{\"timestamp\":\"2026\",\"error_severity\":\"PANIC\",\"message\":\"m\"}\n";
        assert_eq!(count(json, Form::Json).panics, 1);
    }

    #[test]
    fn only_what_was_added_is_read_and_a_rotated_file_is_read_whole() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"old\n").unwrap();
        let (inode, end, _) = follow(file.path(), None).unwrap();
        file.write_all(b"new\n").unwrap();
        let (_, after, text) = follow(file.path(), Some((inode, end))).unwrap();
        assert_eq!((after, text.as_str()), (8, "new\n"));
        assert_eq!(
            follow(file.path(), Some((inode + 1, end))).unwrap().2,
            "old\nnew\n"
        );
        file.as_file().set_len(2).unwrap();
        assert_eq!(follow(file.path(), Some((inode, end))).unwrap().2, "ol");
    }
}
