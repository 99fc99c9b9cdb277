use std::time::Duration;

use super::history::{Entry, History};
use super::*;
use crate::health::{CheckResult, Finding, Measure};

fn at(seconds: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_790_000_000 + seconds).unwrap()
}

fn report() -> Report {
    let results = vec![
        CheckResult::new("connections.used", "db1", Finding::ok("3 of 97"), Duration::ZERO),
        CheckResult::new(
            "queries.long",
            "db1",
            Finding::crit("<script>alert(1)</script> | runs"),
            Duration::ZERO,
        ),
    ];
    let health = HealthReport::new(at(0), Duration::ZERO, vec!["db1".into()], results, vec![], vec![]);
    let mut section = Section::new("Tables & more", ["table", "size"]);
    section.rows.push(vec!["a|b\"<i>".into(), "1 MB".into()]);
    Report {
        schema_version: Report::VERSION,
        kind: Kind::Weekly,
        made_at: at(0),
        target: "db1".into(),
        server_version: "18.1".into(),
        role: "primary".into(),
        started_at: Some(at(-1000)),
        health,
        trends: vec![Trend {
            id: "connections.used".into(),
            unit: Unit::Count,
            points: vec![(at(-20), 1.0), (at(-10), 5.0), (at(0), 3.0)],
        }],
        sections: vec![section],
    }
}

#[test]
fn nothing_from_the_server_becomes_markup_and_nothing_is_fetched() {
    let page = html::render(&report());
    assert!(!page.contains("<script"), "{page}");
    assert!(page.contains("&lt;script&gt;"));
    assert!(page.contains("a|b&quot;&lt;i&gt;"));
    assert!(
        !page.contains("http://") && !page.contains("https://") && !page.contains("src="),
        "{page}"
    );
    assert!(page.contains("<polyline"));
}

#[test]
fn the_text_form_keeps_its_tables_whole() {
    let text = markdown::render(&report());
    insta::assert_snapshot!(text);
}

#[test]
fn a_report_reads_back_from_its_json() {
    let text = serde_json::to_string(&report()).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report());
}

#[test]
fn history_gives_each_kind_its_window_and_passes_over_a_torn_line() {
    let directory = tempfile::tempdir().unwrap();
    let mut history = History::load(directory.path(), "db1:5432");
    for days in [40, 20, 5, 0] {
        history
            .remember(Entry {
                schema_version: Entry::VERSION,
                at: at(-days * 86_400 - 60),
                figures: [("a".to_owned(), Measure::count(days))].into(),
                tables: [].into(),
            })
            .unwrap();
    }
    let file = directory.path().join("db1_5432.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}{{\"schema_version\":1,\"at\":\"20")).unwrap();
    let history = History::load(directory.path(), "db1:5432");
    let count = |kind| history.window(at(0), kind).len();
    assert_eq!(
        [Kind::Daily, Kind::Weekly, Kind::Monthly, Kind::Health].map(count),
        [1, 2, 3, 4]
    );
}
