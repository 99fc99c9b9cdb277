use proptest::prelude::*;

use super::*;

const LABEL_FILE: &str = "START WAL LOCATION: 0/3000028 (file 000000010000000000000003)
CHECKPOINT LOCATION: 0/3000080
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-21 08:00:00 UTC
LABEL: nightly
START TIMELINE: 1
";

const HISTORY_FILE: &str = "START WAL LOCATION: 0/3000028 (file 000000010000000000000003)
STOP WAL LOCATION: 0/3000158 (file 000000010000000000000003)
CHECKPOINT LOCATION: 0/3000080
BACKUP METHOD: streamed
BACKUP FROM: standby
START TIME: 2026-11-21 08:00:00 UTC
LABEL: nightly
START TIMELINE: 1
STOP TIME: 2026-11-21 08:00:09 UTC
STOP TIMELINE: 1
";

fn lsn(text: &str) -> Lsn {
    text.parse().expect("a position")
}

#[test]
fn a_label_is_read_and_written_back_byte_for_byte() {
    let label = BackupLabel::parse(LABEL_FILE.as_bytes()).expect("a label");
    assert_eq!(label.start.lsn, lsn("0/3000028"));
    assert_eq!(label.start.file.to_string(), "000000010000000000000003");
    assert_eq!(label.checkpoint, lsn("0/3000080"));
    assert_eq!(
        (&label.method, label.source),
        (&BackupMethod::Streamed, BackupSource::Primary)
    );
    assert_eq!(label.label.as_deref(), Some("nightly"));
    assert_eq!(label.start_timeline, Some(TimelineId::FIRST));
    assert_eq!(label.incremental_from, None);
    assert_eq!(label.render(), LABEL_FILE);
}

#[test]
fn a_backup_history_is_read_and_written_back_byte_for_byte() {
    let history = BackupHistory::parse(HISTORY_FILE.as_bytes()).expect("a backup history");
    assert_eq!(history.label.source, BackupSource::Standby);
    assert_eq!(history.end.stop.lsn, lsn("0/3000158"));
    assert_eq!(history.end.time, "2026-11-21 08:00:09 UTC");
    assert_eq!(history.render(), HISTORY_FILE);
    let error = BackupHistory::parse(LABEL_FILE.as_bytes()).expect_err("a label has no end");
    assert_eq!(
        error.to_string(),
        "the backup label has no line \"STOP WAL LOCATION\""
    );
}

#[test]
fn what_pg_rewind_leaves_is_read() {
    let content = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
CHECKPOINT LOCATION: 0/2000060
BACKUP METHOD: pg_rewind
BACKUP FROM: standby
START TIME: 2026-11-21 08:00:00 UTC
";
    let label = BackupLabel::parse(content.as_bytes()).expect("a label");
    assert_eq!(
        (&label.method, &label.label, label.start_timeline),
        (&BackupMethod::PgRewind, &None, None)
    );
    assert_eq!(label.render(), content);
}

#[test]
fn an_incremental_backup_is_recognised() {
    let content = format!("{LABEL_FILE}INCREMENTAL FROM LSN: 0/2000028\nINCREMENTAL FROM TLI: 1\n");
    let label = BackupLabel::parse(content.as_bytes()).expect("a label");
    assert_eq!(
        label.incremental_from,
        Some(IncrementalBase {
            lsn: lsn("0/2000028"),
            timeline: TimelineId::FIRST
        })
    );
    assert_eq!(label.render(), content);
    let half = format!("{LABEL_FILE}INCREMENTAL FROM LSN: 0/2000028\n");
    let error = BackupLabel::parse(half.as_bytes()).expect_err("half");
    assert_eq!(
        error,
        BackupLabelError::Missing {
            line: INCREMENTAL_TIMELINE
        }
    );
}

#[test]
fn a_label_without_a_needed_line_is_refused() {
    for needed in [START_LOCATION, CHECKPOINT_LOCATION, METHOD, SOURCE, START_TIME] {
        let content: String = LABEL_FILE
            .lines()
            .filter(|line| !line.starts_with(needed))
            .fold(String::new(), |content, line| content + line + "\n");
        let error = BackupLabel::parse(content.as_bytes()).expect_err(needed);
        assert_eq!(error, BackupLabelError::Missing { line: needed });
        assert!(error.hint().is_some());
    }
}

