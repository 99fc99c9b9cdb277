//! The house: which crate may know which. Arrows run strictly downward (docs/ARCHITECTURE.md).

use serde_json::Value;

/// A package of the workspace and the names of what it depends on.
#[derive(Debug, Default)]
pub(super) struct Package {
    pub(super) name: String,
    /// Normal and build dependencies.
    pub(super) normal: Vec<String>,
    pub(super) dev: Vec<String>,
}

const BINARY: &str = "pgmahout";
const TESTKIT: &str = "pgmahout-testkit";
const XTASK: &str = "xtask";
const HA: &str = "pgmahout-ha";
const AGENT: &str = "pgmahout-agent";

/// From the ground up. Crates on one level do not know each other.
const LEVELS: [&[&str]; 7] = [
    &["pgmahout-types"],
    &["pgmahout-durable", HA],
    &["pgmahout-config"],
    &[
        "pgmahout-postgres",
        "pgmahout-dcs",
        "pgmahout-history",
        "pgmahout-store",
    ],
    &["pgmahout-procedure"],
    &[
        AGENT,
        "pgmahout-monitor",
        "pgmahout-backup",
        "pgmahout-doctor",
        "pgmahout-cluster",
        "pgmahout-security",
    ],
    &[BINARY],
];

/// Crates that see the world only through their arguments, and what would give them another sight of it. (jiff's
/// values are welcome; its clocks are refused by the `clippy.toml` of these crates.)
const PURE: [&str; 2] = ["pgmahout-types", HA];
const IMPURE: [&str; 8] = [
    "tokio",
    "tokio-postgres",
    "futures",
    "rand",
    "getrandom",
    "rustix",
    "libc",
    "object_store",
];

/// Reads the packages out of `cargo metadata --no-deps`.
pub(super) fn packages(metadata: &Value) -> Vec<Package> {
    let list = metadata["packages"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    list.iter()
        .map(|package| {
            let mut result = Package {
                name: text(&package["name"]),
                ..Package::default()
            };
            for dependency in package["dependencies"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default()
            {
                let name = text(&dependency["name"]);
                if dependency["kind"].as_str() == Some("dev") {
                    result.dev.push(name);
                } else {
                    result.normal.push(name);
                }
            }
            result
        })
        .collect()
}

/// Every arrow that breaks a rule, with both names and the rule.
pub(super) fn check(packages: &[Package]) -> Vec<String> {
    let ours = |name: &str| packages.iter().any(|package| package.name == name);
    let mut problems = Vec::new();
    for package in packages {
        let from = package.name.as_str();
        if level(from).is_none() && from != TESTKIT && from != XTASK {
            problems.push(format!(
                "{from} has no place in the house: give it a level in xtask/src/lint/direction.rs and \
                 a line in docs/ARCHITECTURE.md"
            ));
            continue;
        }
        let normal = package.normal.iter().map(|to| (to.as_str(), false));
        let dev = package.dev.iter().map(|to| (to.as_str(), true));
        for (to, dev) in normal.chain(dev) {
            let rule = if ours(to) {
                arrow(from, to, dev)
            } else {
                foreign(from, to, dev)
            };
            if let Some(rule) = rule {
                problems.push(format!("{from} -> {to}: {rule}"));
            }
        }
    }
    problems
}

/// The rule that an arrow between two of our crates breaks, if any.
fn arrow(from: &str, to: &str, dev: bool) -> Option<&'static str> {
    if to == XTASK {
        return Some("nothing depends on xtask");
    }
    if from == TESTKIT || from == XTASK {
        return Some("the testkit and xtask depend on no other crate of the house");
    }
    if to == TESTKIT {
        return (!dev).then_some("the testkit is for [dev-dependencies] only");
    }
    if to == HA && from != AGENT {
        return Some("only the agent knows the cluster model; others go through its API");
    }
    // A crate without a level is reported by itself.
    let (Some(upper), Some(lower)) = (level(from), level(to)) else {
        return None;
    };
    match upper.cmp(&lower) {
        std::cmp::Ordering::Greater => None,
        std::cmp::Ordering::Equal => Some("crates on one level do not know each other"),
        std::cmp::Ordering::Less => Some("arrows run strictly downward, and this one runs up"),
    }
}

/// The rule that a third-party dependency breaks, if any.
fn foreign(from: &str, to: &str, dev: bool) -> Option<&'static str> {
    if dev {
        return None;
    }
    if PURE.contains(&from) && IMPURE.contains(&to) {
        return Some("this crate is pure: time, randomness and IO come in as arguments");
    }
    (to == "anyhow" && from != BINARY && from != XTASK)
        .then_some("libraries have error types of their own (thiserror); anyhow is for the binary")
}

