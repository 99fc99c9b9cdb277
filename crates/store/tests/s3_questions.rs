//! Reading small objects, looking, listing and deleting on a real S3 server that fails when told.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use pgmahout_config::secret::SecretReference;
use pgmahout_store::StoreError;
use pgmahout_store::repository::{
    Location, Patience, PutMode, Repository, RepositorySettings, S3Settings, StorageSettings,
};
use pgmahout_testkit::s3::{Fault, Rule, S3Server};
use rstest::rstest;
use tokio_util::sync::CancellationToken;

async fn open(server: &S3Server, retry: Duration) -> Repository {
    let location = Location::S3 {
        bucket: server.bucket().to_owned(),
        prefix: "pg/main".to_owned(),
    };
    let settings = RepositorySettings {
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
                request: Duration::from_secs(5),
                stall: Duration::from_millis(300),
                retry,
            },
            ..S3Settings::new(server.bucket())
        }),
        ..RepositorySettings::at("offsite", location)
    };
    Repository::open(settings).await.unwrap()
}

fn content(length: u32) -> Bytes {
    (0..length)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

async fn put(repository: &Repository, name: &str, length: u32) {
    repository
        .put_bytes(name, content(length), PutMode::Overwrite)
        .await
        .unwrap();
}

#[rstest]
#[case::error(Fault::Status(500))]
#[case::unavailable(Fault::Status(503))]
#[case::throttled(Fault::Status(429))]
#[case::stalled(Fault::Stall)]
#[case::reset(Fault::Reset)]
#[case::lost(Fault::LoseAnswer)]
#[case::cut(Fault::CutBody { after: 10 })]
#[case::stuck(Fault::StallBody { after: 10 })]
#[tokio::test(flavor = "multi_thread")]
async fn each_question_outlives_each_fault(#[case] fault: Fault) {
    let server = S3Server::start();
    let repository = open(&server, Duration::from_secs(30)).await;
    for number in 0..30 {
        put(&repository, &format!("list/{number:02}"), 20).await;
    }
    put(&repository, "read/object", 500_000).await;
    let twice = |method: &str| server.inject(Rule::new(fault).method(method).times(2));

    twice("GET");
    assert_eq!(
        repository.get_bytes("read/object", 1 << 20).await.unwrap(),
        content(500_000)
    );
    twice("HEAD");
    assert_eq!(
        repository.head("read/object").await.unwrap().unwrap().size,
        500_000
    );
    twice("GET");
    let listed = repository.list("list", &CancellationToken::new()).await.unwrap();
    assert_eq!(listed.len(), 30);
    twice("DELETE");
    // Whoever lost the answer cannot know who deleted it.
    repository.delete("read/object").await.unwrap();
    assert!(!repository.exists("read/object").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_object_is_read_on_from_where_it_broke_off() {
    let server = S3Server::start();
    let repository = open(&server, Duration::from_secs(30)).await;
    put(&repository, "object", 900_000).await;
    for after in [200_000, 300_000, 1] {
        server.inject(
            Rule::new(Fault::CutBody { after })
                .method("GET")
                .containing("object"),
        );
    }
    assert_eq!(
        repository.get_bytes("object", 1 << 20).await.unwrap(),
        content(900_000)
    );
    let ranges: Vec<String> = server
        .recorded()
        .iter()
        .filter(|request| request.method == "GET" && request.target.contains("object"))
        .filter_map(|request| request.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges, ["bytes=200000-", "bytes=500000-", "bytes=500001-"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_breaks_off_goes_on_behind_the_last_name() {
    let server = S3Server::start();
    let repository = open(&server, Duration::from_secs(30)).await;
    // Two pages of S3's thousand names.
    for number in 0..1100 {
        std::fs::create_dir_all(server.directory().join("pg/main/many")).unwrap();
        std::fs::write(server.directory().join(format!("pg/main/many/{number:04}")), b"x").unwrap();
    }
    server.inject(
        Rule::new(Fault::Status(503))
            .method("GET")
            .containing("continuation")
            .times(1),
    );
    server.inject(
        Rule::new(Fault::CutBody { after: 400 })
            .method("GET")
            .containing("start-after")
            .times(1),
    );
    let listed = repository.list("many", &CancellationToken::new()).await.unwrap();
    let names: Vec<String> = listed.into_iter().map(|entry| entry.name).collect();
    let expected: Vec<String> = (0..1100).map(|number| format!("many/{number:04}")).collect();
    assert_eq!(names, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fell_silent_is_given_up_and_then_asked_briefly() {
    let server = S3Server::start();
    let repository = open(&server, Duration::from_secs(2)).await;
    put(&repository, "object", 10).await;
    server.inject(Rule::new(Fault::Stall).always());
    let started = Instant::now();
    let error = repository.get_bytes("object", 100).await.unwrap_err();
    assert!(matches!(error, StoreError::Timeout { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
    server.clear_faults();
    assert_eq!(repository.get_bytes("object", 100).await.unwrap(), content(10));
}
