use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use pgmahout_types::diagnostic::{Diagnose, Outcome};

use super::*;

mod keys;
mod parts;

fn local(path: &Path) -> RepositorySettings {
    RepositorySettings::at("local", Location::Directory(path.to_owned()))
}

async fn open(path: &Path) -> Repository {
    Repository::open(local(path)).await.unwrap()
}

fn never() -> CancellationToken {
    CancellationToken::new()
}

/// Everything below a directory, hidden files too.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(directory) else {
        return found;
    };
    for entry in entries.map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            found.extend(
                files(&entry.path())
                    .into_iter()
                    .map(|below| format!("{name}/{below}")),
            );
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn objects_are_written_listed_read_and_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("repository");
    let repository = open(&root).await;
    assert_eq!(repository.description(), format!("local ({})", root.display()));
    repository
        .put_bytes("dumps/shop/a.json", "{}", PutMode::Create)
        .await
        .unwrap();
    repository
        .put_bytes("dumps/shopping/b", "b", PutMode::Create)
        .await
        .unwrap();
    repository.put_bytes("top", "", PutMode::Create).await.unwrap();
    let names = |entries: Vec<ObjectEntry>| entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>();
    let all = repository.list("", &never()).await.unwrap();
    assert_eq!(names(all), ["dumps/shop/a.json", "dumps/shopping/b", "top"]);
    // A prefix is a directory, not the beginning of a name.
    let shop = repository.list("dumps/shop", &never()).await.unwrap();
    assert_eq!(
        (shop[0].size, names(shop)),
        (2, vec!["dumps/shop/a.json".to_owned()])
    );
    assert_eq!(repository.list("nothing/here", &never()).await.unwrap(), []);

    assert_eq!(
        &repository.get_bytes("dumps/shop/a.json", 2).await.unwrap()[..],
        b"{}"
    );
    let error = repository.get_bytes("dumps/shop/a.json", 1).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { limit: 1, .. }), "{error}");
    assert!(repository.exists("top").await.unwrap());
    assert!(
        !repository.exists("dumps/shop").await.unwrap(),
        "a directory is no object"
    );
    assert!(!repository.exists("top/below").await.unwrap());
    assert!(repository.delete("top").await.unwrap());
    assert!(!repository.delete("top").await.unwrap());
    let error = repository.get_bytes("top", 9).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot read top in repository {}: it does not exist",
            repository.description()
        )
    );
    assert!(error.is_not_found() && error.hint().is_some());
}

#[tokio::test]
async fn files_of_a_repository_are_for_their_owner_alone() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(&directory.path().join("r")).await;
    repository.put_bytes("a/b", "x", PutMode::Create).await.unwrap();
    let mode = |path: &str| {
        directory
            .path()
            .join(path)
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode("r/a/b"), mode("r/a"), mode("r")), (0o600, 0o700, 0o700));
}

#[tokio::test]
async fn create_never_overwrites_and_overwrite_does() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(directory.path()).await;
    repository
        .put_bytes("name", "first", PutMode::Create)
        .await
        .unwrap();
    let error = repository
        .put_bytes("name", "second", PutMode::Create)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::Refused);
    assert!(
        error.to_string().contains("name") && error.to_string().contains("local"),
        "{error}"
    );
    let error = repository
        .writer("name", PutMode::Create, &never())
        .await
        .err()
        .unwrap();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
    assert_eq!(&repository.get_bytes("name", 9).await.unwrap()[..], b"first");
    repository
        .put_bytes("name", "second", PutMode::Overwrite)
        .await
        .unwrap();
    assert_eq!(&repository.get_bytes("name", 9).await.unwrap()[..], b"second");
}

#[tokio::test]
async fn of_two_streams_to_one_name_the_first_published_wins() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(directory.path()).await;
    let mut one = repository
        .writer("name", PutMode::Create, &never())
        .await
        .unwrap();
    let mut two = repository
        .writer("name", PutMode::Create, &never())
        .await
        .unwrap();
    one.write_all(b"one").unwrap();
    two.write_all(b"two").unwrap();
    two.publish().unwrap();
    let error = one.publish().unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
    assert_eq!(&repository.get_bytes("name", 9).await.unwrap()[..], b"two");
    assert_eq!(files(directory.path()), ["name"]);
}

