//! Repositories on a real S3 server, and what happens when it fails.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use pgmahout_config::secret::SecretReference;
use pgmahout_store::StoreError;
use pgmahout_store::codec::{Codec, Compressor, Decompressor};
use pgmahout_store::digest::{DigestReader, DigestWriter};
use pgmahout_store::repository::{
    EncryptionSettings, ObjectWriter, Patience, PutMode, Repository, RepositorySettings, S3Settings,
    StorageSettings,
};
use pgmahout_store::seal::{Context, Opener, Sealer};
use pgmahout_testkit::s3::{Fault, Rule, S3Server};
use pgmahout_types::diagnostic::Diagnose;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

const MIB: usize = 1024 * 1024;

fn never() -> CancellationToken {
    CancellationToken::new()
}

fn bucket(server: &S3Server) -> S3Settings {
    S3Settings {
        bucket: server.bucket().to_owned(),
        prefix: "pg/main".to_owned(),
        endpoint: Some(server.endpoint()),
        region: Some(server.region().to_owned()),
        path_style: Some(true),
        access_key: Some(SecretReference::Literal(server.access_key().into())),
        secret_key: Some(SecretReference::Literal(server.secret_key().into())),
        session_token: None,
        ca_cert: None,
        patience: Patience {
            connect: Duration::from_secs(2),
            request: Duration::from_secs(10),
            stall: Duration::from_secs(1),
            retry: Duration::from_secs(20),
        },
    }
}

fn settings(s3: S3Settings) -> RepositorySettings {
    RepositorySettings {
        name: "offsite".to_owned(),
        storage: StorageSettings::S3(s3),
        encryption: None,
        compression: Codec::default(),
        single_writer: false,
        bandwidth_limit: None,
    }
}

async fn open(server: &S3Server) -> Repository {
    Repository::open(settings(bucket(server))).await.unwrap()
}

fn content(length: usize) -> Vec<u8> {
    let mut state: u32 = 7;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(length)
    .collect()
}

async fn write(repository: &Repository, name: &str, content: Vec<u8>) -> Result<u64, StoreError> {
    let writer = repository.writer(name, PutMode::Create, &never()).await?;
    let name = name.to_owned();
    spawn_blocking(move || write_all(writer, &content, &name))
        .await
        .unwrap()
}

fn write_all(mut writer: ObjectWriter, content: &[u8], name: &str) -> Result<u64, StoreError> {
    let subject = pgmahout_store::Subject {
        repository: String::new(),
        object: name.to_owned(),
        action: pgmahout_store::Action::Write,
    };
    for piece in content.chunks(700_001) {
        writer
            .write_all(piece)
            .map_err(|error| StoreError::from_io(error, subject.clone()))?;
    }
    writer.publish().map(|entry| entry.size)
}

async fn read(repository: &Repository, name: &str) -> io::Result<Vec<u8>> {
    let mut reader = repository.reader(name, &never()).await?;
    spawn_blocking(move || {
        let mut content = Vec::new();
        reader.read_to_end(&mut content).map(|_| content)
    })
    .await
    .unwrap()
}

/// The uploads that were begun and not completed or aborted.
fn open_uploads(server: &S3Server) -> i64 {
    server.requests().iter().fold(0, |open, request| {
        let begun =
            request.starts_with("POST") && (request.ends_with("?uploads") || request.ends_with("?uploads="));
        let ended =
            (request.starts_with("DELETE") || request.starts_with("POST")) && request.contains("uploadId=");
        open + i64::from(begun) - i64::from(ended)
    })
}

