//! The WAL archive: what it takes and refuses, and what a fetch says to recovery. The segments are made here, of a
//! cluster that exists and does not run; `wal_server` has real ones.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgmahout_testkit::postgres::{Major, Postgres};
use pgmahout_testkit::proc::{Finished, Pgmahout};
use pgmahout_testkit::s3::{Fault, Rule, S3Server};
use pgmahout_types::{ControlFile, SegmentName, SegmentSize, TimelineId};
use rstest::rstest;
use serde_json::Value;

/// A cluster's files, a repository, and the configuration that names both.
struct Scene {
    server: Postgres,
    root: tempfile::TempDir,
    size: SegmentSize,
    system: u64,
    magic: u16,
    s3: Option<S3Server>,
}

impl Scene {
    /// With segments of 1 MiB and one local repository.
    async fn new() -> Self {
        Self::with(1, "").await
    }

    async fn with(mebibytes: u64, wal: &str) -> Self {
        let scene = Self::cluster(mebibytes);
        scene.configure(&["one"], wal);
        scene.init().await;
        scene
    }

    fn cluster(mebibytes: u64) -> Self {
        let server = Postgres::builder(Major::V15)
            .own_system_identifier()
            .initdb_arg(&format!("--wal-segsize={mebibytes}"))
            .prepare();
        let bytes = fs::read(server.data_dir().join(ControlFile::PATH)).expect("readable");
        let control = ControlFile::parse(&bytes).expect("whole");
        Self {
            server,
            root: tempfile::tempdir().expect("a directory"),
            size: SegmentSize::new(mebibytes << 20).expect("a size"),
            system: control.system_identifier.get(),
            magic: 0xD110,
            s3: None,
        }
    }

    /// With one repository on an S3 server that can be made to fail.
    async fn on_s3(wal: &str) -> Self {
        let mut scene = Self::cluster(1);
        let s3 = S3Server::start();
        let text = format!(
            "stanza: main\nrepository:\n  - {{name: far, type: s3, bucket: {}, prefix: wal, endpoint: '{}', region: {}, \
             path_style: true, access_key: '{}', secret_key: '{}'}}\n{wal}",
            s3.bucket(),
            s3.endpoint(),
            s3.region(),
            s3.access_key(),
            s3.secret_key()
        );
        fs::write(scene.config(), text).expect("written");
        scene.s3 = Some(s3);
        scene.init().await;
        scene
    }

    fn configure(&self, repositories: &[&str], wal: &str) {
        let list: Vec<String> = repositories
            .iter()
            .map(|name| {
                format!(
                    "  - {{name: {name}, type: local, path: {}}}\n",
                    self.repository(name).display()
                )
            })
            .collect();
        fs::write(
            self.config(),
            format!("stanza: main\nrepository:\n{}{wal}", list.concat()),
        )
        .expect("written");
    }

    async fn init(&self) {
        self.run(&["repo", "init", "--data-dir", self.data_dir()])
            .await
            .expect_status(0);
    }

    fn data_dir(&self) -> &str {
        self.server.data_dir().to_str().expect("text")
    }

