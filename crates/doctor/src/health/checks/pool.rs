//! `pool.*`: PgBouncer, through its admin console.
//!
//! Columns are found by name, because their places and number differ between versions; `maxwait` is read
//! with its microseconds, without which a wait under a second reads as none (PgBouncer documentation,
//! "Admin console").

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::ConnectionParameters;
use tokio::sync::OnceCell;
use tokio_postgres::SimpleQueryMessage;

use crate::health::failure::chain;
use crate::health::{Check, Context, Failure, Finding, Limit, Measure, Rows, Unit, Verdict};

/// How long the console may take to answer everything.
const PATIENCE: Duration = Duration::from_secs(5);

/// The checks of one PgBouncer; `console` leads to its `pgbouncer` database.
pub fn checks(console: ConnectionParameters) -> Vec<Box<dyn Check>> {
    let console = Arc::new(Console {
        parameters: console,
        state: OnceCell::new(),
    });
    let question = |id, title, limits, judge| -> Box<dyn Check> {
        Box::new(Pool {
            id,
            title,
            limits,
            judge,
            console: Arc::clone(&console),
        })
    };
    vec![
        question(
            "pool.reachable",
            "whether the pooler's console answers",
            REACHABLE,
            reachable,
        ),
        question(
            "pool.waiting",
            "how long clients wait for a server connection",
            WAITING,
            waiting,
        ),
        question(
            "pool.saturation",
            "share of each pool's server connections in use",
            SATURATION,
            saturation,
        ),
        question(
            "pool.clients",
            "share of max_client_conn in use",
            CLIENTS,
            clients,
        ),
        question(
            "pool.paused",
            "databases that are paused or disabled",
            &[],
            paused,
        ),
    ]
}

const REACHABLE: &[Limit] = &[Limit::above("pool.reachable", Unit::Seconds, Some(0.5), None)];
const WAITING: &[Limit] = &[Limit::above("pool.waiting", Unit::Seconds, Some(1.0), Some(5.0))];
const SATURATION: &[Limit] = &[Limit::above(
    "pool.saturation",
    Unit::Ratio,
    Some(0.80),
    Some(0.90),
)];
const CLIENTS: &[Limit] = &[Limit::above("pool.clients", Unit::Ratio, Some(0.80), Some(0.90))];

/// A row of the console: column name to text.
type Row = BTreeMap<String, String>;

/// What the console showed, once a run.
#[derive(Debug)]
struct State {
    elapsed: Duration,
    version: String,
    pools: Vec<Row>,
    databases: Vec<Row>,
    config: BTreeMap<String, String>,
    /// `SHOW STATE`: whether the whole pooler is paused or suspended; empty where the version has it not.
    whole: BTreeMap<String, String>,
}

struct Console {
    parameters: ConnectionParameters,
    state: OnceCell<Result<State, String>>,
}

impl Console {
    async fn state(&self) -> Result<&State, &str> {
        let answer = self
            .state
            .get_or_init(|| async {
                match tokio::time::timeout(PATIENCE, self.ask()).await {
                    Ok(answer) => answer,
                    Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
                }
            })
            .await;
        answer.as_ref().map_err(String::as_str)
    }

    async fn ask(&self) -> Result<State, String> {
        let begun = Instant::now();
        let session = Connection::open(&self.parameters)
            .await
            .map_err(|error| chain(&error))?;
        let elapsed = begun.elapsed();
        let state = async {
            let config = show(&session, "CONFIG").await?;
            let whole = show(&session, "STATE").await.unwrap_or_default();
            Ok(State {
                elapsed,
                version: first(&show(&session, "VERSION").await?),
                pools: show(&session, "POOLS").await?,
                databases: show(&session, "DATABASES").await?,
                config: pairs(&config),
                whole: pairs(&whole),
            })
        }
        .await;
        session.close().await;
        state
    }
}

/// Rows of `key` and `value` as a map.
fn pairs(rows: &[Row]) -> BTreeMap<String, String> {
    rows.iter()
        .filter_map(|row| Some((row.get("key")?.clone(), row.get("value")?.clone())))
        .collect()
}

fn first(rows: &[Row]) -> String {
    rows.first()
        .and_then(|row| row.values().next())
        .cloned()
        .unwrap_or_default()
}

async fn show(session: &Connection, what: &str) -> Result<Vec<Row>, String> {
    let messages = session
        .simple_query(&format!("SHOW {what}"))
        .await
        .map_err(|error| chain(&error))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(
                row.columns()
                    .iter()
                    .enumerate()
                    .map(|(place, column)| {
                        (
                            column.name().to_owned(),
                            row.get(place).unwrap_or_default().to_owned(),
                        )
                    })
                    .collect(),
            ),
            _ => None,
        })
        .collect())
}

struct Pool {
    id: &'static str,
    title: &'static str,
    limits: &'static [Limit],
    judge: fn(&State, &Context) -> Finding,
    console: Arc<Console>,
}

#[async_trait]
impl Check for Pool {
    fn id(&self) -> &str {
        self.id
    }

    fn title(&self) -> &str {
        self.title
    }

    fn limits(&self) -> &[Limit] {
        self.limits
    }

    fn needs_server(&self) -> bool {
        false
    }

