//! Files that nobody has written to are not read by the next backup; whoever writes is noticed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, StopMode};
use rstest::rstest;
use serde_json::Value;

use crate::archived::{Archived, Storage};

const PATIENCE: Duration = Duration::from_mins(1);
const DIGEST: &str = "SELECT md5(string_agg(o::text, ',' ORDER BY id)) FROM orders o";

async fn backup(scene: &Archived, arguments: &[&str]) -> Value {
    let output = scene
        .run(&[&["backup", "create", "--json"], arguments].concat())
        .await;
    let all: Value = serde_json::from_str(&output).expect("JSON");
    all["backups"][0].clone()
}

fn bytes(backup: &Value, name: &str) -> u64 {
    backup[name].as_u64().expect("a number")
}

/// Backups until one leaves files unread: what was written in the last seconds before a backup is read by the next.
async fn until_unread(scene: &Archived) -> Value {
    let mut last = Value::Null;
    poll::until(PATIENCE, "a backup that leaves files unread", async || {
        last = backup(scene, &["--verify-skipped", "0"]).await;
        bytes(&last, "unread") > bytes(&last, "bytes") / 2
    })
    .await;
    last
}

async fn filled(scene: &Archived) {
    scene
        .server
        .sql(
            "postgres",
            "CREATE TABLE orders AS SELECT i AS id, md5(i::text) AS note FROM generate_series(1, 20000) i; CHECKPOINT",
        )
        .await;
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn what_nobody_has_written_to_is_not_read_and_comes_back(#[case] major: Major) {
    let scene = Archived::new(major, Storage::Directory, false).await;
    filled(&scene).await;
    let idle = until_unread(&scene).await;
    assert!(bytes(&idle, "read") < bytes(&idle, "bytes") / 2, "{idle}");
    scene
        .server
        .sql(
            "postgres",
            "UPDATE orders SET note = 'changed' WHERE id % 1000 = 0",
        )
        .await;
    let changed = backup(&scene, &[]).await;
    assert!(
        bytes(&changed, "unread") > 0 && bytes(&changed, "new") > 0,
        "{changed}"
    );
    let whole = backup(&scene, &["--read-filter", "none"]).await;
    assert_eq!(bytes(&whole, "unread"), 0, "{whole}");
    let expected = scene.server.query_text("postgres", DIGEST).await;
    for label in [&changed, &whole] {
        let label = label["label"].as_str().expect("a label");
        scene.run(&["backup", "verify", label]).await;
        let copy = scene
            .restored(&[
                "--backup",
                label,
                "--target-immediate",
                "--target-action",
                "promote",
            ])
            .await;
        assert_eq!(copy.query_text("postgres", DIGEST).await, expected, "{label}");
    }
}

#[tokio::test]
async fn after_a_promotion_every_file_is_read() {
    let scene = Archived::new(Major::V18, Storage::Directory, false).await;
    filled(&scene).await;
    until_unread(&scene).await;
    scene.server.stop(StopMode::Fast).await;
    std::fs::write(scene.server.data_dir().join("standby.signal"), "").expect("ours");
    scene
        .server
        .account()
        .own(&scene.server.data_dir().join("standby.signal"));
    scene.server.start_again().await;
    scene.server.sql("postgres", "SELECT pg_promote()").await;
    let finished = scene
        .pgmahout(&["backup", "create", "-v"])
        .run()
        .await
        .expect_status(0);
    assert!(
        finished
            .stderr
            .contains("every file is read: the timeline has changed"),
        "{}",
        finished.stderr
    );
    assert!(!finished.stderr.contains("not read:"), "{}", finished.stderr);
}

/// Writes into a file through a mapping, which the file system notices only the first time.
struct Tamperer {
    process: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl Tamperer {
    fn new(path: &Path) -> Self {
        let script = "import mmap, sys\n\
                      file = open(sys.argv[1], 'r+b')\n\
                      pages = mmap.mmap(file.fileno(), 0)\n\
                      for line in sys.stdin:\n\
                      \x20   pages[200] = int(line)\n\
                      \x20   print('done', flush=True)\n";
        let mut process = Command::new("python3")
            .args(["-c", script])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let input = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        Self {
            process,
            input,
            output,
        }
    }

    fn write(&mut self, byte: u8) {
        writeln!(self.input, "{byte}").expect("it reads");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it answers");
        assert_eq!(line, "done\n");
    }
}

impl Drop for Tamperer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The byte that is written lies between the line pointers and the rows of a page with one row.
#[tokio::test]
async fn a_change_that_no_file_system_noticed_is_found_by_the_sample() {
    let scene = Archived::with(Major::V18, Storage::Directory, false, |builder| {
        builder.data_checksums(false)
    })
    .await;
    filled(&scene).await;
    scene
        .server
        .sql("postgres", "CREATE TABLE lone AS SELECT 1 AS one; CHECKPOINT")
        .await;
    let path = scene
        .server
        .query_text("postgres", "SELECT pg_relation_filepath('lone')")
        .await;
    let mut tamperer = Tamperer::new(&scene.server.data_dir().join(&path));
    let mut byte = 0;
    let mut found = String::new();
    // Where the kernel writes the page out between two writings, it notices the second one, and so do we.
    poll::until(
        PATIENCE,
        "a change that the file system did not notice",
        async || {
            byte += 1;
            tamperer.write(byte);
            until_unread(&scene).await;
            let sound = backup(&scene, &["--verify-skipped", "100%"]).await;
            assert!(bytes(&sound, "unread") > 0, "{sound}");
            byte += 1;
            tamperer.write(byte);
            let arguments = ["backup", "create", "--verify-skipped", "100"];
            found = scene.pgmahout(&arguments).run().await.stderr;
            found.contains("error")
        },
    )
    .await;
    assert!(
        found.contains(&format!("{path} has changed since the backup")),
        "{found}"
    );
    assert!(found.contains("--read-filter none"), "{found}");
    let whole = backup(&scene, &["--read-filter", "none"]).await;
    assert!(bytes(&whole, "new") > 0, "{whole}");
}
