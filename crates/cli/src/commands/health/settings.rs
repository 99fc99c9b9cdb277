//! What the configuration file adds to a health run; the command line goes before it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pgmahout_config::settings::{Probe as WrittenProbe, ValueUnit};
use pgmahout_doctor::health::checks::custom::{CustomCheck, Probe};
use pgmahout_doctor::health::limits::Direction;
use pgmahout_doctor::health::select::matches;
use pgmahout_doctor::health::sources::{Backups, Sources};
use pgmahout_doctor::health::{Expectations, Limits, Role, Unit};
use pgmahout_types::diagnostic::Outcome;

use super::CheckArgs;
use super::backups::Everything;
use crate::context::Context;
use crate::failure::Failure;

/// How long a check of the user's own may take where the configuration does not say.
const CUSTOM_TIMEOUT: Duration = Duration::from_secs(5);

/// Patterns of checks that are switched off; one that matches none of `ids` is refused where it stands.
pub(super) fn disabled(context: &Context, ids: &[&str]) -> Result<Vec<String>, Failure> {
    let mut patterns = Vec::new();
    for pattern in &context.settings()?.checks.disabled {
        if !ids.iter().any(|id| matches(&pattern.value, id)) {
            return Err(Failure::new(
                Outcome::Usage,
                format!("{}: no check matches `{}`", pattern.origin, pattern.value),
            )
            .hint("list the checks with `pgmahout health --list`"));
        }
        patterns.push(pattern.value.clone());
    }
    Ok(patterns)
}

/// The server's log file.
pub(super) fn log_file(context: &Context) -> Result<Option<PathBuf>, Failure> {
    Ok(context.settings()?.checks.log_file.clone())
}

/// The server's data directory.
pub(super) fn data_directory(context: &Context) -> Result<Option<PathBuf>, Failure> {
    Ok(context.settings()?.server.data_dir.clone())
}

/// The pooler's connection string.
pub(super) fn pooler(given: Option<&str>, context: &Context) -> Result<Option<String>, Failure> {
    if let Some(given) = given {
        return Ok(Some(given.to_owned()));
    }
    match &context.settings()?.checks.pgbouncer {
        Some(reference) => Ok(Some(reference.resolve()?.expose().to_owned())),
        None => Ok(None),
    }
}

/// The user's own checks.
pub(super) fn custom(context: &Context) -> Result<Vec<CustomCheck>, Failure> {
    let written = &context.settings()?.checks.custom;
    Ok(written
        .iter()
        .map(|check| CustomCheck {
            name: check.name.clone(),
            probe: probe(&check.probe),
            unit: match check.unit {
                ValueUnit::Count => Unit::Count,
                ValueUnit::Bytes => Unit::Bytes,
                ValueUnit::Seconds => Unit::Seconds,
                ValueUnit::Ratio => Unit::Ratio,
            },
            warn: check.warn,
            crit: check.crit,
            direction: if check.below {
                Direction::Below
            } else {
                Direction::Above
            },
            timeout: check.timeout.unwrap_or(CUSTOM_TIMEOUT),
            hint: check.hint.clone(),
        })
        .collect())
}

fn probe(written: &WrittenProbe) -> Probe {
    match written.clone() {
        WrittenProbe::Sql {
            database,
            query,
            rows,
        } => Probe::Sql {
            query,
            database,
            rows,
        },
        WrittenProbe::Tables {
            database,
            names,
            not_empty,
        } => Probe::Tables {
            names,
            database,
            not_empty,
        },
        WrittenProbe::Http {
            url,
            status,
            contains,
        } => Probe::Http {
            url,
            status,
            contains,
        },
        WrittenProbe::Tcp { address } => Probe::Tcp { address },
        WrittenProbe::Command { words } => Probe::Command { words },
    }
}

/// What is read beside the server.
pub(super) fn sources(context: &Context) -> Result<Sources, Failure> {
    let backups = Everything::of(context.settings()?).map(|all| Arc::new(all) as Arc<dyn Backups>);
    Ok(Sources {
        backups,
        ..Sources::default()
    })
}

/// Thresholds that differ from the defaults; what is wrong with one is said where it stands.
pub(super) fn set_thresholds(limits: &mut Limits, context: &Context) -> Result<(), Failure> {
    for (id, threshold) in &context.settings()?.checks.thresholds {
        let written = &threshold.value;
        limits
            .set_values(id, written.warn.as_deref(), written.crit.as_deref())
            .map_err(|error| {
                Failure::from(error).context(format!("{}: wrong threshold", threshold.origin))
            })?;
    }
    Ok(())
}

/// What the server should be.
pub(super) fn expectations(args: &CheckArgs, context: &Context) -> Result<Expectations, Failure> {
    let settings = context.settings()?;
    let role = match (args.expect_role, settings.checks.expected_role) {
        (Some(role), _) => Some(role.into()),
        (None, Some("primary")) => Some(Role::Primary),
        (None, Some("standby")) => Some(Role::Standby),
        (None, _) => None,
    };
    Ok(Expectations {
        role,
        standbys: args.expect_standbys.or(settings.checks.expected_standbys),
        recovery_point_seconds: settings.targets.rpo.map(|objective| objective.as_secs_f64()),
    })
}
