//! Transactions over an interval: how many, how many rolled back, deadlocks.

use super::interval::no_window;
use super::{Question, plural};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit, human_count, human_seconds};
use crate::health::result::{Finding, Rows};
use crate::health::status::Status;

const RATE: &[Limit] = &[Limit::above(
    "transactions.rate",
    Unit::Ratio,
    Some(0.2),
    Some(0.5),
)];
const ROLLBACKS: &[Limit] = &[Limit::above(
    "transactions.rollback_ratio",
    Unit::Ratio,
    Some(0.05),
    Some(0.2),
)];
const DEADLOCKS: &[Limit] = &[Limit::above("deadlocks", Unit::PerHour, Some(1.0), Some(10.0))];

/// Fewer transactions than this are no load to judge a ratio by.
const FEWEST_TRANSACTIONS: i64 = 100;

pub(super) fn checks() -> Vec<Question> {
    vec![
        Question::new(
            "transactions.rate",
            "transactions a second against the usual rate at this hour of the week",
            RATE,
            |context| Box::pin(rate(context)),
        ),
        Question::new(
            "transactions.rollback_ratio",
            "share of transactions rolled back, over an interval",
            ROLLBACKS,
            |context| Box::pin(rollbacks(context)),
        ),
        Question::new(
            "deadlocks",
            "deadlocks an hour, over an interval",
            DEADLOCKS,
            |context| Box::pin(deadlocks(context)),
        ),
    ]
}

async fn rate(context: &Context) -> Result<Verdict, Failure> {
    let Some(history) = &context.sources().history else {
        return if context.is_asked_for("transactions.rate") {
            Err(Failure::Source {
                reason: "there is no baseline: no history of earlier samples is kept".to_owned(),
            })
        } else {
            Ok(Verdict::not_applicable("no history of earlier samples is kept"))
        };
    };
    let window = match context.window().await {
        Ok(window) => window,
        Err(failure) => return Ok(no_window(failure)?.into()),
    };
    let now = window.sum(|counters| counters.commits + counters.rollbacks) as f64 / window.seconds;
    let usual = history
        .baseline(&context.target().name, "transactions.rate")
        .await
        .map_err(|reason| Failure::Source { reason })?
        .filter(|usual| *usual > 0.0)
        .ok_or_else(|| Failure::Source {
            reason: "there is no baseline for this hour of the week yet".to_owned(),
        })?;
    Ok(Finding::judged(
        Measure::ratio((now - usual).abs() / usual),
        context.limit("transactions.rate"),
        format!(
            "{now:.1} transactions a second over {}, usually {usual:.1}",
            human_seconds(window.seconds)
        ),
    )
    .hint("compare with what the applications did: a sudden fall is often an outage in front of the database")
    .into())
}

async fn rollbacks(context: &Context) -> Result<Verdict, Failure> {
    let window = match context.window().await {
        Ok(window) => window,
        Err(failure) => return Ok(no_window(failure)?.into()),
    };
    let commits = window.sum(|counters| counters.commits);
    let rollbacks = window.sum(|counters| counters.rollbacks);
    let span = human_seconds(window.seconds);
    let limit = context.limit("transactions.rollback_ratio");
    let all = commits + rollbacks;
    if all < FEWEST_TRANSACTIONS {
        let mut finding = Finding::ok(format!(
            "only {} transactions ended in {span}, {rollbacks} of them rolled back: too few to judge by",
            human_count(all as f64)
        ));
        finding.thresholds = limit;
        return Ok(finding.into());
    }
    let mut databases: Vec<_> = window
        .databases
        .iter()
        .filter(|(_, counters)| counters.rollbacks > 0)
        .collect();
    databases.sort_by_key(|(_, counters)| std::cmp::Reverse(counters.rollbacks));
    let rows = Rows::new(["database", "committed", "rolled back"]).with(databases.into_iter().map(
        |(name, counters)| {
            [
                name.clone(),
                counters.commits.to_string(),
                counters.rollbacks.to_string(),
            ]
        },
    ));
    let finding = Finding::judged(
        Measure::ratio(rollbacks as f64 / all as f64),
        limit,
        format!(
            "{} of {} transactions in {span} were rolled back",
            human_count(rollbacks as f64),
            human_count(all as f64)
        ),
    );
    Ok(if finding.status == Status::Ok {
        finding
    } else {
        finding.rows(rows)
    }
    .hint(
        "the server's log has the errors behind them: grep for ERROR, or set log_min_error_statement = error",
    )
    .into())
}

async fn deadlocks(context: &Context) -> Result<Verdict, Failure> {
    let window = match context.window().await {
        Ok(window) => window,
        Err(failure) => return Ok(no_window(failure)?.into()),
    };
    let count = window.sum(|counters| counters.deadlocks);
    // One deadlock in a second is one, not 3,600 an hour.
    let hours = (window.seconds / 3600.0).max(1.0);
    let rows = Rows::new(["database", "deadlocks"]).with(
        window
            .databases
            .iter()
            .filter(|(_, counters)| counters.deadlocks > 0)
            .map(|(name, counters)| [name.clone(), counters.deadlocks.to_string()]),
    );
    Ok(Finding::judged(
        Measure::new(count as f64 / hours, Unit::PerHour),
        context.limit("deadlocks"),
        format!(
            "{} in {}",
            plural(count as usize, "deadlock", "deadlocks"),
            human_seconds(window.seconds)
        ),
    )
    .rows(rows)
    .hint(
        "the server's log names both statements of each (grep 'deadlock detected'): let every transaction lock rows \
         and tables in the same order",
    )
    .into())
}
