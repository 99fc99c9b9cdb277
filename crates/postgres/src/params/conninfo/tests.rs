use super::*;
use pgmahout_types::diagnostic::Diagnose;
use proptest::prelude::*;
use rstest::rstest;

#[rstest]
#[case("postgresql://", &[])]
#[case("postgres://anna@db/shop", &[("dbname", "shop"), ("host", "db"), ("user", "anna")])]
#[case("postgresql://anna:p%40ss@db:5433/shop?sslmode=verify-full",
    &[("dbname", "shop"), ("host", "db"), ("password", "p@ss"), ("port", "5433"), ("sslmode", "verify-full"), ("user", "anna")])]
#[case("postgresql://a:1,b,c:3/x", &[("dbname", "x"), ("host", "a,b,c"), ("port", "1,,3")])]
#[case("postgresql://[::1]:5433/x", &[("dbname", "x"), ("host", "::1"), ("port", "5433")])]
#[case("postgresql://[fe80::1],db/x", &[("dbname", "x"), ("host", "fe80::1,db"), ("port", ",")])]
#[case("postgresql://%2Frun%2Fpg/x", &[("dbname", "x"), ("host", "/run/pg")])]
#[case("postgresql:///x?host=/run/pg&port=1", &[("dbname", "x"), ("host", "/run/pg"), ("port", "1")])]
#[case("postgresql://db?user=anna&ssl=true", &[("host", "db"), ("sslmode", "require"), ("user", "anna")])]
#[case("postgresql://db/x%20y?options=-c%20work_mem%3D1MB",
    &[("dbname", "x y"), ("host", "db"), ("options", "-c work_mem=1MB")])]
#[case("postgresql://:5433", &[("port", "5433")])]
#[case("host=db port = 5433  dbname='my shop' password='it\\'s \\\\'",
    &[("dbname", "my shop"), ("host", "db"), ("password", "it's \\"), ("port", "5433")])]
#[case("host=''  user=a\\ b", &[("host", ""), ("user", "a b")])]
#[case("host=a host=b requiressl=1", &[("host", "b"), ("sslmode", "require")])]
fn connection_strings_are_read_as_libpq_reads_them(
    #[case] text: &str,
    #[case] expected: &[(&'static str, &str)],
) {
    let values = parse(text).expect("valid");
    let pairs: Vec<_> = values
        .pairs()
        .into_iter()
        .filter(|(name, value)| *name != "port" || !value.is_empty())
        .collect();
    assert_eq!(pairs, expected, "{text}");
}

#[rstest]
#[case(
    "postgresql://a:hunter2@db:1/x?bogus=1",
    "unknown connection option \"bogus\""
)]
#[case(
    "postgresql://a:hunter2%zz@db",
    "the connection URI is not valid: a \"%\" is not followed by two hexadecimal digits (write %25 for \"%\")"
)]
#[case(
    "postgresql://a:hunter2@[::1/x",
    "the connection URI is not valid: a \"[\" is never closed by \"]\""
)]
#[case(
    "postgresql://a:hunter2@[]/x",
    "the connection URI is not valid: the IPv6 address between \"[\" and \"]\" is empty"
)]
#[case(
    "postgresql://a:hunter2@[::1]x",
    "the connection URI is not valid: after \"]\" only \":\", \"/\", \"?\" or \",\" can follow"
)]
#[case(
    "postgresql://a:hunter2@db/x%00",
    "the connection URI is not valid: %00 is not allowed"
)]
#[case(
    "postgresql://a:hunter2@db/x?sslmode",
    "the connection URI is not valid: a query parameter has no \"=\""
)]
#[case("password=hunter2 host", "the connection string has no \"=\" after \"host\"")]
#[case(
    "password=hunter2 host='db",
    "a quoted value in the connection string never ends"
)]
fn wrong_strings_are_explained_without_the_password(#[case] text: &str, #[case] message: &str) {
    let error = parse(text).err().expect("refused");
    assert_eq!(error.to_string(), message);
    assert!(error.hint().is_some());
    assert!(!format!("{error:?} {}", error.hint().unwrap_or_default()).contains("hunter2"));
}

proptest! {
    #[test]
    fn any_value_survives_quoting(value in "\\PC{0,30}") {
        let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
        let values = parse(&format!("user = '{quoted}' host=db")).expect("valid");
        prop_assert_eq!(values.get("user"), Some(value.as_str()));
    }

    #[test]
    fn any_value_survives_percent_encoding(value in "[^\0]{1,30}") {
        let encoded: String = value.bytes().fold(String::new(), |text, byte| text + &format!("%{byte:02X}"));
        let values = parse(&format!("postgresql://{encoded}@db/{encoded}")).expect("valid");
        prop_assert_eq!(values.get("user"), Some(value.as_str()));
        prop_assert_eq!(values.get("dbname"), Some(value.as_str()));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC*") {
        let _ = parse(&text);
        let _ = parse(&format!("postgresql://{text}"));
    }
}
