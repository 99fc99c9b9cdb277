//! Debian and Ubuntu packages.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::Refusal;
use crate::workspace::{is_root, output, succeeds};

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs the packages as root; otherwise refuses with the one line that installs them.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !is_root() {
        let command = format!("sudo apt-get install --yes --no-install-recommends {list}");
        return Err(Refusal(format!("missing packages: run `{command}` and try again")).into());
    }
    if !succeeds(Command::new("apt-get").arg("--version")) {
        return Err(Refusal(format!(
            "missing {list}, and there is no apt-get here to install it"
        ))
        .into());
    }
    println!("setup: installing {list}");
    let _policy = ServicesStayOff::new()?;
    if apt_get(packages).is_ok() {
        return Ok(());
    }
    // The package lists are missing or older than the archive.
    output(Command::new("apt-get").arg("update")).context("apt-get update failed")?;
    apt_get(packages).context(
        "apt-get could not install what is missing; where the distribution has no postgresql-15, \
         https://apt.postgresql.org has it",
    )
}

/// Installs the first of the packages that the archive has.
pub(super) fn install_first_of(packages: &[&str]) -> Result<()> {
    let known = |package: &&&str| {
        output(Command::new("apt-cache").args(["policy", package]))
            .is_ok_and(|text| text.contains("Candidate: ") && !text.contains("Candidate: (none)"))
    };
    if is_root() && !packages.iter().any(|package| known(&package)) {
        output(Command::new("apt-get").arg("update")).context("apt-get update failed")?;
    }
    let chosen = packages.iter().find(known).or(packages.first());
    install(&chosen.copied().into_iter().collect::<Vec<_>>())
}

fn apt_get(packages: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(["install", "--yes", "--no-install-recommends", "--quiet"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    output(&mut command).map(drop)
}

/// Keeps packages from starting their services while it lives: tests start their own servers, and
/// nobody asked for one on the default port. A policy that is already there is left alone.
struct ServicesStayOff {
    ours: bool,
}

impl ServicesStayOff {
    fn new() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        // Harmless should it be left behind: it denies only while this process lives.
        let script = format!(
            "#!/bin/sh\n# Made by `cargo xtask` while it installs packages.\n\
             if [ -d /proc/{} ]; then exit 101; fi\nexit 0\n",
            std::process::id()
        );
        std::fs::write(POLICY, script).with_context(|| format!("cannot write {POLICY}"))?;
        std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {POLICY} executable"))?;
        Ok(Self { ours: true })
    }
}

impl Drop for ServicesStayOff {
    fn drop(&mut self) {
        if self.ours {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}
