//! The guide cannot rot: every command in it is run, page by page, as a reader would type it.
//!
//! In fences marked `console`, a line that begins with `$ ` is a command and must end with 0, or with the
//! status of a trailing comment `# exits N`. Other fences are left alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pgmahout_testkit::postgres::{Major, Postgres};

const SHOP: &str = "
CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text NOT NULL);
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer_id bigint REFERENCES customers, total numeric(10,2));
INSERT INTO customers (email) SELECT 'customer' || n || '@example.org' FROM generate_series(1, 500) n;
INSERT INTO orders (customer_id, total) SELECT 1 + n % 500, n % 90 + 0.5 FROM generate_series(1, 2000) n;
ANALYZE;
";

/// The commands of a page and the status that each must end with.
fn commands(page: &str) -> Vec<(String, i32)> {
    let mut inside = false;
    let mut commands: Vec<(String, i32)> = Vec::new();
    // The end of a here-document, and its command so far.
    let mut document: Option<(String, String)> = None;
    for line in page.lines() {
        if let Some((end, text)) = &mut document {
            text.push('\n');
            text.push_str(line);
            if line == end {
                commands.push((std::mem::take(text), 0));
                document = None;
            }
            continue;
        }
        if let Some(fence) = line.trim_start().strip_prefix("```") {
            inside = !inside && fence.trim() == "console";
        } else if inside && let Some(command) = line.strip_prefix("$ ") {
            if let Some((_, end)) = command.split_once("<<'") {
                document = Some((end.trim_end_matches('\'').to_owned(), command.to_owned()));
                continue;
            }
            let status = command.rsplit_once("# exits ").map_or(0, |(_, status)| {
                status.trim().parse().expect("a status after '# exits'")
            });
            commands.push((command.to_owned(), status));
        }
    }
    commands
}

fn guide() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide")
}

async fn run_page(name: &str) {
    let page = std::fs::read_to_string(guide().join(name)).expect("the page");
    let commands = commands(&page);
    assert!(!commands.is_empty(), "{name} has no command to run");
    let server = Postgres::builder(Major::V15)
        .setting("fsync", "on")
        .archive_to("archive")
        .start()
        .await;
    server.createdb("shop").await;
    server.sql("shop", SHOP).await;
    let directory = server.new_directory("reader");
    let binary = Path::new(env!("CARGO_BIN_EXE_pgmahout"))
        .parent()
        .expect("a directory");
    let path = format!(
        "{}:{}:{}",
        binary.display(),
        server.bin_dir().display(),
        std::env::var("PATH").unwrap_or_default()
    );
    for (command, status) in commands {
        let output = Command::new("sh")
            .args(["-c", &command])
            .current_dir(&directory)
            .env_clear()
            .env("PATH", &path)
            .env("HOME", &directory)
            .env("TMPDIR", "/tmp")
            .env("PGHOST", server.host())
            .env("PGPORT", server.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "shop")
            .env("PGMAHOUT_STATE_DIR", directory.join("state"))
            .stdin(Stdio::null())
            .output()
            .expect("sh runs");
        assert_eq!(
            output.status.code(),
            Some(status),
            "{name}: {command}\n--- stdout\n{}\n--- stderr\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[tokio::test]
async fn every_command_of_the_guide_works() {
    let mut pages: Vec<String> = std::fs::read_dir(guide())
        .expect("the guide")
        .map(|entry| {
            entry
                .expect("readable")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| Path::new(name).extension().is_some_and(|ending| ending == "md"))
        .filter(|name| name != "README.md")
        .collect();
    pages.sort();
    assert!(pages.len() >= 4, "only {pages:?}");
    for page in pages {
        run_page(&page).await;
    }
}

#[test]
fn commands_are_found_in_console_fences_only() {
    let page = "```console\n$ cat > f <<'END'\na\nEND\n```\n```console\n$ true\nout\n$ false # exits 1\n```\n```sh\n$ rm -rf /\n```\n";
    assert_eq!(
        commands(page),
        [
            ("cat > f <<'END'\na\nEND".to_owned(), 0),
            ("true".to_owned(), 0),
            ("false # exits 1".to_owned(), 1)
        ]
    );
}
