//! Keys by number and the slots that hold them.

use super::*;
use crate::framed::{self, FrameCodec, FramedError};
use crate::seal::{Context, Credential, Key, Keyring, Opener, SealError, Sealer, SlotChoice, SlotKind};
use pgmahout_config::secret::SecretReference;
use zeroize::Zeroizing;

fn key(byte: u8) -> Key {
    Key::from_bytes([byte; 32])
}

/// A repository that a program's key opens: quick, unlike a passphrase.
async fn opened_by(path: &Path, byte: u8) -> Repository {
    let digits = format!("{byte:02x}").repeat(32);
    Repository::open(RepositorySettings {
        encryption: Some(EncryptionSettings::Command {
            program: "echo".to_owned(),
            arguments: vec![digits],
        }),
        ..local(path)
    })
    .await
    .unwrap()
}

async fn seal(repository: &Repository, name: &str) {
    let cipher = repository.object_cipher().await.unwrap();
    let object = framed::seal_bytes(&cipher, "pack", name, FrameCodec::default(), b"pages").unwrap();
    repository.put_bytes(name, object, PutMode::Create).await.unwrap();
}

async fn unseal(repository: &Repository, name: &str) -> Result<Vec<u8>, FramedError> {
    let cipher = repository.object_cipher().await.unwrap();
    let object = repository.get_bytes(name, 10_000).await.unwrap();
    framed::open_bytes(&cipher, "pack", name, &object)
}

