use proptest::prelude::*;

use super::*;
use crate::diagnostic::Diagnose;

/// The label of a backup that started that many seconds after 1970.
pub(super) fn label(second: i64) -> Label {
    Label::new(Timestamp::from_second(second).expect("in range"), 0)
}

/// A backup that needs the WAL of one segment.
pub(super) fn backup(label: Label, segment: u64) -> BackupEntry {
    let segment = segment_name(segment);
    BackupEntry {
        label,
        manifest: Digest::of(label.to_string().as_bytes()),
        method: Method::Local,
        system_identifier: SystemIdentifier::new(7),
        server_version: ServerVersion::from_number(150_018),
        timeline: TimelineId::FIRST,
        start_lsn: Lsn::new(0x300_0028),
        stop_lsn: Lsn::new(0x300_0100),
        wal: WalRange {
            first: segment,
            last: segment,
        },
        start_time: label.start(),
        stop_time: label.start(),
        parent: None,
        files: 1,
        bytes: 8192,
        read: 8192,
        new: 8192,
        stored: 100,
        findings: 0,
        pinned: false,
        annotations: BTreeMap::new(),
        verified: None,
        drilled: None,
        other: Map::new(),
    }
}

fn segment_name(number: u64) -> SegmentName {
    SegmentName::new(TimelineId::FIRST, number, crate::wal::SegmentSize::DEFAULT).expect("in range")
}

fn list(byte: u8) -> CondemnedId {
    CondemnedId::from_bytes([byte; 16])
}

fn now() -> Timestamp {
    "2026-11-21T10:45:00Z".parse().expect("a time")
}

fn head() -> Head {
    Head::first(Nonce::from_bytes([1; 16]), now(), "db1")
}

fn at(epoch: u64) -> Clearance {
    Clearance {
        epoch,
        checked: BTreeSet::new(),
    }
}

fn floor(number: u64) -> BTreeMap<TimelineId, SegmentName> {
    BTreeMap::from([(TimelineId::FIRST, segment_name(number))])
}

#[test]
fn backups_stand_in_order_of_time_and_publishing_twice_is_publishing_once() {
    let mut head = head();
    for second in [3, 1, 2, 1] {
        head.publish(backup(label(second), 3), &at(1))
            .expect("nothing was condemned");
    }
    assert!(head.labels().eq([label(1), label(2), label(3)]));
    let mut other = backup(label(1), 3);
    other.manifest = Digest::of(b"other");
    let error = head
        .publish(other, &at(1))
        .expect_err("another backup of that name");
    assert_eq!(error, PublishError::LabelTaken { label: label(1) });
}

#[test]
fn a_backup_that_does_not_know_what_was_condemned_since_is_sent_to_look() {
    let mut head = head();
    let noted = head.epoch;
    head.condemn(list(1), &BTreeSet::new(), &BTreeMap::new(), now())
        .expect("nothing is used");
    let mut clearance = at(noted);
    let error = head
        .publish(backup(label(1), 3), &clearance)
        .expect_err("unchecked");
    assert_eq!(
        error,
        PublishError::Unchecked {
            label: label(1),
            lists: vec![list(1)]
        }
    );
    clearance.checked.insert(list(1));
    head.publish(backup(label(1), 3), &clearance).expect("checked");
}

#[test]
fn a_list_that_was_being_deleted_when_the_backup_began_must_be_checked_too() {
    let mut head = head();
    head.condemn(list(1), &BTreeSet::new(), &BTreeMap::new(), now())
        .expect("nothing is used");
    // The backup begins now and may still find a condemned pack of an interrupted run.
    let noted = head.epoch;
    head.mark_deleted(list(1), now()).expect("it is there");
    assert!(head.publish(backup(label(1), 3), &at(noted)).is_err());
    // Who began afterwards cannot have seen it.
    head.publish(backup(label(1), 3), &at(head.epoch))
        .expect("all of it was gone");
}

#[test]
fn a_backup_whose_wal_was_collected_is_refused() {
    let mut head = head();
    head.condemn(list(1), &BTreeSet::new(), &floor(5), now())
        .expect("nothing is used");
    let mut clearance = at(1);
    clearance.checked.insert(list(1));
    let error = head
        .publish(backup(label(1), 4), &clearance)
        .expect_err("its WAL is gone");
    assert_eq!(
        error.to_string(),
        "backup 19700101T000001Z-0000 needs the WAL from 000000010000000000000004 on, but the archive begins with 000000010000000000000005"
    );
    assert!(head.is_below_floor(segment_name(4)) && !head.is_below_floor(segment_name(5)));
    head.publish(backup(label(1), 5), &clearance)
        .expect("its WAL is there");
}

