//! Several hosts, and the kind of session that is wanted.

use crate::{open, parameters, rendered};
use pgmahout_postgres::connection::{ConnectErrorKind, Connection};
use pgmahout_postgres::control::{PgCtl, ServerControl};
use pgmahout_testkit::pgbouncer::PgBouncer;
use pgmahout_testkit::ports::Port;
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_types::diagnostic::Diagnose;
use std::collections::BTreeSet;
use std::time::Duration;

#[tokio::test]
async fn a_dead_first_host_is_passed_over() {
    let dead = Port::reserve();
    for major in Major::all() {
        let server = Postgres::start(major).await;
        let dsn = format!(
            "postgresql://postgres@127.0.0.1:{},127.0.0.1:{}/postgres",
            dead.number(),
            server.port()
        );
        let connection = open(&dsn).await.expect("connects");
        assert_eq!(connection.parameters().hosts.len(), 1);
        assert_eq!(connection.parameters().hosts[0].port, server.port());
    }
}

#[tokio::test]
async fn every_host_that_failed_is_told_once() {
    let (one, two) = (Port::reserve(), Port::reserve());
    let dsn = format!(
        "host=127.0.0.1,127.0.0.1,/nonexistent port={},{},5432 user=u dbname=d",
        one.number(),
        two.number()
    );
    let error = open(&dsn).await.expect_err("nobody there");
    assert_eq!(
        rendered(&error),
        format!(
            "cannot connect to d on 127.0.0.1:{0} or 127.0.0.1:{1} or /nonexistent:5432 as u\
             \n  caused by: 127.0.0.1:{0}: connection refused\
             \n  caused by: 127.0.0.1:{1}: connection refused\
             \n  caused by: /nonexistent/.s.PGSQL.5432: no server socket there",
            one.number(),
            two.number()
        )
    );
}

#[tokio::test]
async fn a_failed_authentication_ends_the_walk_as_in_libpq() {
    let first = Postgres::builder(Major::V18).password("tulip-47").start().await;
    let second = Postgres::start(Major::V18).await;
    let dsn = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres password=wrong",
        first.port(),
        second.port()
    );
    let error = open(&dsn).await.expect_err("refused");
    assert_eq!(error.kind(), ConnectErrorKind::WrongPassword);
    assert_eq!(error.attempts().len(), 1, "{}", rendered(&error));
}

#[tokio::test]
async fn the_wanted_kind_of_session_is_found_among_primary_and_standby() {
    for major in Major::all() {
        let primary = Postgres::start(major).await;
        let standby = primary.standby("two").start().await;
        let read_only = Postgres::builder(major)
            .setting("default_transaction_read_only", "on")
            .start()
            .await;
        let reach = async |wanted: &str, servers: &[&Postgres]| {
            let ports: Vec<String> = servers.iter().map(|server| server.port().to_string()).collect();
            let hosts = vec!["127.0.0.1"; ports.len()].join(",");
            let dsn = format!(
                "host={hosts} port={} user=postgres target_session_attrs={wanted}",
                ports.join(",")
            );
            Connection::open(&parameters(&dsn))
                .await
                .map(|connection| connection.parameters().hosts[0].port)
        };
        let (p, s, r) = (&primary, &standby, &read_only);
        for (wanted, servers, expected) in [
            ("any", [s, p, r], s),
            ("primary", [s, r, p], r),
            ("read-write", [s, r, p], p),
            ("read-only", [p, s, r], s),
            ("read-only", [p, r, s], r),
            ("standby", [p, r, s], s),
            ("prefer-standby", [p, r, s], s),
        ] {
            assert_eq!(
                reach(wanted, &servers).await.expect(wanted),
                expected.port(),
                "{wanted}"
            );
        }
        assert_eq!(
            reach("prefer-standby", &[p, r]).await.expect("falls back"),
            p.port()
        );

        let error = reach("standby", &[p, r]).await.expect_err("no standby");
        assert_eq!(error.kind(), ConnectErrorKind::TargetSessionUnmet);
        assert_eq!(
            error.attempts(),
            [p, r].map(|server| format!(
                "127.0.0.1:{}: the server is not in hot standby mode, and target_session_attrs is standby",
                server.port()
            ))
        );
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("target_session_attrs is standby"))
        );
        let error = reach("read-write", &[s]).await.expect_err("read-only");
        assert!(
            rendered(&error).contains("the session is read-only"),
            "{}",
            rendered(&error)
        );
    }
}

#[tokio::test]
async fn random_order_reaches_every_host() {
    let (one, two) = (
        Postgres::start(Major::V18).await,
        Postgres::start(Major::V18).await,
    );
    let dsn = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres load_balance_hosts=random",
        one.port(),
        two.port()
    );
    let mut reached = BTreeSet::new();
    // The chance that 60 fair choices are all the same is 2^-59.
    for _ in 0..60 {
        let connection = open(&dsn).await.expect("connects");
        reached.insert(connection.parameters().hosts[0].port);
    }
    assert_eq!(reached, BTreeSet::from([one.port(), two.port()]));
}

#[tokio::test]
async fn a_server_that_accepts_no_connections_yet_is_passed_over() {
    for major in Major::all() {
        let primary = Postgres::start(major).await;
        // A warm standby answers every connection with 57P03.
        let warm = primary.standby("warm").setting("hot_standby", "off").prepare();
        PgCtl::new(warm.bin_dir(), warm.data_dir())
            .start(Duration::from_mins(1))
            .await
            .expect("starts");
        let error = open(&warm.dsn("postgres")).await.expect_err("not accepting");
        assert_eq!(
            (error.kind(), error.sqlstate()),
            (ConnectErrorKind::NotAccepting, Some("57P03")),
            "{}",
            rendered(&error)
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("pg_isready")));
        let dsn = format!(
            "host=127.0.0.1,127.0.0.1 port={},{} user=postgres",
            warm.port(),
            primary.port()
        );
        let connection = open(&dsn).await.expect("goes on to the next host");
        assert_eq!(connection.parameters().hosts[0].port, primary.port());
    }
}

#[tokio::test]
async fn pgbouncer_and_its_console_can_be_talked_to() {
    let server = Postgres::start(Major::V18).await;
    let bouncer = PgBouncer::start(&server, &[]).await;
    let through = open(&bouncer.dsn("postgres")).await.expect("connects");
    assert_eq!(through.server_version().major(), 18);
    // target_session_attrs works where the proxy does not report the state of recovery.
    let dsn = format!("{}?target_session_attrs=primary", bouncer.dsn("postgres"));
    open(&dsn).await.expect("connects");
    let console = open(&bouncer.dsn("pgbouncer")).await.expect("connects");
    let rows = console.simple_query("SHOW VERSION").await.expect("answers");
    assert!(!rows.is_empty());
}
