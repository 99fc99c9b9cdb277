//! Lengths of time, for people.

use std::fmt;
use std::time::Duration;

/// A length of time whose text is for people: the two largest units that matter, rounded down.
///
/// `0 ms`, `350 ms`, `1.2 s`, `45 s`, `2 min 5 s`, `3 h 4 min`, `12 d 3 h`. JSON output gives seconds as a
/// number instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(pub Duration);

impl fmt::Display for HumanDuration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MINUTE: u64 = 60;
        const HOUR: u64 = 60 * MINUTE;
        const DAY: u64 = 24 * HOUR;
        let seconds = self.0.as_secs();
        let two_units = |large: u64, large_unit: &str, small: u64, small_unit: &str| match small {
            0 => format!("{large} {large_unit}"),
            _ => format!("{large} {large_unit} {small} {small_unit}"),
        };
        formatter.pad(&match seconds {
            0 => format!("{} ms", self.0.subsec_millis()),
            1..10 => match self.0.subsec_millis() / 100 {
                0 => format!("{seconds} s"),
                tenth => format!("{seconds}.{tenth} s"),
            },
            10..MINUTE => format!("{seconds} s"),
            MINUTE..HOUR => two_units(seconds / MINUTE, "min", seconds % MINUTE, "s"),
            HOUR..DAY => two_units(seconds / HOUR, "h", seconds % HOUR / MINUTE, "min"),
            _ => two_units(seconds / DAY, "d", seconds % DAY / HOUR, "h"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_two_units_at_most() {
        for (milliseconds, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1000, "1 s"),
            (1250, "1.2 s"),
            (9999, "9.9 s"),
            (59_999, "59 s"),
            (60_000, "1 min"),
            (125_000, "2 min 5 s"),
            (3_599_999, "59 min 59 s"),
            (3_600_000, "1 h"),
            (11_040_000, "3 h 4 min"),
            (86_400_000, "1 d"),
            (1_047_600_000, "12 d 3 h"),
        ] {
            assert_eq!(
                HumanDuration(Duration::from_millis(milliseconds)).to_string(),
                text
            );
        }
        assert_eq!(HumanDuration(Duration::MAX).to_string(), "213503982334601 d 7 h");
        assert_eq!(
            format!("[{:>8}]", HumanDuration(Duration::from_secs(5))),
            "[     5 s]"
        );
    }
}