#[tokio::test]
async fn nothing_is_under_the_name_before_it_is_published() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(directory.path()).await;
    let content = vec![7; 3 * 1024 * 1024];
    for give_up in [true, false] {
        let mut writer = repository
            .writer("dumps/shop.gz", PutMode::Create, &never())
            .await
            .unwrap();
        writer.write_all(&content).unwrap();
        assert!(!repository.exists("dumps/shop.gz").await.unwrap());
        assert_eq!(
            repository.list("", &never()).await.unwrap(),
            [],
            "temporaries are not listed"
        );
        if give_up {
            writer.abort().unwrap();
        } else {
            drop(writer);
        }
        assert_eq!(files(directory.path()), [""; 0], "nothing is left");
    }
    let mut writer = repository
        .writer("dumps/shop.gz", PutMode::Create, &never())
        .await
        .unwrap();
    writer.write_all(&content).unwrap();
    let entry = writer.publish().unwrap();
    assert_eq!(
        (entry.name.as_str(), entry.size),
        ("dumps/shop.gz", content.len() as u64)
    );
    let mut reader = repository.reader("dumps/shop.gz", &never()).await.unwrap();
    assert_eq!(reader.entry().size, entry.size);
    let mut back = Vec::new();
    reader.read_to_end(&mut back).unwrap();
    assert!(back == content);
}

#[tokio::test]
async fn cancelling_stops_writers_and_readers_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(directory.path()).await;
    let cancellation = CancellationToken::new();
    let mut writer = repository
        .writer("a", PutMode::Create, &cancellation)
        .await
        .unwrap();
    writer.write_all(b"begun").unwrap();
    repository.put_bytes("b", "there", PutMode::Create).await.unwrap();
    let mut reader = repository.reader("b", &cancellation).await.unwrap();
    cancellation.cancel();
    let error = writer.write_all(b"more").unwrap_err();
    let error = StoreError::from_io(error, repository.subject(Action::Write, "a"));
    assert!(matches!(error, StoreError::Cancelled { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::Interrupted);
    assert!(matches!(
        writer.publish().unwrap_err(),
        StoreError::Cancelled { .. }
    ));
    let error = reader.read(&mut [0; 9]).unwrap_err();
    assert!(
        matches!(StoreError::of(&error), Some(StoreError::Cancelled { .. })),
        "{error}"
    );
    assert!(matches!(
        repository.list("", &cancellation).await.unwrap_err(),
        StoreError::Cancelled { .. }
    ));
    assert_eq!(files(directory.path()), ["b"]);
}

#[tokio::test]
async fn a_full_disk_is_told_as_one_and_nothing_is_left() {
    let disk = match pgmahout_testkit::tmpfs::Tmpfs::new(4 * 1024 * 1024) {
        Ok(disk) => disk,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let root = disk.path().join("repository");
    let repository = open(&root).await;
    repository
        .put_bytes("old", "kept", PutMode::Create)
        .await
        .unwrap();
    let mut writer = repository.writer("big", PutMode::Create, &never()).await.unwrap();
    let piece = vec![1; 100_000];
    let error = (0..100)
        .find_map(|_| writer.write_all(&piece).err())
        .expect("4 MiB do not hold 10 MB");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    let error = StoreError::from_io(error, repository.subject(Action::Write, "big"));
    assert_eq!(
        error.to_string(),
        format!(
            "cannot write big in repository {}: no space left",
            repository.description()
        )
    );
    assert!(error.hint().unwrap().contains("free space"));
    assert!(
        writer.publish().is_err(),
        "what could not be written is not published"
    );
    assert_eq!(files(&root), ["old"]);

    let error = repository
        .put_bytes("big", vec![1; 9_000_000], PutMode::Overwrite)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    assert_eq!(files(&root), ["old"]);
    assert_eq!(&repository.get_bytes("old", 9).await.unwrap()[..], b"kept");
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_told_as_one() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("r");
    std::fs::create_dir(&root).unwrap();
    if rustix::process::geteuid().is_root() {
        // Root may write everywhere but where the kernel itself refuses.
        let repository = open(Path::new("/proc/pgmahout")).await;
        let error = repository.put_bytes("a", "x", PutMode::Create).await.unwrap_err();
        assert!(!error.to_string().is_empty() && error.hint().is_some());
        return;
    }
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o500)).unwrap();
    let error = open(&root)
        .await
        .put_bytes("a", "x", PutMode::Create)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::PermissionDenied { .. }), "{error}");
}

#[tokio::test]
async fn a_repository_whose_file_system_is_not_mounted_is_not_made_below() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(&directory.path().join("not-mounted/repository")).await;
    let error = repository.put_bytes("a", "x", PutMode::Create).await.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::RepositoryMissing {
                kind: "directory",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(files(directory.path()), [""; 0]);
    let error = repository.list("", &never()).await.unwrap_err();
    assert!(
        error.to_string().ends_with("the directory does not exist"),
        "no repository is not an empty one: {error}"
    );
}

