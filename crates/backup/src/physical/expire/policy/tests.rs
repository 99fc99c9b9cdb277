//! Random histories of a cluster, random policies, and what can still be restored.

use jiff::SignedDuration;
use pgmahout_types::repository::{Digest, Method};
use pgmahout_types::version::ServerVersion;
use pgmahout_types::{Lsn, SystemIdentifier};
use proptest::prelude::*;

use super::*;

const SIZE: SegmentSize = SegmentSize::MIN;

/// A cluster, its archive and its backups.
struct Cluster {
    now: Timestamp,
    timeline: TimelineId,
    /// The first position that is not written yet.
    lsn: u64,
    archive: Archive,
    backups: Vec<BackupEntry>,
    /// Every moment, and where the server was.
    moments: Vec<(Timestamp, TimelineId, u64)>,
    /// Takes the newest backup as the base of everything, whether it reaches it or not.
    careless: bool,
}

impl Cluster {
    fn new() -> Self {
        Self {
            now: "2026-01-05T00:00:00Z".parse().expect("a time"),
            timeline: TimelineId::FIRST,
            lsn: 10 * SIZE.bytes(),
            archive: Archive {
                segment_size: SIZE,
                ..Archive::default()
            },
            backups: Vec::new(),
            moments: Vec::new(),
            careless: false,
        }
    }

    fn wait(&mut self, hours: i64) {
        self.now += SignedDuration::from_hours(hours);
    }

    /// Writes some bytes, and archives every segment that is full afterwards.
    fn write(&mut self, bytes: u64) {
        self.now += SignedDuration::from_secs(1);
        let first = self.lsn / SIZE.bytes();
        self.lsn += bytes;
        let segments = self.archive.segments.entry(self.timeline).or_default();
        for number in first..self.lsn / SIZE.bytes() {
            segments.insert(number, self.now);
        }
        // What is not archived cannot be promised.
        let archived = self.lsn / SIZE.bytes() * SIZE.bytes();
        if archived > first * SIZE.bytes() {
            self.moments.push((self.now, self.timeline, archived));
        }
    }

    fn switch(&mut self) {
        let rest = SIZE.bytes() - self.lsn % SIZE.bytes();
        self.write(rest);
    }

    fn back_up(&mut self, pinned: bool) {
        let start = self.lsn;
        self.write(SIZE.bytes() / 2);
        let stop = self.lsn;
        self.switch();
        self.now += SignedDuration::from_secs(1);
        let label = Label::new(self.now, self.backups.len() as u16);
        let (start_lsn, stop_lsn) = (Lsn::new(start), Lsn::new(stop));
        self.backups.push(BackupEntry {
            label,
            manifest: Digest::from_bytes([0; 32]),
            method: Method::Local,
            system_identifier: SystemIdentifier::new(1),
            server_version: ServerVersion::from_number(180_000),
            timeline: self.timeline,
            start_lsn,
            stop_lsn,
            wal: WalRange {
                first: SegmentName::containing(self.timeline, start_lsn, SIZE),
                last: SegmentName::ending_at(self.timeline, stop_lsn, SIZE),
            },
            start_time: self.now,
            stop_time: self.now,
            parent: None,
            files: 1,
            bytes: 1,
            read: 1,
            new: 1,
            stored: 1,
            findings: 0,
            pinned,
            annotations: BTreeMap::new(),
            verified: None,
            drilled: None,
            other: serde_json::Map::new(),
        });
    }

    /// Restores to an earlier moment, where that can be done, and goes on on a new timeline.
    fn recover(&mut self, choice: usize) {
        if self.moments.is_empty() {
            return;
        }
        let (_, timeline, lsn) = self.moments[choice % self.moments.len()];
        if !self.can_restore(timeline, lsn) {
            return;
        }
        let known = self.archive.timelines();
        let newest = known
            .into_iter()
            .max()
            .unwrap_or(TimelineId::FIRST)
            .max(self.timeline);
        let next = newest.next().expect("few timelines");
        // In the middle of a segment, as it is.
        let switchpoint = lsn - SIZE.bytes() / 3;
        let Ok(history) = self
            .archive
            .history(timeline)
            .branch(next, Lsn::new(switchpoint), "a test")
        else {
            return;
        };
        if !self.can_restore(timeline, switchpoint) {
            return;
        }
        self.archive.histories.insert(next, (history, self.now));
        self.timeline = next;
        self.lsn = switchpoint;
    }

