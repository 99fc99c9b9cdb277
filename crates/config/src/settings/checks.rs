//! Section `checks`: thresholds of the built-in health checks, what they need to know, and checks of the
//! user's own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::Located;
use crate::node::{Content, Node};
use crate::problem::{Origin, Problem};
use crate::quantity;
use crate::scalar;
use crate::secret::SecretReference;
use crate::section::{Problems, Section};

/// Section `checks`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Checks {
    /// Thresholds by check, as written: the check knows its unit.
    pub thresholds: BTreeMap<String, Located<Threshold>>,
    /// Checks that are switched off; globs are allowed.
    pub disabled: Vec<Located<String>>,
    /// The user's own checks.
    pub custom: Vec<CustomCheck>,
    /// Containers, or Compose or Swarm services, that should run.
    pub containers: Vec<String>,
    /// How many standbys should stream.
    pub expected_standbys: Option<u32>,
    /// Which role this server should have: `primary` or `standby`.
    pub expected_role: Option<&'static str>,
    /// PgBouncer's admin console, as a connection string.
    pub pgbouncer: Option<SecretReference>,
    /// The server's log file, where it cannot be found out.
    pub log_file: Option<PathBuf>,
    /// The certificate that the server serves, where it cannot be asked.
    pub certificate: Option<PathBuf>,
}

/// The thresholds of one check, as written. A side that is left out keeps its default; an empty one is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Threshold {
    /// From here on WARN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warn: Option<String>,
    /// From here on CRIT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crit: Option<String>,
}

/// What the value of a custom check counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueUnit {
    /// Things.
    #[default]
    Count,
    /// Bytes; thresholds are sizes.
    Bytes,
    /// Seconds; thresholds are durations.
    Seconds,
    /// A share of 1; thresholds are percentages.
    Ratio,
}

/// A check of the user's own; its id is `custom.` and its name.
#[derive(Debug, Clone, PartialEq)]
pub struct CustomCheck {
    /// Its name.
    pub name: String,
    /// What it does.
    pub probe: Probe,
    /// What its value counts.
    pub unit: ValueUnit,
    /// From here on WARN, in the unit's base.
    pub warn: Option<f64>,
    /// From here on CRIT.
    pub crit: Option<f64>,
    /// Whether values below the thresholds are the bad ones (`warn_below`, `crit_below`).
    pub below: bool,
    /// How long it may take; the health run's own limit by default.
    pub timeout: Option<Duration>,
    /// What to do when it is not OK.
    pub hint: Option<String>,
}

/// What a custom check does.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Probe {
    /// Runs a query that returns one value.
    Sql {
        /// In which database; that of the connection by default.
        database: Option<String>,
        /// The query.
        #[serde(rename = "sql")]
        query: String,
        /// A query whose rows are shown as evidence.
        rows: Option<String>,
    },
    /// Looks whether tables exist. Its value is how many are missing.
    Tables {
        /// In which database.
        database: Option<String>,
        /// The tables, with their schemas.
        #[serde(rename = "tables")]
        names: Vec<String>,
        /// Whether an empty one counts as missing.
        not_empty: bool,
    },
    /// Fetches a page. Its value is how long that took.
    Http {
        /// The page.
        #[serde(rename = "http")]
        url: String,
        /// The status that is expected; any 2xx by default.
        status: Option<u16>,
        /// What the page must contain.
        contains: Option<String>,
    },
    /// Connects. Its value is how long that took.
    Tcp {
        /// `host:port`.
        #[serde(rename = "tcp")]
        address: String,
    },
    /// Runs a program without a shell. Status 0 is OK; 1 WARN, 2 CRIT, 3 UNKNOWN, as Nagios has it.
    Command {
        /// The program and its arguments.
        #[serde(rename = "command")]
        words: Vec<String>,
    },
}

/// In the form of the file.
impl Serialize for Checks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (id, threshold) in &self.thresholds {
            map.serialize_entry(id, &threshold.value)?;
        }
        for id in &self.disabled {
            map.serialize_entry(&id.value, &false)?;
        }
        map.serialize_entry("expected_standbys", &self.expected_standbys)?;
        map.serialize_entry("expected_role", &self.expected_role)?;
        map.serialize_entry("pgbouncer", &self.pgbouncer)?;
        map.serialize_entry("log_file", &self.log_file)?;
        map.serialize_entry("certificate", &self.certificate)?;
        map.serialize_entry("containers", &self.containers)?;
        map.serialize_entry("custom", &self.custom)?;
        map.end()
    }
}

/// In the form of the file.
impl Serialize for CustomCheck {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Form<'a> {
            name: &'a str,
            #[serde(flatten)]
            probe: &'a Probe,
            unit: ValueUnit,
            warn: Option<String>,
            crit: Option<String>,
            warn_below: Option<String>,
            crit_below: Option<String>,
            timeout: Option<String>,
            hint: &'a Option<String>,
        }
        let above = |value: Option<f64>| value.filter(|_| !self.below).map(|value| self.unit.text(value));
        let below = |value: Option<f64>| value.filter(|_| self.below).map(|value| self.unit.text(value));
        let form = Form {
            name: &self.name,
            probe: &self.probe,
            unit: self.unit,
            warn: above(self.warn),
            crit: above(self.crit),
            warn_below: below(self.warn),
            crit_below: below(self.crit),
            timeout: self.timeout.map(quantity::duration_text),
            hint: &self.hint,
        };
        form.serialize(serializer)
    }
}

