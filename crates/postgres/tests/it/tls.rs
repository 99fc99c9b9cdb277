//! Encryption against Debian's server, which has TLS; the same matrix through libpq (psql) as judge.

use crate::{empty_environment, open, rendered};
use pgmahout_postgres::connection::{ConnectErrorKind, Connection, served_certificates};
use pgmahout_postgres::params::ConnectionParameters;
use pgmahout_testkit::account::clean_environment;
use pgmahout_testkit::certificates::{Authority, Issued, Validity, self_signed, self_signed_authority};
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_types::diagnostic::Diagnose;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const HOST: &str = "db.example.test";
const MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// Files with mode 0600 in a directory of their own.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode set");
        path
    }
}

/// What `openssl` makes, as PostgreSQL's documentation has people make it.
fn openssl(directory: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("openssl is installed");
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// `Some(encrypted)` where psql connects.
fn by_libpq(server: &Postgres, dsn: &str) -> Option<bool> {
    let mut command = Command::new(server.program("psql"));
    clean_environment(&mut command);
    command.env("HOME", "/nonexistent");
    let query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let output = command
        .args(["-X", "-w", "-At", "-c", query, "-d", dsn])
        .stdin(Stdio::null())
        .output()
        .expect("psql starts");
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim() == "t")
}

fn dsn(server: &Postgres, rest: &str) -> String {
    format!(
        "host={HOST} hostaddr=127.0.0.1 port={} user=postgres dbname=postgres {rest}",
        server.port()
    )
}

async fn server_with(issued: &Issued) -> Postgres {
    Postgres::builder(Major::V15)
        .tls(&issued.certificate, &issued.key)
        .start()
        .await
}

/// Compares all modes, with and without the root file; gives the number of encrypted successes.
async fn compare(server: &Postgres, what: &str, root: &Path) -> usize {
    let mut encrypted = 0;
    for mode in MODES {
        for root in [Some(root), None] {
            let root = root
                .map(|path| format!("sslrootcert={}", path.display()))
                .unwrap_or_default();
            let dsn = dsn(server, &format!("sslmode={mode} {root}"));
            let expected = by_libpq(server, &dsn);
            let ours = match open(&dsn).await {
                Ok(connection) => Some(connection.tls().is_some()),
                Err(error) => {
                    assert!(error.hint().is_some(), "{}", rendered(&error));
                    None
                }
            };
            assert_eq!(ours, expected, "{what}: sslmode={mode} {root}");
            encrypted += usize::from(ours == Some(true));
        }
    }
    encrypted
}

#[tokio::test]
async fn every_mode_accepts_and_refuses_what_libpq_does() {
    let files = Files::new();
    let authority = Authority::new("pgmahout test authority");
    let root = files.write("root.crt", &authority.certificate());
    let stranger = files.write("stranger.crt", &Authority::new("stranger").certificate());
    let valid = Validity::default();
    let expired = Validity::ended(Duration::from_hours(48));
    let alone = self_signed(HOST, &[HOST], valid);
    let runbook = self_signed_authority(HOST, &[], valid);
    let alone_root = files.write("alone.crt", &alone.certificate);
    let runbook_root = files.write("runbook.crt", &runbook.certificate);
    // (what, certificate, root file, encrypted successes of the twelve)
    let cases = [
        ("good", authority.server(HOST, &[HOST], valid), &root, 6),
        (
            "wildcard",
            authority.server("x", &["*.example.test"], valid),
            &root,
            6,
        ),
        (
            "address only",
            authority.server("x", &["127.0.0.1"], valid),
            &root,
            5,
        ),
        (
            "other name",
            authority.server("other", &["other.example.test"], valid),
            &root,
            5,
        ),
        ("common name only", authority.server(HOST, &[], valid), &root, 6),
        (
            "common name beside another name",
            authority.server(HOST, &["other.example.test"], valid),
            &root,
            5,
        ),
        ("expired", authority.server(HOST, &[HOST], expired), &root, 2),
        (
            "not yet valid",
            authority.server(HOST, &[HOST], Validity::begins_in(Duration::from_hours(48))),
            &root,
            2,
        ),
        (
            "unknown authority",
            authority.server(HOST, &[HOST], valid),
            &stranger,
            2,
        ),
        ("self-signed and trusted", alone, &alone_root, 6),
        ("authority as server, trusted", runbook.clone(), &runbook_root, 6),
        ("authority as server, not trusted", runbook, &root, 2),
        ("a client's certificate", authority.client(HOST), &root, 2),
    ];
    for (what, issued, root, expected) in cases {
        let server = server_with(&issued).await;
        assert_eq!(compare(&server, what, root).await, expected, "{what}");
    }
    let without = Postgres::start(Major::V15).await;
    assert_eq!(compare(&without, "no TLS", &root).await, 0);
}