    fn config(&self) -> PathBuf {
        self.root.path().join("pgmahout.yml")
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Where an object of a segment is.
    fn object(&self, repository: &str, name: &str) -> PathBuf {
        let wal = self
            .repository(repository)
            .join("stanza/main/wal")
            .join(&name[..8]);
        if name.len() == 24 {
            wal.join(&name[8..16]).join(name)
        } else {
            wal.join(name)
        }
    }

    fn pg_wal(&self) -> PathBuf {
        self.server.data_dir().join("pg_wal")
    }

    fn command(&self, arguments: &[&str]) -> Pgmahout {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .env("PGMAHOUT_STATE_DIR", self.root.path().join("state"))
            .arg("--config")
            .arg(self.config())
            .args(arguments)
            .current_dir(self.server.data_dir())
    }

    async fn run(&self, arguments: &[&str]) -> Finished {
        self.command(arguments).run().await
    }

    fn name(&self, timeline: u32, number: u64) -> String {
        let timeline = TimelineId::new(timeline).expect("not zero");
        SegmentName::new(timeline, number, self.size)
            .expect("a segment")
            .to_string()
    }

    /// The bytes of a segment: a header as the server writes it, and something that tells segments apart.
    fn content(&self, timeline: u32, number: u64, mark: u8) -> Vec<u8> {
        let bytes = self.size.bytes();
        let mut content = vec![mark; bytes as usize];
        content[..40].fill(0);
        content[..2].copy_from_slice(&self.magic.to_le_bytes());
        content[2] = 2;
        content[4..8].copy_from_slice(&timeline.to_le_bytes());
        content[8..16].copy_from_slice(&(number * bytes).to_le_bytes());
        content[24..32].copy_from_slice(&self.system.to_le_bytes());
        content[32..36].copy_from_slice(&(bytes as u32).to_le_bytes());
        content[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        content
    }

    /// Puts a segment into pg_wal, ready to be archived.
    fn write(&self, timeline: u32, number: u64, mark: u8) -> String {
        let name = self.name(timeline, number);
        fs::write(self.pg_wal().join(&name), self.content(timeline, number, mark)).expect("written");
        self.ready(&name);
        name
    }

    fn ready(&self, name: &str) {
        let status = self.pg_wal().join("archive_status");
        fs::write(status.join(format!("{name}.ready")), "").expect("written");
    }

    async fn push(&self, name: &str) -> Finished {
        self.run(&["wal", "push", &format!("pg_wal/{name}")]).await
    }

    /// As the server does after status 0.
    fn done(&self, name: &str) {
        let status = self.pg_wal().join("archive_status");
        fs::rename(
            status.join(format!("{name}.ready")),
            status.join(format!("{name}.done")),
        )
        .expect("renamed");
    }

    async fn fetch(&self, name: &str) -> Finished {
        self.run(&["wal", "fetch", name, "pg_wal/RECOVERYXLOG"]).await
    }

    fn recovered(&self) -> Vec<u8> {
        fs::read(self.pg_wal().join("RECOVERYXLOG")).expect("fetched")
    }

    fn signal(&self, name: Option<&str>) {
        for other in ["recovery.signal", "standby.signal"] {
            let _ = fs::remove_file(self.server.data_dir().join(other));
        }
        if let Some(name) = name {
            fs::write(self.server.data_dir().join(name), "").expect("written");
        }
    }

    async fn list(&self) -> Value {
        let listed = self.run(&["--json", "wal", "list"]).await.expect_status(0);
        serde_json::from_str(&listed.stdout).expect("JSON")
    }
}

fn flip(path: &Path) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("there");
    let middle = file.metadata().expect("known").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).expect("read");
    file.write_all_at(&[!byte[0]], middle).expect("written");
}

#[rstest]
#[case::smallest(1)]
#[case::usual(16)]
#[case::large(64)]
#[tokio::test]
async fn what_was_pushed_is_fetched_whatever_the_segment_size(#[case] mebibytes: u64) {
    let scene = Scene::with(mebibytes, "").await;
    let names: Vec<String> = (3..6)
        .map(|number| scene.write(1, number, number as u8))
        .collect();
    for name in &names {
        scene.push(name).await.expect_status(0);
        scene.done(name);
    }
    for (number, name) in (3..6).zip(&names) {
        scene.fetch(name).await.expect_status(0);
        assert!(
            scene.recovered() == scene.content(1, number, number as u8),
            "{name}"
        );
    }
    scene.run(&["wal", "verify"]).await.expect_status(0);
}

