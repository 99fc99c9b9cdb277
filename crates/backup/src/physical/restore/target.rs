//! Where recovery ends: what was asked for, as a value.

use std::fmt;

use jiff::Timestamp;
use pgmahout_types::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};

use super::error::RestoreError;
use super::moment::Moment;

/// Where recovery ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// At the end of the archived WAL.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    /// At the last commit before this moment, or at the moment itself.
    Time(Moment),
    /// At this position.
    Lsn(Lsn),
    /// At the commit of this transaction.
    Xid(u64),
    /// At the restore point of this name (`pg_create_restore_point`).
    Name(String),
}

/// The timeline that recovery follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetTimeline {
    /// The newest one in the archive that the backup lies on.
    #[default]
    Latest,
    /// The one that the backup was taken on.
    Current,
    /// This one.
    Number(TimelineId),
}

/// What the server does when it has reached the target (`recovery_target_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetAction {
    /// Stays read-only, so that somebody can look before it is final.
    Pause,
    /// Becomes a primary on a new timeline.
    #[default]
    Promote,
    /// Shuts down.
    Shutdown,
}

/// Everything about where recovery ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aim {
    /// Where.
    pub target: Target,
    /// On which timeline.
    pub timeline: TargetTimeline,
    /// Whether what is exactly at the target is left out.
    pub exclusive: bool,
    /// What happens then.
    pub action: TargetAction,
}

impl Default for Aim {
    fn default() -> Self {
        Self {
            target: Target::Latest,
            timeline: TargetTimeline::Latest,
            exclusive: false,
            action: TargetAction::Promote,
        }
    }
}

impl Aim {
    /// Checks that the parts go together. [`Target::Immediate`] implies the backup's own timeline: the backup is
    /// consistent there and nowhere else.
    ///
    /// # Errors
    /// [`RestoreError::Usage`].
    pub fn checked(mut self) -> Result<Self, RestoreError> {
        if self.exclusive && !matches!(self.target, Target::Time(_) | Target::Lsn(_) | Target::Xid(_)) {
            return Err(RestoreError::Usage {
                what: "--target-exclusive goes only with a time, a WAL position or a transaction".to_owned(),
                hint: "leave --target-exclusive out".to_owned(),
            });
        }
        if self.target == Target::Immediate {
            if let TargetTimeline::Number(timeline) = self.timeline {
                return Err(RestoreError::Usage {
                    what: format!(
                        "--target-immediate ends on the backup's own timeline, so that --target-timeline {timeline} means nothing"
                    ),
                    hint:
                        "leave --target-timeline out, or choose a backup of that timeline with --backup LABEL"
                            .to_owned(),
                });
            }
            self.timeline = TargetTimeline::Current;
        }
        Ok(self)
    }
}

/// What was typed about the target. The flags of pgmahout and the words of pgBackRest mean the same.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// `--target-time`.
    pub time: Option<String>,
    /// `--target-lsn`.
    pub lsn: Option<String>,
    /// `--target-xid`.
    pub xid: Option<String>,
    /// `--target-name`.
    pub name: Option<String>,
    /// `--target-immediate`.
    pub immediate: bool,
    /// `--type`: `default`, `latest`, `immediate`, `time`, `lsn`, `xid`, `name`.
    pub kind: Option<String>,
    /// `--target`, the value that goes with `--type`.
    pub value: Option<String>,
    /// `--target-timeline`.
    pub timeline: Option<String>,
    /// `--target-action`.
    pub action: Option<String>,
    /// `--target-exclusive`.
    pub exclusive: bool,
    /// `--timezone`, for a time without one.
    pub zone: Option<String>,
}

