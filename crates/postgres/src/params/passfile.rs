//! The password file (PostgreSQL documentation, "The Password File"; `fe-connect.c`, `passwordFromFile`).

use pgmahout_config::Secret;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Why a password file was not used although it exists, or what it gave.
#[derive(Debug, Clone)]
pub enum PasswordLookup {
    /// The file has a line for this connection.
    Found(Secret),
    /// There is no such file, or no line of it is for this connection.
    NotFound,
    /// The file exists and must not be used.
    Ignored(IgnoredPasswordFile),
}

/// A password file that exists and is not used, as libpq would not use it either.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoredPasswordFile {
    /// Others could read it.
    #[error("password file {} is ignored: group or others may access it (mode {mode:04o})", path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A directory, a device.
    #[error("password file {} is ignored: it is not a plain file", path.display())]
    NotAPlainFile {
        /// The file.
        path: PathBuf,
    },
    /// This process may not read it.
    #[error("password file {} is ignored: it cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
    },
}

impl IgnoredPasswordFile {
    /// What to type to have the file used.
    pub fn hint(&self) -> String {
        match self {
            Self::TooOpen { path, .. } => format!("chmod 600 {}", path.display()),
            Self::NotAPlainFile { path } => format!("make {} a plain file with mode 600", path.display()),
            Self::Unreadable { path } => format!("make {} readable for this user only", path.display()),
        }
    }
}

/// What a line must match. For a connection through a socket in the default directory libpq looks for
/// `localhost`.
pub(crate) struct Wanted<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: &'a str,
    pub(crate) database: &'a str,
    pub(crate) user: &'a str,
}

pub(crate) fn look_up(path: &Path, wanted: &Wanted<'_>) -> PasswordLookup {
    let Ok(metadata) = std::fs::metadata(path) else {
        return PasswordLookup::NotFound;
    };
    if !metadata.is_file() {
        return PasswordLookup::Ignored(IgnoredPasswordFile::NotAPlainFile {
            path: path.to_owned(),
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return PasswordLookup::Ignored(IgnoredPasswordFile::TooOpen {
            path: path.to_owned(),
            mode,
        });
    }
    match std::fs::read(path) {
        Ok(bytes) => find(&String::from_utf8_lossy(&bytes), wanted)
            .map_or(PasswordLookup::NotFound, |password| {
                PasswordLookup::Found(Secret::new(password))
            }),
        Err(_) => PasswordLookup::Ignored(IgnoredPasswordFile::Unreadable {
            path: path.to_owned(),
        }),
    }
}

/// The password of the first line that matches.
fn find(text: &str, wanted: &Wanted<'_>) -> Option<String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let rest = match_field(line, wanted.host)?;
            let rest = match_field(rest, wanted.port)?;
            let rest = match_field(rest, wanted.database)?;
            let rest = match_field(rest, wanted.user)?;
            Some(unescape(rest.trim_end_matches('\r')))
        })
}

/// What follows the field's colon, if the field is `*` or equals `value` after its escapes are resolved.
fn match_field<'line>(line: &'line str, value: &str) -> Option<&'line str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut expected = value.chars();
    let mut characters = line.char_indices();
    while let Some((position, character)) = characters.next() {
        let character = match character {
            ':' => return expected.next().is_none().then(|| &line[position + 1..]),
            '\\' => characters.next()?.1,
            other => other,
        };
        if expected.next() != Some(character) {
            return None;
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut password = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => password.extend(characters.next()),
            other => password.push(other),
        }
    }
    password
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn wanted<'a>(host: &'a str, user: &'a str) -> Wanted<'a> {
        Wanted {
            host,
            port: "5432",
            database: "shop",
            user,
        }
    }

    #[test]
    fn the_first_line_that_matches_gives_the_password() {
        let text = "# db:5432:shop:anna:no\ndb:5433:shop:anna:port\ndb:*:shop:anna:first\n*:*:*:*:last\n";
        assert_eq!(find(text, &wanted("db", "anna")).as_deref(), Some("first"));
        assert_eq!(find(text, &wanted("db", "bert")).as_deref(), Some("last"));
        assert_eq!(find("db:5432:shop:anna", &wanted("db", "anna")), None);
        assert_eq!(
            find("db2:5432:shop:anna:x\nd:5432:shop:anna:x", &wanted("db", "anna")),
            None
        );
    }

    #[test]
    fn colons_and_backslashes_can_be_escaped() {
        let text = r"\:\:1:5432:shop:a\\b:p\:w\\d:e";
        assert_eq!(find(text, &wanted("::1", r"a\b")).as_deref(), Some(r"p:w\d:e"));
    }

    #[test]
    fn a_file_that_others_can_read_is_ignored_and_says_how_to_repair_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("pgpass");
        std::fs::write(&path, "*:*:*:*:secret").expect("written");
        for (mode, used) in [
            (0o600, true),
            (0o400, true),
            (0o640, false),
            (0o604, false),
            (0o610, false),
        ] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode set");
            match look_up(&path, &wanted("db", "anna")) {
                PasswordLookup::Found(_) => assert!(used, "{mode:o}"),
                PasswordLookup::Ignored(ignored) => {
                    assert!(!used, "{mode:o}");
                    assert_eq!(ignored.hint(), format!("chmod 600 {}", path.display()));
                    assert!(
                        ignored.to_string().contains("group or others may access it"),
                        "{ignored}"
                    );
                }
                PasswordLookup::NotFound => panic!("the file matches"),
            }
        }
        let directory_as_file = look_up(directory.path(), &wanted("db", "anna"));
        assert!(matches!(
            directory_as_file,
            PasswordLookup::Ignored(IgnoredPasswordFile::NotAPlainFile { .. })
        ));
        assert!(matches!(
            look_up(&path.join("no"), &wanted("db", "anna")),
            PasswordLookup::NotFound
        ));
    }

    proptest! {
        #[test]
        fn any_value_can_be_written_with_escapes(host in "[^\n\r]{1,12}", user in "[^\n\r]{1,12}", password in "[^\n\r]{0,12}") {
            // A backslash before every character also keeps a leading '#' from making the line a comment.
            let escape = |text: &str| text.chars().flat_map(|character| ['\\', character]).collect::<String>();
            let line = format!("{}:5432:shop:{}:{}", escape(&host), escape(&user), escape(&password));
            prop_assert_eq!(find(&line, &wanted(&host, &user)), Some(password));
        }

        #[test]
        fn no_text_makes_the_search_panic(text in "\\PC*", host in "\\PC*") {
            let _ = find(&text, &wanted(&host, "user"));
        }
    }
}
