//! Moments as people write them: with a time zone, or with the host's.

use std::fmt;

use jiff::civil::DateTime;
use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, Zoned};
use serde::{Deserialize, Serialize};

use super::error::RestoreError;

/// A moment, and how it was understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    at: Timestamp,
    /// The time in the zone that it was given in, with the zone.
    shown: String,
    /// Whether the zone was not given but taken from the host.
    assumed: bool,
}

impl Moment {
    /// The moment, in PostgreSQL's precision of a microsecond.
    pub fn timestamp(&self) -> Timestamp {
        self.at
    }

    /// Whether the time zone was taken from the host.
    pub fn is_zone_assumed(&self) -> bool {
        self.assumed
    }

    /// The value of `recovery_target_time`: in UTC, so that no setting of the server changes what it means.
    pub fn to_setting(&self) -> String {
        setting(self.at)
    }

    /// What was typed: `2025-01-20 14:30:00`, with `T` or a blank, with or without seconds and fractions,
    /// followed or not by an offset (`+01`, `+01:00`, `Z`) or a zone's name (`Europe/Berlin`). Without one,
    /// `zone` counts, else the host's own.
    ///
    /// # Errors
    /// [`RestoreError::Usage`], also for a local time that there is twice or never in a year.
    pub fn parse(text: &str, zone: Option<&str>) -> Result<Self, RestoreError> {
        let text = text.trim();
        let usage = |what: String| RestoreError::Usage {
            what,
            hint: "write for example \"2025-01-20 14:30:00+01:00\" or \"2025-01-20 14:30:00 Europe/Berlin\""
                .to_owned(),
        };
        let (local, suffix) = split(text);
        let local = parse_local(local).ok_or_else(|| usage(format!("\"{text}\" is not a time")))?;
        if let Some(offset) = parse_offset(suffix) {
            let zoned = TimeZone::fixed(offset)
                .to_zoned(local)
                .map_err(|_| usage(format!("\"{text}\" is not a time that can be")))?;
            return Ok(Self::new(&zoned, false));
        }
        let name = if suffix.is_empty() { zone } else { Some(suffix) };
        let time_zone = match name {
            Some(name) => match parse_offset(name) {
                Some(offset) => TimeZone::fixed(offset),
                None => {
                    TimeZone::get(name).map_err(|_| usage(format!("\"{name}\" is not a known time zone")))?
                }
            },
            None => TimeZone::system(),
        };
        let ambiguous = time_zone.to_ambiguous_zoned(local);
        if ambiguous.is_ambiguous() {
            return Err(usage(format!(
                "there is no single moment \"{text}\" in the time zone {}: the clocks change then",
                zone_name(&time_zone, None)
            )));
        }
        let zoned = ambiguous
            .unambiguous()
            .map_err(|_| usage(format!("\"{text}\" is not a time that can be")))?;
        Ok(Self::new(&zoned, name.is_none()))
    }

    fn new(zoned: &Zoned, assumed: bool) -> Self {
        let micros = zoned.timestamp().as_microsecond();
        let at = Timestamp::from_microsecond(micros).unwrap_or_else(|_| zoned.timestamp());
        Self {
            at,
            shown: show(&at.to_zoned(zoned.time_zone().clone())),
            assumed,
        }
    }
}

/// A moment as `recovery_target_time` takes it.
pub(crate) fn setting(at: Timestamp) -> String {
    let utc = at.to_zoned(TimeZone::UTC);
    format!("{}+00", utc.strftime("%Y-%m-%d %H:%M:%S%.6f"))
}

/// A moment for people, in UTC.
pub(crate) fn utc(at: Timestamp) -> String {
    show(&at.to_zoned(TimeZone::UTC))
}

fn show(zoned: &Zoned) -> String {
    let fraction = if zoned.subsec_nanosecond() == 0 {
        "%Y-%m-%d %H:%M:%S"
    } else {
        "%Y-%m-%d %H:%M:%S%.f"
    };
    format!(
        "{} {}",
        zoned.strftime(fraction),
        zone_name(zoned.time_zone(), Some(zoned))
    )
}

/// The zone's name, with the offset that it has then where the name does not say it.
fn zone_name(time_zone: &TimeZone, at: Option<&Zoned>) -> String {
    let offset = at.map(|zoned| zoned.strftime("%:z").to_string());
    match (time_zone.iana_name(), offset) {
        (Some("UTC" | "Etc/UTC"), _) => "UTC".to_owned(),
        (Some(name), Some(offset)) => format!("{name} ({offset})"),
        (Some(name), None) => name.to_owned(),
        (None, Some(offset)) if offset == "+00:00" => "UTC".to_owned(),
        (None, Some(offset)) => offset,
        (None, None) => "of this host".to_owned(),
    }
}

