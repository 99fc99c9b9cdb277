//! `pgmahout repo check`.

use std::time::{Duration, Instant, SystemTime};

use pgmahout_backup::physical::stanza::{LeaseKind, LeaseScope, PhysicalRepository};
use pgmahout_backup::physical::verify::archived_file_problem;
use pgmahout_backup::physical::wal::push::PushLedger;
use pgmahout_postgres::connection::Connection;
use pgmahout_procedure::StateDirectory;
use pgmahout_types::WalFileName;
use pgmahout_types::diagnostic::Outcome;
use serde_json::{Value, json};

use crate::ExitStatus;
use crate::commands::physical::{self, Opened, RepositoryArgs};
use crate::context::{ConnectionArgs, Context};
use crate::failure::Failure;
use crate::printer::Align;

/// How far this host's clock may be from the storage's.
const CLOCK_ALLOWANCE: Duration = Duration::from_secs(30);

/// Try each repository from end to end: write, read, delete, lock, clock, and a WAL segment through the archive.
///
/// For each repository: an object is written, read back and deleted; eight writers race to create one object
/// and one must win; a lease is taken and given back; the storage's clock is compared with this host's; the
/// newest head is read. Then the server is asked to finish a WAL segment, which must arrive in every repository,
/// readable, within --timeout.
///
/// With --accept-rollback a repository that was set back to an older state on purpose is taken as it is: this
/// host forgets the newer one that it has seen.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout repo check
  pgmahout repo check --repo offsite --no-wal --json
  pgmahout repo check --repo offsite --accept-rollback")]
pub(crate) struct Args {
    #[command(flatten)]
    repository: RepositoryArgs,

    #[command(flatten)]
    connection: ConnectionArgs,

    /// Leave the server alone: do not force a WAL segment through the archive.
    #[arg(long)]
    no_wal: bool,

    /// Work with repositories as they are from now on, though this host has seen newer heads there.
    #[arg(long)]
    accept_rollback: bool,

    /// How long to wait for the segment.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    pgmahout_config::quantity::duration(text).ok_or_else(|| "give a duration such as 30s or 5min".to_owned())
}

