//! Packs of which hardly anything is used any more.

use std::path::Path;

use pgmahout_testkit::contents;
use pgmahout_testkit::postgres::Major;

use crate::archived::{Archived, Storage};

fn bytes_in(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Bytes that a backup stored because no older one has them, or is to be built on.
async fn back_up(scene: &Archived) -> u64 {
    let output = scene.run(&["backup", "create", "--jobs", "1", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&output).expect("one JSON object");
    let backup = json.get("backups").map_or(&json, |backups| &backups[0]);
    backup["new"]
        .as_u64()
        .unwrap_or_else(|| panic!("new in {output}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_space_of_mostly_dead_packs_comes_back_and_no_finished_backup_is_changed() {
    let scene = Archived::new(Major::V18, Storage::Directory, true).await;
    let packs = scene.repository.join("stanza/main/pack");
    scene
        .server
        .sql(
            "postgres",
            "CREATE TABLE big AS SELECT i, string_agg(md5((i * 8 + j)::text), '') AS t
             FROM generate_series(1, 330000) i, generate_series(1, 8) j GROUP BY i",
        )
        .await;
    back_up(&scene).await;
    scene.server.sql("postgres", "DROP TABLE big").await;
    scene.server.sql("postgres", "CHECKPOINT").await;
    back_up(&scene).await;
    // The first backup still has the table: storing the rest of its packs again would win nothing.
    assert!(back_up(&scene).await < 4 << 20);
    scene.run(&["backup", "expire", "--yes"]).await;
    let before = bytes_in(&packs);
    assert!(before > 30 << 20, "{before} bytes");
    let manifests = || {
        let entries = std::fs::read_dir(scene.repository.join("stanza/main/manifest")).expect("it is there");
        let read = entries.map(|entry| {
            let path = entry.expect("readable").path();
            (path.clone(), std::fs::read(path).expect("readable"))
        });
        read.collect::<std::collections::BTreeMap<_, _>>()
    };
    let old = manifests();
    let afresh = back_up(&scene).await;
    assert!(afresh > 12 << 20, "{afresh} bytes were stored afresh");
    assert!(
        old.iter()
            .all(|(path, content)| manifests().get(path) == Some(content))
    );
    assert!(back_up(&scene).await < 4 << 20, "once is enough");
    scene.run(&["backup", "expire", "--yes"]).await;
    let after = bytes_in(&packs);
    assert!(after < before / 2, "{before} bytes before, {after} after");
    scene.run(&["backup", "verify", "--full"]).await;
    scene.archive_all().await;
    let copy = scene.restored(&[]).await;
    assert_eq!(
        contents::digests(&copy, "postgres").await,
        contents::digests(&scene.server, "postgres").await
    );
}
