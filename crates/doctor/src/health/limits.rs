//! Thresholds: their defaults, and how the configuration and the command line change them.
//!
//! A check declares its [`Limit`]s: the first bears the check's own id, further ones add a word to it
//! (`locks.waiting` in seconds, `locks.waiting.share` in percent). [`Limits`] holds what differs from the
//! defaults.

use std::borrow::Cow;
use std::collections::BTreeMap;

use pgmahout_types::diagnostic::{Diagnose, Outcome};
use serde::{Deserialize, Serialize};

use super::measure::{Measure, MeasureError, Unit};
use super::status::Status;

/// On which side of a threshold trouble lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Values at or above it are bad.
    Above,
    /// Values below it are bad.
    Below,
}

/// The thresholds that a value was judged by, in the value's unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// From here on WARN; none where there is nothing to warn of.
    pub warn: Option<f64>,
    /// From here on CRIT; none where it is never that bad.
    pub crit: Option<f64>,
    /// Which side is bad.
    pub direction: Direction,
}

impl Thresholds {
    /// The status of a value.
    pub fn judge(&self, value: f64) -> Status {
        let beyond = |limit: Option<f64>| {
            limit.is_some_and(|limit| match self.direction {
                Direction::Above => value >= limit,
                Direction::Below => value < limit,
            })
        };
        if beyond(self.crit) {
            Status::Crit
        } else if beyond(self.warn) {
            Status::Warn
        } else {
            Status::Ok
        }
    }

    /// As people read it: `warn 80 %, crit 90 %`.
    pub fn describe(&self, unit: Unit) -> String {
        let one = |name: &str, limit: Option<f64>| {
            limit.map(|limit| {
                let below = if self.direction == Direction::Below {
                    "below "
                } else {
                    ""
                };
                format!("{name} {below}{}", Measure::new(limit, unit))
            })
        };
        [one("warn", self.warn), one("crit", self.crit)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// A threshold that a check has, with its default.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// The check's id, or the check's id with a word added.
    pub id: Cow<'static, str>,
    /// The unit of the value that it judges.
    pub unit: Unit,
    /// The default.
    pub default: Thresholds,
}

impl Limit {
    /// A limit that larger values break.
    pub const fn above(id: &'static str, unit: Unit, warn: Option<f64>, crit: Option<f64>) -> Self {
        Self {
            id: Cow::Borrowed(id),
            unit,
            default: Thresholds {
                warn,
                crit,
                direction: Direction::Above,
            },
        }
    }

    /// A limit that smaller values break.
    pub const fn below(id: &'static str, unit: Unit, warn: Option<f64>, crit: Option<f64>) -> Self {
        Self {
            id: Cow::Borrowed(id),
            unit,
            default: Thresholds {
                warn,
                crit,
                direction: Direction::Below,
            },
        }
    }
}

/// Why thresholds were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// No check of that name has thresholds.
    #[error("there is no threshold named `{id}`")]
    Unknown {
        /// As written.
        id: String,
        /// The one that was probably meant.
        nearest: Option<String>,
    },
    /// Not `id=warn,crit`.
    #[error("`{text}` is not a threshold")]
    Form {
        /// As written.
        text: String,
    },
    /// A value that does not suit the check's unit.
    #[error("cannot set the thresholds of `{id}`")]
    Value {
        /// Which one.
        id: String,
        /// What is wrong with it.
        #[source]
        source: MeasureError,
    },
    /// The warning lies beyond the critical value.
    #[error("the warning threshold of `{id}` lies beyond its critical one")]
    Order {
        /// Which one.
        id: String,
    },
}

impl Diagnose for LimitError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unknown { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            Self::Unknown { nearest: None, .. } => {
                "list the checks and their thresholds with `pgmahout health --list`".to_owned()
            }
            Self::Form { .. } => {
                "write NAME=WARN,CRIT, for example --set connections.used=70%,85%; leave a side empty for none"
                    .to_owned()
            }
            Self::Value { id, .. } => {
                format!("see the unit of `{id}` with `pgmahout health --list`")
            }
            Self::Order { .. } => "give the warning first: --set NAME=WARN,CRIT".to_owned(),
        })
    }

    fn outcome(&self) -> Outcome {
        Outcome::Usage
    }
}

/// The thresholds in force: the defaults of all checks, and what was changed.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    known: BTreeMap<String, Limit>,
    changed: BTreeMap<String, Thresholds>,
}

impl Limits {
    /// The defaults of these limits.
    pub fn new(known: impl IntoIterator<Item = Limit>) -> Self {
        Self {
            known: known
                .into_iter()
                .map(|limit| (limit.id.to_string(), limit))
                .collect(),
            changed: BTreeMap::new(),
        }
    }

    /// All limits, ordered by id.
    pub fn known(&self) -> impl Iterator<Item = &Limit> {
        self.known.values()
    }

    /// The thresholds in force for an id. None where no check declared it.
    pub fn get(&self, id: &str) -> Option<Thresholds> {
        self.changed
            .get(id)
            .copied()
            .or_else(|| self.known.get(id).map(|limit| limit.default))
    }

