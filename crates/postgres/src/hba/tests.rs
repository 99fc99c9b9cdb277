use super::*;
use proptest::prelude::*;
use std::path::Path;

fn parse(text: &str) -> Result<HbaFile, HbaError> {
    HbaFile::parse(text, Path::new("/etc/x/pg_hba.conf"))
}

const FILE: &str = r#"# who may come
local   all             postgres                                peer
local   shop,"all"      "App User",+staff                       scram-sha-256
host    all             all             10.1.0.0/16             md5     # old
host    all             all             192.168.7.0 255.255.255.0  reject
hostssl sameuser        all             ::1/128                 cert    map=x "clientcert=verify-full"
hostnossl replication   rep             samenet                 trust
host    all             /^x             .example.org            ldap \
        ldapserver=a
"#;

#[test]
fn lines_are_read_as_the_server_reads_them() {
    let file = parse(FILE).expect("valid");
    let rules: Vec<String> = file
        .rules()
        .iter()
        .map(|(line, rule)| format!("{} {rule}", line.number))
        .collect();
    assert_eq!(
        rules,
        [
            "2 local all postgres peer",
            r#"3 local shop,"all" "App User",+staff scram-sha-256"#,
            "4 host all all 10.1.0.0/16 md5",
            "5 host all all 192.168.7.0/24 reject",
            "6 hostssl sameuser all ::1/128 cert map=x clientcert=verify-full",
            "7 hostnossl replication rep samenet trust",
            "8 host all /^x .example.org ldap ldapserver=a",
        ]
    );
    assert_eq!(file.text(), FILE);
}

#[test]
fn wrong_lines_are_named() {
    for (text, message) in [
        (
            "\nhots all all all trust",
            "/etc/x/pg_hba.conf, line 2: \"hots\" is no connection type",
        ),
        (
            "host all all",
            "/etc/x/pg_hba.conf, line 1: the line ends before the address",
        ),
        (
            "local all all",
            "/etc/x/pg_hba.conf, line 1: the line ends before the authentication method",
        ),
        (
            "host all all 10.0.0.1/33 md5",
            "/etc/x/pg_hba.conf, line 1: \"10.0.0.1/33\" has no valid mask",
        ),
        (
            "host all all db/8 md5",
            "/etc/x/pg_hba.conf, line 1: a mask can follow an address only, not \"db\"",
        ),
        (
            "host all all 10.0.0.1 ::1 md5",
            "/etc/x/pg_hba.conf, line 1: address and mask are of different kinds",
        ),
        (
            "local all all trusted",
            "/etc/x/pg_hba.conf, line 1: \"trusted\" is no authentication method",
        ),
        (
            "local all all peer map",
            "/etc/x/pg_hba.conf, line 1: the option \"map\" is not name=value",
        ),
    ] {
        let error = parse(text).expect_err("refused");
        assert_eq!(error.to_string(), message);
        assert!(error.hint().is_some());
    }
}

#[test]
fn the_first_line_that_matches_decides() {
    let file = parse(FILE).expect("valid");
    let line = |user: &str, database: &str, address: Option<&str>, tls: bool| {
        let address = address.map(|address| address.parse().expect("an address"));
        match file.matches(user, database, address, tls) {
            HbaVerdict::Decided(line, rule) => format!("{} {}", line.number, rule.method),
            HbaVerdict::NoMatch => "none".to_owned(),
            HbaVerdict::Unknown(line, why) => format!("{} unknown: {why}", line.number),
        }
    };
    assert_eq!(line("postgres", "x", None, false), "2 peer");
    assert_eq!(line("App User", "shop", None, false), "3 scram-sha-256");
    assert_eq!(line("App User", "all", None, false), "3 scram-sha-256");
    // In quotes "all" is a name, and no other database matches.
    assert_eq!(line("App User", "other", None, false), "none");
    assert_eq!(
        line("bert", "shop", None, false),
        "3 unknown: it depends on the roles that the user is a member of"
    );
    assert_eq!(line("bert", "shop", Some("10.1.255.9"), true), "4 md5");
    assert_eq!(line("bert", "shop", Some("192.168.7.200"), true), "5 reject");
    assert_eq!(line("bert", "bert", Some("::1"), true), "6 cert");
    assert_eq!(
        line("bert", "shop", Some("::1"), true),
        "8 unknown: it holds a regular expression, which only the server evaluates"
    );
    let staff = ["staff".to_owned()];
    let query = HbaQuery {
        user: "bert",
        database: "shop",
        client: HbaClient::Local,
        tls: false,
        replication: false,
        member_of: Some(&staff),
    };
    assert!(matches!(file.first_match(&query), HbaVerdict::Decided(line, _) if line.number == 3));
    let replication = HbaQuery {
        user: "postgres",
        replication: true,
        ..query
    };
    assert_eq!(file.first_match(&replication), HbaVerdict::NoMatch);
}

