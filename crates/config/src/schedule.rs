//! When something runs by itself: five fields of cron, what systemd's timers make of them, and when a run was due.
//!
//! The fields are those of cron(8): minute, hour, day of the month, month, day of the week, each a list of numbers,
//! ranges and steps, or `*`; months and days of the week also by their first three letters. Where both kinds of
//! day are restricted, either is enough, as in every cron. What only some crons know (`@daily`, `L`, `W`, `#`, `?`,
//! seconds, ranges that wrap) is no schedule.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan as _};
use serde::{Serialize, Serializer};

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// So many days are looked through for a run: a 29th of February on a given day of the week may be 28 years away,
/// and 40 across a year 2100.
const HORIZON: i32 = 366 * 41;

/// A schedule: five fields of cron.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    text: String,
    minutes: Field,
    hours: Field,
    days: Field,
    months: Field,
    weekdays: Field,
}

/// The numbers that a field takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field {
    /// A bit for each number.
    numbers: u64,
    /// Whether it begins with `*`: then it does not restrict the days.
    is_star: bool,
    low: u32,
    high: u32,
}

/// What is not a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not five fields of cron")]
pub struct NoSchedule(String);

impl Field {
    fn parse(text: &str, low: u32, high: u32, names: &[&str]) -> Option<Self> {
        let one = |value: &str| -> Option<u32> {
            if let Some(at) = names.iter().position(|name| value.eq_ignore_ascii_case(name)) {
                return Some(u32::try_from(at).ok()? + low);
            }
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let number: u32 = if digits { value.parse().ok()? } else { return None };
            (low..=high).contains(&number).then_some(number)
        };
        let mut numbers = 0;
        for part in text.split(',') {
            let (range, step) = match part.split_once('/') {
                Some((range, step)) => (range, Some(step.parse::<u32>().ok().filter(|step| *step > 0)?)),
                None => (part, None),
            };
            let (from, to) = match (range, range.split_once('-'), step) {
                ("*", ..) => (low, high),
                (_, Some((from, to)), _) => (one(from)?, one(to)?),
                // As Vixie's cron has it: from there on.
                (_, None, Some(_)) => (one(range)?, high),
                (_, None, None) => (one(range)?, one(range)?),
            };
            if from > to {
                return None;
            }
            let step = usize::try_from(step.unwrap_or(1)).ok()?;
            for number in (from..=to).step_by(step) {
                numbers |= 1 << number;
            }
        }
        Some(Self {
            numbers,
            is_star: text.starts_with('*'),
            low,
            high,
        })
    }

    fn contains(self, number: i8) -> bool {
        u32::try_from(number).is_ok_and(|number| number < 64 && self.numbers & (1 << number) != 0)
    }

    fn all(self) -> impl DoubleEndedIterator<Item = u32> {
        (self.low..=self.high).filter(move |number| self.numbers & (1 << number) != 0)
    }

    fn is_all(self) -> bool {
        self.all().count() == usize::try_from(self.high - self.low + 1).unwrap_or(0)
    }

    /// As a part of systemd.time(7): `*`, or numbers with neighbours drawn together.
    fn calendar(self) -> String {
        if self.is_all() {
            return "*".to_owned();
        }
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for number in self.all() {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => ranges.push((number, number)),
            }
        }
        let texts = ranges.iter().map(|(first, last)| match last - first {
            0 => format!("{first:02}"),
            1 => format!("{first:02},{last:02}"),
            _ => format!("{first:02}..{last:02}"),
        });
        texts.collect::<Vec<_>>().join(",")
    }
}

impl FromStr for Schedule {
    type Err = NoSchedule;

    fn from_str(text: &str) -> Result<Self, NoSchedule> {
        let parse = || {
            let fields: Vec<&str> = text.split_whitespace().collect();
            let [minutes, hours, days, months, weekdays] = fields[..] else {
                return None;
            };
            let mut weekdays = Field::parse(weekdays, 0, 7, &DAYS)?;
            // Sunday has two numbers.
            weekdays.numbers |= weekdays.numbers >> 7 & 1;
            weekdays.high = 6;
            let schedule = Self {
                text: fields.join(" "),
                minutes: Field::parse(minutes, 0, 59, &[])?,
                hours: Field::parse(hours, 0, 23, &[])?,
                days: Field::parse(days, 1, 31, &[])?,
                months: Field::parse(months, 1, 12, &MONTHS)?,
                weekdays,
            };
            // The 31st of February never comes.
            schedule.next_day(Date::constant(2000, 1, 1)).map(|_| schedule)
        };
        parse().ok_or_else(|| NoSchedule(text.to_owned()))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.text)
    }
}

