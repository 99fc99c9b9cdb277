//! A health report for people: what is not OK, then a line of counts.

use std::fmt::Write as _;

use pgmahout_doctor::health::measure::human_seconds;
use pgmahout_doctor::health::{CheckResult, HealthReport, Rows, Status};

use crate::printer::{Align, Palette, Printer};

/// Rows that are shown without `--all`.
const FEW: usize = 5;

/// The report: what is not OK, or with `all` everything, then the counts.
pub(crate) fn render(report: &HealthReport, all: bool, printer: &Printer) -> String {
    let palette = printer.palette();
    let several = report.targets.len() > 1;
    let shown: Vec<&CheckResult> = if all {
        report.results.iter().collect()
    } else {
        report.troubles()
    };
    let width = shown
        .iter()
        .map(|result| label(result, several).chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for result in shown {
        one(&mut text, result, several, width, all, printer);
    }
    for (heading, not_looked_at) in [("Not looked at:", true), ("Does not apply:", false)] {
        let mut concerned = report
            .skipped
            .iter()
            .filter(|skipped| skipped.was_not_looked_at() == not_looked_at)
            .peekable();
        if !all || concerned.peek().is_none() {
            continue;
        }
        let _ = writeln!(text, "\n{}", palette.faint(heading));
        for skipped in concerned {
            let place = if several {
                format!("{} ", skipped.target)
            } else {
                String::new()
            };
            // The heading says it already.
            let reason = skipped.reason.trim_start_matches("not looked at: ");
            let _ = writeln!(
                text,
                "  {}",
                palette.faint(&format!("{place}{}: {reason}", skipped.id))
            );
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&counts(report, palette));
    text.push('\n');
    text
}

fn label(result: &CheckResult, several: bool) -> String {
    if several {
        format!("{} {}", result.target, result.id)
    } else {
        result.id.clone()
    }
}

/// The status in its colour, padded to the longest word.
pub(super) fn word(status: Status, palette: &Palette) -> String {
    let padded = format!("{:<7}", status.as_str());
    match status {
        Status::Ok => palette.good(&padded),
        Status::Warn => palette.caution(&padded),
        Status::Crit => palette.bad(&padded),
        Status::Unknown => palette.unknown(&padded),
    }
}

/// One result in one line; without hint and rows.
pub(super) fn headline(result: &CheckResult, several: bool, width: usize, palette: &Palette) -> String {
    let label = format!("{:<width$}", label(result, several));
    format!(
        "{}  {}  {}",
        word(result.status, palette),
        palette.strong(&label),
        result.evidence
    )
}

fn one(text: &mut String, result: &CheckResult, several: bool, width: usize, all: bool, printer: &Printer) {
    let palette = printer.palette();
    let _ = writeln!(text, "{}", headline(result, several, width, palette));
    if let (Some(measure), Some(thresholds)) = (result.measure, result.thresholds)
        && all
    {
        let described = thresholds.describe(measure.unit);
        if !described.is_empty() {
            let _ = writeln!(
                text,
                "{:9}{}",
                "",
                palette.faint(&format!("{measure} ({described})"))
            );
        }
    }
    if let Some(rows) = &result.rows
        && result.status != Status::Ok
    {
        table(text, rows, if all { Rows::MOST } else { FEW }, printer);
    }
    if let Some(hint) = &result.hint {
        let _ = writeln!(text, "{:9}{} {hint}", "", palette.strong("hint:"));
    }
    // The hint already is the grant, where there is nothing else to say.
    if let Some(grant) = result.unseen.as_ref().and_then(|unseen| unseen.grant.as_ref())
        && result.hint.as_ref() != Some(grant)
    {
        let _ = writeln!(text, "{:9}{} {grant}", "", palette.strong("to see it:"));
    }
}

fn table(text: &mut String, rows: &Rows, most: usize, printer: &Printer) {
    let columns: Vec<(&str, Align)> = rows
        .columns
        .iter()
        .map(|title| (title.as_str(), Align::Left))
        .collect();
    let shown: Vec<Vec<String>> = rows.rows.iter().take(most).cloned().collect();
    let left = rows.total.saturating_sub(shown.len());
    for line in printer.render_table(&columns, shown).lines() {
        let _ = writeln!(text, "         {line}");
    }
    if left > 0 {
        let more = printer.palette().faint(&format!("... and {left} more"));
        let _ = writeln!(text, "{:9}{more}", "");
    }
}

/// `db1:5432: 1 CRIT, 2 WARN, 31 OK; 14 do not apply; in 84 ms`. What no session could be had for is counted
/// apart: nobody knows whether it is well.
pub(super) fn counts(report: &HealthReport, palette: &Palette) -> String {
    let counts = &report.counts;
    let mut parts = Vec::new();
    for (count, status) in [
        (counts.crit, Status::Crit),
        (counts.warn, Status::Warn),
        (counts.unknown, Status::Unknown),
        (counts.ok, Status::Ok),
    ] {
        if count > 0 {
            let part = format!("{count} {status}");
            parts.push(match status {
                Status::Ok => palette.good(&part),
                Status::Warn => palette.caution(&part),
                Status::Crit => palette.bad(&part),
                Status::Unknown => palette.unknown(&part),
            });
        }
    }
    if parts.is_empty() {
        parts.push("no check ran".to_owned());
    }
    let not_looked_at = report
        .skipped
        .iter()
        .filter(|skipped| skipped.was_not_looked_at())
        .count();
    let mut skipped = match not_looked_at {
        0 => String::new(),
        some => palette.unknown(&format!("; {some} not looked at")),
    };
    match counts.skipped - not_looked_at {
        0 => {}
        1 => skipped.push_str("; 1 does not apply"),
        many => {
            let _ = write!(skipped, "; {many} do not apply");
        }
    }
    let took = if report.duration_ms > 0.0 {
        format!(
            "; in {}",
            human_seconds((report.duration_ms / 1e3 * 1e3).round() / 1e3)
        )
    } else {
        String::new()
    };
    format!(
        "{}: {}{skipped}{took}",
        report.targets.join(", "),
        parts.join(", ")
    )
}
