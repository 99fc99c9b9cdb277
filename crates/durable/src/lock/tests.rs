use std::os::unix::fs::MetadataExt;

use super::*;

#[test]
fn a_held_lock_says_who_holds_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    let first = FileLock::try_acquire(&path, "procedure 1 (dump restore)").unwrap();
    let error = FileLock::acquire(&path, "procedure 2", Duration::from_millis(50)).unwrap_err();
    let process = std::process::id();
    assert_eq!(
        error.to_string(),
        format!(
            "{} is locked by procedure 1 (dump restore), process {process}",
            path.display()
        )
    );
    assert_eq!(error.outcome(), Outcome::Refused);
    assert!(error.hint().unwrap().contains(&process.to_string()));
    drop(first);
    let second = FileLock::try_acquire(&path, "procedure 2").unwrap();
    drop(second);
    assert_eq!(std::fs::read(&path).unwrap(), b"");
}

#[test]
fn waiting_for_a_lock_gets_it_when_it_is_freed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    let first = FileLock::try_acquire(&path, "first").unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| FileLock::acquire(&path, "second", Duration::from_secs(20)));
        drop(first);
        waiter.join().unwrap().unwrap();
    });
}

#[test]
fn a_lock_can_be_shared_by_all_users_and_follows_no_link() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    drop(FileLock::try_acquire(&path, "first").unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o666);
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("lock", &link).unwrap();
    assert!(matches!(
        FileLock::try_acquire(&link, "second"),
        Err(LockError::File(_))
    ));
}

#[test]
fn a_killed_holder_frees_the_lock() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    std::fs::write(&path, "").unwrap();
    // flock(1) of util-linux takes the same lock from another process.
    let mut holder = std::process::Command::new("flock")
        .arg("--no-fork")
        .arg(&path)
        .args(["sh", "-c", "echo held; exec sleep 60"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut answer = [0; 4];
    holder.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    assert!(matches!(
        FileLock::try_acquire(&path, "me"),
        Err(LockError::Held { owner: None, .. })
    ));
    holder.kill().unwrap();
    holder.wait().unwrap();
    FileLock::try_acquire(&path, "me").unwrap();
}

#[test]
fn sharers_exclude_exclusive_holders_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    assert_eq!(FileLock::owner(&path), None);
    let first = FileLock::acquire_shared(&path, Duration::ZERO).unwrap();
    let second = FileLock::acquire_shared(&path, Duration::ZERO).unwrap();
    assert!(matches!(
        FileLock::try_acquire(&path, "third"),
        Err(LockError::Held { .. })
    ));
    drop((first, second));
    let third = FileLock::try_acquire(&path, "third").unwrap();
    assert!(matches!(
        FileLock::acquire_shared(&path, Duration::ZERO),
        Err(LockError::Held { .. })
    ));
    assert_eq!(FileLock::owner(&path).unwrap().description, "third");
    drop(third);
    assert_eq!(FileLock::owner(&path), None);
}

#[test]
fn root_takes_a_lock_whose_file_another_user_made_in_a_shared_directory() {
    use std::os::unix::fs::chown;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o1777)).unwrap();
    let path = directory.path().join("lock");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    chown(&path, Some(12345), Some(12345)).unwrap();
    // What opening it with O_CREAT would be refused for (fs.protected_regular).
    FileLock::try_acquire(&path, "root").unwrap();
}
