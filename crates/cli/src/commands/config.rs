//! `pgmahout config`.

use pgmahout_config::{Settings, Sources, to_yaml, without_unset};
use pgmahout_doctor::health::{Runner, checks};
use pgmahout_types::diagnostic::Diagnose as _;
use serde_json::json;

use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;

/// Look at the configuration.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Check(Check),
}

/// Validate the configuration and print what is in force, with secrets hidden.
///
/// Reads the file that --config or $PGMAHOUT_CONFIG names, else ./pgmahout.yml, else
/// /etc/pgmahout/pgmahout.yml, with the PGMAHOUT_* and PATRONI_* variables of the environment over it. Every
/// error is shown with its place. Unknown keys in our own sections are errors, in Patroni's sections warnings.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  pgmahout config check\n  \
    pgmahout config check --config /etc/pgmahout/pgmahout.yml --secrets\n  \
    pgmahout config check --json | jq .settings.repository\n\n\
    Exit status: 0 valid, 2 invalid or (with --secrets) a secret that cannot be had, 1 with --strict for warnings.")]
pub(crate) struct Check {
    /// Look every secret up too: read the files, the variables, run the commands.
    #[arg(long)]
    secrets: bool,

    /// Exit with 1 for warnings.
    #[arg(long)]
    strict: bool,
}

#[expect(clippy::unused_async, reason = "every subcommand is run in the same way")]
pub(crate) async fn run(command: Command, context: &Context) -> Result<ExitStatus, Failure> {
    match command {
        Command::Check(args) => check(&args, context),
    }
}

fn check(args: &Check, context: &Context) -> Result<ExitStatus, Failure> {
    let loaded = Settings::load(context.global.config.as_deref(), &Sources::of_process())?;
    let settings = &loaded.settings;
    check_thresholds(settings)?;
    let mut warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    let mut missing = Vec::new();
    if args.secrets {
        for (key, reference) in settings.secrets() {
            if let Err(error) = reference.resolve() {
                missing.push((key, error));
            }
        }
    }
    let mut values = serde_json::to_value(settings)
        .map_err(|error| Failure::caused_by("cannot print the settings", error))?;
    if let Some(map) = values.as_object_mut() {
        map.shift_remove("file");
    }
    let printer = &context.printer;
    if printer.wants_json() {
        printer.json(&json!({
            "schema_version": 1,
            "valid": true,
            "file": settings.file,
            "warnings": warnings,
            "secrets_missing": missing.iter().map(|(key, error)| json!({
                "key": key, "message": error.to_string(), "hint": error.hint(),
            })).collect::<Vec<_>>(),
            "settings": values,
        }))?;
    } else {
        for warning in warnings.drain(..) {
            printer.warn(&warning);
        }
        match &settings.file {
            Some(file) => printer.line(&format!("# {} and the environment", file.display())),
            None => printer.line("# no configuration file; defaults and the environment"),
        }
        printer.data(&to_yaml(&without_unset(values)));
    }
    let mut missing = missing.into_iter();
    if let Some((key, error)) = missing.next() {
        for (key, error) in missing {
            printer.warn(&format!("the secret '{key}' cannot be had: {error}"));
        }
        return Err(Failure::from(error).context(format!("the secret '{key}' cannot be had")));
    }
    Ok(ExitStatus(u8::from(args.strict && !loaded.warnings.is_empty())))
}

/// Names and values of thresholds, which only the checks themselves can judge.
fn check_thresholds(settings: &Settings) -> Result<(), Failure> {
    let mut all = checks::standard();
    all.extend(checks::log::checks(None));
    let mut runner = Runner::new(all);
    for (id, threshold) in &settings.checks.thresholds {
        // Those of the pooler and of the user's own checks exist only where they are configured.
        if id.starts_with("pool.") || id.starts_with("custom.") {
            continue;
        }
        let (warn, crit) = (threshold.value.warn.as_deref(), threshold.value.crit.as_deref());
        runner.limits_mut().set_values(id, warn, crit).map_err(|error| {
            Failure::from(error).context(format!("{}: checks.{id} is wrong", threshold.origin))
        })?;
    }
    Ok(())
}
