//! `pgmahout backup schedule`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pgmahout_backup::physical::schedule::{self, Found, Systemd, UNITS, UnitSettings, Units, unit_names};
use pgmahout_config::quantity;
use pgmahout_config::schedule::Schedule;
use pgmahout_types::diagnostic::Outcome;
use serde_json::json;

use super::list::time;
use crate::ExitStatus;
use crate::commands::physical::{DataDirectoryArgs, RepositoryArgs};
use crate::context::Context;
use crate::failure::Failure;

/// How long is read back after each backup when nothing else is said.
const BUDGET: Duration = Duration::from_mins(10);

/// How much a backup that nobody waits for gives way when nothing else is said.
const NICE: u32 = 10;

/// The most that a start is put off at random.
const DELAY: Duration = Duration::from_mins(5);

/// Take backups by themselves, as `backup.schedule` of the configuration says: a service and a timer of systemd.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Install(InstallArgs),
    Remove(RemoveArgs),
    Show(InstallArgs),
}

/// Where the units are, and whose.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PlaceArgs {
    /// The directory of the units. systemd is told only when it is the usual one.
    #[arg(long, value_name = "DIRECTORY", default_value = UNITS)]
    directory: PathBuf,

    /// This cluster's name in the repositories [default: `stanza` or `scope` of the configuration, else main].
    #[arg(long, value_name = "NAME")]
    stanza: Option<String>,
}

/// Write the units, and start the timer.
///
/// The service runs `backup create`, then `backup expire` for every repository with a `retention`, then `backup
/// verify` with a budget; each only when the one before has succeeded. It runs as the account of the server, at low
/// priority. A run that was missed because the machine was off is made up for. Running it again after the
/// configuration has changed writes the units again. Two fields for days mean in cron that either is enough: the timer
/// then has two calendars.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Examples:
  pgmahout backup schedule install --dry-run       prints the units
  sudo pgmahout backup schedule install
  pgmahout backup schedule show
  sudo pgmahout backup schedule remove")]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    place: PlaceArgs,

    #[command(flatten)]
    server: DataDirectoryArgs,

    /// The account that the commands run as [default: the owner of the data directory].
    #[arg(long, value_name = "NAME")]
    user: Option<String>,

    /// How long is read back after each backup; 0 for not at all [default: 10min].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    verify_budget: Option<Duration>,

    /// By how much at most a start is put off at random [default: 5min, less for short periods].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    delay: Option<Duration>,

    /// Print the units, and write nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Stop the timer, and remove the units.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Examples:
  sudo pgmahout backup schedule remove")]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    place: PlaceArgs,
}

fn duration(text: &str) -> Result<Duration, String> {
    match text {
        "0" => Ok(Duration::ZERO),
        text => quantity::duration(text).ok_or_else(|| "give a duration such as 10min or 1h".to_owned()),
    }
}

pub(crate) fn run(command: Command, context: &Context) -> Result<ExitStatus, Failure> {
    match command {
        Command::Install(args) => install(&args, context),
        Command::Remove(args) => remove(&args, context),
        Command::Show(args) => show(&args, context),
    }
}

fn install(args: &InstallArgs, context: &Context) -> Result<ExitStatus, Failure> {
    let printer = &context.printer;
    let settings = unit_settings(args, context)?;
    let units = schedule::units(&settings)?;
    if args.dry_run {
        if printer.wants_json() {
            printer.json(&json!({"schema_version": 1, "units": units}))?;
        } else {
            for unit in units.all() {
                printer.line(&format!(
                    "==> {} <==",
                    args.place.directory.join(&unit.name).display()
                ));
                printer.line(unit.text.trim_end());
                printer.line("");
            }
        }
        return Ok(ExitStatus::SUCCESS);
    }
    let changed = schedule::install(&args.place.directory, &units)?;
    let systemd = systemd_for(&args.place.directory);
    if let Some(systemd) = systemd {
        systemd.start(&units.timer.name)?;
    }
    let next = next_runs(&settings.schedule, 1);
    if printer.wants_json() {
        printer.json(&json!({
            "schema_version": 1,
            "written": changed,
            "started": systemd.is_some(),
            "next": next,
        }))?;
        return Ok(ExitStatus::SUCCESS);
    }
    for path in &changed {
        printer.line(&format!("wrote {}", path.display()));
    }
    if changed.is_empty() {
        printer.line("the units are as they should be");
    }
    if systemd.is_some() {
        let next = next.first().map_or_else(String::new, |next| {
            format!("; the next backup is due {}", time(*next))
        });
        printer.line(&format!("{} is started{next}", units.timer.name));
    } else {
        printer.note(&format!(
            "systemd was not told: where it runs, `systemctl daemon-reload && systemctl enable --now {}`",
            units.timer.name
        ));
    }
    Ok(ExitStatus::SUCCESS)
}

