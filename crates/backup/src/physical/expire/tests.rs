//! Collections in real repositories, of backups that are nothing but their objects.

use std::path::Path;
use std::time::{Duration, SystemTime};

use pgmahout_testkit::s3::{Fault, Rule, S3Server};
use pgmahout_types::repository::{CondemnedId, CondemnedObjects};

use super::*;
use crate::physical::stanza::support::{self, FakeBackup, segment};
use crate::physical::stanza::{LeaseKind, LeaseScope};

fn last(count: u32) -> Policy {
    Policy {
        last: count,
        ..Policy::NOTHING
    }
}

async fn expire(repository: &PhysicalRepository, policy: &Policy) -> Result<Collected, ExpireError> {
    let token = CancellationToken::new();
    let plan = propose(repository, policy, Timestamp::now(), &TimeZone::UTC, &token).await?;
    carry_out(repository, &plan, &token).await
}

/// Backups 1 to 4. The second uses the pack of the first, the fourth that of the second.
async fn four(repository: &PhysicalRepository) {
    for backup in [
        FakeBackup::new(1),
        FakeBackup::sharing(2, &[1]),
        FakeBackup::new(3),
        FakeBackup::sharing(4, &[2]),
    ] {
        backup.publish(repository).await.unwrap();
    }
}

fn exists(root: &Path, name: &str) -> bool {
    root.join(name).exists()
}

#[tokio::test]
async fn what_no_backup_uses_goes_and_what_one_uses_stays() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let repository = support::init(root, "main").await.unwrap().repository;
    four(&repository).await;
    let collected = expire(&repository, &last(2)).await.unwrap();
    assert_eq!(collected.removed.len(), 2);
    assert!(collected.left.is_empty() && collected.being_read.is_empty());
    let names = repository.names();
    let there = |number: u8| {
        let backup = FakeBackup::new(number);
        (
            exists(root, &names.pack(backup.pack())),
            exists(root, &names.map(backup.map())),
            exists(root, &names.manifest(backup.label())),
            exists(root, &names.wal(segment(number.into()).into())),
        )
    };
    assert_eq!(there(1), (false, false, false, false));
    // Its pack is used by the fourth.
    assert_eq!(there(2), (true, false, false, false));
    assert_eq!(there(3), (true, true, true, true));
    assert_eq!(there(4), (true, true, true, true));
    let head = repository.head().await.unwrap();
    assert_eq!(head.wal_floor[&pgmahout_types::TimelineId::FIRST], segment(3));
    assert!(head.condemned.iter().all(|list| list.deleted.is_some()));
    let again = expire(&repository, &last(2)).await.unwrap();
    assert_eq!((again.objects, again.removed.len()), (0, 0));
}

#[tokio::test]
async fn the_plan_says_what_goes_and_proves_what_stays() {
    let directory = tempfile::tempdir().unwrap();
    let repository = support::init(directory.path(), "main").await.unwrap().repository;
    four(&repository).await;
    let token = CancellationToken::new();
    let plan = propose(&repository, &last(2), Timestamp::now(), &TimeZone::UTC, &token)
        .await
        .unwrap();
    assert_eq!(plan.retained.removed().len(), 2);
    assert_eq!(plan.wal_segments, 2);
    assert!(plan.backups.len() == 2 && plan.broken().next().is_none());
    assert_eq!(plan.windows.len(), 1);
    assert_eq!(plan.windows[0].until, Some(segment(4)));
    assert_eq!(plan.windows[0].gap, None);
    let json = serde_json::to_value(&plan).unwrap();
    assert!(json["decisions"].as_array().unwrap().len() == 4, "{json}");
    // Nothing was done.
    assert_eq!(repository.head().await.unwrap().backups.len(), 4);
}

#[tokio::test]
async fn a_plan_that_does_not_hold_any_more_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let repository = support::init(directory.path(), "main").await.unwrap().repository;
    four(&repository).await;
    let token = CancellationToken::new();
    let plan = async || {
        propose(&repository, &last(2), Timestamp::now(), &TimeZone::UTC, &token)
            .await
            .unwrap()
    };
    let pinned = plan().await;
    let label = *pinned.retained.removed().first().unwrap();
    repository
        .swap(|head| head.pin(label, true).map_err(StanzaError::from))
        .await
        .unwrap();
    let error = carry_out(&repository, &pinned, &token).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Refused);
    assert!(error.hint().unwrap().contains("plans anew"));
    let second = plan().await;
    let kept = *second.retained.kept().last().unwrap();
    repository
        .swap(|head| head.remove(&[kept].into()).map(drop).map_err(StanzaError::from))
        .await
        .unwrap();
    carry_out(&repository, &second, &token).await.unwrap_err();
    assert_eq!(repository.head().await.unwrap().backups.len(), 3);
}

