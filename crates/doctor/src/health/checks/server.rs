//! Whether the server answers, and whether it is what it should be.

use std::future::ready;

use pgmahout_types::version::ServerVersion;

use super::Question;
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit, human_seconds};
use crate::health::result::Finding;
use crate::health::status::Status;
use crate::health::target::Role;

const REACHABLE: &[Limit] = &[Limit::above("server.reachable", Unit::Seconds, Some(0.5), None)];
const ROLE: &[Limit] = &[Limit::below(
    "server.role.uptime",
    Unit::Seconds,
    Some(600.0),
    None,
)];

/// Minor releases known when this was built: an older one of the same major lacks published fixes
/// (PostgreSQL's versioning policy).
const NEWEST_KNOWN_MINORS: &[(u32, u32)] = &[(14, 23), (15, 20), (16, 14), (17, 10), (18, 6)];

pub(super) fn checks() -> Vec<Question> {
    vec![
        Question::new(
            "server.reachable",
            "connecting and the first answer",
            REACHABLE,
            |context| Box::pin(ready(Ok(reachable(context)))),
        )
        .without_server(),
        Question::new("server.role", "role, uptime and version", ROLE, |context| {
            Box::pin(ready(role(context)))
        }),
    ]
}

fn reachable(context: &Context) -> Verdict {
    let reach = context.reach();
    let elapsed = Measure::seconds(reach.elapsed.as_secs_f64());
    let Some(failure) = &reach.failure else {
        return Finding::judged(
            elapsed,
            context.limit("server.reachable"),
            format!("answered after {elapsed}"),
        )
        .hint("a slow connect is often DNS, a busy machine or many connections being opened: a pooler helps")
        .into();
    };
    let hint = failure.hint.clone().unwrap_or_else(|| {
        if failure.is_full() {
            "no connection is left: end idle ones (SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE \
             state = 'idle' ...) as a superuser, for whom some are reserved"
                .to_owned()
        } else {
            "see whether the server runs (pg_isready with the same host and port) and what its log says last"
                .to_owned()
        }
    });
    let mut finding = Finding::crit(failure.message.clone()).hint(hint);
    finding.thresholds = context.limit("server.reachable");
    finding.into()
}

fn role(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts()?;
    let is = if facts.in_recovery {
        Role::Standby
    } else {
        Role::Primary
    };
    let expected = context.target().expectations.role;
    let uptime = Measure::seconds((facts.now - facts.started).max(0.0));
    let mut evidence = format!(
        "{}, PostgreSQL {}, up for {uptime}, timeline {}",
        is.as_str(),
        facts.version,
        facts.timeline
    );
    let superseded = superseded_by(facts.version);
    if let Some(newest) = superseded {
        evidence = format!("{evidence}; {newest} has since been released");
    }
    let limit = context.limit("server.role.uptime");
    let mut finding = Finding::judged(uptime, limit, evidence);
    if finding.status != Status::Ok {
        finding = finding.hint(format!(
            "it restarted {} ago: see in the server's log why",
            human_seconds(uptime.value)
        ));
    }
    if let Some(newest) = superseded {
        finding = finding.at_least(Status::Warn).hint(format!(
            "install the minor release (apt-get install postgresql-{}) and restart; it needs no dump and restore: \
             https://www.postgresql.org/docs/release/{newest}/",
            facts.version.major()
        ));
    }
    if let Some(expected) = expected.filter(|expected| *expected != is) {
        finding.status = Status::Crit;
        finding.evidence = format!(
            "expected a {}, but it is a {}",
            expected.as_str(),
            finding.evidence
        );
        finding = finding.hint(
            "find out which server takes writes before changing anything: two primaries must not both be written to",
        );
    }
    Ok(finding.into())
}

/// The newer minor release that this build knows of.
fn superseded_by(version: ServerVersion) -> Option<ServerVersion> {
    let (major, minor) = NEWEST_KNOWN_MINORS
        .iter()
        .find(|(major, _)| *major == version.major())?;
    (version.minor() < *minor).then(|| ServerVersion::from_number(major * 10_000 + minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_known_newer_minor_release_supersedes() {
        let superseded =
            |number| superseded_by(ServerVersion::from_number(number)).map(ServerVersion::number);
        assert_eq!(superseded(150_018), Some(150_020));
        assert_eq!(superseded(150_020), None);
        assert_eq!(superseded(150_099), None);
        assert_eq!(superseded(190_000), None);
    }
}