fn seal_error(error: &StoreError) -> &SealError {
    match error {
        StoreError::Encryption { source, .. } | StoreError::WrongKey { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

async fn is_refused(repository: &Repository) -> bool {
    matches!(repository.object_cipher().await, Err(StoreError::WrongKey { .. }))
}

fn same(directory: &Path, object: &str) -> bool {
    std::fs::read(directory.join(object)).unwrap()
        == std::fs::read(directory.join(format!("{object}.copy"))).unwrap()
}

#[tokio::test]
async fn a_repository_in_the_clear_has_a_plain_cipher() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(directory.path()).await;
    assert!(!repository.object_cipher().await.unwrap().is_encrypted());
    seal(&repository, "a").await;
    assert_eq!(unseal(&repository, "a").await.unwrap(), b"pages");
    assert_eq!(files(directory.path()), ["a"]);
}

#[tokio::test]
async fn a_new_repository_key_seals_and_the_old_ones_open() {
    let directory = tempfile::tempdir().unwrap();
    let repository = opened_by(directory.path(), 1).await;
    seal(&repository, "old").await;
    let old_ring = repository.keyring(&never()).await.unwrap().unwrap();
    assert_eq!(repository.add_repository_key(&[]).await.unwrap(), 1);
    assert_eq!(repository.add_repository_key(&[]).await.unwrap(), 2);
    seal(&repository, "new").await;
    let ring = repository.keyring(&never()).await.unwrap().unwrap();
    let mut sealer = Sealer::new(Vec::new(), &ring, &Context::object("dump", "d")).unwrap();
    sealer.write_all(b"rows").unwrap();
    let dump = sealer.finish().unwrap();

    let again = opened_by(directory.path(), 1).await;
    assert_eq!(again.object_cipher().await.unwrap().key_numbers(), [0, 1, 2]);
    for name in ["old", "new"] {
        assert_eq!(unseal(&again, name).await.unwrap(), b"pages");
    }
    // Dumps too are sealed with the newest key, and opened with all.
    assert!(Opener::new(&dump[..], &old_ring, &Context::object("dump", "d")).is_err());
    let ring = again.keyring(&never()).await.unwrap().unwrap();
    let mut rows = Vec::new();
    Opener::new(&dump[..], &ring, &Context::object("dump", "d"))
        .unwrap()
        .read_to_end(&mut rows)
        .unwrap();
    assert_eq!(rows, b"rows");
    for object in ["repository.key", "repository.key.1", "repository.key.2"] {
        assert!(same(directory.path(), object), "{object}");
    }
}

#[tokio::test]
async fn a_program_that_runs_learns_of_a_new_key_when_it_asks_again() {
    let directory = tempfile::tempdir().unwrap();
    let running = opened_by(directory.path(), 1).await;
    seal(&running, "a").await;
    let other = opened_by(directory.path(), 1).await;
    other.add_repository_key(&[]).await.unwrap();
    seal(&other, "b").await;
    let error = unseal(&running, "b").await.unwrap_err();
    assert!(matches!(error, FramedError::UnknownKey { number: 1 }), "{error}");
    running.reload_keys().await.unwrap();
    assert_eq!(unseal(&running, "b").await.unwrap(), b"pages");
}

#[tokio::test]
async fn slots_are_added_listed_and_removed_and_data_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let repository = opened_by(directory.path(), 1).await;
    seal(&repository, "a").await;
    repository.add_repository_key(&[]).await.unwrap();
    let before = std::fs::metadata(directory.path().join("a")).unwrap().ino();
    repository.add_slot(&Credential::KeyFile(key(2))).await.unwrap();
    repository
        .add_slot(&Credential::Passphrase(Zeroizing::new(
            "correct horse".to_owned(),
        )))
        .await
        .unwrap();
    let keys = repository.list_slots().await.unwrap();
    assert_eq!(keys.iter().map(|key| key.number).collect::<Vec<_>>(), [0, 1]);
    for listed in &keys {
        let kinds: Vec<_> = listed.slots.iter().map(|slot| (slot.kind, slot.opens)).collect();
        assert_eq!(
            kinds,
            [
                (SlotKind::Command, true),
                (SlotKind::KeyFile, false),
                (SlotKind::Passphrase, false)
            ]
        );
    }
    assert_eq!(
        unseal(&opened_by(directory.path(), 2).await, "a").await.unwrap(),
        b"pages"
    );
    // Adding again what is there changes nothing.
    repository.add_slot(&Credential::KeyFile(key(2))).await.unwrap();
    assert_eq!(repository.list_slots().await.unwrap(), keys);

    // One by what it is, in all keys; one by its id, in that key.
    repository
        .remove_slot(&SlotChoice::Credential(Credential::KeyFile(key(2))))
        .await
        .unwrap();
    assert!(is_refused(&opened_by(directory.path(), 2).await).await);
    let passphrase = keys[1].slots[2].id.clone();
    repository.remove_slot(&SlotChoice::Id(passphrase)).await.unwrap();
    let kinds: Vec<_> = repository
        .list_slots()
        .await
        .unwrap()
        .iter()
        .map(|key| key.slots.len())
        .collect();
    assert_eq!(kinds, [2, 1]);
    assert_eq!(unseal(&repository, "a").await.unwrap(), b"pages");
    assert_eq!(
        std::fs::metadata(directory.path().join("a")).unwrap().ino(),
        before
    );
    assert!(same(directory.path(), "repository.key") && same(directory.path(), "repository.key.1"));
}

#[tokio::test]
async fn the_last_slot_of_any_key_is_not_removed_and_nothing_else_then_is() {
    let directory = tempfile::tempdir().unwrap();
    let repository = opened_by(directory.path(), 1).await;
    seal(&repository, "a").await;
    repository.add_slot(&Credential::KeyFile(key(2))).await.unwrap();
    // The second key has the settings' slot alone.
    repository.add_repository_key(&[]).await.unwrap();
    let before = repository.list_slots().await.unwrap();
    let own = SlotChoice::Credential(Credential::Command(key(1)));
    let error = repository.remove_slot(&own).await.unwrap_err();
    assert!(matches!(seal_error(&error), SealError::LastSlot), "{error:?}");
    assert_eq!(error.outcome(), Outcome::Refused);
    assert!(error.hint().unwrap().contains("keys add"));
    assert_eq!(repository.list_slots().await.unwrap(), before);

    let error = repository
        .remove_slot(&SlotChoice::Id("00000000".to_owned()))
        .await
        .unwrap_err();
    assert!(
        matches!(seal_error(&error), SealError::NoSuchSlot { .. }),
        "{error:?}"
    );
    assert_eq!(error.outcome(), Outcome::Usage);
}

#[tokio::test]
async fn who_has_no_slot_in_a_newer_key_is_told_which() {
    let directory = tempfile::tempdir().unwrap();
    let repository = opened_by(directory.path(), 1).await;
    seal(&repository, "a").await;
    for byte in [2, 3] {
        repository
            .add_slot(&Credential::KeyFile(key(byte)))
            .await
            .unwrap();
    }
    // One of the others is known, and goes along.
    repository
        .add_repository_key(&[Credential::KeyFile(key(2))])
        .await
        .unwrap();
    opened_by(directory.path(), 2)
        .await
        .object_cipher()
        .await
        .unwrap();
    let error = opened_by(directory.path(), 3)
        .await
        .object_cipher()
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::WrongKey { .. }), "{error:?}");
    assert!(error.to_string().contains("repository.key.1"), "{error}");
}