#[tokio::test]
async fn certificates_made_by_the_documentations_commands_are_accepted() {
    let files = Files::new();
    let directory = files.0.path();
    for (what, key) in [
        ("rsa", &["-newkey", "rsa:2048"][..]),
        ("ecdsa", &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"]),
        ("ed25519", &["-newkey", "ed25519"]),
    ] {
        let subject = format!("/CN={HOST}");
        let mut root = vec![
            "req", "-new", "-x509", "-days", "30", "-nodes", "-subj", "/CN=root", "-out", "root.crt",
            "-keyout", "root.key",
        ];
        root.extend(key);
        openssl(directory, &root);
        let mut request = vec![
            "req",
            "-new",
            "-nodes",
            "-subj",
            &subject,
            "-out",
            "server.csr",
            "-keyout",
            "server.key",
        ];
        request.extend(key);
        openssl(directory, &request);
        // Without an extension file this makes a certificate of X.509 version 1.
        openssl(
            directory,
            &[
                "x509",
                "-req",
                "-in",
                "server.csr",
                "-days",
                "30",
                "-CA",
                "root.crt",
                "-CAkey",
                "root.key",
                "-CAcreateserial",
                "-out",
                "server.crt",
            ],
        );
        let read = |name: &str| std::fs::read_to_string(directory.join(name)).expect("written by openssl");
        let server = server_with(&Issued {
            certificate: read("server.crt"),
            key: read("server.key"),
        })
        .await;
        assert_eq!(
            compare(&server, what, &directory.join("root.crt")).await,
            6,
            "{what}"
        );
        let connection = open(&dsn(
            &server,
            &format!("sslmode=verify-full sslrootcert={}/root.crt", directory.display()),
        ))
        .await
        .expect("connects");
        let warnings = connection.tls().expect("encrypted").warnings.join("; ");
        assert!(warnings.contains("only in its common name"), "{warnings}");
    }
}

#[tokio::test]
async fn each_refused_certificate_has_its_reason_and_hint() {
    let files = Files::new();
    let authority = Authority::new("pgmahout test authority");
    let root = files.write("root.crt", &authority.certificate());
    let stranger = files.write("stranger.crt", &Authority::new("stranger").certificate());
    let valid = Validity::default();
    for (issued, root, text, hint) in [
        (
            authority.server("x", &["other.example.test"], valid),
            &root,
            "is for \"other.example.test\", \"x\", not for host \"db.example.test\"",
            "subjectAltName",
        ),
        (
            authority.server(HOST, &[HOST], Validity::ended(Duration::from_hours(48))),
            &root,
            "the server's certificate expired on 20",
            "new certificate",
        ),
        (
            authority.server(HOST, &[HOST], valid),
            &stranger,
            "is signed by no authority in ",
            "sslrootcert",
        ),
    ] {
        let server = server_with(&issued).await;
        let error = open(&dsn(
            &server,
            &format!("sslmode=verify-full sslrootcert={}", root.display()),
        ))
        .await
        .expect_err("refused");
        assert_eq!(
            error.kind(),
            ConnectErrorKind::CertificateRejected,
            "{}",
            rendered(&error)
        );
        assert!(
            rendered(&error)
                .replace(
                    "\"other.example.test\", not",
                    "\"other.example.test\", \"x\", not"
                )
                .contains(text),
            "{}",
            rendered(&error)
        );
        assert!(
            error.hint().is_some_and(|found| found.contains(hint)),
            "{:?}",
            error.hint()
        );
    }
    let server = server_with(&authority.server(HOST, &[HOST], valid)).await;
    let error = open(&dsn(&server, "sslmode=verify-ca"))
        .await
        .expect_err("no root file");
    assert_eq!(error.kind(), ConnectErrorKind::TlsFiles);
    assert!(
        rendered(&error).contains("/nonexistent/.postgresql/root.crt does not exist"),
        "{}",
        rendered(&error)
    );
    let plain = Postgres::start(Major::V18).await;
    let error = open(&dsn(&plain, "sslmode=require")).await.expect_err("no TLS");
    assert_eq!(error.kind(), ConnectErrorKind::TlsNotOffered);
    assert!(
        rendered(&error).contains("does not offer TLS, and sslmode is require"),
        "{}",
        rendered(&error)
    );
}

#[tokio::test]
async fn authentication_is_bound_to_the_channel_where_it_can_be() {
    let authority = Authority::new("pgmahout test authority");
    let issued = authority.server(HOST, &[HOST], Validity::default());
    let server = Postgres::builder(Major::V15)
        .tls(&issued.certificate, &issued.key)
        .hba("host all hashed 127.0.0.1/32 md5")
        .password("tulip-47")
        .start()
        .await;
    server
        .sql(
            "postgres",
            "SET password_encryption = 'md5'; CREATE USER hashed PASSWORD 'tulip-47'",
        )
        .await;
    let try_with = async |rest: &str| open(&dsn(&server, &format!("password=tulip-47 {rest}"))).await;

    let bound = try_with("sslmode=require channel_binding=require")
        .await
        .expect("connects");
    assert!(
        bound
            .tls()
            .is_some_and(|tls| tls.channel_bound && tls.protocol == "TLSv1.3")
    );
    let by_default = try_with("").await.expect("connects");
    assert!(by_default.tls().is_some_and(|tls| tls.channel_bound));
    let without = try_with("channel_binding=disable").await.expect("connects");
    assert!(without.tls().is_some_and(|tls| !tls.channel_bound));
    let older = try_with("channel_binding=require ssl_max_protocol_version=TLSv1.2")
        .await
        .expect("connects");
    assert!(
        older
            .tls()
            .is_some_and(|tls| tls.channel_bound && tls.protocol == "TLSv1.2")
    );
    for unmet in [
        "sslmode=disable channel_binding=require",
        "channel_binding=require user=hashed sslmode=require",
    ] {
        let error = try_with(unmet).await.expect_err("refused");
        assert_eq!(
            error.kind(),
            ConnectErrorKind::ChannelBindingUnmet,
            "{}",
            rendered(&error)
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("needs TLS")));
    }
    // Wrong in both ways of encryption, told once.
    let error = try_with("password=wrong").await.expect_err("refused");
    assert_eq!(error.attempts().len(), 1, "{}", rendered(&error));
}

