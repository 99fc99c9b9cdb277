//! Runs the checks: all targets at once, all checks of a target at once, on its few sessions.
//!
//! Nothing that a target does delays another. A check that fails or takes too long becomes UNKNOWN and the
//! others go on; a server that cannot be reached is a result. Cancelled, a run ends at once and gives no
//! report; its sessions close and their statements end with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;

use super::check::{Check, Verdict};
use super::context::{Context, Reach};
use super::facts::Facts;
use super::failure::Failure;
use super::limits::{Limit, Limits};
use super::measure::human_seconds;
use super::report::HealthReport;
use super::result::{CheckResult, Skipped};
use super::sample::{Sample, SampleStore};
use super::select::Selection;
use super::sessions::{ConnectFailure, Sessions};
use super::sources::Sources;
use super::target::Target;

/// How long connecting and the first questions may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one check may take, its interval not counted.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a check waits to hear of the other targets.
const FLEET_TIMEOUT: Duration = Duration::from_millis(1500);

/// What the other targets of a run need to know of one.
#[derive(Debug, Clone)]
pub struct Member {
    /// The target's name.
    pub target: String,
    /// Its cluster.
    pub system_identifier: String,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// A primary's WAL position, in bytes since 0/0.
    pub lsn: Option<i64>,
    /// The settings that no standby may have lower than its primary, with their values.
    pub standby_minimums: Vec<(&'static str, i64)>,
}

/// Settings that a hot standby needs at least as high as its primary has them (documentation, "Hot Standby",
/// "Administrator's Overview").
const STANDBY_MINIMUMS: [&str; 5] = [
    "max_connections",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "max_wal_senders",
    "max_worker_processes",
];

/// The targets of a run, as far as they have been heard of.
#[derive(Debug)]
pub struct Fleet {
    size: usize,
    /// None is a target that could not be reached.
    heard: watch::Sender<BTreeMap<String, Option<Member>>>,
}

impl Fleet {
    /// A run on this many targets.
    pub fn new(size: usize) -> Self {
        Self {
            size,
            heard: watch::Sender::new(BTreeMap::new()),
        }
    }

    fn tell(&self, target: &str, member: Option<Member>) {
        self.heard.send_modify(|heard| {
            heard.insert(target.to_owned(), member);
        });
    }

    /// The primary of this cluster among the other targets, once it is heard of; none where all have been
    /// heard of and there is none, or the slow ones take too long.
    pub async fn primary_of(&self, system_identifier: &str) -> Option<Member> {
        let find = |heard: &BTreeMap<String, Option<Member>>| {
            heard
                .values()
                .flatten()
                .find(|member| member.system_identifier == system_identifier && !member.in_recovery)
                .cloned()
        };
        let mut receiver = self.heard.subscribe();
        let wait = receiver.wait_for(|heard| heard.len() >= self.size || find(heard).is_some());
        let _ = tokio::time::timeout(FLEET_TIMEOUT, wait).await;
        find(&self.heard.borrow())
    }
}

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Which checks.
    pub selection: Selection,
    /// Take a second sample after this long, instead of comparing with the last run.
    pub interval: Option<Duration>,
}

/// The checks, their thresholds and their sources.
pub struct Runner {
    checks: Vec<Box<dyn Check>>,
    limits: Arc<Limits>,
    sources: Sources,
    samples: Option<SampleStore>,
    latest: Mutex<BTreeMap<String, Sample>>,
}

impl Runner {
    /// A runner of these checks, without sources, without a place for samples.
    pub fn new(checks: Vec<Box<dyn Check>>) -> Self {
        let limits = Limits::new(checks.iter().flat_map(|check| check.limits().iter().cloned()));
        Self {
            checks,
            limits: Arc::new(limits),
            sources: Sources::default(),
            samples: None,
            latest: Mutex::default(),
        }
    }

    /// The thresholds, to be changed before a run.
    pub fn limits_mut(&mut self) -> &mut Limits {
        Arc::make_mut(&mut self.limits)
    }

    /// The thresholds in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Reads from these too.
    pub fn sources(mut self, sources: Sources) -> Self {
        self.sources = sources;
        self
    }

