//! Which WAL segments a backup needs.

use pgmahout_types::{Lsn, SegmentName, SegmentSize, TimelineHistory};

/// The segments that hold the bytes from `start` up to, but not including, `stop`, as recovery along `history`
/// looks for them: where a timeline ends in the middle of a segment, the segment of the next timeline, which
/// begins with a copy of that one's bytes, is the one that is read (`XLogFileReadAnyTLI` in
/// `src/backend/access/transam/xlogrecovery.c`).
pub(super) fn needed(
    start: Lsn,
    stop: Lsn,
    history: &TimelineHistory,
    size: SegmentSize,
) -> Vec<SegmentName> {
    let first = size.number_of(start);
    let last = size.number_of(Lsn::new(stop.as_u64().saturating_sub(1).max(start.as_u64())));
    (first..=last)
        .filter_map(|number| {
            let last_byte = Lsn::new(number * size.bytes() + (size.bytes() - 1));
            SegmentName::new(history.timeline_at(last_byte), number, size)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use pgmahout_types::TimelineId;

    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;
    const MIB: u64 = 1 << 20;

    fn names(start: u64, stop: u64, history: &TimelineHistory) -> Vec<String> {
        needed(Lsn::new(start), Lsn::new(stop), history, SIZE)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_stop_at_a_border_does_not_need_the_segment_behind_it() {
        let history = TimelineHistory::root(TimelineId::FIRST);
        assert_eq!(
            names(32 * MIB + 40, 48 * MIB, &history),
            ["000000010000000000000002"]
        );
        assert_eq!(
            names(32 * MIB + 40, 48 * MIB + 1, &history),
            ["000000010000000000000002", "000000010000000000000003"]
        );
    }

    #[test]
    fn a_segment_in_which_a_timeline_ends_is_that_of_the_next_one() {
        let second = TimelineId::new(2).expect("not zero");
        let history = TimelineHistory::root(TimelineId::FIRST)
            .branch(second, Lsn::new(50 * MIB), "promoted")
            .expect("a branch");
        assert_eq!(
            names(32 * MIB + 40, 70 * MIB, &history),
            [
                "000000010000000000000002",
                "000000020000000000000003",
                "000000020000000000000004"
            ]
        );
    }
}