#[tokio::test]
async fn what_a_reader_holds_stays_until_it_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let repository = support::init(root, "main").await.unwrap().repository;
    four(&repository).await;
    let first = FakeBackup::new(1);
    let lease = repository
        .lease(LeaseKind::Restore, LeaseScope::label(first.label()))
        .await
        .unwrap();
    let collected = expire(&repository, &last(1)).await.unwrap();
    assert_eq!(collected.being_read, [first.label()]);
    let names = repository.names();
    let objects = [
        names.pack(first.pack()),
        names.map(first.map()),
        names.manifest(first.label()),
        names.wal(segment(1).into()),
        // The reader may want to go on to any later point.
        names.wal(segment(3).into()),
    ];
    for object in &objects {
        assert!(exists(root, object), "{object}");
    }
    assert!(!exists(root, &names.pack(FakeBackup::new(3).pack())));
    lease.finish().await.unwrap();
    // What was never collected under a plan of ours goes by its age.
    age(root);
    expire(&repository, &last(1)).await.unwrap();
    for object in &objects {
        assert!(!exists(root, object), "{object}");
    }
}

/// Makes every pack and manifest two days old.
fn age(root: &Path) {
    let then = SystemTime::now() - Duration::from_hours(48);
    let mut directories = vec![root.join("stanza")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            if entry.path().is_dir() {
                directories.push(entry.path());
            } else if !entry.path().to_string_lossy().contains("/lease/") {
                let file = std::fs::File::options().append(true).open(entry.path()).unwrap();
                file.set_modified(then).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn what_an_interrupted_backup_left_goes_after_a_day_and_not_while_one_runs() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let repository = support::init(root, "main").await.unwrap().repository;
    four(&repository).await;
    let left = FakeBackup::new(9);
    left.put_objects(&repository).await;
    let pack = repository.names().pack(left.pack());
    expire(&repository, &last(4)).await.unwrap();
    assert!(exists(root, &pack), "it is young");
    // A backup that began before then may have written it.
    age(root);
    let lease = repository
        .lease(LeaseKind::Backup, LeaseScope::none())
        .await
        .unwrap();
    lease
        .change(|lease| lease.objects_since = Some(Timestamp::now() - jiff::SignedDuration::from_hours(72)))
        .await
        .unwrap();
    expire(&repository, &last(4)).await.unwrap();
    assert!(exists(root, &pack), "a running backup may want it");
    lease.finish().await.unwrap();
    expire(&repository, &last(4)).await.unwrap();
    assert!(!exists(root, &pack));
}

#[tokio::test]
async fn a_backup_that_slept_while_its_objects_were_collected_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let repository = support::init(root, "main").await.unwrap().repository;
    four(&repository).await;
    // It reads the head, takes the first as its parent, and is stopped before it publishes.
    let basis = repository.head().await.unwrap().epoch;
    let sleeper = FakeBackup::sharing(8, &[1]);
    sleeper.put_objects(&repository).await;
    let manifest = sleeper.write(&repository).await.unwrap();
    expire(&repository, &last(1)).await.unwrap();
    let error = repository
        .publish(&manifest.entry(), basis, &manifest.references())
        .await
        .unwrap_err();
    assert!(matches!(error, StanzaError::Refused { .. }), "{error}");
    assert!(error.hint().unwrap().contains("backup create again"));
    assert_eq!(repository.head().await.unwrap().backups.len(), 1);
}

#[tokio::test]
async fn a_backup_that_was_published_in_between_keeps_what_it_uses() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let repository = support::init(root, "main").await.unwrap().repository;
    four(&repository).await;
    let token = CancellationToken::new();
    let plan = propose(&repository, &last(1), Timestamp::now(), &TimeZone::UTC, &token)
        .await
        .unwrap();
    // After the plan, before it is carried out.
    FakeBackup::sharing(8, &[1, 3])
        .publish(&repository)
        .await
        .unwrap();
    carry_out(&repository, &plan, &token).await.unwrap();
    let names = repository.names();
    for number in [1, 3, 8] {
        assert!(
            exists(root, &names.pack(FakeBackup::new(number).pack())),
            "{number}"
        );
    }
    assert!(exists(root, &names.wal(segment(8).into())));
}

#[tokio::test]
async fn a_collection_that_was_interrupted_is_finished_by_the_next() {
    let server = S3Server::start();
    let repository = support::init_s3(&server, "main").await;
    four(&repository).await;
    // The second object that is deleted cannot be, with something else than a refusal.
    server.inject(
        Rule::new(Fault::Status(400))
            .method("DELETE")
            .containing("pack/")
            .always(),
    );
    expire(&repository, &last(1)).await.unwrap_err();
    let head = repository.head().await.unwrap();
    assert_eq!(head.backups.len(), 1);
    assert!(head.condemned.iter().any(|list| list.deleted.is_none()));
    server.clear_faults();
    let collected = expire(&repository, &last(1)).await.unwrap();
    assert!(collected.objects > 0);
    let head = repository.head().await.unwrap();
    assert!(head.condemned.iter().all(|list| list.deleted.is_some()));
    let packs = server.keys().iter().filter(|key| key.contains("/pack/")).count();
    // The newest one's own, and the one that it shares.
    assert_eq!(packs, 2);
}