    /// Keeps samples here from run to run.
    pub fn samples(mut self, store: SampleStore) -> Self {
        self.samples = Some(store);
        self
    }

    /// Every check: id, what it measures, its limits.
    pub fn catalogue(&self) -> impl Iterator<Item = (&str, &str, &[Limit])> {
        self.checks
            .iter()
            .map(|check| (check.id(), check.title(), check.limits()))
    }

    /// Looks at all targets. None where it was cancelled.
    pub async fn run(
        &self,
        targets: &[Target],
        request: &Request,
        cancellation: &CancellationToken,
    ) -> Option<HealthReport> {
        let taken_at = jiff::Timestamp::now();
        let begin = Instant::now();
        let fleet = Arc::new(Fleet::new(targets.len()));
        let selection = Arc::new(request.selection.clone());
        let all = futures::future::join_all(
            targets
                .iter()
                .map(|target| self.look(target, request.interval, &selection, &fleet)),
        );
        let answers = tokio::select! {
            answers = all => answers,
            () = cancellation.cancelled() => return None,
        };
        let (mut results, mut skipped, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        for answer in answers {
            results.extend(answer.results);
            skipped.extend(answer.skipped);
            notes.extend(answer.note);
        }
        let names = targets.iter().map(|target| target.name.clone()).collect();
        Some(HealthReport::new(
            taken_at,
            begin.elapsed(),
            names,
            results,
            skipped,
            notes,
        ))
    }

    async fn look(
        &self,
        target: &Target,
        interval: Option<Duration>,
        selection: &Arc<Selection>,
        fleet: &Arc<Fleet>,
    ) -> Answer {
        let sessions = Sessions::new(Arc::clone(&target.connect));
        let begin = Instant::now();
        let mut facts = Err(Failure::Connection {
            message: "none could be opened on the server; see server.reachable".to_owned(),
        });
        let first = async {
            sessions.open_first().await?;
            let elapsed = begin.elapsed();
            facts = match sessions.lease(None).await {
                Ok(mut lease) => Facts::ask(&mut lease).await,
                Err(failure) => Err(failure),
            };
            Ok(elapsed)
        };
        let reach = match tokio::time::timeout(CONNECT_TIMEOUT, first).await {
            Ok(Ok(elapsed)) => Reach {
                elapsed,
                failure: None,
            },
            Ok(Err(failure)) => Reach {
                elapsed: begin.elapsed(),
                failure: Some(failure),
            },
            Err(_) => Reach {
                elapsed: begin.elapsed(),
                failure: Some(ConnectFailure {
                    message: format!(
                        "no answer within {}",
                        human_seconds(CONNECT_TIMEOUT.as_secs_f64())
                    ),
                    code: None,
                    hint: None,
                }),
            },
        };
        // Connected, but the first questions were not answered: say that, not that nothing was.
        let reach = match (&facts, reach.failure.is_none()) {
            (Err(failure), true) => Reach {
                failure: Some(ConnectFailure {
                    message: format!("connected, but {failure}"),
                    code: None,
                    hint: None,
                }),
                ..reach
            },
            _ => reach,
        };
        fleet.tell(
            &target.name,
            facts.as_ref().ok().map(|facts| Member {
                target: target.name.clone(),
                system_identifier: facts.system_identifier.clone(),
                in_recovery: facts.in_recovery,
                lsn: facts.lsn,
                standby_minimums: STANDBY_MINIMUMS
                    .into_iter()
                    .filter_map(|name| Some((name, facts.number(name)?)))
                    .collect(),
            }),
        );
        if let Ok(facts) = &facts
            && facts.looks_into_several_databases()
        {
            sessions.leave_room_for_endings();
        }
        let previous = facts.as_ref().ok().and_then(|facts| self.previous(facts, target));
        let context = Context {
            target: target.clone(),
            sessions,
            reach,
            facts,
            limits: Arc::clone(&self.limits),
            selection: Arc::clone(selection),
            sources: self.sources.clone(),
            fleet: Arc::clone(fleet),
            interval,
            previous,
            current: Mutex::default(),
            window: OnceCell::new(),
            survey: OnceCell::new(),
        };
        let answer = self.ask_all(&context).await;
        context.sessions.close().await;
        answer
    }

    fn previous(&self, facts: &Facts, target: &Target) -> Option<Sample> {
        let latest = self
            .latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&target.name)
            .cloned();
        latest.or_else(|| {
            self.samples
                .as_ref()?
                .load(&facts.system_identifier, &target.name)
        })
    }

