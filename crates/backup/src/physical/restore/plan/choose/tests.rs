use super::*;
use crate::physical::restore::moment::Moment;
use pgmahout_types::SegmentSize;
use pgmahout_types::diagnostic::{Diagnose as _, Outcome};

const MIB16: u64 = 16 << 20;

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).expect("not zero")
}

fn lsn(segment: u64, offset: u64) -> Lsn {
    Lsn::new(segment * MIB16 + offset)
}

/// So many minutes after noon.
fn at(minute: i64) -> Timestamp {
    Timestamp::from_second(1_768_910_400 + minute * 60).expect("in range")
}

fn label(number: u16) -> Label {
    Label::new(at(i64::from(number)), number)
}

/// Begins in the middle of one segment and ends in the middle of another; takes a minute.
fn backup(number: u16, on: u32, minute: i64, first: u64, last: u64) -> Candidate {
    Candidate {
        label: label(number),
        timeline: timeline(on),
        start: lsn(first, 0x28),
        stop: lsn(last, 0x100),
        started: at(minute - 1),
        stopped: at(minute),
    }
}

struct Wal(Archive);

impl Wal {
    fn new() -> Self {
        Self(Archive::new(SegmentSize::DEFAULT))
    }

    /// Segments of a timeline, of which number `n` is archived at minute `n`.
    fn segments(mut self, on: u32, numbers: std::ops::RangeInclusive<u64>) -> Self {
        for number in numbers {
            let name = SegmentName::new(timeline(on), number, SegmentSize::DEFAULT).expect("in range");
            self.0.add(name, at(number.cast_signed()));
        }
        self
    }

    fn branch(mut self, child: u32, parent: u32, switchpoint: Lsn) -> Self {
        let history = self
            .0
            .history(timeline(parent))
            .expect("known")
            .branch(timeline(child), switchpoint, "test")
            .expect("a younger one");
        self.0.add_history(history);
        self
    }
}

fn aim(target: Target) -> Aim {
    Aim {
        target,
        ..Aim::default()
    }
    .checked()
    .expect("consistent")
}

fn time(minute: i64) -> Target {
    Target::Time(Moment::parse(&moment::setting(at(minute)), None).expect("a moment"))
}

fn on(target: Target, number: u32) -> Aim {
    Aim {
        timeline: TargetTimeline::Number(timeline(number)),
        ..aim(target)
    }
}

#[test]
fn without_a_target_the_newest_backup_goes_to_the_end_of_the_archive() {
    let wal = Wal::new().segments(1, 2..=20);
    let backups = [backup(1, 1, 3, 2, 3), backup(2, 1, 10, 9, 10)];
    let choice = choose(&backups, &wal.0, &aim(Target::Latest), None).expect("a way");
    assert_eq!(choice.backup.label, label(2));
    assert_eq!(choice.wal.end, lsn(21, 0));
    assert_eq!(choice.wal.segments, 12);
    assert!(choice.warnings.is_empty(), "{:?}", choice.warnings);
}

#[test]
fn a_time_takes_the_newest_backup_that_ended_before_it() {
    let wal = Wal::new().segments(1, 2..=20);
    let backups = [backup(1, 1, 3, 2, 3), backup(2, 1, 10, 9, 10)];
    for (minute, expected) in [(3, 1), (9, 1), (10, 2), (20, 2)] {
        let choice = choose(&backups, &wal.0, &aim(time(minute)), None).expect("a way");
        assert_eq!(choice.backup.label, label(expected), "minute {minute}");
        assert!(
            choice.warnings[0].contains("commit times are not known"),
            "{:?}",
            choice.warnings
        );
    }
}

