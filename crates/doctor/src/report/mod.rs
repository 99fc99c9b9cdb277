//! Reports: a server's state written up for people and for the file.
//!
//! [`gather()`] asks the server, [`history`] remembers the figures of earlier reports, and [`markdown`],
//! [`html`] and serde render the one value. The HTML form is a single file without scripts or links to
//! other hosts.

mod gather;
pub mod history;
pub mod html;
pub mod markdown;

use serde::{Deserialize, Serialize};

pub use gather::{ReportError, gather};

use crate::health::{HealthReport, Unit};

/// How far back a report looks for its trends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The state now, with the last ten reports behind it.
    Health,
    /// The last day.
    Daily,
    /// The last week.
    Weekly,
    /// The last month.
    Monthly,
}

impl Kind {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
        }
    }

    /// How many days its trends cover; `None`: the last ten reports, however old.
    pub fn days(self) -> Option<i64> {
        match self {
            Self::Health => None,
            Self::Daily => Some(1),
            Self::Weekly => Some(7),
            Self::Monthly => Some(31),
        }
    }
}

/// A table of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// What must be known to read it, or why it is empty.
    pub note: Option<String>,
    /// Column titles.
    pub columns: Vec<String>,
    /// One text for each column.
    pub rows: Vec<Vec<String>>,
}

impl Section {
    /// An empty table.
    pub fn new<const N: usize>(title: &str, columns: [&str; N]) -> Self {
        Self {
            title: title.to_owned(),
            note: None,
            columns: columns.map(str::to_owned).to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds what must be known to read it.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

/// A figure's values over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trend {
    /// The check that measured it.
    pub id: String,
    /// What it counts.
    pub unit: Unit,
    /// When and how much, oldest first.
    pub points: Vec<(jiff::Timestamp, f64)>,
}

impl Trend {
    /// From the first to the last value, as people read it: `12 → 15`.
    pub fn change(&self) -> String {
        let show = |point: Option<&(jiff::Timestamp, f64)>| {
            point.map_or_else(String::new, |(_, value)| {
                crate::health::Measure::new(*value, self.unit).to_string()
            })
        };
        let (first, last) = (show(self.points.first()), show(self.points.last()));
        if first == last {
            last
        } else {
            format!("{first} → {last}")
        }
    }
}

/// A report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The form of this object.
    pub schema_version: u32,
    /// What kind.
    pub kind: Kind,
    /// When it was made.
    pub made_at: jiff::Timestamp,
    /// The server, as people name it.
    pub target: String,
    /// PostgreSQL's version.
    pub server_version: String,
    /// `primary` or `standby`.
    pub role: String,
    /// When the server started.
    pub started_at: Option<jiff::Timestamp>,
    /// Every check.
    pub health: HealthReport,
    /// The figures over time, where earlier reports exist.
    pub trends: Vec<Trend>,
    /// Databases, tables, queries, dumps, procedures.
    pub sections: Vec<Section>,
}

impl Report {
    /// The form that this build writes.
    pub const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
