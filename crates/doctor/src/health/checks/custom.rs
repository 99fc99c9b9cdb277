//! `custom.NAME`: the user's own checks: a SQL query with thresholds, tables that must exist, a probe over
//! HTTP or TCP, a command.

use std::borrow::Cow;
use std::process::Stdio;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::health::limits::Direction;
use crate::health::{
    Check, Context, Failure, Finding, Limit, Measure, Rows, Status, Thresholds, Unit, Verdict,
};

/// What a custom check does.
#[derive(Debug, Clone)]
pub enum Probe {
    /// Runs a query. The first column of its first row is the value; all rows are shown as evidence.
    Sql {
        /// One SELECT, without parameters.
        query: String,
        /// Where; `None`: the database of the connection.
        database: Option<String>,
        /// A query whose rows are shown as evidence instead.
        rows: Option<String>,
    },
    /// Looks whether tables exist, each `schema.table`.
    Tables {
        /// Their names.
        names: Vec<String>,
        /// Where; `None`: the database of the connection.
        database: Option<String>,
        /// Whether an empty one counts as missing.
        not_empty: bool,
    },
    /// Asks a URL and expects a status; the value is the time that it took.
    Http {
        /// `http://` or `https://`.
        url: String,
        /// The status expected; `None`: any of 2xx.
        status: Option<u16>,
        /// A text that the answer must contain.
        contains: Option<String>,
    },
    /// Opens a TCP connection; the value is the time that it took.
    Tcp {
        /// `host:port`.
        address: String,
    },
    /// Runs a program without a shell. Its exit status counts as a Nagios plugin's, its first line of output
    /// is the evidence.
    Command {
        /// The program and its arguments.
        words: Vec<String>,
    },
}

/// A custom check as the configuration gives it.
#[derive(Debug, Clone)]
pub struct CustomCheck {
    /// Its name; the check's id is `custom.NAME`.
    pub name: String,
    /// What it does.
    pub probe: Probe,
    /// What the value counts.
    pub unit: Unit,
    /// From here on WARN.
    pub warn: Option<f64>,
    /// From here on CRIT.
    pub crit: Option<f64>,
    /// Which side of the thresholds is bad.
    pub direction: Direction,
    /// How long it may take.
    pub timeout: Duration,
    /// What to do when it is not OK.
    pub hint: Option<String>,
}

/// The checks that the configuration asks for.
pub fn checks(customs: Vec<CustomCheck>) -> Vec<Box<dyn Check>> {
    customs
        .into_iter()
        .map(|custom| {
            let id = format!("custom.{}", custom.name);
            let limits = vec![Limit {
                id: Cow::Owned(id.clone()),
                unit: custom.unit,
                default: Thresholds {
                    warn: custom.warn,
                    crit: custom.crit,
                    direction: custom.direction,
                },
            }];
            let title = match &custom.probe {
                Probe::Sql { .. } => "your query".to_owned(),
                Probe::Tables { .. } => "tables that must exist".to_owned(),
                Probe::Http { url, .. } => format!("GET {url}"),
                Probe::Tcp { address } => format!("a connection to {address}"),
                Probe::Command { words } => {
                    format!("the command {}", words.first().map_or("", String::as_str))
                }
            };
            Box::new(Custom {
                id,
                title,
                limits,
                wanted: custom,
            }) as Box<dyn Check>
        })
        .collect()
}

struct Custom {
    id: String,
    title: String,
    limits: Vec<Limit>,
    wanted: CustomCheck,
}

#[async_trait]
impl Check for Custom {
    fn id(&self) -> &str {
        &self.id
    }

    fn title(&self) -> &str {
        &self.title
    }

    fn limits(&self) -> &[Limit] {
        &self.limits
    }

    fn grant(&self) -> &str {
        "GRANT SELECT ON the tables of the query TO {role}"
    }

    fn needs_server(&self) -> bool {
        matches!(self.wanted.probe, Probe::Sql { .. } | Probe::Tables { .. })
    }