#[tokio::test]
async fn pushing_the_same_again_succeeds_and_other_content_is_refused() {
    let scene = Scene::new().await;
    let name = scene.write(1, 3, 7);
    scene.push(&name).await.expect_status(0);
    let object = fs::read(scene.object("one", &name)).expect("stored");
    scene.push(&name).await.expect_status(0);
    // Also without the note of the first call.
    fs::remove_dir_all(scene.root.path().join("state")).expect("removed");
    scene.push(&name).await.expect_status(0);
    // The name comes again with other content, as after a restore on an old timeline.
    scene.write(1, 3, 8);
    let refused = scene.push(&name).await.expect_status(3);
    assert!(refused.stderr.contains("holds another"), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint:"), "{}", refused.stderr);
    assert_eq!(fs::read(scene.object("one", &name)).expect("there"), object);
    scene.write(1, 3, 7);
    scene.push(&name).await.expect_status(0);
}

#[tokio::test]
async fn one_push_stores_what_waits_and_the_next_ones_only_look() {
    let scene = Scene::new().await;
    let names: Vec<String> = (3..23).map(|number| scene.write(1, number, 1)).collect();
    scene.push(&names[0]).await.expect_status(0);
    for name in &names {
        assert!(scene.object("one", name).exists(), "{name} waits still");
    }
    for name in &names[1..] {
        let pushed = scene
            .run(&["--json", "wal", "push", &format!("pg_wal/{name}")])
            .await
            .expect_status(0);
        let report: Value = serde_json::from_str(&pushed.stdout).expect("JSON");
        assert_eq!(report["outcome"], "known");
    }
    // A note is of content: the same name with other bytes is looked at.
    scene.write(1, 5, 2);
    scene.push(&names[2]).await.expect_status(3);
}

#[tokio::test]
async fn a_note_does_not_hold_for_a_repository_that_was_made_anew() {
    let scene = Scene::new().await;
    let name = scene.write(1, 3, 1);
    scene.push(&name).await.expect_status(0);
    fs::remove_dir_all(scene.repository("one")).expect("removed");
    scene.push(&name).await.expect_status(2);
    scene.init().await;
    scene.push(&name).await.expect_status(0);
    assert!(scene.object("one", &name).exists());
}

#[tokio::test]
async fn wal_of_another_cluster_or_version_is_refused() {
    let mut scene = Scene::new().await;
    let own = scene.system;
    scene.system ^= 1;
    let name = scene.write(1, 3, 1);
    let refused = scene.push(&name).await.expect_status(3);
    assert!(
        refused.stderr.contains("belongs to cluster") && refused.stderr.contains(&own.to_string()),
        "{}",
        refused.stderr
    );
    scene.system = own;
    scene.magic = 0xD113;
    scene.write(1, 3, 1);
    let refused = scene.push(&name).await.expect_status(3);
    assert!(refused.stderr.contains("PostgreSQL 16"), "{}", refused.stderr);
    assert!(!scene.object("one", &name).exists());

    // A history says nothing of its cluster: pg_control beside it does.
    let other = Scene::cluster(1);
    fs::write(other.pg_wal().join("00000002.history"), "1\t0/3000000\tx\n").expect("written");
    let path = other.pg_wal().join("00000002.history");
    scene
        .run(&["wal", "push", path.to_str().expect("text")])
        .await
        .expect_status(3);
}

#[tokio::test]
async fn what_is_not_what_its_name_says_is_refused() {
    let scene = Scene::new().await;
    let name = scene.name(1, 3);
    let path = scene.pg_wal().join(&name);
    for (content, says) in [
        (scene.content(1, 4, 1), "holds the WAL segment"),
        (scene.content(1, 3, 1)[..500_000].to_vec(), "500000 bytes"),
        (vec![0; 1 << 20], "all zero"),
        (b"x".to_vec(), "40 bytes"),
    ] {
        fs::write(&path, content).expect("written");
        let refused = scene.push(&name).await.expect_status(1);
        assert!(refused.stderr.contains(says), "{says}: {}", refused.stderr);
    }
    let refused = scene.push("not_a_wal_file").await.expect_status(2);
    assert!(
        refused.stderr.contains("not the name of a WAL file"),
        "{}",
        refused.stderr
    );
    assert!(!scene.object("one", &name).exists());
}

#[tokio::test]
async fn a_partial_segment_is_never_served_as_a_segment_and_histories_are_kept() {
    let scene = Scene::new().await;
    let name = scene.name(1, 3);
    let partial = format!("{name}.partial");
    fs::write(scene.pg_wal().join(&partial), scene.content(1, 3, 1)).expect("written");
    let history = "1\t0/300100\tno recovery target specified\n";
    fs::write(scene.pg_wal().join("00000002.history"), history).expect("written");
    for file in [&*partial, "00000002.history"] {
        scene.push(file).await.expect_status(0);
    }
    scene.signal(Some("recovery.signal"));
    scene.fetch(&name).await.expect_status(1);
    assert!(!scene.pg_wal().join("RECOVERYXLOG").exists());
    scene.fetch(&partial).await.expect_status(0);
    scene.fetch("00000002.history").await.expect_status(0);
    assert_eq!(scene.recovered(), history.as_bytes());
    scene.fetch("00000003.history").await.expect_status(1);
    // Another server that was left at the same promotion has other bytes behind the end: that must not stop archiving.
    fs::write(scene.pg_wal().join(&partial), scene.content(1, 3, 2)).expect("written");
    scene.push(&partial).await.expect_status(0);
    scene.fetch(&partial).await.expect_status(0);
    assert!(scene.recovered() == scene.content(1, 3, 1), "the first stays");
}

#[tokio::test]
async fn a_fetch_says_absent_only_where_that_is_proven() {
    let scene = Scene::new().await;
    let name = scene.write(1, 3, 1);
    scene.push(&name).await.expect_status(0);
    let absent = scene.name(1, 9);
    let modes = [
        (Some("recovery.signal"), 126),
        (Some("standby.signal"), 1),
        (None, 126),
    ];
    for (signal, failed) in modes {
        scene.signal(signal);
        scene.fetch(&name).await.expect_status(0);
        scene.fetch(&absent).await.expect_status(1);

        let usage = scene.run(&["wal", "fetch", "--no-such-flag", &name]).await;
        usage.expect_status(failed);
        scene.fetch("no-wal-file").await.expect_status(failed);
        scene
            .run(&[
                "--config",
                "/nowhere.yml",
                "wal",
                "fetch",
                &name,
                "pg_wal/RECOVERYXLOG",
            ])
            .await
            .expect_status(failed);
        scene
            .run(&["wal", "fetch", &name, "no/such/directory/RECOVERYXLOG"])
            .await
            .expect_status(failed);

        // The repository is not there: that proves nothing.
        let (here, away) = (scene.repository("one"), scene.repository("away"));
        fs::rename(&here, &away).expect("renamed");
        scene.fetch(&absent).await.expect_status(failed);
        fs::rename(&away, &here).expect("renamed");

        let object = scene.object("one", &name);
        flip(&object);
        let damaged = scene.fetch(&name).await.expect_status(failed);
        assert!(damaged.stderr.contains("is damaged"), "{}", damaged.stderr);
        flip(&object);
        scene.fetch(&name).await.expect_status(0);
    }
}

#[tokio::test]
async fn another_repository_helps_and_all_must_deny_a_segment() {
    let scene = Scene::cluster(1);
    scene.configure(&["one", "two"], "");
    scene.init().await;
    let name = scene.write(1, 3, 1);
    scene.push(&name).await.expect_status(0);
    scene.signal(Some("recovery.signal"));
    flip(&scene.object("one", &name));
    scene.fetch(&name).await.expect_status(0);
    assert_eq!(scene.recovered(), scene.content(1, 3, 1));
    fs::rename(scene.repository("one"), scene.repository("away")).expect("renamed");
    scene.fetch(&name).await.expect_status(0);
    // The one that is away might have it.
    scene.fetch(&scene.name(1, 4)).await.expect_status(126);
}

#[tokio::test]
async fn two_contents_for_one_segment_are_found() {
    let scene = Scene::cluster(1);
    scene.configure(&["one", "two"], "");
    scene.init().await;
    for (repository, mark) in [("one", 1), ("two", 2)] {
        let name = scene.write(1, 3, mark);
        scene
            .run(&["wal", "push", &format!("pg_wal/{name}"), "--repo", repository])
            .await
            .expect_status(0);
    }
    let verified = scene.run(&["wal", "verify"]).await.expect_status(1);
    assert!(verified.stdout.contains("different files"), "{}", verified.stdout);
    scene.push(&scene.name(1, 3)).await.expect_status(3);
}

#[tokio::test]
async fn what_was_read_ahead_does_not_outlive_a_timeline_or_a_rewind() {
    let scene = Scene::new().await;
    for number in 3..20 {
        let name = scene.write(1, number, 1);
        scene.push(&name).await.expect_status(0);
    }
    let spool = scene.pg_wal().join("pgmahout.fetch");
    let ahead = |number| spool.join(scene.name(1, number)).exists();
    scene.signal(Some("recovery.signal"));
    scene.fetch(&scene.name(1, 3)).await.expect_status(0);
    assert!(ahead(4) && !ahead(3));
    scene.fetch(&scene.name(1, 4)).await.expect_status(0);
    assert_eq!(scene.recovered(), scene.content(1, 4, 1));
    assert!(!ahead(4) && ahead(5));

    // What lies in the spool is not trusted: damaged, it comes from the repository.
    flip(&spool.join(scene.name(1, 5)));
    scene.fetch(&scene.name(1, 5)).await.expect_status(0);
    assert_eq!(scene.recovered(), scene.content(1, 5, 1));

    // Back in time: what was ahead is far ahead now.
    scene.fetch(&scene.name(1, 10)).await.expect_status(0);
    assert!(ahead(11));
    scene.fetch(&scene.name(1, 3)).await.expect_status(0);
    scene.fetch(&scene.name(1, 4)).await.expect_status(0);

    // On another timeline.
    let other = scene.write(2, 7, 9);
    scene.push(&other).await.expect_status(0);
    scene.fetch(&other).await.expect_status(0);
    let left: Vec<_> = fs::read_dir(&spool)
        .expect("there")
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().starts_with("00000001"))
        .collect();
    assert!(left.is_empty(), "{left:?}");

    // Of a repository that was made anew.
    scene.fetch(&scene.name(1, 12)).await.expect_status(0);
    assert!(ahead(13));
    fs::remove_dir_all(scene.repository("one")).expect("removed");
    scene.signal(None);
    scene.init().await;
    scene.fetch(&scene.name(1, 13)).await.expect_status(1);
}

