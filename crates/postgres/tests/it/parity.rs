//! The same inputs to libpq (through psql) and to us must lead to the same place.

use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::params::{ConnectionOptions, ConnectionParameters, Environment};
use pgmahout_testkit::account::clean_environment;
use pgmahout_testkit::postgres::{Major, Postgres};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

const WHERE: &str = "SELECT current_user || ' ' || current_database() || ' ' || \
    coalesce(inet_server_addr()::text, 'socket') || ' ' || current_setting('port') || ' ' || \
    current_setting('application_name') || ' ' || current_setting('work_mem')";

struct Case {
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

fn case<Value: AsRef<str>>(arguments: &[&str], environment: &[(&'static str, Value)]) -> Case {
    Case {
        arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
        environment: environment
            .iter()
            .map(|(name, value)| (*name, value.as_ref().to_owned()))
            .collect(),
    }
}

/// No variable at all.
const NONE: &[(&str, &str)] = &[];

/// The usual place in the environment, and more.
fn based(port: &str, extra: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    let mut pairs = vec![
        ("PGHOST", "127.0.0.1".to_owned()),
        ("PGPORT", port.to_owned()),
        ("PGUSER", "anna".to_owned()),
    ];
    for (name, value) in extra {
        pairs.retain(|(present, _)| present != name);
        pairs.push((*name, (*value).to_owned()));
    }
    pairs
}

/// What psql says: where it came to, or nothing.
fn by_libpq(server: &Postgres, case: &Case) -> Option<String> {
    let mut command = Command::new(server.program("psql"));
    clean_environment(&mut command);
    for name in ["HOME", "PGAPPNAME", "PGSYSCONFDIR"] {
        command.env_remove(name);
    }
    command.envs(case.environment.iter().map(|(name, value)| (*name, value)));
    command
        .args(["-X", "-w", "-At", "-c", WHERE])
        .args(&case.arguments)
        .stdin(Stdio::null());
    let output = command.output().expect("psql starts");
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

async fn by_us(case: &Case) -> Option<String> {
    let mut options = ConnectionOptions::default();
    let mut words = case.arguments.iter();
    while let Some(flag) = words.next() {
        let value = words.next().cloned();
        match flag.as_str() {
            "-h" => options.host = value,
            "-p" => options.port = value,
            "-U" => options.user = value,
            "-d" => options.database = value,
            other => panic!("no option {other}"),
        }
    }
    let os_user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
    let environment = Environment::from_pairs(case.environment.iter().cloned()).with_os_user(os_user);
    let parameters = ConnectionParameters::resolve(&options, &environment).ok()?;
    // What psql would set itself.
    let parameters = match parameters.application_name {
        None => parameters.with_application_name("psql"),
        Some(_) => parameters,
    };
    let connection = Connection::open(&parameters).await.ok()?;
    Some(connection.query_one(WHERE, &[]).await.expect("answers").get(0))
}

#[tokio::test]
async fn the_same_inputs_lead_to_the_same_place_as_with_libpq() {
    for major in Major::all() {
        let server = Postgres::builder(major)
            .hba("host all secret 127.0.0.1/32 scram-sha-256")
            .start()
            .await;
        server
            .sql(
                "postgres",
                "CREATE USER anna; CREATE USER secret PASSWORD 'it''s:a\\pass'",
            )
            .await;
        for database in ["shop", "anna", "a b=c"] {
            server.createdb(database).await;
        }
        let home = tempfile::tempdir().expect("temporary directory");
        let in_home = |name: &str, content: &str, mode: u32| {
            let path = home.path().join(name);
            std::fs::write(&path, content).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode set");
            path.display().to_string()
        };
        let port = server.port().to_string();
        let socket = server.socket_dir().display().to_string();
        let encoded_socket = socket.replace('/', "%2F");
        let services = in_home(
            ".pg_service.conf",
            &format!(
                "# services\n[shop]\nhost=127.0.0.1\nport={port}\nuser=anna\ndbname=shop\napplication_name=service\n[half]\nport={port}\n[broken]\nnonsense=1\n"
            ),
            0o644,
        );
        let passwords = format!(
            "# passwords\n127.0.0.1:1:*:*:wrong\n127.0.0.1:{port}:shop:secret:it's\\:a\\\\pass\n*:*:*:other:x\n"
        );
        let pgpass = in_home("pgpass", &passwords, 0o600);
        let open_pgpass = in_home("open-pgpass", &passwords, 0o640);
        let home_path = home.path().display().to_string();

        let base = |extra: &[(&'static str, &str)]| based(&port, extra);
        let uri = |rest: &str| format!("postgresql://{rest}");
        let cases = [
            case(
                &["-h", "127.0.0.1", "-p", &port, "-U", "anna", "-d", "shop"],
                NONE,
            ),
            case(&[], &base(&[])),
            case(&["-d", "shop"], &base(&[("PGAPPNAME", "env")])),
            case(&["-U", "postgres"], &base(&[("PGDATABASE", "shop")])),
            case(&["-d", ""], &base(&[("PGDATABASE", "shop")])),
            case(&[], &base(&[("PGHOST", &socket)])),
            case(
                &["-d", "postgres"],
                &base(&[("PGHOST", ""), ("PGHOSTADDR", "127.0.0.1")]),
            ),
            case(&["-d", &format!("host={socket} port={port} user=anna")], NONE),
            case(
                &[
                    "-d",
                    &format!(
                        "port = '{port}' host=127.0.0.1 user=anna dbname = shop application_name='a b\\' c'"
                    ),
                ],
                NONE,
            ),
            case(
                &[
                    "-h",
                    "no-such.invalid",
                    "-p",
                    "1",
                    "-d",
                    &format!("host=127.0.0.1 port={port} user=anna"),
                ],
                NONE,
            ),
            case(
                &["-U", "postgres", "-d", &uri(&format!("127.0.0.1:{port}/shop"))],
                NONE,
            ),
            case(
                &[
                    "-d",
                    &uri(&format!(
                        "anna@127.0.0.1:{port}/shop?application_name=u%20ri&options=-c%20work_mem%3D1MB"
                    )),
                ],
                NONE,
            ),
            case(
                &["-d", &uri(&format!("anna@{encoded_socket}:{port}/a%20b%3Dc"))],
                NONE,
            ),
            case(&["-d", &uri(&format!("anna@:{port}/shop?host=127.0.0.1"))], NONE),
            case(
                &["-d", &uri(&format!("anna@127.0.0.1:1,127.0.0.1:{port}/shop"))],
                NONE,
            ),
            case(
                &["-d", &uri(&format!("anna@127.0.0.1,127.0.0.1:{port}/shop"))],
                &[("PGPORT", "2")],
            ),
            case(&["-d", &uri("/shop")], &base(&[])),
            case(
                &[
                    "-d",
                    &uri(&format!("anna@127.0.0.1:{port}/shop?sslmode=disable&bogus=1")),
                ],
                NONE,
            ),
            case(&["-d", &uri("anna@127.0.0.1:99999/shop")], NONE),
            case(&["-d", "dbname=shop"], &base(&[("PGOPTIONS", "-c work_mem=2MB")])),
            case(&["-d", "dbname='a b=c'"], &base(&[])),
            case(
                &["-d", "host='' dbname=shop"],
                &base(&[("PGHOSTADDR", "127.0.0.1")]),
            ),
            case(&["-d", "service=shop"], &[("PGSERVICEFILE", &services)]),
            case(&["-d", "service=shop user=postgres"], &[("HOME", &home_path)]),
            case(
                &[],
                &[
                    ("HOME", home_path.as_str()),
                    ("PGSERVICE", "shop"),
                    ("PGDATABASE", "postgres"),
                ],
            ),
            case(
                &["-d", "service=half"],
                &base(&[("HOME", &home_path), ("PGPORT", "1")]),
            ),
            case(
                &["-d", "service=half"],
                &[("PGSYSCONFDIR", home_path.as_str()), ("PGUSER", "anna")],
            ),
            case(&["-d", "service=broken"], &base(&[("HOME", &home_path)])),
            case(&["-d", "service=missing"], &base(&[("HOME", &home_path)])),
            case(
                &["-d", "user=secret dbname=shop"],
                &base(&[("PGPASSFILE", &pgpass)]),
            ),
            case(
                &["-d", "user=secret dbname=postgres"],
                &base(&[("PGPASSFILE", &pgpass)]),
            ),
            case(
                &["-d", "user=secret dbname=shop"],
                &base(&[("PGPASSFILE", &open_pgpass)]),
            ),
            case(
                &["-d", &format!("user=secret dbname=shop passfile={pgpass}")],
                &base(&[]),
            ),
            case(
                &["-d", "user=secret dbname=shop"],
                &base(&[("PGPASSWORD", "it's:a\\pass")]),
            ),
            case(
                &["-d", "user=secret dbname=shop password=wrong"],
                &base(&[("PGPASSFILE", &pgpass)]),
            ),
            case(
                &[
                    "-d",
                    &uri(&format!("secret:it's%3Aa%5Cpass@127.0.0.1:{port}/shop")),
                ],
                NONE,
            ),
            case(&["-d", "shop"], &base(&[("PGTARGETSESSIONATTRS", "standby")])),
            case(&["-d", "shop"], &base(&[("PGTARGETSESSIONATTRS", "primary")])),
            case(&["-d", "shop target_session_attrs=read-write"], &base(&[])),
            case(&["-d", "dbname=shop channel_binding=require"], &base(&[])),
            case(&["-d", "dbname=shop sslmode=require"], &base(&[])),
            case(&["-d", "dbname=shop sslmode=bogus"], &base(&[])),
            case(&["-d", "host=a,b hostaddr=127.0.0.1 dbname=shop"], &base(&[])),
            case(
                &[
                    "-d",
                    &format!("host=127.0.0.1,127.0.0.1 port={port},{port},1 dbname=shop"),
                ],
                &base(&[]),
            ),
        ];
        let mut reached = 0;
        for case in &cases {
            let expected = by_libpq(&server, case);
            reached += usize::from(expected.is_some());
            assert_eq!(
                by_us(case).await,
                expected,
                "{major:?} {:?} {:?}",
                case.arguments,
                case.environment
            );
        }
        // The matrix would prove nothing if most of it failed on both sides.
        assert!(reached >= 28, "{reached} of {} reached the server", cases.len());
    }
}

#[tokio::test]
async fn client_programs_are_led_to_the_same_place_by_the_environment() {
    let server = Postgres::builder(Major::V18).password("tulip-47").start().await;
    server.createdb("a b=c").await;
    let parameters = crate::parameters(&server.dsn("postgres"))
        .with_database("a b=c")
        .with_application_name("x");
    let connection = Connection::open(&parameters).await.expect("connects");
    let mut command = Command::new(server.program("psql"));
    command
        .env("PGHOSTADDR", "192.0.2.1")
        .env("PGSERVICE", "nowhere")
        .env("PGOPTIONS", "-c bogus=1");
    for (name, value) in connection.parameters().client_environment() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command
        .args([
            "-X",
            "-w",
            "-At",
            "-c",
            "SELECT current_database() || current_setting('application_name')",
        ])
        .output()
        .expect("psql starts");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "a b=cx",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
