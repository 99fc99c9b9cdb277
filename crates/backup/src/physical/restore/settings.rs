//! The settings with which the restored server recovers.
//!
//! They go into `postgresql.auto.conf`, which the server reads last, so that they win over whatever
//! `postgresql.conf` says. What an earlier recovery or standby left there is removed; what stands in
//! `postgresql.conf` is overridden with the default.
//!
//! The server allows one recovery target, and complains when it meets a second one even if that is empty
//! (`assign_recovery_target_*` in `src/backend/access/transam/xlogrecovery.c`): overriding lines with an empty
//! value stand before the one with the target.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use pgmahout_postgres::conf_file::{ConfFile, Configuration};
use pgmahout_types::TimelineId;
use serde::{Deserialize, Serialize};

use super::error::RestoreError;
use super::target::{Aim, Target, TargetTimeline};

/// Every setting of recovery and standbys, with what stands for "nothing".
const SETTINGS: [(&str, &str); 16] = [
    ("recovery_target", ""),
    ("recovery_target_lsn", ""),
    ("recovery_target_name", ""),
    ("recovery_target_time", ""),
    ("recovery_target_xid", ""),
    ("recovery_target_inclusive", "on"),
    ("recovery_target_timeline", "latest"),
    ("recovery_target_action", "pause"),
    ("restore_command", ""),
    ("archive_cleanup_command", ""),
    ("recovery_end_command", ""),
    ("recovery_min_apply_delay", "0"),
    ("primary_conninfo", ""),
    ("primary_slot_name", ""),
    // In PostgreSQL 15 and older.
    ("promote_trigger_file", ""),
    // In PostgreSQL 12 to 14, as a synonym of nothing today: older files may still have it.
    ("standby_mode", ""),
];

/// What of [`SETTINGS`] no server of today takes, so that it may only be removed.
const GONE: [&str; 2] = ["promote_trigger_file", "standby_mode"];

/// Whether the restored server archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Archiving {
    /// Not: a second server that archives into the same place would spoil it.
    #[default]
    Off,
    /// As its configuration says.
    Keep,
}

/// How a standby follows its primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbySettings {
    /// `primary_conninfo`.
    pub primary: String,
    /// `primary_slot_name`.
    pub slot: Option<String>,
}

/// How the restored server recovers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoverySettings {
    /// Where it ends.
    pub aim: Aim,
    /// The timeline that the plan found.
    pub timeline: TimelineId,
    /// The timeline of the backup.
    pub backup_timeline: TimelineId,
    /// The command that fetches WAL.
    pub restore_command: String,
    /// Whether it archives.
    pub archiving: Archiving,
    /// Whether it becomes a standby.
    pub standby: Option<StandbySettings>,
}

/// The new `postgresql.auto.conf`, and what was done to get there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// The text.
    pub text: String,
    /// Settings that were removed from it.
    pub removed: Vec<String>,
    /// Settings of `postgresql.conf` that are overridden.
    pub overridden: Vec<String>,
}

impl RecoverySettings {
    /// The name of the signal file (PostgreSQL documentation, section "Archive Recovery").
    pub fn signal_file(&self) -> &'static str {
        if self.standby.is_some() {
            "standby.signal"
        } else {
            "recovery.signal"
        }
    }

    /// The settings, in the order in which they must stand.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("restore_command", self.restore_command.clone())];
        let timeline = match (&self.standby, self.aim.timeline) {
            (Some(_), TargetTimeline::Latest) => "latest".to_owned(),
            // The history file of the backup's own timeline need not be in the archive.
            _ if self.timeline == self.backup_timeline => "current".to_owned(),
            // What was proved is followed, even where a newer timeline appears in the meantime.
            _ => self.timeline.to_string(),
        };
        lines.push(("recovery_target_timeline", timeline));
        if let Some(standby) = &self.standby {
            lines.push(("primary_conninfo", standby.primary.clone()));
            if let Some(slot) = &standby.slot {
                lines.push(("primary_slot_name", slot.clone()));
            }
        } else {
            let target = match &self.aim.target {
                Target::Latest => None,
                Target::Immediate => Some(("recovery_target", "immediate".to_owned())),
                Target::Time(moment) => Some(("recovery_target_time", moment.to_setting())),
                Target::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
                Target::Xid(xid) => Some(("recovery_target_xid", xid.to_string())),
                Target::Name(name) => Some(("recovery_target_name", name.clone())),
            };
            if let Some(target) = target {
                lines.push(target);
                if self.aim.exclusive {
                    lines.push(("recovery_target_inclusive", "off".to_owned()));
                }
                lines.push(("recovery_target_action", self.aim.action.as_str().to_owned()));
            }
        }
        if self.archiving == Archiving::Off {
            lines.push(("archive_mode", "off".to_owned()));
        }
        lines
    }

    /// Rewrites `postgresql.auto.conf`. `configuration` is `postgresql.conf` with what it includes, `None` where
    /// it is not known and everything has to be overridden.
    ///
    /// # Errors
    /// When the file breaks the grammar, or a value cannot stand in it.
    pub fn rewrite(
        &self,
        path: &Path,
        text: &str,
        configuration: Option<&Configuration>,
    ) -> Result<Rewritten, RestoreError> {
        let mut file = ConfFile::from_text(path, text);
        let lines = self.lines();
        let mut removed = Vec::new();
        for (name, _) in SETTINGS {
            if file.remove(name)? > 0 {
                removed.push(name.to_owned());
            }
        }
        if lines.iter().any(|(name, _)| *name == "archive_mode") {
            file.remove("archive_mode")?;
        }
        let mut overridden = Vec::new();
        for (name, nothing) in SETTINGS {
            if GONE.contains(&name) || lines.iter().any(|(ours, _)| *ours == name) {
                continue;
            }
            let set = configuration.map(|configuration| {
                configuration
                    .settings()
                    .iter()
                    .any(|setting| setting.name.eq_ignore_ascii_case(name) && !setting.value.is_empty())
            });
            if set.unwrap_or(true) {
                file.set(name, nothing)?;
                if set.is_some() {
                    overridden.push(name.to_owned());
                }
            }
        }
        for (name, value) in &lines {
            file.set(name, value)?;
        }
        Ok(Rewritten {
            text: file.text(),
            removed,
            overridden,
        })
    }
}

