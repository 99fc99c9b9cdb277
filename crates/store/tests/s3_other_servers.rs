//! Servers that speak S3 in other ways: without conditional writes, with TLS, forgetful, full, or with an
//! error for everything. A small server in this file plays them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgmahout_config::secret::SecretReference;
use pgmahout_store::StoreError;
use pgmahout_store::codec::Codec;
use pgmahout_store::repository::{
    CreateOutcome, Patience, PutMode, Repository, RepositorySettings, S3Settings, StorageSettings,
};
use pgmahout_testkit::certificates::{Authority, Validity};
use pgmahout_types::diagnostic::Diagnose;
use rstest::rstest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

/// A request, as far as the servers here look at it.
struct Request {
    method: String,
    target: String,
    headers: String,
    body: Vec<u8>,
}

struct Response {
    status: &'static str,
    headers: &'static str,
    body: Vec<u8>,
}

impl Response {
    fn new(status: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: "",
            body: body.into(),
        }
    }

    fn error(status: &'static str, code: &str) -> Self {
        let message = format!("about {code}");
        Self::new(
            status,
            format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"),
        )
    }
}

type Objects = BTreeMap<String, Vec<u8>>;
type Behaviour = fn(&Request, &mut Objects) -> Option<Response>;

/// Starts a server that answers as `behaviour` says, and for the rest as a store in memory that takes every
/// write; gives its address. It ends with the test's process.
fn start(behaviour: Behaviour, tls: Option<Arc<rustls::ServerConfig>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = format!("{scheme}://{}", listener.local_addr().unwrap());
    let objects = Arc::new(Mutex::new(Objects::new()));
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let (objects, tls) = (Arc::clone(&objects), tls.clone());
            std::thread::spawn(move || match tls {
                None => serve(socket.try_clone().unwrap(), socket, behaviour, &objects),
                Some(configuration) => {
                    // One request per connection, so that reading and writing need no sharing.
                    let connection = rustls::ServerConnection::new(configuration).unwrap();
                    let mut stream = rustls::StreamOwned::new(connection, socket);
                    if let Some(request) = read_request(&mut BufReader::new(&mut stream)) {
                        let response = answer(&request, behaviour, &mut objects.lock().unwrap());
                        let _ = write_response(&mut stream, &request, &response, "close");
                        stream.conn.send_close_notify();
                        let _ = stream.flush();
                    }
                }
            });
        }
    });
    endpoint
}

fn serve(reading: impl Read, mut writing: impl Write, behaviour: Behaviour, objects: &Mutex<Objects>) {
    let mut reading = BufReader::new(reading);
    while let Some(request) = read_request(&mut reading) {
        let response = answer(&request, behaviour, &mut objects.lock().unwrap());
        if write_response(&mut writing, &request, &response, "keep-alive").is_err() {
            return;
        }
    }
}

fn read_request(reading: &mut impl BufRead) -> Option<Request> {
    let mut first = String::new();
    reading.read_line(&mut first).ok()?;
    let mut words = first.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = String::new();
    loop {
        let mut line = String::new();
        reading.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        headers.push_str(&line.to_ascii_lowercase());
    }
    let length = headers
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
    reading.read_exact(&mut body).ok()?;
    Some(Request {
        method,
        target,
        headers,
        body,
    })
}

fn write_response(
    writing: &mut impl Write,
    request: &Request,
    response: &Response,
    connection: &str,
) -> std::io::Result<()> {
    let Response {
        status,
        headers,
        body,
    } = response;
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\n{headers}connection: {connection}\r\ncontent-length: {length}\r\n\r\n");
    writing.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        writing.write_all(body)?;
    }
    writing.flush()
}

fn answer(request: &Request, behaviour: Behaviour, objects: &mut Objects) -> Response {
    if let Some(response) = behaviour(request, objects) {
        return response;
    }
    let path = request.target.split('?').next().unwrap().to_owned();
    match request.method.as_str() {
        "PUT" => {
            objects.insert(path, request.body.clone());
            let mut response = Response::new("200 OK", "");
            response.headers = "etag: \"x\"\r\n";
            response
        }
        "DELETE" => {
            objects.remove(&path);
            Response::new("204 No Content", "")
        }
        _ if request.target.contains("list-type=2") => Response::new(
            "200 OK",
            "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
        ),
        _ => match objects.get(&path) {
            None => Response::error("404 Not Found", "NoSuchKey"),
            Some(body) => {
                let mut response = Response::new("200 OK", body.clone());
                response.headers = "etag: \"x\"\r\nlast-modified: Mon, 20 Jan 2025 14:30:00 GMT\r\n";
                response
            }
        },
    }
}