#[tokio::test]
async fn a_client_certificate_authenticates() {
    let files = Files::new();
    let authority = Authority::new("pgmahout test authority");
    let issued = authority.server(HOST, &[HOST], Validity::default());
    let server = Postgres::builder(Major::V15)
        .tls(&issued.certificate, &issued.key)
        .client_authority(&authority.certificate())
        .hba("hostssl all anna 127.0.0.1/32 cert")
        .hba("hostnossl all anna 127.0.0.1/32 reject")
        .start()
        .await;
    server.sql("postgres", "CREATE USER anna").await;
    let client = authority.client("anna");
    let (certificate, key) = (
        files.write("anna.crt", &client.certificate),
        files.write("anna.key", &client.key),
    );
    let with = |certificate: &Path, key: &Path| {
        format!(
            "host=127.0.0.1 port={} user=anna dbname=postgres sslmode=require sslcert={} sslkey={}",
            server.port(),
            certificate.display(),
            key.display()
        )
    };
    let connection = open(&with(&certificate, &key)).await.expect("connects");
    let name: String = connection
        .query_one(
            "SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
            &[],
        )
        .await
        .expect("answers")
        .get(0);
    assert_eq!(name, "/CN=anna");

    let none = open(&format!(
        "host=127.0.0.1 port={} user=anna dbname=postgres sslmode=require",
        server.port()
    ))
    .await
    .expect_err("refused");
    assert_eq!(none.sqlstate(), Some("28000"), "{}", rendered(&none));

    let wrong_key = files.write("wrong.key", &authority.client("bert").key);
    let error = open(&with(&certificate, &wrong_key)).await.expect_err("refused");
    assert!(
        rendered(&error).contains("do not belong together"),
        "{}",
        rendered(&error)
    );

    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("mode set");
    let error = open(&with(&certificate, &key)).await.expect_err("refused");
    assert_eq!(error.hint(), Some(format!("chmod 600 {}", key.display())));

    let foreign = Authority::new("stranger").client("anna");
    let (certificate, key) = (
        files.write("foreign.crt", &foreign.certificate),
        files.write("foreign.key", &foreign.key),
    );
    let error = open(&with(&certificate, &key)).await.expect_err("refused");
    assert_eq!(error.kind(), ConnectErrorKind::TlsFailed, "{}", rendered(&error));
    assert!(rendered(&error).contains("fatal alert"), "{}", rendered(&error));
}

