//! What is refused before anything is done.

use pgmahout_backup::physical::create::{CreateError, CreateRequest};
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use rstest::rstest;

use crate::support::{Bench, chain, request};

async fn refused(bench: &Bench, request: &CreateRequest) -> (String, String, Outcome) {
    let error = bench.try_backup(request).await.expect_err("it is refused");
    assert!(
        matches!(error, CreateError::Preflight { .. }),
        "{}",
        chain(&error)
    );
    assert_eq!(bench.objects("lease").await, Vec::<String>::new());
    (chain(&error), error.hint().expect("a hint"), error.outcome())
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_archive_is_refused(#[values(Major::V15, Major::V18)] major: Major) {
    let bench = Bench::with(major, |builder| {
        builder
            .setting("archive_mode", "off")
            .setting("wal_level", "minimal")
            .setting("max_wal_senders", "0")
    })
    .await;
    let (text, hint, outcome) = refused(&bench, &bench.request()).await;
    assert!(text.contains("archive_mode is off"), "{text}");
    assert!(text.contains("wal_level is minimal"), "{text}");
    assert!(hint.contains("pgmahout wal enable"), "{hint}");
    assert_eq!(outcome, Outcome::Refused);
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_missing_are_named_and_those_named_are_enough(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let bench = Bench::new(major).await;
    bench.server.sql("postgres", "CREATE ROLE keeper LOGIN").await;
    let with_role = |role: &str| {
        let mut request = bench.request();
        request.connection = crate::support::connection(&bench.server.dsn_as(role, None, "postgres"));
        request
    };
    let (text, hint, _) = refused(&bench, &with_role("keeper")).await;
    assert!(text.contains("pg_backup_start"), "{text}");
    assert!(text.contains("the data directory is not known"), "{text}");
    let grants: Vec<&str> = hint
        .lines()
        .filter_map(|line| line.split("GRANT ").nth(1))
        .collect();
    assert_eq!(grants.len(), 2, "{hint}");
    for grant in grants {
        bench.server.sql("postgres", &format!("GRANT {grant}")).await;
    }
    bench
        .try_backup(&with_role("keeper"))
        .await
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_directory_than_the_servers_is_refused() {
    let bench = Bench::new(Major::V18).await;
    // The same system identifier: both were copied from one cluster.
    let other = Postgres::builder(Major::V18).data_checksums(true).start().await;
    for (directory, expected) in [
        (other.data_dir().to_owned(), "is the directory of another server"),
        (other.root_dir().to_owned(), "cannot read"),
    ] {
        let request = CreateRequest {
            data_dir: Some(directory),
            ..bench.request()
        };
        let (text, ..) = refused(&bench, &request).await;
        assert!(text.contains(expected), "{text}");
    }
    let stranger = Postgres::builder(Major::V18).own_system_identifier().prepare();
    let request = CreateRequest {
        data_dir: Some(stranger.data_dir().to_owned()),
        ..bench.request()
    };
    let (text, ..) = refused(&bench, &request).await;
    assert!(text.contains("system identifier"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_than_the_stanzas_is_refused() {
    let bench = Bench::new(Major::V18).await;
    let stranger = Postgres::builder(Major::V18)
        .own_system_identifier()
        .archive_to("archive")
        .start()
        .await;
    let error = bench
        .try_backup(&request(&stranger))
        .await
        .expect_err("another cluster");
    assert_eq!(error.outcome(), Outcome::Refused);
    let own = crate::support::control(&stranger).system_identifier.to_string();
    assert!(chain(&error).contains(&own), "{}", chain(&error));
    assert_eq!(bench.objects("lease").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_is_no_standby() {
    let bench = Bench::new(Major::V15).await;
    let request = CreateRequest {
        from_standby: true,
        ..bench.request()
    };
    let (text, ..) = refused(&bench, &request).await;
    assert!(text.contains("the server is no standby"), "{text}");
}
