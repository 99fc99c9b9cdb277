use proptest::prelude::*;

use super::*;

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).expect("not zero")
}

fn lsn(text: &str) -> Lsn {
    text.parse().expect("a position")
}

fn parsed(number: u32, content: &str) -> TimelineHistory {
    TimelineHistory::parse(timeline(number), content.as_bytes()).expect("a history")
}

const THREE: &str =
    "1\t0/3000110\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-11-21 08:00:00+00\n";

#[test]
fn a_history_answers_which_timeline_holds_a_position() {
    let history = parsed(3, THREE);
    for (position, expected) in [
        ("0/0", 1),
        ("0/300010F", 1),
        ("0/3000110", 2),
        ("0/4FFFFFF", 2),
        ("0/5000000", 3),
        ("FFFFFFFF/FFFFFFFF", 3),
    ] {
        assert_eq!(
            history.timeline_at(lsn(position)),
            timeline(expected),
            "{position}"
        );
    }
    assert_eq!(
        TimelineHistory::root(timeline(1)).timeline_at(lsn("0/1")),
        timeline(1)
    );
}

#[test]
fn a_standby_that_replayed_past_the_branch_does_not_descend() {
    let history = parsed(3, THREE);
    assert!(history.descends_from(timeline(1), lsn("0/3000110")));
    assert!(!history.descends_from(timeline(1), lsn("0/3000111")));
    assert!(history.descends_from(timeline(2), lsn("0/5000000")));
    assert!(!history.descends_from(timeline(2), lsn("0/5000001")));
    assert!(history.descends_from(timeline(3), Lsn::MAX));
    assert!(!history.descends_from(timeline(4), lsn("0/1")));
    assert_eq!(history.left(timeline(2)), Some(lsn("0/5000000")));
    assert_eq!(history.left(timeline(3)), None);
    assert_eq!(history.left(timeline(4)), None);
    assert!(history.contains(timeline(2)) && history.contains(timeline(3)) && !history.contains(timeline(4)));
}

#[test]
fn a_recovery_that_stopped_before_the_branch_it_aimed_at_is_understood() {
    let history = parsed(3, "1\t0/5000000\tpromoted\n2\t0/3000000\tstopped early\n");
    assert_eq!(history.timeline_at(lsn("0/2000000")), timeline(1));
    assert_eq!(history.timeline_at(lsn("0/4000000")), timeline(3));
    assert_eq!(history.left(timeline(1)), Some(lsn("0/3000000")));
    assert!(!history.descends_from(timeline(1), lsn("0/4000000")));
}

#[test]
fn two_promotions_of_one_primary_fork_at_the_earlier() {
    let one = parsed(2, "1\t0/3000000\tone\n");
    let other = parsed(3, "1\t0/4000000\tother\n");
    let fork = Some(ForkPoint {
        timeline: timeline(1),
        lsn: Some(lsn("0/3000000")),
    });
    assert_eq!(one.fork_point(&other), fork);
    assert_eq!(other.fork_point(&one), fork);
    let old_primary = TimelineHistory::root(timeline(1));
    assert_eq!(
        old_primary.fork_point(&other),
        Some(ForkPoint {
            timeline: timeline(1),
            lsn: Some(lsn("0/4000000"))
        })
    );
    assert_eq!(
        one.fork_point(&one),
        Some(ForkPoint {
            timeline: timeline(2),
            lsn: None
        })
    );
}

#[test]
fn timelines_of_one_number_and_different_origin_are_different() {
    let one = parsed(3, "1\t0/3000000\tone\n2\t0/5000000\tone\n");
    let other = parsed(3, "1\t0/4000000\tother\n2\t0/6000000\tother\n");
    assert_eq!(
        one.fork_point(&other),
        Some(ForkPoint {
            timeline: timeline(1),
            lsn: Some(lsn("0/3000000"))
        })
    );
    assert_eq!(
        TimelineHistory::root(timeline(1)).fork_point(&TimelineHistory::root(timeline(2))),
        None
    );
}

#[test]
fn a_history_is_written_as_the_server_writes_it() {
    let history = parsed(3, THREE);
    assert_eq!(history.render(), THREE);
    assert_eq!(TimelineHistory::root(timeline(1)).render(), "");
    let parent = history.parent().expect("a parent");
    assert_eq!(
        (parent.timeline, parent.switchpoint),
        (timeline(2), lsn("0/5000000"))
    );
    let child = history
        .branch(timeline(4), lsn("0/6000000"), "two\nlines")
        .expect("a branch");
    assert_eq!(child.render(), format!("{THREE}\n3\t0/6000000\ttwo lines\n"));
}

