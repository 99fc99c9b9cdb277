//! `backup verify`: damage of every kind is found, named, and remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pgmahout_testkit::postgres::{Major, Postgres};
use rstest::rstest;
use serde_json::Value;

use crate::physical_scene::Scene;

/// How many byte flips are tried; PGMAHOUT_TEST_FLIPS asks for more.
const FLIPS: u64 = 40;

/// After every so many of them a restore is tried too.
const RESTORED: u64 = 10;

/// A generator whose seed a failure names: xorshift64*, as good as any for choosing bytes.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::env::var("PGMAHOUT_TEST_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(|| u64::from(std::process::id()) * 7919 + 1);
        Self(seed.max(1))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % limit
    }
}

fn under<'a>(objects: &'a [PathBuf], part: &str) -> Vec<&'a PathBuf> {
    objects
        .iter()
        .filter(|path| path.to_string_lossy().contains(part))
        .collect()
}

fn largest(objects: &[PathBuf], part: &str) -> PathBuf {
    let size = |path: &&PathBuf| fs::metadata(path).expect("there").len();
    under(objects, part)
        .into_iter()
        .max_by_key(size)
        .expect("one")
        .clone()
}

fn damaged(result: &Value) -> &Vec<Value> {
    result["repositories"][0]["damages"].as_array().expect("a list")
}

#[rstest]
#[case(Major::V15)]
#[case(Major::V18)]
#[tokio::test]
async fn a_whole_repository_is_sound_and_what_was_read_is_not_read_again(#[case] major: Major) {
    let scene = Scene::new(major, true).await;
    scene.fill(20_000).await;
    let first = scene.backup().await;
    scene.fill(2_000).await;
    let second = scene.backup().await;

    let all = scene.json(&["backup", "verify", "--full"], 0).await;
    let repository = &all["repositories"][0];
    let labels: Vec<&str> = repository["backups"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|backup| {
            assert_eq!(backup["passed"], true, "{backup}");
            assert_eq!(backup["never_read"], 0, "{backup}");
            backup["label"].as_str().expect("a label")
        })
        .collect();
    assert_eq!(labels, [first.as_str(), second.as_str()]);
    assert!(repository["bytes"].as_u64().expect("a number") > 1_000_000);

    // Nothing is due, and the head knows.
    let again = scene.json(&["backup", "verify"], 0).await;
    assert_eq!(again["repositories"][0]["objects"], 0, "{again}");
    let listed = scene.json(&["backup", "list"], 0).await;
    for backup in listed["repositories"][0]["backups"].as_array().expect("a list") {
        assert_eq!(backup["verified"]["passed"], true, "{backup}");
    }

    // A small budget goes round: what was read longest ago comes first.
    let some = scene.json(&["backup", "verify", "--budget", "1MB"], 0).await;
    let read = some["repositories"][0]["objects"].as_u64().expect("a number");
    assert!(read >= 1, "{some}");
    assert!(some["repositories"][0]["objects_left"].as_u64().is_some());
}

