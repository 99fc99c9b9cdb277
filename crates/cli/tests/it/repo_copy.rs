//! `repo copy`: backups and WAL in another repository, under other keys.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::Pgmahout;
use pgmahout_testkit::s3::{Fault, Rule, S3Server};
use rstest::rstest;
use serde_json::Value;

use crate::physical_scene::{PATIENCE, Scene};

/// A scene with a second repository in S3, encrypted by another key and compressed by another codec.
struct Two {
    scene: Scene,
    s3: S3Server,
    config: PathBuf,
}

impl Two {
    async fn new(major: Major, encrypted: bool) -> Self {
        let scene = Scene::new(major, encrypted).await;
        let s3 = S3Server::start();
        let file = |name: &str, content: String| {
            use std::os::unix::fs::PermissionsExt as _;
            let path = scene.config.with_file_name(name);
            fs::write(&path, content).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
            scene.server.account().own(&path);
            path
        };
        let mut text = fs::read_to_string(&scene.config).expect("there");
        write!(
            text,
            "  - name: offsite\n    type: s3\n    bucket: {}\n    prefix: far\n    endpoint: {}\n    region: {}\n    \
             path_style: true\n    access_key: file:{}\n    secret_key: file:{}\n    \
             compression: {{codec: lz4}}\n    encryption: {{key_file: {}}}\n    retention: {{keep_last: 2}}\n",
            s3.bucket(),
            s3.endpoint(),
            s3.region(),
            file("access_key", s3.access_key().to_owned()).display(),
            file("secret_key", s3.secret_key().to_owned()).display(),
            file("other.key", "c4".repeat(32)).display(),
        )
        .expect("writing to a String");
        let config = file("two.yml", text);
        Self { scene, s3, config }
    }

