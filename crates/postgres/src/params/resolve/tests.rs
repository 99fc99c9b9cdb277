use super::*;
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use proptest::prelude::*;
use std::path::Path;

fn environment(pairs: &[(&str, &str)]) -> Environment {
    Environment::from_pairs(pairs.iter().copied())
        .with_os_user("anna")
        .with_socket_directory("/sockets")
}

fn options(dsn: &str, host: &str, port: &str, user: &str, database: &str) -> ConnectionOptions {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    ConnectionOptions {
        dsn: given(dsn),
        host: given(host),
        port: given(port),
        user: given(user),
        database: given(database),
        service: None,
    }
}

fn described(options: &ConnectionOptions, pairs: &[(&str, &str)]) -> String {
    ConnectionParameters::resolve(options, &environment(pairs))
        .expect("valid")
        .describe()
}

#[test]
fn nothing_given_means_the_users_own_database_on_the_local_socket() {
    assert_eq!(
        described(&ConnectionOptions::default(), &[]),
        "anna on /sockets:5432 as anna"
    );
    assert_eq!(
        described(&ConnectionOptions::default(), &[("PGUSER", "bert")]),
        "bert on /sockets:5432 as bert"
    );
}

#[test]
fn the_stronger_source_wins() {
    let pairs = [
        ("PGHOST", "from-environment"),
        ("PGPORT", "1"),
        ("PGUSER", "env"),
        ("PGDATABASE", "env"),
    ];
    assert_eq!(
        described(&options("", "", "", "", ""), &pairs),
        "env on from-environment:1 as env"
    );
    assert_eq!(
        described(&options("host=dsn port=2", "", "", "", ""), &pairs),
        "env on dsn:2 as env"
    );
    assert_eq!(
        described(&options("host=dsn port=2", "option", "", "", ""), &pairs),
        "env on option:2 as env"
    );
    // psql's rule: a connection string in place of the database name beats the options.
    assert_eq!(
        described(
            &options("", "option", "3", "option", "postgresql://inner/shop"),
            &pairs
        ),
        "shop on inner:3 as option"
    );
    // An empty value in a string counts: it means the default, not the environment.
    assert_eq!(
        described(&options("host='' port=''", "", "", "", ""), &pairs),
        "env on /sockets:5432 as env"
    );
    // A URI without a host leaves the environment's.
    assert_eq!(
        described(&options("postgresql:///x", "", "", "", ""), &pairs),
        "x on from-environment:1 as env"
    );
}

#[test]
fn services_stand_between_what_is_given_and_the_environment() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("services");
    std::fs::write(&file, "[shop]\nhost=from-service\nport=7\nuser=service\n").expect("written");
    let file = file.display().to_string();
    let pairs = [
        ("PGSERVICEFILE", file.as_str()),
        ("PGSERVICE", "shop"),
        ("PGHOST", "env"),
        ("PGDATABASE", "env"),
    ];
    assert_eq!(
        described(&options("", "", "8", "", ""), &pairs),
        "env on from-service:8 as service"
    );

    let missing = options("service=nowhere", "", "", "", "");
    let error = ConnectionParameters::resolve(&missing, &environment(&pairs[..1])).expect_err("undefined");
    assert_eq!(error.to_string(), "no definition of service \"nowhere\" found");
    assert!(
        error.hint().is_some_and(|hint| hint.contains(&file)),
        "{:?}",
        error.hint()
    );
    assert_eq!(error.outcome(), Outcome::Usage);
}

#[test]
fn a_service_file_is_looked_for_at_home_and_then_in_the_systems_directory() {
    let home = tempfile::tempdir().expect("temporary directory");
    let system = tempfile::tempdir().expect("temporary directory");
    std::fs::write(home.path().join(".pg_service.conf"), "[a]\nhost=home\n").expect("written");
    std::fs::write(
        system.path().join("pg_service.conf"),
        "[a]\nhost=system\n[b]\nhost=system\n",
    )
    .expect("written");
    let (home, system) = (
        home.path().display().to_string(),
        system.path().display().to_string(),
    );
    let pairs = [("HOME", home.as_str()), ("PGSYSCONFDIR", system.as_str())];
    assert_eq!(
        described(&options("service=a", "", "", "", ""), &pairs),
        "anna on home:5432 as anna"
    );
    assert_eq!(
        described(&options("service=b", "", "", "", ""), &pairs),
        "anna on system:5432 as anna"
    );
}

