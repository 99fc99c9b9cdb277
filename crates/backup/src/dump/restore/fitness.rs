//! Whether a dump may be restored at all: complete, and with nothing in it that would leave the target.

use super::super::scan::{Oddity, Origin, Position, ScanReport, Section, Unfinished};
use super::error::RestoreError;

/// Encodings in which a byte of a character may look like a backslash or a quote, so that nothing but a
/// decoder can tell where strings end (`PG_ENCODING_BE_LAST` in `src/include/mb/pg_wchar.h`: the encodings
/// that only clients may have).
const UNSAFE_ENCODINGS: [&str; 8] = [
    "SJIS",
    "SHIFT_JIS_2004",
    "BIG5",
    "GBK",
    "UHC",
    "GB18030",
    "JOHAB",
    "SHIFTJIS",
];

fn refused(what: &str, why: String, hint: impl Into<String>) -> RestoreError {
    RestoreError::Refused {
        what: what.to_owned(),
        why,
        hint: hint.into(),
    }
}

fn place(at: Position) -> String {
    format!("line {}, byte {}", at.line, at.offset)
}

/// The section to restore: of a stream for one database the only one, else the one that was asked for.
///
/// # Errors
/// When there is none, or a choice is needed.
pub(crate) fn choose(what: &str, report: &ScanReport, database: Option<&str>) -> Result<usize, RestoreError> {
    let mut names: Vec<&str> = report
        .sections
        .iter()
        .filter_map(|section| section.database.as_deref())
        .collect();
    names.dedup();
    match database {
        Some(wanted) => report
            .sections
            .iter()
            .position(|section| section.database.as_deref() == Some(wanted))
            .map(|first| last_of(report, first))
            .ok_or_else(|| RestoreError::Usage {
                what: format!("{what} holds no section for database \"{wanted}\""),
                hint: if names.is_empty() {
                    "it is a dump of one database: leave --database out".to_owned()
                } else {
                    format!("it holds {}", names.join(", "))
                },
            }),
        None if names.is_empty() && report.origin == Origin::Cluster => Err(refused(
            what,
            "it holds roles and tablespaces of a whole server (pg_dumpall --globals-only), no database"
                .to_owned(),
            "look at it, then let psql restore it where these roles are missing: psql -X -f FILE postgres",
        )),
        None if names.is_empty() => Ok(0),
        None => {
            let section = &report.sections[1];
            let kind = if report.origin == Origin::Cluster {
                "a pg_dumpall stream"
            } else {
                "a dump that creates its database"
            };
            Err(refused(
                what,
                format!(
                    "it is {kind} and holds \"\\connect {}\" ({}): psql would go on there, whatever the target",
                    names[0],
                    place(section.at)
                ),
                format!(
                    "restore one database of it into the target: --database {} (it holds {})",
                    names.last().unwrap_or(&"NAME"),
                    names.join(", ")
                ),
            ))
        }
    }
}

/// pg_dump connects once more after the settings of the database itself (`restore_toc_entry` in
/// `src/bin/pg_dump/pg_backup_archiver.c`): its contents are in the last of such sections.
fn last_of(report: &ScanReport, first: usize) -> usize {
    let continues = |index: &usize| {
        let (this, next) = (&report.sections[*index], report.sections.get(index + 1));
        !this.complete && next.is_some_and(|next| next.database == this.database)
    };
    std::iter::successors(Some(first), |index| continues(index).then_some(index + 1))
        .last()
        .unwrap_or(first)
}

/// The line at which a stream begins to set properties of this section's database itself, if it does: these
/// are for a database of that name, and not restored into another one.
pub(crate) fn own_properties(report: &ScanReport, section: usize) -> Option<Position> {
    let before = report.sections.get(section.checked_sub(1)?)?;
    let is_same = before.database.is_some() && before.database == report.sections[section].database;
    (is_same && !before.complete && before.statements > 0).then_some(before.at)
}

