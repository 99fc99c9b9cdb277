//! Parts of objects, creation and deletion on a real S3 server that fails when told.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pgmahout_config::secret::SecretReference;
use pgmahout_store::StoreError;
use pgmahout_store::repository::{
    BlockingRepository, CreateOutcome, Location, ObjectHandle, Patience, PutMode, Repository,
    RepositorySettings, S3Settings, StorageSettings,
};
use pgmahout_testkit::s3::{Fault, Rule, S3Server};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

const MIB: usize = 1024 * 1024;

fn settings(server: &S3Server, retry: Duration) -> RepositorySettings {
    let location = Location::S3 {
        bucket: server.bucket().to_owned(),
        prefix: "pg/main".to_owned(),
    };
    RepositorySettings {
        storage: StorageSettings::S3(S3Settings {
            prefix: "pg/main".to_owned(),
            endpoint: Some(server.endpoint()),
            region: Some(server.region().to_owned()),
            access_key: Some(SecretReference::Literal(server.access_key().into())),
            secret_key: Some(SecretReference::Literal(server.secret_key().into())),
            session_token: None,
            ca_cert: None,
            patience: Patience {
                connect: Duration::from_secs(2),
                request: Duration::from_secs(10),
                stall: Duration::from_secs(1),
                retry,
            },
            ..S3Settings::new(server.bucket())
        }),
        ..RepositorySettings::at("offsite", location)
    }
}

async fn open(server: &S3Server) -> Repository {
    Repository::open(settings(server, Duration::from_secs(20)))
        .await
        .unwrap()
}

async fn impatient(server: &S3Server) -> Repository {
    Repository::open(settings(server, Duration::from_secs(1)))
        .await
        .unwrap()
}

fn never() -> CancellationToken {
    CancellationToken::new()
}

fn content(length: usize) -> Bytes {
    let mut state: u32 = 7;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(length)
    .collect()
}

/// Works with a repository on a thread that is not the runtime's.
async fn on_a_thread<T: Send + 'static>(
    repository: &Repository,
    work: impl FnOnce(BlockingRepository) -> T + Send + 'static,
) -> T {
    let blocking = repository.blocking();
    spawn_blocking(move || work(blocking)).await.unwrap()
}

async fn part(
    handle: ObjectHandle,
    offset: u64,
    length: usize,
) -> (ObjectHandle, Result<Vec<u8>, StoreError>) {
    spawn_blocking(move || {
        let mut out = Vec::new();
        let read = handle.read_at(offset, length, &mut out).map(|()| out);
        (handle, read)
    })
    .await
    .unwrap()
}