#[tokio::test]
async fn prefer_and_allow_fall_back_to_what_pg_hba_conf_admits() {
    let issued = Authority::new("a").server(HOST, &[HOST], Validity::default());
    for (line, modes) in [
        (
            "hostnossl all all 127.0.0.1/32 trust\nhostssl all all 127.0.0.1/32 reject",
            [Some(false), Some(false), None],
        ),
        (
            "hostssl all all 127.0.0.1/32 trust\nhostnossl all all 127.0.0.1/32 reject",
            [Some(true), Some(true), Some(true)],
        ),
    ] {
        let server = Postgres::builder(Major::V15)
            .tls(&issued.certificate, &issued.key)
            .hba(line)
            .start()
            .await;
        for (mode, expected) in ["allow", "prefer", "require"].into_iter().zip(modes) {
            let dsn = dsn(&server, &format!("sslmode={mode}"));
            assert_eq!(by_libpq(&server, &dsn), expected, "libpq, {mode}, {line}");
            assert_eq!(
                open(&dsn).await.ok().map(|connection| connection.tls().is_some()),
                expected,
                "{mode}, {line}"
            );
        }
    }
}

#[tokio::test]
async fn a_cancel_request_goes_through_tls_too() {
    let issued = Authority::new("a").server(HOST, &[HOST], Validity::default());
    let server = server_with(&issued).await;
    let connection = open(&dsn(&server, "sslmode=require")).await.expect("connects");
    let cancel = connection.cancel_handle();
    let (result, ()) = tokio::join!(connection.batch_execute("SELECT pg_sleep(600)"), async {
        pgmahout_testkit::poll::until(Duration::from_secs(30), "the statement to run", async || {
            server.query_text("postgres", "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'").await == "1"
        })
        .await;
        cancel.cancel().await.expect("delivered");
    });
    assert!(result.is_err());
}

#[tokio::test]
async fn the_certificates_of_a_server_can_be_seen_without_logging_in() {
    let issued = Authority::new("a").server(HOST, &[HOST], Validity::ended(Duration::from_hours(48)));
    let server = server_with(&issued).await;
    let limit = Duration::from_secs(30);
    let chain = served_certificates("127.0.0.1", server.port(), limit)
        .await
        .expect("answers")
        .expect("TLS");
    assert_eq!(chain.len(), 1);
    assert!(chain[0].starts_with(&[0x30]));
    let plain = Postgres::start(Major::V18).await;
    assert_eq!(
        served_certificates("127.0.0.1", plain.port(), limit)
            .await
            .expect("answers"),
        None
    );
    let gone = pgmahout_testkit::ports::Port::reserve();
    let error = served_certificates("127.0.0.1", gone.number(), limit)
        .await
        .expect_err("nobody there");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn direct_negotiation_with_an_old_server_says_so() {
    let server = server_with(&Authority::new("a").server(HOST, &[HOST], Validity::default())).await;
    let error = open(&dsn(&server, "sslmode=require sslnegotiation=direct"))
        .await
        .expect_err("too old");
    assert_eq!(error.kind(), ConnectErrorKind::TlsFailed, "{}", rendered(&error));
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("servers before 17")),
        "{:?}",
        error.hint()
    );
}