#[test]
fn a_target_before_the_end_of_the_backup_is_refused_with_the_nearest_one() {
    let wal = Wal::new().segments(1, 2..=20);
    let backups = [backup(1, 1, 3, 2, 3), backup(2, 1, 10, 9, 10)];
    let error = choose(&backups, &wal.0, &aim(time(2)), None).expect_err("before all backups");
    assert_eq!(error.outcome(), Outcome::Refused);
    let hint = error.hint().expect("a hint");
    assert!(hint.contains(&moment::setting(at(3))), "{hint}");
    let error = choose(&backups, &wal.0, &aim(Target::Lsn(lsn(3, 0))), None).expect_err("inside the backup");
    assert!(
        error.hint().expect("a hint").contains("--target-lsn 0/3000100"),
        "{error}"
    );
    // A backup that was named is not exchanged silently, but the better one is named.
    let error = choose(&backups, &wal.0, &aim(time(9)), Some(label(2))).expect_err("before this backup");
    assert!(
        error.hint().expect("a hint").contains(&label(1).to_string()),
        "{error}"
    );
}

#[test]
fn a_target_behind_the_archive_is_refused_and_never_becomes_the_latest() {
    let wal = Wal::new().segments(1, 2..=20);
    let backups = [backup(1, 1, 3, 2, 3)];
    let error = choose(&backups, &wal.0, &aim(time(21)), None).expect_err("behind the archive");
    assert_eq!(error.outcome(), Outcome::Refused);
    assert!(error.to_string().contains("000000010000000000000015"), "{error}");
    assert!(
        error.hint().expect("a hint").contains(&moment::setting(at(20))),
        "{error}"
    );
    let error =
        choose(&backups, &wal.0, &aim(Target::Lsn(lsn(21, 0))), None).expect_err("behind the archive");
    assert!(error.to_string().contains("0/15000000"), "{error}");
    // In the last segment nobody knows before it is read.
    let choice = choose(&backups, &wal.0, &aim(Target::Lsn(lsn(20, 8))), None).expect("a way");
    assert!(
        choice.warnings[0].contains("last archived segment"),
        "{:?}",
        choice.warnings
    );
}

#[test]
fn a_gap_ends_the_way_and_is_named() {
    let wal = Wal::new().segments(1, 2..=12).segments(1, 14..=20);
    let backups = [backup(1, 1, 3, 2, 3)];
    let error = choose(&backups, &wal.0, &aim(time(15)), None).expect_err("behind the gap");
    assert!(
        error
            .to_string()
            .contains("there is a gap, 00000001000000000000000D"),
        "{error}"
    );
    let choice = choose(&backups, &wal.0, &aim(Target::Latest), None).expect("up to the gap");
    assert_eq!(choice.wal.end, lsn(13, 0));
    assert!(choice.warnings[0].contains("gap"), "{:?}", choice.warnings);
}

#[test]
fn a_backup_without_its_own_wal_is_passed_over_or_refused() {
    let wal = Wal::new().segments(1, 2..=8).segments(1, 10..=20);
    let backups = [backup(1, 1, 3, 2, 3), backup(2, 1, 10, 9, 10)];
    let choice = choose(&backups, &wal.0, &aim(Target::Latest), None).expect("the older one");
    assert_eq!(choice.backup.label, label(1));
    assert!(
        choice
            .warnings
            .iter()
            .any(|warning| warning.contains(&label(2).to_string()))
    );
    let error = choose(&backups, &wal.0, &aim(Target::Latest), Some(label(2))).expect_err("incomplete");
    assert!(error.to_string().contains("000000010000000000000009"), "{error}");
}

