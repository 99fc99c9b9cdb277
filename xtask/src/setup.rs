//! Installing what a command needs and the machine lacks.

mod debian;
mod postgresql18;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace::{cargo, run, succeeds};
pub(crate) use postgresql18::Installed;

/// Something a command needs, and the Debian package that brings it.
struct Need {
    package: &'static str,
    is_there: fn() -> bool,
}

const POSTGRESQL_15: Need = Need {
    package: "postgresql-15",
    is_there: || postgresql_15().join("postgres").is_file(),
};
const TESTS: [Need; 8] = [
    POSTGRESQL_15,
    Need {
        package: "pgbouncer",
        is_there: || Path::new("/usr/sbin/pgbouncer").is_file(),
    },
    Need {
        package: "python3",
        is_there: || on_path("python3"),
    },
    Need {
        package: "python3-pip",
        is_there: || succeeds(postgresql18::python().args(["-m", "pip", "--version"])),
    },
    Need {
        package: "zstd",
        is_there: || on_path("zstd"),
    },
    Need {
        package: "gzip",
        is_there: || on_path("gzip"),
    },
    Need {
        package: "mount",
        is_there: || on_path("mount"),
    },
    Need {
        package: "util-linux",
        is_there: || on_path("ipcrm") && on_path("setpriv"),
    },
];

/// What the demo needs: a server of any supported version, the oldest one for want of any.
pub(crate) fn for_demo() -> Result<()> {
    let any =
        (15..=18).any(|major| Path::new(&format!("/usr/lib/postgresql/{major}/bin/postgres")).is_file());
    if any || on_path("postgres") {
        Ok(())
    } else {
        debian::install_first_of(&["postgresql-15", "postgresql"])
    }
}

/// What the tests need; returns the variables that tell the tests where it is.
pub(crate) fn for_tests() -> Result<Vec<(&'static str, PathBuf)>> {
    let missing: Vec<&str> = TESTS
        .iter()
        .filter(|need| !(need.is_there)())
        .map(|need| need.package)
        .collect();
    debian::install(&missing)?;
    let Installed { bin_dir } = postgresql18::install().context("PostgreSQL 18 could not be installed")?;
    Ok(vec![
        ("PGMAHOUT_TEST_PG15_BIN", postgresql_15()),
        ("PGMAHOUT_TEST_PG18_BIN", bin_dir),
    ])
}

/// Debian's pgBackRest, installed where it is missing.
///
/// # Errors
/// When it is missing and cannot be installed.
pub(crate) fn pgbackrest() -> Result<PathBuf> {
    let program = PathBuf::from("/usr/bin/pgbackrest");
    if !program.is_file() {
        debian::install(&["pgbackrest"])?;
    }
    Ok(program)
}

/// What fuzzing needs: libFuzzer is C++.
pub(crate) fn for_fuzzing() -> Result<()> {
    if on_path("c++") {
        Ok(())
    } else {
        debian::install(&["g++"])
    }
}

/// A cargo subcommand, installed from crates.io where it is missing.
///
/// # Errors
/// When it is missing and cannot be installed.
pub(crate) fn cargo_tool(subcommand: &str, package: &str) -> Result<()> {
    if succeeds(cargo().args([subcommand, "--version"])) {
        return Ok(());
    }
    println!("setup: installing {package} with cargo (once, a few minutes)");
    run(cargo().args(["install", "--locked", "--quiet", package]))
}

fn postgresql_15() -> PathBuf {
    std::env::var_os("PGMAHOUT_TEST_PG15_BIN")
        .map_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from)
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Administration programs are not on everybody's path.
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|directory| directory.join(program).is_file())
}
