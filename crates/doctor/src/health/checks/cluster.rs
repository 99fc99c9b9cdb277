//! Clusters with an HA daemon, their routes, Citus: judged from sources that other parts of the program
//! provide. Without a source these checks do not apply, and say so where they are asked for.

use super::{Question, plural};
use crate::health::check::Verdict;
use crate::health::context::Context;
use crate::health::failure::Failure;
use crate::health::limits::Limit;
use crate::health::measure::{Measure, Unit};
use crate::health::result::{Finding, Rows};
use crate::health::sources::{ClusterState, RouteState};
use crate::health::status::Status;

const DAY: f64 = 86_400.0;
const FLAPPING: &[Limit] = &[Limit::above(
    "cluster.flapping",
    Unit::PerHour,
    Some(2.0),
    Some(4.0),
)];
const DRILL: &[Limit] = &[Limit::above(
    "cluster.drill_age",
    Unit::Seconds,
    Some(100.0 * DAY),
    Some(200.0 * DAY),
)];

pub(super) fn checks() -> Vec<Question> {
    vec![
        Question::new(
            "cluster.members",
            "one leader, all members running, one timeline",
            &[],
            |context| Box::pin(members(context)),
        )
        .without_server(),
        Question::new(
            "cluster.quorum",
            "the DCS has its quorum, of three members or more",
            &[],
            |context| Box::pin(quorum(context)),
        )
        .without_server(),
        Question::new(
            "cluster.flapping",
            "leader changes in the last hour",
            FLAPPING,
            |context| Box::pin(flapping(context)),
        )
        .without_server(),
        Question::new(
            "cluster.drill_age",
            "time since a failover was last practised",
            DRILL,
            |context| Box::pin(drill(context)),
        )
        .without_server(),
        Question::new(
            "route.backends",
            "writes reach the primary and only it",
            &[],
            |context| Box::pin(routes(context)),
        )
        .without_server(),
        Question::new("citus.nodes", "Citus nodes reach each other", &[], |context| {
            Box::pin(citus(context))
        }),
    ]
}

/// The cluster's state, or what to answer without a source.
async fn state(context: &Context, id: &str) -> Result<Result<ClusterState, Verdict>, Failure> {
    match &context.sources().cluster {
        Some(cluster) => cluster.state().await.map(Ok).map_err(|reason| Failure::Source {
            reason: format!("the cluster's manager cannot be asked: {reason}"),
        }),
        None if context.is_asked_for(id) => Err(Failure::Source {
            reason: "no cluster manager is known that could be asked".to_owned(),
        }),
        None => Ok(Err(Verdict::not_applicable("no cluster manager is configured"))),
    }
}

async fn members(context: &Context) -> Result<Verdict, Failure> {
    Ok(match state(context, "cluster.members").await? {
        Ok(state) => judge_members(&state).into(),
        Err(verdict) => verdict,
    })
}

fn judge_members(state: &ClusterState) -> Finding {
    let leaders: Vec<&str> = state
        .members
        .iter()
        .filter(|member| member.leader)
        .map(|member| member.name.as_str())
        .collect();
    let down: Vec<&str> = state
        .members
        .iter()
        .filter(|member| !member.running)
        .map(|member| member.name.as_str())
        .collect();
    let timelines: std::collections::BTreeSet<i64> = state
        .members
        .iter()
        .filter_map(|member| member.timeline)
        .collect();
    let hosts: std::collections::BTreeSet<&str> =
        state.members.iter().map(|member| member.host.as_str()).collect();
    let mut status = Status::Ok;
    let mut said = Vec::new();
    let mut say = |new: Status, text: String| {
        status = status.worst(new);
        said.push(text);
    };
    match leaders.as_slice() {
        [] => say(Status::Crit, "there is no leader".to_owned()),
        [_] => {}
        several => say(
            Status::Crit,
            format!("there are {} leaders: {}", several.len(), several.join(", ")),
        ),
    }
    if !down.is_empty() {
        say(Status::Warn, format!("not running: {}", down.join(", ")));
    }
    if timelines.len() > 1 {
        say(Status::Warn, format!("members are on timelines {timelines:?}"));
    }
    if hosts.len() < state.members.len() {
        say(Status::Warn, "members share a host".to_owned());
    }
    if state.wants_synchronous && !state.members.iter().any(|member| member.synchronous) {
        say(
            Status::Warn,
            "a synchronous standby is asked for and there is none".to_owned(),
        );
    }
    let evidence = if said.is_empty() {
        format!(
            "{} led by {}, all running",
            plural(state.members.len(), "member", "members"),
            leaders.first().copied().unwrap_or_default()
        )
    } else {
        said.join("; ")
    };
    let rows = Rows::new(["member", "host", "leader", "running", "timeline"]).with(state.members.iter().map(
        |member| {
            let word = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
            [
                member.name.clone(),
                member.host.clone(),
                word(member.leader),
                word(member.running),
                member
                    .timeline
                    .map_or_else(String::new, |timeline| timeline.to_string()),
            ]
        },
    ));
    Finding::new(status, evidence)
        .measured(Measure::count(leaders.len() as i64))
        .rows(rows)
        .hint("look at each member by itself: pgmahout health -h MEMBER; and at its HA daemon's log")
}