fn level(name: &str) -> Option<usize> {
    LEVELS.iter().position(|crates| crates.contains(&name))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn house(extra: &[(&str, &[&str], &[&str])]) -> Vec<Package> {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        let mut packages: Vec<Package> = LEVELS
            .iter()
            .flat_map(|level| level.iter().copied())
            .chain([TESTKIT, XTASK])
            .map(|name| Package {
                name: name.to_owned(),
                ..Package::default()
            })
            .collect();
        for (name, normal, dev) in extra {
            packages.retain(|package| package.name != *name);
            packages.push(Package {
                name: (*name).to_owned(),
                normal: names(normal),
                dev: names(dev),
            });
        }
        packages
    }

    fn problem(name: &str, normal: &[&str], dev: &[&str]) -> String {
        let problems = check(&house(&[(name, normal, dev)]));
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems[0].clone()
    }

    #[test]
    fn downward_arrows_are_fine() {
        let fine = house(&[
            (
                "pgmahout",
                &["pgmahout-backup", "pgmahout-types", "anyhow"],
                &[TESTKIT],
            ),
            (
                "pgmahout-backup",
                &["pgmahout-postgres", "tokio"],
                &[TESTKIT, "tokio"],
            ),
            (AGENT, &[HA], &[]),
            ("pgmahout-types", &["thiserror"], &[TESTKIT, "tokio"]),
        ]);
        assert_eq!(check(&fine), Vec::<String>::new());
    }

    #[test]
    fn an_upward_arrow_is_refused_with_both_names() {
        let text = problem("pgmahout-store", &["pgmahout-backup"], &[]);
        assert!(
            text.contains("pgmahout-store -> pgmahout-backup") && text.contains("runs up"),
            "{text}"
        );
        assert!(problem("pgmahout-config", &[], &["pgmahout-postgres"]).contains("runs up"));
    }

    #[test]
    fn siblings_are_refused() {
        assert!(problem("pgmahout-backup", &["pgmahout-doctor"], &[]).contains("one level"));
        assert!(problem("pgmahout-postgres", &["pgmahout-store"], &[]).contains("one level"));
    }

    #[test]
    fn an_unknown_crate_must_be_given_its_place() {
        assert!(problem("pgmahout-common", &["pgmahout-types"], &[]).contains("no place in the house"));
    }

    #[test]
    fn the_testkit_stays_in_tests_and_knows_nobody() {
        assert!(problem("pgmahout-backup", &[TESTKIT], &[]).contains("dev-dependencies"));
        assert!(problem(TESTKIT, &["pgmahout-types"], &[]).contains("no other crate"));
    }

    #[test]
    fn pure_crates_stay_pure_and_anyhow_stays_in_the_binary() {
        assert!(problem("pgmahout-types", &["tokio"], &[]).contains("pure"));
        assert!(problem("pgmahout-store", &["anyhow"], &[]).contains("anyhow"));
        assert!(problem("pgmahout-backup", &[HA], &[]).contains("only the agent"));
    }

    #[test]
    fn packages_are_read_from_cargos_own_words() {
        let metadata = serde_json::json!({"packages": [{"name": "a", "dependencies": [
            {"name": "b", "kind": null}, {"name": "c", "kind": "dev"}, {"name": "d", "kind": "build"}]}]});
        let read = packages(&metadata);
        assert_eq!(
            (read[0].normal.join(","), read[0].dev.join(",")),
            ("b,d".to_owned(), "c".to_owned())
        );
    }
}
