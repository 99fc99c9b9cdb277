//! What a check answers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::Thresholds;
use super::measure::Measure;
use super::status::Status;

/// The rows behind a finding: at most [`Rows::MOST`] of them are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rows {
    /// Column titles, lower case.
    pub columns: Vec<String>,
    /// One text for each column.
    pub rows: Vec<Vec<String>>,
    /// How many there are in all, of which `rows` may be the first few.
    pub total: usize,
}

impl Rows {
    /// How many rows a result carries at most.
    pub const MOST: usize = 20;

    /// An empty table of these columns.
    pub fn new<const N: usize>(columns: [&str; N]) -> Self {
        Self {
            columns: columns.map(str::to_owned).to_vec(),
            rows: Vec::new(),
            total: 0,
        }
    }

    /// Adds a row; beyond [`Rows::MOST`] it is only counted.
    pub fn push<const N: usize>(&mut self, row: [String; N]) {
        debug_assert_eq!(N, self.columns.len(), "a row has one text for each column");
        self.total += 1;
        if self.rows.len() < Self::MOST {
            self.rows.push(row.into());
        }
    }

    /// The same table with all of these rows.
    pub fn with<const N: usize>(mut self, rows: impl IntoIterator<Item = [String; N]>) -> Self {
        for row in rows {
            self.push(row);
        }
        self
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }
}

/// What could not be seen, and what would show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unseen {
    /// What is hidden, in one sentence.
    pub what: String,
    /// The exact statement (or command) that would show it, where there is one.
    pub grant: Option<String>,
}

/// A further value that a check measured, beside its main one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The limit's id where it is judged by one, otherwise the check's id with a word added.
    pub name: String,
    /// The value.
    pub measure: Measure,
    /// What it was judged by.
    pub thresholds: Option<Thresholds>,
}

/// What a check found, before the runner adds whose check it was.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// How it stands.
    pub status: Status,
    /// The main value.
    pub measure: Option<Measure>,
    /// What the main value was judged by.
    pub thresholds: Option<Thresholds>,
    /// Further values.
    pub figures: Vec<Figure>,
    /// One line.
    pub evidence: String,
    /// The rows behind it.
    pub rows: Option<Rows>,
    /// What to do, with the command.
    pub hint: Option<String>,
    /// For UNKNOWN.
    pub unseen: Option<Unseen>,
    /// Replaces the check's own id, for a check that answers for several things.
    pub id: Option<String>,
}

impl Finding {
    /// A finding of this status, with its line of evidence.
    pub fn new(status: Status, evidence: impl Into<String>) -> Self {
        Self {
            status,
            measure: None,
            thresholds: None,
            figures: Vec::new(),
            evidence: evidence.into(),
            rows: None,
            hint: None,
            unseen: None,
            id: None,
        }
    }

    /// All is well.
    pub fn ok(evidence: impl Into<String>) -> Self {
        Self::new(Status::Ok, evidence)
    }

    /// It needs a look.
    pub fn warn(evidence: impl Into<String>) -> Self {
        Self::new(Status::Warn, evidence)
    }

    /// It is broken.
    pub fn crit(evidence: impl Into<String>) -> Self {
        Self::new(Status::Crit, evidence)
    }

    /// It was not seen. `grant` is the exact statement that would show it.
    pub fn unknown(what: impl Into<String>, grant: Option<String>) -> Self {
        let what = what.into();
        Self {
            unseen: Some(Unseen {
                what: what.clone(),
                grant,
            }),
            ..Self::new(Status::Unknown, what)
        }
    }

    /// A finding whose status is what the thresholds say of the value.
    pub fn judged(measure: Measure, thresholds: Option<Thresholds>, evidence: impl Into<String>) -> Self {
        let status = thresholds.map_or(Status::Ok, |thresholds| thresholds.judge(measure.value));
        Self {
            measure: Some(measure),
            thresholds,
            ..Self::new(status, evidence)
        }
    }

    /// Makes it at least as bad as this.
    pub fn at_least(mut self, status: Status) -> Self {
        self.status = self.status.worst(status);
        self
    }

