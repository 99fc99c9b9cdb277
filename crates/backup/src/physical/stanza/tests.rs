//! Stanzas on a file system and on S3, with faults.

use std::time::{Duration, SystemTime};

use pgmahout_procedure::StateDirectory;
use pgmahout_testkit::s3::{Fault, Rule, S3Server};
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use pgmahout_types::repository::Head;

use super::support::{self, FakeBackup};
use super::*;

async fn annotate(repository: &PhysicalRepository, key: &str) -> Result<(), StanzaError> {
    repository
        .swap(|head| {
            head.other.insert(key.to_owned(), serde_json::Value::Null);
            Ok(())
        })
        .await
}

#[tokio::test]
async fn a_stanza_is_set_up_once_and_opened_often() {
    let directory = tempfile::tempdir().unwrap();
    let first = support::init(directory.path(), "main").await.unwrap();
    assert!(first.new_repository && first.new_stanza);
    let again = support::init(directory.path(), "main").await.unwrap();
    assert!(!again.new_repository && !again.new_stanza && !again.upgraded);
    let other = support::init(directory.path(), "other").await.unwrap();
    assert!(!other.new_repository && other.new_stanza);
    assert_eq!(first.repository.hash_key(), other.repository.hash_key());
    let opened = support::open(directory.path(), "main").await.unwrap();
    assert_eq!(opened.head().await.unwrap().seq, 1);
    assert_eq!(opened.id(), first.repository.id());
    assert_eq!(stanzas(opened.repository()).await.unwrap(), ["main", "other"]);
}

#[tokio::test]
async fn what_is_not_set_up_is_told_with_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let error = support::open(directory.path(), "main").await.unwrap_err();
    assert!(matches!(error, StanzaError::NotInitialised { .. }), "{error}");
    assert!(error.hint().unwrap().contains("pgmahout repo init --stanza main"));
    support::init(directory.path(), "main").await.unwrap();
    let error = support::open(directory.path(), "mian").await.unwrap_err();
    assert!(error.to_string().ends_with("it has main"), "{error}");
}

