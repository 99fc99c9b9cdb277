use pgmahout_testkit::tmpfs::Tmpfs;

use super::*;

#[test]
fn lines_are_appended_and_a_torn_one_is_cut_off_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    append_line(&path, b"one", 0o600).unwrap();
    append_line(&path, b"two", 0o600).unwrap();
    let long = vec![b'x'; 10_000];
    OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(&long)
        .unwrap();
    assert_eq!(
        complete_lines(&path).unwrap().unwrap(),
        [b"one".to_vec(), b"two".to_vec()]
    );
    append_line(&path, b"three", 0o600).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
}

#[test]
fn a_file_that_is_one_torn_line_starts_afresh() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    std::fs::write(&path, "{\"torn").unwrap();
    append_line(&path, b"one", 0o600).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\n");
}

#[test]
fn a_missing_journal_is_none() {
    let directory = tempfile::tempdir().unwrap();
    assert!(
        complete_lines(directory.path().join("journal"))
            .unwrap()
            .is_none()
    );
}

#[test]
fn concurrent_writers_lose_no_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                for number in 0..25 {
                    append_line(path, format!("{writer} {number}").as_bytes(), 0o600).unwrap();
                }
            });
        }
    });
    let lines = complete_lines(&path).unwrap().unwrap();
    assert_eq!(lines.len(), 100);
    for writer in 0..4 {
        for number in 0..25 {
            assert!(lines.contains(&format!("{writer} {number}").into_bytes()));
        }
    }
}

#[test]
fn a_sole_writer_keeps_others_out_and_shows_that_it_is_alive() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut writer = SoleWriter::open(&path, 0o600).unwrap();
    writer.append(b"one").unwrap();
    assert!(SoleWriter::is_alive(&path).unwrap());
    assert!(matches!(
        SoleWriter::open(&path, 0o600),
        Err(LockError::Held { .. })
    ));
    drop(writer);
    assert!(!SoleWriter::is_alive(&path).unwrap());
    SoleWriter::open(&path, 0o600).unwrap().append(b"two").unwrap();
    assert_eq!(
        complete_lines(&path).unwrap().unwrap(),
        [b"one".to_vec(), b"two".to_vec()]
    );
}

#[test]
fn a_full_disk_leaves_no_half_line_and_the_next_one_follows_the_last_whole_one() {
    let Ok(disk) = Tmpfs::new(1 << 20) else { return };
    let path = disk.path().join("journal");
    append_line(&path, b"one", 0o600).unwrap();
    let filler = disk.fill(8 << 10);
    let error = append_line(&path, &vec![b'x'; 64 << 10], 0o600).unwrap_err();
    assert!(matches!(error, DurableError::NoSpace { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\n");
    std::fs::remove_file(filler).unwrap();
    append_line(&path, b"two", 0o600).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
}
