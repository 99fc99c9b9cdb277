//! The text of the units.
//!
//! What is quoted how: systemd.syntax(7), systemd.service(5) "COMMAND LINES", systemd.unit(5) "SPECIFIERS".

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgmahout_config::schedule::Schedule;

use super::error::ScheduleError;
use super::{MARK, Unit, Units, unit_names};

/// What the units are made of.
#[derive(Debug, Clone)]
pub struct UnitSettings {
    /// The cluster's name in the repositories.
    pub stanza: String,
    /// When.
    pub schedule: Schedule,
    /// The account that the commands run as: the server's.
    pub user: String,
    /// This program.
    pub program: PathBuf,
    /// The configuration file.
    pub config: PathBuf,
    /// The state directory, where that is not the usual one.
    pub state_dir: Option<PathBuf>,
    /// The repositories from which old backups are removed: those that have a retention.
    pub expire: Vec<String>,
    /// How long is read back afterwards.
    pub verify: Option<Duration>,
    /// By how much the priority is lowered, 0 to 19.
    pub nice: u32,
    /// By how much the start is put off at random, so that not all servers start in one second.
    pub delay: Duration,
}

/// Makes the units.
///
/// # Errors
///
/// [`ScheduleError::Text`] where a path or a name has a control character.
pub fn units(settings: &UnitSettings) -> Result<Units, ScheduleError> {
    let [service, timer] = unit_names(&settings.stanza);
    Ok(Units {
        service: Unit {
            name: service,
            text: service_text(settings)?,
        },
        timer: Unit {
            name: timer,
            text: timer_text(settings),
        },
    })
}

fn head(settings: &UnitSettings, what: &str) -> String {
    format!(
        "{MARK}\n# It is overwritten by the next: change the configuration, or use `systemctl edit`.\n\
         [Unit]\nDescription={what} of PostgreSQL, stanza {}\n",
        settings.stanza
    )
}

fn service_text(settings: &UnitSettings) -> Result<String, ScheduleError> {
    let mut text = head(settings, "Physical backup");
    text.push_str("Wants=network-online.target\nAfter=network-online.target postgresql.service\n\n[Service]\nType=oneshot\n");
    // A user name has no quotes; what could be taken for something else is refused.
    if settings.user.is_empty()
        || settings
            .user
            .contains(|letter: char| letter.is_whitespace() || letter == '%')
    {
        return Err(ScheduleError::Text {
            text: settings.user.clone(),
        });
    }
    let _ = write!(
        text,
        "User={}\nNice={}\nIOSchedulingClass=best-effort\nIOSchedulingPriority=7\nTimeoutStartSec=infinity\n",
        plain(&settings.user)?,
        settings.nice
    );
    match &settings.state_dir {
        Some(directory) => {
            let variable = format!("PGMAHOUT_STATE_DIR={}", utf8(directory)?);
            let _ = writeln!(text, "Environment={}", quoted(&variable, false)?);
        }
        None => text.push_str("StateDirectory=pgmahout\nEnvironment=PGMAHOUT_STATE_DIR=/var/lib/pgmahout\n"),
    }
    let begin = format!(
        "ExecStart={} --config {} -q backup",
        quoted(&utf8(&settings.program)?, true)?,
        quoted(&utf8(&settings.config)?, true)?
    );
    // Each only when the one before has succeeded: nothing is removed after a backup that failed.
    let stanza = quoted(&settings.stanza, true)?;
    let _ = writeln!(text, "{begin} create --stanza {stanza}");
    for repository in &settings.expire {
        let repository = quoted(repository, true)?;
        let _ = writeln!(text, "{begin} expire --yes --stanza {stanza} --repo {repository}");
    }
    if let Some(budget) = settings.verify {
        let _ = writeln!(
            text,
            "{begin} verify --stanza {stanza} --budget {}s",
            budget.as_secs().max(1)
        );
    }
    Ok(text)
}

fn timer_text(settings: &UnitSettings) -> String {
    let mut text = head(settings, "Schedule of physical backups");
    let _ = writeln!(text, "\n[Timer]\n# {}", settings.schedule);
    for calendar in settings.schedule.on_calendar() {
        let _ = writeln!(text, "OnCalendar={calendar}");
    }
    let _ = write!(
        text,
        "RandomizedDelaySec={}s\nPersistent=true\n\n[Install]\nWantedBy=timers.target\n",
        settings.delay.as_secs()
    );
    text
}

fn utf8(path: &Path) -> Result<String, ScheduleError> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| ScheduleError::Text {
        text: path.to_string_lossy().into_owned(),
    })
}

fn plain(text: &str) -> Result<&str, ScheduleError> {
    if text.chars().any(char::is_control) {
        return Err(ScheduleError::Text {
            text: text.escape_debug().to_string(),
        });
    }
    Ok(text)
}

/// One word, in quotes where it needs them. On command lines `$` begins a variable, too.
fn quoted(text: &str, is_command: bool) -> Result<String, ScheduleError> {
    let text = plain(text)?.replace('%', "%%");
    let text = if is_command { text.replace('$', "$$") } else { text };
    let is_simple = |letter: char| letter.is_ascii_alphanumeric() || "/._-+=:,@%$".contains(letter);
    if !text.is_empty() && text.chars().all(is_simple) {
        return Ok(text);
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> UnitSettings {
        UnitSettings {
            stanza: "main".to_owned(),
            schedule: "0 2 1,15 * sun".parse().expect("a schedule"),
            user: "postgres".to_owned(),
            program: "/usr/bin/pgmahout".into(),
            config: "/etc/pgmahout/pgmahout.yml".into(),
            state_dir: None,
            expire: vec!["local".to_owned(), "off site".to_owned()],
            verify: Some(Duration::from_mins(10)),
            nice: 10,
            delay: Duration::from_mins(5),
        }
    }

    #[test]
    fn the_units_are_what_an_administrator_would_write() {
        let units = units(&settings()).expect("units");
        insta::assert_snapshot!(format!(
            "{}:\n{}\n{}:\n{}",
            units.service.name, units.service.text, units.timer.name, units.timer.text
        ));
    }

    #[test]
    fn what_systemd_would_expand_or_split_is_quoted() {
        let mut strange = settings();
        strange.config = "/srv/100% of \"it\"/$HOME\\x.yml".into();
        strange.state_dir = Some("/srv/st ate".into());
        let text = units(&strange).expect("units").service.text;
        assert!(
            text.contains(r#"--config "/srv/100%% of \"it\"/$$HOME\\x.yml" -q backup create"#),
            "{text}"
        );
        assert!(
            text.contains("Environment=\"PGMAHOUT_STATE_DIR=/srv/st ate\"\n"),
            "{text}"
        );
        for user in ["", "a b", "%u", "a\nExecStart=/bin/sh"] {
            strange.user = user.to_owned();
            assert!(units(&strange).is_err(), "{user:?}");
        }
    }
}
