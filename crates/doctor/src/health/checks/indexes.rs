//! Indexes that no query uses although every write pays for them.

use super::survey::BrokenIndex;
use super::vacuum::{unless_unseen, unseen};
use super::{Question, plural};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit};
use crate::health::result::{Finding, Rows};

const INVALID: &[Limit] = &[Limit::above("indexes.invalid", Unit::Count, Some(1.0), None)];

pub(super) fn checks() -> Vec<Question> {
    vec![Question::new(
        "indexes.invalid",
        "indexes that are not valid and not being built",
        INVALID,
        |context| Box::pin(invalid(context)),
    )]
}

async fn invalid(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts_with_statistics()?;
    let survey = context.survey().await;
    let all: Vec<(&str, &BrokenIndex)> = survey
        .databases
        .iter()
        .flat_map(|database| {
            database
                .indexes
                .iter()
                .flatten()
                .map(|index| (database.database.as_str(), index))
        })
        .collect();
    let building = all.iter().filter(|(_, index)| index.in_progress).count();
    let broken: Vec<_> = all.into_iter().filter(|(_, index)| !index.in_progress).collect();
    let looked_into = survey
        .databases
        .iter()
        .filter(|database| database.indexes.is_ok())
        .count();
    let mut evidence = match broken.first() {
        None => format!(
            "every index of {} is valid",
            plural(looked_into, "database", "databases")
        ),
        Some((database, first)) => format!(
            "{} not valid, {} on {} in {database} among them",
            plural(broken.len(), "index is", "indexes are"),
            first.name,
            first.table
        ),
    };
    if building > 0 {
        evidence = format!(
            "{evidence}; {} being built or dropped now",
            plural(building, "index is", "indexes are")
        );
    }
    let left_out: Vec<&str> = facts
        .databases
        .iter()
        .filter(|database| !database.is_looked_into())
        .map(|database| database.name.as_str())
        .collect();
    if !left_out.is_empty() {
        evidence = format!(
            "{evidence}; not looked into, being templates or closed to everybody: {}",
            left_out.join(", ")
        );
    }
    let hint = match broken.first() {
        Some((database, first)) if first.partitioned => format!(
            "not every partition has its part of it: in {database}, attach the missing ones with ALTER INDEX {} ATTACH \
             PARTITION",
            first.name
        ),
        Some((database, first)) => {
            let unique = if first.unique {
                "; it is unique: if its build failed on duplicates, remove those first"
            } else {
                ""
            };
            format!(
                "a concurrent build has failed: in {database}, REINDEX INDEX CONCURRENTLY {0}, or DROP INDEX \
                 CONCURRENTLY {0} where it is not wanted (one whose name ends in _ccnew or _ccold can always be \
                 dropped){unique}",
                first.name
            )
        }
        None => String::new(),
    };
    let rows = Rows::new(["database", "index", "table", "unique", "kept up to date", "size"]).with(
        broken.iter().map(|(database, index)| {
            let word = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
            [
                (*database).to_owned(),
                index.name.clone(),
                index.table.clone(),
                word(index.unique),
                word(index.ready),
                Measure::bytes(index.bytes).to_string(),
            ]
        }),
    );
    let finding = Finding::judged(
        Measure::count(broken.len() as i64),
        context.limit("indexes.invalid"),
        evidence,
    )
    .rows(rows)
    .hint(hint);
    Ok(unless_unseen(finding, unseen(survey, facts, |database| &database.indexes)).into())
}