/// One line of the result.
struct Line {
    repository: String,
    what: &'static str,
    result: Result<String, Failure>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<ExitStatus, Failure> {
    let mut lines: Vec<Line> = Vec::new();
    let mut opened = Vec::new();
    if args.accept_rollback {
        accept_rollback(&args, context, &mut lines).await?;
    }
    for (name, result) in args.repository.try_open_all(context).await? {
        match result {
            Ok(repository) => {
                check_one(&name, &repository, context, &mut lines).await;
                opened.push((name, repository));
            }
            Err(failure) => lines.push(Line {
                repository: name,
                what: "open",
                result: Err(failure),
            }),
        }
    }
    if !args.no_wal && !opened.is_empty() {
        match through_the_archive(&args, &opened, context).await {
            Ok(found) => lines.extend(found),
            Err(failure) => lines.push(Line {
                repository: "all".to_owned(),
                what: "WAL",
                result: Err(failure),
            }),
        }
    }
    report(context, &lines)
}

/// Forgets the newer heads that this host has seen, and the segments that it has noted as stored there.
async fn accept_rollback(args: &Args, context: &Context, lines: &mut Vec<Line>) -> Result<(), Failure> {
    let settings = context.settings()?;
    let stanza = args.repository.stanza(settings)?;
    for chosen in args.repository.chosen(settings)? {
        let name = physical::name_of(&chosen.store);
        let accepted = async {
            let store = chosen.open_store().await?;
            let memory = physical::memory();
            let repository = PhysicalRepository::open_without_head(store, stanza.clone(), &memory).await?;
            let (head, seen) = repository.accept_rollback().await?;
            let Some(seen) = seen else {
                return Ok(format!("was not set back: head number {}", head.seq));
            };
            PushLedger::new(&StateDirectory::locate()?, &stanza).forget()?;
            Ok::<_, Failure>(format!(
                "head number {} instead of {seen}, {} backups; take a new one now: pgmahout backup create",
                head.seq,
                head.backups.len()
            ))
        };
        lines.push(Line {
            repository: name,
            what: "rollback",
            result: accepted.await,
        });
    }
    Ok(())
}

async fn check_one(name: &str, opened: &Opened, context: &Context, lines: &mut Vec<Line>) {
    let repository = &opened.repository;
    let mut add = |what, result| {
        lines.push(Line {
            repository: name.to_owned(),
            what,
            result,
        });
    };
    match repository.repository().check(&context.cancellation).await {
        Ok(report) => {
            let text = format!(
                "written in {:.0} ms, read in {:.0} ms, deleted",
                report.write.as_secs_f64() * 1000.0,
                report.read.as_secs_f64() * 1000.0
            );
            add("write and read", Ok(text));
            let race = format!(
                "{} of {} who raced for one name won",
                report.winners, report.creators
            );
            let single = opened.chosen.store.single_writer;
            add(
                "lock",
                match (report.conditional_put, single) {
                    (true, _) => Ok(race),
                    (false, true) => Ok(format!("{race}; one host alone writes here, as promised")),
                    (false, false) => Err(Failure::new(
                        Outcome::Refused,
                        format!("the storage cannot keep two writers apart: {race}"),
                    )
                    .hint("use another storage, or promise `single_writer: true` for this repository")),
                },
            );
        }
        Err(error) => add("write and read", Err(error.into())),
    }
    add("lease and clock", lease_and_clock(repository).await);
    add(
        "head",
        repository
            .head()
            .await
            .map(|head| format!("number {}, {} backups", head.seq, head.backups.len()))
            .map_err(Failure::from),
    );
}

/// Takes a lease, and compares the storage's clock, by which leases live, with this host's.
async fn lease_and_clock(repository: &PhysicalRepository) -> Result<String, Failure> {
    let before = SystemTime::now();
    let lease = repository.lease(LeaseKind::Other, LeaseScope::none()).await?;
    let after = SystemTime::now();
    let written = lease.written().await?;
    lease.finish().await?;
    let behind = before.duration_since(written).unwrap_or_default();
    let ahead = written.duration_since(after).unwrap_or_default();
    let difference = behind.max(ahead);
    let text = format!(
        "taken and given back; clocks differ by {:.0} s at most",
        difference.as_secs_f64().ceil()
    );
    if difference > CLOCK_ALLOWANCE {
        return Err(Failure::new(
            Outcome::Failed,
            format!(
                "the storage's clock is {:.0} s {} this host's",
                difference.as_secs_f64(),
                if behind > ahead { "behind" } else { "ahead of" }
            ),
        )
        .hint("set this host's clock by NTP: timedatectl set-ntp true"));
    }
    Ok(text)
}

/// Has the server finish a segment, and waits until each repository has it.
async fn through_the_archive(
    args: &Args,
    opened: &[(String, Opened)],
    context: &Context,
) -> Result<Vec<Line>, Failure> {
    let connection = physical::connect(&args.connection, context)
        .await
        .map_err(|failure| {
            failure.hint("say where the server is with -h and -p, or leave it out: --no-wal")
        })?;
    let failed = |error| Failure::caused_by("cannot ask the server", error);
    let row = connection
        .query_one(
            "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('archive_mode'), \
             (SELECT system_identifier FROM pg_catalog.pg_control_system())",
            &[],
        )
        .await
        .map_err(failed)?;
    let (in_recovery, archive_mode, system): (bool, String, i64) = (row.get(0), row.get(1), row.get(2));
    let major = connection.server_version().major();
    for (_, opened) in opened {
        let system = pgmahout_types::SystemIdentifier::new(system.cast_unsigned());
        opened.repository.check_identity(system, major)?;
    }
    if in_recovery {
        return Err(Failure::new(
            Outcome::Failed,
            "the server is a standby, which cannot finish a WAL segment",
        )
        .hint("run it against the primary, or leave the archive out: --no-wal"));
    }
    if archive_mode == "off" {
        return Err(
            Failure::new(Outcome::Failed, "archive_mode is off: no WAL is archived")
                .hint("set it up: pgmahout wal enable"),
        );
    }
    let segment = switch(&connection).await?;
    let started = Instant::now();
    let file: WalFileName = segment
        .parse()
        .map_err(|error| Failure::caused_by(format!("the server names a segment `{segment}`"), error))?;
    let mut lines = Vec::new();
    for (name, opened) in opened {
        let left = args.timeout.saturating_sub(started.elapsed());
        let result = match wait_for(&opened.repository, file, left, context).await {
            Ok(true) => match archived_file_problem(&opened.repository, file).await? {
                None => Ok(format!(
                    "{segment} arrived in {:.1} s and is readable",
                    started.elapsed().as_secs_f64()
                )),
                Some(problem) => Err(Failure::new(
                    Outcome::Failed,
                    format!("{segment} arrived, but {problem}"),
                )
                .hint("see the server's log and the storage, then check again")),
            },
            Ok(false) => Err(missing(&connection, &segment, args.timeout).await),
            Err(failure) => Err(failure),
        };
        lines.push(Line {
            repository: name.clone(),
            what: "WAL",
            result,
        });
    }
    connection.close().await;
    Ok(lines)
}

/// Writes something, so that there is something to archive, and ends the segment. The segment's name.
async fn switch(connection: &Connection) -> Result<String, Failure> {
    let failed = |error| {
        Failure::caused_by("cannot have the server finish a WAL segment", error).hint(
            "connect as a superuser, or: GRANT EXECUTE ON FUNCTION pg_create_restore_point, pg_switch_wal TO the role",
        )
    };
    connection
        .query_one(
            "SELECT pg_catalog.pg_create_restore_point('pgmahout repo check')",
            &[],
        )
        .await
        .map_err(failed)?;
    let row = connection
        .query_one(
            "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_switch_wal())",
            &[],
        )
        .await
        .map_err(failed)?;
    Ok(row.get(0))
}

async fn wait_for(
    repository: &PhysicalRepository,
    file: WalFileName,
    timeout: Duration,
    context: &Context,
) -> Result<bool, Failure> {
    let name = repository.wal_name(file);
    let deadline = Instant::now() + timeout;
    loop {
        if repository.repository().exists(&name).await? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            () = context.cancellation.cancelled() => {
                return Err(Failure::new(Outcome::Interrupted, "the check was interrupted"));
            }
        }
    }
}

