//! Edits of configuration files, judged by the server that reads them.

use pgmahout_postgres::conf_file::{ConfFile, Configuration};
use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

#[tokio::test]
async fn the_server_accepts_what_was_edited_and_applies_it() {
    for major in Major::all() {
        let server = Postgres::start(major).await;
        let path = server.data_dir().join("postgresql.conf");
        let before = std::fs::metadata(&path).expect("there");
        let mut file = ConfFile::open(&path).expect("readable");
        let nasty = "it's 100% \\ \"strange\" # %m ";
        file.set("work_mem", "7MB").expect("valid");
        file.set("log_line_prefix", nasty).expect("valid");
        file.set("my_extension.setting", "''").expect("valid");
        assert!(file.save().expect("saved").changed);
        let after = std::fs::metadata(&path).expect("there");
        assert_eq!(
            (after.uid(), after.gid(), after.mode()),
            (before.uid(), before.gid(), before.mode())
        );

        let errors = "SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL";
        assert_eq!(server.query_text("postgres", errors).await, "0");
        server.reload().await;
        poll::until(Duration::from_secs(30), "the reload", async || {
            server.query_text("postgres", "SHOW work_mem").await == "7MB"
        })
        .await;
        assert_eq!(server.query_text("postgres", "SHOW log_line_prefix").await, nasty);
        assert_eq!(
            server.query_text("postgres", "SHOW my_extension.setting").await,
            "''"
        );
    }
}

#[tokio::test]
async fn our_reading_of_the_files_is_the_servers() {
    for major in Major::all() {
        let server = Postgres::start(major).await;
        std::fs::write(
            server.data_dir().join("more.conf"),
            "work_mem 3MB # x\nsearch_path = '\"$user\", \"a''b\"'\nlog_line_prefix='\\t\\101\\\\'\nseq_page_cost = 1.5e0\nx.y=0x10\n",
        )
        .expect("written");
        server.append_conf("include 'more.conf'");
        server.append_conf("include_if_exists 'missing.conf'");
        server.append_conf("Work_Mem = '4 MB'");
        server
            .sql("postgres", "ALTER SYSTEM SET application_name = 'a''b\\c'")
            .await;
        let theirs = server
            .query_text(
                "postgres",
                "SELECT lower(name) || '=' || setting || '=' || regexp_replace(sourcefile, '.*/', '') || '=' || sourceline FROM pg_file_settings ORDER BY seqno",
            )
            .await;
        let configuration = Configuration::read_server(server.data_dir(), None).expect("valid");
        let ours: Vec<String> = configuration
            .settings()
            .iter()
            .map(|setting| {
                let file = setting.file.file_name().expect("a file").to_string_lossy();
                format!("{}={}={file}={}", setting.name, setting.value, setting.line)
            })
            .collect();
        assert_eq!(ours, theirs.lines().collect::<Vec<_>>());
        assert_eq!(configuration.get("work_mem"), Some("4 MB"));
    }
}

#[tokio::test]
async fn a_removed_setting_of_alter_system_counts_no_more() {
    let server = Postgres::start(Major::V18).await;
    server.sql("postgres", "ALTER SYSTEM SET work_mem = '9MB'").await;
    let mut file = ConfFile::open(server.data_dir().join("postgresql.auto.conf")).expect("readable");
    assert_eq!(file.get("work_mem").expect("valid").as_deref(), Some("9MB"));
    assert_eq!(file.remove("work_mem").expect("valid"), 1);
    file.save().expect("saved");
    server.reload().await;
    poll::until(Duration::from_secs(30), "the reload", async || {
        server.query_text("postgres", "SHOW work_mem").await == "4MB"
    })
    .await;
}
