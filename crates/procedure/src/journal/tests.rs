use proptest::prelude::*;

use super::*;

fn entry(record: Record) -> Entry {
    Entry {
        at: "2026-11-21T08:00:00Z".parse().unwrap(),
        record,
    }
}

fn header() -> Record {
    Record::Header(Header {
        schema_version: 1,
        id: "20261121T080000-0001".to_owned(),
        kind: "test".to_owned(),
        title: "do a thing".to_owned(),
        target: Target::new("a place").system_identifier(7_u64),
        parameters: serde_json::json!({"path": "/x", "names": ["a", "b"]}),
        who: Who::current(),
        version: "0.1.0".to_owned(),
    })
}

fn step(name: &str) -> String {
    name.to_owned()
}

fn lines(records: Vec<Record>) -> Vec<Vec<u8>> {
    records
        .into_iter()
        .map(|record| serde_json::to_vec(&entry(record)).unwrap())
        .collect()
}

fn parse(records: Vec<Record>) -> Journal {
    Journal::parse(&lines(records)).unwrap().unwrap()
}

#[test]
fn records_survive_writing_and_reading() {
    let failure = Failure {
        message: "m".into(),
        causes: vec!["c".into()],
        hint: Some("h".into()),
    };
    let records = vec![
        header(),
        Record::Remembered {
            name: "lsn".into(),
            value: serde_json::json!({"a": [1, null, "x"]}),
        },
        Record::StepFailed {
            step: step("one"),
            failure: failure.clone(),
        },
        Record::VerificationFailed { failure },
        Record::Ended {
            result: EndResult::Aborted,
        },
    ];
    let journal = parse(records.clone());
    assert_eq!(
        journal
            .entries
            .into_iter()
            .map(|entry| entry.record)
            .collect::<Vec<_>>(),
        records
    );
}

#[test]
fn a_record_of_a_newer_release_is_passed_over() {
    let mut lines = lines(vec![header(), Record::StepSucceeded { step: step("one") }]);
    lines.push(br#"{"at":"2027-01-01T00:00:00Z","record":"telepathy","with":{"whom":1}}"#.to_vec());
    let journal = Journal::parse(&lines).unwrap().unwrap();
    assert_eq!(journal.entries[2].record, Record::Unknown);
    assert_eq!(journal.step("one"), StepState::Done);
    assert_eq!(journal.state(), State::Interrupted);
}

#[test]
fn the_state_follows_the_records() {
    let failure = Failure {
        message: "m".into(),
        causes: vec![],
        hint: None,
    };
    let failed = Record::StepFailed {
        step: step("one"),
        failure,
    };
    assert_eq!(parse(vec![header()]).state(), State::Interrupted);
    assert_eq!(parse(vec![header(), failed.clone()]).state(), State::Failed);
    let remembered = Record::Remembered {
        name: "x".into(),
        value: Value::Null,
    };
    assert_eq!(
        parse(vec![header(), failed.clone(), remembered]).state(),
        State::Failed
    );
    let resumed = parse(vec![
        header(),
        failed.clone(),
        Record::Resumed { who: Who::current() },
    ]);
    assert_eq!((resumed.state(), resumed.attempts()), (State::Interrupted, 2));
    assert!(resumed.failure().is_none());
    let ended = parse(vec![
        header(),
        failed,
        Record::Ended {
            result: EndResult::Succeeded,
        },
    ]);
    assert_eq!(ended.state(), State::Succeeded);
    let mut alive = parse(vec![header()]);
    alive.alive = true;
    assert_eq!(alive.state(), State::Running);
}

#[test]
fn the_last_word_on_a_step_counts() {
    let failure = Failure {
        message: "m".into(),
        causes: vec![],
        hint: None,
    };
    let journal = parse(vec![
        header(),
        Record::StepFound { step: step("zero") },
        Record::StepStarted { step: step("one") },
        Record::StepFailed {
            step: step("one"),
            failure,
        },
        Record::StepStarted { step: step("one") },
        Record::StepSucceeded { step: step("one") },
        Record::StepStarted { step: step("two") },
    ]);
    assert_eq!(journal.step("zero"), StepState::Done);
    assert_eq!(journal.step("one"), StepState::Done);
    assert_eq!(journal.step("two"), StepState::Started);
    assert_eq!(journal.step("three"), StepState::Pending);
}

#[test]
fn damage_before_the_end_names_the_line() {
    let mut lines = lines(vec![header(), Record::StepStarted { step: step("one") }]);
    lines.insert(1, b"{\"at\":\"2026".to_vec());
    assert!(Journal::parse(&lines).unwrap_err().starts_with("line 2: "));
    assert!(Journal::parse(&lines[1..]).is_err());
    let newer = String::from_utf8(serde_json::to_vec(&entry(header())).unwrap()).unwrap();
    let newer = newer.replace("\"schema_version\":1", "\"schema_version\":2");
    assert!(
        Journal::parse(&[newer.into_bytes()])
            .unwrap_err()
            .contains("form 2")
    );
}

#[test]
fn two_procedures_of_one_moment_have_two_journals() {
    let directory = tempfile::tempdir().unwrap();
    let now = Timestamp::now();
    let mut identifiers_made: Vec<String> = (0..50)
        .map(|_| JournalWriter::create(directory.path(), now).unwrap().1)
        .collect();
    identifiers_made.sort();
    identifiers_made.dedup();
    assert_eq!(identifiers_made.len(), 50);
    assert_eq!(identifiers(directory.path()).unwrap(), identifiers_made);
}

fn any_record() -> impl Strategy<Value = Record> {
    let step = "[a-c]";
    prop_oneof![
        step.prop_map(|step| Record::StepStarted { step }),
        step.prop_map(|step| Record::StepSucceeded { step }),
        (step, ".*").prop_map(|(step, message)| Record::StepFailed {
            step,
            failure: Failure {
                message,
                causes: vec![],
                hint: None
            },
        }),
        ("[a-c]", ".*").prop_map(|(name, text)| Record::Remembered {
            name,
            value: Value::String(text)
        }),
        Just(Record::Ended {
            result: EndResult::Succeeded
        }),
    ]
}

proptest! {
    /// Cut anywhere, a journal reads as the records that were complete, and the next one appended after the
    /// cut follows them.
    #[test]
    fn a_journal_torn_anywhere_keeps_its_complete_records(
        records in proptest::collection::vec(any_record(), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.jsonl");
        let mut all = vec![header()];
        all.extend(records);
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for line in lines(all.clone()) {
            bytes.extend_from_slice(&line);
            bytes.push(b'\n');
            ends.push(bytes.len());
        }
        let cut = cut.index(bytes.len() + 1);
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let complete = ends.iter().filter(|end| **end <= cut).count() - 1;

        let journal = Journal::read(&path).unwrap();
        let read = journal.map(|journal| journal.entries).unwrap_or_default();
        let read: Vec<Record> = read.into_iter().map(|entry| entry.record).collect();
        prop_assert_eq!(&read, &all[..complete]);

        if complete > 0 {
            let next = Record::StepStarted { step: "next".to_owned() };
            JournalWriter::open(&path).unwrap().write(&next).unwrap();
            let journal = Journal::read(&path).unwrap().unwrap();
            prop_assert_eq!(journal.entries.len(), complete + 1);
            prop_assert_eq!(&journal.entries[complete].record, &next);
        }
    }

    /// Whatever the bytes are, reading gives a value or an error.
    #[test]
    fn reading_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let _ = Journal::parse(&lines);
    }
}
