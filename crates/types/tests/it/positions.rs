//! WAL positions and file names against the server's own functions.

use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_types::{Lsn, SegmentName, SegmentSize, TimelineId, WalFileName};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// Positions of all sizes, and those around the borders of segments. Zero is left out: it is no position,
/// and PostgreSQL 15 counts backwards from it.
fn positions(size: SegmentSize) -> Vec<Lsn> {
    let mut runner = TestRunner::deterministic();
    let any_magnitude = (any::<u64>(), 0_u32..64).prop_map(|(bytes, shift)| bytes >> shift);
    let mut positions = Vec::new();
    for _ in 0..300 {
        let bytes = any_magnitude
            .new_tree(&mut runner)
            .expect("nothing is filtered")
            .current();
        let border = bytes / size.bytes() * size.bytes();
        positions.extend([bytes, border, border.saturating_sub(1), border.saturating_add(1)]);
    }
    positions.extend([1, u64::from(u32::MAX), u64::from(u32::MAX) + 1, u64::MAX]);
    positions
        .into_iter()
        .filter(|&bytes| bytes != 0)
        .map(Lsn::new)
        .collect()
}

fn values(positions: &[Lsn]) -> String {
    let rows = positions
        .iter()
        .enumerate()
        .map(|(index, lsn)| format!("({index}, '{lsn}'::pg_lsn)"));
    rows.collect::<Vec<_>>().join(",")
}

/// The functions' answers, one line for each position, are the library's.
async fn names_agree(server: &Postgres, size: SegmentSize) {
    let positions = positions(size);
    let query = format!(
        "SELECT pg_walfile_name(lsn), o.file_name, o.file_offset
         FROM (VALUES {}) v (i, lsn), pg_walfile_name_offset(lsn) o ORDER BY i",
        values(&positions)
    );
    let answers = server.query_text("postgres", &query).await;
    assert_eq!(answers.lines().count(), positions.len());
    for (lsn, answer) in positions.iter().zip(answers.lines()) {
        // Up to PostgreSQL 16 a position on a border belonged to the segment before it.
        let segment = if server.major().number() < 17 {
            SegmentName::ending_at(TimelineId::FIRST, *lsn, size)
        } else {
            SegmentName::containing(TimelineId::FIRST, *lsn, size)
        };
        assert_eq!(
            answer,
            format!("{segment}|{segment}|{}", size.offset_of(*lsn)),
            "{lsn}, {size:?}"
        );
    }
    if server.major().number() >= 16 {
        names_are_split_alike(server, size, &positions).await;
    }
}

/// `pg_split_walfile_name` of PostgreSQL 16 and later.
async fn names_are_split_alike(server: &Postgres, size: SegmentSize, positions: &[Lsn]) {
    let segments: Vec<SegmentName> = (1..=u32::MAX)
        .step_by(0x0123_4567)
        .cycle()
        .zip(positions)
        .map(|(timeline, lsn)| {
            SegmentName::containing(TimelineId::new(timeline).expect("not zero"), *lsn, size)
        })
        .collect();
    let rows: Vec<String> = segments
        .iter()
        .enumerate()
        .map(|(index, name)| format!("({index}, '{name}')"))
        .collect();
    let query = format!(
        "SELECT s.segment_number, s.timeline_id
         FROM (VALUES {}) v (i, name), pg_split_walfile_name(name) s ORDER BY i",
        rows.join(",")
    );
    let answers = server.query_text("postgres", &query).await;
    for (segment, answer) in segments.iter().zip(answers.lines()) {
        let name: WalFileName = segment.to_string().parse().expect("our own name");
        assert_eq!(name, WalFileName::Segment(*segment));
        assert_eq!(
            answer,
            format!(
                "{}|{}",
                segment.number(size).expect("of this size"),
                segment.timeline()
            )
        );
    }
}

/// Text, comparison and arithmetic of the type pg_lsn.
async fn arithmetic_agrees(server: &Postgres) {
    let positions = positions(SegmentSize::DEFAULT);
    let query = format!(
        "SELECT a.lsn, a.lsn - b.lsn, a.lsn < b.lsn, a.lsn - '0/0'::pg_lsn
         FROM (VALUES {rows}) a (i, lsn) JOIN (VALUES {rows}) b (i, lsn) ON b.i = a.i + 1 ORDER BY a.i",
        rows = values(&positions)
    );
    let answers = server.query_text("postgres", &query).await;
    assert_eq!(answers.lines().count(), positions.len() - 1);
    for (pair, answer) in positions.windows(2).zip(answers.lines()) {
        let (one, other) = (pair[0], pair[1]);
        let less = if one < other { "t" } else { "f" };
        let expected = format!("{one}|{}|{less}|{}", one.signed_difference(other), one.as_u64());
        assert_eq!(answer, expected);
    }
}

/// Whatever the server takes as a position, and only that, is one.
async fn texts_are_taken_alike(server: &Postgres) {
    let texts = [
        "0/0",
        "0/1",
        "ab/CD",
        "AB/cd",
        "FFFFFFFF/FFFFFFFF",
        "00000001/00000000",
        "0/00000001",
        "",
        "/",
        "0/",
        "/0",
        "0",
        "0/0/0",
        " 0/0",
        "0/0 ",
        "+1/0",
        "-1/0",
        "0/-1",
        "100000000/0",
        "0/100000000",
        "0/123456789",
        "0x1/0",
        "G/0",
        "0/G",
        "0\\0",
        "1.0/0",
        "0/0\n",
    ];
    server
        .sql(
            "postgres",
            "CREATE FUNCTION taken(t text) RETURNS text LANGUAGE plpgsql AS $$
             BEGIN RETURN t::pg_lsn::text; EXCEPTION WHEN OTHERS THEN RETURN 'refused'; END $$",
        )
        .await;
    for text in texts {
        let answer = server
            .query_text("postgres", &format!("SELECT taken('{text}')"))
            .await;
        let ours = text
            .parse::<Lsn>()
            .map_or_else(|_| "refused".to_owned(), |lsn| lsn.to_string());
        assert_eq!(ours, answer, "{text:?}");
    }
}

async fn everything_agrees(major: Major, segment_mebibytes: u64) {
    let argument = format!("--wal-segsize={segment_mebibytes}");
    let server = Postgres::builder(major).initdb_arg(&argument).start().await;
    let size = SegmentSize::new(segment_mebibytes << 20).expect("a possible size");
    names_agree(&server, size).await;
    if size == SegmentSize::DEFAULT {
        arithmetic_agrees(&server).await;
        texts_are_taken_alike(&server).await;
    }
}

#[tokio::test]
async fn positions_and_names_are_those_of_postgresql_15_with_segments_of_1_mib() {
    everything_agrees(Major::V15, 1).await;
}

#[tokio::test]
async fn positions_and_names_are_those_of_postgresql_15_with_segments_of_16_mib() {
    everything_agrees(Major::V15, 16).await;
}

#[tokio::test]
async fn positions_and_names_are_those_of_postgresql_15_with_segments_of_64_mib() {
    everything_agrees(Major::V15, 64).await;
}

#[tokio::test]
async fn positions_and_names_are_those_of_postgresql_18_with_segments_of_1_mib() {
    everything_agrees(Major::V18, 1).await;
}

#[tokio::test]
async fn positions_and_names_are_those_of_postgresql_18_with_segments_of_16_mib() {
    everything_agrees(Major::V18, 16).await;
}

#[tokio::test]
async fn positions_and_names_are_those_of_postgresql_18_with_segments_of_64_mib() {
    everything_agrees(Major::V18, 64).await;
}
