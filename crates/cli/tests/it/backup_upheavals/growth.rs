//! Relations that grow over the border of a segment of 1 GiB, and shrink again.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use rstest::rstest;

use super::{asked_for, point, prove, restored_files, run};
use crate::archived::{Archived, Storage};

/// The size of a full segment (`RELSEG_SIZE` of 131,072 blocks).
const SEGMENT: u64 = 1 << 30;

/// Makes the first segment full: pages of zeros are pages that were never used (`PageIsNew`), as a crash after
/// an extension leaves them.
async fn fill_segment(server: &Postgres, path: &Path) {
    server.stop(StopMode::Fast).await;
    File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.set_len(SEGMENT))
        .expect("ours");
    server.start_again().await;
}

/// The segments that there are, and what they take of the disk.
fn segments(path: &Path) -> (u64, u64, u64) {
    let first = fs::metadata(path).expect("there");
    let second = fs::metadata(path.with_extension("1")).map_or(0, |metadata| metadata.len());
    (first.len(), first.blocks() * 512, second)
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relation_that_grows_over_a_segment_and_shrinks_again_is_restored_as_it_was(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let scene = Archived::with(major, Storage::Directory, true, |builder| {
        builder.setting("autovacuum", "off")
    })
    .await;
    let server = &scene.server;
    run(
        server,
        "postgres",
        &[
            "CREATE TABLE grown (n int, text text)",
            "INSERT INTO grown SELECT n, md5(n::text) FROM generate_series(1, 2000) n",
            "CHECKPOINT",
        ],
    )
    .await;
    let name = server
        .query_text("postgres", "SELECT pg_relation_filepath('grown')")
        .await;
    let path = server.data_dir().join(&name);
    let first = point(&scene, server, "first").await;

    fill_segment(server, &path).await;
    run(
        server,
        "postgres",
        &["INSERT INTO grown SELECT n, md5(n::text) FROM generate_series(2001, 6000) n"],
    )
    .await;
    let second = point(&scene, server, "second").await;
    assert_eq!(second.parent(), first.label);
    let (length, _, behind) = segments(&path);
    assert!(length == SEGMENT && behind > 100_000, "{length} {behind}");
    assert!(second.number("stored") < 4 << 20, "{}", second.json);
    assert!(second.number("bytes") > SEGMENT, "{}", second.json);

    // Rows behind the border change, and nothing before it.
    let statement = "UPDATE grown SET text = reverse(text) WHERE n > 5900";
    run(server, "postgres", &[statement]).await;
    let third = if asked_for().is_some() {
        let third = point(&scene, server, "third").await;
        assert!(third.number("stored") < 2 << 20, "{}", third.json);
        Some(third)
    } else {
        None
    };

    // Back to less than it was at first: the second segment stays as an empty file (`mdtruncate`).
    run(
        server,
        "postgres",
        &[
            "DELETE FROM grown WHERE n > 1000",
            "VACUUM (TRUNCATE) grown",
            "CHECKPOINT",
        ],
    )
    .await;
    let (length, _, behind) = segments(&path);
    assert!(length < 1 << 20 && behind == 0, "{length} {behind}");
    let fourth = point(&scene, server, "fourth").await;
    assert_eq!(fourth.parent(), third.as_ref().unwrap_or(&second).label);
    assert!(fourth.number("bytes") < SEGMENT, "{}", fourth.json);

    for point in [&first, &fourth] {
        prove(&scene, point, &point.after, &[]).await;
    }
    // Pages of zeros are holes in what is restored too.
    let copy = restored_files(&scene, &second, &second.after, &[]).await;
    let (length, used, behind) = segments(&copy.data_dir().join(&name));
    assert!(length == SEGMENT && behind > 100_000, "{length} {behind}");
    assert!(used < 8 << 20, "{used} bytes of zeros");
    crate::archived::recovered(&copy).await;
    super::assert_has(copy, &second.after.contents, "the grown table").await;
    if let Some(third) = third {
        prove(&scene, &third, &third.after, &[]).await;
        // Replay writes what was grown, and cuts it again.
        prove(&scene, &first, &second.after, &[]).await;
        prove(&scene, &first, &fourth.after, &[]).await;
        prove(&scene, &third, &fourth.after, &[]).await;
    }
}
