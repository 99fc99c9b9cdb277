//! Authentication, facts of a connection, errors of one host.

use crate::{open, parameters, rendered};
use pgmahout_postgres::connection::{ConnectErrorKind, Connection};
use pgmahout_postgres::params::{AuthenticationMethod, ConnectionParameters, Environment};
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_types::diagnostic::Diagnose;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

#[tokio::test]
async fn a_connection_knows_its_server_by_tcp_and_socket() {
    for major in Major::all() {
        let server = Postgres::start(major).await;
        let socket = format!(
            "host={} port={} user=postgres",
            server.socket_dir().display(),
            server.port()
        );
        for dsn in [server.dsn("postgres"), socket] {
            let connection = open(&dsn).await.expect("connects");
            assert_eq!(connection.server_version().major(), major.number());
            let pid: i32 = connection
                .query_one("SELECT pg_backend_pid()", &[])
                .await
                .expect("answers")
                .get(0);
            assert_eq!(connection.backend_pid(), pid);
            assert_eq!(connection.authentication_method(), AuthenticationMethod::None);
            assert_eq!(connection.reported_parameter("in_hot_standby"), Some("off"));
            assert!(connection.tls().is_none());
            connection
                .batch_execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
                .await
                .expect("runs");
            let notices = connection.notices();
            assert_eq!(
                notices
                    .iter()
                    .map(|notice| notice.message.as_str())
                    .collect::<Vec<_>>(),
                ["hello"]
            );
            // What it was narrowed to leads back to the same server.
            let again = Connection::open(connection.parameters())
                .await
                .expect("connects again");
            again.close().await;
            connection.close().await;
        }
    }
}

#[tokio::test]
async fn a_running_statement_can_be_cancelled_from_outside() {
    for major in Major::all() {
        let server = Postgres::start(major).await;
        let connection = open(&server.dsn("postgres")).await.expect("connects");
        let cancel = connection.cancel_handle();
        let (result, ()) = tokio::join!(connection.batch_execute("SELECT pg_sleep(600)"), async {
            poll::until(Duration::from_secs(30), "the statement to run", async || {
                let query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'";
                server.query_text("postgres", query).await == "1"
            })
            .await;
            cancel.cancel().await.expect("delivered");
        });
        let error = result.expect_err("cancelled");
        assert_eq!(
            error.code().map(tokio_postgres::error::SqlState::code),
            Some("57014")
        );
        connection
            .batch_execute("SELECT 1")
            .await
            .expect("the session lives on");
    }
}

#[tokio::test]
async fn every_password_method_works_and_a_wrong_password_says_where_it_came_from() {
    for major in Major::all() {
        let server = Postgres::builder(major)
            .hba("host all md5_user 127.0.0.1/32 md5")
            .hba("host all scram_user 127.0.0.1/32 scram-sha-256")
            .hba("host all clear_user 127.0.0.1/32 password")
            .start()
            .await;
        server
            .sql(
                "postgres",
                "SET password_encryption = 'md5'; CREATE USER md5_user PASSWORD 'tulip-47'; \
                 SET password_encryption = 'scram-sha-256'; CREATE USER scram_user PASSWORD 'tulip-47'; \
                 CREATE USER clear_user PASSWORD 'tulip-47'",
            )
            .await;
        for (user, method) in [
            ("md5_user", AuthenticationMethod::Md5),
            ("scram_user", AuthenticationMethod::ScramSha256),
            ("clear_user", AuthenticationMethod::Password),
        ] {
            let connection = open(&server.dsn_as(user, Some("tulip-47"), "postgres"))
                .await
                .expect("connects");
            assert_eq!(connection.authentication_method(), method, "{user}");

            let wrong = open(&server.dsn_as(user, Some("rose-11"), "postgres"))
                .await
                .expect_err("refused");
            assert_eq!(
                (wrong.kind(), wrong.sqlstate()),
                (ConnectErrorKind::WrongPassword, Some("28P01"))
            );
            assert!(
                rendered(&wrong).contains("password authentication failed"),
                "{}",
                rendered(&wrong)
            );
            assert!(!rendered(&wrong).contains("rose-11"));
            assert!(wrong.hint().is_some_and(|hint| hint.contains("PGPASSWORD")));

            let missing = open(&server.dsn_as(user, None, "postgres"))
                .await
                .expect_err("refused");
            assert_eq!(missing.kind(), ConnectErrorKind::PasswordMissing);
            assert!(
                missing
                    .hint()
                    .is_some_and(|hint| hint.contains("/nonexistent/.pgpass")),
                "{:?}",
                missing.hint()
            );

            // A way of authentication that require_auth forbids sees no password.
            let other = if user == "scram_user" {
                "md5"
            } else {
                "scram-sha-256"
            };
            let dsn = format!(
                "{}?require_auth={other}",
                server.dsn_as(user, Some("tulip-47"), "postgres")
            );
            let forbidden = open(&dsn).await.expect_err("refused");
            assert_eq!(forbidden.kind(), ConnectErrorKind::AuthenticationNotAllowed);
        }
    }
}

