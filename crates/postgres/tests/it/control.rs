//! `pg_ctl` on real servers.

use crate::open;
use pgmahout_postgres::binaries::{Binaries, Requirement};
use pgmahout_postgres::control::{ControlError, PgCtl, ServerControl, ServerStatus, StopMode};
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_types::diagnostic::Diagnose;
use std::time::Duration;

const LIMIT: Duration = Duration::from_mins(1);

#[tokio::test]
async fn a_server_is_started_reloaded_restarted_and_stopped() {
    for major in Major::all() {
        let server = Postgres::builder(major).prepare();
        let control = PgCtl::new(server.bin_dir(), server.data_dir());
        assert_eq!(control.status().await.expect("told"), ServerStatus::Stopped);
        assert!(matches!(
            control.reload().await,
            Err(ControlError::NotRunning { .. })
        ));
        control
            .stop(StopMode::Fast, LIMIT)
            .await
            .expect("stopped already");

        control.start(LIMIT).await.expect("starts");
        control.start(LIMIT).await.expect("runs already");
        let ServerStatus::Running { pid: Some(first) } = control.status().await.expect("told") else {
            panic!("it runs");
        };
        let connection = open(&server.dsn("postgres")).await.expect("accepts connections");
        assert!(
            control
                .log_tail(5)
                .await
                .expect("readable")
                .contains("ready to accept connections")
        );

        server.append_conf("work_mem = 5MB");
        control.reload().await.expect("reloads");
        pgmahout_testkit::poll::until(LIMIT, "the reload", async || {
            let row = connection.query_one("SHOW work_mem", &[]).await.expect("answers");
            row.get::<_, String>(0) == "5MB"
        })
        .await;

        // A session holds a smart stop up; the server keeps running.
        let error = control
            .stop(StopMode::Smart, Duration::from_secs(1))
            .await
            .expect_err("held up");
        assert!(
            matches!(
                error,
                ControlError::TimedOut {
                    operation: "stop",
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("fast")));
        connection.close().await;

        control.restart(StopMode::Fast, LIMIT).await.expect("restarts");
        let ServerStatus::Running { pid: Some(second) } = control.status().await.expect("told") else {
            panic!("it runs");
        };
        assert_ne!(first, second);
        control.stop(StopMode::Immediate, LIMIT).await.expect("stops");
        assert_eq!(control.status().await.expect("told"), ServerStatus::Stopped);
    }
}

#[tokio::test]
async fn a_standby_is_promoted_and_a_primary_is_not() {
    for major in Major::all() {
        let primary = Postgres::start(major).await;
        let standby = primary.standby("two").start().await;
        let control = PgCtl::new(standby.bin_dir(), standby.data_dir());
        control.promote(LIMIT).await.expect("promotes");
        assert_eq!(
            standby.query_text("postgres", "SELECT pg_is_in_recovery()").await,
            "f"
        );
        let error = control.promote(LIMIT).await.expect_err("a primary already");
        assert!(error.to_string().contains("not in standby mode"), "{error}");
    }
}

#[tokio::test]
async fn a_failed_start_shows_the_log_and_what_to_do() {
    for major in Major::all() {
        let server = Postgres::builder(major).setting("no_such_setting", "1").prepare();
        let control = PgCtl::new(server.bin_dir(), server.data_dir());
        let error = control.start(LIMIT).await.expect_err("a wrong setting");
        assert!(
            error
                .to_string()
                .contains("unrecognized configuration parameter \"no_such_setting\""),
            "{error}"
        );
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("setting that the log names")),
            "{:?}",
            error.hint()
        );
        assert_eq!(control.status().await.expect("told"), ServerStatus::Stopped);

        let running = Postgres::start(major).await;
        let blocked = Postgres::builder(major)
            .setting("port", &running.port().to_string())
            .prepare();
        let error = PgCtl::new(blocked.bin_dir(), blocked.data_dir())
            .start(LIMIT)
            .await
            .expect_err("the port is taken");
        assert!(error.to_string().contains("could not bind"), "{error}");
        assert!(
            error.hint().is_some_and(|hint| hint.contains("ss -ltnp")),
            "{:?}",
            error.hint()
        );
    }
}

#[tokio::test]
async fn what_is_no_data_directory_or_no_program_is_said() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Postgres::builder(Major::V18).prepare();
    let error = PgCtl::new(server.bin_dir(), directory.path())
        .status()
        .await
        .expect_err("empty");
    assert!(
        error.to_string().starts_with("there is no data directory"),
        "{error}"
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("SHOW data_directory"))
    );
    let error = PgCtl::new(directory.path(), server.data_dir())
        .status()
        .await
        .expect_err("no pg_ctl");
    assert!(
        error.hint().is_some_and(|hint| hint.contains("--bin-dir")),
        "{error}: {:?}",
        error.hint()
    );
}

#[test]
fn the_programs_of_every_version_are_found() {
    for major in Major::all() {
        let binary = Binaries::find(
            "pg_ctl",
            Requirement::Exactly(major.number()),
            Some(&major.bin_dir()),
        )
        .expect("found");
        assert_eq!(binary.version.major(), major.number());
        assert_eq!(binary.directory(), major.bin_dir().canonicalize().expect("there"));
    }
    let debian = Binaries::find("pg_dump", Requirement::AtLeast(15), None).expect("Debian's is installed");
    assert!(debian.version.major() >= 15);
}
