//! The systemd of this machine, through systemctl.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

use super::error::ScheduleError;

/// The directory that is there while systemd runs (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// The systemd of this machine.
#[derive(Debug, Clone, Copy)]
pub struct Systemd(());

/// What systemd says of a timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TimerState {
    /// Whether it is started at boot: `enabled`, `disabled`, ...
    pub enabled: String,
    /// Whether it runs: `active`, `inactive`, ...
    pub active: String,
}

impl Systemd {
    /// Where it runs.
    pub fn running() -> Option<Self> {
        Path::new(BOOTED).is_dir().then_some(Self(()))
    }

    /// Lets it know the units, and starts the timer, now and at every boot.
    ///
    /// # Errors
    ///
    /// What systemctl says.
    pub fn start(self, timer: &str) -> Result<(), ScheduleError> {
        run(&["daemon-reload"])?;
        run(&["enable", "--now", timer])
    }

    /// Stops the timer, for good. To be done before its unit is removed.
    ///
    /// # Errors
    ///
    /// What systemctl says.
    pub fn stop(self, timer: &str) -> Result<(), ScheduleError> {
        run(&["disable", "--now", timer])
    }

    /// Lets it know that units have gone.
    ///
    /// # Errors
    ///
    /// What systemctl says.
    pub fn reload(self) -> Result<(), ScheduleError> {
        run(&["daemon-reload"])
    }

    /// What it says of a timer.
    pub fn state(self, timer: &str) -> TimerState {
        let ask = |verb: &str| {
            let output = Command::new("systemctl")
                .args([verb, timer])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .output();
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
            text.ok()
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| "unknown".to_owned())
        };
        TimerState {
            enabled: ask("is-enabled"),
            active: ask("is-active"),
        }
    }
}

fn run(arguments: &[&str]) -> Result<(), ScheduleError> {
    let output = Command::new("systemctl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ScheduleError::Run {
            arguments: arguments.join(" "),
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(ScheduleError::Systemctl {
        arguments: arguments.join(" "),
        message: message.lines().next().unwrap_or("it did not say why").to_owned(),
    })
}