/// Everything that forbids to restore this section.
pub(crate) fn problems(what: &str, report: &ScanReport, section: usize) -> Vec<RestoreError> {
    let mut found = Vec::new();
    let index = section;
    let section = &report.sections[section];
    found.extend(stream_problems(what, report));
    found.extend(command_problem(what, section));
    if let Some(unfinished) = report.unfinished {
        found.push(RestoreError::Damaged {
            what: what.to_owned(),
            why: format!("it ends in the middle of {}", describe(unfinished)),
        });
    } else if !section.complete {
        let why = if report.origin == Origin::Unknown {
            "it does not begin as pg_dump's output does, and has no end marker (\"PostgreSQL database dump complete\")"
        } else {
            "the end marker (\"PostgreSQL database dump complete\") is missing: it was cut"
        };
        found.push(RestoreError::Damaged {
            what: what.to_owned(),
            why: why.to_owned(),
        });
    } else if report.origin == Origin::Cluster && !report.cluster_complete {
        found.push(RestoreError::Damaged {
            what: what.to_owned(),
            why: "the end marker (\"PostgreSQL database cluster dump complete\") is missing: it was cut"
                .to_owned(),
        });
    }
    if index == 0
        && let Some(at) = section.after_end
    {
        found.push(refused(
            what,
            format!("a statement follows the end of the dump ({})", place(at)),
            "the file was changed or joined with another one: use the original, or restore its parts one by one",
        ));
    }
    found
}

fn describe(unfinished: Unfinished) -> &'static str {
    match unfinished {
        Unfinished::Statement => "a statement",
        Unfinished::Quote => "a quoted string",
        Unfinished::Comment => "a comment",
        Unfinished::Data => "a table's rows",
    }
}

fn stream_problems(what: &str, report: &ScanReport) -> Option<RestoreError> {
    let (oddity, at) = report.oddities.first()?;
    let (text, hint) = match oddity {
        Oddity::Nul => (
            "it holds a NUL byte",
            "it is damaged or no text: use another copy",
        ),
        Oddity::TextAfterCopy => (
            "text follows COPY ... FROM stdin on its line, which pg_dump never writes",
            "it was written or changed by something else than pg_dump; look at that line",
        ),
        Oddity::CopyOptions => (
            "COPY ... FROM stdin has options, which pg_dump never writes",
            "it was written or changed by something else than pg_dump; look at that line",
        ),
    };
    Some(refused(what, format!("{text} ({})", place(*at)), hint))
}

fn command_problem(what: &str, section: &Section) -> Option<RestoreError> {
    if let Some(encoding) = section
        .encoding
        .as_deref()
        .filter(|encoding| UNSAFE_ENCODINGS.contains(encoding))
    {
        return Some(refused(
            what,
            format!("it is written in {encoding}, in which a part of a character can look like a backslash"),
            "make the dump in UTF8 (pg_dump --encoding=UTF8), or in the custom format",
        ));
    }
    let meta = section.metas.iter().find(|meta| !meta.permitted)?;
    let hint = if meta.text.starts_with("\\c") {
        "a dump that connects elsewhere is restored with --database NAME, where the line stands by itself as pg_dumpall writes it"
    } else {
        "pg_dump never writes that; if the command is meant, take it out of the file, or restore with psql -X -f FILE"
    };
    let shown: String = meta.text.chars().take(80).collect();
    Some(refused(
        what,
        format!("it holds the psql command \"{shown}\" ({})", place(meta.at)),
        hint,
    ))
}

/// For a stream that is not scanned before: as soon as something is seen that must not be there.
pub(crate) fn check_stream(what: &str, report: &ScanReport) -> Result<(), RestoreError> {
    if report.sections.len() > 1 {
        choose(what, report, None)?;
    }
    match stream_problems(what, report).or_else(|| command_problem(what, &report.sections[0])) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
