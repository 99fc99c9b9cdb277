//! Our reading and writing of `pg_hba.conf`, judged by the server.

use crate::open;
use pgmahout_postgres::connection::ConnectErrorKind;
use pgmahout_postgres::hba::{ConnectionType, HbaAddress, HbaFile, HbaRule, HbaToken, HbaVerdict};
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use std::time::Duration;

const LINES: &str = r#"
local   all,"all"  "App User",+pg_monitor,@users   peer map=x
host    sameuser   all   10.1.2.3/16   scram-sha-256   # comment
host    all        all   10.1.0.0  255.255.0.0  md5
host    samerole,replication all ::1/128 \
        reject
host    "a,b"      "c""d" fe80::/10 password
hostnossl all      all   samenet  trust
host    all        all   .example.org  ident
"#;

#[tokio::test]
async fn our_reading_is_the_servers() {
    for major in Major::all() {
        let server = Postgres::start(major).await;
        std::fs::write(server.data_dir().join("users"), "anna, bert\n\"Carl C\" # no\n").expect("written");
        let mut lines = LINES.to_owned();
        if major.number() >= 16 {
            std::fs::write(
                server.data_dir().join("more.conf"),
                "host all /^x.*$ all reject\n",
            )
            .expect("written");
            lines.push_str("include more.conf\ninclude_if_exists missing.conf\n");
        }
        server.prepend_hba(&lines);
        let file = HbaFile::read(server.data_dir().join("pg_hba.conf")).expect("valid");
        let ours: Vec<String> = file
            .rules()
            .iter()
            .map(|(line, rule)| {
                let list = |tokens: &[HbaToken]| {
                    tokens
                        .iter()
                        .map(|token| token.text.clone())
                        .collect::<Vec<_>>()
                        .join(";")
                };
                let (address, mask) = match &rule.address {
                    None => (String::new(), String::new()),
                    Some(HbaAddress::Network { address, mask }) => (address.to_string(), mask.to_string()),
                    Some(HbaAddress::Host(name)) => (name.clone(), String::new()),
                    Some(other) => (other.to_string(), String::new()),
                };
                let options: Vec<String> = rule
                    .options
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                format!(
                    "{}|{}|{}|{}|{address}|{mask}|{}|{}",
                    line.number,
                    rule.connection.as_str(),
                    list(&rule.databases),
                    list(&rule.users),
                    rule.method,
                    options.join(";")
                )
            })
            .collect();
        let theirs = server
            .query_text(
                "postgres",
                "SELECT line_number, type, array_to_string(database, ';'), array_to_string(user_name, ';'), address, netmask, auth_method, array_to_string(options, ';') FROM pg_hba_file_rules WHERE error IS NULL",
            )
            .await;
        assert_eq!(
            server
                .query_text(
                    "postgres",
                    "SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL"
                )
                .await,
            "0"
        );
        assert_eq!(ours, theirs.lines().collect::<Vec<_>>(), "{major:?}");
    }
}

#[tokio::test]
async fn an_inserted_rule_decides_after_a_reload_as_first_match_says() {
    for major in Major::all() {
        let server = Postgres::start(major).await;
        server.sql("postgres", "CREATE USER \"odd, user\"").await;
        let path = server.data_dir().join("pg_hba.conf");
        let mut file = HbaFile::read(&path).expect("valid");
        let address = "127.0.0.1".parse().expect("an address");
        let method = |file: &HbaFile| match file.matches("odd, user", "postgres", Some(address), false) {
            HbaVerdict::Decided(_, rule) => rule.method.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(method(&file), "trust");
        let dsn = format!(
            "host=127.0.0.1 port={} user='odd, user' dbname=postgres",
            server.port()
        );
        open(&dsn).await.expect("admitted").close().await;

        let rule = HbaRule {
            connection: ConnectionType::Host,
            databases: vec![HbaToken::word("all")],
            users: vec![HbaToken::name("odd, user")],
            address: Some(HbaAddress::All),
            method: "reject".to_owned(),
            options: Vec::new(),
        };
        file.insert(file.first_rule_index(), rule.clone())
            .expect("inserted");
        assert_eq!(method(&file), "reject");
        let backup = file.save().expect("saved").backup.expect("kept");
        assert!(
            !std::fs::read_to_string(&backup)
                .expect("readable")
                .contains("odd, user")
        );
        server.reload().await;
        poll::until(Duration::from_secs(30), "the reload", async || {
            open(&dsn)
                .await
                .is_err_and(|error| error.kind() == ConnectErrorKind::NotAdmitted)
        })
        .await;

        assert_eq!(file.remove_rules(|present| *present == rule), 1);
        file.save().expect("saved");
        server.reload().await;
        poll::until(Duration::from_secs(30), "the reload", async || {
            open(&dsn).await.is_ok()
        })
        .await;
    }
}
