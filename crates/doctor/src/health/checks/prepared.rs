//! Prepared transactions: they survive everything, holding their locks.

use serde::Deserialize;

use super::{Question, plural};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit, human_count};
use crate::health::result::{Finding, Rows};

const OLDEST: &[Limit] = &[Limit::above(
    "prepared_transactions",
    Unit::Seconds,
    Some(300.0),
    Some(3600.0),
)];

pub(super) fn checks() -> Vec<Question> {
    vec![Question::new(
        "prepared_transactions",
        "oldest prepared transaction",
        OLDEST,
        |context| Box::pin(prepared(context)),
    )]
}

/// Readable by everybody. On a standby the transactions are not there until it is promoted.
const PREPARED: &str = "
SELECT gid, owner::text AS owner, database::text AS database,
       extract(epoch FROM clock_timestamp() - prepared)::float8 AS seconds, age(transaction)::bigint AS ids
  FROM pg_prepared_xacts ORDER BY prepared";

#[derive(Deserialize)]
struct Prepared {
    gid: String,
    owner: String,
    database: String,
    seconds: f64,
    ids: i64,
}

async fn prepared(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts()?;
    if facts.in_recovery {
        return Ok(Verdict::not_applicable("prepared transactions are the primary's"));
    }
    let limit = context.limit("prepared_transactions");
    let all: Vec<Prepared> = context.rows(PREPARED).await?;
    let Some(oldest) = all.first() else {
        return Ok(Finding::judged(Measure::seconds(0.0), limit, "no transaction is prepared").into());
    };
    let age = Measure::seconds(oldest.seconds.max(0.0));
    let evidence = format!(
        "{} prepared, the oldest for {age}: {} of {} in {}",
        plural(all.len(), "transaction is", "transactions are"),
        oldest.gid,
        oldest.owner,
        oldest.database
    );
    let gid = oldest.gid.replace('\'', "''");
    let hint = format!(
        "it holds its locks and old row versions over restarts. Ask its transaction manager, then, connected to {}: \
         COMMIT PREPARED '{gid}' or ROLLBACK PREPARED '{gid}'",
        oldest.database
    );
    let rows = Rows::new(["gid", "owner", "database", "prepared for", "transactions"]).with(
        all.into_iter().map(|one| {
            [
                one.gid,
                one.owner,
                one.database,
                Measure::seconds(one.seconds.max(0.0)).to_string(),
                human_count(one.ids as f64),
            ]
        }),
    );
    Ok(Finding::judged(age, limit, evidence).rows(rows).hint(hint).into())
}