#[test]
fn the_timeline_is_checked_against_its_history() {
    // Timeline 2 left timeline 1 in segment 6, before the second backup.
    let wal = Wal::new()
        .segments(1, 2..=20)
        .branch(2, 1, lsn(6, 0x80))
        .segments(2, 6..=15);
    let backups = [backup(1, 1, 3, 2, 3), backup(2, 1, 10, 9, 10)];
    let choice = choose(&backups, &wal.0, &aim(Target::Latest), None).expect("a way");
    assert_eq!((choice.backup.label, choice.timeline), (label(1), timeline(2)));
    assert_eq!(choice.wal.end, lsn(16, 0));
    assert!(
        choice
            .warnings
            .iter()
            .any(|warning| warning.contains("off the way to timeline 2"))
    );
    let names: Vec<String> = choice
        .path
        .iter()
        .map(|stretch| stretch.timeline.to_string())
        .collect();
    assert_eq!(names, ["1", "2"]);

    let error = choose(&backups, &wal.0, &on(Target::Latest, 2), Some(label(2))).expect_err("off the path");
    assert!(matches!(error, RestoreError::NotOnTimeline { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("which timeline 2 had left at 0/6000080"),
        "{error}"
    );
    assert!(error.hint().expect("a hint").contains("--target-timeline 1"));
    let choice = choose(&backups, &wal.0, &on(Target::Latest, 1), None).expect("the old timeline");
    assert_eq!((choice.backup.label, choice.wal.end), (label(2), lsn(21, 0)));
    let error = choose(&backups, &wal.0, &on(Target::Latest, 7), None).expect_err("unknown");
    assert!(error.to_string().contains("00000007.history"), "{error}");
}

#[test]
fn a_position_of_an_abandoned_timeline_names_that_timeline() {
    let wal = Wal::new()
        .segments(1, 2..=20)
        .branch(2, 1, lsn(6, 0x80))
        .segments(2, 6..=15);
    let backups = [backup(1, 1, 3, 2, 3)];
    let error = choose(&backups, &wal.0, &aim(Target::Lsn(lsn(18, 0))), None).expect_err("not on timeline 2");
    assert!(
        error.hint().expect("a hint").contains("--target-timeline 1"),
        "{error}"
    );
}

#[test]
fn the_end_of_a_timeline_is_not_taken_from_the_one_that_was_left() {
    // The first segment of timeline 2 is not archived yet, but the abandoned timeline 1 went on.
    let wal = Wal::new().segments(1, 2..=20).branch(2, 1, lsn(6, 0x80));
    let backups = [backup(1, 1, 3, 2, 3)];
    let error = choose(&backups, &wal.0, &aim(Target::Latest), None).expect_err("would leave the path");
    assert!(matches!(error, RestoreError::LeavesPath { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::Refused);
    // With the old primary dead there is nothing to confuse.
    let wal = Wal::new().segments(1, 2..=5).branch(2, 1, lsn(6, 0x80));
    let choice = choose(&backups, &wal.0, &aim(Target::Latest), None).expect("a way");
    assert_eq!(choice.wal.end, lsn(6, 0));
}

#[test]
fn immediate_needs_the_wal_of_the_backup_alone() {
    let wal = Wal::new().segments(1, 2..=5).branch(2, 1, lsn(3, 0));
    let backups = [backup(1, 1, 4, 2, 4)];
    let choice = choose(&backups, &wal.0, &aim(Target::Immediate), None).expect("a way");
    assert_eq!(choice.timeline, timeline(1));
    assert_eq!(choice.wal.segments, 3);
}

#[test]
fn a_transaction_is_sought_from_the_oldest_backup_and_that_is_said() {
    let wal = Wal::new().segments(1, 2..=20);
    let backups = [backup(1, 1, 3, 2, 3), backup(2, 1, 10, 9, 10)];
    let choice = choose(&backups, &wal.0, &aim(Target::Xid(777)), None).expect("a way");
    assert_eq!(choice.backup.label, label(1));
    assert!(
        choice.warnings[0].contains("--backup LABEL"),
        "{:?}",
        choice.warnings
    );
    let choice = choose(&backups, &wal.0, &aim(Target::Name("x".into())), Some(label(2))).expect("a way");
    assert_eq!(choice.backup.label, label(2));
    // Of the oldest only its own WAL was kept: nothing behind it can be reached from there.
    let wal = Wal::new().segments(1, 2..=3).segments(1, 9..=20);
    let choice = choose(&backups, &wal.0, &aim(Target::Xid(777)), None).expect("a way");
    assert_eq!(choice.backup.label, label(2));
}

#[test]
fn nothing_to_choose_from_is_an_error_of_its_own() {
    let wal = Wal::new();
    assert!(matches!(
        choose(&[], &wal.0, &aim(Target::Latest), None),
        Err(RestoreError::NoBackup)
    ));
    let backups = [backup(1, 1, 3, 2, 3)];
    let error = choose(&backups, &wal.0, &aim(Target::Latest), Some(label(9))).expect_err("unknown");
    assert!(error.hint().expect("a hint").contains(&label(1).to_string()));
}