async fn quorum(context: &Context) -> Result<Verdict, Failure> {
    let state = match state(context, "cluster.quorum").await? {
        Ok(state) => state,
        Err(verdict) => return Ok(verdict),
    };
    let Some((healthy, all)) = state.quorum else {
        return Err(Failure::Source {
            reason: "the state of the DCS is not known".to_owned(),
        });
    };
    Ok(judge_quorum(healthy, all).into())
}

fn judge_quorum(healthy: u32, all: u32) -> Finding {
    let needed = all / 2 + 1;
    let status = if healthy < needed {
        Status::Crit
    } else if all < 3 || healthy < all {
        Status::Warn
    } else {
        Status::Ok
    };
    Finding::new(status, format!("{healthy} of {all} DCS members are healthy; {needed} are needed"))
        .measured(Measure::count(i64::from(healthy)))
        .hint(
            "bring the missing DCS members back before touching PostgreSQL; restarting the healthy ones takes away what \
             protects the data. Fewer than three members survive no failure",
        )
}

async fn flapping(context: &Context) -> Result<Verdict, Failure> {
    Ok(match state(context, "cluster.flapping").await? {
        Ok(state) => Finding::judged(
            Measure::new(f64::from(state.leader_changes), Unit::PerHour),
            context.limit("cluster.flapping"),
            format!("the leader changed {} in the last hour", plural(state.leader_changes as usize, "time", "times")),
        )
        .hint("an overloaded network, disk or CPU makes the leader miss its lease: compare the HA daemons' logs")
        .into(),
        Err(verdict) => verdict,
    })
}

async fn drill(context: &Context) -> Result<Verdict, Failure> {
    let state = match state(context, "cluster.drill_age").await? {
        Ok(state) => state,
        Err(verdict) => return Ok(verdict),
    };
    let limit = context.limit("cluster.drill_age");
    Ok(match state.drill_age {
        Some(age) => {
            let age = Measure::seconds(age);
            Finding::judged(age, limit, format!("a failover was practised {age} ago"))
        }
        None => Finding::warn("no failover was ever practised"),
    }
    .hint("practise a switchover at a quiet time")
    .into())
}

async fn routes(context: &Context) -> Result<Verdict, Failure> {
    match &context.sources().routes {
        Some(routes) => {
            let state = routes.state().await.map_err(|reason| Failure::Source {
                reason: format!("the routes cannot be asked: {reason}"),
            })?;
            Ok(judge_routes(&state).into())
        }
        None if context.is_asked_for("route.backends") => Err(Failure::Source {
            reason: "no HAProxy and no virtual address is known that could be asked".to_owned(),
        }),
        None => Ok(Verdict::not_applicable("no route is configured")),
    }
}

fn judge_routes(state: &RouteState) -> Finding {
    let mut status = Status::Ok;
    let mut said = Vec::new();
    match state.write_backends.as_slice() {
        [] => {
            status = Status::Crit;
            said.push("no write backend is up".to_owned());
        }
        [(_, true)] => {}
        [(name, false)] => {
            status = Status::Crit;
            said.push(format!("the write backend {name} is not the primary"));
        }
        several => {
            status = Status::Crit;
            said.push(format!("{} write backends are up", several.len()));
        }
    }
    if let Some((address, false)) = &state.address {
        status = Status::Crit;
        said.push(format!("the primary does not hold {address}"));
    }
    let down: Vec<&str> = state
        .read_backends
        .iter()
        .filter(|(_, up)| !up)
        .map(|(name, _)| name.as_str())
        .collect();
    if !down.is_empty() {
        status = status.worst(Status::Warn);
        said.push(format!("read backends are down: {}", down.join(", ")));
    }
    let evidence = if said.is_empty() {
        "writes reach the primary and only it".to_owned()
    } else {
        said.join("; ")
    };
    Finding::new(status, evidence)
        .hint("compare with the members' own roles: pgmahout health --only server.role")
}