fn settings(endpoint: String, ca_cert: Option<PathBuf>) -> RepositorySettings {
    let secret = || Some(SecretReference::Literal("key".into()));
    RepositorySettings {
        name: "other".to_owned(),
        storage: StorageSettings::S3(S3Settings {
            bucket: "backups".to_owned(),
            prefix: String::new(),
            endpoint: Some(endpoint),
            region: None,
            path_style: None,
            access_key: secret(),
            secret_key: secret(),
            session_token: None,
            ca_cert,
            patience: Patience {
                connect: Duration::from_secs(5),
                request: Duration::from_secs(10),
                stall: Duration::from_secs(5),
                retry: Duration::from_secs(2),
            },
        }),
        encryption: None,
        compression: Codec::default(),
        single_writer: false,
        bandwidth_limit: None,
    }
}

async fn open(behaviour: Behaviour) -> Repository {
    Repository::open(settings(start(behaviour, None), None))
        .await
        .unwrap()
}

fn never() -> CancellationToken {
    CancellationToken::new()
}

#[tokio::test]
async fn a_server_that_ignores_the_condition_is_found_out() {
    let repository = open(|_, _| None).await;
    assert!(!repository.supports_conditional_put().await.unwrap());
    let report = repository.check(&never()).await.unwrap();
    assert!(!report.conditional_put);
    assert_eq!(
        (report.creators, report.winners),
        (8, 8),
        "all were told that they won"
    );
}

#[tokio::test]
async fn a_server_without_conditions_still_does_not_overwrite_what_is_there() {
    let repository = open(|request, _| {
        let conditional = request.headers.contains("if-none-match");
        conditional.then(|| Response::error("501 Not Implemented", "NotImplemented"))
    })
    .await;
    assert!(!repository.supports_conditional_put().await.unwrap());
    repository.put_bytes("a", "first", PutMode::Create).await.unwrap();
    let error = repository
        .put_bytes("a", "second", PutMode::Create)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error:?}");
    assert_eq!(&repository.get_bytes("a", 9).await.unwrap()[..], b"first");
}

#[tokio::test]
async fn a_server_without_conditions_creates_once_only_for_a_single_writer() {
    let behaviour: Behaviour = |request, _| {
        let conditional = request.headers.contains("if-none-match");
        conditional.then(|| Response::error("501 Not Implemented", "NotImplemented"))
    };
    let repository = open(behaviour).await;
    let error = repository.create_once("head", "x").await.unwrap_err();
    assert!(matches!(error, StoreError::NotConditional { .. }), "{error:?}");
    assert_eq!(error.outcome().exit_code(), 3);
    assert!(error.hint().unwrap().contains("single_writer: true"));
    assert!(!repository.exists("head").await.unwrap() && !repository.is_single_writer());

    let promised = Repository::open(RepositorySettings {
        single_writer: true,
        ..settings(start(behaviour, None), None)
    })
    .await
    .unwrap();
    assert!(promised.is_single_writer());
    assert_eq!(
        promised.create_once("head", "x").await.unwrap(),
        CreateOutcome::Created
    );
    assert_eq!(
        promised.create_once("head", "y").await.unwrap(),
        CreateOutcome::AlreadyThere
    );
}

