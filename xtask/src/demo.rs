//! `cargo xtask demo`: the main job, from a fresh clone.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Result;

use crate::{setup, workspace};

/// Sets up, builds the release and becomes `pgmahout demo`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    setup::for_demo()?;
    let binary = workspace::release_binary()?;
    let error = Command::new(&binary).arg("demo").args(arguments).exec();
    Err(anyhow::Error::from(error).context(format!("cannot start {}", binary.display())))
}
