//! Timeline histories of real promotions, against pg_rewind.

use std::time::Duration;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::{Major, Postgres, StopMode};
use pgmahout_types::history::ForkPoint;
use pgmahout_types::{ControlFile, Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId, WalFileName};

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).expect("not zero")
}

/// The history file of the newest timeline in a server's pg_wal.
fn newest_history(server: &Postgres) -> (TimelineHistory, Vec<u8>) {
    let files = std::fs::read_dir(server.data_dir().join("pg_wal")).expect("pg_wal can be read");
    let names = files.filter_map(|file| file.expect("pg_wal can be read").file_name().into_string().ok());
    let newest = names
        .filter_map(|name| match name.parse() {
            Ok(WalFileName::TimelineHistory(timeline)) => Some(timeline),
            _ => None,
        })
        .max()
        .expect("a promoted server has a history file");
    let name = WalFileName::TimelineHistory(newest).to_string();
    let content = std::fs::read(server.data_dir().join("pg_wal").join(name)).expect("it can be read");
    let history = TimelineHistory::parse(newest, &content).expect("the server's history is good");
    (history, content)
}

async fn promotions_are_understood(major: Major) {
    let primary = Postgres::builder(major)
        .setting("wal_log_hints", "on")
        .start()
        .await;
    let standby = primary.standby("second").without_slot().start().await;
    primary
        .sql(
            "postgres",
            "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id",
        )
        .await;
    primary.wait_for_replay(&standby).await;
    standby.promote().await;

    let (second, content) = newest_history(&standby);
    assert_eq!(second.render().as_bytes(), content);
    assert_eq!(second.timeline(), timeline(2));
    let switchpoint = second.parent().expect("a parent").switchpoint;
    assert_eq!(
        second.parent().expect("a parent").reason,
        "no recovery target specified"
    );

    // A third server descends from the second.
    standby
        .sql("postgres", "INSERT INTO t SELECT generate_series(1, 10)")
        .await;
    let third_server = standby.standby("third").without_slot().start().await;
    standby.wait_for_replay(&third_server).await;
    third_server.promote().await;
    let (third, content) = newest_history(&third_server);
    assert_eq!(third.render().as_bytes(), content);
    assert_eq!(third.timeline(), timeline(3));
    assert_eq!(third.ancestors()[0], second.ancestors()[0]);
    assert_eq!(
        second.branch(
            timeline(3),
            third.ancestors()[1].switchpoint,
            &third.ancestors()[1].reason
        ),
        Ok(third.clone())
    );

    // Positions lie where the servers have them.
    let now: Lsn = third_server
        .query_text("postgres", "SELECT pg_current_wal_lsn()")
        .await
        .parse()
        .expect("a position");
    let file: WalFileName = third_server
        .query_text("postgres", &format!("SELECT pg_walfile_name('{now}')"))
        .await
        .parse()
        .expect("a file name");
    assert_eq!(
        (file.timeline(), third.timeline_at(now)),
        (timeline(3), timeline(3))
    );
    assert_eq!(third.timeline_at(switchpoint), timeline(2));
    assert_eq!(
        third.timeline_at(switchpoint.checked_sub(1).expect("not zero")),
        timeline(1)
    );

    // The old primary, which went on, has diverged, and exactly where pg_rewind says.
    primary
        .sql("postgres", "INSERT INTO t SELECT generate_series(1, 1000)")
        .await;
    primary.stop(StopMode::Fast).await;
    let control = std::fs::read(primary.data_dir().join(ControlFile::PATH)).expect("pg_control can be read");
    let control = ControlFile::parse(&control).expect("it is good");
    assert!(!third.descends_from(control.checkpoint.timeline, control.checkpoint_location));
    assert!(third.descends_from(timeline(1), switchpoint));
    let fork = TimelineHistory::root(timeline(1)).fork_point(&third);
    assert_eq!(
        fork,
        Some(ForkPoint {
            timeline: timeline(1),
            lsn: Some(switchpoint)
        })
    );
    assert_eq!(
        rewind_says(&primary, &third_server),
        format!("{switchpoint} on timeline 1")
    );

    // The second server, which went on too, diverged on timeline 2.
    standby
        .sql("postgres", "INSERT INTO t SELECT generate_series(1, 1000)")
        .await;
    standby.stop(StopMode::Fast).await;
    let fork = second.fork_point(&third).expect("common history");
    let lsn = fork.lsn.expect("the third left it");
    assert_eq!(
        rewind_says(&standby, &third_server),
        format!("{lsn} on timeline {}", fork.timeline)
    );
}