/// The local time, and what follows it.
fn split(text: &str) -> (&str, &str) {
    let begin = 10.min(text.len());
    let after_date = text.get(begin..).unwrap_or_default();
    let end = after_date
        .char_indices()
        .find(|&(index, character)| {
            !(character.is_ascii_digit()
                || matches!(character, ':' | '.')
                || index == 0 && matches!(character, ' ' | 'T' | 't'))
        })
        .map_or(after_date.len(), |(index, _)| index);
    let (time, suffix) = after_date.split_at(end);
    (&text[..text.len() - after_date.len() + time.len()], suffix.trim())
}

fn parse_local(text: &str) -> Option<DateTime> {
    static PARSER: DateTimeParser = DateTimeParser::new();
    let text = text.trim_end();
    // A bare day would silently mean midnight.
    if text.len() <= 11 || !text.is_ascii() {
        return None;
    }
    PARSER.parse_datetime(text).ok()
}

/// `Z`, `UTC`, `+01`, `-0530`, `+05:30`.
fn parse_offset(text: &str) -> Option<Offset> {
    if matches!(text, "Z" | "z") || text.eq_ignore_ascii_case("utc") || text.eq_ignore_ascii_case("gmt") {
        return Some(Offset::UTC);
    }
    let (sign, digits) = match text.strip_prefix('+') {
        Some(digits) => (1, digits),
        None => (-1, text.strip_prefix('-')?),
    };
    let (hours, minutes) = match (digits.split_once(':'), digits.len()) {
        (Some(parts), _) => parts,
        (None, 1 | 2) => (digits, "0"),
        (None, 4) => digits.split_at_checked(2)?,
        _ => return None,
    };
    let number = |text: &str| {
        let all = !text.is_empty() && text.len() <= 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        if all { text.parse::<i32>().ok() } else { None }
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    if hours > 15 || minutes > 59 {
        return None;
    }
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()
}

impl fmt::Display for Moment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, zone: Option<&str>) -> Moment {
        Moment::parse(text, zone).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn every_way_to_write_a_moment_means_the_same() {
        for (text, zone) in [
            ("2025-01-20 14:30:00+01", None),
            ("2025-01-20 14:30:00 +01:00", None),
            ("2025-01-20T14:30:00+0100", None),
            ("2025-01-20 13:30:00Z", None),
            ("2025-01-20 13:30:00 UTC", None),
            ("2025-01-20 14:30", Some("Europe/Berlin")),
            ("2025-01-20 14:30:00.000000", Some("Europe/Berlin")),
            ("2025-01-20 14:30:00 Europe/Berlin", Some("America/New_York")),
            ("2025-01-20 14:30:00", Some("+01")),
        ] {
            let moment = parse(text, zone);
            assert_eq!(moment.to_setting(), "2025-01-20 13:30:00.000000+00", "{text}");
            assert!(!moment.is_zone_assumed());
        }
    }

    #[test]
    fn a_time_without_zone_is_the_hosts_and_says_so() {
        let moment = parse("2025-01-20 14:30:00", None);
        assert!(moment.is_zone_assumed());
        let expected = TimeZone::system()
            .to_zoned(jiff::civil::date(2025, 1, 20).at(14, 30, 0, 0))
            .expect("a time");
        assert_eq!(moment.timestamp(), expected.timestamp());
    }

    #[test]
    fn the_zone_is_shown_with_its_offset_of_that_day() {
        assert_eq!(
            parse("2025-07-20 14:30:00.25 Europe/Berlin", None).to_string(),
            "2025-07-20 14:30:00.25 Europe/Berlin (+02:00)"
        );
        assert_eq!(
            parse("2025-07-20 14:30:00Z", None).to_string(),
            "2025-07-20 14:30:00 UTC"
        );
    }

    #[test]
    fn fractions_are_kept_to_the_microsecond() {
        assert_eq!(
            parse("2025-01-20 14:30:00.1234567Z", None).to_setting(),
            "2025-01-20 14:30:00.123456+00"
        );
    }

    #[test]
    fn a_time_that_there_is_twice_or_never_is_refused() {
        for text in ["2025-10-26 02:30:00", "2025-03-30 02:30:00"] {
            let error = Moment::parse(text, Some("Europe/Berlin")).expect_err(text);
            assert!(error.to_string().contains("the clocks change"), "{error}");
        }
        assert!(Moment::parse("2025-10-26 02:30:00+01", None).is_ok());
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "yesterday",
            "2025-01-20",
            "14:30:00",
            "2025-13-20 14:30:00Z",
            "2025-01-20 25:00:00Z",
            "2025-01-20 14:30:00 Nowhere/Town",
            "2025-01-20 14:30:00+99",
            "ä2025-01-20 14:30",
        ] {
            assert!(Moment::parse(text, None).is_err(), "{text}");
        }
    }
}