    /// Changes one, as the command line writes it: `connections.used=70%,85%`. An empty side means none;
    /// without a comma only the warning is changed.
    ///
    /// # Errors
    ///
    /// [`LimitError`]: an unknown id, a value of the wrong kind, a warning beyond the critical value.
    pub fn set(&mut self, assignment: &str) -> Result<(), LimitError> {
        let form = || LimitError::Form {
            text: assignment.to_owned(),
        };
        let (id, values) = assignment.split_once('=').ok_or_else(form)?;
        let (warn, crit) = match values.split_once(',') {
            Some((warn, crit)) => (Some(warn), Some(crit)),
            None => (Some(values), None),
        };
        if warn.is_some_and(|warn| warn.trim().is_empty()) && crit.is_none() {
            return Err(form());
        }
        self.set_values(id.trim(), warn, crit)
    }

    /// Changes one from texts, as a configuration file has them; a side that is not given keeps its
    /// default, one that is empty is none.
    ///
    /// # Errors
    ///
    /// As [`Limits::set`].
    pub fn set_values(&mut self, id: &str, warn: Option<&str>, crit: Option<&str>) -> Result<(), LimitError> {
        let Some(limit) = self.known.get(id) else {
            return Err(LimitError::Unknown {
                id: id.to_owned(),
                nearest: self.nearest(id),
            });
        };
        let current = self.changed.get(id).copied().unwrap_or(limit.default);
        let side = |text: Option<&str>, default: Option<f64>| match text.map(str::trim) {
            None => Ok(default),
            Some("") => Ok(None),
            Some(text) => limit
                .unit
                .parse(text)
                .map(Some)
                .map_err(|source| LimitError::Value {
                    id: id.to_owned(),
                    source,
                }),
        };
        let thresholds = Thresholds {
            warn: side(warn, current.warn)?,
            crit: side(crit, current.crit)?,
            direction: current.direction,
        };
        if let (Some(warn), Some(crit)) = (thresholds.warn, thresholds.crit) {
            let ordered = match thresholds.direction {
                Direction::Above => warn <= crit,
                Direction::Below => warn >= crit,
            };
            if !ordered {
                return Err(LimitError::Order { id: id.to_owned() });
            }
        }
        self.changed.insert(id.to_owned(), thresholds);
        Ok(())
    }

    fn nearest(&self, id: &str) -> Option<String> {
        nearest(id, self.known.keys().map(String::as_str))
    }
}

/// The name nearest to what was written, where one is near.
pub fn nearest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    names
        .into_iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(written, name), name))
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .filter(|(likeness, _)| *likeness >= 0.5)
        .map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits::new([
            Limit::above("connections.used", Unit::Ratio, Some(0.8), Some(0.9)),
            Limit::below("cache.hit_ratio", Unit::Ratio, Some(0.95), Some(0.9)),
            Limit::above("queries.long", Unit::Seconds, Some(300.0), Some(3600.0)),
        ])
    }

    #[test]
    fn a_value_is_judged_on_the_right_side_of_its_thresholds() {
        let limits = limits();
        let used = limits.get("connections.used").unwrap();
        assert_eq!(
            [0.5, 0.8, 0.9].map(|value| used.judge(value)),
            [Status::Ok, Status::Warn, Status::Crit]
        );
        let hits = limits.get("cache.hit_ratio").unwrap();
        assert_eq!(
            [0.99, 0.94, 0.5].map(|value| hits.judge(value)),
            [Status::Ok, Status::Warn, Status::Crit]
        );
        assert_eq!(hits.describe(Unit::Ratio), "warn below 95 %, crit below 90 %");
    }

    #[test]
    fn the_command_line_changes_either_side() {
        let mut limits = limits();
        limits.set("connections.used=70%,85%").unwrap();
        assert_eq!(limits.get("connections.used").unwrap().warn, Some(0.7));
        limits.set("queries.long=1s").unwrap();
        assert_eq!(limits.get("queries.long").unwrap().crit, Some(3600.0));
        limits.set("queries.long=,2h").unwrap();
        assert_eq!(limits.get("queries.long").unwrap().warn, None);
    }

    #[test]
    fn a_misspelt_threshold_is_refused_and_the_nearest_named() {
        let error = limits().set("connection.use=70%,85%").unwrap_err();
        assert_eq!(error.hint().unwrap(), "did you mean `connections.used`?");
        assert_eq!(error.outcome(), Outcome::Usage);
        assert!(
            limits()
                .set("zzz=1")
                .unwrap_err()
                .hint()
                .unwrap()
                .contains("--list")
        );
    }

    #[test]
    fn thresholds_in_the_wrong_order_or_unit_are_refused() {
        let mut limits = limits();
        assert!(matches!(
            limits.set("connections.used=90%,80%"),
            Err(LimitError::Order { .. })
        ));
        assert!(matches!(
            limits.set("cache.hit_ratio=80%,90%"),
            Err(LimitError::Order { .. })
        ));
        assert!(matches!(
            limits.set("queries.long=5"),
            Err(LimitError::Value { .. })
        ));
        assert!(matches!(limits.set("queries.long"), Err(LimitError::Form { .. })));
        assert!(matches!(
            limits.set("queries.long="),
            Err(LimitError::Form { .. })
        ));
    }
}