    /// Whether there is a backup and all WAL to reach a position of a timeline.
    fn can_restore(&self, timeline: TimelineId, lsn: u64) -> bool {
        let history = self.archive.history(timeline);
        self.backups.iter().any(|backup| {
            if backup.stop_lsn.as_u64() > lsn || !history.descends_from(backup.timeline, backup.stop_lsn) {
                return false;
            }
            let Ok(first) = backup.wal.first.number(SIZE) else {
                return false;
            };
            (first..=(lsn - 1) / SIZE.bytes()).all(|number| {
                // The server takes a segment from the newest timeline that has a part of it.
                let last_byte = (number + 1) * SIZE.bytes() - 1;
                let owner = history.timeline_at(Lsn::new(last_byte)).max(backup.timeline);
                self.archive.contains(owner, number)
            })
        })
    }

    fn expire(&mut self, policy: &Policy) -> Result<(), TestCaseError> {
        let restorable: Vec<(Timestamp, TimelineId, u64)> = self
            .moments
            .iter()
            .copied()
            .filter(|(_, timeline, lsn)| self.can_restore(*timeline, *lsn))
            .collect();
        let whole: BTreeSet<Label> = self
            .backups
            .iter()
            .filter(|backup| fault(backup, &self.archive).is_none())
            .map(|backup| backup.label)
            .collect();
        let mut retained = decide(&self.backups, &self.archive, policy, self.now, &TimeZone::UTC);
        if self.careless
            && let Some(newest) = self.backups.last()
        {
            for base in retained.bases.values_mut() {
                *base = newest.label;
            }
        }
        let kept = retained.kept();
        self.backups.retain(|backup| kept.contains(&backup.label));
        let wanted = WantedWal::new(&self.backups, &retained.bases, &[], &[], &self.archive);
        let unwanted = wanted.unwanted(&self.archive);
        let floors = wanted.floors(&self.archive);
        for backup in &self.backups {
            let floor = floors.get(&backup.timeline);
            prop_assert!(
                floor.is_none_or(|floor| backup.wal.first >= *floor),
                "the floor is too high"
            );
        }
        for (timeline, segments) in &mut self.archive.segments {
            segments.retain(|number, _| {
                let segment = SegmentName::new(*timeline, *number, SIZE).expect("a small number");
                let gone = unwanted
                    .iter()
                    .any(|range| range.first <= segment && segment <= range.last);
                !gone
            });
            for number in segments.keys() {
                prop_assert!(
                    wanted.contains(*timeline, *number),
                    "segment {number} stays for nothing"
                );
            }
        }
        for backup in &self.backups {
            if whole.contains(&backup.label) {
                prop_assert_eq!(fault(backup, &self.archive), None);
            }
        }
        prop_assert!(whole.is_empty() || self.backups.iter().any(|backup| whole.contains(&backup.label)));
        let Some(begin) = retained.window_begin else {
            return Ok(());
        };
        for (at, timeline, lsn) in restorable {
            // A window that begins with a backup begins after it.
            if at > begin || (at == begin && policy.recovery_window.is_some()) {
                prop_assert!(
                    self.can_restore(timeline, lsn),
                    "{at} on timeline {timeline} at {} cannot be restored any more, window since {begin}",
                    Lsn::new(lsn)
                );
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Event {
    Wait(i64),
    Write(u64),
    BackUp(bool),
    Recover(usize),
    Expire(Policy),
}

fn policies() -> impl Strategy<Value = Policy> {
    let days = |most: u64| prop::option::of((1..most).prop_map(|days| Duration::from_hours(24 * days)));
    (0..4_u32, 0..4_u32, 0..3_u32, 0..3_u32, days(5), days(20)).prop_map(
        |(last, daily, weekly, monthly, within, recovery_window)| Policy {
            last,
            daily,
            weekly,
            monthly,
            within,
            recovery_window,
            minimum: 1,
        },
    )
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (1..60_i64).prop_map(Event::Wait),
        4 => (1..4 * SIZE.bytes()).prop_map(Event::Write),
        3 => prop::bool::weighted(0.1).prop_map(Event::BackUp),
        1 => any::<usize>().prop_map(Event::Recover),
        2 => policies().prop_map(Event::Expire),
    ];
    prop::collection::vec(event, 1..60)
}

fn live(events: Vec<Event>, careless: bool) -> Result<(), TestCaseError> {
    let mut cluster = Cluster::new();
    cluster.careless = careless;
    for event in events {
        match event {
            Event::Wait(hours) => cluster.wait(hours),
            Event::Write(bytes) => cluster.write(bytes),
            Event::BackUp(pinned) => cluster.back_up(pinned),
            Event::Recover(choice) => cluster.recover(choice),
            Event::Expire(policy) => cluster.expire(&policy)?,
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_kept_backup_and_every_point_of_the_window_still_restores(events in events()) {
        live(events, false)?;
    }
}

#[test]
fn a_planner_that_takes_the_wrong_backup_as_base_is_found_out() {
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(400)
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let found = runner.run(&events(), |events| live(events, true));
    assert!(found.is_err(), "the property holds for a planner that is wrong");
}

/// A cluster with a backup every day at noon.
fn daily(days: u32) -> Cluster {
    let mut cluster = Cluster::new();
    for _ in 0..days {
        cluster.wait(12);
        cluster.back_up(false);
        cluster.write(3 * SIZE.bytes());
        cluster.wait(12);
    }
    cluster
}

fn reasons(cluster: &Cluster, policy: &Policy) -> Vec<(u32, Vec<Reason>)> {
    let retained = decide(
        &cluster.backups,
        &cluster.archive,
        policy,
        cluster.now,
        &TimeZone::UTC,
    );
    let day = |label: Label| label.start().to_zoned(TimeZone::UTC).day() as u32;
    retained
        .decisions
        .iter()
        .filter(|decision| !decision.is_removed())
        .map(|decision| (day(decision.label), decision.keep.iter().copied().collect()))
        .collect()
}

#[test]
fn the_window_keeps_the_newest_backup_from_before_it() {
    let cluster = daily(10);
    let policy = Policy {
        recovery_window: Some(Duration::from_hours(72)),
        ..Policy::NOTHING
    };
    // Now it is the 15th at midnight: the window begins on the 12th.
    let kept: Vec<u32> = reasons(&cluster, &policy)
        .into_iter()
        .map(|(day, _)| day)
        .collect();
    assert_eq!(kept, [14, 13, 12, 11]);
    assert_eq!(
        reasons(&cluster, &policy).last().expect("four").1,
        [Reason::WindowBase]
    );
}

#[test]
fn after_a_recovery_to_before_the_newest_backup_the_older_one_stays() {
    let mut cluster = daily(6);
    // Back to a moment of the second day; the backups of later days are of a history that was left.
    let moment = cluster
        .moments
        .iter()
        .position(|(at, ..)| at.to_zoned(TimeZone::UTC).day() == 7)
        .expect("a moment");
    cluster.recover(moment);
    assert_ne!(cluster.timeline, TimelineId::FIRST, "it recovered");
    cluster.wait(48);
    cluster.write(5 * SIZE.bytes());
    let policy = Policy {
        recovery_window: Some(Duration::from_hours(24)),
        ..Policy::NOTHING
    };
    let kept: Vec<u32> = reasons(&cluster, &policy)
        .into_iter()
        .map(|(day, _)| day)
        .collect();
    assert!(kept.iter().any(|day| *day <= 7), "{kept:?}");
}

#[test]
fn the_last_good_backup_stays_whatever_the_policy() {
    let mut cluster = daily(4);
    for backup in cluster.backups.iter_mut().rev().take(2) {
        backup.findings = 1;
    }
    let kept = reasons(&cluster, &Policy::NOTHING);
    assert!(
        kept.iter()
            .any(|(day, reasons)| *day == 6 && reasons.contains(&Reason::Minimum)),
        "{kept:?}"
    );
}

#[test]
fn where_no_backup_is_good_all_stay() {
    let mut cluster = daily(4);
    cluster.archive.segments.clear();
    assert_eq!(reasons(&cluster, &Policy::NOTHING).len(), 4);
}

#[test]
fn pinned_backups_stay_with_their_wal() {
    let mut cluster = daily(5);
    cluster.backups[0].pinned = true;
    let policy = Policy {
        last: 1,
        ..Policy::NOTHING
    };
    let retained = decide(
        &cluster.backups,
        &cluster.archive,
        &policy,
        cluster.now,
        &TimeZone::UTC,
    );
    assert_eq!(retained.kept().len(), 2);
    cluster.expire(&policy).expect("all restores");
    assert_eq!(fault(&cluster.backups[0], &cluster.archive), None);
}

#[test]
fn a_backup_that_is_being_made_keeps_its_wal() {
    let mut cluster = daily(3);
    let policy = Policy {
        last: 1,
        ..Policy::NOTHING
    };
    let running = SegmentName::new(TimelineId::FIRST, 11, SIZE).expect("a segment");
    let retained = decide(
        &cluster.backups,
        &cluster.archive,
        &policy,
        cluster.now,
        &TimeZone::UTC,
    );
    cluster
        .backups
        .retain(|backup| retained.kept().contains(&backup.label));
    let wanted = WantedWal::new(
        &cluster.backups,
        &retained.bases,
        &[],
        &[running],
        &cluster.archive,
    );
    assert!(wanted.contains(TimelineId::FIRST, 11) && !wanted.contains(TimelineId::FIRST, 10));
    assert_eq!(wanted.floors(&cluster.archive)[&TimelineId::FIRST], running);
}

/// A cluster whose clock is set back between its second and its third backup, each five hours after the other.
fn set_back(hours: i64) -> Cluster {
    let mut cluster = Cluster::new();
    for _ in 0..2 {
        cluster.write(3 * SIZE.bytes());
        cluster.wait(5);
        cluster.back_up(false);
    }
    cluster.now -= SignedDuration::from_hours(hours);
    cluster.back_up(false);
    // As backups are named where the clock was set back.
    let before = cluster.backups[1].label.start();
    cluster.backups[2].label = Label::new(before + SignedDuration::from_secs(1), 2);
    cluster.write(3 * SIZE.bytes());
    cluster
}

#[test]
fn a_clock_that_was_set_back_shortens_no_window_and_puts_no_backup_before_an_older_one() {
    let cluster = set_back(3);
    let [first, second, third] = [0, 1, 2].map(|number| cluster.backups[number].label);
    let decide =
        |policy: &Policy, now| decide(&cluster.backups, &cluster.archive, policy, now, &TimeZone::UTC);
    // The window begins between the third backup and the second, by the clock.
    let window = Policy {
        recovery_window: Some(Duration::from_hours(1)),
        ..Policy::NOTHING
    };
    let now = cluster.backups[1].stop_time - SignedDuration::from_mins(30);
    let retained = decide(&window, now);
    assert_eq!(retained.kept(), BTreeSet::from([first, second, third]));
    assert_eq!(
        retained.bases[&TimelineId::FIRST],
        first,
        "what was written before the clock was set back is restored from the first"
    );
    // The newest is the one that was taken last.
    let last = Policy {
        last: 1,
        ..Policy::NOTHING
    };
    assert_eq!(decide(&last, now).kept().last(), Some(&third));
    // Long after, the window is that of any other cluster.
    let later = cluster.backups[1].stop_time + SignedDuration::from_hours(48);
    let kept = decide(&window, later).kept();
    assert!(!kept.contains(&first) && kept.contains(&third), "{kept:?}");
}

#[test]
fn a_clock_that_is_behind_at_the_collection_makes_it_keep_more() {
    let cluster = set_back(0);
    let policy = Policy {
        recovery_window: Some(Duration::from_hours(4)),
        ..Policy::NOTHING
    };
    let mut now = cluster.now + SignedDuration::from_hours(20);
    let mut kept = decide(&cluster.backups, &cluster.archive, &policy, now, &TimeZone::UTC).kept();
    for _ in 0..40 {
        now -= SignedDuration::from_hours(1);
        let more = decide(&cluster.backups, &cluster.archive, &policy, now, &TimeZone::UTC).kept();
        assert!(more.is_superset(&kept), "{now}");
        kept = more;
    }
    assert_eq!(kept.len(), 3);
}
