use proptest::prelude::*;

use super::*;
use crate::timeline::TimelineId;

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).expect("not zero")
}

fn any_size() -> impl Strategy<Value = SegmentSize> {
    (20_u32..=30).prop_map(|shift| SegmentSize::new(1 << shift).expect("a power of two in range"))
}

fn any_timeline() -> impl Strategy<Value = TimelineId> {
    (1..=u32::MAX).prop_map(timeline)
}

fn any_segment() -> impl Strategy<Value = SegmentName> {
    (any_timeline(), any::<u64>(), any_size())
        .prop_map(|(timeline, lsn, size)| SegmentName::containing(timeline, Lsn::new(lsn), size))
}

fn any_file() -> impl Strategy<Value = WalFileName> {
    prop_oneof![
        any_segment().prop_map(WalFileName::Segment),
        any_segment().prop_map(WalFileName::Partial),
        (any_segment(), any::<u32>())
            .prop_map(|(segment, offset)| WalFileName::BackupHistory { segment, offset }),
        any_timeline().prop_map(WalFileName::TimelineHistory),
    ]
}

#[test]
fn only_powers_of_two_from_1_mib_to_1_gib_are_sizes() {
    for bytes in [0, 1, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, 1 << 32, u64::MAX] {
        assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
    }
    let sizes: Vec<_> = SegmentSize::all().collect();
    assert_eq!(sizes.len(), 11);
    assert_eq!(sizes.first(), Some(&SegmentSize::MIN));
    assert_eq!(sizes.last(), Some(&SegmentSize::MAX));
    for size in sizes {
        assert_eq!(SegmentSize::new(size.bytes()), Ok(size));
    }
}

#[test]
fn the_four_kinds_of_names_are_told_apart() {
    let segment: SegmentName = "0000000A00000001000000FF".parse().expect("a segment");
    assert_eq!(segment.timeline(), timeline(10));
    assert_eq!(segment.start(SegmentSize::DEFAULT), Ok(Lsn::new(0x1_FF00_0000)));
    for (name, file) in [
        ("0000000A00000001000000FF", WalFileName::Segment(segment)),
        ("0000000A00000001000000FF.partial", WalFileName::Partial(segment)),
        (
            "0000000A00000001000000FF.00000028.backup",
            WalFileName::BackupHistory {
                segment,
                offset: 0x28,
            },
        ),
        ("0000000A.history", WalFileName::TimelineHistory(timeline(10))),
    ] {
        assert_eq!(name.parse(), Ok(file));
        assert_eq!(file.to_string(), name);
    }
}

#[test]
fn other_files_are_refused() {
    for name in [
        "",
        "0000000100000000000000",
        "0000000100000000000000010",
        "00000001000000000000000a",
        "00000001000000000000000G",
        "+0000001000000000000000A",
        "000000010000000000000001.",
        "000000010000000000000001.ready",
        "000000010000000000000001.partial.done",
        "000000010000000000000001.28.backup",
        "000000010000000000000001.0000002a.backup",
        "000000010000000000000001.backup",
        "000000010000000000000001.00000028.backup.gz",
        "1.history",
        "0000000a.history",
        "000000010.history",
        ".history",
        "archive_status",
        "000000010000000000000001\n",
        "00000000000000000000000é",
    ] {
        let error = name.parse::<WalFileName>().expect_err(name);
        assert!(error.hint().is_some(), "{name}");
        assert!(name.parse::<SegmentName>().is_err(), "{name}");
    }
}

#[test]
fn timeline_zero_is_refused() {
    for name in [
        "000000000000000000000001",
        "000000000000000000000001.partial",
        "000000000000000000000001.00000028.backup",
        "00000000.history",
    ] {
        assert!(
            matches!(
                name.parse::<WalFileName>(),
                Err(WalNameError::TimelineZero { .. })
            ),
            "{name}"
        );
    }
}

#[test]
fn a_name_of_smaller_segments_is_refused() {
    let segment: SegmentName = "000000010000000000000100"
        .parse()
        .expect("a segment of some size");
    assert_eq!(segment.start(SegmentSize::MIN), Ok(Lsn::new(0x1000_0000)));
    let error = segment
        .number(SegmentSize::DEFAULT)
        .expect_err("16 MiB segments stop at FF");
    assert_eq!(
        error.to_string(),
        "000000010000000000000100 is not the name of a WAL segment of 16 MiB"
    );
}

#[test]
fn a_position_on_a_border_ends_the_segment_before() {
    let size = SegmentSize::DEFAULT;
    let border = Lsn::new(0x300_0000);
    let name = |segment: SegmentName| segment.to_string();
    assert_eq!(
        name(SegmentName::containing(TimelineId::FIRST, border, size)),
        "000000010000000000000003"
    );
    assert_eq!(
        name(SegmentName::ending_at(TimelineId::FIRST, border, size)),
        "000000010000000000000002"
    );
    assert_eq!(
        name(SegmentName::ending_at(TimelineId::FIRST, Lsn::INVALID, size)),
        "000000010000000000000000"
    );
}

#[test]
fn the_first_and_last_segments_have_one_neighbour() {
    for size in SegmentSize::all() {
        let first = SegmentName::containing(TimelineId::FIRST, Lsn::INVALID, size);
        let last = SegmentName::containing(TimelineId::FIRST, Lsn::MAX, size);
        assert_eq!(first.previous(size), Ok(None));
        assert_eq!(last.next(size), Ok(None));
        assert_eq!(last.last_byte(size), Ok(Lsn::MAX));
        assert_eq!(last.number(size), Ok(size.last_number()));
        assert_eq!(
            SegmentName::new(TimelineId::FIRST, size.last_number() + 1, size),
            None
        );
    }
}

proptest! {
    #[test]
    fn names_round_trip(file in any_file()) {
        prop_assert_eq!(file.to_string().parse::<WalFileName>(), Ok(file));
    }

    #[test]
    fn a_position_lies_in_its_segment(lsn: u64, timeline in any_timeline(), size in any_size()) {
        let lsn = Lsn::new(lsn);
        let segment = SegmentName::containing(timeline, lsn, size);
        let start = segment.start(size).expect("of this size");
        prop_assert!(start <= lsn && lsn <= segment.last_byte(size).expect("of this size"));
        prop_assert_eq!(start.checked_add(u64::from(size.offset_of(lsn))), Some(lsn));
        prop_assert_eq!(segment.holds(lsn, size), Ok(true));
        prop_assert_eq!(SegmentName::new(timeline, size.number_of(lsn), size), Some(segment));
    }

    #[test]
    fn neighbours_are_adjacent_and_in_order(lsn: u64, size in any_size()) {
        let segment = SegmentName::containing(TimelineId::FIRST, Lsn::new(lsn), size);
        if let Some(next) = segment.next(size).expect("of this size") {
            prop_assert!(segment < next && segment.to_string() < next.to_string());
            prop_assert_eq!(next.previous(size), Ok(Some(segment)));
            prop_assert_eq!(next.start(size).expect("of this size"),
                Lsn::new(segment.last_byte(size).expect("of this size").as_u64() + 1));
        }
    }

    #[test]
    fn any_text_is_a_name_or_an_error(text in "[0-9A-F.]{0,45}|[0-9A-F]{24}(\\.\\PC{0,20})?|\\PC*") {
        if let Ok(file) = text.parse::<WalFileName>() {
            prop_assert_eq!(file.to_string(), text);
        }
    }
}