/// Where pg_rewind says that the stopped target diverged from the source.
fn rewind_says(target: &Postgres, source: &Postgres) -> String {
    let output = target
        .server_command("pg_rewind")
        .arg("--dry-run")
        .arg("--target-pgdata")
        .arg(target.data_dir())
        .arg("--source-server")
        .arg(source.dsn("postgres"))
        .output()
        .expect("pg_rewind runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let marker = "servers diverged at WAL location ";
    let line = text
        .lines()
        .find_map(|line| line.split_once(marker))
        .unwrap_or_else(|| panic!("{text}"));
    line.1.to_owned()
}

#[tokio::test]
async fn timeline_histories_of_postgresql_15_are_read_as_pg_rewind_reads_them() {
    promotions_are_understood(Major::V15).await;
}

#[tokio::test]
async fn timeline_histories_of_postgresql_18_are_read_as_pg_rewind_reads_them() {
    promotions_are_understood(Major::V18).await;
}

/// A recovery aims at the newest timeline, 2, but stops before the place where 2 branched off 1.
async fn an_early_stop_is_understood(major: Major) {
    let primary = Postgres::builder(major).archive_to("archive").start().await;
    let archive = primary.root_dir().join("archive");
    let copy = primary.standby("copy").without_slot().prepare();
    let standby = primary.standby("standby").without_slot().start().await;
    primary
        .sql(
            "postgres",
            "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id",
        )
        .await;
    let target = primary
        .query_text("postgres", "SELECT pg_current_wal_insert_lsn()")
        .await;
    primary
        .sql(
            "postgres",
            "INSERT INTO t SELECT generate_series(1, 1000); SELECT pg_switch_wal()",
        )
        .await;
    primary
        .sql("postgres", "INSERT INTO t SELECT generate_series(1, 1000)")
        .await;
    primary.wait_for_replay(&standby).await;
    standby.promote().await;
    let (second, _) = newest_history(&standby);
    let switchpoint = second.parent().expect("a parent").switchpoint;
    let wanted = |name: String| archive.join(name);
    let holder = SegmentName::containing(
        timeline(1),
        target.parse().expect("a position"),
        SegmentSize::DEFAULT,
    );
    for file in [
        wanted(holder.to_string()),
        wanted(WalFileName::TimelineHistory(timeline(2)).to_string()),
    ] {
        poll::until(Duration::from_secs(30), "the archived file", async || {
            file.exists()
        })
        .await;
    }

    std::fs::rename(
        copy.data_dir().join("standby.signal"),
        copy.data_dir().join("recovery.signal"),
    )
    .expect("renamed");
    std::fs::write(copy.data_dir().join("postgresql.auto.conf"), "").expect("primary_conninfo is gone");
    copy.append_conf(&format!(
        "restore_command = 'cp \"{}/%f\" \"%p\"'",
        archive.display()
    ));
    copy.append_conf(&format!("recovery_target_lsn = '{target}'"));
    copy.append_conf("recovery_target_action = 'promote'");
    copy.start_again().await;
    poll::until(Duration::from_secs(30), "the end of recovery", async || {
        copy.query_text("postgres", "SELECT pg_is_in_recovery()").await == "f"
    })
    .await;

    let (third, content) = newest_history(&copy);
    // The reason "after LSN ..." brings a line end of its own.
    assert_eq!(format!("{}\n", third.render()).as_bytes(), content);
    assert_eq!(
        third.parent().expect("a parent").reason,
        format!("after LSN {target}")
    );
    let left_second = third.parent().expect("a parent");
    assert_eq!(
        (third.timeline(), left_second.timeline),
        (timeline(3), timeline(2))
    );
    let stopped = left_second.switchpoint;
    assert!(
        stopped < switchpoint,
        "{stopped} lies after {switchpoint}: the case did not come about"
    );
    assert_eq!(third.ancestors()[0].switchpoint, switchpoint);

    // Between the two the third timeline has its own data, not the first's.
    assert_eq!(third.timeline_at(stopped), timeline(3));
    assert_eq!(
        third.timeline_at(stopped.checked_sub(1).expect("not zero")),
        timeline(1)
    );
    assert_eq!(third.left(timeline(1)), Some(stopped));
    assert!(!third.descends_from(timeline(1), switchpoint));
}

#[tokio::test]
async fn a_recovery_of_postgresql_15_that_stops_before_its_target_timeline_is_understood() {
    an_early_stop_is_understood(Major::V15).await;
}

#[tokio::test]
async fn a_recovery_of_postgresql_18_that_stops_before_its_target_timeline_is_understood() {
    an_early_stop_is_understood(Major::V18).await;
}
