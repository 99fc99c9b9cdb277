//! Bringing back what was taken along from outside the data directory: beside what is there, never over it.
//!
//! Each file or directory that the backup was told to take along comes back as a whole, under the name that it had
//! with `.restored` behind, or below a directory that is named. Files keep their permissions; root also gives them
//! to the users and groups that had them, where those are known on this machine.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use pgmahout_types::repository::LinkTarget;
use pgmahout_types::repository::manifest::{Area, Entry, File};
use tokio_util::sync::CancellationToken;

use super::error::RestoreError;
use super::owner;
use super::prepare::Shared;

/// What is put behind a name.
const SUFFIX: &str = ".restored";

/// Where what was taken along comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Include {
    /// Beside what it was, as `NAME.restored`.
    Beside,
    /// Below this directory, with the whole path.
    Below(PathBuf),
}

/// Where the path of an entry comes back.
fn place(include: &Include, roots: &[LinkTarget], path: &Path) -> PathBuf {
    let original = Path::new("/").join(path);
    match include {
        Include::Below(directory) => directory.join(path),
        Include::Beside => {
            let root = roots
                .iter()
                .map(pgmahout_types::repository::LinkTarget::as_path)
                .filter(|root| original.starts_with(root))
                .max_by_key(|root| root.components().count());
            let root = root.unwrap_or(&original);
            let mut renamed = root.components().as_path().as_os_str().to_owned();
            renamed.push(SUFFIX);
            match original.strip_prefix(root) {
                Ok(rest) if rest.as_os_str().is_empty() => renamed.into(),
                Ok(rest) => Path::new(&renamed).join(rest),
                Err(_) => renamed.into(),
            }
        }
    }
}

/// What is in the way. Where a restore goes on, what it has written itself is not.
pub(crate) fn check(shared: &Shared) -> Result<(), RestoreError> {
    let Some(include) = &shared.request.include else {
        return Ok(());
    };
    let manifest = &shared.manifest;
    if manifest.header.outside.is_empty() {
        return Err(RestoreError::Refused {
            what: format!(
                "the backup {} has nothing from outside the data directory",
                shared.entry.label
            ),
            hint:
                "leave --include out; `include:` in section `backup` of the configuration takes files along"
                    .to_owned(),
        });
    }
    let taken = manifest.header.outside.iter().find_map(|root| {
        let path = root.as_path().strip_prefix("/").ok()?;
        let path = place(include, &manifest.header.outside, path);
        path.symlink_metadata().is_ok().then_some(path)
    });
    match taken {
        Some(path) => Err(in_the_way(&path)),
        None => Ok(()),
    }
}

fn in_the_way(path: &Path) -> RestoreError {
    RestoreError::Refused {
        what: format!("{} is there already", path.display()),
        hint: "move it away, or give --include another directory".to_owned(),
    }
}

/// Puts everything in its place, and notes where.
pub(crate) fn restore(shared: &Shared, cancellation: &CancellationToken) -> Result<(), RestoreError> {
    let Some(include) = &shared.request.include else {
        return Ok(());
    };
    let manifest = &shared.manifest;
    let to = |path: &Path| place(include, &manifest.header.outside, path);
    let mut directories = Vec::new();
    for entry in &manifest.entries {
        if let Entry::Directory(directory) = entry
            && directory.area == Area::Outside
        {
            let path = to(directory.path.as_path());
            make_directories(&path)?;
            directories.push((path, directory.mode, directory.owner));
        }
    }
    for entry in &manifest.entries {
        match entry {
            Entry::Link(link) if link.area == Area::Outside => {
                let path = to(link.path.as_path());
                if fs::read_link(&path).is_ok_and(|target| target == link.target.as_path()) {
                    continue;
                }
                symlink(link.target.as_path(), &path)
                    .map_err(|error| RestoreError::io("create", &path, error))?;
            }
            Entry::File(file) if file.area == Area::Outside => {
                let content = shared.content(file, cancellation)?;
                put(shared, file, &to(file.path.as_path()), &content)?;
            }
            _ => {}
        }
    }
    // Permissions last: a directory may be one that nobody writes into.
    for (path, mode, owner) in directories.into_iter().rev() {
        give(shared, &path, owner)?;
        fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777))
            .map_err(|error| RestoreError::io("change the permissions of", &path, error))?;
    }
    let mut included: Vec<PathBuf> = manifest
        .header
        .outside
        .iter()
        .filter_map(|root| Some(to(root.as_path().strip_prefix("/").ok()?)))
        .filter(|path| path.symlink_metadata().is_ok())
        .collect();
    included.dedup();
    shared.set(|outcome| outcome.included = included);
    Ok(())
}

/// Writes one file, unless this restore has done so before.
fn put(shared: &Shared, file: &File, path: &Path, content: &[u8]) -> Result<(), RestoreError> {
    if path.symlink_metadata().is_ok() {
        if fs::read(path).is_ok_and(|there| there == content) {
            return Ok(());
        }
        return Err(in_the_way(path));
    }
    if let Some(parent) = path.parent() {
        make_directories(parent)?;
    }
    // Private until it has its owner: it may be a key.
    pgmahout_durable::write_atomically(path, content, 0o600)?;
    give(shared, path, file.owner)?;
    fs::set_permissions(path, Permissions::from_mode(file.mode & 0o7777))
        .map_err(|error| RestoreError::io("change the permissions of", path, error))
}

fn make_directories(path: &Path) -> Result<(), RestoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| RestoreError::io("create", path, error))
}

/// Gives a file to whom it belonged, where root does it and they are known here.
fn give(shared: &Shared, path: &Path, owner: u32) -> Result<(), RestoreError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = shared.manifest.header.owners.get(owner as usize);
    let Some((uid, gid)) = owner.and_then(owner::known_here) else {
        return Ok(());
    };
    chown(path, Some(uid), Some(gid)).map_err(|error| RestoreError::io("change the owner of", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_along_comes_back_beside_what_is_there() {
        let roots = ["/etc/postgresql/", "/etc/pgbouncer.ini"]
            .map(|root| LinkTarget::from_path(Path::new(root)).expect("a path"));
        for (path, beside) in [
            ("etc/postgresql", "/etc/postgresql.restored"),
            (
                "etc/postgresql/15/main/pg_hba.conf",
                "/etc/postgresql.restored/15/main/pg_hba.conf",
            ),
            ("etc/pgbouncer.ini", "/etc/pgbouncer.ini.restored"),
        ] {
            assert_eq!(
                place(&Include::Beside, &roots, Path::new(path)),
                Path::new(beside)
            );
            let below = Include::Below("/srv/old".into());
            assert_eq!(
                place(&below, &roots, Path::new(path)),
                Path::new("/srv/old").join(path)
            );
        }
    }
}