#[test]
fn a_backup_from_before_what_is_remembered_is_refused() {
    let mut head = head();
    head.condemn(list(1), &BTreeSet::new(), &BTreeMap::new(), now())
        .expect("nothing is used");
    head.mark_deleted(list(1), now()).expect("it is there");
    head.condemn(list(2), &BTreeSet::new(), &BTreeMap::new(), now())
        .expect("nothing is used");
    assert_eq!(head.forget_deleted(now()), []);
    let later = now() + REMEMBERED + SignedDuration::from_secs(1);
    assert_eq!(head.forget_deleted(later), [list(1)]);
    assert_eq!(
        head.condemned.len(),
        1,
        "what is still to be deleted is not forgotten"
    );
    let error = head.publish(backup(label(1), 3), &at(1)).expect_err("too old");
    assert!(
        matches!(error, PublishError::TooOld { forgotten: 3, .. }),
        "{error}"
    );
    assert!(error.hint().is_some());
    let error = head
        .publish(backup(label(1), 3), &at(99))
        .expect_err("rolled back");
    assert!(matches!(error, PublishError::FromTheFuture { .. }), "{error}");
}

#[test]
fn the_memory_of_condemned_lists_is_bounded() {
    let mut head = head();
    for number in 0..u32::try_from(MOST_REMEMBERED).expect("few") + 5 {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        let id = CondemnedId::from_bytes(id);
        head.condemn(id, &BTreeSet::new(), &BTreeMap::new(), now())
            .expect("nothing is used");
        head.mark_deleted(id, now()).expect("it is there");
    }
    assert_eq!(head.forget_deleted(now()).len(), 5);
    assert_eq!(head.condemned.len(), MOST_REMEMBERED);
    assert_eq!(head.forgotten, 11);
}

#[test]
fn nothing_is_condemned_in_ignorance_of_a_backup_or_against_its_wal() {
    let mut head = head();
    head.publish(backup(label(1), 4), &at(1))
        .expect("nothing was condemned");
    let before = head.clone();
    let error = head.condemn(list(1), &BTreeSet::new(), &BTreeMap::new(), now());
    assert!(matches!(error, Err(HeadError::Unexamined { .. })));
    let examined = BTreeSet::from([label(1)]);
    let error = head
        .condemn(list(1), &examined, &floor(5), now())
        .expect_err("it needs 4");
    assert_eq!(error.outcome(), crate::diagnostic::Outcome::Refused);
    assert_eq!(head, before, "a refusal changes nothing");
    head.condemn(list(1), &examined, &floor(4), now())
        .expect("all is well");
    assert!(matches!(
        head.condemn(list(1), &examined, &floor(4), now()),
        Err(HeadError::ListExists { .. })
    ));
    // The floor never sinks.
    head.condemn(list(2), &examined, &floor(2), now())
        .expect("all is well");
    assert_eq!(head.wal_floor, floor(4));
}

#[test]
fn a_pinned_backup_is_not_removed_and_removal_raises_the_epoch() {
    let mut head = head();
    for second in [1, 2] {
        head.publish(backup(label(second), 3), &at(1))
            .expect("nothing was condemned");
    }
    head.pin(label(1), true).expect("it is there");
    let both = BTreeSet::from([label(1), label(2)]);
    assert!(matches!(head.remove(&both), Err(HeadError::Pinned { .. })));
    assert_eq!((head.backups.len(), head.epoch), (2, 1));
    head.pin(label(1), false).expect("it is there");
    assert_eq!(head.remove(&both).expect("not pinned").len(), 2);
    assert_eq!((head.backups.len(), head.epoch), (0, 2));
    assert!(head.remove(&both).expect("gone already").is_empty());
    assert_eq!(head.epoch, 2);
    assert!(matches!(
        head.pin(label(1), true),
        Err(HeadError::NoBackup { .. })
    ));
}