#[tokio::test]
async fn a_change_of_slots_that_was_interrupted_before_the_copy_is_completed_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let repository = opened_by(directory.path(), 1).await;
    seal(&repository, "a").await;
    repository.add_slot(&Credential::KeyFile(key(2))).await.unwrap();
    let copy = directory.path().join("repository.key.copy");
    let old_copy = std::fs::read(&copy).unwrap();
    let choice = SlotChoice::Credential(Credential::KeyFile(key(2)));
    repository.remove_slot(&choice).await.unwrap();
    // As if the power had failed in between: the removed key still opens the copy.
    std::fs::write(&copy, old_copy).unwrap();
    repository.remove_slot(&choice).await.unwrap();
    assert!(same(directory.path(), "repository.key"));
    assert!(repository.remove_slot(&choice).await.is_err());
    std::fs::remove_file(directory.path().join("repository.key")).unwrap();
    assert!(is_refused(&opened_by(directory.path(), 2).await).await);
    assert_eq!(
        unseal(&opened_by(directory.path(), 1).await, "a").await.unwrap(),
        b"pages"
    );
}

#[tokio::test]
async fn all_keys_are_wrapped_anew_together() {
    let directory = tempfile::tempdir().unwrap();
    let repository = opened_by(directory.path(), 1).await;
    seal(&repository, "a").await;
    repository.add_repository_key(&[]).await.unwrap();
    seal(&repository, "b").await;
    let new = Keyring::new().with_credential(Credential::KeyFile(key(9)));
    repository.rewrap(new).await.unwrap();
    assert!(is_refused(&opened_by(directory.path(), 1).await).await);
    let again = opened_by(directory.path(), 9).await;
    for name in ["a", "b"] {
        assert_eq!(unseal(&again, name).await.unwrap(), b"pages");
    }
}

#[tokio::test]
async fn a_key_object_in_the_place_of_another_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let repository = opened_by(directory.path(), 1).await;
    seal(&repository, "a").await;
    repository.add_repository_key(&[]).await.unwrap();
    for ending in ["", ".copy"] {
        std::fs::copy(
            directory.path().join("repository.key"),
            directory.path().join(format!("repository.key.1{ending}")),
        )
        .unwrap();
    }
    let error = opened_by(directory.path(), 1)
        .await
        .object_cipher()
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
}

#[tokio::test]
async fn slots_of_a_repository_in_the_clear_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(directory.path()).await;
    for error in [
        repository.list_slots().await.unwrap_err(),
        repository
            .add_slot(&Credential::KeyFile(key(1)))
            .await
            .unwrap_err(),
        repository.add_repository_key(&[]).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::KeyNotConfigured { .. }), "{error:?}");
    }
    assert_eq!(files(directory.path()), [""; 0]);
    let reference = SecretReference::Literal("x".into());
    let passphrase = EncryptionSettings::Passphrase(reference);
    let new = Repository::open(RepositorySettings {
        encryption: Some(passphrase),
        ..local(directory.path())
    })
    .await
    .unwrap();
    assert!(matches!(
        new.list_slots().await.unwrap_err(),
        StoreError::KeyLost { .. }
    ));
}
