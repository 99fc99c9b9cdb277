//! Whether a standby receives anything at all.

use super::Question;
use super::standby::Position;
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::measure::Measure;
use crate::health::result::Finding;

pub(super) fn checks() -> Vec<Question> {
    vec![Question::new(
        "replication.receiver",
        "a standby's walreceiver streams",
        &[],
        |context| Box::pin(receiver(context)),
    )]
}

async fn receiver(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts_with_statistics()?;
    if !facts.in_recovery {
        return Ok(Verdict::not_applicable("this server is a primary"));
    }
    // Its value may hold a password and is never shown; that it is empty is all that is asked.
    let by_archive_only = facts
        .setting("primary_conninfo")
        .is_some_and(|value| value.trim().is_empty());
    let position = Position::ask(context).await?;
    if by_archive_only && position.status.is_none() {
        return Ok(Verdict::not_applicable(
            "primary_conninfo is empty: this standby only replays archived WAL",
        ));
    }
    let sender = match (&position.sender_host, position.sender_port) {
        (Some(host), Some(port)) => format!(" from {host}:{port}"),
        _ => String::new(),
    };
    let silent = position.silent.map(|seconds| Measure::seconds(seconds.max(0.0)));
    if position.is_streaming() {
        let mut evidence = format!("the walreceiver streams{sender}");
        if let Some(silent) = silent {
            evidence = format!("{evidence}, last heard of it {silent} ago");
        }
        return Ok(Finding::ok(evidence).into());
    }
    let evidence = match &position.status {
        None => format!(
            "no walreceiver is running: this standby receives nothing; it has replayed up to {}",
            position.replayed_at.as_deref().unwrap_or("an unknown position")
        ),
        Some(status) => format!("the walreceiver{sender} is {status}, not streaming"),
    };
    Ok(Finding::crit(evidence)
        .hint(
            "this server's log says why after each try: the primary is unreachable or refuses the login \
             (primary_conninfo), or no longer has the WAL ('requested WAL segment ... has already been removed': build \
             the standby anew, and give it a slot)",
        )
        .into())
}
