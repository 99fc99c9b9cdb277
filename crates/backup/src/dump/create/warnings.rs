//! What about a finished dump should make a person look twice.

use std::fmt::Write as _;

use pgmahout_types::Bytes;

use super::super::manifest::{Contents, DumpManifest};

/// A dump this much smaller than the one before is suspicious: its content is less than one part in so
/// many of it.
const SHRUNK: u64 = 2;

/// Warns of a dump without tables, and of one that shrank. `maintenance`: the database is one that servers
/// have for their administrators, and that is usually empty.
pub(super) fn about(
    manifest: &DumpManifest,
    tables: usize,
    previous: Option<&DumpManifest>,
    maintenance: bool,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let database = &manifest.database.name;
    if tables == 0 && manifest.options.is_whole_database() && !maintenance {
        let what = match manifest.options.contents {
            Contents::Data => "no table's rows",
            _ => "no table",
        };
        warnings.push(format!(
            "the dump of {database} holds {what}: is the database empty, is its name right, and may the role \
             see its schemas?"
        ));
    }
    let Some(previous) = previous else { return warnings };
    if previous.options.format != manifest.options.format {
        return warnings;
    }
    let (now, before) = (manifest.content.bytes, previous.content.bytes);
    if now.saturating_mul(SHRUNK) < before {
        warnings.push(format!(
            "the dump of {database} has {} of content; the one before it ({}, {}) had {}: were tables dropped \
             or emptied, is it the right server and database, and may the role still see everything?",
            Bytes::new(now),
            previous.file,
            previous.started_at.strftime("%Y-%m-%d %H:%M UTC"),
            Bytes::new(before),
        ));
    }
    warnings
}

/// Warns of a selection that came out empty. `expected`: how many rows the planner thinks the selected tables
/// have.
pub(super) fn of_selection(manifest: &DumpManifest, expected: u64) -> Option<String> {
    let options = &manifest.options;
    if !options.contents.has_rows() || (options.tables.is_empty() && options.schemas.is_empty()) {
        return None;
    }
    let database = &manifest.database.name;
    if manifest.tables.is_empty() {
        return Some(format!(
            "the dump of {database} holds the rows of no table: do the patterns name only views, foreign tables, or \
             tables that have no partitions?"
        ));
    }
    let (rows, exact) = manifest.total_rows();
    (exact && rows == 0 && expected > 0).then(|| {
        format!(
            "the dump of {database} holds no row, though the selected tables had about {expected} when they were \
             last analysed: are they the right ones?"
        )
    })
}

/// Warns of tables that a standby cannot give.
pub(super) fn of_standby(unlogged: &[String]) -> Option<String> {
    const SHOWN: usize = 20;
    if unlogged.is_empty() {
        return None;
    }
    let mut names = unlogged
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if unlogged.len() > SHOWN {
        let _ = write!(names, " and {} more", unlogged.len() - SHOWN);
    }
    Some(format!(
        "a standby has no rows of unlogged tables, so they are not in this dump: {names}; dump them from the primary"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::manifest::{Format, sample};

    fn of(bytes: u64) -> DumpManifest {
        let mut manifest = sample();
        manifest.content.bytes = bytes;
        manifest
    }

    #[test]
    fn a_dump_of_half_the_size_is_not_yet_suspicious_but_less_is() {
        assert_eq!(about(&of(50), 1, Some(&of(100)), false), Vec::<String>::new());
        let warnings = about(&of(49), 1, Some(&of(100)), false);
        assert!(warnings[0].contains("right server"), "{warnings:?}");
        assert!(warnings[0].contains("100 B"), "{warnings:?}");
    }

    #[test]
    fn a_dump_without_tables_names_the_usual_causes() {
        let warnings = about(&of(50), 0, None, false);
        assert!(
            warnings[0].contains("empty") && warnings[0].contains("name"),
            "{warnings:?}"
        );
    }

    #[test]
    fn forms_are_not_compared_with_each_other() {
        let mut custom = of(1);
        custom.options.format = Format::Custom;
        assert_eq!(about(&custom, 1, Some(&of(100)), false), Vec::<String>::new());
    }
}