/// Why a segment did not arrive, as far as the server knows.
async fn missing(connection: &Connection, segment: &str, timeout: Duration) -> Failure {
    let row = connection
        .query_one(
            "SELECT pg_catalog.current_setting('archive_command'), last_failed_wal, \
             coalesce(last_failed_time > last_archived_time, last_failed_time IS NOT NULL) \
             FROM pg_catalog.pg_stat_archiver",
            &[],
        )
        .await;
    let text = format!(
        "WAL segment {segment} did not arrive within {}",
        pgmahout_config::quantity::duration_text(timeout)
    );
    let Ok(row) = row else {
        return Failure::new(Outcome::Failed, text)
            .hint("see the server's log for what archive_command says");
    };
    let (command, failed_wal, is_failing): (String, Option<String>, bool) =
        (row.get(0), row.get(1), row.get(2));
    let hint = if command.is_empty() || command == "(disabled)" {
        "archive_command is not set: pgmahout wal enable".to_owned()
    } else if is_failing {
        format!(
            "archive_command fails, last for {}; the server's log says why. It is: {command}",
            failed_wal.unwrap_or_else(|| "an earlier segment".to_owned())
        )
    } else if command.contains("pgmahout") {
        "archive_command works, but stores elsewhere: compare its repository and stanza with the ones here"
            .to_owned()
    } else {
        format!("archive_command stores elsewhere: pgmahout wal enable. It is: {command}")
    };
    Failure::new(Outcome::Failed, text).hint(hint)
}

fn report(context: &Context, lines: &[Line]) -> Result<ExitStatus, Failure> {
    let failed = lines.iter().filter(|line| line.result.is_err()).count();
    if context.printer.wants_json() {
        let checks: Vec<Value> = lines
            .iter()
            .map(|line| {
                json!({
                    "repository": line.repository,
                    "check": line.what,
                    "passed": line.result.is_ok(),
                    "detail": match &line.result {
                        Ok(text) => text.clone(),
                        Err(failure) => failure.summary(),
                    },
                    "hint": line.result.as_ref().err().and_then(Failure::advice),
                })
            })
            .collect();
        context
            .printer
            .json(&json!({ "schema_version": 1, "passed": failed == 0, "checks": checks }))?;
    } else {
        let palette = *context.printer.palette();
        let rows = lines
            .iter()
            .map(|line| {
                let (status, text) = match &line.result {
                    Ok(text) => (palette.good("ok"), text.clone()),
                    Err(failure) => (palette.bad("FAILED"), failure.summary()),
                };
                vec![line.repository.clone(), line.what.to_owned(), status, text]
            })
            .collect();
        let columns = [
            ("repository", Align::Left),
            ("check", Align::Left),
            ("status", Align::Left),
            ("detail", Align::Left),
        ];
        context.printer.table(&columns, rows);
        for hint in lines
            .iter()
            .filter_map(|line| line.result.as_ref().err()?.advice())
        {
            context.printer.note(&format!("hint: {hint}"));
        }
    }
    Ok(ExitStatus(u8::from(failed > 0)))
}
