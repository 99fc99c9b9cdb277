//! What the configuration expects to exist.

use pgmahout_postgres::connection::Connection;

use super::{Expected, Part, failed};
use crate::health::{Finding, Rows};

/// Looks for everything expected.
pub(super) async fn check(connection: &Connection, expected: &Expected) -> Part {
    let count = expected.extensions.len() + expected.settings.len() + expected.roles.len();
    if count == 0 {
        return Part::Skipped("the configuration has no expect: section".to_owned());
    }
    let mut missing = Rows::new(["what", "expected", "found"]);
    for extension in &expected.extensions {
        let (name, version) = match extension.split_once(">=") {
            Some((name, version)) => (name.trim(), Some(version.trim())),
            None => (extension.trim(), None),
        };
        let found = match connection
            .query_opt(
                "SELECT extversion FROM pg_catalog.pg_extension WHERE extname = $1",
                &[&name],
            )
            .await
        {
            Ok(row) => row.map(|row| row.get::<_, String>(0)),
            Err(error) => return failed("look for the extensions", &error),
        };
        let enough = match (&found, version) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(found), Some(wanted)) => numbers(found) >= numbers(wanted),
        };
        if !enough {
            missing.push([
                format!("extension {name}"),
                version.map_or_else(
                    || "installed".to_owned(),
                    |version| format!("version {version} or newer"),
                ),
                found.unwrap_or_else(|| "not installed".to_owned()),
            ]);
        }
    }
    for (name, wanted) in &expected.settings {
        // Compared in base units, so that 1GB and 1024MB are the same; the server does the arithmetic.
        let found = match connection
            .query_opt(
                "SELECT pg_catalog.current_setting(name), setting, unit FROM pg_catalog.pg_settings WHERE lower(name) = lower($1)",
                &[name],
            )
            .await
        {
            Ok(row) => row,
            Err(error) => return failed("read the settings", &error),
        };
        let Some(row) = found else {
            missing.push([
                format!("setting {name}"),
                wanted.clone(),
                "no such setting".to_owned(),
            ]);
            continue;
        };
        let (shown, raw, unit): (String, Option<String>, Option<String>) =
            (row.get(0), row.get(1), row.get(2));
        let same = shown.eq_ignore_ascii_case(wanted)
            || raw.as_deref().is_some_and(|raw| raw.eq_ignore_ascii_case(wanted))
            || same_amount(&shown, wanted, unit.as_deref())
            || same_truth(&shown, wanted);
        if !same {
            missing.push([format!("setting {name}"), wanted.clone(), shown]);
        }
    }
    for role in &expected.roles {
        let found = match connection
            .query_opt("SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = $1", &[role])
            .await
        {
            Ok(row) => row,
            Err(error) => return failed("look for the roles", &error),
        };
        if found.is_none() {
            missing.push([format!("role {role}"), "exists".to_owned(), "missing".to_owned()]);
        }
    }
    if missing.is_empty() {
        return Part::Found(Finding::ok(format!(
            "all {count} expected extensions, settings and roles are as expected"
        )));
    }
    Part::Found(
        Finding::crit(format!("{} of {count} expectations are not met", missing.total))
            .rows(missing)
            .hint("mend the server, or the expect: section of the configuration"),
    )
}

/// `1.10.2` as numbers, so that 1.10 is newer than 1.9.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// Whether two amounts with units are the same: `1GB` and `1024MB`, `60s` and `1min`.
fn same_amount(left: &str, right: &str, unit: Option<&str>) -> bool {
    let parse = |text: &str| -> Option<f64> {
        let end = text
            .find(|character: char| character.is_ascii_alphabetic())
            .unwrap_or(text.len());
        let number: f64 = text[..end].trim().parse().ok()?;
        let factor = match (text[end..].trim(), unit) {
            ("", None) | ("B" | "ms", _) => 1.0,
            ("kB", _) => 1024.0,
            ("MB", _) => 1024.0_f64.powi(2),
            ("GB", _) => 1024.0_f64.powi(3),
            ("TB", _) => 1024.0_f64.powi(4),
            ("us", _) => 0.001,
            ("s", _) => 1e3,
            ("min", _) => 60e3,
            ("h", _) => 3_600e3,
            ("d", _) => 86_400e3,
            _ => return None,
        };
        Some(number * factor)
    };
    match (parse(left), parse(right)) {
        (Some(left), Some(right)) => (left - right).abs() < 1e-9 * left.abs().max(1.0),
        _ => false,
    }
}

/// `on`, `true`, `yes`, `1` are one value to PostgreSQL, and their opposites another.
fn same_truth(left: &str, right: &str) -> bool {
    let truth = |text: &str| match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    };
    truth(left).is_some() && truth(left) == truth(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_amounts_and_truths_are_compared_by_meaning() {
        assert!(numbers("1.10") > numbers("1.9"));
        assert!(same_amount("1GB", "1024MB", Some("8kB")));
        assert!(same_amount("1min", "60s", Some("s")));
        assert!(!same_amount("1GB", "1GBB", None));
        assert!(same_truth("on", "true") && !same_truth("on", "off") && !same_truth("on", "maybe"));
    }
}
