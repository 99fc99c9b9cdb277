//! The label of a new backup. Labels are in the order of the backups, whatever the clock does: retention, the choice of
//! the parent and the planner of restores go by it.

use jiff::{SignedDuration, Timestamp};
use pgmahout_types::repository::Label;

/// The label of a backup that begins now, behind the newest one.
pub(super) fn next(newest: Option<Label>, now: Timestamp, suffix: u16) -> Label {
    let Some(newest) = newest else {
        return Label::new(now, suffix);
    };
    let after = newest.start().checked_add(SignedDuration::from_secs(1));
    Label::new(now.max(after.unwrap_or(newest.start())), suffix)
}

/// Labels of backups that follow each other within seconds are ahead of the clock by so much, in seconds: nothing to
/// tell anybody.
const TOLERATED: i64 = 60;

/// Whether the clock is behind the newest backup, by more than backups in quick succession explain.
pub(super) fn is_behind(newest: Label, now: Timestamp) -> bool {
    now.as_second() + TOLERATED < newest.start().as_second()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn labels_rise_whatever_the_clock_does() {
        let clock = [1000, 1000, 1000, 1007, 400, 401, 1008, 1010, -5, 2000];
        let mut newest = None;
        for (number, now) in clock.into_iter().enumerate() {
            // The random part never decides.
            let label = next(newest, at(now), u16::MAX - number as u16);
            assert!(newest < Some(label), "{label} after {newest:?}");
            newest = Some(label);
        }
        assert_eq!(newest, Some(Label::new(at(2000), u16::MAX - 9)));
    }

    #[test]
    fn a_clock_that_is_behind_is_noticed_and_a_minute_is_not() {
        let newest = Label::new(at(1000), 1);
        assert!(is_behind(newest, at(939)));
        assert!(!is_behind(newest, at(940)));
        assert!(!is_behind(newest, at(1000)));
    }

    #[test]
    fn the_end_of_time_is_no_panic() {
        let last = next(Some(Label::new(Timestamp::MAX, 1)), at(0), 2);
        assert_eq!(last.start().as_second(), Timestamp::MAX.as_second());
    }
}