#[tokio::test]
async fn a_push_that_is_killed_loses_no_acknowledged_segment() {
    let scene = Scene::new().await;
    let names: Vec<String> = (3..43)
        .map(|number| scene.write(1, number, number as u8))
        .collect();
    let mut acknowledged = Vec::new();
    for (round, name) in names.iter().enumerate() {
        let command = scene.command(&["wal", "push", &format!("pg_wal/{name}")]);
        let delay = Duration::from_millis((round as u64 * 37) % 150);
        let finished = command.spawn().kill_after(delay).await;
        if finished.status == Some(0) {
            acknowledged.push(name.clone());
            scene.done(name);
        }
    }
    for name in &names {
        scene.push(name).await.expect_status(0);
    }
    for (number, name) in (3_u64..).zip(&names) {
        scene.fetch(name).await.expect_status(0);
        assert!(
            scene.recovered() == scene.content(1, number, number as u8),
            "{name}"
        );
    }
    scene.run(&["wal", "verify"]).await.expect_status(0);
}

#[tokio::test]
async fn two_pushes_of_one_segment_at_once_both_succeed() {
    let scene = Scene::new().await;
    for number in 3..9 {
        let name = scene.write(1, number, 1);
        let (one, other) = tokio::join!(scene.push(&name), scene.push(&name));
        one.expect_status(0);
        other.expect_status(0);
    }
    scene.run(&["wal", "verify"]).await.expect_status(0);
}

