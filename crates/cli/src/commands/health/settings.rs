//! What the configuration file adds to a health run; the command line goes before it.

use std::path::PathBuf;
use std::time::Duration;

use pgmahout_config::settings::{Probe as Configured, ValueUnit};
use pgmahout_doctor::health::checks::custom::{CustomCheck, Probe};
use pgmahout_doctor::health::limits::Direction;
use pgmahout_doctor::health::sources::Sources;
use pgmahout_doctor::health::{Expectations, Limits, Role, Unit};

use super::CheckArgs;
use crate::context::Context;
use crate::failure::Failure;

/// How long a custom check may take where the configuration does not say.
const CUSTOM_TIMEOUT: Duration = Duration::from_secs(5);

/// Checks that are switched off.
pub(super) fn disabled(context: &Context) -> Result<Vec<String>, Failure> {
    Ok(context
        .settings()?
        .checks
        .disabled
        .iter()
        .map(|check| check.value.clone())
        .collect())
}

/// The server's log file.
pub(super) fn log_file(context: &Context) -> Result<Option<PathBuf>, Failure> {
    Ok(context.settings()?.checks.log_file.clone())
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
    Ok(context
        .settings()?
        .checks
        .custom
        .iter()
        .map(|check| CustomCheck {
            name: check.name.clone(),
            probe: match check.probe.clone() {
                Configured::Sql {
                    database,
                    query,
                    rows,
                } => Probe::Sql {
                    query,
                    database,
                    rows,
                },
                Configured::Tables {
                    database,
                    names,
                    not_empty,
                } => Probe::Tables {
                    names,
                    database,
                    not_empty,
                },
                Configured::Http {
                    url,
                    status,
                    contains,
                } => Probe::Http {
                    url,
                    status,
                    contains,
                },
                Configured::Tcp { address } => Probe::Tcp { address },
                Configured::Command { words } => Probe::Command { words },
            },
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

/// What is read beside the server.
pub(super) fn sources(_context: &Context) -> Result<Sources, Failure> {
    Ok(Sources::default())
}

/// Thresholds that differ from the defaults.
pub(super) fn set_thresholds(limits: &mut Limits, context: &Context) -> Result<(), Failure> {
    for (id, threshold) in &context.settings()?.checks.thresholds {
        let (warn, crit) = (threshold.value.warn.as_deref(), threshold.value.crit.as_deref());
        limits.set_values(id, warn, crit).map_err(|error| {
            Failure::from(error).context(format!("{}: checks.{id} is wrong", threshold.origin))
        })?;
    }
    Ok(())
}

/// What the server should be.
pub(super) fn expectations(args: &CheckArgs, context: &Context) -> Result<Expectations, Failure> {
    let settings = context.settings()?;
    let configured = settings.checks.expected_role.map(|role| match role {
        "standby" => Role::Standby,
        _ => Role::Primary,
    });
    Ok(Expectations {
        role: args.expect_role.map(Into::into).or(configured),
        standbys: args.expect_standbys.or(settings.checks.expected_standbys),
        recovery_point_seconds: settings.targets.rpo.map(|objective| objective.as_secs_f64()),
    })
}
