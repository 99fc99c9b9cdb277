//! Long rows of upheavals in any order, a backup after each, and a restore of any of them.

use pgmahout_testkit::postgres::{Major, StopMode};
use rstest::rstest;

use super::{Point, asked_for, point, point_of, prove, run, slow_backup};
use crate::archived::{Archived, Storage};

/// How many are taken when nobody asks for more.
const FEW: usize = 4;

/// The same numbers in the same order for a seed (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).expect("it is below a usize")
    }
}

const KINDS: usize = 14;

fn statements(kind: usize, round: usize) -> Vec<String> {
    let lines: &[&str] = match kind {
        0 => &["VACUUM FULL t"],
        1 => &[
            "TRUNCATE t",
            "INSERT INTO t SELECT n, md5((n + ROUND)::text) FROM generate_series(1, 9000) n",
        ],
        2 => &[
            "CREATE DATABASE copied_ROUND STRATEGY file_copy",
            "INSERT INTO t VALUES (-ROUND, 'copied')",
        ],
        3 => &[
            "CREATE DATABASE logged_ROUND STRATEGY wal_log",
            "INSERT INTO t VALUES (-ROUND, 'logged')",
        ],
        4 => &["UPDATE t SET text = md5(text) WHERE n % 10 = 3", "VACUUM t"],
        5 => &[
            "CREATE TABLESPACE place_ROUND LOCATION ''",
            "CREATE TABLE placed_ROUND TABLESPACE place_ROUND AS SELECT * FROM t",
            "ALTER TABLE t SET TABLESPACE place_ROUND",
            "ALTER INDEX t_text_idx SET TABLESPACE place_ROUND",
        ],
        6 => &[
            "ALTER TABLE t SET TABLESPACE pg_default",
            "ALTER INDEX t_text_idx SET TABLESPACE pg_default",
        ],
        7 => &["DELETE FROM t WHERE n % 3 = 0", "VACUUM t", "REINDEX TABLE t"],
        8 => &[
            "ALTER TABLE flips SET LOGGED",
            "INSERT INTO flips SELECT * FROM t",
        ],
        9 => &[
            "ALTER TABLE flips SET UNLOGGED",
            "INSERT INTO flips SELECT * FROM t",
        ],
        10 => &[
            "VACUUM FULL pg_class",
            "VACUUM FULL pg_attribute",
            "REINDEX DATABASE postgres",
        ],
        11 => &[
            "CREATE TABLE more_ROUND AS SELECT n, repeat(text, 80) FROM t",
            "VACUUM (FREEZE) more_ROUND",
        ],
        12 => &["BEGIN; UPDATE t SET text = ''; CREATE TABLE never AS SELECT * FROM t; ROLLBACK"],
        _ => &[
            "CREATE DATABASE short_ROUND STRATEGY file_copy",
            "DROP DATABASE short_ROUND",
        ],
    };
    lines
        .iter()
        .map(|line| line.replace("ROUND", &round.to_string()))
        .collect()
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happened_before_every_backup_of_a_row_is_restored(
    #[values(Major::V15, Major::V18)] major: Major,
) {
    let rounds = asked_for().unwrap_or(FEW);
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15 ^ u64::from(major.number()));
    let scene = Archived::with(major, Storage::Directory, true, |builder| {
        builder.setting("allow_in_place_tablespaces", "on")
    })
    .await;
    let server = &scene.server;
    run(
        server,
        "postgres",
        &[
            "CREATE TABLE t (n int, text text); CREATE INDEX ON t (text)",
            "INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 9000) n",
            "CREATE UNLOGGED TABLE flips AS SELECT * FROM t",
        ],
    )
    .await;
    let mut points: Vec<Point> = vec![point(&scene, server, "point_0").await];
    for round in 1..=rounds {
        let name = format!("point_{round}");
        let kinds = [numbers.below(KINDS), numbers.below(KINDS)];
        let during = numbers.below(2) == 0;
        let mut upheavals = statements(kinds[0], round);
        upheavals.extend(statements(kinds[1], round + 1_000_000));
        let upheavals: Vec<&str> = upheavals.iter().map(String::as_str).collect();
        match numbers.below(4) {
            // A crash; what is unlogged is empty after it.
            0 => {
                server.kill().await;
                server.start_again().await;
            }
            1 => {
                server.stop(StopMode::Fast).await;
                server.start_again().await;
            }
            _ => {}
        }
        let next = if during {
            let running = slow_backup(&scene, server, "30MB", &[]).await;
            run(server, "postgres", &upheavals).await;
            let finished = running.wait().await.expect_status(0);
            point_of(super::first_backup(&finished.stdout), server, &name).await
        } else {
            run(server, "postgres", &upheavals).await;
            point(&scene, server, &name).await
        };
        assert_eq!(next.parent(), points.last().expect("there is one").label);
        points.push(next);
        // Any backup, up to any moment from its own on.
        let from = numbers.below(points.len());
        let to = from + numbers.below((points.len() - from).min(3));
        println!("round {round}: {upheavals:?}, during the backup: {during}; backup {from} up to {to}");
        prove(&scene, &points[from], &points[to].after, &[]).await;
    }
}
