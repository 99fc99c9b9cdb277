//! The guide cannot rot: every command in it is run, page by page, as a reader would type it.
//!
//! In fences marked `console`, a line that begins with `$ ` is a command and must end with 0, or with the
//! status of a trailing comment `# exits N`. Other fences are left alone.

//!
//! Pages about physical backups are run as the servers' account, with a configuration that has a repository.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::reachable;

/// The pages about physical backups, and whether their reader has followed the first one already.
const PHYSICAL: [(&str, bool); 4] = [
    ("backup.md", false),
    ("repositories.md", true),
    ("restore.md", true),
    ("wal.md", true),
];

/// Pages without a command to run.
const WITHOUT_COMMANDS: [&str; 2] = ["README.md", "from-pgbackrest.md"];

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

/// Where a page is read.
struct Reader {
    server: Postgres,
    directory: PathBuf,
    /// Whether the reader is the servers' account.
    is_owner: bool,
}

impl Reader {
    /// Of a page about anything but physical backups.
    async fn new() -> Self {
        let server = Postgres::builder(Major::V15)
            .setting("fsync", "on")
            .archive_to("archive")
            .start()
            .await;
        Self::at(server, false).await
    }

    /// Of a page about physical backups.
    async fn physical(has_backup: bool) -> Self {
        let server = Postgres::builder(Major::V15)
            .own_system_identifier()
            .data_checksums(true)
            .start()
            .await;
        let reader = Self::at(server, true).await;
        let configuration = reader.directory.join("pgmahout.yml");
        let text = format!(
            "stanza: main\npostgresql:\n  data_dir: {}\n  bin_dir: {}\nrepository:\n  - name: local\n    type: local\n    \
             path: {}\n    retention: {{keep_last: 2, recovery_window: 14d}}\nbackup: {{checkpoint: fast}}\n",
            reader.server.data_dir().display(),
            reader.server.bin_dir().display(),
            reader.directory.join("repository").display(),
        );
        std::fs::write(&configuration, text).expect("written");
        reader.server.account().own(&configuration);
        if has_backup {
            for command in ["repo init", "wal enable --yes", "backup create"] {
                reader.run("the beginning", &format!("pgmahout {command}"), 0);
            }
        }
        reader
    }

    async fn at(server: Postgres, is_owner: bool) -> Self {
        server.createdb("shop").await;
        server.sql("shop", SHOP).await;
        let directory = server.new_directory("reader");
        if is_owner {
            // The program under its name, where the servers' account can reach it.
            std::os::unix::fs::symlink(
                reachable(env!("CARGO_BIN_EXE_pgmahout")),
                directory.join("pgmahout"),
            )
            .expect("a link");
        }
        Self {
            server,
            directory,
            is_owner,
        }
    }

    fn run(&self, page: &str, command: &str, status: i32) {
        let binary = Path::new(env!("CARGO_BIN_EXE_pgmahout"))
            .parent()
            .expect("a directory");
        let path = format!(
            "{}:{}:{}",
            if self.is_owner { &self.directory } else { binary }.display(),
            self.server.bin_dir().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let mut shell = if self.is_owner {
            self.server.account().command("sh")
        } else {
            let mut shell = Command::new("sh");
            shell.env_clear();
            shell
        };
        // A file: a server that the command starts keeps its outputs open.
        let said = tempfile::tempfile().expect("a file");
        let ended = shell
            .args(["-c", command])
            .current_dir(&self.directory)
            .env("PATH", &path)
            .env("HOME", &self.directory)
            .env("TMPDIR", "/tmp")
            .env("PGHOST", self.server.host())
            .env("PGPORT", self.server.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "shop")
            .env("PGDATA", self.server.data_dir())
            .env("PGMAHOUT_STATE_DIR", self.directory.join("state"))
            .stdin(Stdio::null())
            .stdout(said.try_clone().expect("the file again"))
            .stderr(said.try_clone().expect("the file again"))
            .status()
            .expect("sh runs");
        assert_eq!(ended.code(), Some(status), "{page}: {command}\n{}", read(said));
    }
}

fn read(mut file: std::fs::File) -> String {
    use std::io::{Read, Seek};
    let mut text = Vec::new();
    file.rewind().expect("a file");
    file.read_to_end(&mut text).expect("a file");
    String::from_utf8_lossy(&text).into_owned()
}

async fn run_page(name: &str) {
    let page = std::fs::read_to_string(guide().join(name)).expect("the page");
    let commands = commands(&page);
    assert!(!commands.is_empty(), "{name} has no command to run");
    let physical = PHYSICAL.iter().find(|(page, _)| *page == name);
    let reader = match physical {
        Some(&(_, has_backup)) => Reader::physical(has_backup).await,
        None => Reader::new().await,
    };
    for (command, status) in commands {
        reader.run(name, &command, status);
    }
    if physical.is_some() {
        // The server that a page has restarted or restored is not the one that the scene has started.
        let stop = "pg_ctl stop -m immediate -D";
        reader.run(
            name,
            &format!("{stop} '{}' || true", reader.server.data_dir().display()),
            0,
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
        .filter(|name| !WITHOUT_COMMANDS.contains(&name.as_str()))
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