impl Wanted {
    /// What was meant. `now` is only for the time zone of the host.
    ///
    /// # Errors
    /// [`RestoreError::Usage`] where it cannot be understood, or says two things.
    pub fn aim(&self) -> Result<Aim, RestoreError> {
        let mut targets = Vec::new();
        let mut add = |flag: &str, kind: &str, value: &Option<String>| {
            if let Some(value) = value {
                targets.push((flag.to_owned(), kind.to_owned(), value.clone()));
            }
        };
        add("--target-time", "time", &self.time);
        add("--target-lsn", "lsn", &self.lsn);
        add("--target-xid", "xid", &self.xid);
        add("--target-name", "name", &self.name);
        if self.immediate {
            targets.push((
                "--target-immediate".to_owned(),
                "immediate".to_owned(),
                String::new(),
            ));
        }
        if let Some(kind) = &self.kind {
            let value = self.value.clone();
            let takes_value = matches!(kind.as_str(), "time" | "lsn" | "xid" | "name");
            let value = match (takes_value, value) {
                (true, None) => {
                    return Err(RestoreError::Usage {
                        what: format!("--type={kind} does not say which"),
                        hint: format!("add --target=VALUE, or write --target-{kind} VALUE"),
                    });
                }
                (false, Some(value)) => {
                    return Err(RestoreError::Usage {
                        what: format!("--type={kind} takes no --target \"{value}\""),
                        hint: "leave --target out, or say --type=time, lsn, xid or name".to_owned(),
                    });
                }
                (_, value) => value.unwrap_or_default(),
            };
            targets.push((format!("--type={kind}"), kind.clone(), value));
        } else if let Some(value) = &self.value {
            return Err(RestoreError::Usage {
                what: format!("--target \"{value}\" does not say what it is"),
                hint: "add --type=time, lsn, xid or name".to_owned(),
            });
        }
        let target = match targets.as_slice() {
            [] => Target::Latest,
            [(_, kind, value)] => self.target(kind, value)?,
            [(first, ..), (second, ..), ..] => {
                return Err(RestoreError::Usage {
                    what: format!("{first} and {second} are two targets, and recovery ends at one"),
                    hint: "give one of them".to_owned(),
                });
            }
        };
        Aim {
            target,
            timeline: self.timeline()?,
            exclusive: self.exclusive,
            action: self.action()?,
        }
        .checked()
    }

    fn target(&self, kind: &str, value: &str) -> Result<Target, RestoreError> {
        let usage = |what: String, hint: &str| RestoreError::Usage {
            what,
            hint: hint.to_owned(),
        };
        Ok(match kind {
            "default" | "latest" | "none" => Target::Latest,
            "immediate" => Target::Immediate,
            "time" => Target::Time(Moment::parse(value, self.zone.as_deref())?),
            "lsn" => Target::Lsn(value.parse::<Lsn>().ok().and_then(Lsn::valid).ok_or_else(|| {
                usage(
                    format!("\"{value}\" is not a WAL position"),
                    "write it as the server does, for example 0/3000148 (SELECT pg_current_wal_lsn())",
                )
            })?),
            "xid" => Target::Xid(value.parse().ok().filter(|&xid| xid >= 3).ok_or_else(|| {
                usage(
                    format!("\"{value}\" is not a transaction id"),
                    "write the number that pg_current_xact_id() gave, for example 73112",
                )
            })?),
            "name" => {
                // MAXFNAMELEN in src/include/access/xlog_internal.h: 63 bytes and a zero.
                if value.is_empty() || value.len() >= 64 || value.contains(['\n', '\r', '\0']) {
                    return Err(usage(
                        format!("\"{value}\" cannot be the name of a restore point"),
                        "names have 1 to 63 bytes; give what pg_create_restore_point() was given",
                    ));
                }
                Target::Name(value.to_owned())
            }
            other => {
                return Err(usage(
                    format!("--type={other} is not known"),
                    "the types are default, immediate, time, lsn, xid and name",
                ));
            }
        })
    }

    fn timeline(&self) -> Result<TargetTimeline, RestoreError> {
        match self.timeline.as_deref() {
            None | Some("latest") => Ok(TargetTimeline::Latest),
            Some("current") => Ok(TargetTimeline::Current),
            Some(text) => {
                // PostgreSQL takes hexadecimal numbers as well (recovery_target_timeline, strtoul base 0).
                let number = match text.strip_prefix("0x") {
                    Some(digits) => u32::from_str_radix(digits, 16).ok().and_then(TimelineId::new),
                    None => text.parse().ok(),
                };
                number
                    .map(TargetTimeline::Number)
                    .ok_or_else(|| RestoreError::Usage {
                        what: format!("\"{text}\" is not a timeline"),
                        hint: "give latest, current, or a number; see them with: pgmahout wal list"
                            .to_owned(),
                    })
            }
        }
    }

    fn action(&self) -> Result<TargetAction, RestoreError> {
        match self.action.as_deref() {
            None | Some("promote") => Ok(TargetAction::Promote),
            Some("pause") => Ok(TargetAction::Pause),
            Some("shutdown") => Ok(TargetAction::Shutdown),
            Some(text) => Err(RestoreError::Usage {
                what: format!("--target-action {text} is not known"),
                hint: "the actions are promote, pause and shutdown".to_owned(),
            }),
        }
    }
}

