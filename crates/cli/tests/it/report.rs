//! Reports: their forms, their trends, and that an existing file is not lost.

use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::Pgmahout;
use serde_json::Value;

#[tokio::test]
async fn a_report_shows_tables_growth_and_queries_in_every_form() {
    let server = Postgres::builder(Major::V18)
        .preload("pg_stat_statements")
        .with_extension("pg_stat_statements")
        .start()
        .await;
    server
        .sql(
            "postgres",
            "CREATE TABLE \"<b>odd\" AS SELECT n FROM generate_series(1, 2000) n; ANALYZE",
        )
        .await;
    let directory = server.new_directory("reports");
    let state = server.new_directory("state");
    let report = |arguments: Vec<String>| {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .args(["report"])
            .args(arguments)
            .args(["--skip", "host.*", "--dsn", &server.dsn("postgres")])
            .env("PGMAHOUT_STATE_DIR", &state)
            .run()
    };
    let file = |name: &str| directory.join(name).display().to_string();

    report(vec!["health".into(), "-o".into(), file("one.html")])
        .await
        .expect_status(0);
    let page = std::fs::read_to_string(file("one.html")).expect("the page");
    assert!(
        page.contains("&lt;b&gt;odd") && !page.contains("<b>odd"),
        "a table's name became markup"
    );
    assert!(page.contains("Costliest queries") && page.contains("All checks"));

    server
        .sql(
            "postgres",
            "INSERT INTO \"<b>odd\" SELECT generate_series(1, 50000); ANALYZE",
        )
        .await;
    report(vec!["weekly".into(), "-o".into(), file("two.json")])
        .await
        .expect_status(0);
    let answer: Value =
        serde_json::from_str(&std::fs::read_to_string(file("two.json")).expect("the report")).expect("JSON");
    let section = |title: &str| {
        answer["sections"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|section| section["title"] == title)
            .cloned()
    };
    let growing = section("Fastest-growing tables").expect("the section");
    assert!(
        growing["rows"][0][0].as_str().expect("a name").contains("odd"),
        "{growing}"
    );
    let queries = section("Costliest queries").expect("the section");
    assert!(!queries["rows"].as_array().expect("rows").is_empty(), "{queries}");
    assert!(
        !answer["trends"].as_array().expect("a list").is_empty(),
        "no trend from two reports"
    );

    let refused = report(vec!["health".into(), "-o".into(), file("one.html")])
        .await
        .expect_status(3);
    assert!(
        refused.stderr.contains("exists already") && refused.stderr.contains("--force"),
        "{}",
        refused.stderr
    );
    let wrong = report(vec!["health".into(), "-o".into(), file("one.doc")])
        .await
        .expect_status(2);
    assert!(wrong.stderr.contains("--format"), "{}", wrong.stderr);
    let text = report(vec!["daily".into()]).await.expect_status(0);
    assert!(
        text.stdout.starts_with("# PostgreSQL daily report"),
        "{}",
        text.stdout
    );
}
