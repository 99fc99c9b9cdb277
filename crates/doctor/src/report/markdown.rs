//! A report as Markdown.

use std::fmt::Write as _;

use super::{Report, Section};
use crate::health::Status;

/// Renders the report.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    let health = &report.health;
    let _ = writeln!(
        text,
        "# PostgreSQL {} report: {}\n\n{} · PostgreSQL {} · {} · up since {}\n",
        report.kind.as_str(),
        escape(&report.target),
        report.made_at.strftime("%Y-%m-%d %H:%M UTC"),
        report.server_version,
        report.role,
        report.started_at.map_or_else(
            || "?".to_owned(),
            |at| at.strftime("%Y-%m-%d %H:%M UTC").to_string()
        ),
    );
    let _ = writeln!(
        text,
        "**{}**: {} OK, {} WARN, {} CRIT, {} UNKNOWN\n",
        health.status, health.counts.ok, health.counts.warn, health.counts.crit, health.counts.unknown
    );
    let troubles = health.troubles();
    if !troubles.is_empty() {
        text.push_str("## What needs a look\n\n");
        for result in troubles {
            let _ = writeln!(
                text,
                "- **{}** `{}`: {}",
                result.status,
                result.id,
                escape(&result.evidence)
            );
            if let Some(hint) = &result.hint {
                let _ = writeln!(text, "  - do: {}", escape(hint));
            }
        }
        text.push('\n');
    }
    if !report.trends.is_empty() {
        text.push_str("## Trends\n\n| figure | change | values |\n| --- | --- | --- |\n");
        for trend in &report.trends {
            let values: Vec<f64> = trend.points.iter().map(|(_, value)| *value).collect();
            let _ = writeln!(
                text,
                "| {} | {} | {} |",
                trend.id,
                trend.change(),
                sparkline(&values)
            );
        }
        text.push('\n');
    }
    for section in &report.sections {
        render_section(&mut text, section);
    }
    text.push_str("## All checks\n\n| status | check | evidence |\n| --- | --- | --- |\n");
    for result in &health.results {
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            mark(result.status),
            result.id,
            escape(&result.evidence)
        );
    }
    text
}

fn render_section(text: &mut String, section: &Section) {
    let _ = writeln!(text, "## {}\n", section.title);
    if let Some(note) = &section.note {
        let _ = writeln!(text, "{}\n", escape(note));
    }
    if section.rows.is_empty() {
        return;
    }
    let _ = writeln!(text, "| {} |", section.columns.join(" | "));
    let _ = writeln!(text, "|{}", " --- |".repeat(section.columns.len()));
    for row in &section.rows {
        let cells: Vec<String> = row.iter().map(|cell| escape(cell)).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text.push('\n');
}

fn mark(status: Status) -> String {
    if status == Status::Ok {
        "OK".to_owned()
    } else {
        format!("**{status}**")
    }
}

/// Text that comes from the server must not become markup or end a cell.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '#' => {
                escaped.push('\\');
                escaped.push(character);
            }
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\n' | '\r' => escaped.push(' '),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// Values as a line of eight heights.
fn sparkline(values: &[f64]) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let span = high - low;
    values
        .iter()
        .map(|value| {
            let place = if span > 0.0 {
                ((value - low) / span * 7.0).round() as usize
            } else {
                0
            };
            HEIGHTS[place.min(7)]
        })
        .collect()
}
