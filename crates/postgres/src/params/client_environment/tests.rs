use super::*;
use crate::params::{ConnectionOptions, Environment};
use std::collections::BTreeMap;

fn variables(dsn: &str) -> BTreeMap<String, Option<String>> {
    let environment = Environment::from_pairs([("PGPASSWORD", "stale")]).with_os_user("anna");
    let options = ConnectionOptions {
        dsn: Some(dsn.to_owned()),
        ..ConnectionOptions::default()
    };
    ConnectionParameters::resolve(&options, &environment)
        .expect("valid")
        .client_environment()
        .into_iter()
        .map(|(name, value)| {
            let text = |text: OsString| text.into_string().expect("text");
            (text(name), value.map(text))
        })
        .collect()
}

#[test]
fn a_child_gets_exactly_this_connection_and_nothing_of_the_users_environment() {
    let variables =
        variables("postgresql://bert:secret@a:1,b:2/shop?sslmode=require&target_session_attrs=primary");
    let get = |name: &str| variables.get(name).cloned().flatten();
    assert_eq!(get("PGHOST").as_deref(), Some("a,b"));
    assert_eq!(get("PGPORT").as_deref(), Some("1,2"));
    assert_eq!(get("PGUSER").as_deref(), Some("bert"));
    assert_eq!(get("PGDATABASE").as_deref(), Some("shop"));
    assert_eq!(get("PGPASSWORD").as_deref(), Some("secret"));
    assert_eq!(get("PGSSLMODE").as_deref(), Some("require"));
    assert_eq!(get("PGTARGETSESSIONATTRS").as_deref(), Some("primary"));
    for removed in [
        "PGSERVICE",
        "PGSERVICEFILE",
        "PGHOSTADDR",
        "PGREQUIRESSL",
        "PGOPTIONS",
        "PGSSLCERT",
        "PGPASSFILE",
    ] {
        assert_eq!(variables.get(removed), Some(&None), "{removed}");
    }
}

#[test]
fn the_address_that_was_reached_goes_along_with_the_name() {
    let variables = variables("host=db hostaddr=10.0.0.1");
    assert_eq!(variables["PGHOST"].as_deref(), Some("db"));
    assert_eq!(variables["PGHOSTADDR"].as_deref(), Some("10.0.0.1"));
}
