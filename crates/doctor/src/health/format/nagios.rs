//! One line and an exit status, as Nagios and its kin want them (Monitoring Plugins Development Guidelines,
//! "Plugin Output for Nagios" and "Performance data").

use std::fmt::Write as _;

use crate::health::limits::{Direction, Thresholds};
use crate::health::measure::{Measure, Unit};
use crate::health::report::HealthReport;
use crate::health::status::Status;

/// The line, without a newline. What is not OK comes first; after a `|` comes every measured value.
pub fn line(report: &HealthReport) -> String {
    let several = report.targets.len() > 1;
    let counts = &report.counts;
    let mut parts = Vec::new();
    for (count, word) in [
        (counts.crit, "critical"),
        (counts.warn, "warning"),
        (counts.unknown, "unknown"),
        (counts.ok, "ok"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {word}"));
        }
    }
    if parts.is_empty() {
        parts.push("nothing was checked".to_owned());
    }
    let mut text = format!("PGMAHOUT {} - {}", word(status(report)), parts.join(", "));
    for result in report.troubles() {
        let place = if several {
            format!("{} ", result.target)
        } else {
            String::new()
        };
        let _ = write!(
            text,
            "; {place}{} {}: {}",
            result.id, result.status, result.evidence
        );
    }
    let text = clean(&text);
    let performance = performance(report, several);
    if performance.is_empty() {
        text
    } else {
        format!("{text} | {performance}")
    }
}

/// The status to exit with: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. A run in which nothing is worse than
/// UNKNOWN says UNKNOWN, so that a lost privilege is not taken for a finding.
pub fn exit_status(report: &HealthReport) -> u8 {
    status(report).code()
}

fn status(report: &HealthReport) -> Status {
    report.results.iter().fold(
        if report.results.is_empty() {
            Status::Unknown
        } else {
            Status::Ok
        },
        |worst, result| worst.worst(result.status),
    )
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "OK",
        Status::Warn => "WARNING",
        Status::Crit => "CRITICAL",
        Status::Unknown => "UNKNOWN",
    }
}

/// A `|` would begin the performance data, a newline the long output.
fn clean(text: &str) -> String {
    text.replace('|', "/")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn performance(report: &HealthReport, several: bool) -> String {
    let mut items = Vec::new();
    for result in &report.results {
        let label = |name: &str| {
            if several {
                format!("{} {name}", result.target)
            } else {
                name.to_owned()
            }
        };
        if let Some(measure) = result.measure {
            items.push(item(&label(&result.id), measure, result.thresholds));
        }
        for figure in &result.figures {
            items.push(item(&label(&figure.name), figure.measure, figure.thresholds));
        }
    }
    items.join(" ")
}

/// `'label'=value[unit];[warn];[crit];[min];[max]`. Shares are given in percent, the rest in base units.
fn item(label: &str, measure: Measure, thresholds: Option<Thresholds>) -> String {
    let (factor, unit) = match measure.unit {
        Unit::Ratio => (100.0, "%"),
        Unit::Bytes => (1.0, "B"),
        Unit::Seconds => (1.0, "s"),
        Unit::Count | Unit::Transactions | Unit::PerHour | Unit::PerMinute | Unit::Factor => (1.0, ""),
    };
    let number = |value: f64| {
        let text = format!("{:.6}", value * factor);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    // A range "10:" alerts below 10, a plain "10" above it (or below zero).
    let range = |limit: Option<f64>, direction: Direction| {
        limit.map_or_else(String::new, |limit| match direction {
            Direction::Above => number(limit),
            Direction::Below => format!("{}:", number(limit)),
        })
    };
    let (warn, crit) = thresholds.map_or_else(
        || (String::new(), String::new()),
        |thresholds| {
            (
                range(thresholds.warn, thresholds.direction),
                range(thresholds.crit, thresholds.direction),
            )
        },
    );
    let label = label.replace(['\'', '='], "_");
    let max = if measure.unit == Unit::Ratio { "100" } else { "" };
    // The maximum of a share is only true of shares of one whole.
    let max = if measure.value > 1.0 { "" } else { max };
    format!("'{label}'={}{unit};{warn};{crit};0;{max}", number(measure.value))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::health::result::{CheckResult, Finding};

    fn report(results: Vec<CheckResult>) -> HealthReport {
        HealthReport::new(
            jiff::Timestamp::UNIX_EPOCH,
            Duration::from_millis(120),
            vec!["db1:5432".to_owned()],
            results,
            Vec::new(),
            Vec::new(),
        )
    }

    fn result(id: &str, finding: Finding) -> CheckResult {
        CheckResult::new(id, "db1:5432", finding, Duration::from_millis(1))
    }

    #[test]
    fn the_line_says_what_is_wrong_and_measures_everything() {
        let limit = Thresholds {
            warn: Some(0.8),
            crit: Some(0.9),
            direction: Direction::Above,
        };
        let below = Thresholds {
            warn: Some(0.95),
            crit: None,
            direction: Direction::Below,
        };
        let report = report(vec![
            result(
                "connections.used",
                Finding::judged(Measure::ratio(0.85), Some(limit), "85 | of\n100"),
            ),
            result(
                "cache.hit_ratio",
                Finding::judged(Measure::ratio(0.99), Some(below), "fine"),
            ),
            result("wal.archiving", Finding::crit("fails")),
        ]);
        assert_eq!(
            line(&report),
            "PGMAHOUT CRITICAL - 1 critical, 1 warning, 1 ok; wal.archiving CRIT: fails; connections.used WARN: 85 / of \
             100 | 'connections.used'=85%;80;90;0;100 'cache.hit_ratio'=99%;95:;;0;100"
        );
        assert_eq!(exit_status(&report), 2);
    }

    #[test]
    fn only_unknowns_are_unknown_and_no_check_at_all_too() {
        let unknown = report(vec![
            result("a.a", Finding::ok("fine")),
            result("b.b", Finding::unknown("hidden", None)),
        ]);
        assert_eq!(exit_status(&unknown), 3);
        assert_eq!(exit_status(&report(Vec::new())), 3);
        assert_eq!(exit_status(&report(vec![result("a.a", Finding::ok("fine"))])), 0);
    }
}