/// The `restore_command` that calls this program: its path and arguments quoted for the shell that the server
/// starts, and every `%` doubled, which the server would take for its own.
///
/// # Errors
/// [`RestoreError::Usage`] for words that cannot stand in the configuration file.
pub fn restore_command(program: &Path, arguments: &[OsString]) -> Result<String, RestoreError> {
    let mut words = vec![shell_word(program.as_os_str())?];
    for argument in arguments {
        words.push(shell_word(argument)?);
    }
    Ok(format!("{} %f \"%p\"", words.join(" ")))
}

fn shell_word(word: &OsStr) -> Result<String, RestoreError> {
    let text = std::str::from_utf8(word.as_bytes())
        .ok()
        .filter(|text| !text.contains(['\n', '\r', '\0']))
        .ok_or_else(|| RestoreError::Usage {
            what: format!(
                "{} cannot stand in restore_command: it has a line end, or is no UTF-8",
                word.to_string_lossy()
            ),
            hint: "use a path of plain characters".to_owned(),
        })?;
    let plain = |character: char| character.is_ascii_alphanumeric() || "_-+=./:,@%".contains(character);
    let quoted = if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    };
    Ok(quoted.replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::restore::moment::Moment;
    use crate::physical::restore::target::TargetAction;

    fn settings(target: Target) -> RecoverySettings {
        RecoverySettings {
            aim: Aim {
                target,
                ..Aim::default()
            },
            timeline: TimelineId::new(2).expect("not zero"),
            backup_timeline: TimelineId::FIRST,
            restore_command: "fetch %f \"%p\"".to_owned(),
            archiving: Archiving::Off,
            standby: None,
        }
    }

    fn rewrite(settings: &RecoverySettings, text: &str, configuration: &str) -> Rewritten {
        let configuration =
            Configuration::parse(configuration, Path::new("postgresql.conf")).expect("grammar");
        settings
            .rewrite(Path::new("postgresql.auto.conf"), text, Some(&configuration))
            .expect("it can be rewritten")
    }

    fn value<'a>(configuration: &'a Configuration, name: &str) -> Option<&'a str> {
        configuration.get(name)
    }

    #[test]
    fn old_recovery_settings_are_stripped_and_those_of_postgresql_conf_overridden() {
        let text = "# Do not edit this file manually!\nwork_mem = '64MB'\nrecovery_target_time = '2020-01-01'\n\
                    RESTORE_COMMAND = 'old'\nprimary_conninfo = 'host=old'\nrecovery_target_action = 'shutdown'\n";
        let conf = "recovery_target_name = 'old'\nrecovery_min_apply_delay = 1h\nport = 5433\n";
        let rewritten = rewrite(
            &settings(Target::Lsn("0/3000148".parse().expect("an LSN"))),
            text,
            conf,
        );
        let result = Configuration::parse(
            &format!("{conf}{}", rewritten.text),
            Path::new("postgresql.auto.conf"),
        )
        .expect("grammar");
        assert_eq!(value(&result, "work_mem"), Some("64MB"));
        assert_eq!(value(&result, "port"), Some("5433"));
        assert_eq!(value(&result, "recovery_target_time"), None);
        assert_eq!(value(&result, "primary_conninfo"), None);
        assert_eq!(value(&result, "recovery_target_name"), Some(""));
        assert_eq!(value(&result, "recovery_min_apply_delay"), Some("0"));
        assert_eq!(value(&result, "recovery_target_lsn"), Some("0/3000148"));
        assert_eq!(value(&result, "recovery_target_timeline"), Some("2"));
        assert_eq!(value(&result, "recovery_target_action"), Some("promote"));
        assert_eq!(value(&result, "restore_command"), Some("fetch %f \"%p\""));
        assert_eq!(value(&result, "archive_mode"), Some("off"));
        // The server would take a later empty target for a second one.
        let position = |name: &str| rewritten.text.find(name).expect("it is set");
        assert!(position("recovery_target_name") < position("recovery_target_lsn"));
        assert_eq!(
            rewritten.removed,
            [
                "recovery_target_time",
                "recovery_target_action",
                "restore_command",
                "primary_conninfo"
            ]
        );
        assert_eq!(
            rewritten.overridden,
            ["recovery_target_name", "recovery_min_apply_delay"]
        );
    }

    #[test]
    fn without_a_known_configuration_everything_is_overridden_before_the_target() {
        let settings = settings(Target::Xid(777));
        let rewritten = settings
            .rewrite(Path::new("postgresql.auto.conf"), "", None)
            .expect("it can be rewritten");
        let target = rewritten
            .text
            .find("recovery_target_xid = '777'")
            .expect("the target");
        for name in [
            "recovery_target =",
            "recovery_target_lsn",
            "recovery_target_time",
            "primary_conninfo",
        ] {
            assert!(rewritten.text.find(name).expect(name) < target, "{name}");
        }
        assert!(!rewritten.text.contains("promote_trigger_file"));
    }

    #[test]
    fn every_target_has_its_setting() {
        let moment = Moment::parse("2025-01-20 14:30:00+01", None).expect("a moment");
        for (target, name, expected) in [
            (Target::Immediate, "recovery_target", "immediate"),
            (
                Target::Time(moment),
                "recovery_target_time",
                "2025-01-20 13:30:00.000000+00",
            ),
            (Target::Name("it's".into()), "recovery_target_name", "it's"),
        ] {
            let mut settings = settings(target);
            settings.aim.exclusive = true;
            settings.aim.action = TargetAction::Pause;
            let rewritten = rewrite(&settings, "", "");
            let result = Configuration::parse(&rewritten.text, Path::new("x")).expect("grammar");
            assert_eq!(value(&result, name), Some(expected));
            assert_eq!(value(&result, "recovery_target_inclusive"), Some("off"));
            assert_eq!(value(&result, "recovery_target_action"), Some("pause"));
        }
        assert!(
            !rewrite(&settings(Target::Latest), "", "")
                .text
                .contains("recovery_target_action")
        );
    }

    #[test]
    fn a_standby_follows_the_newest_timeline_and_keeps_no_target() {
        let mut settings = settings(Target::Latest);
        settings.archiving = Archiving::Keep;
        settings.standby = Some(StandbySettings {
            primary: "host=db1 password='it''s'".to_owned(),
            slot: Some("s1".to_owned()),
        });
        assert_eq!(settings.signal_file(), "standby.signal");
        let rewritten = rewrite(&settings, "archive_mode = 'always'\n", "");
        let result = Configuration::parse(&rewritten.text, Path::new("x")).expect("grammar");
        assert_eq!(value(&result, "recovery_target_timeline"), Some("latest"));
        assert_eq!(
            value(&result, "primary_conninfo"),
            Some("host=db1 password='it''s'")
        );
        assert_eq!(value(&result, "primary_slot_name"), Some("s1"));
        assert_eq!(value(&result, "archive_mode"), Some("always"));
    }

    #[test]
    fn restore_command_survives_the_shell_and_the_server() {
        let command = restore_command(
            Path::new("/opt/pg mahout/it's/100%"),
            &[
                "--config".into(),
                "/etc/a b.yml".into(),
                "wal".into(),
                "fetch".into(),
            ],
        )
        .expect("plain text");
        assert_eq!(
            command,
            "'/opt/pg mahout/it'\\''s/100%%' --config '/etc/a b.yml' wal fetch %f \"%p\""
        );
        // As the server and the shell see it.
        let expanded = command
            .replace("%%", "%")
            .replace("%f", "F")
            .replace("%p", "pg wal/P");
        let script = format!("print() {{ printf '%s\\n' \"$@\"; }}; print {expanded}");
        let output = std::process::Command::new("/bin/sh")
            .args(["-c", &script])
            .output()
            .expect("a shell");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "/opt/pg mahout/it's/100%\n--config\n/etc/a b.yml\nwal\nfetch\nF\npg wal/P\n"
        );
        assert!(restore_command(Path::new("/a\nb"), &[]).is_err());
    }
}