impl ValueUnit {
    /// A threshold as it is written in the file.
    fn text(self, value: f64) -> String {
        match self {
            Self::Count => value.to_string(),
            Self::Bytes => quantity::size_text(value as u64),
            Self::Seconds => quantity::duration_text(Duration::try_from_secs_f64(value).unwrap_or_default()),
            Self::Ratio => format!("{}%", (value * 1e8).round() / 1e6),
        }
    }
}

/// The keys of the section that are no checks.
const KEYS: [&str; 7] = [
    "custom",
    "containers",
    "expected_standbys",
    "expected_role",
    "pgbouncer",
    "log_file",
    "certificate",
];
/// Checks whose names have no dot, so that they could be taken for a mistyped key.
const DOTLESS: [&str; 4] = ["checksums", "deadlocks", "prepared_transactions", "tls"];

pub(crate) fn read(root: &Section<'_>, problems: &Problems) -> Checks {
    let section = root.section("checks");
    let mut checks = Checks {
        custom: section
            .list("custom")
            .into_iter()
            .filter_map(|(path, node)| {
                let check = Section::new(path, Some(node), problems);
                let read = read_custom(&check);
                check.finish();
                read
            })
            .collect(),
        containers: section.texts("containers"),
        expected_standbys: section.integer("expected_standbys", 0..=1000),
        expected_role: section.one_of("expected_role", &[("primary", "primary"), ("standby", "standby")]),
        pgbouncer: section.secret("pgbouncer"),
        log_file: section.path("log_file"),
        certificate: section.path("certificate"),
        ..Checks::default()
    };
    for (at, check) in checks.custom.iter().enumerate() {
        if checks.custom[..at].iter().any(|other| other.name == check.name) {
            section.problem(format!("two custom checks have the name '{}'", check.name));
        }
    }
    for (key, value) in section.entries() {
        let name = key.text().unwrap_or_default();
        if KEYS.contains(&name) {
            continue;
        }
        if !name.contains(['.', '*']) && !DOTLESS.contains(&name) {
            let message = format!("unknown key '{name}' in 'checks'");
            let problem = match key.origin {
                // A variable may be meant for something else, such as an env: reference.
                Origin::Variable(_) => Problem::warning(key.origin.clone(), message),
                Origin::File { .. } => Problem::error(key.origin.clone(), message),
            };
            problems.add(problem.nearest_of(name, KEYS.into_iter().chain(DOTLESS)));
            continue;
        }
        read_check(&mut checks, name, value, problems);
    }
    checks
}

/// `connections.used: false`, `[70%, 85%]`, `[70%]` (WARN alone, as `70%`), `70%,85%` or `{warn: 70%, crit: 85%}`.
fn read_check(checks: &mut Checks, name: &str, value: &Node, problems: &Problems) {
    let wrong = |node: &Node| {
        let message = format!(
            "'checks.{name}' must be false, or thresholds such as [70%, 85%] or {{warn: 70%, crit: 85%}}, not {}",
            node.kind()
        );
        problems.add(Problem::error(node.origin.clone(), message));
    };
    let side = |node: &Node| -> Option<String> {
        if node.is_null() {
            return Some(String::new());
        }
        let text = node.text().map(str::to_owned);
        if text.is_none() {
            wrong(node);
        }
        text
    };
    let threshold = match &value.content {
        _ if value.is_null() => return,
        Content::Scalar { text, plain: true } if scalar::boolean(text) == Some(false) => {
            checks.disabled.push(Located {
                value: name.to_owned(),
                origin: value.origin.clone(),
            });
            return;
        }
        Content::Scalar { text, plain: true } if scalar::boolean(text) == Some(true) => return,
        Content::Scalar { text, .. } => match text.split_once(',') {
            Some((warn, crit)) => Threshold {
                warn: Some(warn.trim().to_owned()),
                crit: Some(crit.trim().to_owned()),
            },
            None => Threshold {
                warn: Some(text.clone()),
                crit: None,
            },
        },
        Content::Sequence(items) => match &items[..] {
            [warn, crit] => Threshold {
                warn: side(warn),
                crit: side(crit),
            },
            [warn] => Threshold {
                warn: side(warn),
                crit: None,
            },
            _ => return wrong(value),
        },
        Content::Mapping(entries) => {
            let mut threshold = Threshold::default();
            for (key, node) in entries {
                match key.text() {
                    Some("warn") => threshold.warn = side(node),
                    Some("crit") => threshold.crit = side(node),
                    other => {
                        let other = other.unwrap_or_default();
                        let message = format!("unknown key '{other}' in 'checks.{name}'");
                        let problem = Problem::error(key.origin.clone(), message);
                        problems.add(problem.nearest_of(other, ["warn", "crit"]));
                    }
                }
            }
            threshold
        }
    };
    checks.thresholds.insert(
        name.to_owned(),
        Located {
            value: threshold,
            origin: value.origin.clone(),
        },
    );
}