#[tokio::test]
async fn a_repository_that_was_down_is_filled_later() {
    let scene = Scene::cluster(1);
    scene.configure(&["one", "two"], "wal: {min_repositories: 1}\n");
    scene.init().await;
    let (here, away) = (scene.repository("two"), scene.repository("away"));
    fs::rename(&here, &away).expect("renamed");
    let first = scene.write(1, 3, 1);
    let pushed = scene.push(&first).await.expect_status(0);
    assert!(
        pushed.stderr.contains("not yet in repository two"),
        "{}",
        pushed.stderr
    );
    scene.done(&first);
    fs::rename(&away, &here).expect("renamed");
    let second = scene.write(1, 4, 1);
    scene.push(&second).await.expect_status(0);
    for name in [&first, &second] {
        assert!(scene.object("two", name).exists(), "{name}");
    }
    // With the default all must hold it.
    scene.configure(&["one", "two"], "");
    fs::rename(&here, &away).expect("renamed");
    let third = scene.write(1, 5, 1);
    let failed = scene.push(&third).await;
    assert_ne!(failed.status, Some(0));
    assert!(failed.stderr.contains("1 of the 2"), "{}", failed.stderr);
}

#[tokio::test]
async fn during_an_outage_the_spool_holds_segments_and_gives_them_back() {
    let scene = Scene::cluster(1);
    let spool = scene.root.path().join("spool");
    scene.configure(
        &["one"],
        &format!("wal: {{spool: {{path: {}, size: 2MB}}}}\n", spool.display()),
    );
    scene.init().await;
    let (here, away) = (scene.repository("one"), scene.repository("away"));
    fs::rename(&here, &away).expect("renamed");
    let names: Vec<String> = (3..6).map(|number| scene.write(1, number, 1)).collect();
    for name in &names[..1] {
        let pushed = scene.push(name).await.expect_status(0);
        assert!(pushed.stderr.contains("waits in the spool"), "{}", pushed.stderr);
        scene.done(name);
        fs::remove_file(scene.pg_wal().join(name)).expect("recycled");
    }
    scene.push(&names[1]).await;
    // It is bounded.
    let full = scene.push(&names[2]).await;
    assert_ne!(full.status, Some(0), "{}", full.stderr);
    fs::rename(&away, &here).expect("renamed");
    scene.push(&names[2]).await.expect_status(0);
    assert!(scene.object("one", &names[0]).exists());
    scene.fetch(&names[0]).await.expect_status(0);
}

