//! What is no dump is told by its content, with what it looks like.

use pgmahout_testkit::postgres::{Major, Postgres};

use crate::dump_roundtrip::{dump, output, shop};

#[tokio::test]
async fn what_is_no_dump_is_described() {
    let server = Postgres::start(Major::V15).await;
    let directory = server.new_directory("dumps");
    for (name, bytes, words) in [
        ("empty.sql.gz", &b""[..], "it is empty"),
        ("zip.sql.gz", b"PK\x03\x04rest", "zip archive"),
        ("xz.dump", b"\xfd7zXZ\x00rest", "xz -dk"),
        ("page.sql", b"<html><body>404</body></html>", "HTML"),
        ("text.sql", b"Dear diary, today", "44 65 61 72"),
        ("gpg", b"-----BEGIN PGP MESSAGE-----", "gpg --decrypt"),
        ("hand.sql", b"CREATE TABLE t (a int);\n", "end marker"),
    ] {
        std::fs::write(directory.join(name), bytes).expect("written");
        let finished = dump(&server, &directory, &["restore", name, "postgres"])
            .run()
            .await;
        assert_ne!(finished.status, Some(0), "{name}");
        assert!(finished.stderr.contains(words), "{name}: {}", finished.stderr);
        assert!(finished.stderr.contains("hint:"), "{name}: {}", finished.stderr);
    }
    let finished = dump(&server, &directory, &["restore", ".", "postgres"])
        .run()
        .await;
    assert_ne!(finished.status, Some(0));
    assert!(finished.stderr.contains("without toc.dat"), "{}", finished.stderr);
}

#[tokio::test]
async fn names_say_nothing_about_the_form() {
    let server = shop(Major::V15).await;
    let directory = server.new_directory("dumps");
    // Runbooks name a gzip of SQL ".tar.gz" and a custom archive ".sql".
    std::fs::write(
        directory.join("latest.tar.gz"),
        output(&server, "pg_dump", &[], Some("gzip")),
    )
    .expect("written");
    std::fs::write(
        directory.join("latest.sql"),
        output(&server, "pg_dump", &["-Fc"], None),
    )
    .expect("written");
    for name in ["latest.tar.gz", "latest.sql"] {
        dump(&server, &directory, &["restore", name, "--into", "again"])
            .run()
            .await
            .expect_status(0);
        assert_eq!(
            server
                .query_text("again", "SELECT count(*) FROM shop.orders")
                .await,
            "5000"
        );
        server.sql("postgres", "DROP DATABASE again").await;
    }
}
