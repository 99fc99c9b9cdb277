//! What was in the target before the first attempt to load into it, kept in the journal: so that a resumed
//! restore knows whether an attempt that did not end left rows, and never loads them twice.

use serde::{Deserialize, Serialize};

use pgmahout_postgres::connection::Connection;
use pgmahout_procedure::{StepContext, StepError};

use super::counts::{self, CountRow};
use super::error::RestoreError;
use super::procedure::Shared;

/// What the journal calls it.
const BASELINE: &str = "rows_before";

/// The rows of every table that the restore will fill; `None`: there was no such table.
#[derive(Debug, Serialize, Deserialize)]
struct Baseline(Vec<(String, String, Option<u64>)>);

/// What an earlier attempt has left.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// Nothing: everything is as before.
    Nothing,
    /// All rows are there.
    Everything,
    /// Something else: what tables hold.
    Other(Vec<String>),
}

/// Counts what is there. The first time it is remembered. Afterwards it is compared with that: the rows are
/// returned if an attempt has already brought all of them, `None` if the dump is to be loaded.
///
/// # Errors
/// When neither is so, and nobody but the user can tell what the rows in the target are.
pub(crate) async fn attempt(
    shared: &Shared,
    context: &StepContext<'_>,
) -> Result<Option<Vec<CountRow>>, StepError> {
    let expected = counts::expected(shared.section(), &shared.request.selection);
    let connection = Connection::open_secured(&shared.request.target)
        .await
        .map_err(RestoreError::from)?;
    let found = counts::count(&connection, &expected).await?;
    connection.close().await;
    let Some(before) = context.memory.get::<Baseline>(BASELINE) else {
        let rows = found
            .into_iter()
            .map(|row| (row.table.schema, row.table.name, row.found))
            .collect();
        context.memory.set(BASELINE, Baseline(rows))?;
        return Ok(None);
    };
    let refused = |why: String, hint: &str| {
        StepError::from(RestoreError::Refused {
            what: shared.dump.describe().to_owned(),
            why,
            hint: hint.to_owned(),
        })
    };
    match left(&before, &found) {
        Left::Nothing => Ok(None),
        Left::Everything if shared.one_transaction() => Ok(Some(
            found
                .into_iter()
                .map(|row| CountRow {
                    expected: row.found.unwrap_or(0),
                    ..row
                })
                .collect(),
        )),
        Left::Everything => Err(refused(
            format!(
                "an earlier attempt has already brought all of its rows into {}; whether it also came to what follows the rows (sequences, indexes, constraints) is not known, since it ran without a transaction",
                shared.request.target.database
            ),
            "nothing was loaded now; look whether these are there, and give the restore up (pgmahout procedure abort), or restore again with --clean",
        )),
        Left::Other(tables) => {
            let shown = tables.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
            let more = match tables.len().saturating_sub(10) {
                0 => String::new(),
                more => format!(", and {more} more tables"),
            };
            Err(refused(
                format!(
                    "since its first attempt the rows in {} have changed: {shown}{more}; loading it now could bring rows twice",
                    shared.request.target.database
                ),
                "nothing was loaded now; take out what the earlier attempt has left, so that these tables hold what they held before, and resume again; or give the restore up (pgmahout procedure abort) and restore with --clean",
            ))
        }
    }
}

/// `found` has what the dump holds as `expected`.
fn left(before: &Baseline, found: &[CountRow]) -> Left {
    let of_before = |row: &CountRow| {
        before
            .0
            .iter()
            .find(|(schema, name, _)| *schema == row.table.schema && *name == row.table.name)
            .and_then(|(_, _, rows)| *rows)
    };
    let mut nothing = true;
    let mut everything = true;
    let mut others = Vec::new();
    for row in found {
        let rows = of_before(row);
        nothing &= row.found == rows;
        everything &= row.found == Some(rows.unwrap_or(0) + row.expected);
        if row.found != rows {
            others.push(format!(
                "{} {} ({} before the restore, {} in the dump)",
                row.table,
                row.found
                    .map_or_else(|| "is gone".to_owned(), |rows| format!("has {rows}")),
                rows.map_or_else(|| "not there".to_owned(), |rows| rows.to_string()),
                row.expected
            ));
        }
    }
    if nothing {
        Left::Nothing
    } else if everything {
        Left::Everything
    } else {
        Left::Other(others)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::scan::TableName;
    use super::*;

    fn found(rows: &[(&str, u64, Option<u64>)]) -> Vec<CountRow> {
        rows.iter()
            .map(|(name, expected, found)| CountRow {
                table: TableName::new("public", *name),
                expected: *expected,
                found: *found,
            })
            .collect()
    }

    #[test]
    fn rows_of_an_earlier_attempt_are_told_from_those_before_it() {
        let before = Baseline(vec![
            ("public".to_owned(), "a".to_owned(), Some(5)),
            ("public".to_owned(), "b".to_owned(), None),
        ]);
        let of = |a, b| left(&before, &found(&[("a", 10, a), ("b", 10, b)]));
        assert_eq!(of(Some(5), None), Left::Nothing);
        assert_eq!(of(Some(15), Some(10)), Left::Everything);
        assert_eq!(
            of(Some(15), None),
            Left::Other(vec![
                "public.a has 15 (5 before the restore, 10 in the dump)".to_owned()
            ])
        );
        assert!(matches!(of(None, Some(0)), Left::Other(tables) if tables.len() == 2));
    }
}
