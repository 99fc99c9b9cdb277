//! `dump expire`: what goes and what stays, on files with manifests of known ages.

use std::path::Path;

use jiff::{Timestamp, ToSpan};
use pgmahout_testkit::proc::Pgmahout;

/// A dump of a database as it was so many days ago.
fn dump(directory: &Path, database: &str, days: i64, sound: bool) -> String {
    let taken = Timestamp::now() - (24 * days).hours();
    let file = format!("{database}_{days:03}.sql.gz");
    std::fs::write(directory.join(&file), vec![b'x'; 100]).expect("written");
    let manifest = serde_json::json!({
        "schema_version": 1,
        "kind": "dump",
        "tool": {"name": "pgmahout", "version": "0.1.0"},
        "file": file,
        "server": {"version": "15.18", "version_number": 150_018, "system_identifier": "7"},
        "client_version": "15.18",
        "database": {"name": database, "encoding": "UTF8"},
        "snapshot": {"id": "1", "taken_at": taken},
        "started_at": taken,
        "finished_at": taken,
        "options": {"format": "plain"},
        "compression": "gzip:6",
        "content": {"bytes": 1000, "sha256": ""},
        "stored": {"bytes": if sound { 100 } else { 999 }, "sha256": ""},
        "counts": "exact",
        "verification": {"read_back_at": taken},
    });
    std::fs::write(
        directory.join(format!("{file}.manifest.json")),
        manifest.to_string(),
    )
    .expect("written");
    file
}

fn expire(directory: &Path, arguments: &[&str]) -> Pgmahout {
    Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .args(["dump", "expire"])
        .args(arguments)
        .env("TZ", "UTC")
        .current_dir(directory)
}

fn archives(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .expect("the directory can be read")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .filter(|name| !name.ends_with(".manifest.json"))
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn nothing_is_removed_without_a_confirmation() {
    let directory = tempfile::tempdir().expect("a directory");
    for days in 0..5 {
        dump(directory.path(), "shop", days, true);
    }
    let dry = expire(directory.path(), &["--keep-last", "2", "--dry-run"])
        .run()
        .await
        .expect_status(0);
    assert_eq!(dry.stdout.matches("remove").count(), 3, "{}", dry.stdout);
    assert!(dry.stdout.contains("last, newest sound"), "{}", dry.stdout);
    assert_eq!(archives(directory.path()).len(), 5);
    let unasked = expire(directory.path(), &["--keep-last", "2"])
        .run()
        .await
        .expect_status(3);
    assert!(unasked.stderr.contains("--yes"), "{}", unasked.stderr);
    assert_eq!(archives(directory.path()).len(), 5);
    let done = expire(directory.path(), &["--keep-last", "2", "--yes"])
        .run()
        .await
        .expect_status(0);
    assert!(done.stderr.contains("removed 3 dumps"), "{}", done.stderr);
    assert_eq!(archives(directory.path()), ["shop_000.sql.gz", "shop_001.sql.gz"]);
    let all = std::fs::read_dir(directory.path()).expect("read").count();
    assert_eq!(all, 4, "the manifests went with their dumps");
    let again = expire(directory.path(), &["--keep-last", "2", "--yes"])
        .run()
        .await
        .expect_status(0);
    assert!(again.stderr.contains("nothing to remove"), "{}", again.stderr);
}

#[tokio::test]
async fn the_default_keeps_seven_days_four_weeks_and_twelve_months() {
    let directory = tempfile::tempdir().expect("a directory");
    for days in 0..500 {
        dump(directory.path(), "shop", days, true);
    }
    let done = expire(directory.path(), &["--yes", "--json"])
        .run()
        .await
        .expect_status(0);
    let value: serde_json::Value = serde_json::from_str(&done.stdout).expect("JSON");
    assert_eq!(value["schema_version"], 1);
    let kept = |rule: &str| {
        let decisions = value["decisions"].as_array().expect("decisions");
        decisions
            .iter()
            .filter(|decision| {
                decision["kept_by"]
                    .as_array()
                    .is_some_and(|rules| rules.iter().any(|it| it == rule))
            })
            .count()
    };
    assert_eq!(
        (kept("daily"), kept("weekly"), kept("monthly")),
        (7, 4, 12),
        "{value}"
    );
    let left = archives(directory.path());
    assert!((18..=22).contains(&left.len()), "{left:?}");
}

#[tokio::test]
async fn the_only_good_dump_of_a_database_always_stays() {
    let directory = tempfile::tempdir().expect("a directory");
    // Of shop only the oldest is sound; of gone there is one, long past every rule; of broken none is sound.
    for days in 0..4 {
        dump(directory.path(), "shop", days, false);
        dump(directory.path(), "broken", days, false);
    }
    let shop = dump(directory.path(), "shop", 300, true);
    let gone = dump(directory.path(), "gone", 400, true);
    std::fs::write(directory.path().join("foreign.sql.gz"), "x").expect("written");
    let done = expire(directory.path(), &["--keep-within", "1d", "--yes"])
        .run()
        .await
        .expect_status(0);
    let left = archives(directory.path());
    for file in [&shop, &gone, &"foreign.sql.gz".to_owned()] {
        assert!(left.contains(file), "{left:?}");
    }
    assert_eq!(
        left.iter().filter(|name| name.starts_with("broken")).count(),
        4,
        "{left:?}"
    );
    assert_eq!(
        left.iter().filter(|name| name.starts_with("shop")).count(),
        5,
        "what is newer than the newest sound one stays: {left:?}"
    );
    assert!(
        done.stderr.contains("left alone: foreign.sql.gz"),
        "{}",
        done.stderr
    );
    assert!(
        done.stdout.contains("no sound dump to take its place"),
        "{}",
        done.stdout
    );
}

#[tokio::test]
async fn a_policy_that_keeps_nothing_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    dump(directory.path(), "shop", 0, true);
    let refused = expire(directory.path(), &["--keep-last", "0", "--yes"])
        .run()
        .await
        .expect_status(2);
    assert!(refused.stderr.contains("keeps nothing"), "{}", refused.stderr);
    let wrong = expire(directory.path(), &["--keep-within", "soon"])
        .run()
        .await
        .expect_status(2);
    assert!(wrong.stderr.contains("30d"), "{}", wrong.stderr);
    assert_eq!(archives(directory.path()).len(), 1);
}

#[tokio::test]
async fn only_the_named_database_is_touched() {
    let directory = tempfile::tempdir().expect("a directory");
    for days in 0..3 {
        dump(directory.path(), "shop", days, true);
        dump(directory.path(), "crm", days, true);
    }
    expire(
        directory.path(),
        &["--database", "crm", "--keep-last", "1", "--yes"],
    )
    .run()
    .await
    .expect_status(0);
    let left = archives(directory.path());
    assert_eq!(
        left.iter().filter(|name| name.starts_with("crm")).count(),
        1,
        "{left:?}"
    );
    assert_eq!(
        left.iter().filter(|name| name.starts_with("shop")).count(),
        3,
        "{left:?}"
    );
}
