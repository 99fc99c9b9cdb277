//! Metrics for the node exporter's textfile collector (Prometheus documentation, "Exposition formats").
//!
//! One metric for each unit, in base units, labelled with target and check; a check that measured nothing
//! has a status and no value.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::health::measure::{Measure, Unit};
use crate::health::report::HealthReport;

/// The whole file.
pub fn metrics(report: &HealthReport) -> String {
    let mut text = String::new();
    let head = |text: &mut String, name: &str, help: &str| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
    };
    let name = "pgmahout_health_status";
    head(
        &mut text,
        name,
        "Status of a check: 0 OK, 1 WARN, 2 CRIT, 3 UNKNOWN.",
    );
    for result in &report.results {
        let _ = writeln!(
            text,
            "{name}{} {}",
            labels(&result.target, &result.id),
            result.status.code()
        );
    }
    let name = "pgmahout_health_check_duration_seconds";
    head(&mut text, name, "How long a check took.");
    for result in &report.results {
        let _ = writeln!(
            text,
            "{name}{} {}",
            labels(&result.target, &result.id),
            result.duration_ms / 1e3
        );
    }
    for (name, (help, values)) in by_unit(report) {
        head(&mut text, &name, help);
        for (labels, value) in values {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }
    let name = "pgmahout_health_skipped";
    head(
        &mut text,
        name,
        "Checks that do not apply to a target, or had no session to look at it.",
    );
    for target in &report.targets {
        let count = report
            .skipped
            .iter()
            .filter(|skipped| skipped.target == *target)
            .count();
        let _ = writeln!(text, "{name}{{target=\"{}\"}} {count}", escape(target));
    }
    let name = "pgmahout_health_last_run_timestamp_seconds";
    head(&mut text, name, "When the checks were last run.");
    let _ = writeln!(text, "{name} {}", report.taken_at.as_second());
    let name = "pgmahout_health_run_duration_seconds";
    head(&mut text, name, "How long the whole run took.");
    let _ = writeln!(text, "{name} {}", report.duration_ms / 1e3);
    text
}

type Values = Vec<(String, f64)>;

fn by_unit(report: &HealthReport) -> BTreeMap<String, (&'static str, Values)> {
    let mut families: BTreeMap<String, (&'static str, Values)> = BTreeMap::new();
    let mut add = |target: &str, check: &str, measure: Measure| {
        let (suffix, help) = family(measure.unit);
        families
            .entry(format!("pgmahout_health_value_{suffix}"))
            .or_insert_with(|| (help, Vec::new()))
            .1
            .push((labels(target, check), measure.value));
    };
    for result in &report.results {
        if let Some(measure) = result.measure {
            add(&result.target, &result.id, measure);
        }
        for figure in &result.figures {
            add(&result.target, &figure.name, figure.measure);
        }
    }
    families
}

fn family(unit: Unit) -> (&'static str, &'static str) {
    match unit {
        Unit::Count => ("count", "Measured numbers of things."),
        Unit::Ratio => ("ratio", "Measured shares; 1 is all."),
        Unit::Bytes => ("bytes", "Measured sizes."),
        Unit::Seconds => ("seconds", "Measured times."),
        Unit::Transactions => ("transactions", "Measured numbers of transaction ids."),
        Unit::PerHour => ("per_hour", "Measured events an hour."),
        Unit::PerMinute => ("per_minute", "Measured events a minute."),
        Unit::Factor => ("factor", "Measured multiples of what is allowed or usual."),
    }
}

fn labels(target: &str, check: &str) -> String {
    format!("{{target=\"{}\",check=\"{}\"}}", escape(target), escape(check))
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::health::result::{CheckResult, Finding};

    #[test]
    fn each_family_has_its_help_once_and_labels_are_escaped() {
        let finding = |value| Finding::ok("fine").measured(Measure::ratio(value));
        let results = vec![
            CheckResult::new(
                "connections.used",
                "a\"b\\c",
                finding(0.5),
                Duration::from_millis(2),
            ),
            CheckResult::new(
                "cache.hit_ratio",
                "a\"b\\c",
                finding(0.25),
                Duration::from_millis(2),
            ),
        ];
        let report = HealthReport::new(
            jiff::Timestamp::UNIX_EPOCH,
            Duration::from_millis(5),
            vec!["a\"b\\c".to_owned()],
            results,
            Vec::new(),
            Vec::new(),
        );
        let text = metrics(&report);
        assert_eq!(
            text.matches("# TYPE pgmahout_health_value_ratio gauge").count(),
            1
        );
        assert!(text.contains(
            "pgmahout_health_value_ratio{target=\"a\\\"b\\\\c\",check=\"connections.used\"} 0.5\n"
        ));
        assert!(
            text.contains("pgmahout_health_status{target=\"a\\\"b\\\\c\",check=\"cache.hit_ratio\"} 0\n")
        );
        assert!(text.ends_with('\n'));
    }
}