#[test]
fn comments_blanks_and_missing_reasons_are_taken() {
    let history = parsed(
        5,
        "# a comment\n\n   \t\n  1 0/1000000\r\n2\t\t0/2000000\t  why  \n4\t0/3",
    );
    let ancestors: Vec<_> = history
        .ancestors()
        .iter()
        .map(|ancestor| ancestor.reason.as_str())
        .collect();
    assert_eq!(ancestors, ["", "why", ""]);
    assert_eq!(history.ancestors()[2].switchpoint, Lsn::new(3));
}

#[test]
fn a_reason_in_another_encoding_does_not_hide_the_history() {
    let history = TimelineHistory::parse(timeline(2), b"1\t0/3000000\tat restore point \"gr\xFCn\"\n")
        .expect("a history");
    assert_eq!(history.ancestors()[0].reason, "at restore point \"gr\u{FFFD}n\"");
}

#[test]
fn histories_that_the_server_refuses_are_refused() {
    for content in [
        "garbage",
        "1",
        "1\t",
        "x\t0/1\ty",
        "1\t01",
        "0\t0/1\tx",
        "1\t0/0\tx",
        "-1\t0/1",
        "1 0/1x",
    ] {
        let error = TimelineHistory::parse(timeline(9), content.as_bytes()).expect_err(content);
        assert!(
            matches!(error, HistoryError::Line { line: 1, .. }),
            "{content}: {error}"
        );
        assert!(error.hint().is_some());
    }
    for content in ["2\t0/1\tx\n1\t0/2\tx", "1\t0/1\tx\n1\t0/2\tx"] {
        let error = TimelineHistory::parse(timeline(9), content.as_bytes()).expect_err(content);
        assert!(
            matches!(error, HistoryError::Order { line: 2, .. }),
            "{content}: {error}"
        );
    }
    for number in [1, 2] {
        let error = TimelineHistory::parse(timeline(number), b"2\t0/1\tx").expect_err("not older");
        assert!(matches!(error, HistoryError::NotOlder { .. }), "{error}");
    }
    let root = TimelineHistory::root(timeline(2));
    assert!(root.branch(timeline(2), lsn("0/1"), "").is_err());
    assert!(root.branch(timeline(3), Lsn::INVALID, "").is_err());
}

prop_compose! {
    fn any_history()(
        switchpoints in proptest::collection::vec((1_u32..5, 1..=u64::MAX, "[ -~]{0,30}"), 0..6),
        first in 1_u32..1000,
    ) -> TimelineHistory {
        let mut history = TimelineHistory::root(timeline(first));
        for (step, switchpoint, reason) in switchpoints {
            let next = timeline(history.timeline().get() + step);
            history = history.branch(next, Lsn::new(switchpoint), &reason).expect("greater");
        }
        history
    }
}

proptest! {
    #[test]
    fn histories_round_trip(history in any_history()) {
        let again = TimelineHistory::parse(history.timeline(), history.render().as_bytes());
        prop_assert_eq!(again, Ok(history));
    }

    #[test]
    fn a_history_descends_from_every_position_of_its_own(history in any_history(), position: u64) {
        let position = Lsn::new(position);
        let holder = history.timeline_at(position);
        prop_assert!(history.contains(holder));
        prop_assert!(history.descends_from(holder, position));
    }

    #[test]
    fn the_fork_point_is_the_same_from_both_sides(one in any_history(), other in any_history()) {
        prop_assert_eq!(one.fork_point(&other), other.fork_point(&one));
    }

    #[test]
    fn a_branch_forks_where_it_branched_off(history in any_history(), position in 1..=u64::MAX) {
        let child = history.branch(timeline(100_000), Lsn::new(position), "").expect("greater");
        let fork = ForkPoint { timeline: history.timeline(), lsn: Some(Lsn::new(position)) };
        prop_assert_eq!(history.fork_point(&child), Some(fork));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, number in 1..=u32::MAX) {
        let _ = TimelineHistory::parse(timeline(number), &bytes);
    }

    #[test]
    fn arbitrary_lines_are_a_history_or_an_error(content in "([0-9]{0,3}[\t ]{0,2}[0-9A-F]{0,3}/?[0-9A-F]{0,3}[\t a-z#]{0,4}\n){0,6}") {
        if let Ok(history) = TimelineHistory::parse(timeline(500), content.as_bytes()) {
            prop_assert_eq!(TimelineHistory::parse(timeline(500), history.render().as_bytes()), Ok(history));
        }
    }
}
