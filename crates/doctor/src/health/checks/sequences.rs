//! Sequences near the end of their own range or of the column that they feed.

use std::collections::BTreeSet;

use super::survey::Sequence;
use super::vacuum::{unless_unseen, unseen};
use super::{Question, plural};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit, human_count};
use crate::health::result::{Finding, Rows};
use crate::health::status::Status;

const USED: &[Limit] = &[Limit::above("sequences.used", Unit::Ratio, Some(0.75), Some(0.9))];

pub(super) fn checks() -> Vec<Question> {
    vec![
        Question::new(
            "sequences.used",
            "share of a sequence's or its column's range that is used",
            USED,
            |context| Box::pin(used(context)),
        )
        .grant("GRANT pg_read_all_data TO {role}"),
    ]
}

/// The share of the range that has been given out; none where the sequence starts over by itself.
pub(super) fn share(sequence: &Sequence) -> Option<f64> {
    if sequence.cycles {
        return None;
    }
    let Some(last) = sequence.last_value else {
        return Some(0.0);
    };
    // Counted from where the sequence starts, in the direction it goes: ids below the start are not to be
    // had. In floating point, so that the whole range of int8 does not overflow.
    let (start, end) = if sequence.increment > 0 {
        (sequence.start.min(last) as f64, sequence.highest as f64)
    } else {
        (sequence.start.max(last) as f64, sequence.lowest as f64)
    };
    let range = (end - start).abs();
    Some(if range == 0.0 {
        1.0
    } else {
        (last as f64 - start).abs() / range
    })
}

async fn used(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts()?;
    let survey = context.survey().await;
    let limit = context.limit("sequences.used");
    let looked_at: usize = survey
        .databases
        .iter()
        .filter_map(|database| database.sequences.as_ref().ok())
        .map(Vec::len)
        .sum();
    let count: usize = survey
        .databases
        .iter()
        .map(|database| database.sequence_count)
        .sum();
    let mut seen: Vec<(f64, &str, &Sequence)> = Vec::new();
    let mut hidden: Vec<(&str, &Sequence)> = Vec::new();
    let mut locked: Vec<(&str, &Sequence)> = Vec::new();
    for database in &survey.databases {
        let name = database.database.as_str();
        for sequence in database.sequences.iter().flatten() {
            if !sequence.readable {
                hidden.push((name, sequence));
            } else if sequence.locked {
                locked.push((name, sequence));
            } else if let Some(share) = share(sequence) {
                seen.push((share, name, sequence));
            }
        }
    }
    seen.sort_by(|left, right| right.0.total_cmp(&left.0));
    let nothing_there = seen.is_empty() && hidden.is_empty() && locked.is_empty();
    let finding = match seen.first() {
        None if nothing_there => Finding::judged(
            Measure::ratio(0.0),
            limit,
            "there is no sequence that could run out",
        ),
        None => Finding::ok(String::new()),
        Some((share, database, worst)) => judged(*share, database, worst, seen.len(), limit),
    };
    let rows = Rows::new([
        "database",
        "sequence",
        "column",
        "type",
        "last value",
        "end",
        "used",
    ])
    .with(
        seen.iter()
            .filter(|(share, _, _)| limit.is_none_or(|limit| limit.judge(*share) != Status::Ok))
            .map(|(share, database, sequence)| {
                [
                    (*database).to_owned(),
                    sequence.name.clone(),
                    sequence.column.clone().unwrap_or_default(),
                    sequence.column_type.clone().unwrap_or_default(),
                    sequence
                        .last_value
                        .map_or_else(String::new, |value| value.to_string()),
                    end(sequence).to_string(),
                    Measure::ratio(*share).to_string(),
                ]
            }),
    );
    // Whoever reads this must know what it rests on.
    let finding = if count > looked_at {
        let evidence = format!(
            "{}; {} of {count} sequences were looked at, the others take turns (--only sequences.used looks at all)",
            finding.evidence, looked_at
        );
        Finding { evidence, ..finding }
    } else {
        finding
    };
    let unseen = not_read(context, &hidden, &locked)?
        .or_else(|| unseen(survey, facts, |database| &database.sequences));
    let mut finding = finding.rows(rows);
    if let (Some(unseen), true) = (&unseen, finding.status == Status::Ok && seen.is_empty()) {
        finding = unseen.clone();
    } else {
        finding = unless_unseen(finding, unseen);
    }
    Ok(finding.into())
}

fn end(sequence: &Sequence) -> i64 {
    if sequence.increment > 0 {
        sequence.highest
    } else {
        sequence.lowest
    }
}