#[tokio::test]
async fn a_damaged_block_is_named_with_its_file_and_every_backup_that_needs_it() {
    let scene = Scene::new(Major::V18, true).await;
    scene.fill(20_000).await;
    let first = scene.backup().await;
    let second = scene.backup().await;
    let path = scene
        .server
        .query_text("postgres", "SELECT pg_relation_filepath('filled')")
        .await;
    let pack = largest(&scene.objects(), "/pack/");
    flip(&pack, fs::metadata(&pack).expect("there").len() / 2, 1);

    let result = scene.json(&["backup", "verify", "--full"], 1).await;
    let [damage] = &damaged(&result)[..] else {
        panic!("{result}")
    };
    let name = pack.file_name().expect("a name").to_string_lossy().into_owned();
    assert_eq!(damage["object"], format!("pack {name}"));
    let backups: BTreeSet<&str> = damage["backups"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(backups, BTreeSet::from([first.as_str(), second.as_str()]));
    let blocks = damage["blocks"].as_array().expect("a list");
    assert!(!blocks.is_empty(), "{damage}");
    for block in blocks {
        assert!(
            block["path"].as_str().is_some_and(|path| !path.is_empty()),
            "{block}"
        );
        assert!(block["count"].as_u64().is_some_and(|count| count >= 1), "{block}");
    }

    let shown = scene.run(&["backup", "verify", &second]).await.expect_status(1);
    assert!(
        shown.stdout.contains("DAMAGED") && shown.stdout.contains("block"),
        "{}",
        shown.stdout
    );
    assert!(shown.stderr.contains("hint:"), "{}", shown.stderr);
    assert!(!path.trim().is_empty());

    // The next backup does not build on what is damaged, and is sound.
    let third = scene.backup().await;
    let result = scene.json(&["backup", "verify", &third], 0).await;
    assert_eq!(
        result["repositories"][0]["backups"][0]["label"],
        third.as_str(),
        "{result}"
    );
    let result = scene.json(&["backup", "verify", "--full"], 1).await;
    let backups = result["repositories"][0]["backups"].as_array().expect("a list");
    let passed: Vec<bool> = backups.iter().map(|backup| backup["passed"] == true).collect();
    assert_eq!(passed, [false, false, true], "{result}");
}

#[tokio::test]
async fn objects_that_are_gone_cut_swapped_or_older_copies_are_found() {
    let scene = Scene::new(Major::V15, true).await;
    scene.fill(5_000).await;
    scene.backup().await;
    let before = scene.config.with_file_name("before");
    copy_tree(&scene.repository, &before);
    scene.fill(20_000).await;
    scene.backup().await;
    scene.archive_all().await;
    scene.json(&["backup", "verify", "--full"], 0).await;
    let objects = scene.objects();
    let packs = under(&objects, "/pack/");
    // Those that the two backups cannot do without.
    let listed = scene.json(&["backup", "list"], 0).await;
    let segments: Vec<&PathBuf> = listed["repositories"][0]["backups"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|backup| backup["wal"]["first"].as_str())
        .flat_map(|segment| under(&objects, segment))
        .filter(|path| {
            path.to_string_lossy().len() - path.parent().expect("one").to_string_lossy().len() == 25
        })
        .collect();
    let manifests = under(&objects, "/manifest/");
    assert!(
        packs.len() >= 2 && segments.len() >= 2 && manifests.len() == 2,
        "{objects:?}"
    );

    let find = async |what: &str| {
        let result = scene.json(&["backup", "verify", "--full"], 1).await;
        assert!(!damaged(&result).is_empty(), "{what}");
    };
    for (what, list) in [("pack", &packs), ("segment", &segments), ("manifest", &manifests)] {
        let (one, other) = (list[0], list[1]);
        let (kept, others) = (fs::read(one).expect("there"), fs::read(other).expect("there"));

        fs::remove_file(one).expect("ours");
        find(&format!("a {what} is missing")).await;

        fs::write(one, &kept[..kept.len() - 7]).expect("ours");
        find(&format!("a {what} is cut")).await;

        fs::write(one, [&kept[..], b"tail"].concat()).expect("ours");
        find(&format!("a {what} is longer")).await;

        fs::write(one, &others).expect("ours");
        find(&format!("a {what} has another one in its place")).await;

        fs::write(one, &kept).expect("ours");
        fs::write(other, &kept).expect("ours");
        find(&format!("a {what} stands twice")).await;
        fs::write(other, &others).expect("ours");
    }
    // The head of before, in the place of the newest: this host has seen a newer one.
    let objects = scene.objects();
    let heads = under(&objects, "/head/");
    let newest = heads.last().expect("a head");
    let kept = fs::read(newest).expect("there");
    fs::remove_file(newest).expect("ours");
    let refused = scene.run(&["backup", "verify"]).await.expect_status(3);
    assert!(refused.stderr.contains("set back"), "{}", refused.stderr);
    fs::write(newest, kept).expect("ours");
    scene.json(&["backup", "verify", "--full"], 0).await;
}

#[tokio::test]
async fn every_flipped_byte_of_an_encrypted_repository_is_found() {
    let scene = Scene::new(Major::V18, true).await;
    scene.fill(3_000).await;
    scene.backup().await;
    scene.fill(300).await;
    scene.backup().await;
    scene.archive_all().await;
    scene.json(&["backup", "verify", "--full"], 0).await;
    let objects = scene.objects();
    let flips = std::env::var("PGMAHOUT_TEST_FLIPS")
        .ok()
        .and_then(|flips| flips.parse().ok())
        .unwrap_or(FLIPS);
    // What a restore gives of the sound repository.
    let vacant = Postgres::vacant(Major::V18);
    let restore = async || {
        if vacant.data_dir().exists() {
            fs::remove_dir_all(vacant.data_dir()).expect("ours");
        }
        let command = scene
            .pgmahout(&["restore", "--yes", "--data-dir"])
            .arg(vacant.data_dir());
        (command.run().await.status == Some(0)).then(|| contents(vacant.data_dir()))
    };
    let sound = restore().await.expect("it restores");
    let mut dice = Dice::new();
    let seed = dice.0;
    let mut restored = 0;
    for number in 0..flips {
        // By object, not by byte: small objects have their turn.
        let at = usize::try_from(dice.below(objects.len() as u64)).expect("small");
        let object = &objects[at];
        let size = fs::metadata(object).expect("there").len();
        let (offset, bit) = (dice.below(size), dice.below(8));
        flip(object, offset, 1 << bit);
        let finished = scene.run(&["backup", "verify", "--full", "--json"]).await;
        assert_ne!(
            finished.status,
            Some(0),
            "PGMAHOUT_TEST_SEED={seed}: flip {number}: bit {bit} of byte {offset} of {} bytes of {} was not found",
            size,
            object.display()
        );
        if number % RESTORED == 0
            && let Some(files) = restore().await
        {
            // Of older heads, keys that have a copy, the other backup: nothing that this restore needs.
            assert!(
                files == sound,
                "PGMAHOUT_TEST_SEED={seed}: flip {number} in {} was restored silently",
                object.display()
            );
            restored += 1;
        }
        flip(object, offset, 1 << bit);
    }
    println!(
        "{flips} flips in {} objects, all found; {restored} restores that needed none of them",
        objects.len()
    );
    scene.json(&["backup", "verify", "--full"], 0).await;
}

#[tokio::test]
async fn an_unknown_label_is_refused_with_those_that_there_are() {
    let scene = Scene::new(Major::V18, false).await;
    let label = scene.backup().await;
    let refused = scene
        .run(&["backup", "verify", "20200101T000000Z-0000"])
        .await
        .expect_status(2);
    assert!(refused.stderr.contains(&label), "{}", refused.stderr);
}

fn flip(path: &Path, offset: u64, mask: u8) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("ours");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("inside");
    byte[0] ^= mask;
    file.write_all_at(&byte, offset).expect("written");
}

/// All files below a directory.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.insert(path.clone(), fs::read(&path).expect("readable"));
            }
        }
    }
    found
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}