fn requests(server: &S3Server, method: &str, text: &str) -> usize {
    let matches = |request: &String| request.starts_with(method) && request.contains(text);
    server
        .requests()
        .iter()
        .filter(|request| matches(request))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_part_of_an_object_costs_one_request_and_opening_it_none() {
    let server = S3Server::start();
    let repository = open(&server).await;
    let whole = content(MIB);
    repository
        .put_bytes("pack", whole.clone(), PutMode::Overwrite)
        .await
        .unwrap();
    let before = server.requests().len();
    let expected = whole.clone();
    on_a_thread(&repository, move |repository| {
        let handle = repository.open_random("pack").unwrap();
        let mut out = Vec::new();
        assert_eq!(handle.read_tail(16, &mut out).unwrap(), MIB as u64);
        assert_eq!(out, expected[MIB - 16..]);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (handle, expected) = (&handle, &expected);
                scope.spawn(move || {
                    let mut out = Vec::new();
                    handle.read_at(thread * 200_000, 150_000, &mut out).unwrap();
                    let begin = thread as usize * 200_000;
                    assert_eq!(out, expected[begin..begin + 150_000]);
                });
            }
        });
        assert_eq!(handle.size().unwrap(), MIB as u64);
    })
    .await;
    assert_eq!(server.requests().len() - before, 5, "{:?}", server.requests());
    assert_eq!(
        repository.read_range("pack", 5..500).await.unwrap(),
        whole[5..500]
    );
    let mut out = Vec::new();
    let tail = on_a_thread(&repository, move |repository| {
        repository
            .open_random("pack")
            .unwrap()
            .read_tail(9 * MIB, &mut out)
            .map(|size| (size, out))
    });
    let (size, all) = tail.await.unwrap();
    assert_eq!(
        (size, all.len()),
        (MIB as u64, MIB),
        "a tail longer than the object is the object"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_arrives_whole_whatever_happens_on_the_way() {
    let server = S3Server::start();
    let repository = open(&server).await;
    let whole = content(3 * MIB);
    repository
        .put_bytes("pack", whole.clone(), PutMode::Overwrite)
        .await
        .unwrap();
    for fault in [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
        Fault::Reset,
        Fault::Stall,
        Fault::LoseAnswer,
        Fault::CutBody { after: 0 },
        Fault::CutBody { after: 1_000_000 },
        Fault::StallBody { after: 700_000 },
    ] {
        server.inject(Rule::new(fault).method("GET").containing("/pack").times(2));
        let range = repository.read_range("pack", 1000..2_500_000).await.unwrap();
        assert!(range == whole[1000..2_500_000], "{fault:?}");
        server.clear_faults();
        server.inject(Rule::new(fault).method("GET").containing("/pack").times(2));
        let (size, tail) = on_a_thread(&repository, |repository| {
            let mut out = Vec::new();
            let handle = repository.open_random("pack").unwrap();
            let size = handle.read_tail(2 * MIB, &mut out).unwrap();
            (size, out)
        })
        .await;
        assert_eq!(size, 3 * MIB as u64);
        assert!(tail == whole[MIB..], "{fault:?}");
        server.clear_faults();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_server_that_keeps_failing_is_an_error_in_bounded_time() {
    let server = S3Server::start();
    let repository = impatient(&server).await;
    repository
        .put_bytes("pack", content(MIB), PutMode::Overwrite)
        .await
        .unwrap();
    for fault in [Fault::Status(503), Fault::CutBody { after: 0 }] {
        server.inject(Rule::new(fault).method("GET").containing("/pack").always());
        let error = repository.read_range("pack", 0..500_000).await.unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
        server.clear_faults();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_replaced_between_two_parts_is_found() {
    let server = S3Server::start();
    let repository = open(&server).await;
    repository
        .put_bytes("pack", content(MIB), PutMode::Overwrite)
        .await
        .unwrap();
    let handle = repository.open_random("pack").await.unwrap();
    let (handle, read) = part(handle, 0, 1000).await;
    read.unwrap();
    let other: Bytes = content(MIB).iter().map(|byte| byte ^ 1).collect();
    repository
        .put_bytes("pack", other, PutMode::Overwrite)
        .await
        .unwrap();
    let (_, read) = part(handle, 1000, 1000).await;
    let error = read.unwrap_err();
    assert!(matches!(error, StoreError::Changed { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_beyond_the_end_and_an_object_that_is_not_there_are_told() {
    let server = S3Server::start();
    let repository = open(&server).await;
    repository
        .put_bytes("a", "0123456789", PutMode::Create)
        .await
        .unwrap();
    for range in [5..11, 10..12, 500..600] {
        let error = repository.read_range("a", range.clone()).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Corrupt { .. }),
            "{range:?}: {error:?}"
        );
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("ends after 10 bytes"), "{cause}");
    }
    let error = repository.read_range("b", 0..1).await.unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
    let handle = repository.open_random("b").await.unwrap();
    let (_, read) = part(handle, 0, 1).await;
    assert!(read.unwrap_err().is_not_found());
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_mebibytes_are_put_with_one_request() {
    let server = S3Server::start();
    let repository = open(&server).await;
    let whole = content(64 * MIB);
    server.inject(Rule::new(Fault::Status(503)).method("PUT"));
    repository
        .put_bytes("pack", whole.clone(), PutMode::Overwrite)
        .await
        .unwrap();
    assert_eq!(requests(&server, "PUT", "/pack"), 2, "one was refused");
    assert_eq!(requests(&server, "POST", ""), 0);
    assert!(std::fs::read(server.directory().join("pg/main/pack")).unwrap() == whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_creators_of_one_name_exactly_one_is_told_that_it_won() {
    let server = S3Server::start();
    let repository = open(&server).await;
    let report = repository.check(&never()).await.unwrap();
    assert!(report.conditional_put);
    assert_eq!((report.creators, report.winners), (8, 1));
    assert_eq!(server.keys(), [""; 0]);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let repository = repository.clone();
        tasks.spawn(async move { repository.create_once("head", format!("nonce {number}")).await });
    }
    let outcomes = tasks.join_all().await;
    let won = |outcome: &&Result<CreateOutcome, StoreError>| matches!(outcome, Ok(CreateOutcome::Created));
    assert_eq!(outcomes.iter().filter(won).count(), 1, "{outcomes:?}");
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_answers_were_lost_is_decided_by_what_is_there() {
    let server = S3Server::start();
    let repository = impatient(&server).await;
    // Carried out, and no answer ever comes: our own bytes are there.
    server.inject(Rule::new(Fault::LoseAnswer).method("PUT").always());
    assert_eq!(
        repository.create_once("head/1", "mine").await.unwrap(),
        CreateOutcome::Created
    );
    // Somebody else's are, and no answer ever comes.
    assert_eq!(
        repository.create_once("head/1", "other").await.unwrap(),
        CreateOutcome::AlreadyThere
    );
    server.clear_faults();
    // Never carried out: an error, and nothing is claimed.
    server.inject(Rule::new(Fault::Reset).method("PUT").always());
    let error = repository.create_once("head/2", "mine").await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    server.clear_faults();
    assert!(!repository.exists("head/2").await.unwrap());
    // Nobody can look: an error, not a guess. The next attempt finds its own bytes and knows them by their nonce.
    server.inject(Rule::new(Fault::LoseAnswer).method("PUT").always());
    server.inject(Rule::new(Fault::Status(500)).method("GET").always());
    let error = repository.create_once("head/3", "mine").await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    server.clear_faults();
    assert_eq!(
        &repository.get_bytes("head/3", 9).await.unwrap()[..],
        b"mine",
        "which is why the error says that it may be there"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_objects_are_deleted_and_a_failure_does_not_keep_the_others() {
    let server = S3Server::start();
    let repository = impatient(&server).await;
    let names: Vec<String> = (0..40).map(|number| format!("pack/{number}")).collect();
    for name in &names[5..] {
        repository.put_bytes(name, "x", PutMode::Overwrite).await.unwrap();
    }
    repository.put_bytes("kept", "x", PutMode::Create).await.unwrap();
    server.inject(
        Rule::new(Fault::Status(503))
            .method("DELETE")
            .containing("/pack/17")
            .always(),
    );
    let error = repository.delete_many(&names, &never()).await.unwrap_err();
    assert!(error.to_string().contains("cannot delete pack/17"), "{error}");
    assert_eq!(server.keys(), ["pg/main/kept", "pg/main/pack/17"]);
    server.clear_faults();
    repository.delete_many(&names, &never()).await.unwrap();
    assert_eq!(server.keys(), ["pg/main/kept"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_listing_comes_in_pages() {
    let server = S3Server::start();
    let repository = open(&server).await;
    let below = server.directory().join("pg/main/wal");
    std::fs::create_dir_all(&below).unwrap();
    let names: Vec<String> = (0..2300).map(|number| format!("wal/{number:06}")).collect();
    for number in 0..2300 {
        std::fs::write(below.join(format!("{number:06}")), "x").unwrap();
    }
    server.inject(Rule::new(Fault::Status(503)).method("GET").times(2));
    let (mut seen, mut pages) = (Vec::new(), 0);
    repository
        .list_each("wal", &never(), |page| {
            pages += 1;
            assert!(page.len() <= 1000);
            seen.extend(page.into_iter().map(|entry| entry.name));
            Ok(())
        })
        .await
        .unwrap();
    seen.sort();
    assert_eq!(seen, names);
    assert!(pages >= 3, "{pages}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_bandwidth_holds_for_uploads_and_downloads_together() {
    let server = S3Server::start();
    let repository = Repository::open(RepositorySettings {
        bandwidth_limit: NonZeroU64::new(MIB as u64),
        ..settings(&server, Duration::from_secs(20))
    })
    .await
    .unwrap();
    let started = Instant::now();
    let half = content(MIB / 2);
    repository
        .put_bytes("a", half.clone(), PutMode::Overwrite)
        .await
        .unwrap();
    let other = repository.clone();
    assert_eq!(other.read_range("a", 0..MIB as u64 / 2).await.unwrap(), half);
    assert_eq!(other.get_bytes("a", MIB as u64).await.unwrap(), half);
    // 1.5 MiB at 1 MiB/s, less the first, which need not wait, and the burst. Slower is no error here.
    assert!(
        started.elapsed() > Duration::from_millis(800),
        "{:?}",
        started.elapsed()
    );
}
