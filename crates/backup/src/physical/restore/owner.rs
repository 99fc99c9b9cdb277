//! To whom the restored files belong.
//!
//! The server starts only on a directory of its own user (`checkDataDir` in
//! `src/backend/utils/init/miscinit.c`). An ordinary user restores for itself. Root gives the files to the owner
//! of the directory, else to the one that the backup has recorded, by name; never to root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pgmahout_types::repository::manifest::Owner;
use rustix::process::{getegid, geteuid};

use super::error::RestoreError;

/// A user and a group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ownership {
    /// The user.
    pub(crate) uid: u32,
    /// The group.
    pub(crate) gid: u32,
    /// Whether files must be given to them: we are somebody else.
    pub(crate) give: bool,
}

/// Who will own the files below `data`. `recorded` is the owner of the backup's data directory.
pub(crate) fn resolve(data: &Path, recorded: Option<&Owner>) -> Result<Ownership, RestoreError> {
    let directory = fs::metadata(data).ok().map(|found| (found.uid(), found.gid()));
    choose(
        data,
        geteuid().as_raw(),
        getegid().as_raw(),
        directory,
        recorded,
        known_here,
    )
}

/// The numbers that a recorded user and group have on this machine.
pub(crate) fn known_here(recorded: &Owner) -> Option<(u32, u32)> {
    let uid = recorded.user.as_deref().and_then(|name| number("passwd", name))?;
    let group = recorded.group.as_deref().and_then(|name| number("group", name));
    Some((uid, group.or_else(|| primary_group(uid))?))
}

fn choose(
    data: &Path,
    uid: u32,
    gid: u32,
    directory: Option<(u32, u32)>,
    recorded: Option<&Owner>,
    known_here: impl Fn(&Owner) -> Option<(u32, u32)>,
) -> Result<Ownership, RestoreError> {
    if uid != 0 {
        return match directory {
            Some((owner, _)) if owner != uid => Err(RestoreError::WrongOwner {
                directory: data.to_owned(),
                owner: user_name(owner),
                user: user_name(uid),
            }),
            _ => Ok(Ownership {
                uid,
                gid,
                give: false,
            }),
        };
    }
    if let Some((uid, gid)) = directory.filter(|(owner, _)| *owner != 0) {
        return Ok(Ownership { uid, gid, give: true });
    }
    let no_owner = |why: String| RestoreError::NoOwner {
        why,
        directory: data.to_owned(),
    };
    let Some(recorded) = recorded else {
        return Err(no_owner("the backup names none".to_owned()));
    };
    let name = recorded.user.clone().unwrap_or_else(|| recorded.uid.to_string());
    match known_here(recorded) {
        Some((0, _)) => Err(no_owner(
            "the backup's files belong to root, as which no server runs".to_owned(),
        )),
        Some((uid, gid)) => Ok(Ownership { uid, gid, give: true }),
        None => Err(no_owner(format!(
            "the backup's files belong to {name}, who is unknown on this machine"
        ))),
    }
}

/// The user's name, else the number.
pub(crate) fn user_name(uid: u32) -> String {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| uid.to_string())
}

/// The number of a user (`passwd`) or group, from the files and else from every source that the system knows.
fn number(database: &str, name: &str) -> Option<u32> {
    let find = |text: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
        })
    };
    let text = fs::read_to_string(format!("/etc/{database}")).unwrap_or_default();
    find(&text).or_else(|| {
        let output = std::process::Command::new("getent")
            .args([database, name])
            .stdin(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .output()
            .ok()?;
        find(&String::from_utf8_lossy(&output.stdout))
    })
}

fn primary_group(uid: u32) -> Option<u32> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let found: u32 = fields.next()?.parse().ok()?;
        (found == uid).then(|| fields.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgmahout_types::diagnostic::{Diagnose as _, Outcome};

    fn postgres() -> Owner {
        Owner {
            uid: 999,
            gid: 999,
            user: Some("postgres".to_owned()),
            group: Some("postgres".to_owned()),
        }
    }

    fn who(
        uid: u32,
        directory: Option<(u32, u32)>,
        recorded: Option<&Owner>,
    ) -> Result<Ownership, RestoreError> {
        choose(Path::new("/data"), uid, uid, directory, recorded, |_| {
            Some((113, 120))
        })
    }

    #[test]
    fn an_ordinary_user_restores_only_for_itself() {
        let own = who(1000, Some((1000, 1000)), Some(&postgres())).expect("its own directory");
        assert_eq!(
            own,
            Ownership {
                uid: 1000,
                gid: 1000,
                give: false
            }
        );
        assert!(who(1000, None, Some(&postgres())).is_ok());
        let error = who(1000, Some((113, 120)), Some(&postgres())).expect_err("another's directory");
        assert_eq!(error.outcome(), Outcome::Refused);
    }

    #[test]
    fn root_gives_the_files_to_the_directorys_owner_else_to_the_recorded_one() {
        let expected = |uid, gid| Ownership { uid, gid, give: true };
        assert_eq!(
            who(0, Some((70, 71)), Some(&postgres())).expect("the directory's"),
            expected(70, 71)
        );
        for directory in [None, Some((0, 0))] {
            // By name: numbers differ between machines.
            assert_eq!(
                who(0, directory, Some(&postgres())).expect("the recorded"),
                expected(113, 120)
            );
        }
    }

    #[test]
    fn root_refuses_where_nobody_is_known() {
        let unknown = choose(Path::new("/data"), 0, 0, None, Some(&postgres()), |_| None);
        let error = unknown.expect_err("unknown here");
        assert_eq!(error.outcome(), Outcome::Refused);
        assert!(error.to_string().contains("postgres"), "{error}");
        assert!(who(0, None, None).is_err());
        let root = choose(Path::new("/data"), 0, 0, None, Some(&postgres()), |_| {
            Some((0, 0))
        });
        assert!(root.is_err());
    }
}