#[test]
fn annotations_examinations_and_gaps_are_kept() {
    let mut head = head();
    head.publish(backup(label(1), 3), &at(1))
        .expect("nothing was condemned");
    head.annotate(label(1), "why", Some("before the upgrade"))
        .expect("it is there");
    head.annotate(label(1), "who", Some("me")).expect("it is there");
    head.annotate(label(1), "who", None).expect("it is there");
    let examination = Examination {
        at: now(),
        passed: true,
        detail: String::new(),
        seconds: 12,
    };
    head.record_verification(label(1), examination.clone())
        .expect("it is there");
    head.record_drill(label(1), examination).expect("it is there");
    let gap = |first, last| WalGap {
        wal: WalRange {
            first: segment_name(first),
            last: segment_name(last),
        },
        at: now(),
        reason: "the queue was full".to_owned(),
    };
    head.record_gap(gap(5, 9));
    head.record_gap(gap(6, 7));
    head.record_gap(gap(20, 21));
    assert_eq!(head.gaps.len(), 2);
    let read = Head::decode(&head.encode()).expect("our own");
    assert_eq!(read, head);
    assert_eq!(read.backups[0].annotations.len(), 1);
    head.close_gaps(|gap| gap.wal.first == segment_name(20));
    assert_eq!(head.gaps.len(), 1);
    // A gap below the floor is nobody's any more.
    head.remove(&BTreeSet::from([label(1)])).expect("not pinned");
    head.condemn(list(1), &BTreeSet::new(), &floor(10), now())
        .expect("nothing is used");
    assert_eq!(head.gaps, []);
}

#[test]
fn what_a_newer_program_wrote_survives_a_change_by_this_one() {
    let mut head = head();
    head.publish(backup(label(1), 3), &at(1))
        .expect("nothing was condemned");
    let text = String::from_utf8(head.encode()).expect("text");
    let newer = text
        .replacen("{\"head\"", "{\"mood\":{\"x\":[1,2]},\"head\"", 1)
        .replacen("{\"label\"", "{\"colour\":\"red\",\"label\"", 1);
    let mut read = Head::decode(newer.as_bytes()).expect("tolerated");
    read.advance(Nonce::from_bytes([2; 16]), now(), "db2");
    let again = String::from_utf8(read.encode()).expect("text");
    assert!(
        again.contains("\"mood\":{\"x\":[1,2]}") && again.contains("\"colour\":\"red\""),
        "{again}"
    );
    assert_eq!((read.seq, read.host.as_str()), (2, "db2"));
}

#[test]
fn heads_that_contradict_themselves_are_refused() {
    let mut good = head();
    good.publish(backup(label(1), 3), &at(1))
        .expect("nothing was condemned");
    good.condemn(list(1), &BTreeSet::from([label(1)]), &floor(2), now())
        .expect("all is well");
    let refused = |change: fn(&mut Head)| {
        let mut head = good.clone();
        change(&mut head);
        assert!(matches!(
            Head::decode(&head.encode()),
            Err(HeadError::Inconsistent { .. })
        ));
    };
    refused(|head| head.seq = 0);
    refused(|head| head.epoch = 1);
    refused(|head| head.forgotten = 9);
    refused(|head| head.backups.push(head.backups[0].clone()));
    refused(|head| {
        let floor = head.wal_floor.remove(&TimelineId::FIRST).expect("it is there");
        head.wal_floor
            .insert(TimelineId::new(2).expect("not zero"), floor);
    });
    let newer = String::from_utf8(good.encode())
        .expect("text")
        .replacen("\"head\":1", "\"head\":2", 1);
    assert!(matches!(
        Head::decode(newer.as_bytes()),
        Err(HeadError::Format { format: 2 })
    ));
}

proptest! {
    #[test]
    fn any_bytes_are_a_head_or_an_error(content: Vec<u8>) {
        let _ = Head::decode(&content);
    }

    #[test]
    fn a_damaged_head_never_panics(position: prop::sample::Index, byte: u8) {
        let mut head = head();
        head.publish(backup(label(1), 3), &at(1)).expect("nothing was condemned");
        head.condemn(list(1), &BTreeSet::from([label(1)]), &floor(2), now()).expect("all is well");
        let mut content = head.encode();
        let position = position.index(content.len());
        content[position] = byte;
        if let Ok(head) = Head::decode(&content) {
            prop_assert_eq!(Head::decode(&head.encode()).expect("our own"), head);
        }
    }
}
