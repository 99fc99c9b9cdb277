//! Pages that are damaged on disk.

use std::os::unix::fs::FileExt;

use pgmahout_backup::physical::page::{BLOCK_SIZE, checksum};
use pgmahout_testkit::postgres::{Major, StopMode};
use pgmahout_types::repository::manifest::Entry;
use rstest::rstest;

use crate::support::Bench;

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_page_is_found_named_and_kept(#[values(Major::V15, Major::V18)] major: Major) {
    let bench = Bench::new(major).await;
    let server = &bench.server;
    server
        .sql(
            "postgres",
            "CREATE TABLE t AS SELECT n, md5(n::text) AS text FROM generate_series(1, 20000) AS n",
        )
        .await;
    let path = server
        .query_text("postgres", "SELECT pg_relation_filepath('t')")
        .await;
    // Nothing of it is in the server's memory when it is damaged.
    server.stop(StopMode::Fast).await;
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(server.data_dir().join(&path))
        .expect("ours");
    file.write_all_at(b"damage", 3 * 8192 + 5000).expect("ours");
    // A page with an LSN that the server has not reached yet is damaged too, whatever it claims.
    file.write_all_at(&[0xff; 8], 5 * 8192).expect("ours");
    server.start_again().await;
    let created = bench.backup().await;
    assert_eq!(created.damaged_pages, 2);
    let named: Vec<(&str, u32)> = created
        .damaged
        .iter()
        .map(|page| (&*page.file, page.block))
        .collect();
    assert_eq!(named, [(&*path, 3), (&*path, 5)]);
    let manifest = bench.manifest(created.label).await;
    let findings: Vec<(String, u32)> = manifest
        .entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Finding(finding) => Some((finding.path.to_string(), finding.block)),
            _ => None,
        })
        .collect();
    assert_eq!(findings, [(path.clone(), 3), (path.clone(), 5)]);
    let head = bench.repository.head().await.expect("a head");
    assert_eq!(head.backups[0].findings, 2);
    // It is kept as it is: somebody may yet save rows of it.
    let stored = &bench.files(created.label).await[&path];
    assert_eq!(&stored[3 * 8192 + 5000..3 * 8192 + 5006], b"damage");
}

/// The number of the block in its relation goes into the checksum, not that in its file.
#[tokio::test(flavor = "multi_thread")]
async fn pages_of_later_segments_are_verified_by_their_number_in_the_relation() {
    let bench = Bench::new(Major::V18).await;
    let directory = bench.server.data_dir().join("base/5");
    let page = |number: u32| {
        let mut page = [7_u8; BLOCK_SIZE];
        page[..8].fill(0);
        let sum = checksum::page_checksum(&page, number);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    };
    std::fs::write(directory.join("999999"), page(0)).expect("ours");
    std::fs::write(directory.join("999999.1"), page(131_072)).expect("ours");
    assert_eq!(bench.backup().await.damaged_pages, 0);
    std::fs::write(directory.join("999999.1"), page(0)).expect("ours");
    let created = bench.backup().await;
    assert_eq!(created.damaged.len(), 1);
    assert_eq!(created.damaged[0].file, "base/5/999999.1");
}

/// Pages that were never filled have no checksum yet.
#[tokio::test(flavor = "multi_thread")]
async fn new_pages_are_no_damage_and_take_no_space() {
    let bench = Bench::new(Major::V18).await;
    bench.backup().await;
    let before = bench.pack_bytes();
    let path = bench.server.data_dir().join("base/5/999998");
    std::fs::File::create(&path)
        .and_then(|file| file.set_len(64 << 20))
        .expect("ours");
    let created = bench.backup().await;
    assert_eq!(created.damaged_pages, 0);
    assert!(bench.pack_bytes() - before < 100_000);
    let files = bench.files(created.label).await;
    assert_eq!(files["base/5/999998"].len(), 64 << 20);
}