fn error_of(error: &io::Error) -> &StoreError {
    StoreError::of(error).unwrap_or_else(|| panic!("no error of ours: {error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_written_listed_read_and_deleted() {
    let server = S3Server::start();
    let repository = open(&server).await;
    repository
        .put_bytes("dumps/shop/a.json", "{}", PutMode::Create)
        .await
        .unwrap();
    repository
        .put_bytes("dumps/shopping/b", "b", PutMode::Overwrite)
        .await
        .unwrap();
    assert_eq!(
        server.keys(),
        ["pg/main/dumps/shop/a.json", "pg/main/dumps/shopping/b"]
    );
    let names = |entries: Vec<pgmahout_store::repository::ObjectEntry>| {
        entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>()
    };
    assert_eq!(
        names(repository.list("", &never()).await.unwrap()),
        ["dumps/shop/a.json", "dumps/shopping/b"]
    );
    assert_eq!(
        names(repository.list("dumps/shop", &never()).await.unwrap()),
        ["dumps/shop/a.json"]
    );
    assert_eq!(repository.list("nothing", &never()).await.unwrap(), []);
    assert_eq!(
        &repository.get_bytes("dumps/shop/a.json", 2).await.unwrap()[..],
        b"{}"
    );
    assert!(matches!(
        repository.get_bytes("dumps/shop/a.json", 1).await,
        Err(StoreError::TooLarge { .. })
    ));
    let entry = repository.head("dumps/shop/a.json").await.unwrap().unwrap();
    assert_eq!((entry.name.as_str(), entry.size), ("dumps/shop/a.json", 2));
    assert!(repository.delete("dumps/shop/a.json").await.unwrap());
    assert!(!repository.delete("dumps/shop/a.json").await.unwrap());
    assert!(
        repository
            .get_bytes("dumps/shop/a.json", 9)
            .await
            .unwrap_err()
            .is_not_found()
    );
    assert!(
        repository
            .reader("dumps/shop/a.json", &never())
            .await
            .err()
            .unwrap()
            .is_not_found()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn small_objects_and_objects_of_many_parts_come_back() {
    let server = S3Server::start();
    let repository = open(&server).await;
    for length in [0, 1, 4 * MIB, 8 * MIB, 8 * MIB + 1, 27 * MIB + 3] {
        let name = format!("object-{length}");
        let original = content(length);
        assert_eq!(
            write(&repository, &name, original.clone()).await.unwrap(),
            length as u64
        );
        assert_eq!(repository.head(&name).await.unwrap().unwrap().size, length as u64);
        assert!(read(&repository, &name).await.unwrap() == original, "{length}");
    }
    let parts = server
        .requests()
        .iter()
        .filter(|request| request.contains("partNumber="))
        .count();
    assert_eq!(parts, 2 + 4);
    assert_eq!(open_uploads(&server), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_passes_through_every_stage_and_back() {
    let server = S3Server::start();
    let encryption = EncryptionSettings::Passphrase(SecretReference::Literal("correct horse".into()));
    let encrypted = RepositorySettings {
        encryption: Some(encryption),
        ..settings(bucket(&server))
    };
    for (settings, codec) in [
        (encrypted.clone(), Codec::Gzip(6)),
        (encrypted, Codec::Zstd(3)),
        (settings(bucket(&server)), Codec::Lz4),
        (settings(bucket(&server)), Codec::None),
    ] {
        let repository = Repository::open(settings).await.unwrap();
        // A bucket that was encrypted once is not used in the clear.
        if !repository.is_encrypted() {
            repository.delete("repository.key").await.unwrap();
            repository.delete("repository.key.copy").await.unwrap();
        }
        let keyring = repository.keyring(&never()).await.unwrap();
        let name = format!("dumps/{}", codec.name());
        let context = Context::object("dump", &name);
        let original = content(11 * MIB);
        let writer = repository.writer(&name, PutMode::Create, &never()).await.unwrap();
        let (ring, place, bytes) = (keyring.clone(), context.clone(), original.clone());
        let written = spawn_blocking(move || {
            let mut writer = DigestWriter::new(writer);
            let (digest, writer) = if let Some(ring) = ring {
                let sealer = Sealer::new(&mut writer, &ring, &place).unwrap();
                let mut compressor = Compressor::new(codec, 2, sealer).unwrap();
                compressor.write_all(&bytes).unwrap();
                compressor.finish().unwrap().finish().unwrap();
                writer.finish()
            } else {
                let mut compressor = Compressor::new(codec, 2, writer).unwrap();
                compressor.write_all(&bytes).unwrap();
                compressor.finish().unwrap().finish()
            };
            writer.publish().unwrap();
            digest
        })
        .await
        .unwrap();
        let reader = repository.reader(&name, &never()).await.unwrap();
        let (back, raw) = spawn_blocking(move || {
            let mut back = Vec::new();
            if let Some(ring) = keyring {
                let opener = Opener::new(reader, &ring, &context).unwrap();
                Decompressor::new(codec, opener)
                    .unwrap()
                    .read_to_end(&mut back)
                    .unwrap();
                return (back, None);
            }
            let mut raw = DigestReader::new(reader);
            let mut stored = Vec::new();
            raw.read_to_end(&mut stored).unwrap();
            Decompressor::new(codec, io::Cursor::new(stored))
                .unwrap()
                .read_to_end(&mut back)
                .unwrap();
            (back, Some(raw.finish().0))
        })
        .await
        .unwrap();
        assert!(back == original, "{codec}");
        assert!(raw.is_none_or(|raw| raw == written));
        assert_eq!(repository.head(&name).await.unwrap().unwrap().size, written.bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_appears_before_it_is_published_and_no_parts_are_left() {
    let server = S3Server::start();
    let repository = open(&server).await;
    for give_up in [true, false] {
        let mut writer = repository.writer("big", PutMode::Create, &never()).await.unwrap();
        spawn_blocking(move || {
            writer.write_all(&content(20 * MIB)).unwrap();
            if give_up {
                writer.abort().unwrap();
            } else {
                drop(writer);
            }
        })
        .await
        .unwrap();
        assert_eq!(server.keys(), [""; 0]);
        assert_eq!(open_uploads(&server), 0, "{:?}", server.requests());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn create_never_overwrites() {
    let server = S3Server::start();
    let repository = open(&server).await;
    repository
        .put_bytes("name", "first", PutMode::Create)
        .await
        .unwrap();
    let error = repository
        .put_bytes("name", "second", PutMode::Create)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "cannot write name in repository offsite (s3://backups/pg/main): it exists already"
    );
    assert!(matches!(
        write(&repository, "name", b"third".to_vec()).await,
        Err(StoreError::AlreadyExists { .. })
    ));
    assert_eq!(&repository.get_bytes("name", 9).await.unwrap()[..], b"first");

    // The name is taken while a large object is on its way.
    let mut writer = repository
        .writer("late", PutMode::Create, &never())
        .await
        .unwrap();
    let writer = spawn_blocking(move || writer.write_all(&content(20 * MIB)).map(|()| writer))
        .await
        .unwrap()
        .unwrap();
    repository
        .put_bytes("late", "mine", PutMode::Create)
        .await
        .unwrap();
    let error = spawn_blocking(move || writer.publish())
        .await
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
    assert_eq!(&repository.get_bytes("late", 9).await.unwrap()[..], b"mine");
    assert_eq!(open_uploads(&server), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_proves_the_repository_and_leaves_nothing() {
    let server = S3Server::start();
    let repository = open(&server).await;
    let report = repository.check(&never()).await.unwrap();
    // What the server really does is what a sequential try shows, too.
    repository.put_bytes("x", "1", PutMode::Create).await.unwrap();
    assert!(matches!(
        repository.put_bytes("x", "2", PutMode::Create).await,
        Err(StoreError::AlreadyExists { .. })
    ));
    assert_eq!(server.keys(), ["pg/main/x"]);
    eprintln!("conditional put honoured in a race: {}", report.conditional_put);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_a_missing_bucket_and_a_wrong_endpoint_are_told_apart() {
    let server = S3Server::start();
    let wrong_secret = S3Settings {
        secret_key: Some(SecretReference::Literal("not the secret".into())),
        ..bucket(&server)
    };
    let wrong_key = S3Settings {
        access_key: Some(SecretReference::Literal("AKIANOBODY".into())),
        ..bucket(&server)
    };
    for wrong in [wrong_secret, wrong_key] {
        let repository = Repository::open(settings(wrong)).await.unwrap();
        for error in [
            repository.check(&never()).await.unwrap_err(),
            repository.put_bytes("a", "x", PutMode::Create).await.unwrap_err(),
            repository.exists("a").await.unwrap_err(),
            repository
                .writer("a", PutMode::Create, &never())
                .await
                .err()
                .unwrap(),
        ] {
            assert!(matches!(error, StoreError::Authentication { .. }), "{error:?}");
            assert!(error.hint().unwrap().contains("secret_key"));
            assert!(!error.is_retryable());
            let all = format!("{error} {error:?}");
            assert!(!all.contains("not the secret"), "{all}");
        }
    }
    let missing = Repository::open(settings(S3Settings {
        bucket: "nobodys".into(),
        ..bucket(&server)
    }))
    .await
    .unwrap();
    for error in [
        missing.check(&never()).await.unwrap_err(),
        missing.list("", &never()).await.unwrap_err(),
    ] {
        assert!(
            matches!(error, StoreError::RepositoryMissing { kind: "bucket", .. }),
            "{error:?}"
        );
        assert!(
            error.to_string().ends_with("the bucket does not exist"),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_nobody_serves_is_told_in_bounded_time() {
    let server = S3Server::start();
    let port = pgmahout_testkit::ports::Port::reserve();
    let nobody = S3Settings {
        endpoint: Some(format!("http://127.0.0.1:{}", port.number())),
        patience: Patience {
            retry: Duration::from_secs(2),
            ..bucket(&server).patience
        },
        ..bucket(&server)
    };
    let repository = Repository::open(settings(nobody)).await.unwrap();
    let started = Instant::now();
    let error = repository.check(&never()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    assert!(error.is_retryable() && error.hint().unwrap().contains("endpoint"));
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("refused"), "{cause}");
    let error = repository.put_bytes("a", "x", PutMode::Create).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    // Not a measure of speed: the default is minutes, and a bug would be for ever.
    assert!(started.elapsed() < Duration::from_mins(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_for_a_while_is_tried_again() {
    let server = S3Server::start();
    let repository = open(&server).await;
    for status in [500, 503, 429] {
        server.inject(Rule::new(Fault::Status(status)).times(3));
        repository
            .put_bytes(&format!("small-{status}"), "x", PutMode::Create)
            .await
            .unwrap();
    }
    let original = content(27 * MIB);
    server.inject(Rule::new(Fault::Status(503)).method("PUT").times(3));
    server.inject(
        Rule::new(Fault::Reset)
            .method("PUT")
            .containing("partNumber=2")
            .times(2),
    );
    server.inject(Rule::new(Fault::Status(500)).method("POST").times(2));
    write(&repository, "big", original.clone()).await.unwrap();
    server.inject(Rule::new(Fault::Status(503)).method("GET").times(3));
    server.inject(Rule::new(Fault::Reset).method("GET").times(2));
    assert!(read(&repository, "big").await.unwrap() == original);
    assert_eq!(
        open_uploads(&server) - 2,
        0,
        "two beginnings were refused: {:?}",
        server.requests()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_keeps_failing_is_told_and_nothing_is_left() {
    let server = S3Server::start();
    let impatient = S3Settings {
        patience: Patience {
            retry: Duration::from_secs(2),
            ..bucket(&server).patience
        },
        ..bucket(&server)
    };
    let repository = Repository::open(settings(impatient)).await.unwrap();
    server.inject(
        Rule::new(Fault::Status(503))
            .method("PUT")
            .containing("partNumber=2")
            .always(),
    );
    let error = write(&repository, "big", content(27 * MIB)).await.unwrap_err();
    // The server answers before it has read the part, so what is seen may be the broken connection.
    assert!(
        matches!(
            error,
            StoreError::Unavailable { .. } | StoreError::Unreachable { .. }
        ),
        "{error:?}"
    );
    assert!(error.is_retryable());
    let what = "cannot write big in repository offsite (s3://backups/pg/main): the storage ";
    assert!(error.to_string().starts_with(what), "{error}");
    assert_eq!(server.keys(), [""; 0]);
    assert_eq!(
        open_uploads(&server),
        0,
        "the parts were removed: {:?}",
        server.requests()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_or_stalls_is_gone_on_with() {
    let server = S3Server::start();
    let repository = open(&server).await;
    let original = content(13 * MIB);
    write(&repository, "big", original.clone()).await.unwrap();
    for fault in [
        Fault::CutBody { after: 0 },
        Fault::CutBody { after: 1_000_000 },
        Fault::StallBody { after: 300_000 },
        Fault::Stall,
    ] {
        server.inject(
            Rule::new(fault)
                .method("GET")
                .containing("/big")
                .after(1)
                .times(2),
        );
        assert!(read(&repository, "big").await.unwrap() == original, "{fault:?}");
        server.clear_faults();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_always_breaks_off_is_an_error_and_never_a_short_object() {
    let server = S3Server::start();
    let impatient = S3Settings {
        patience: Patience {
            retry: Duration::from_secs(2),
            ..bucket(&server).patience
        },
        ..bucket(&server)
    };
    let repository = Repository::open(settings(impatient)).await.unwrap();
    write(&repository, "big", content(6 * MIB)).await.unwrap();
    for fault in [Fault::CutBody { after: 0 }, Fault::StallBody { after: 0 }] {
        server.inject(Rule::new(fault).method("GET").containing("/big").always());
        let error = read(&repository, "big").await.unwrap_err();
        assert!(
            matches!(
                error_of(&error),
                StoreError::Unreachable { .. } | StoreError::Timeout { .. }
            ),
            "{error:?}"
        );
        server.clear_faults();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_replaced_while_it_is_read_is_found() {
    let server = S3Server::start();
    let repository = open(&server).await;
    write(&repository, "big", content(40 * MIB)).await.unwrap();
    let mut reader = repository.reader("big", &never()).await.unwrap();
    let mut reader = spawn_blocking(move || reader.read_exact(&mut [0; 100]).map(|()| reader))
        .await
        .unwrap()
        .unwrap();
    repository
        .put_bytes("big", content(39 * MIB), PutMode::Overwrite)
        .await
        .unwrap();
    let error = spawn_blocking(move || reader.read_to_end(&mut Vec::new()))
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(error_of(&error), StoreError::Changed { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_ends_a_stalled_upload_and_a_stalled_download() {
    let server = S3Server::start();
    let patient = S3Settings {
        patience: Patience {
            stall: Duration::from_mins(10),
            request: Duration::from_mins(10),
            ..bucket(&server).patience
        },
        ..bucket(&server)
    };
    let repository = Repository::open(settings(patient)).await.unwrap();
    write(&repository, "there", content(9 * MIB)).await.unwrap();

    let cancellation = CancellationToken::new();
    server.inject(
        Rule::new(Fault::Stall)
            .method("PUT")
            .containing("partNumber=")
            .always(),
    );
    let writer = repository
        .writer("big", PutMode::Create, &cancellation)
        .await
        .unwrap();
    let writing = spawn_blocking(move || write_all(writer, &content(100 * MIB), "big"));
    pgmahout_testkit::poll::until(Duration::from_secs(30), "a part is on its way", async || {
        server
            .requests()
            .iter()
            .any(|request| request.contains("/big?") && request.contains("partNumber="))
    })
    .await;
    cancellation.cancel();
    let error = writing.await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Cancelled { .. }), "{error:?}");
    assert_eq!(server.keys(), ["pg/main/there"]);
    server.clear_faults();

    let cancellation = CancellationToken::new();
    let mut reader = repository.reader("there", &cancellation).await.unwrap();
    server.inject(Rule::new(Fault::StallBody { after: 0 }).method("GET").always());
    let reading = spawn_blocking(move || reader.read_to_end(&mut Vec::new()));
    cancellation.cancel();
    let error = reading.await.unwrap().unwrap_err();
    assert!(
        matches!(error_of(&error), StoreError::Cancelled { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_sealed_object_is_found() {
    let server = S3Server::start();
    let encryption = EncryptionSettings::Passphrase(SecretReference::Literal("x".into()));
    let repository = Repository::open(RepositorySettings {
        encryption: Some(encryption),
        ..settings(bucket(&server))
    })
    .await
    .unwrap();
    let keyring = repository.keyring(&never()).await.unwrap().unwrap();
    let writer = repository.writer("a", PutMode::Create, &never()).await.unwrap();
    let ring = keyring.clone();
    spawn_blocking(move || {
        let mut sealer = Sealer::new(writer, &ring, &Context::object("dump", "a")).unwrap();
        sealer.write_all(&content(500_000)).unwrap();
        sealer.finish().unwrap().publish().unwrap();
    })
    .await
    .unwrap();
    let path = server.directory().join("pg/main/a");
    let whole = std::fs::read(&path).unwrap();
    for position in (0..whole.len()).step_by(50_021) {
        let mut damaged = whole.clone();
        damaged[position] ^= 0x20;
        std::fs::write(&path, &damaged).unwrap();
        let reader = repository.reader("a", &never()).await.unwrap();
        let ring = keyring.clone();
        let result = spawn_blocking(move || {
            let mut opener = Opener::new(reader, &ring, &Context::object("dump", "a"))?;
            opener.read_to_end(&mut Vec::new())
        });
        assert!(
            result.await.unwrap().is_err(),
            "the flip at {position} was not found"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_make_no_repository_are_told_when_it_is_opened() {
    let server = S3Server::start();
    for (wrong, says) in [
        (
            S3Settings {
                endpoint: Some("s3.example.org".into()),
                ..bucket(&server)
            },
            "the endpoint `s3.example.org` is no URL",
        ),
        (
            S3Settings {
                secret_key: None,
                ..bucket(&server)
            },
            "only one of access_key and secret_key is given",
        ),
        (
            S3Settings {
                ca_cert: Some("/nonexistent.pem".into()),
                ..bucket(&server)
            },
            "cannot read /nonexistent.pem",
        ),
    ] {
        let error = Repository::open(settings(wrong)).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.outcome().exit_code(), 2);
        assert!(error.hint().is_some());
    }
    let unset = SecretReference::Environment("PGMAHOUT_TEST_NEVER_SET".into());
    let error = Repository::open(settings(S3Settings {
        secret_key: Some(unset),
        ..bucket(&server)
    }))
    .await
    .unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Secret {
                what: "the secret key",
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_answer_was_lost_is_not_taken_for_somebody_elses() {
    let server = S3Server::start();
    let repository = open(&server).await;
    server.inject(Rule::new(Fault::LoseAnswer).method("PUT").times(2));
    repository
        .put_bytes("lock", "my nonce", PutMode::Create)
        .await
        .unwrap();
    assert_eq!(&repository.get_bytes("lock", 9).await.unwrap()[..], b"my nonce");
    // But what somebody else made stays theirs, also when our own request was lost before.
    server.inject(Rule::new(Fault::Reset).method("PUT"));
    let error = repository
        .put_bytes("lock", "another", PutMode::Create)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error:?}");
    assert_eq!(&repository.get_bytes("lock", 9).await.unwrap()[..], b"my nonce");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_completion_was_carried_out_unheard_is_complete() {
    let server = S3Server::start();
    let repository = open(&server).await;
    let original = content(17 * MIB);
    server.inject(
        Rule::new(Fault::LoseAnswer)
            .method("POST")
            .containing("uploadId="),
    );
    server.inject(
        Rule::new(Fault::LoseAnswer)
            .method("PUT")
            .containing("partNumber=1"),
    );
    write(&repository, "big", original.clone()).await.unwrap();
    assert!(read(&repository, "big").await.unwrap() == original);
}

#[tokio::test(flavor = "multi_thread")]
async fn creating_in_one_piece_and_in_parts_asks_the_server_to_refuse_what_exists() {
    let server = S3Server::start();
    let repository = open(&server).await;
    repository.put_bytes("small", "x", PutMode::Create).await.unwrap();
    write(&repository, "big", content(9 * MIB)).await.unwrap();
    repository
        .put_bytes("small", "y", PutMode::Overwrite)
        .await
        .unwrap();
    let conditions = |method: &str, target: &str| {
        let requests = server.recorded().into_iter();
        let matching = requests.filter(|request| request.method == method && request.target.contains(target));
        matching
            .map(|request| request.headers.get("if-none-match").cloned())
            .collect::<Vec<_>>()
    };
    assert_eq!(conditions("PUT", "/small"), [Some("*".to_owned()), None]);
    assert_eq!(conditions("POST", "uploadId="), [Some("*".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_key_is_never_printed() {
    let server = S3Server::start();
    let repository = open(&server).await;
    let printed = format!("{repository:?}");
    assert!(
        printed.contains("offsite") && !printed.contains(server.secret_key()),
        "{printed}"
    );
}