fn remove(args: &RemoveArgs, context: &Context) -> Result<ExitStatus, Failure> {
    let printer = &context.printer;
    let stanza = stanza(&args.place, context)?;
    let [_, timer] = unit_names(&stanza);
    let systemd = systemd_for(&args.place.directory);
    let directory = &args.place.directory;
    if let Some(systemd) = systemd.filter(|_| directory.join(&timer).exists()) {
        systemd.stop(&timer)?;
    }
    let removed = schedule::remove(directory, &stanza)?;
    if let Some(systemd) = systemd.filter(|_| !removed.is_empty()) {
        systemd.reload()?;
    }
    if printer.wants_json() {
        printer.json(&json!({"schema_version": 1, "removed": removed}))?;
    } else if removed.is_empty() {
        printer.line("there were no units of this stanza");
    } else {
        for path in &removed {
            printer.line(&format!("removed {}", path.display()));
        }
    }
    Ok(ExitStatus::SUCCESS)
}

fn show(args: &InstallArgs, context: &Context) -> Result<ExitStatus, Failure> {
    let printer = &context.printer;
    let settings = unit_settings(args, context)?;
    let units: Units = schedule::units(&settings)?;
    let directory = &args.place.directory;
    let found = units
        .all()
        .into_iter()
        .map(|unit| Ok((directory.join(&unit.name), schedule::look(directory, unit)?)))
        .collect::<Result<Vec<(PathBuf, Found)>, Failure>>()?;
    let state = systemd_for(directory).map(|systemd| systemd.state(&units.timer.name));
    let next = next_runs(&settings.schedule, 3);
    if printer.wants_json() {
        let found: Vec<_> = found
            .iter()
            .map(|(path, found)| json!({"path": path, "state": found}))
            .collect();
        printer.json(&json!({
            "schema_version": 1,
            "schedule": settings.schedule,
            "on_calendar": settings.schedule.on_calendar(),
            "next": next,
            "units": found,
            "timer": state,
        }))?;
        return Ok(ExitStatus::SUCCESS);
    }
    printer.line(&format!("schedule    {}", settings.schedule));
    for calendar in settings.schedule.on_calendar() {
        printer.line(&format!("calendar    {calendar}"));
    }
    for next in next {
        printer.line(&format!("due         {}", time(next)));
    }
    for (path, found) in &found {
        let text = match found {
            Found::Missing => "not there: pgmahout backup schedule install",
            Found::Current => "installed",
            Found::Outdated => {
                "installed, and not as the configuration says now: pgmahout backup schedule install"
            }
            Found::Foreign => "not written by pgmahout",
        };
        printer.line(&format!("unit        {}: {text}", path.display()));
    }
    if let Some(state) = state {
        printer.line(&format!("timer       {}, {}", state.enabled, state.active));
    }
    Ok(ExitStatus::SUCCESS)
}

/// systemd, where it runs and reads that directory.
fn systemd_for(directory: &Path) -> Option<Systemd> {
    Systemd::running().filter(|_| directory == Path::new(UNITS))
}

fn stanza(place: &PlaceArgs, context: &Context) -> Result<String, Failure> {
    let args = RepositoryArgs {
        stanza: place.stanza.clone(),
        ..RepositoryArgs::default()
    };
    Ok(args.stanza(context.settings()?)?.to_string())
}

fn unit_settings(args: &InstallArgs, context: &Context) -> Result<UnitSettings, Failure> {
    let settings = context.settings()?;
    let Some(config) = &settings.file else {
        return Err(Failure::new(
            Outcome::Usage,
            "a timer needs a configuration file, and there is none",
        )
        .hint("write /etc/pgmahout/pgmahout.yml, or name one with --config"));
    };
    let Some(schedule) = settings.backup.schedule.clone() else {
        return Err(
            Failure::new(Outcome::Usage, "the configuration has no schedule of backups").hint(format!(
                "write `backup: {{ schedule: \"0 2 * * *\" }}` into {}: minute, hour, day of the month, month, day of \
                 the week",
                config.display()
            )),
        );
    };
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let user = match &args.user {
        Some(user) => user.clone(),
        None => schedule::account(&args.server.required(context)?)?,
    };
    let program = std::env::current_exe()
        .map_err(|error| Failure::caused_by("cannot find the path of this program", error))?;
    let budget = args.verify_budget.unwrap_or(BUDGET);
    Ok(UnitSettings {
        stanza: stanza(&args.place, context)?,
        user,
        program,
        config: absolute(config),
        state_dir: context
            .environment
            .variable("PGMAHOUT_STATE_DIR")
            .map(|path| absolute(Path::new(&path))),
        expire: settings
            .repositories
            .iter()
            .filter(|repository| !repository.retention.is_default())
            .map(|repository| repository.name.clone())
            .collect(),
        verify: (!budget.is_zero()).then_some(budget),
        nice: settings.backup.nice.unwrap_or(NICE),
        delay: args.delay.unwrap_or_else(|| usual_delay(&schedule)),
        schedule,
    })
}

/// At most a tenth of the time between two runs.
fn usual_delay(schedule: &Schedule) -> Duration {
    let runs = next_runs(schedule, 2);
    let period = match runs[..] {
        [first, second] => Duration::try_from(second.duration_since(first)).unwrap_or(Duration::ZERO),
        _ => return DELAY,
    };
    // The same at any time of the day: a period of hours is as good as one of days.
    DELAY.min(period / 10)
}

fn next_runs(schedule: &Schedule, count: usize) -> Vec<Timestamp> {
    let zone = TimeZone::system();
    let next = |after: &Timestamp| schedule.next_due(*after, &zone);
    std::iter::successors(schedule.next_due(Timestamp::now(), &zone), next)
        .take(count)
        .collect()
}