    async fn ask_all(&self, context: &Context) -> Answer {
        let mut running = FuturesUnordered::new();
        let mut skipped = Vec::new();
        let target = &context.target.name;
        let skip = |id: &str, reason: String| Skipped {
            id: id.to_owned(),
            target: target.clone(),
            reason,
        };
        for (position, check) in self.checks.iter().enumerate() {
            let id = check.id();
            if !context.selection.selects(id) {
                continue;
            }
            if check.only_when_asked() && !context.selection.asks_for(id) {
                skipped.push(skip(id, "runs only when asked for with --only".to_owned()));
            } else if context.facts.is_err() && check.needs_server() {
                skipped.push(skip(id, Skipped::NOT_LOOKED_AT.to_owned()));
            } else {
                running.push(ask(check.as_ref(), context, position));
            }
        }
        let mut answered = Vec::new();
        let mut ran = BTreeSet::new();
        while let Some((position, verdict, duration)) = running.next().await {
            let id = self.checks[position].id();
            ran.insert(id);
            match verdict {
                Verdict::Findings(findings) => answered.extend(
                    findings
                        .into_iter()
                        .map(|finding| (position, CheckResult::new(id, target, finding, duration))),
                ),
                Verdict::NotApplicable(reason) => skipped.push(skip(id, reason)),
            }
        }
        drop(running);
        answered.sort_by_key(|(position, _)| *position);
        let order = |id: &str| self.checks.iter().position(|check| check.id() == id);
        skipped.sort_by_key(|skipped| order(&skipped.id));
        let note = self.keep_sample(context, &ran);
        Answer {
            results: answered.into_iter().map(|(_, result)| result).collect(),
            skipped,
            note,
        }
    }

    /// Keeps the sample for the next run. That it cannot be written is worth a note, not a finding.
    fn keep_sample(&self, context: &Context, ran: &BTreeSet<&str>) -> Option<String> {
        let facts = context.facts.as_ref().ok()?;
        let mut sample = context
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if sample == Sample::default() {
            return None;
        }
        sample.schema_version = Sample::VERSION;
        sample.server_started = facts.started;
        if sample.taken == 0.0 {
            sample.taken = facts.now;
        }
        if let Some(previous) = &context.previous {
            if sample.databases.is_empty() {
                // This run looked at no counters: those of the last one still serve.
                sample.taken = previous.taken;
                sample.databases.clone_from(&previous.databases);
            }
            // So does what checks noted that did not run this time; a key begins with its check's id.
            let kept = |key: &str| !ran.contains(key.split(' ').next().unwrap_or(key));
            for (key, value) in previous.since.iter().filter(|(key, _)| kept(key)) {
                sample.since.insert(key.clone(), *value);
            }
            for (key, value) in previous.values.iter().filter(|(key, _)| kept(key)) {
                sample.values.insert(key.clone(), *value);
            }
        }
        let target = &context.target.name;
        self.latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(target.clone(), sample.clone());
        let failure = self
            .samples
            .as_ref()?
            .save(&facts.system_identifier, target, &sample)
            .err()?;
        Some(format!("the sample for the next run was not stored: {failure}"))
    }
}

struct Answer {
    results: Vec<CheckResult>,
    skipped: Vec<Skipped>,
    note: Option<String>,
}

async fn ask(check: &dyn Check, context: &Context, position: usize) -> (usize, Verdict, Duration) {
    let begin = Instant::now();
    let limit = CHECK_TIMEOUT + context.interval.unwrap_or_default();
    let answer = match tokio::time::timeout(limit, check.run(context)).await {
        Ok(answer) => answer,
        Err(_) => Err(Failure::TimedOut { limit }),
    };
    let verdict = answer.unwrap_or_else(|failure| {
        let grant = context
            .facts
            .as_ref()
            .map_or_else(|_| check.grant().to_owned(), |facts| facts.grant(check.grant()));
        failure.into_finding(Some(grant)).into()
    });
    (position, verdict, begin.elapsed())
}