impl Target {
    /// Whether recovery ends at a place of its own, and not where the WAL ends.
    pub fn is_point(&self) -> bool {
        !matches!(self, Self::Latest)
    }

    /// The moment, where it is one.
    pub fn time(&self) -> Option<Timestamp> {
        match self {
            Self::Time(moment) => Some(moment.timestamp()),
            _ => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => formatter.write_str("the end of the archived WAL"),
            Self::Immediate => formatter.write_str("the end of the backup"),
            Self::Time(moment) => write!(formatter, "{moment}"),
            Self::Lsn(lsn) => write!(formatter, "WAL position {lsn}"),
            Self::Xid(xid) => write!(formatter, "the commit of transaction {xid}"),
            Self::Name(name) => write!(formatter, "the restore point \"{name}\""),
        }
    }
}

impl fmt::Display for TargetTimeline {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => formatter.write_str("latest"),
            Self::Current => formatter.write_str("current"),
            Self::Number(timeline) => write!(formatter, "{timeline}"),
        }
    }
}

impl TargetAction {
    /// PostgreSQL's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgmahout_types::diagnostic::Diagnose as _;

    #[test]
    fn flags_and_the_words_of_pgbackrest_mean_the_same() {
        let flag = Wanted {
            time: Some("2025-01-20 14:30:00+00".to_owned()),
            ..Wanted::default()
        };
        let words = Wanted {
            kind: Some("time".to_owned()),
            value: Some("2025-01-20 14:30:00+00".to_owned()),
            ..Wanted::default()
        };
        assert_eq!(flag.aim().expect("a time"), words.aim().expect("a time"));
        let default = Wanted {
            kind: Some("default".to_owned()),
            ..Wanted::default()
        };
        assert_eq!(default.aim().expect("nothing asked"), Aim::default());
    }

    #[test]
    fn immediate_implies_the_current_timeline() {
        let wanted = Wanted {
            immediate: true,
            ..Wanted::default()
        };
        assert_eq!(wanted.aim().expect("immediate").timeline, TargetTimeline::Current);
        let wanted = Wanted {
            immediate: true,
            timeline: Some("2".to_owned()),
            ..Wanted::default()
        };
        assert!(wanted.aim().expect_err("a contradiction").hint().is_some());
    }

    #[test]
    fn what_says_two_things_or_nothing_is_refused() {
        let text = |text: &str| Some(text.to_owned());
        for wanted in [
            Wanted {
                time: text("2025-01-20 14:30:00Z"),
                lsn: text("0/3000000"),
                ..Wanted::default()
            },
            Wanted {
                kind: text("time"),
                ..Wanted::default()
            },
            Wanted {
                value: text("2025-01-20"),
                ..Wanted::default()
            },
            Wanted {
                kind: text("immediate"),
                value: text("x"),
                ..Wanted::default()
            },
            Wanted {
                kind: text("full"),
                ..Wanted::default()
            },
            Wanted {
                lsn: text("0/0"),
                ..Wanted::default()
            },
            Wanted {
                lsn: text("3000000"),
                ..Wanted::default()
            },
            Wanted {
                xid: text("2"),
                ..Wanted::default()
            },
            Wanted {
                xid: text("-7"),
                ..Wanted::default()
            },
            Wanted {
                name: text(""),
                ..Wanted::default()
            },
            Wanted {
                name: text(&"x".repeat(64)),
                ..Wanted::default()
            },
            Wanted {
                timeline: text("0"),
                ..Wanted::default()
            },
            Wanted {
                action: text("stop"),
                ..Wanted::default()
            },
            Wanted {
                name: text("x"),
                exclusive: true,
                ..Wanted::default()
            },
            Wanted {
                exclusive: true,
                ..Wanted::default()
            },
        ] {
            let error = wanted.aim().expect_err("not to be understood");
            assert!(matches!(error, RestoreError::Usage { .. }), "{error}");
        }
    }

    #[test]
    fn timelines_are_decimal_or_hexadecimal_numbers() {
        for (text, number) in [("3", 3), ("0x1A", 26)] {
            let wanted = Wanted {
                timeline: Some(text.to_owned()),
                ..Wanted::default()
            };
            assert_eq!(
                wanted.aim().expect(text).timeline,
                TargetTimeline::Number(TimelineId::new(number).expect("not zero"))
            );
        }
    }
}