    async fn run(&self, context: &Context) -> Result<Verdict, Failure> {
        let thresholds = context.limit(&self.id);
        let work = async {
            match &self.wanted.probe {
                Probe::Sql {
                    query,
                    database,
                    rows,
                } => {
                    self.sql(context, query, database.as_deref(), rows.as_deref(), thresholds)
                        .await
                }
                Probe::Tables {
                    names,
                    database,
                    not_empty,
                } => tables(context, names, database.as_deref(), *not_empty).await,
                Probe::Http {
                    url,
                    status,
                    contains,
                } => Ok(self.http(url, *status, contains.as_deref(), thresholds).await),
                Probe::Tcp { address } => Ok(tcp(address, thresholds).await),
                Probe::Command { words } => Ok(command(words).await),
            }
        };
        let finding = match tokio::time::timeout(self.wanted.timeout, work).await {
            Ok(finding) => finding?,
            Err(_) if self.needs_server() => {
                return Err(Failure::TimedOut {
                    limit: self.wanted.timeout,
                });
            }
            Err(_) => Finding::crit(format!(
                "no answer within {}",
                Measure::seconds(self.wanted.timeout.as_secs_f64())
            )),
        };
        Ok(match &self.wanted.hint {
            Some(hint) => finding.hint(hint.clone()),
            None if finding.hint.is_none() => finding.hint(format!(
                "see {} in the configuration's checks.custom",
                self.wanted.name
            )),
            None => finding,
        }
        .into())
    }
}

impl Custom {
    async fn sql(
        &self,
        context: &Context,
        query: &str,
        database: Option<&str>,
        rows: Option<&str>,
        thresholds: Option<Thresholds>,
    ) -> Result<Finding, Failure> {
        let query = bare(query);
        let answer: Vec<Map<String, Value>> = context
            .sessions()
            .lease(database)
            .await?
            .rows_as_user(query)
            .await?;
        let value = answer.first().and_then(|row| row.values().next());
        let Some(value) = value else {
            return Ok(Finding::unknown("the query gave no row", None));
        };
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.parse().ok(),
            Value::Bool(truth) => Some(f64::from(u8::from(*truth))),
            _ => None,
        };
        let Some(number) = number else {
            return Ok(Finding::unknown(
                format!("the query's first value is no number: {value}"),
                None,
            ));
        };
        let measure = Measure::new(number, self.wanted.unit);
        let columns: Vec<String> = answer[0].keys().cloned().collect();
        let evidence = format!("{} = {measure}", columns.first().map_or("value", String::as_str));
        let finding = Finding::judged(measure, thresholds, evidence);
        let answer = match rows {
            Some(rows) => {
                context
                    .sessions()
                    .lease(database)
                    .await?
                    .rows_as_user(bare(rows))
                    .await?
            }
            None if answer.len() > 1 || columns.len() > 1 => answer,
            None => return Ok(finding),
        };
        Ok(finding.rows(table(&answer)))
    }

    async fn http(
        &self,
        url: &str,
        status: Option<u16>,
        contains: Option<&str>,
        thresholds: Option<Thresholds>,
    ) -> Finding {
        let begun = Instant::now();
        let client = match reqwest::Client::builder().user_agent("pgmahout").build() {
            Ok(client) => client,
            Err(error) => return Finding::unknown(format!("no HTTP client: {error}"), None),
        };
        let answer = match client.get(url).send().await {
            Ok(answer) => answer,
            Err(error) => {
                return Finding::crit(format!(
                    "{url} does not answer: {}",
                    crate::health::failure::chain(&error)
                ));
            }
        };
        let got = answer.status().as_u16();
        if status.map_or(!answer.status().is_success(), |status| status != got) {
            let wanted = status.map_or_else(|| "2xx".to_owned(), |status| status.to_string());
            return Finding::crit(format!("{url} answered {got} instead of {wanted}"));
        }
        if let Some(wanted) = contains {
            match answer.text().await {
                Ok(body) if body.contains(wanted) => {}
                Ok(_) => return Finding::crit(format!("the answer of {url} does not contain \"{wanted}\"")),
                Err(error) => return Finding::crit(format!("the answer of {url} broke off: {error}")),
            }
        }
        let elapsed = Measure::seconds(begun.elapsed().as_secs_f64());
        Finding::judged(
            elapsed,
            thresholds,
            format!("{url} answered {got} after {elapsed}"),
        )
    }
}

/// A query as it stands within another one.
fn bare(query: &str) -> &str {
    query.trim().trim_end_matches(';')
}

