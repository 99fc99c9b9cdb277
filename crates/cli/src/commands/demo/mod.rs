//! `pgmahout demo`: the main job on a throw-away cluster.
//!
//! Every step that a user could take is taken as the user would: by running this same binary with the
//! arguments that are printed, and showing what it printed. Only what a user does not do (starting the
//! servers, making data and faults) is done with SQL directly.

mod faults;
mod rewind;
mod shop;
mod stage;

use std::path::PathBuf;
use std::time::Instant;

use pgmahout_postgres::binaries::{Binaries, Requirement};
use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::throwaway::{ThrowawayHouse, ThrowawayOptions};
use pgmahout_types::diagnostic::Outcome;
use pgmahout_types::version::ServerVersion;
use serde_json::json;

use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;
use stage::Stage;

/// Show the main job on a throw-away cluster: check, back up, damage, restore, prove.
///
/// Starts a primary and a standby of its own on private sockets, loads a small shop database, checks
/// its health, makes faults that the check finds, backs the database up, drops a table, restores it and
/// proves table by table that nothing is missing. Then it archives continuously, takes a physical backup, goes
/// on writing, ruins a table at a known moment, restores the whole server to the second before, and proves
/// that too. Removes everything afterwards.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  pgmahout demo\n  pgmahout demo --scale 10 --keep")]
pub(crate) struct Args {
    /// Size of the shop: 1 is about half a million rows.
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", value_parser = positive)]
    scale: f64,

    /// Directory of PostgreSQL's server programs [default: the newest supported version found].
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,

    /// Leave the servers' directories and the dump behind.
    #[arg(long)]
    keep: bool,
}

/// A server that has just been started is nothing to warn of here, and how busy the machine is neither.
const HEALTH: [&str; 7] = [
    "health",
    "--expect-standbys",
    "1",
    "--skip",
    "server.role,host,log",
    "--interval",
    "500ms",
];

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1000.0 => Ok(value),
        _ => Err("give a number above 0 and at most 1000".into()),
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    tokio::select! {
        result = play(&args, context) => result,
        () = context.cancellation.cancelled() => {
            Err(Failure::new(Outcome::Interrupted, "the demo was interrupted; its servers are stopped and removed"))
        }
    }
}

