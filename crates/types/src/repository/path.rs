//! Paths in a backup.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bytes_text::{escape, visit_escaped};
use crate::diagnostic::Diagnose;
use crate::lsn::shortened;

/// The path of something in a backup, relative to the root of its area: `base/5/1259`.
///
/// It never leads out of that root: no part of it is empty, `.` or `..`, and it does not begin with a
/// slash. The root itself is `.`. In serde it is a text, with escapes where it is no UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelativePath(Box<[u8]>);

impl RelativePath {
    /// The root, `.`.
    pub fn root() -> Self {
        Self(b".".as_slice().into())
    }

    /// From bytes.
    ///
    /// # Errors
    /// When the path is empty or absolute, or has a part that is empty, `.` or `..`, or holds a zero byte.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let bytes = bytes.into();
        let inside = bytes
            .split(|&byte| byte == b'/')
            .all(|part| !matches!(part, b"" | b"." | b".."));
        if bytes == b"." || (inside && !bytes.contains(&0)) {
            Ok(Self(bytes.into()))
        } else {
            Err(PathError::NotInside {
                path: shortened(&escape(&bytes)),
            })
        }
    }

    /// From a path.
    ///
    /// # Errors
    /// As [`RelativePath::new`].
    pub fn from_path(path: &Path) -> Result<Self, PathError> {
        Self::new(path.as_os_str().as_bytes())
    }

    /// As a path.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its text, with escapes where it is no UTF-8.
    pub fn to_text(&self) -> Cow<'_, str> {
        escape(&self.0)
    }
}

/// What a link points at: any bytes that the kernel takes. In serde it is a text, with escapes where it is
/// no UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkTarget(Box<[u8]>);

impl LinkTarget {
    /// From bytes.
    ///
    /// # Errors
    /// When there are none, or one of them is zero.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let bytes = bytes.into();
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(PathError::NoTarget {
                path: shortened(&escape(&bytes)),
            });
        }
        Ok(Self(bytes.into()))
    }

    /// From a path.
    ///
    /// # Errors
    /// As [`LinkTarget::new`].
    pub fn from_path(path: &Path) -> Result<Self, PathError> {
        Self::new(path.as_os_str().as_bytes())
    }

    /// As a path.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Text, debugging output and serialisation of a type of path.
macro_rules! path_text {
    ($type:ty, $expected:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&escape(&self.0))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{:?}", escape(&self.0))
            }
        }

        impl AsRef<Path> for $type {
            fn as_ref(&self) -> &Path {
                self.as_path()
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&escape(&self.0))
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                visit_escaped(deserializer, $expected, <$type>::new)
            }
        }
    };
}

path_text!(RelativePath, "a path inside the backup, such as base/5/1259");
path_text!(LinkTarget, "the target of a link");

/// Bytes that are no path of that kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It would lead out of the directory that it is to lie in.
    #[error("{path:?} is not a path inside a backup")]
    NotInside {
        /// The path, or its beginning.
        path: String,
    },
    /// No link can point there.
    #[error("{path:?} is not a possible target of a link")]
    NoTarget {
        /// The path, or its beginning.
        path: String,
    },
}

impl Diagnose for PathError {
    fn hint(&self) -> Option<String> {
        Some(
            "paths in a backup are relative to the data directory, without `.` and `..`; if a manifest says otherwise, do not restore it and run `pgmahout backup verify`"
                .to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_never_leads_out_of_the_backup() {
        for path in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            "a/.",
            "a\0b",
        ] {
            let error = RelativePath::new(path).expect_err(path);
            assert!(error.hint().is_some());
        }
        for path in [
            ".",
            "PG_VERSION",
            "base/5/1259",
            "pg_tblspc/16385/x",
            "...",
            "a..b",
            " ",
        ] {
            assert_eq!(RelativePath::new(path).expect(path).to_string(), path);
        }
    }

    proptest! {
        #[test]
        fn targets_of_any_bytes_round_trip(bytes: Vec<u8>) {
            if let Ok(target) = LinkTarget::new(bytes) {
                let json = serde_json::to_string(&target).expect("text");
                prop_assert_eq!(serde_json::from_str::<LinkTarget>(&json).expect("our own"), target);
            }
        }

        #[test]
        fn any_json_is_a_path_or_an_error(text in "\"(\\PC|[./\\\\]){0,20}\"") {
            if let Ok(path) = serde_json::from_str::<RelativePath>(&text) {
                let outside = path.as_path().components().any(|part| matches!(part,
                    std::path::Component::ParentDir | std::path::Component::RootDir));
                prop_assert!(!outside);
            }
        }
    }
}