#[tokio::test]
async fn an_object_that_shrinks_while_it_is_read_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(directory.path()).await;
    repository
        .put_bytes("a", vec![1; 1000], PutMode::Create)
        .await
        .unwrap();
    let mut reader = repository.reader("a", &never()).await.unwrap();
    reader.read_exact(&mut [0; 10]).unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(directory.path().join("a"))
        .unwrap()
        .set_len(500)
        .unwrap();
    let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(
        matches!(StoreError::of(&error), Some(StoreError::Changed { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn temporaries_of_killed_writers_are_removed_and_those_of_living_ones_not() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(directory.path()).await;
    let mut living = repository
        .writer("living", PutMode::Create, &never())
        .await
        .unwrap();
    living.write_all(b"x").unwrap();
    living.flush().unwrap();
    let temporary = files(directory.path()).pop().unwrap();
    assert!(temporary.starts_with('.'));
    let abandoned = directory.path().join(temporary.replace("living", "killed"));
    std::fs::write(&abandoned, "half").unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_hours(72);
    for path in [&abandoned, &directory.path().join(&temporary)] {
        std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
    }
    repository.put_bytes("next", "x", PutMode::Create).await.unwrap();
    assert!(!abandoned.exists());
    living.publish().unwrap();
    assert_eq!(files(directory.path()), ["living", "next"]);
}

#[tokio::test]
async fn the_check_leaves_nothing_and_finds_creates_exclusive() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(directory.path()).await;
    let report = repository.check(&never()).await.unwrap();
    assert!(report.conditional_put);
    assert_eq!(files(directory.path()), [""; 0]);
}

#[tokio::test]
async fn names_that_leave_the_repository_are_refused_by_every_operation() {
    let directory = tempfile::tempdir().unwrap();
    let repository = open(&directory.path().join("r")).await;
    let name = "../outside";
    let refused = |error: StoreError| {
        assert!(matches!(error, StoreError::InvalidName { .. }), "{error}");
        assert_eq!(error.outcome(), Outcome::Usage);
    };
    refused(
        repository
            .put_bytes(name, "x", PutMode::Overwrite)
            .await
            .unwrap_err(),
    );
    refused(repository.get_bytes(name, 1).await.unwrap_err());
    refused(
        repository
            .writer(name, PutMode::Overwrite, &never())
            .await
            .err()
            .unwrap(),
    );
    refused(repository.reader(name, &never()).await.err().unwrap());
    refused(repository.list(name, &never()).await.unwrap_err());
    refused(repository.head(name).await.unwrap_err());
    refused(repository.delete(name).await.unwrap_err());
}

mod encrypted {
    use super::*;
    use crate::seal::{Context, Keyring, Opener, Sealer, generate_key_file};
    use pgmahout_config::secret::SecretReference;

    fn with(path: &Path, encryption: EncryptionSettings) -> RepositorySettings {
        RepositorySettings {
            encryption: Some(encryption),
            ..local(path)
        }
    }

    fn passphrase(text: &str) -> EncryptionSettings {
        EncryptionSettings::Passphrase(SecretReference::Literal(text.into()))
    }

    async fn store(repository: &Repository, name: &str, content: &[u8]) {
        let keyring = repository
            .keyring(&never())
            .await
            .unwrap()
            .expect("the repository is encrypted");
        let writer = repository.writer(name, PutMode::Create, &never()).await.unwrap();
        let mut sealer = Sealer::new(writer, &keyring, &Context::object("dump", name)).unwrap();
        sealer.write_all(content).unwrap();
        sealer.finish().unwrap().publish().unwrap();
    }

    async fn load(repository: &Repository, name: &str) -> Result<Vec<u8>, StoreError> {
        let keyring = repository
            .keyring(&never())
            .await?
            .expect("the repository is encrypted");
        let reader = repository.reader(name, &never()).await?;
        let subject = || repository.subject(Action::Read, name);
        let mut opener = Opener::new(reader, &keyring, &Context::object("dump", name))
            .map_err(|error| StoreError::from_seal(error, subject()))?;
        let mut content = Vec::new();
        opener
            .read_to_end(&mut content)
            .map_err(|error| StoreError::from_io(error, subject()))?;
        Ok(content)
    }

    #[tokio::test]
    async fn the_key_is_made_once_and_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let settings = with(directory.path(), passphrase("correct horse"));
        let first = Repository::open(settings.clone()).await.unwrap();
        store(&first, "dumps/a", b"rows").await;
        assert_eq!(
            files(directory.path()),
            ["dumps/a", "repository.key", "repository.key.copy"]
        );
        let again = Repository::open(settings).await.unwrap();
        assert_eq!(load(&again, "dumps/a").await.unwrap(), b"rows");

        let wrong = Repository::open(with(directory.path(), passphrase("wrong")))
            .await
            .unwrap();
        let error = load(&wrong, "dumps/a").await.unwrap_err();
        assert!(matches!(error, StoreError::WrongKey { .. }), "{error}");
        assert!(error.hint().unwrap().contains("encryption"));

        let without = open(directory.path()).await;
        let error = without.keyring(&never()).await.unwrap_err();
        assert!(matches!(error, StoreError::KeyNotConfigured { .. }), "{error}");
    }

    #[tokio::test]
    async fn an_object_under_another_name_does_not_open() {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::open(with(directory.path(), passphrase("x")))
            .await
            .unwrap();
        store(&repository, "new", b"rows").await;
        store(&repository, "old", b"older rows").await;
        std::fs::copy(directory.path().join("old"), directory.path().join("new")).unwrap();
        let error = load(&repository, "new").await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_damaged_or_lost_key_object_is_replaced_by_its_copy() {
        let directory = tempfile::tempdir().unwrap();
        let settings = with(directory.path(), passphrase("x"));
        store(&Repository::open(settings.clone()).await.unwrap(), "a", b"rows").await;
        let path = directory.path().join("repository.key");
        let mut object = std::fs::read(&path).unwrap();
        object[100] ^= 1;
        std::fs::write(&path, object).unwrap();
        assert_eq!(
            load(&Repository::open(settings.clone()).await.unwrap(), "a")
                .await
                .unwrap(),
            b"rows"
        );
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            load(&Repository::open(settings.clone()).await.unwrap(), "a")
                .await
                .unwrap(),
            b"rows"
        );

        std::fs::remove_file(directory.path().join("repository.key.copy")).unwrap();
        let error = Repository::open(settings)
            .await
            .unwrap()
            .keyring(&never())
            .await
            .unwrap_err();
        assert!(
            matches!(error, StoreError::KeyLost { .. }),
            "a new key must not hide the loss: {error}"
        );
        assert_eq!(files(directory.path()), ["a"]);
    }

    #[tokio::test]
    async fn two_that_begin_a_repository_together_agree_on_one_key() {
        let directory = tempfile::tempdir().unwrap();
        let key_file = directory.path().join("key");
        generate_key_file(&key_file).unwrap();
        let settings = with(&directory.path().join("r"), EncryptionSettings::KeyFile(key_file));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..8 {
            let repository = Repository::open(settings.clone()).await.unwrap();
            tasks.spawn(async move { store(&repository, &format!("object-{number}"), b"rows").await });
        }
        tasks.join_all().await;
        let repository = Repository::open(settings).await.unwrap();
        for number in 0..8 {
            assert_eq!(
                load(&repository, &format!("object-{number}")).await.unwrap(),
                b"rows"
            );
        }
    }

    #[tokio::test]
    async fn a_command_gives_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let command = |text: &str| EncryptionSettings::Command {
            program: "echo".into(),
            arguments: vec![text.into()],
        };
        let settings = with(directory.path(), command(&"5a".repeat(32)));
        store(&Repository::open(settings.clone()).await.unwrap(), "a", b"rows").await;
        assert_eq!(
            load(&Repository::open(settings).await.unwrap(), "a")
                .await
                .unwrap(),
            b"rows"
        );
        let repository = Repository::open(with(directory.path(), command("no key")))
            .await
            .unwrap();
        let error = repository.keyring(&never()).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Encryption { .. }) && error.hint().is_some(),
            "{error}"
        );
    }

    #[tokio::test]
    async fn changed_keys_open_what_was_written_before() {
        let directory = tempfile::tempdir().unwrap();
        let old = Repository::open(with(directory.path(), passphrase("old")))
            .await
            .unwrap();
        store(&old, "a", b"rows").await;
        let before = std::fs::metadata(directory.path().join("a")).unwrap().ino();
        old.rewrap(Keyring::from_passphrase("new").unwrap())
            .await
            .unwrap();
        let new = Repository::open(with(directory.path(), passphrase("new")))
            .await
            .unwrap();
        assert_eq!(load(&new, "a").await.unwrap(), b"rows");
        assert_eq!(
            std::fs::metadata(directory.path().join("a")).unwrap().ino(),
            before,
            "data is not rewritten"
        );
        let stale = Repository::open(with(directory.path(), passphrase("old")))
            .await
            .unwrap();
        assert!(matches!(
            stale.keyring(&never()).await.unwrap_err(),
            StoreError::WrongKey { .. }
        ));
    }
}