impl Serialize for Schedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl Schedule {
    /// The schedule as values of systemd's `OnCalendar=`, one or two: days of the month and days of the week both
    /// restrict there, and either is enough here.
    pub fn on_calendar(&self) -> Vec<String> {
        let time = format!("{}:{}:00", self.hours.calendar(), self.minutes.calendar());
        let months = self.months.calendar();
        let weekdays = || {
            let names: Vec<&str> = self
                .weekdays
                .all()
                .filter_map(|day| {
                    ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"]
                        .get(usize::try_from(day).ok()?)
                        .copied()
                })
                .collect();
            names.join(",")
        };
        let by_month = format!("*-{months}-{} {time}", self.days.calendar());
        let by_week = format!("{} *-{months}-* {time}", weekdays());
        let every_day = (self.days.is_all(), self.weekdays.is_all());
        if self.days.is_star || self.weekdays.is_star {
            // Both are wanted.
            return match every_day {
                (_, true) => vec![by_month],
                (true, false) => vec![by_week],
                (false, false) => vec![format!("{} {by_month}", weekdays())],
            };
        }
        match every_day {
            (false, false) => vec![by_month, by_week],
            _ => vec![format!("*-{months}-* {time}")],
        }
    }

    fn has_day(&self, day: Date) -> bool {
        let by_month = self.days.contains(day.day());
        let by_week = self.weekdays.contains(day.weekday().to_sunday_zero_offset());
        let is_one = if self.days.is_star || self.weekdays.is_star {
            by_month && by_week
        } else {
            by_month || by_week
        };
        is_one && self.months.contains(day.month())
    }

    fn next_day(&self, from: Date) -> Option<Date> {
        (0..HORIZON)
            .map_while(|days| from.checked_add(days.days()).ok())
            .find(|day| self.has_day(*day))
    }

    /// The last run that was due at a time or before.
    pub fn last_due(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let now = zone.to_datetime(at);
        let day = |days: i32| now.date().checked_sub(days.days()).ok();
        (0..HORIZON)
            .map_while(day)
            .filter(|day| self.has_day(*day))
            .find_map(|day| {
                let times = self.times(day).rev();
                let mut due = times
                    .filter(|time| *time <= now)
                    .filter_map(|time| instant(time, zone));
                due.find(|due| *due <= at)
            })
    }

    /// The first run that is due after a time.
    pub fn next_due(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let now = zone.to_datetime(after);
        let day = |days: i32| now.date().checked_add(days.days()).ok();
        (0..HORIZON)
            .map_while(day)
            .filter(|day| self.has_day(*day))
            .find_map(|day| {
                let mut due = self.times(day).filter_map(|time| instant(time, zone));
                due.find(|due| *due > after)
            })
    }

    /// The last run that should have left its result by now: half of the time to the next one has gone by since.
    pub fn last_overdue(&self, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut due = self.last_due(now, zone)?;
        loop {
            let next = self.next_due(due, zone)?;
            let half = next.duration_since(due) / 2;
            if now.duration_since(due) >= half {
                return Some(due);
            }
            let before = due.checked_sub(Span::new().seconds(1)).ok()?;
            due = self.last_due(before, zone)?;
        }
    }

    fn times(&self, day: Date) -> impl DoubleEndedIterator<Item = DateTime> {
        let (hours, minutes) = (self.hours, self.minutes);
        hours.all().flat_map(move |hour| {
            minutes
                .all()
                .filter_map(move |minute| Some(day.at(small(hour)?, small(minute)?, 0, 0)))
        })
    }
}

fn small(number: u32) -> Option<i8> {
    i8::try_from(number).ok()
}