#[test]
fn line_ends_of_windows_are_refused_as_the_server_does() {
    let content = LABEL_FILE.replace('\n', "\r\n");
    let error = BackupLabel::parse(content.as_bytes()).expect_err("carriage returns");
    assert!(
        matches!(
            error,
            BackupLabelError::Line {
                line: "START TIMELINE" | "START WAL LOCATION",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn timelines_that_contradict_each_other_are_refused() {
    let content = LABEL_FILE.replace("TIMELINE: 1", "TIMELINE: 2");
    let error = BackupLabel::parse(content.as_bytes()).expect_err("two timelines");
    assert_eq!(
        error.to_string(),
        "the backup label contradicts itself: \"START WAL LOCATION\" and \"START TIMELINE\" name different timelines"
    );
}

#[test]
fn a_name_with_a_line_end_cannot_move_the_start() {
    let content = LABEL_FILE.replace(
        "nightly",
        "nightly\nSTART WAL LOCATION: 0/9000028 (file 000000010000000000000009)\nBACKUP METHOD: none at all",
    );
    let label = BackupLabel::parse(content.as_bytes()).expect("a label");
    assert_eq!(label.start.lsn, lsn("0/3000028"));
    assert_eq!(label.method, BackupMethod::Streamed);
}

#[test]
fn a_name_in_another_encoding_does_not_hide_the_rest() {
    let mut content = LABEL_FILE.replace("nightly", "n@chtlich").into_bytes();
    let at = content
        .iter()
        .position(|&byte| byte == b'@')
        .expect("the sign is there");
    content[at] = 0xE4;
    let label = BackupLabel::parse(&content).expect("a label");
    assert_eq!(label.label.as_deref(), Some("n\u{FFFD}chtlich"));
}

#[test]
fn a_label_that_is_cut_off_anywhere_is_an_error_or_says_the_same() {
    let whole = BackupLabel::parse(LABEL_FILE.as_bytes()).expect("a label");
    for length in 0..LABEL_FILE.len() {
        if let Ok(label) = BackupLabel::parse(&LABEL_FILE.as_bytes()[..length]) {
            assert_eq!(
                (label.start, label.checkpoint, label.source),
                (whole.start, whole.checkpoint, whole.source)
            );
        }
    }
}

prop_compose! {
    fn any_location()(lsn: u64, number in 1..=u32::MAX) -> Location {
        let timeline = TimelineId::new(number).expect("not zero");
        let file = SegmentName::containing(timeline, Lsn::new(lsn), crate::wal::SegmentSize::DEFAULT);
        Location { lsn: Lsn::new(lsn), file }
    }
}

prop_compose! {
    fn any_label()(
        start in any_location(),
        checkpoint: u64,
        method in prop_oneof![Just(BackupMethod::Streamed), Just(BackupMethod::PgRewind)],
        source in prop_oneof![Just(BackupSource::Primary), Just(BackupSource::Standby)],
        start_time in "[ -~]{0,40}",
        label in proptest::option::of("\\PC{0,40}"),
        with_timeline: bool,
        base in proptest::option::of((any::<u64>(), 1..=u32::MAX)),
    ) -> BackupLabel {
        BackupLabel {
            start,
            checkpoint: Lsn::new(checkpoint),
            method,
            source,
            start_time,
            label,
            start_timeline: with_timeline.then(|| start.file.timeline()),
            incremental_from: base.map(|(lsn, timeline)| IncrementalBase {
                lsn: Lsn::new(lsn),
                timeline: TimelineId::new(timeline).expect("not zero"),
            }),
        }
    }
}

proptest! {
    #[test]
    fn labels_round_trip(label in any_label()) {
        prop_assert_eq!(BackupLabel::parse(label.render().as_bytes()), Ok(label));
    }

    #[test]
    fn backup_histories_round_trip(label in any_label(), stop in any_location(), time in "[ -~]{0,40}") {
        let history = BackupHistory { label, end: BackupEnd { stop, time, timeline: stop.file.timeline() } };
        prop_assert_eq!(BackupHistory::parse(history.render().as_bytes()), Ok(history));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        prop_assert!(BackupLabel::parse(&bytes).is_err());
        prop_assert!(BackupHistory::parse(&bytes).is_err());
    }

    #[test]
    fn damaged_labels_never_panic(position in 0..HISTORY_FILE.len(), bytes in proptest::collection::vec(any::<u8>(), 0..8)) {
        let mut content = HISTORY_FILE.as_bytes().to_vec();
        let end = (position + bytes.len()).min(content.len());
        content.splice(position..end, bytes);
        if let Ok(label) = BackupLabel::parse(&content) {
            prop_assert_eq!(BackupLabel::parse(label.render().as_bytes()).map(|label| label.start), Ok(label.start));
        }
        let _ = BackupHistory::parse(&content);
    }
}