#[tokio::test]
async fn another_cluster_is_refused_and_an_upgraded_one_is_taken_in_when_told() {
    let directory = tempfile::tempdir().unwrap();
    support::init(directory.path(), "main").await.unwrap();
    let upgraded = support::info("main", 2, 18);
    let another = support::info("main", 3, 15);
    let options = InitOptions::default();
    let init_as = async |cluster: &StanzaInfo, options| {
        let repository = support::local(directory.path()).await;
        let stanza = "main".parse().unwrap();
        PhysicalRepository::init(
            repository,
            stanza,
            cluster.clone(),
            options,
            &RepositoryMemory::none(),
        )
        .await
    };
    let error = init_as(&upgraded, options).await.unwrap_err();
    assert!(matches!(error, StanzaError::Mismatch { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::Refused);
    let upgrade = InitOptions { upgrade: true };
    let error = init_as(&another, upgrade).await.unwrap_err();
    assert!(
        matches!(error, StanzaError::Mismatch { .. }),
        "one of the same version is no upgrade: {error}"
    );
    assert!(init_as(&upgraded, upgrade).await.unwrap().upgraded);
    init_as(&another, upgrade).await.unwrap_err();
    let opened = support::open(directory.path(), "main").await.unwrap();
    opened.check_identity(SystemIdentifier::new(2), 18).unwrap();
    opened.check_identity(SystemIdentifier::new(1), 18).unwrap_err();
}

#[tokio::test]
async fn an_upgraded_cluster_does_not_get_a_stanza_in_which_its_wal_would_collide() {
    let upgraded = support::info("main", 2, 18);
    for leave_backup in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let repository = support::init(directory.path(), "main").await.unwrap().repository;
        let before = FakeBackup::new(1);
        if leave_backup {
            before.publish(&repository).await.unwrap();
        } else {
            before.put_objects(&repository).await;
        }
        let init_as = async |stanza: &str| {
            PhysicalRepository::init(
                support::local(directory.path()).await,
                stanza.parse().unwrap(),
                upgraded.clone(),
                InitOptions { upgrade: true },
                &RepositoryMemory::none(),
            )
            .await
        };
        let error = init_as("main").await.unwrap_err();
        assert!(matches!(error, StanzaError::Collides { .. }), "{error}");
        assert_eq!(error.outcome(), Outcome::Refused);
        assert!(error.hint().unwrap().contains("`stanza: main-18`"));
        // The way out, with the old ones as they were.
        init_as("main-18").await.unwrap();
        let opened = support::open(directory.path(), "main").await.unwrap();
        opened.check_identity(SystemIdentifier::new(1), 15).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn changes_that_race_are_all_made_once() {
    let directory = tempfile::tempdir().unwrap();
    support::init(directory.path(), "main").await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..6 {
        // Each as if it were a process of its own.
        let repository = support::open(directory.path(), "main").await.unwrap();
        tasks.spawn(async move {
            for change in 0..5 {
                annotate(&repository, &format!("{task}.{change}")).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let head = support::open(directory.path(), "main")
        .await
        .unwrap()
        .head()
        .await
        .unwrap();
    assert_eq!(head.seq, 31);
    assert_eq!(head.other.len(), 30);
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_made_once_and_known() {
    let server = S3Server::start();
    let repository = support::init_s3(&server, "main").await;
    server.inject(Rule::new(Fault::LoseAnswer).method("PUT").containing("head/"));
    annotate(&repository, "one").await.unwrap();
    server.inject(
        Rule::new(Fault::Status(503))
            .method("PUT")
            .containing("head/")
            .times(2),
    );
    annotate(&repository, "two").await.unwrap();
    let head = repository.head().await.unwrap();
    assert_eq!(head.seq, 3, "each change is one head");
    assert_eq!(head.other.len(), 2);
}

#[tokio::test]
async fn a_listing_that_fails_or_is_behind_does_not_hide_the_newest_head() {
    let server = S3Server::start();
    let repository = support::init_s3(&server, "main").await;
    for change in 0..40 {
        annotate(&repository, &change.to_string()).await.unwrap();
    }
    // One that knows nothing, and one that is far behind.
    let fresh = support::open_s3(&server, "main").await;
    assert_eq!(fresh.head().await.unwrap().seq, 41);
    for change in 40..80 {
        annotate(&repository, &change.to_string()).await.unwrap();
    }
    assert_eq!(fresh.head().await.unwrap().seq, 81);
}

#[tokio::test]
async fn a_repository_that_was_set_back_is_noticed_by_who_saw_more() {
    let directory = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    let memory = RepositoryMemory::new(&StateDirectory::at(state.path()));
    support::init(directory.path(), "main").await.unwrap();
    let open = async || {
        let repository = support::local(directory.path()).await;
        PhysicalRepository::open(repository, "main".parse().unwrap(), &memory).await
    };
    let repository = open().await.unwrap();
    for change in ["a", "b", "c"] {
        annotate(&repository, change).await.unwrap();
    }
    let heads = directory.path().join("stanza/main/head");
    std::fs::remove_file(heads.join(format!("{:016x}", 4))).unwrap();
    let error = open().await.unwrap_err();
    assert!(
        matches!(
            error,
            StanzaError::RolledBack {
                found: 3,
                seen: 4,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.outcome(), Outcome::Refused);
    let hint = error.hint().unwrap();
    assert!(hint.contains("repo check --accept-rollback"), "{hint}");
    assert!(repository.head().await.is_err(), "the process itself notices too");
    // Somebody who does not know goes on from there: the number is used again, the nonce is not.
    let other = support::open(directory.path(), "main").await.unwrap();
    annotate(&other, "d").await.unwrap();
    annotate(&other, "e").await.unwrap();
    let error = open().await.unwrap_err();
    assert!(matches!(error, StanzaError::RolledBack { .. }), "{error}");
    let error = repository.check_memory().await.unwrap_err();
    assert!(matches!(error, StanzaError::RolledBack { .. }), "{error}");
    // Whoever meant it says so, once.
    let (head, seen) = repository.accept_rollback().await.unwrap();
    assert_eq!((head.seq, seen), (5, Some(4)));
    assert_eq!(repository.accept_rollback().await.unwrap().1, None);
    repository.check_memory().await.unwrap();
    assert_eq!(open().await.unwrap().head().await.unwrap().seq, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_is_behind_hides_no_head() {
    let server = S3Server::start();
    let repository = support::init_s3(&server, "main").await;
    annotate(&repository, "first").await.unwrap();
    server.stale_listings();
    // Several times as many as are looked for one by one before the log is listed.
    for change in 0..40 {
        annotate(&repository, &change.to_string()).await.unwrap();
    }
    assert_eq!(
        support::open_s3(&server, "main").await.head().await.unwrap().seq,
        42
    );
    // A stanza of which a listing shows nothing yet.
    let other = support::init_s3(&server, "other").await;
    annotate(&other, "change").await.unwrap();
    assert_eq!(
        support::open_s3(&server, "other").await.head().await.unwrap().seq,
        2
    );
}

#[tokio::test]
async fn a_damaged_head_is_an_error_and_not_an_older_state() {
    let directory = tempfile::tempdir().unwrap();
    let repository = support::init(directory.path(), "main").await.unwrap().repository;
    annotate(&repository, "a").await.unwrap();
    let path = directory
        .path()
        .join("stanza/main/head")
        .join(format!("{:016x}", 2));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = support::open(directory.path(), "main").await.unwrap_err();
    assert!(matches!(error, StanzaError::Framed { .. }), "{error}");
    // A head under another number is not that head.
    let first = std::fs::read(path.with_file_name(format!("{:016x}", 1))).unwrap();
    std::fs::write(&path, first).unwrap();
    assert!(support::open(directory.path(), "main").await.is_err());
}

#[tokio::test]
async fn heads_of_400_days_are_kept_and_a_sleeper_cannot_use_a_number_again() {
    let directory = tempfile::tempdir().unwrap();
    let repository = support::init(directory.path(), "main").await.unwrap().repository;
    let old: Head = repository.head().await.unwrap();
    for change in ["a", "b", "c"] {
        annotate(&repository, change).await.unwrap();
    }
    assert_eq!(repository.prune_heads(SystemTime::now()).await.unwrap(), 0);
    let later = SystemTime::now() + HEADS_ARE_KEPT + Duration::from_hours(1);
    assert_eq!(repository.prune_heads(later).await.unwrap(), 3);
    assert_eq!(repository.head().await.unwrap().seq, 4);
    // It read head 1, slept, and wants to write head 2, which was used and removed.
    let error = repository.follow(&old, old.clone()).await.unwrap_err();
    assert!(matches!(error, StanzaError::TooLate { .. }), "{error}");
    assert_eq!(
        support::open(directory.path(), "main")
            .await
            .unwrap()
            .head()
            .await
            .unwrap()
            .seq,
        4
    );
}

#[tokio::test]
async fn a_lost_head_log_is_not_begun_anew_over_backups() {
    let directory = tempfile::tempdir().unwrap();
    let repository = support::init(directory.path(), "main").await.unwrap().repository;
    FakeBackup::new(1).publish(&repository).await.unwrap();
    std::fs::remove_dir_all(directory.path().join("stanza/main/head")).unwrap();
    let error = support::init(directory.path(), "main").await.unwrap_err();
    assert!(matches!(error, StanzaError::HeadLost { .. }), "{error}");
}

#[tokio::test]
async fn a_lease_is_renewed_while_it_is_held_and_gone_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let repository = support::init(directory.path(), "main").await.unwrap().repository;
    let guard = repository
        .lease_for(LeaseKind::Restore, LeaseScope::All, Duration::from_secs(1))
        .await
        .unwrap();
    let first = guard.written().await.unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while guard.written().await.unwrap() == first {
        assert!(std::time::Instant::now() < deadline, "it was not renewed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let seen = repository.leases(None).await.unwrap();
    assert_eq!(seen.len(), 1);
    let now = guard.written().await.unwrap();
    assert!(seen[0].is_alive(now) && seen[0].covers("20261121T104500Z-3f9a".parse().unwrap()));
    assert!(!seen[0].is_alive(now + lease::CLOCK_ALLOWANCE + Duration::from_secs(3)));
    assert!(
        repository.leases(Some(&guard)).await.unwrap().is_empty(),
        "its own is left out"
    );
    guard.finish().await.unwrap();
    assert!(repository.leases(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lease_that_ran_out_is_known_to_its_owner() {
    let server = S3Server::start();
    let repository = support::init_s3(&server, "main").await;
    let label = FakeBackup::new(1).publish(&repository).await.unwrap();
    let guard = repository
        .lease_for(
            LeaseKind::Restore,
            LeaseScope::label(label),
            Duration::from_secs(1),
        )
        .await
        .unwrap();
    guard.hold().await.unwrap();
    server.inject(
        Rule::new(Fault::Status(403))
            .method("PUT")
            .containing("lease/")
            .always(),
    );
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while guard.is_alive() {
        assert!(std::time::Instant::now() < deadline, "it was not noticed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    guard.hold().await.unwrap_err();
    server.clear_faults();
    // The backup is still listed: nothing was lost.
    guard.hold().await.unwrap();
    repository
        .swap(|head| head.remove(&[label].into()).map(drop).map_err(StanzaError::from))
        .await
        .unwrap();
    server.inject(
        Rule::new(Fault::Status(403))
            .method("PUT")
            .containing("lease/")
            .always(),
    );
    while guard.is_alive() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.clear_faults();
    let error = guard.hold().await.unwrap_err();
    assert!(matches!(error, StanzaError::LeaseLost { .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_is_read_as_it_was_written_and_another_in_its_place_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let repository = support::init(directory.path(), "main").await.unwrap().repository;
    let one = FakeBackup::new(1).publish(&repository).await.unwrap();
    let two = FakeBackup::new(2).publish(&repository).await.unwrap();
    let head = repository.head().await.unwrap();
    let entry = repository.backup_in(&head, one).unwrap();
    let manifest = repository.read_manifest(one).await.unwrap();
    assert_eq!(manifest.header.label, one);
    assert_eq!(manifest.end.packs.len(), 2);
    repository
        .read_manifest_ends(one, Some(entry.manifest))
        .await
        .unwrap();
    let path = |label: Label| directory.path().join(repository.names().manifest(label));
    std::fs::copy(path(two), path(one)).unwrap();
    repository
        .read_manifest_ends(one, Some(entry.manifest))
        .await
        .unwrap_err();
    repository.read_manifest(one).await.unwrap_err();
}

#[tokio::test]
async fn publishing_twice_is_publishing_once() {
    let directory = tempfile::tempdir().unwrap();
    let repository = support::init(directory.path(), "main").await.unwrap().repository;
    let basis = repository.head().await.unwrap().epoch;
    let manifest = FakeBackup::new(1).write(&repository).await.unwrap();
    for _ in 0..2 {
        repository
            .publish(&manifest.entry(), basis, &manifest.references())
            .await
            .unwrap();
    }
    assert_eq!(repository.head().await.unwrap().backups.len(), 1);
}

#[test]
fn a_lease_is_judged_by_the_storages_clock_and_outlives_no_clock_that_was_set_back_for_long() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_hours(1_000_000);
    let seen = |written| lease::SeenLease {
        id: "a".to_owned(),
        written,
        lease: None,
    };
    let (minute, hour) = (Duration::from_mins(1), Duration::from_hours(1));
    assert!(seen(now).is_alive(now));
    assert!(seen(now - 5 * minute).is_alive(now));
    assert!(!seen(now - 7 * minute).is_alive(now));
    // The clock was set back: its owner may not have renewed it since.
    assert!(seen(now + hour).is_alive(now));
    // By more than a storage's clock differs from itself, and nobody has renewed it: it is not for ever.
    assert!(!seen(now + 25 * hour).is_alive(now));
}