#[test]
fn hosts_addresses_and_ports_are_matched_up() {
    let hosts = |dsn: &str| {
        ConnectionParameters::from_dsn(dsn, &environment(&[])).map(|parameters| {
            parameters
                .hosts
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(hosts("host=a,b port=1").expect("valid"), ["a:1", "b:1"]);
    assert_eq!(
        hosts("host=a,,/x port=1,,3").expect("valid"),
        ["a:1", "/sockets:5432", "/x:3"]
    );
    assert_eq!(
        hosts("hostaddr=10.0.0.1,::1").expect("valid"),
        ["10.0.0.1:5432", "[::1]:5432"]
    );
    let named =
        ConnectionParameters::from_dsn("host=db hostaddr=10.0.0.1", &environment(&[])).expect("valid");
    let expected = HostTarget::Address {
        name: Some("db".to_owned()),
        address: "10.0.0.1".to_owned(),
    };
    assert_eq!(named.hosts[0].target, expected);
    assert_eq!(
        hosts("host=a,b,c port=1,2").expect_err("mismatch").to_string(),
        "2 port numbers do not match 3 hosts"
    );
    assert_eq!(
        hosts("host=a,b hostaddr=10.0.0.1")
            .expect_err("mismatch")
            .to_string(),
        "2 host names do not match 1 hostaddr values"
    );
    for port in ["0", "65536", "x", "-1"] {
        assert_eq!(
            hosts(&format!("port={port}")).expect_err("no port").to_string(),
            format!("invalid value \"{port}\" for connection option \"port\"")
        );
    }
}

#[test]
fn every_wrong_value_names_its_option_and_the_allowed_ones() {
    for (name, value) in [
        ("sslmode", "yes"),
        ("sslnegotiation", "fast"),
        ("channel_binding", "on"),
        ("target_session_attrs", "master"),
        ("load_balance_hosts", "1"),
        ("connect_timeout", "soon"),
        ("ssl_max_protocol_version", "SSLv3"),
        ("require_auth", "md5,!none"),
        ("require_auth", "md5,md5"),
        ("gssencmode", "maybe"),
    ] {
        let error = ConnectionParameters::from_dsn(&format!("{name}={value}"), &environment(&[]))
            .expect_err("refused");
        assert_eq!(
            error.to_string(),
            format!("invalid value \"{value}\" for connection option \"{name}\"")
        );
        assert!(error.hint().is_some_and(|hint| hint.starts_with("allowed: ")));
    }
}

#[test]
fn what_is_left_out_is_refused_where_ignoring_it_would_weaken_security() {
    let error = ConnectionParameters::from_dsn("gssencmode=require", &environment(&[])).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "connection option \"gssencmode\" is not supported: GSSAPI encryption is left out of this client"
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("sslmode=verify-full"))
    );
    assert!(ConnectionParameters::from_dsn("gssencmode=prefer", &environment(&[])).is_ok());
}

#[test]
fn tls_parameters_follow_libpq() {
    let resolve = |dsn: &str| ConnectionParameters::from_dsn(dsn, &environment(&[("HOME", "/home/anna")]));
    let tls = resolve("").expect("valid").tls;
    assert_eq!(tls.mode, SslMode::Prefer);
    assert_eq!(
        tls.root_certificate,
        RootCertificate::File("/home/anna/.postgresql/root.crt".into())
    );
    assert_eq!(
        tls.certificate.as_deref(),
        Some(Path::new("/home/anna/.postgresql/postgresql.crt"))
    );
    assert_eq!(
        resolve("sslrootcert=system").expect("valid").tls.mode,
        SslMode::VerifyFull
    );
    assert_eq!(
        resolve("sslrootcert=system sslmode=require")
            .expect_err("weak")
            .to_string(),
        "sslmode=require is too weak for sslrootcert=system"
    );
    assert_eq!(
        resolve("sslnegotiation=direct").expect_err("weak").to_string(),
        "sslmode=prefer is too weak for sslnegotiation=direct"
    );
    let legacy = ConnectionParameters::from_dsn("", &environment(&[("PGREQUIRESSL", "1")])).expect("valid");
    assert_eq!(legacy.tls.mode, SslMode::Require);
}

#[test]
fn variations_of_parameters_change_nothing_else() {
    let parameters =
        ConnectionParameters::from_dsn("host=db dbname=shop options='-c a=1'", &environment(&[]))
            .expect("valid");
    // A name that looks like a connection string is a name.
    assert_eq!(
        parameters.with_database("a=b").describe(),
        "a=b on db:5432 as anna"
    );
    assert_eq!(
        parameters.with_options_appended("-c b=2").options.as_deref(),
        Some("-c a=1 -c b=2")
    );
    assert_eq!(
        parameters.with_application_name("x").application_name.as_deref(),
        Some("x")
    );
    assert!(!parameters.is_local());
    for local in [
        "",
        "host=localhost",
        "host=127.0.0.1",
        "host=::1",
        "hostaddr=127.9.9.9",
    ] {
        assert!(
            ConnectionParameters::from_dsn(local, &environment(&[]))
                .expect("valid")
                .is_local(),
            "{local}"
        );
    }
}

#[test]
fn no_output_shows_the_password() {
    let parameters = ConnectionParameters::from_dsn("postgresql://anna:hunter2@db/shop", &environment(&[]))
        .expect("valid");
    assert!(!format!("{parameters:?} {}", parameters.describe()).contains("hunter2"));
}

proptest! {
    #[test]
    fn no_options_make_resolving_panic(dsn in "\\PC*", host in "\\PC{0,9}", port in "[0-9,]{0,9}", database in "\\PC{0,9}") {
        let _ = ConnectionParameters::resolve(&options(&dsn, &host, &port, "", &database), &environment(&[]));
    }
}
