//! How many block reads the shared buffers answer, over an interval: counters since the last reset hide
//! today's problem behind last month's good days.

use super::Question;
use super::interval::no_window;
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit, human_count, human_seconds};
use crate::health::result::Finding;

const HIT_RATIO: &[Limit] = &[Limit::below(
    "cache.hit_ratio",
    Unit::Ratio,
    Some(0.95),
    Some(0.9),
)];

/// Fewer blocks than this read from outside the buffers are no load to judge by.
const FEWEST_READS: i64 = 1_000;

pub(super) fn checks() -> Vec<Question> {
    vec![Question::new(
        "cache.hit_ratio",
        "block reads answered by the shared buffers, over an interval",
        HIT_RATIO,
        |context| Box::pin(hit_ratio(context)),
    )]
}

async fn hit_ratio(context: &Context) -> Result<Verdict, Failure> {
    let window = match context.window().await {
        Ok(window) => window,
        Err(failure) => return Ok(no_window(failure)?.into()),
    };
    let hits = window.sum(|counters| counters.blocks_hit);
    let reads = window.sum(|counters| counters.blocks_read);
    let span = human_seconds(window.seconds);
    let limit = context.limit("cache.hit_ratio");
    if reads < FEWEST_READS {
        let mut finding = Finding::ok(format!(
            "only {} blocks were read from outside the shared buffers in {span}: too few to judge by",
            human_count(reads as f64)
        ));
        finding.thresholds = limit;
        return Ok(finding.into());
    }
    let ratio = hits as f64 / (hits + reads) as f64;
    Ok(Finding::judged(
        Measure::ratio(ratio),
        limit,
        format!(
            "{} of {} block reads in {span} were answered by the shared buffers ({})",
            human_count(hits as f64),
            human_count((hits + reads) as f64),
            context.facts()?.setting("shared_buffers").map_or_else(String::new, |_| {
                format!(
                    "shared_buffers is {}",
                    Measure::bytes(context.facts.as_ref().ok().and_then(|facts| facts.bytes("shared_buffers")).unwrap_or(0))
                )
            })
        ),
    )
    .hint(
        "find who reads most: SELECT relid::regclass, heap_blks_read FROM pg_statio_user_tables ORDER BY 2 DESC LIMIT \
         10; a missing index reads whole tables, a working set larger than memory needs more shared_buffers",
    )
    .into())
}