async fn play(args: &Args, context: &Context) -> Result<ExitStatus, Failure> {
    let begun = Instant::now();
    let bin_dir = server_programs(args)?;
    let mut stage = Stage::new(context);

    stage.title("pgmahout demo: check, back up, damage, restore, prove");

    stage.begin("Start a primary and a standby");
    let house = ThrowawayHouse::create(ThrowawayOptions {
        bin_dir: bin_dir.clone(),
        parent: None,
        settings: settings(),
        keep: args.keep,
    })?;
    let primary = house.server("primary").await?;
    let mut standby = house.standby(&primary, "standby").await?;
    stage.use_servers(&primary, &bin_dir, house.root());
    let postgres = Connection::open(&primary.parameters("postgres")?).await?;
    stage.say(&format!(
        "PostgreSQL {} in {}, reachable only through its private socket.",
        postgres.server_version(),
        house.root().display()
    ));
    stage.end();

    stage.begin("Load a shop: customers, orders, payments, events");
    sql(&postgres, "CREATE DATABASE shop").await?;
    let shop = Connection::open(&primary.parameters("shop")?).await?;
    let rows = shop::load(&shop, args.scale).await?;
    stage.say(&format!(
        "{} rows in {} tables.",
        shop::thousands(rows),
        shop::TABLES.len()
    ));
    stage.end();

    stage.begin("Is the server healthy?");
    faults::wait_for_standby(&postgres).await?;
    stage.pgmahout(&HEALTH).await?.expect_success()?;
    stage.end();

    stage.begin("Make five faults, and look again");
    let faults = faults::make(&primary, &shop, &mut standby).await?;
    for fault in faults::Faults::described() {
        stage.say(&format!("- {fault}"));
    }
    let seen = stage
        .pgmahout(
            &[
                HEALTH.as_slice(),
                &["--set", "connections.idle_in_transaction=500ms,10min"],
            ]
            .concat(),
        )
        .await?;
    faults::Faults::check_found(&seen.output)?;
    stage.end();

    stage.begin("Mend them, and look once more");
    faults.mend(&shop, &mut standby).await?;
    stage.pgmahout(&HEALTH).await?.expect_success()?;
    stage.end();

    stage.begin("Back up");
    let before = shop::digests(&shop).await?;
    let dump = house.root().join("shop.sql.gz").display().to_string();
    stage
        .pgmahout(&["dump", "create", "shop", &dump])
        .await?
        .expect_success()?;
    stage.end();

    stage.begin("Damage: a table is dropped");
    stage.say("shop=# DROP TABLE payments;");
    sql(&shop, "DROP TABLE payments").await?;
    stage.say("shop=# DELETE FROM orders WHERE id % 7 = 0;");
    sql(
        &shop,
        "SET session_replication_role = replica; DELETE FROM orders WHERE id % 7 = 0; RESET session_replication_role",
    )
    .await?;
    let damaged = shop::digests(&shop).await?;
    let differing = shop::differing(&before, &damaged);
    stage.say(&format!(
        "{} of {} tables now differ: {}.",
        differing.len(),
        before.len(),
        differing.join(", ")
    ));
    if differing.is_empty() {
        return Err(Failure::new(
            Outcome::Failed,
            "the damage did not show in the digests of the tables",
        ));
    }
    shop.close().await;
    stage.end();

    stage.begin("Restore");
    stage
        .pgmahout(&["dump", "restore", &dump, "shop", "--clean", "--yes"])
        .await?
        .expect_success()?;
    stage.end();

    stage.begin("Prove it: every table against its digest before the damage");
    let shop = Connection::open(&primary.parameters("shop")?).await?;
    let after = shop::digests(&shop).await?;
    stage.table(&shop::proof(&before, &damaged, &after));
    let mut lost = shop::differing(&before, &after);
    stage.end();
    let proven = before.len();

    let rewound = rewind::play(&mut stage, &house, &primary, &shop, &bin_dir).await?;
    lost.extend(rewound.lost);

    let total = begun.elapsed();
    stage.summary(total);
    if context.printer.wants_json() {
        context.printer.json(&json!({
            "schema_version": 1,
            "rows": rows,
            "steps": stage.steps_json(),
            "seconds": total.as_secs_f64(),
            "tables": proven + rewound.tables,
            "tables_equal": proven + rewound.tables - lost.len(),
            "kept": args.keep.then(|| house.root().display().to_string()),
        }))?;
    }
    if !lost.is_empty() {
        return Err(Failure::new(
            Outcome::Failed,
            format!(
                "after the restore these tables differ from what they were: {}",
                lost.join(", ")
            ),
        ));
    }
    if args.keep {
        stage.say(&format!(
            "Kept in {}; the servers are stopped.",
            house.root().display()
        ));
    }
    shop.close().await;
    postgres.close().await;
    Ok(ExitStatus::SUCCESS)
}

/// The directory of the server programs: of the newest supported major version that is installed whole.
fn server_programs(args: &Args) -> Result<PathBuf, Failure> {
    let find = |program, requirement| Binaries::find(program, requirement, args.bin_dir.as_deref());
    for major in (ServerVersion::OLDEST_MAJOR..=ServerVersion::NEWEST_MAJOR).rev() {
        if let Ok(program) = find("initdb", Requirement::Exactly(major)) {
            return Ok(program.directory().to_owned());
        }
    }
    let program = find("initdb", Requirement::AtLeast(ServerVersion::OLDEST_MAJOR))?;
    Err(Failure::new(
        Outcome::Usage,
        format!(
            "PostgreSQL {} at {} is not a version that this build knows",
            program.version,
            program.path.display()
        ),
    )
    .hint("install a supported one: apt-get install postgresql, or name its programs with --bin-dir"))
}

/// Small, quick, and as a production server should be set.
fn settings() -> Vec<(String, String)> {
    [
        ("shared_buffers", "128MB"),
        ("max_wal_size", "2GB"),
        ("maintenance_work_mem", "128MB"),
        ("wal_level", "replica"),
        ("hot_standby", "on"),
        ("max_connections", "40"),
        ("log_line_prefix", "%m [%p] %a "),
        ("archive_mode", "on"),
        ("archive_command", "true"),
        ("synchronous_commit", "on"),
        ("fsync", "on"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .to_vec()
}

async fn sql(connection: &Connection, statement: &str) -> Result<(), Failure> {
    connection
        .batch_execute(statement)
        .await
        .map_err(|error| Failure::caused_by(format!("the demo's statement failed: {statement}"), error))
}

impl faults::Faults {
    /// The demo fails when the health check did not name each fault.
    fn check_found(output: &str) -> Result<(), Failure> {
        let missing: Vec<&str> = Self::checks().filter(|check| !output.contains(check)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Failure::new(
            Outcome::Failed,
            format!(
                "the health check did not report what the demo broke: {}",
                missing.join(", ")
            ),
        ))
    }
}
