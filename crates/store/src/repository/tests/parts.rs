//! Parts of objects, many objects at once, limits.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::*;

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|position| (position % 251) as u8).collect()
}

#[tokio::test]
async fn any_part_of_an_object_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(directory.path()).await;
    let whole = content(100_000);
    repository
        .put_bytes("pack", whole.clone(), PutMode::Create)
        .await
        .unwrap();
    assert_eq!(
        repository.read_range("pack", 500..70_000).await.unwrap(),
        &whole[500..70_000]
    );
    assert!(repository.read_range("pack", 7..7).await.unwrap().is_empty());
    let handle = repository.open_random("pack").await.unwrap();
    assert_eq!((handle.name(), handle.size().unwrap()), ("pack", 100_000));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (handle, whole) = (&handle, &whole);
            scope.spawn(move || {
                let mut out = content(30);
                for offset in (thread * 1000..90_000).step_by(7777) {
                    handle.read_at(offset as u64, 5000, &mut out).unwrap();
                    assert_eq!(out, whole[offset..offset + 5000]);
                }
            });
        }
    });
    let mut out = Vec::new();
    assert_eq!(handle.read_tail(16, &mut out).unwrap(), 100_000);
    assert_eq!(out, whole[99_984..]);
    assert_eq!(handle.read_tail(1_000_000, &mut out).unwrap(), 100_000);
    assert_eq!(out, whole);
}

#[tokio::test]
async fn a_part_beyond_the_end_and_an_object_that_is_not_there_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(directory.path()).await;
    repository
        .put_bytes("a", "0123456789", PutMode::Create)
        .await
        .unwrap();
    for range in [5..11, 11..12, 0..u64::MAX] {
        let error = repository.read_range("a", range).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("ends after 10 bytes"), "{cause}");
    }
    assert!(repository.read_range("b", 0..1).await.unwrap_err().is_not_found());
    assert!(repository.open_random("b").await.unwrap_err().is_not_found());
    // Cut after it was opened.
    let handle = repository.open_random("a").await.unwrap();
    std::fs::write(directory.path().join("a"), "0123").unwrap();
    let error = handle.read_at(3, 5, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, StoreError::Changed { .. }), "{error:?}");
}

#[tokio::test]
async fn of_many_creators_of_one_name_exactly_one_is_told_that_it_won() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(directory.path()).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..16 {
        let repository = repository.clone();
        tasks.spawn(async move {
            (
                number,
                repository.create_once("head", format!("nonce {number}")).await,
            )
        });
    }
    let mut winners = Vec::new();
    for (number, outcome) in tasks.join_all().await {
        if outcome.unwrap() == CreateOutcome::Created {
            winners.push(number);
        }
    }
    assert_eq!(winners.len(), 1);
    let there = repository.get_bytes("head", 100).await.unwrap();
    assert_eq!(there, format!("nonce {}", winners[0]));
}

#[tokio::test]
async fn std_threads_do_everything_without_a_runtime_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let blocking = open(directory.path()).await.blocking();
    std::thread::spawn(move || {
        blocking.put_bytes("a", "0123456789", PutMode::Overwrite).unwrap();
        assert_eq!(
            blocking.create_once("a", "x").unwrap(),
            CreateOutcome::AlreadyThere
        );
        assert_eq!(blocking.create_once("b", "x").unwrap(), CreateOutcome::Created);
        assert_eq!(&blocking.get_bytes("a", 10).unwrap()[..], b"0123456789");
        assert_eq!(&blocking.get_range("a", 2..5).unwrap()[..], b"234");
        let mut out = Vec::new();
        blocking.read_at("a", 9, 1, &mut out).unwrap();
        assert_eq!(out, b"9");
        assert_eq!(blocking.head("a").unwrap().unwrap().size, 10);
        assert!(blocking.delete("a").unwrap() && !blocking.exists("a").unwrap());
        assert!(matches!(
            blocking.get_bytes("../a", 1).unwrap_err(),
            StoreError::InvalidName { .. }
        ));
    })
    .join()
    .unwrap();
}

#[tokio::test]
async fn many_objects_are_deleted_and_those_that_are_gone_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(directory.path()).await;
    let names: Vec<String> = (0..50)
        .map(|number| format!("pack/{}/{number}", number % 7))
        .collect();
    for name in &names[10..] {
        repository.put_bytes(name, "x", PutMode::Create).await.unwrap();
    }
    repository.put_bytes("kept", "x", PutMode::Create).await.unwrap();
    repository.delete_many(&names, &never()).await.unwrap();
    assert_eq!(files(directory.path()), ["kept"]);
    let error = repository
        .delete_many(&["kept".to_owned(), "../outside".to_owned()], &never())
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::InvalidName { .. }), "{error}");
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let error = repository
        .delete_many(&["kept".to_owned()], &cancelled)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Cancelled { .. }), "{error}");
    assert_eq!(files(directory.path()), ["kept"]);
}

#[tokio::test]
async fn a_listing_comes_in_pages_by_name_and_ends_when_its_taker_fails() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(directory.path()).await;
    let mut names = BTreeSet::new();
    for number in 0..2500 {
        names.insert(format!("a/{:02}/{number}", number % 90));
    }
    // Among names `a-` comes before `a/`, and `a/b.c` before `a/b/c`.
    names.extend(["a-", "a.b", "a0", "a/00.x", "a/00-x"].map(str::to_owned));
    for name in &names {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
    let (mut seen, mut largest) = (Vec::new(), 0);
    repository
        .list_each("", &never(), |page| {
            largest = largest.max(page.len());
            seen.extend(page.into_iter().map(|entry| entry.name));
            Ok(())
        })
        .await
        .unwrap();
    assert!(seen.iter().eq(names.iter()), "every name once, in order");
    assert!(largest <= 1000, "{largest} at once");

    let mut pages = 0;
    let error = repository
        .list_each("", &never(), |_| {
            pages += 1;
            Err(StoreError::NoSpace {
                subject: repository.subject(Action::List, "mine"),
            })
        })
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    assert_eq!(pages, 1);
}

#[tokio::test]
async fn clones_share_one_limit_of_bandwidth_for_writing_and_reading() {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::open(RepositorySettings {
        bandwidth_limit: NonZeroU64::new(1024 * 1024),
        ..local(directory.path())
    })
    .await
    .unwrap();
    let started = Instant::now();
    let half = content(512 * 1024);
    repository
        .put_bytes("a", half.clone(), PutMode::Create)
        .await
        .unwrap();
    let other = repository.clone();
    assert_eq!(other.get_bytes("a", 1 << 20).await.unwrap(), half);
    assert_eq!(other.read_range("a", 0..512 * 1024).await.unwrap(), half);
    // 1.5 MiB at 1 MiB/s, less the last piece and the burst. Slower is no error here.
    assert!(
        started.elapsed() > Duration::from_millis(1100),
        "{:?}",
        started.elapsed()
    );
}
