//! A report as one HTML file: no script, nothing from another host.

use std::fmt::Write as _;

use super::{Report, Section, Trend};
use crate::health::Status;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --ok: #1a7f37; --warn: #9a6700; --crit: #cf222e; --unknown: #8250df; }
@media (prefers-color-scheme: dark) { :root { --ok: #3fb950; --warn: #d29922; --crit: #f85149; --unknown: #a371f7; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 600; }
.OK { color: var(--ok); } .WARN { color: var(--warn); } .CRIT { color: var(--crit); } .UNKNOWN { color: var(--unknown); }
.status { font-weight: 700; white-space: nowrap; }
.trends { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .6rem; border: 1px solid var(--line); border-radius: .4rem; }
figcaption { font-size: .85em; } svg { width: 100%; height: 3rem; }
code { font-family: ui-monospace, monospace; } .note { opacity: .75; }
";

/// Renders the report.
pub fn render(report: &Report) -> String {
    let health = &report.health;
    let mut body = String::new();
    let title = format!("PostgreSQL {} report: {}", report.kind.as_str(), report.target);
    let _ = writeln!(body, "<h1>{}</h1>", escape(&title));
    let _ = writeln!(
        body,
        "<p>{} · PostgreSQL {} · {} · up since {}</p>",
        report.made_at.strftime("%Y-%m-%d %H:%M UTC"),
        escape(&report.server_version),
        escape(&report.role),
        report.started_at.map_or_else(
            || "?".to_owned(),
            |at| at.strftime("%Y-%m-%d %H:%M UTC").to_string()
        ),
    );
    let _ = writeln!(
        body,
        "<p><span class=\"status {0}\">{0}</span> {1} OK, {2} WARN, {3} CRIT, {4} UNKNOWN</p>",
        health.status, health.counts.ok, health.counts.warn, health.counts.crit, health.counts.unknown
    );
    let troubles = health.troubles();
    if !troubles.is_empty() {
        body.push_str("<h2>What needs a look</h2>\n<table><tr><th>status</th><th>check</th><th>evidence</th><th>do</th></tr>\n");
        for result in troubles {
            let _ = writeln!(
                body,
                "<tr><td class=\"status {0}\">{0}</td><td><code>{1}</code></td><td>{2}</td><td>{3}</td></tr>",
                result.status,
                escape(&result.id),
                escape(&result.evidence),
                escape(result.hint.as_deref().unwrap_or("")),
            );
        }
        body.push_str("</table>\n");
    }
    if !report.trends.is_empty() {
        body.push_str("<h2>Trends</h2>\n<div class=\"trends\">\n");
        for trend in &report.trends {
            plot(&mut body, trend);
        }
        body.push_str("</div>\n");
    }
    for section in &report.sections {
        render_section(&mut body, section);
    }
    body.push_str("<h2>All checks</h2>\n<table><tr><th>status</th><th>check</th><th>evidence</th></tr>\n");
    for result in &health.results {
        let _ = writeln!(
            body,
            "<tr><td class=\"status {0}\">{0}</td><td><code>{1}</code></td><td>{2}</td></tr>",
            result.status,
            escape(&result.id),
            escape(&result.evidence),
        );
    }
    body.push_str("</table>\n");
    let worst = if health.status == Status::Ok { "" } else { "! " };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{worst}{}</title>\n<style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n",
        escape(&title)
    )
}

fn render_section(body: &mut String, section: &Section) {
    let _ = writeln!(body, "<h2>{}</h2>", escape(&section.title));
    if let Some(note) = &section.note {
        let _ = writeln!(body, "<p class=\"note\">{}</p>", escape(note));
    }
    if section.rows.is_empty() {
        return;
    }
    let cells = |tag: &str, texts: &[String]| {
        texts.iter().fold(String::new(), |mut row, text| {
            let _ = write!(row, "<{tag}>{}</{tag}>", escape(text));
            row
        })
    };
    let _ = writeln!(body, "<table><tr>{}</tr>", cells("th", &section.columns));
    for row in &section.rows {
        let _ = writeln!(body, "<tr>{}</tr>", cells("td", row));
    }
    body.push_str("</table>\n");
}

/// The values over time as a line; time runs to the right, in true proportion.
fn plot(body: &mut String, trend: &Trend) {
    let seconds: Vec<f64> = trend.points.iter().map(|(at, _)| at.as_second() as f64).collect();
    let values: Vec<f64> = trend.points.iter().map(|(_, value)| *value).collect();
    let scale = |all: &[f64], value: f64, length: f64| {
        let low = all.iter().copied().fold(f64::INFINITY, f64::min);
        let high = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if high > low {
            (value - low) / (high - low) * length
        } else {
            length / 2.0
        }
    };
    let points: Vec<String> = seconds
        .iter()
        .zip(&values)
        .map(|(at, value)| {
            format!(
                "{:.1},{:.1}",
                scale(&seconds, *at, 196.0) + 2.0,
                38.0 - scale(&values, *value, 36.0)
            )
        })
        .collect();
    let _ = writeln!(
        body,
        "<figure><svg viewBox=\"0 0 200 40\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{0}: {1}\">\
         <polyline fill=\"none\" stroke=\"currentColor\" stroke-width=\"1.5\" vector-effect=\"non-scaling-stroke\" points=\"{2}\"/></svg>\
         <figcaption><code>{0}</code><br>{1}</figcaption></figure>",
        escape(&trend.id),
        escape(&trend.change()),
        points.join(" ")
    );
}

/// Text that comes from the server must not become markup.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}