fn read_custom(section: &Section<'_>) -> Option<CustomCheck> {
    let name = section.read("name", "a name of small letters, digits, - and _", |text| {
        let fits = !text.is_empty()
            && text.chars().all(|character| {
                character.is_ascii_lowercase() || character.is_ascii_digit() || "-_".contains(character)
            });
        fits.then(|| text.to_owned())
    });
    if section.get("name").is_none() {
        section.missing("name");
    }
    let probe = read_probe(section);
    let unit = section
        .one_of(
            "unit",
            &[
                ("count", ValueUnit::Count),
                ("bytes", ValueUnit::Bytes),
                ("seconds", ValueUnit::Seconds),
                ("ratio", ValueUnit::Ratio),
            ],
        )
        .unwrap_or(match probe {
            Some(Probe::Http { .. } | Probe::Tcp { .. }) => ValueUnit::Seconds,
            _ => ValueUnit::Count,
        });
    let (expected, parse): (&str, fn(&str) -> Option<f64>) = match unit {
        ValueUnit::Count => ("a number", |text| {
            text.parse().ok().filter(|value: &f64| value.is_finite())
        }),
        ValueUnit::Bytes => (quantity::SIZE_EXAMPLE, |text| {
            quantity::size(text).map(|bytes| bytes as f64)
        }),
        ValueUnit::Seconds => (quantity::DURATION_EXAMPLE, |text| {
            quantity::duration(text).map(|time| time.as_secs_f64())
        }),
        ValueUnit::Ratio => ("a percentage such as 80%", quantity::share),
    };
    let above = (
        section.read("warn", expected, parse),
        section.read("crit", expected, parse),
    );
    let under = (
        section.read("warn_below", expected, parse),
        section.read("crit_below", expected, parse),
    );
    let below = under != (None, None);
    if below && above != (None, None) {
        section.problem("give warn and crit, or warn_below and crit_below, not both");
    }
    let (warn, crit) = if below { under } else { above };
    if let (Some(warn), Some(crit)) = (warn, crit)
        && ((below && warn < crit) || (!below && warn > crit))
    {
        section.problem("the warning threshold lies beyond the critical one");
    }
    let timeout = section.duration("timeout");
    let hint = section.text("hint");
    Some(CustomCheck {
        name: name?,
        probe: probe?,
        unit,
        warn,
        crit,
        below,
        timeout,
        hint,
    })
}

/// Exactly one of `sql`, `tables`, `http`, `tcp`, `command`, with the keys that go with it.
fn read_probe(section: &Section<'_>) -> Option<Probe> {
    const KINDS: [&str; 5] = ["sql", "tables", "http", "tcp", "command"];
    let given: Vec<&str> = KINDS
        .into_iter()
        .filter(|kind| section.get(kind).is_some())
        .collect();
    let [kind] = given[..] else {
        section.problem(if given.is_empty() {
            format!("a custom check needs one of {}", KINDS.join(", "))
        } else {
            format!(
                "a custom check has one of {}, not {}",
                KINDS.join(", "),
                given.join(" and ")
            )
        });
        // Asked for, so that they are not unknown keys on top.
        for key in ["database", "rows", "not_empty", "status", "contains"] {
            section.get(key);
        }
        return None;
    };
    Some(match kind {
        "sql" => Probe::Sql {
            database: section.text("database"),
            query: section.text("sql")?,
            rows: section.text("rows"),
        },
        "tables" => Probe::Tables {
            database: section.text("database"),
            names: section.texts("tables"),
            not_empty: section.boolean("not_empty").unwrap_or(false),
        },
        "http" => Probe::Http {
            url: section.read("http", "a URL that begins with https:// or http://", |text| {
                (text.starts_with("https://") || text.starts_with("http://")).then(|| text.to_owned())
            })?,
            status: section
                .integer("status", 100..=599)
                .and_then(|status| u16::try_from(status).ok()),
            contains: section.text("contains"),
        },
        "tcp" => Probe::Tcp {
            address: section.read("tcp", "host:port", |text| {
                let (host, port) = text.rsplit_once(':')?;
                (!host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)).then(|| text.to_owned())
            })?,
        },
        _ => Probe::Command {
            words: read_command(section)?,
        },
    })
}

/// A list of words, or one line that is split as a shell splits words.
fn read_command(section: &Section<'_>) -> Option<Vec<String>> {
    let node = section.get("command")?;
    let words = match &node.content {
        Content::Scalar { text, .. } => crate::secret::split_words(text),
        _ => Some(section.texts("command")),
    };
    let words = words.filter(|words| !words.is_empty());
    if words.is_none() {
        section.wrong("command", node, "a program with its arguments");
    }
    words
}