#[tokio::test]
async fn the_password_file_is_used_and_one_that_others_can_read_is_not() {
    let server = Postgres::builder(Major::V18).password("tulip-47").start().await;
    let home = tempfile::tempdir().expect("temporary directory");
    let file = home.path().join(".pgpass");
    let environment =
        Environment::from_pairs([("HOME", home.path().display().to_string())]).with_os_user("postgres");
    let parameters =
        ConnectionParameters::from_dsn(&server.dsn_as("postgres", None, "postgres"), &environment)
            .expect("valid");
    let write = |content: &str, mode: u32| {
        std::fs::write(&file, content).expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("mode set");
    };
    let line = format!("127.0.0.1:{}:*:postgres:tulip-47\n", server.port());

    write(&line, 0o600);
    Connection::open(&parameters)
        .await
        .expect("connects")
        .close()
        .await;

    write(&line, 0o644);
    let ignored = Connection::open(&parameters).await.expect_err("refused");
    assert_eq!(ignored.kind(), ConnectErrorKind::PasswordMissing);
    assert!(
        rendered(&ignored).contains("is ignored: group or others may access it (mode 0644)"),
        "{}",
        rendered(&ignored)
    );
    assert_eq!(ignored.hint(), Some(format!("chmod 600 {}", file.display())));

    write(&line.replace("tulip", "rose"), 0o600);
    let wrong = Connection::open(&parameters).await.expect_err("refused");
    assert!(
        rendered(&wrong).contains(&format!("the password came from {}", file.display())),
        "{}",
        rendered(&wrong)
    );
}

#[tokio::test]
async fn each_refusal_of_the_server_has_its_kind_and_hint() {
    for major in Major::all() {
        let server = Postgres::builder(major)
            .setting("max_connections", "5")
            .setting("superuser_reserved_connections", "1")
            .hba("host all rejected 127.0.0.1/32 reject")
            .hba("host all peerless 127.0.0.1/32 ident")
            .start()
            .await;
        server
            .sql("postgres", "CREATE USER rejected; CREATE USER plain")
            .await;
        server.createdb("closed").await;
        server
            .sql("postgres", "REVOKE CONNECT ON DATABASE closed FROM public")
            .await;
        for (user, database, kind, sqlstate, hint) in [
            (
                "postgres",
                "shop",
                ConnectErrorKind::DatabaseMissing,
                "3D000",
                "createdb shop",
            ),
            (
                "nobody_here",
                "postgres",
                ConnectErrorKind::RoleMissing,
                "28000",
                "createuser --login nobody_here",
            ),
            (
                "rejected",
                "postgres",
                ConnectErrorKind::NotAdmitted,
                "28000",
                "pg_hba.conf",
            ),
            (
                "plain",
                "closed",
                ConnectErrorKind::NoPrivilege,
                "42501",
                "GRANT CONNECT",
            ),
        ] {
            let error = open(&server.dsn_as(user, None, database))
                .await
                .expect_err("refused");
            assert_eq!(
                (error.kind(), error.sqlstate()),
                (kind, Some(sqlstate)),
                "{}",
                rendered(&error)
            );
            assert!(
                error.hint().is_some_and(|text| text.contains(hint)),
                "{:?}",
                error.hint()
            );
            assert_eq!(
                error.to_string(),
                format!(
                    "cannot connect to {database} on 127.0.0.1:{} as {user}",
                    server.port()
                )
            );
            assert_eq!(error.attempts().len(), 1, "{}", rendered(&error));
        }
        let mut held = Vec::new();
        let error = loop {
            match open(&server.dsn_as("plain", None, "postgres")).await {
                Ok(connection) => held.push(connection),
                Err(error) => break error,
            }
            assert!(held.len() < 10, "the limit counts");
        };
        assert_eq!(
            error.kind(),
            ConnectErrorKind::TooManyClients,
            "{}",
            rendered(&error)
        );
        assert!(error.kind().is_transient());
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_from_one_that_is_silent() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = listener.local_addr().expect("bound").port();
    let error = open(&format!("host=127.0.0.1 port={silent} connect_timeout=1"))
        .await
        .expect_err("silent");
    assert_eq!(error.kind(), ConnectErrorKind::TimedOut);
    assert!(
        rendered(&error).contains("timed out after 1 s"),
        "{}",
        rendered(&error)
    );
    drop(listener);

    let error = open(&format!("host=127.0.0.1 port={silent}"))
        .await
        .expect_err("refused");
    assert_eq!(error.kind(), ConnectErrorKind::Refused);
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains(&format!("pg_isready -h 127.0.0.1 -p {silent}")))
    );

    let error = open("host=/nonexistent").await.expect_err("no socket");
    assert_eq!(error.kind(), ConnectErrorKind::SocketMissing);
    assert!(
        rendered(&error).contains("/nonexistent/.s.PGSQL.5432: no server socket there"),
        "{}",
        rendered(&error)
    );

    let error = open("host=no-such-name.invalid").await.expect_err("no name");
    assert_eq!(error.kind(), ConnectErrorKind::NameNotFound);
    assert_eq!(parameters("hostaddr=nonsense").hosts.len(), 1);
    assert_eq!(
        open("hostaddr=nonsense").await.expect_err("no address").kind(),
        ConnectErrorKind::NameNotFound
    );
}

#[tokio::test]
async fn what_does_not_speak_the_protocol_is_named_so() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let answer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .expect("sent");
    });
    let error = open(&format!("host=127.0.0.1 port={port}"))
        .await
        .expect_err("no server");
    assert!(
        rendered(&error).contains("does not speak PostgreSQL's protocol"),
        "{}",
        rendered(&error)
    );
    answer.await.expect("answered");
}

#[tokio::test]
async fn the_postmasters_user_can_be_required() {
    let server = Postgres::start(Major::V18).await;
    let dsn = |user: &str| {
        format!(
            "host={} port={} requirepeer={user}",
            server.socket_dir().display(),
            server.port()
        )
    };
    open(&dsn(&server.account().name)).await.expect("connects");
    let error = open(&dsn("somebody")).await.expect_err("refused");
    assert!(
        rendered(&error).contains("requirepeer asks for a server of user \"somebody\""),
        "{}",
        rendered(&error)
    );
}