#[tokio::test]
async fn a_queue_that_overflows_leaves_a_recorded_gap() {
    let scene = Scene::cluster(1);
    scene.configure(&["one"], "wal: {max_queue: 3MB}\n");
    scene.init().await;
    let first = scene.write(1, 3, 1);
    scene.push(&first).await.expect_status(0);
    scene.done(&first);
    let (here, away) = (scene.repository("one"), scene.repository("away"));
    fs::rename(&here, &away).expect("renamed");
    let names: Vec<String> = (4..8).map(|number| scene.write(1, number, 1)).collect();
    let given_up = scene.push(&names[0]).await.expect_status(0);
    assert!(given_up.stderr.contains("backup create"), "{}", given_up.stderr);
    scene.done(&names[0]);
    // Three wait now: that is allowed, and nothing is given up.
    let kept = scene.push(&names[1]).await;
    assert_ne!(kept.status, Some(0));
    fs::rename(&away, &here).expect("renamed");
    scene.push(&names[1]).await.expect_status(0);
    let list = scene.list().await;
    let gap = &list["repositories"][0]["timelines"][0]["gaps"][0];
    assert_eq!(gap["first"], names[0].as_str());
    assert!(
        gap["reason"]
            .as_str()
            .expect("recorded")
            .contains("wal.max_queue")
    );
    let verified = scene.run(&["wal", "verify"]).await.expect_status(1);
    assert!(verified.stdout.contains("wal.max_queue"), "{}", verified.stdout);
}

#[tokio::test]
async fn an_answer_that_was_lost_is_no_conflict() {
    let scene = Scene::on_s3("").await;
    let s3 = scene.s3.as_ref().expect("it runs");
    let name = scene.write(1, 3, 1);
    s3.inject(
        Rule::new(Fault::LoseAnswer)
            .method("PUT")
            .containing("wal/00000001"),
    );
    scene.push(&name).await.expect_status(0);
    scene.signal(Some("recovery.signal"));
    s3.inject(
        Rule::new(Fault::CutBody { after: 1000 })
            .method("GET")
            .containing("wal/00000001"),
    );
    scene.fetch(&name).await.expect_status(0);
    assert_eq!(scene.recovered(), scene.content(1, 3, 1));
}

#[tokio::test]
async fn a_storage_that_fails_ends_a_recovery_and_lets_a_standby_try_again() {
    let scene = Scene::on_s3("wal: {timeout: 3s}\n").await;
    let s3 = scene.s3.as_ref().expect("it runs");
    let name = scene.write(1, 3, 1);
    scene.push(&name).await.expect_status(0);
    let absent = scene.name(1, 4);
    for (signal, failed) in [("recovery.signal", 126), ("standby.signal", 1)] {
        scene.signal(Some(signal));
        scene.fetch(&absent).await.expect_status(1);
        s3.inject(Rule::new(Fault::Status(503)).always());
        scene.fetch(&absent).await.expect_status(failed);
        scene.fetch(&name).await.expect_status(failed);
        s3.clear_faults();
        scene.fetch(&name).await.expect_status(0);
    }
    s3.inject(Rule::new(Fault::Status(503)).always());
    let late = scene.write(1, 5, 1);
    let failed = scene.push(&late).await;
    assert_ne!(failed.status, Some(0));
    assert!(failed.stderr.contains("hint:"), "{}", failed.stderr);
}