fn judged(
    share: f64,
    database: &str,
    worst: &Sequence,
    count: usize,
    limit: Option<crate::health::limits::Thresholds>,
) -> Finding {
    let feeds = match (&worst.column, &worst.column_type) {
        (Some(column), Some(kind)) => format!(" (feeds {column}, {kind})"),
        _ => String::new(),
    };
    let left = (end(worst) as f64 - worst.last_value.unwrap_or(worst.start) as f64).abs()
        / (worst.increment as f64).abs().max(1.0);
    let hint = match (&worst.column, worst.column_type.as_deref()) {
        _ if worst.ends_by_itself && worst.ends_with_its_type => format!(
            "in {database}: ALTER SEQUENCE {} AS bigint; its own type ends first",
            worst.name
        ),
        _ if worst.ends_by_itself => format!(
            "in {database}: ALTER SEQUENCE {} NO MAXVALUE NO MINVALUE, or give it a wider range; its own ends first",
            worst.name
        ),
        (Some(column), Some(kind @ ("integer" | "smallint"))) => format!(
            "in {database}, before it ends: change {column} from {kind} to bigint (ALTER TABLE ... ALTER COLUMN ... \
             TYPE bigint rewrites the table under an exclusive lock; for a large one add a bigint column, fill it in \
             batches and swap), and ALTER SEQUENCE {} AS bigint",
            worst.name
        ),
        _ => format!(
            "in {database}: ALTER SEQUENCE {} AS bigint, or raise its MAXVALUE",
            worst.name
        ),
    };
    Finding::judged(
        Measure::ratio(share),
        limit,
        format!(
            "the fullest of {} is {} in {database}{feeds}: {} used, {} values left",
            plural(count, "sequence", "sequences"),
            worst.name,
            Measure::ratio(share),
            human_count(left.floor())
        ),
    )
    .hint(hint)
}

/// The UNKNOWN about sequences that were not read.
fn not_read(
    context: &Context,
    hidden: &[(&str, &Sequence)],
    locked: &[(&str, &Sequence)],
) -> Result<Option<Finding>, Failure> {
    let facts = context.facts()?;
    let rows = Rows::new(["database", "sequence", "column", "why not"]).with(
        hidden
            .iter()
            .map(|(database, sequence)| (database, sequence, "no privilege"))
            .chain(
                locked
                    .iter()
                    .map(|(database, sequence)| (database, sequence, "locked")),
            )
            .map(|(database, sequence, why)| {
                [
                    (*database).to_owned(),
                    sequence.name.clone(),
                    sequence.column.clone().unwrap_or_default(),
                    why.to_owned(),
                ]
            }),
    );
    if let Some((database, first)) = hidden.first() {
        // The least that shows them: one statement for each schema, in its database.
        let schemas: BTreeSet<(&str, &str)> = hidden
            .iter()
            .map(|(database, sequence)| (*database, sequence.schema.as_str()))
            .collect();
        let grant = if schemas.len() == 1 {
            facts.grant(&format!(
                "GRANT SELECT ON ALL SEQUENCES IN SCHEMA {} TO {{role}}",
                first.schema
            ))
        } else {
            facts.grant("GRANT pg_read_all_data TO {role}")
        };
        return Ok(Some(
            Finding::unknown(
                format!(
                    "the role {} may not read {}, {} in {database} among them; pg_sequences shows NULL for those, \
                     which is not zero",
                    facts.role,
                    plural(hidden.len(), "sequence", "sequences"),
                    first.name
                ),
                Some(grant.clone()),
            )
            .hint(format!("in {database}: {grant}"))
            .rows(rows),
        ));
    }
    Ok(locked.first().map(|(database, first)| {
        Finding::unknown(
            format!(
                "{} locked by a running DDL and was not read: {} in {database}",
                plural(locked.len(), "sequence is", "sequences are"),
                first.name
            ),
            None,
        )
        .rows(rows)
        .hint("look again when that has ended; locks.waiting and connections.idle_in_transaction say who holds it")
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(start: i64, increment: i64, lowest: i64, highest: i64, last_value: Option<i64>) -> Sequence {
        serde_json::from_value(serde_json::json!({
            "oid": 1, "narrow": true, "name": "s", "schema": "public", "column": null, "column_type": null, "lowest": lowest,
            "highest": highest, "start": start, "increment": increment, "cycles": false, "readable": true,
            "last_value": last_value
        }))
        .unwrap()
    }

    #[test]
    fn the_share_counts_from_the_start_in_the_direction_of_the_sequence() {
        let close = |sequence: &Sequence, expected: f64| {
            let share = share(sequence).unwrap();
            assert!((share - expected).abs() < 1e-6, "{share}");
        };
        close(&sequence(1, 1, 1, 101, Some(76)), 0.75);
        close(&sequence(1, 1, 1, 101, None), 0.0);
        close(&sequence(-1, -1, -101, -1, Some(-91)), 0.9);
        close(&sequence(1, 1, 1, i64::MAX, Some(i64::MAX)), 1.0);
        close(&sequence(i64::MIN, 1, i64::MIN, i64::MAX, Some(0)), 0.5);
        close(&sequence(5, 1, 5, 5, Some(5)), 1.0);
    }

    #[test]
    fn a_sequence_that_starts_over_does_not_run_out() {
        let mut cycling = sequence(1, 1, 1, 10, Some(10));
        cycling.cycles = true;
        assert_eq!(share(&cycling), None);
    }
}