#[tokio::test]
async fn what_an_object_lock_holds_is_left_and_said_and_tried_again() {
    let server = S3Server::start();
    let repository = support::init_s3(&server, "main").await;
    four(&repository).await;
    let locked = repository.pack_name(FakeBackup::new(3).pack());
    server.inject(
        Rule::new(Fault::Status(403))
            .method("DELETE")
            .containing(&locked)
            .always(),
    );
    let collected = expire(&repository, &last(1)).await.unwrap();
    assert_eq!(collected.left.len(), 1);
    assert_eq!(collected.left[0].object, locked);
    server.clear_faults();
    let collected = expire(&repository, &last(1)).await.unwrap();
    assert_eq!((collected.objects, collected.left.len()), (1, 0));
}

#[tokio::test]
async fn without_any_backup_nothing_is_collected() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let repository = support::init(root, "main").await.unwrap().repository;
    let left = FakeBackup::new(9);
    left.put_objects(&repository).await;
    age(root);
    let collected = expire(&repository, &last(1)).await.unwrap();
    assert_eq!(collected, Collected::default());
    assert!(exists(root, &repository.names().wal(segment(9).into())));
}

#[tokio::test]
async fn a_collection_waits_within_bounds_for_those_who_read_what_it_removes_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let repository = support::init(root, "main").await.unwrap().repository;
    four(&repository).await;
    let token = CancellationToken::new();
    let propose = async |count| {
        let now = Timestamp::now();
        super::propose(&repository, &last(count), now, &TimeZone::UTC, &token)
            .await
            .unwrap()
    };
    let read = async |number| {
        let scope = LeaseScope::label(FakeBackup::new(number).label());
        repository.lease(LeaseKind::Restore, scope).await.unwrap()
    };
    let told = std::sync::Mutex::new(Vec::new());
    let waiting = |readers: &[Reader]| told.lock().unwrap().push(readers.to_vec());
    // Somebody who is done in time.
    let lease = read(1).await;
    let grace = Grace {
        at_most: Duration::from_mins(1),
        waiting: &waiting,
    };
    let plan = propose(3).await;
    let (collected, finished) = tokio::join!(carry_out_with(&repository, &plan, &grace, &token), async {
        while told.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        lease.finish().await
    });
    finished.unwrap();
    assert!(collected.unwrap().being_read.is_empty());
    let first = FakeBackup::new(1);
    assert!(!exists(root, &repository.names().manifest(first.label())));
    let waited_for = told.lock().unwrap()[0].clone();
    assert_eq!(waited_for.len(), 1);
    assert_eq!(
        (waited_for[0].label, waited_for[0].kind),
        (first.label(), LeaseKind::Restore)
    );
    // Somebody who is not.
    let lease = read(3).await;
    let grace = Grace {
        at_most: Duration::from_millis(50),
        waiting: &waiting,
    };
    let collected = carry_out_with(&repository, &propose(1).await, &grace, &token)
        .await
        .unwrap();
    assert_eq!(collected.being_read, [FakeBackup::new(3).label()]);
    lease.finish().await.unwrap();
}

#[tokio::test]
async fn lists_of_condemned_objects_that_no_head_names_are_swept_and_their_writers_refused() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let repository = support::init(root, "main").await.unwrap().repository;
    four(&repository).await;
    expire(&repository, &last(3)).await.unwrap();
    let named = repository.head().await.unwrap().condemned[0].list;
    // Collections that were killed between their list and the head.
    let orphan = async |byte| {
        let list = CondemnedObjects::new(CondemnedId::from_bytes([byte; 16]), Timestamp::now());
        let name = repository.names().condemned(list.id);
        let bytes = pgmahout_store::framed::seal_bytes(
            &repository.cipher(),
            crate::physical::stanza::kind::CONDEMNED,
            &name,
            pgmahout_store::framed::FrameCodec::None,
            &list.encode(),
        );
        repository
            .repository()
            .create_once(&name, bytes.unwrap())
            .await
            .unwrap();
        root.join(name)
    };
    let old = orphan(1).await;
    age(root);
    let young = orphan(2).await;
    let before = repository.head().await.unwrap().epoch;
    expire(&repository, &last(3)).await.unwrap();
    assert!(!old.exists());
    assert!(young.exists(), "its writer may be about to put it on the head");
    assert!(
        root.join(repository.names().condemned(named)).exists(),
        "backups are compared with it"
    );
    // Whoever wrote it and wakes up has looked at another epoch.
    assert!(repository.head().await.unwrap().epoch > before);
    let quiet = repository.head().await.unwrap().epoch;
    expire(&repository, &last(3)).await.unwrap();
    assert_eq!(repository.head().await.unwrap().epoch, quiet, "nothing was swept");
}