#[tokio::test]
async fn a_server_that_gives_back_something_else_does_not_pass_the_check() {
    let repository = open(|request, objects| {
        let stored = objects.get_mut(request.target.as_str())?;
        if request.method == "GET" && !stored.is_empty() {
            stored[0] ^= 1;
        }
        None
    })
    .await;
    let error = repository.check(&never()).await.unwrap_err();
    assert!(matches!(error, StoreError::ReadBackDiffers { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("does not keep what it is given"));
}

#[rstest]
#[case(
    "403 Forbidden",
    "AccessDenied",
    "permission denied",
    "the right to read, write, list and delete"
)]
#[case(
    "403 Forbidden",
    "SignatureDoesNotMatch",
    "the access key or its secret is not accepted",
    "secret_key"
)]
#[case(
    "403 Forbidden",
    "RequestTimeTooSkewed",
    "the clocks of this host and of the storage differ too much",
    "timedatectl"
)]
#[case(
    "301 Moved Permanently",
    "PermanentRedirect",
    "the bucket is in another region or at another address",
    "region"
)]
#[case(
    "400 Bad Request",
    "AuthorizationHeaderMalformed",
    "the bucket is in another region or at another address",
    "region"
)]
#[case(
    "507 Insufficient Storage",
    "XMinioStorageFull",
    "no space left",
    "free space"
)]
#[case(
    "404 Not Found",
    "NoSuchBucket",
    "the bucket does not exist",
    "create the bucket"
)]
#[case(
    "503 Service Unavailable",
    "SlowDown",
    "the storage keeps failing",
    "try again later"
)]
#[case(
    "500 Internal Server Error",
    "InternalError",
    "the storage keeps failing",
    "try again later"
)]
#[tokio::test]
async fn what_a_server_says_is_told_with_what_to_do(
    #[case] status: &'static str,
    #[case] code: &'static str,
    #[case] says: &str,
    #[case] hint: &str,
) {
    // A plain function cannot hold the case, so the server reads it from the object's name.
    let behaviour: Behaviour = |request, _| {
        let (_, case) = request.target.split_once("case/")?;
        let (status, code) = case.split_once('/')?;
        let code = code.split('?').next()?;
        let statuses = [
            "403 Forbidden",
            "301 Moved Permanently",
            "400 Bad Request",
            "507 Insufficient Storage",
            "404 Not Found",
            "503 Service Unavailable",
            "500 Internal Server Error",
        ];
        let status = statuses.into_iter().find(|known| known.starts_with(status))?;
        Some(Response::error(status, code))
    };
    let repository = open(behaviour).await;
    let name = format!("case/{}/{code}", &status[..3]);
    for error in [
        repository
            .put_bytes(&name, "x", PutMode::Create)
            .await
            .unwrap_err(),
        repository
            .put_bytes(&name, "x", PutMode::Overwrite)
            .await
            .unwrap_err(),
    ] {
        let expected = format!("cannot write {name} in repository other (s3://backups): {says}");
        assert_eq!(error.to_string(), expected, "{error:?}");
        assert!(error.hint().unwrap().contains(hint), "{error:?}");
        if let Some(source) = std::error::Error::source(&error) {
            // The client does not read what comes with a redirect.
            let redirect = status.starts_with('3');
            assert!(
                redirect || source.to_string() == format!("{code}: about {code}"),
                "{source}"
            );
            assert!(source.source().is_none(), "the chain says everything once");
        }
    }
}

#[tokio::test]
async fn a_storage_with_its_own_authority_is_trusted_when_it_is_given_and_refused_otherwise() {
    let authority = Authority::new("storage authority");
    let issued = authority.server("storage", &["127.0.0.1"], Validity::default());
    let chain = CertificateDer::pem_slice_iter(issued.certificate.as_bytes())
        .map(Result::unwrap)
        .collect();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let configuration = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let endpoint = start(|_, _| None, Some(Arc::new(configuration)));

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    std::fs::write(&path, authority.certificate()).unwrap();
    let repository = Repository::open(settings(endpoint.clone(), Some(path.clone())))
        .await
        .unwrap();
    repository.put_bytes("a", "x", PutMode::Overwrite).await.unwrap();
    assert_eq!(&repository.get_bytes("a", 9).await.unwrap()[..], b"x");

    let repository = Repository::open(settings(endpoint.clone(), None)).await.unwrap();
    let error = repository.check(&never()).await.unwrap_err();
    assert!(matches!(error, StoreError::Tls { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("ca_cert"), "{error:?}");
    let other = Authority::new("another authority");
    std::fs::write(&path, other.certificate()).unwrap();
    let repository = Repository::open(settings(endpoint, Some(path.clone())))
        .await
        .unwrap();
    let error = repository.check(&never()).await.unwrap_err();
    assert!(matches!(error, StoreError::Tls { .. }), "{error:?}");

    std::fs::write(&path, "no certificate").unwrap();
    let error = Repository::open(settings("https://127.0.0.1:1".into(), Some(path)))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("holds no certificates"), "{error}");
}

#[tokio::test]
async fn a_server_that_never_answers_a_question_is_told_in_bounded_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let mut settings = settings(endpoint, None);
    if let StorageSettings::S3(s3) = &mut settings.storage {
        s3.patience.request = Duration::from_secs(1);
    }
    let repository = Repository::open(settings).await.unwrap();
    let error = repository.check(&never()).await.unwrap_err();
    assert!(matches!(error, StoreError::Timeout { .. }), "{error:?}");
    assert!(error.is_retryable());
}