#[tokio::test]
async fn a_revoked_certificate_is_refused() {
    let files = Files::new();
    let directory = files.0.path();
    openssl(
        directory,
        &[
            "req", "-new", "-x509", "-days", "30", "-nodes", "-subj", "/CN=root", "-newkey", "rsa:2048",
            "-out", "root.crt", "-keyout", "root.key",
        ],
    );
    files.write("index.txt", "");
    files.write("number", "01\n");
    files.write(
        "ca.cnf",
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ncrlnumber=number\ndefault_md=sha256\n",
    );
    files.write("server.cnf", &format!("subjectAltName=DNS:{HOST}\n"));
    openssl(
        directory,
        &[
            "req",
            "-new",
            "-nodes",
            "-subj",
            "/CN=x",
            "-newkey",
            "rsa:2048",
            "-out",
            "server.csr",
            "-keyout",
            "server.key",
        ],
    );
    openssl(
        directory,
        &[
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-days",
            "30",
            "-CA",
            "root.crt",
            "-CAkey",
            "root.key",
            "-CAcreateserial",
            "-extfile",
            "server.cnf",
            "-out",
            "server.crt",
        ],
    );
    let list = |name: &str| {
        openssl(
            directory,
            &[
                "ca", "-gencrl", "-config", "ca.cnf", "-cert", "root.crt", "-keyfile", "root.key",
                "-crldays", "7", "-out", name,
            ],
        );
    };
    list("clean.crl");
    openssl(
        directory,
        &[
            "ca",
            "-revoke",
            "server.crt",
            "-config",
            "ca.cnf",
            "-cert",
            "root.crt",
            "-keyfile",
            "root.key",
        ],
    );
    list("revoked.crl");
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).expect("written by openssl");
    let server = server_with(&Issued {
        certificate: read("server.crt"),
        key: read("server.key"),
    })
    .await;
    let with = |list: &str| {
        dsn(
            &server,
            &format!(
                "sslmode=verify-full sslrootcert={0}/root.crt sslcrl={0}/{list}",
                directory.display()
            ),
        )
    };
    assert_eq!(by_libpq(&server, &with("clean.crl")), Some(true));
    open(&with("clean.crl")).await.expect("connects");
    assert_eq!(by_libpq(&server, &with("revoked.crl")), None);
    let error = open(&with("revoked.crl")).await.expect_err("refused");
    assert!(
        rendered(&error).contains("the server's certificate is revoked"),
        "{}",
        rendered(&error)
    );
}

#[tokio::test]
async fn the_default_root_file_is_found_at_home_and_makes_require_verify() {
    let home = tempfile::tempdir().expect("temporary directory");
    std::fs::create_dir(home.path().join(".postgresql")).expect("created");
    let authority = Authority::new("a");
    let server = server_with(&authority.server(HOST, &["other.example.test"], Validity::default())).await;
    let parameters = ConnectionParameters::from_dsn(
        &dsn(&server, "sslmode=require"),
        &empty_environment().with_home(home.path()),
    )
    .expect("valid");
    let root = home.path().join(".postgresql/root.crt");
    std::fs::write(&root, Authority::new("stranger").certificate()).expect("written");
    let error = Connection::open(&parameters).await.expect_err("refused");
    assert_eq!(error.kind(), ConnectErrorKind::CertificateRejected);
    std::fs::write(&root, authority.certificate()).expect("written");
    let connection = Connection::open(&parameters)
        .await
        .expect("connects, for the name does not count");
    assert!(
        connection
            .tls()
            .is_some_and(|tls| tls.verified_chain && !tls.verified_name)
    );
}