/// A time of day that a change of the clocks leaves out is the one after the change.
fn instant(time: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    zone.to_ambiguous_zoned(time)
        .compatible()
        .ok()
        .map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(text: &str) -> Schedule {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_schedule_has_five_fields_of_cron() {
        for bad in [
            "",
            "0 2 * *",
            "0 2 * * * *",
            "60 2 * * *",
            "0 24 * * *",
            "0 2 0 * *",
            "0 2 * 13 *",
            "5-1 * * * *",
            "*/0 * * * *",
            "0 2 31 2 *",
            "0 2 L * *",
            "0 2 ? * *",
            "0 2 * * mon#1",
            "+1 2 * * *",
            "@daily",
            "a b c d e",
        ] {
            assert!(bad.parse::<Schedule>().is_err(), "{bad}");
        }
        assert_eq!(schedule(" 0  2 * * * ").to_string(), "0 2 * * *");
    }

    #[test]
    fn lists_ranges_steps_and_names_become_calendars_of_systemd() {
        for (cron, calendar) in [
            ("0 2 * * *", &["*-*-* 02:00:00"][..]),
            ("*/15 * * * *", &["*-*-* *:00,15,30,45:00"]),
            ("*/7 3 * * *", &["*-*-* 03:00,07,14,21,28,35,42,49,56:00"]),
            ("5,10-12 0-6/2 * * *", &["*-*-* 00,02,04,06:05,10..12:00"]),
            ("50/4 0 * * *", &["*-*-* 00:50,54,58:00"]),
            ("0 2 * * mon-fri", &["Mon,Tue,Wed,Thu,Fri *-*-* 02:00:00"]),
            ("0 2 * * 7", &["Sun *-*-* 02:00:00"]),
            ("0 2 * * 0-7", &["*-*-* 02:00:00"]),
            ("0 2 1 * 0-6", &["*-*-* 02:00:00"]),
            ("0 2 1 JAN,jul *", &["*-01,07-01 02:00:00"]),
            // Either kind of day is enough.
            ("0 2 1,15 * sun", &["*-*-01,15 02:00:00", "Sun *-*-* 02:00:00"]),
            // But for a field that begins with a star.
            (
                "0 2 */2 * sun",
                &["Sun *-*-01,03,05,07,09,11,13,15,17,19,21,23,25,27,29,31 02:00:00"],
            ),
        ] {
            assert_eq!(schedule(cron).on_calendar(), calendar, "{cron}");
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn due_runs_are_found_across_days_months_and_changes_of_the_clocks() {
        let utc = TimeZone::UTC;
        let nightly = schedule("0 2 * * *");
        assert_eq!(
            nightly.last_due(at("2026-11-21T02:00:00Z"), &utc),
            Some(at("2026-11-21T02:00:00Z"))
        );
        assert_eq!(
            nightly.last_due(at("2026-11-21T01:59:59Z"), &utc),
            Some(at("2026-11-20T02:00:00Z"))
        );
        assert_eq!(
            nightly.next_due(at("2026-11-21T02:00:00Z"), &utc),
            Some(at("2026-11-22T02:00:00Z"))
        );
        let leap = schedule("30 4 29 2 *");
        assert_eq!(
            leap.last_due(at("2026-11-21T00:00:00Z"), &utc),
            Some(at("2024-02-29T04:30:00Z"))
        );
        assert_eq!(
            leap.next_due(at("2026-11-21T00:00:00Z"), &utc),
            Some(at("2028-02-29T04:30:00Z"))
        );
        let either = schedule("0 12 1 * sun");
        assert_eq!(
            either.next_due(at("2026-11-23T00:00:00Z"), &utc),
            Some(at("2026-11-29T12:00:00Z"))
        );
        assert_eq!(
            either.next_due(at("2026-11-29T12:00:00Z"), &utc),
            Some(at("2026-12-01T12:00:00Z"))
        );
        // Half past two does not exist that night; cron and systemd run at three.
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a zone");
        let skipped = schedule("30 2 * * *");
        assert_eq!(
            skipped.next_due(at("2026-03-29T00:00:00Z"), &berlin),
            Some(at("2026-03-29T01:30:00Z"))
        );
    }

    #[test]
    fn a_run_is_overdue_when_half_of_the_time_to_the_next_one_has_gone_by() {
        let utc = TimeZone::UTC;
        let nightly = schedule("0 2 * * *");
        assert_eq!(
            nightly.last_overdue(at("2026-11-21T13:59:00Z"), &utc),
            Some(at("2026-11-20T02:00:00Z"))
        );
        assert_eq!(
            nightly.last_overdue(at("2026-11-21T14:00:00Z"), &utc),
            Some(at("2026-11-21T02:00:00Z"))
        );
        // Friday's run has the week-end.
        let working_days = schedule("0 2 * * 1-5");
        assert_eq!(
            working_days.last_overdue(at("2026-11-21T12:00:00Z"), &utc),
            Some(at("2026-11-19T02:00:00Z"))
        );
    }
}