    /// The program with both repositories in its configuration.
    fn pgmahout(&self, arguments: &[&str]) -> Pgmahout {
        let server = &self.scene.server;
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .as_server_account()
            .arg("--config")
            .arg(&self.config)
            .args(arguments)
            .env("PGMAHOUT_STATE_DIR", self.scene.state())
            .env("PGHOST", server.host())
            .env("PGPORT", server.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .timeout(PATIENCE)
    }

    fn copy(&self, arguments: &[&str]) -> Pgmahout {
        self.pgmahout(&["repo", "copy", "--from", "local", "--to", "offsite", "--json"])
            .args(arguments)
    }

    async fn copied(&self, arguments: &[&str]) -> Value {
        let finished = self.copy(arguments).run().await.expect_status(0);
        serde_json::from_str(&finished.stdout).expect("an object")
    }

    /// Restores from the other repository into a new server, which then answers.
    async fn restored(&self, arguments: &[&str]) -> Postgres {
        let copy = Postgres::vacant(self.scene.server.major());
        self.pgmahout(&["restore", "--yes", "--repo", "offsite", "--data-dir"])
            .arg(copy.data_dir())
            .args(arguments)
            .run()
            .await
            .expect_status(0);
        copy.settle(&[]);
        copy.start_again().await;
        poll::until(PATIENCE, "the end of recovery", async || {
            copy.query_text("postgres", "SELECT pg_is_in_recovery()").await == "f"
        })
        .await;
        copy
    }
}

const SUM: &str = "SELECT count(*) || ' ' || md5(string_agg(id || text, ',' ORDER BY id)) FROM filled";

fn length(value: &Value) -> usize {
    value.as_array().expect("a list").len()
}

#[rstest]
#[case::v15_plain_source(Major::V15, false)]
#[case::v18_other_keys(Major::V18, true)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_restores_like_the_original_and_copying_again_copies_nothing(
    #[case] major: Major,
    #[case] encrypted: bool,
) {
    let two = Two::new(major, encrypted).await;
    two.scene.fill(30_000).await;
    let first = two.scene.backup().await;
    two.scene.fill(300).await;
    let second = two.scene.backup().await;

    let planned = two.copied(&["--dry-run"]).await;
    assert_eq!(length(&planned["plan"]["backups"]), 2);
    assert_eq!(two.s3.keys(), Vec::<String>::new(), "a dry run writes nothing");

    let done = two.copied(&[]).await;
    assert_eq!(length(&done["backups"]), 2, "{done}");
    assert_eq!(done["packs"], planned["plan"]["packs"]);
    assert_eq!(done["verified"]["passed"], true);
    // Nothing of the content can be read there, and what both backups have is there once.
    let listed = two
        .pgmahout(&["repo", "info", "--json"])
        .run()
        .await
        .expect_status(0);
    let info: Value = serde_json::from_str(&listed.stdout).expect("an object");
    let (here, there) = (&info["repositories"][0], &info["repositories"][1]);
    assert_eq!(there["encrypted"], true);
    assert_eq!(here["restorable_bytes"], there["restorable_bytes"]);
    let bytes = |side: &Value| side["pack_bytes"].as_u64().expect("a number");
    assert!(bytes(there) < 3 * bytes(here), "{info}");

    let again = two.copied(&[]).await;
    assert_eq!(length(&again["backups"]), 0);
    assert_eq!(length(&again["already"]), 2);
    assert_eq!((&again["packs"], &again["wal_files"]), (&0.into(), &0.into()));

    // A third one shares the packs and the maps that are there.
    two.scene.fill(200).await;
    let third = two.scene.backup().await;
    let more = two.copied(&[]).await;
    assert_eq!(more["backups"][0]["label"], third);
    assert!(more["packs_there"].as_u64() > Some(0), "{more}");
    assert!(
        more["stored_bytes"].as_u64() < done["stored_bytes"].as_u64(),
        "{more}"
    );
    // What the retention there has no room for is copied when it is named.
    let expired = two
        .pgmahout(&["backup", "expire", "--repo", "offsite", "--yes"])
        .run()
        .await;
    expired.expect_status(0);
    let kept = two.copied(&[]).await;
    assert_eq!(
        (length(&kept["backups"]), length(&kept["unwanted"])),
        (0, 1),
        "{kept}"
    );

    // The moment after the last backup is in the WAL alone.
    two.scene
        .server
        .sql("postgres", "INSERT INTO filled VALUES (0, 'after the backup')")
        .await;
    let expected = two.scene.server.query_text("postgres", SUM).await;
    two.scene.archive_all().await;
    two.copied(&[]).await;
    let verified = two
        .pgmahout(&["backup", "verify", "--repo", "offsite", "--full"])
        .run()
        .await;
    verified.expect_status(0);
    // The original may be gone.
    fs::rename(&two.scene.repository, two.scene.repository.with_extension("gone")).expect("renamed");
    for label in [&second, &third] {
        let restored = two.restored(&["--backup", label]).await;
        assert_eq!(
            restored.query_text("postgres", SUM).await,
            expected,
            "{label}, not {first}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_was_killed_goes_on_where_it_was() {
    let two = Two::new(Major::V18, true).await;
    for _ in 0..2 {
        two.scene.fill(20_000).await;
        two.scene.backup().await;
    }
    // The first pack arrives, and the second one never.
    two.s3.inject(
        Rule::new(Fault::Stall)
            .method("PUT")
            .containing("/pack/")
            .after(1)
            .times(100),
    );
    let running = two.copy(&["--jobs", "1"]).spawn();
    let packs = || two.s3.keys().iter().filter(|key| key.contains("/pack/")).count();
    poll::until(PATIENCE, "the first pack", async || packs() > 0).await;
    running.kill_after(std::time::Duration::ZERO).await;
    two.s3.clear_faults();
    let done = two.copied(&[]).await;
    assert_eq!(length(&done["backups"]), 2);
    assert!(done["packs_there"].as_u64() > Some(0), "{done}");
    assert_eq!(done["verified"]["passed"], true);

    // Killed between the manifest and the head: the name is used, so the copy gets another one.
    two.scene.fill(10).await;
    let label = two.scene.backup().await;
    two.s3.inject(
        Rule::new(Fault::Stall)
            .method("PUT")
            .containing("/head/")
            .times(100),
    );
    let running = two.copy(&[]).spawn();
    poll::until(PATIENCE, "the manifest", async || {
        two.s3
            .keys()
            .iter()
            .any(|key| key.ends_with(&format!("/manifest/{label}")))
    })
    .await;
    running.kill_after(std::time::Duration::ZERO).await;
    two.s3.clear_faults();
    let done = two.copied(&["--label", &label]).await;
    let copy = done["backups"][0]["copy"].as_str().expect("a label");
    assert_ne!(copy, label);
    assert_eq!(copy[..16], label[..16]);
    assert_eq!(two.copied(&["--label", &label]).await["already"][0], label);
    let restored = two.restored(&["--backup", copy]).await;
    assert_eq!(
        restored.query_text("postgres", SUM).await,
        two.scene.server.query_text("postgres", SUM).await
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_is_not_copied_and_the_rest_is() {
    let two = Two::new(Major::V15, false).await;
    two.scene.fill(2_000).await;
    let sound = two.scene.backup().await;
    let before = two.scene.objects();
    two.scene.fill(20_000).await;
    let damaged = two.scene.backup().await;
    let pack = two
        .scene
        .objects()
        .into_iter()
        .find(|path| !before.contains(path) && path.to_string_lossy().contains("/pack/"))
        .expect("a new pack");
    let mut bytes = fs::read(&pack).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).expect("written");
    // And a segment that no backup needs.
    two.scene.archive_all().await;
    let segment = two
        .scene
        .objects()
        .into_iter()
        .rfind(|path| path.to_string_lossy().contains("/wal/0000000") && path.extension().is_none())
        .expect("a segment");
    let mut bytes = fs::read(&segment).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).expect("written");
    let finished = two.copy(&[]).run().await.expect_status(1);
    let report: Value = serde_json::from_str(&finished.stdout).expect("an object");
    assert_eq!(report["failed"][0]["label"], damaged);
    assert_eq!(report["backups"][0]["label"], sound);
    assert_eq!(length(&report["failed_wal"]), 1, "{report}");
    assert!(
        report["failed"][0]["error"]
            .as_str()
            .expect("a text")
            .contains("is damaged"),
        "{report}"
    );

    let same = two
        .pgmahout(&["repo", "copy", "--from", "local", "--to", "local"])
        .run()
        .await
        .expect_status(2);
    assert!(same.stderr.contains("one repository"), "{}", same.stderr);
}