fn table(answer: &[Map<String, Value>]) -> Rows {
    Rows {
        columns: answer
            .first()
            .map(|row| row.keys().cloned().collect())
            .unwrap_or_default(),
        rows: answer
            .iter()
            .take(Rows::MOST)
            .map(|row| row.values().map(plain_text).collect())
            .collect(),
        total: answer.len(),
    }
}

fn plain_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

async fn tables(
    context: &Context,
    names: &[String],
    database: Option<&str>,
    not_empty: bool,
) -> Result<Finding, Failure> {
    #[derive(Deserialize)]
    struct Table {
        name: String,
        /// As SQL needs it; none where there is no such table.
        quoted: Option<String>,
    }
    #[derive(Deserialize)]
    struct Filled {
        filled: bool,
    }
    let list: Vec<String> = names
        .iter()
        .map(|name| format!("'{}'", name.replace('\'', "''")))
        .collect();
    if list.is_empty() {
        return Ok(Finding::unknown("the configuration names no table", None));
    }
    let mut lease = context.sessions().lease(database).await?;
    let tables: Vec<Table> = lease
        .rows_as_user(&format!(
            "SELECT name, to_regclass(name)::text AS quoted FROM unnest(ARRAY[{}]::text[]) AS name",
            list.join(", ")
        ))
        .await?;
    let mut missing = Vec::new();
    for table in tables {
        match table.quoted {
            None => missing.push(table.name),
            Some(quoted) if not_empty => {
                let answer: Vec<Filled> = lease
                    .rows_as_user(&format!("SELECT EXISTS (SELECT FROM {quoted}) AS filled"))
                    .await?;
                if !answer.first().is_some_and(|answer| answer.filled) {
                    missing.push(format!("{} (empty)", table.name));
                }
            }
            Some(_) => {}
        }
    }
    let count = Measure::count(i64::try_from(missing.len()).unwrap_or(i64::MAX));
    if missing.is_empty() {
        return Ok(Finding::ok(format!("all {} tables exist", names.len())).measured(count));
    }
    Ok(Finding::crit(format!("missing: {}", missing.join(", ")))
        .measured(count)
        .hint("restore them from a dump: pgmahout dump list, then pgmahout dump restore FILE --table NAME"))
}

async fn tcp(address: &str, thresholds: Option<Thresholds>) -> Finding {
    let begun = Instant::now();
    match tokio::net::TcpStream::connect(address).await {
        Ok(_) => {
            let elapsed = Measure::seconds(begun.elapsed().as_secs_f64());
            Finding::judged(elapsed, thresholds, format!("{address} accepts connections"))
        }
        Err(error) => Finding::crit(format!("{address} does not accept connections: {error}")),
    }
}

async fn command(words: &[String]) -> Finding {
    let Some((program, arguments)) = words.split_first() else {
        return Finding::unknown("the configuration names no command", None);
    };
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let output = match output {
        Ok(output) => output,
        Err(error) => return Finding::unknown(format!("cannot run {program}: {error}"), None),
    };
    let text = String::from_utf8_lossy(if output.stdout.is_empty() {
        &output.stderr
    } else {
        &output.stdout
    });
    // What follows the bar is performance data (Monitoring Plugins Development Guidelines).
    let line = text
        .lines()
        .next()
        .unwrap_or_default()
        .split('|')
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned();
    let line = if line.is_empty() {
        format!("{program} ended with {}", output.status)
    } else {
        line
    };
    match output.status.code() {
        Some(0) => Finding::ok(line),
        Some(1) => Finding::warn(line),
        Some(2) => Finding::crit(line),
        _ => Finding::new(Status::Unknown, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_answers_as_a_nagios_plugin_does() {
        for (code, status) in [
            (0, Status::Ok),
            (1, Status::Warn),
            (2, Status::Crit),
            (3, Status::Unknown),
            (99, Status::Unknown),
        ] {
            let words = [
                "sh",
                "-c",
                &format!("echo 'three things | things=3'; exit {code}"),
            ]
            .map(str::to_owned);
            let finding = command(&words).await;
            assert_eq!(
                (finding.status, finding.evidence.as_str()),
                (status, "three things")
            );
        }
        assert_eq!(
            command(&["/nowhere/program".to_owned()]).await.status,
            Status::Unknown
        );
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_on_is_critical() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert_eq!(tcp(&address, None).await.status, Status::Ok);
        drop(listener);
        assert_eq!(tcp(&address, None).await.status, Status::Crit);
    }
}