    /// Adds the main value without judging it.
    pub fn measured(mut self, measure: Measure) -> Self {
        self.measure = Some(measure);
        self
    }

    /// Adds a further value, and makes the finding at least as bad as its thresholds say.
    pub fn figure(
        mut self,
        name: impl Into<String>,
        measure: Measure,
        thresholds: Option<Thresholds>,
    ) -> Self {
        if let Some(thresholds) = thresholds {
            self.status = self.status.worst(thresholds.judge(measure.value));
        }
        self.figures.push(Figure {
            name: name.into(),
            measure,
            thresholds,
        });
        self
    }

    /// Adds the rows behind it; an empty table is left out.
    pub fn rows(mut self, rows: Rows) -> Self {
        self.rows = (!rows.is_empty()).then_some(rows);
        self
    }

    /// Adds what to do. Kept only where the finding is not OK.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Answers under an id of its own, for example `custom.outbox`.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }
}

/// One answer, complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Which check.
    pub id: String,
    /// Which server.
    pub target: String,
    /// How it stands.
    pub status: Status,
    /// The main value.
    pub measure: Option<Measure>,
    /// What the main value was judged by.
    pub thresholds: Option<Thresholds>,
    /// Further values.
    pub figures: Vec<Figure>,
    /// One line.
    pub evidence: String,
    /// The rows behind it.
    pub rows: Option<Rows>,
    /// What to do; on anything that is not OK.
    pub hint: Option<String>,
    /// What could not be seen; on UNKNOWN.
    pub unseen: Option<Unseen>,
    /// How long the check took, in milliseconds.
    pub duration_ms: f64,
}

impl CheckResult {
    /// The finding of the check `id` on `target`.
    pub fn new(id: &str, target: &str, finding: Finding, duration: Duration) -> Self {
        let grant = finding.unseen.as_ref().and_then(|unseen| unseen.grant.clone());
        let hint = match finding.status {
            Status::Ok => None,
            _ => finding.hint.or(grant),
        };
        Self {
            id: finding.id.unwrap_or_else(|| id.to_owned()),
            target: target.to_owned(),
            status: finding.status,
            measure: finding.measure,
            thresholds: finding.thresholds,
            figures: finding.figures,
            // One line is promised, and servers' messages have several.
            evidence: finding.evidence.split_whitespace().collect::<Vec<_>>().join(" "),
            rows: finding.rows,
            hint,
            unseen: finding.unseen,
            duration_ms: (duration.as_secs_f64() * 1e6).round() / 1e3,
        }
    }
}

/// A check that has nothing to say about a target, or that could not look at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Which check.
    pub id: String,
    /// Which server.
    pub target: String,
    /// Why it does not apply, or was not looked at.
    pub reason: String,
}

impl Skipped {
    /// The reason of the checks that need a session where there is none.
    pub const NOT_LOOKED_AT: &str = "not looked at: no session on the server; see server.reachable";

    /// Whether it might well apply and could not be looked at.
    pub fn was_not_looked_at(&self) -> bool {
        self.reason == Self::NOT_LOOKED_AT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_twenty_rows_are_kept_and_all_are_counted() {
        let rows = Rows::new(["n"]).with((0..50).map(|n| [n.to_string()]));
        assert_eq!((rows.rows.len(), rows.total), (20, 50));
    }

    #[test]
    fn evidence_is_one_line_and_a_good_result_has_no_hint() {
        let result = CheckResult::new("a.b", "s", Finding::ok("one\n  two").hint("do"), Duration::ZERO);
        assert_eq!((result.evidence.as_str(), result.hint), ("one two", None));
    }

    #[test]
    fn what_could_not_be_seen_carries_the_grant_as_its_hint() {
        let finding = Finding::unknown("hidden", Some("GRANT x TO y".to_owned()));
        let result = CheckResult::new("a.b", "s", finding, Duration::ZERO);
        assert_eq!(result.hint.as_deref(), Some("GRANT x TO y"));
    }
}