/// Whether the database asked has Citus.
const CITUS: &str = "SELECT extversion AS version FROM pg_extension WHERE extname = 'citus'";

#[derive(serde::Deserialize)]
struct Citus {
    version: String,
}

async fn citus(context: &Context) -> Result<Verdict, Failure> {
    let facts = context.facts()?;
    match context.rows::<Citus>(CITUS).await?.first() {
        None => Ok(Verdict::not_applicable(format!(
            "Citus is not installed in the database {}",
            facts.database
        ))),
        Some(citus) => Err(Failure::Source {
            reason: format!(
                "Citus {} is installed, and this build cannot look at its nodes",
                citus.version
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::sources::ClusterMember;

    fn member(name: &str, leader: bool) -> ClusterMember {
        ClusterMember {
            name: name.to_owned(),
            host: format!("host-{name}"),
            leader,
            running: true,
            synchronous: false,
            timeline: Some(1),
        }
    }

    fn cluster(members: Vec<ClusterMember>) -> ClusterState {
        ClusterState {
            members,
            quorum: None,
            wants_synchronous: false,
            leader_changes: 0,
            drill_age: None,
        }
    }

    #[test]
    fn a_cluster_without_or_with_two_leaders_is_critical() {
        assert_eq!(
            judge_members(&cluster(vec![member("a", true), member("b", false)])).status,
            Status::Ok
        );
        assert_eq!(
            judge_members(&cluster(vec![member("a", false), member("b", false)])).status,
            Status::Crit
        );
        assert_eq!(
            judge_members(&cluster(vec![member("a", true), member("b", true)])).status,
            Status::Crit
        );
    }

    #[test]
    fn a_stopped_member_a_shared_host_and_a_missing_synchronous_standby_warn() {
        let mut stopped = cluster(vec![member("a", true), member("b", false)]);
        stopped.members[1].running = false;
        assert_eq!(judge_members(&stopped).status, Status::Warn);
        let mut shared = cluster(vec![member("a", true), member("b", false)]);
        shared.members[1].host = "host-a".to_owned();
        assert_eq!(judge_members(&shared).status, Status::Warn);
        let mut synchronous = cluster(vec![member("a", true), member("b", false)]);
        synchronous.wants_synchronous = true;
        assert_eq!(judge_members(&synchronous).status, Status::Warn);
    }

    #[test]
    fn quorum_needs_the_majority_and_three_members() {
        assert_eq!(
            [(3, 3), (2, 3), (1, 3), (2, 2), (1, 1), (0, 1)]
                .map(|(healthy, all)| judge_quorum(healthy, all).status),
            [
                Status::Ok,
                Status::Warn,
                Status::Crit,
                Status::Warn,
                Status::Warn,
                Status::Crit
            ]
        );
    }

    #[test]
    fn writes_must_reach_exactly_the_primary() {
        let routes = |write: &[(&str, bool)], read: &[(&str, bool)]| RouteState {
            write_backends: write
                .iter()
                .map(|(name, primary)| ((*name).to_owned(), *primary))
                .collect(),
            read_backends: read.iter().map(|(name, up)| ((*name).to_owned(), *up)).collect(),
            address: None,
        };
        assert_eq!(
            judge_routes(&routes(&[("a", true)], &[("b", true)])).status,
            Status::Ok
        );
        assert_eq!(
            judge_routes(&routes(&[("a", true)], &[("b", false)])).status,
            Status::Warn
        );
        assert_eq!(judge_routes(&routes(&[], &[])).status, Status::Crit);
        assert_eq!(judge_routes(&routes(&[("a", false)], &[])).status, Status::Crit);
        assert_eq!(
            judge_routes(&routes(&[("a", true), ("b", true)], &[])).status,
            Status::Crit
        );
    }
}