    async fn run(&self, context: &Context) -> Result<Verdict, Failure> {
        match self.console.state().await {
            Ok(state) => Ok((self.judge)(state, context).into()),
            Err(reason) if self.id == "pool.reachable" => Ok(Finding::crit(format!(
                "the console of PgBouncer at {} does not answer: {reason}",
                self.console.parameters.describe()
            ))
            .hint("see whether PgBouncer runs, and that the role is in its admin_users or stats_users")
            .into()),
            Err(_) => Ok(Verdict::not_applicable(
                "the pooler cannot be reached; see pool.reachable",
            )),
        }
    }
}

fn number(row: &Row, column: &str) -> f64 {
    row.get(column).and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

fn text(row: &Row, column: &str) -> String {
    row.get(column).cloned().unwrap_or_default()
}

/// The console's own pseudo-database is no pool.
fn pools(state: &State) -> impl Iterator<Item = &Row> {
    state
        .pools
        .iter()
        .filter(|row| text(row, "database") != "pgbouncer")
}

fn reachable(state: &State, context: &Context) -> Finding {
    let elapsed = Measure::seconds(state.elapsed.as_secs_f64());
    Finding::judged(
        elapsed,
        context.limit("pool.reachable"),
        format!("{} answered", state.version),
    )
    .hint("the pooler is slow to accept clients: see its log and its host's load")
}

fn waiting(state: &State, context: &Context) -> Finding {
    let mut rows = Rows::new([
        "pool",
        "clients waiting",
        "longest wait",
        "servers active",
        "servers idle",
    ]);
    let mut longest = 0.0_f64;
    let mut clients = 0.0;
    for row in pools(state) {
        let wait = number(row, "maxwait") + number(row, "maxwait_us") / 1e6;
        if number(row, "cl_waiting") > 0.0 || wait > 0.0 {
            rows.push([
                format!("{}/{}", text(row, "database"), text(row, "user")),
                text(row, "cl_waiting"),
                Measure::seconds(wait).to_string(),
                text(row, "sv_active"),
                text(row, "sv_idle"),
            ]);
        }
        clients += number(row, "cl_waiting");
        longest = longest.max(wait);
    }
    let evidence = if rows.is_empty() {
        "no client waits for a server connection".to_owned()
    } else {
        format!(
            "{clients} clients wait, the longest for {}",
            Measure::seconds(longest)
        )
    };
    Finding::judged(Measure::seconds(longest), context.limit("pool.waiting"), evidence)
        .rows(rows)
        .hint("find what holds the server connections: pgmahout health --only 'connections.*,queries.long,locks.*'; then raise default_pool_size if the server has room")
}

fn saturation(state: &State, context: &Context) -> Finding {
    let sizes: BTreeMap<String, f64> = state
        .databases
        .iter()
        .map(|row| (text(row, "name"), number(row, "pool_size")))
        .collect();
    let mut rows = Rows::new(["pool", "servers in use", "pool size", "share"]);
    let mut worst = (0.0_f64, "no pool is in use".to_owned());
    for row in pools(state) {
        let size = sizes.get(&text(row, "database")).copied().unwrap_or(0.0);
        if size <= 0.0 {
            continue;
        }
        let used = number(row, "sv_active") + number(row, "sv_login") + number(row, "sv_tested");
        let share = used / size;
        let name = format!("{}/{}", text(row, "database"), text(row, "user"));
        rows.push([
            name.clone(),
            used.to_string(),
            size.to_string(),
            Measure::ratio(share).to_string(),
        ]);
        if share >= worst.0 {
            worst = (share, format!("{name} uses {used} of {size} server connections"));
        }
    }
    Finding::judged(Measure::ratio(worst.0), context.limit("pool.saturation"), worst.1)
        .rows(rows)
        .hint("raise default_pool_size (psql -d pgbouncer -c 'SHOW CONFIG'), within the server's max_connections")
}

fn clients(state: &State, context: &Context) -> Finding {
    let most: f64 = state
        .config
        .get("max_client_conn")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0.0);
    let used = pools(state).fold(0.0, |sum, row| {
        sum + number(row, "cl_active") + number(row, "cl_waiting")
    });
    let share = if most > 0.0 { used / most } else { 0.0 };
    Finding::judged(
        Measure::ratio(share),
        context.limit("pool.clients"),
        format!("{used} of max_client_conn = {most} clients"),
    )
    .hint("raise max_client_conn and the process's limit of open files, or find who connects: psql -d pgbouncer -c 'SHOW CLIENTS'")
}

fn paused(state: &State, _context: &Context) -> Finding {
    let mut rows = Rows::new(["database", "paused", "disabled"]);
    for row in &state.databases {
        let (paused, disabled) = (text(row, "paused"), text(row, "disabled"));
        if paused == "1" || disabled == "1" {
            rows.push([text(row, "name"), paused, disabled]);
        }
    }
    let whole = ["paused", "suspended"]
        .into_iter()
        .find(|what| state.whole.get(*what).is_some_and(|value| value == "yes"));
    if let Some(what) = whole {
        return Finding::crit(format!("the whole pooler is {what}: every client waits"))
            .rows(rows)
            .hint("psql -d pgbouncer -c 'RESUME'");
    }
    if rows.is_empty() {
        return Finding::ok("no database is paused or disabled");
    }
    let names: Vec<String> = rows.rows.iter().map(|row| row[0].clone()).collect();
    Finding::crit(format!(
        "clients of these databases wait or are refused: {}",
        names.join(", ")
    ))
    .rows(rows)
    .hint("psql -d pgbouncer -c 'RESUME', or ENABLE for a disabled one")
}