#[test]
fn files_named_with_at_and_include_are_followed() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("written");
    write("users", "anna bert\n# no\n\"Carl, C\"\n");
    write("extra.conf", "host all all all reject\n");
    write(
        "pg_hba.conf",
        "include_if_exists missing.conf\nlocal all @users,dora peer\ninclude extra.conf\n",
    );
    let file = HbaFile::read(directory.path().join("pg_hba.conf")).expect("valid");
    let rules: Vec<String> = file.rules().iter().map(|(_, rule)| rule.to_string()).collect();
    assert_eq!(
        rules,
        [
            r#"local all anna,bert,"Carl, C",dora peer"#,
            "host all all all reject"
        ]
    );
    write("extra.conf", "include pg_hba.conf\n");
    assert!(matches!(
        HbaFile::read(directory.path().join("pg_hba.conf")),
        Err(HbaError::Syntax { .. })
    ));
}

#[test]
fn rules_are_inserted_and_removed_line_by_line() {
    let mut file = parse(FILE).expect("valid");
    let rule = HbaRule {
        connection: ConnectionType::HostSsl,
        databases: vec![HbaToken::name("my \"shop\"")],
        users: vec![HbaToken::word("monitor")],
        address: Some(HbaAddress::Host("all".to_owned())),
        method: "scram-sha-256".to_owned(),
        options: Vec::new(),
    };
    // The host name "all" cannot be told from the keyword.
    assert!(matches!(
        file.insert(0, rule.clone()),
        Err(HbaError::Syntax { .. })
    ));
    let rule = HbaRule {
        address: Some(HbaAddress::All),
        ..rule
    };
    file.insert(file.first_rule_index(), rule.clone())
        .expect("inserted");
    assert_eq!(
        file.text(),
        FILE.replacen(
            "local",
            "hostssl \"my \"\"shop\"\"\" monitor all scram-sha-256\nlocal",
            1
        )
    );
    assert_eq!(file.remove_rules(|present| *present == rule), 1);
    assert_eq!(file.text(), FILE);
    assert!(matches!(file.remove(99), Err(HbaError::NoSuchLine { .. })));
}

fn token() -> impl Strategy<Value = HbaToken> {
    prop_oneof![
        "[a-z+][a-z0-9_]{0,8}".prop_map(HbaToken::word),
        "[^\n\r\0]{1,12}".prop_map(HbaToken::name),
    ]
}

fn address() -> impl Strategy<Value = HbaAddress> {
    prop_oneof![
        Just(HbaAddress::All),
        Just(HbaAddress::SameNet),
        (any::<u32>(), 0u32..=32).prop_map(|(address, length)| HbaAddress::Network {
            address: std::net::Ipv4Addr::from(address).into(),
            mask: std::net::Ipv4Addr::from(u32::MAX.checked_shl(32 - length).unwrap_or(0)).into(),
        }),
        (any::<u128>(), any::<u128>()).prop_map(|(address, mask)| HbaAddress::Network {
            address: std::net::Ipv6Addr::from(address).into(),
            mask: std::net::Ipv6Addr::from(mask).into(),
        }),
        "[a-z]{1,5}\\.org".prop_map(HbaAddress::Host),
    ]
}

proptest! {
    #[test]
    fn a_rule_that_is_written_reads_the_same(
        databases in proptest::collection::vec(token(), 1..4),
        users in proptest::collection::vec(token(), 1..4),
        address in address(),
        value in "[^\n\r\0\\\\]{0,12}",
    ) {
        let rule = HbaRule {
            connection: ConnectionType::Host,
            databases,
            users,
            address: Some(address),
            method: "ldap".to_owned(),
            options: vec![("ldapprefix".to_owned(), value)],
        };
        let file = parse(&format!("{rule}\n"));
        // A backslash at the very end of a line would continue it; insert() refuses such a rule.
        if !rule.to_string().ends_with('\\') {
            let file = file.expect("valid");
            prop_assert_eq!(file.rules()[0].1, &rule);
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC*") {
        let _ = parse(&text);
        let _ = parse(&format!("host all all {text}"));
    }

    #[test]
    fn text_is_kept_byte_for_byte(text in "(#[ a-z\"@,]{0,20}\n|local all all trust *\n|\n){0,9}") {
        prop_assert_eq!(parse(&text).expect("valid").text(), text);
    }
}
