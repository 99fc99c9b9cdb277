//! `cargo xtask fuzz`: the parsers of bytes from outside, without a nightly compiler.

use anyhow::{Context, Result};

use crate::workspace::{self, cargo, output};
use crate::{Refusal, setup};

/// Fuzzes one target, or every target, for some seconds each.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let mut seconds = 30_u32;
    let mut targets = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word == "--seconds" {
            let value = words.next().context("--seconds wants a number")?;
            seconds = value
                .parse()
                .with_context(|| format!("--seconds wants a number, not `{value}`"))?;
        } else if word.starts_with('-') {
            return Err(Refusal(format!("unknown option {word}; `cargo xtask help` lists them")).into());
        } else {
            targets.push(word.clone());
        }
    }
    setup::for_fuzzing()?;
    setup::cargo_tool("fuzz", "cargo-fuzz")?;
    let known: Vec<String> = output(cargo().args(["fuzz", "list"]))?
        .lines()
        .map(|line| line.trim().to_owned())
        .collect();
    if let Some(unknown) = targets.iter().find(|target| !known.contains(target)) {
        return Err(Refusal(format!(
            "no fuzz target `{unknown}`; there are {}",
            known.join(", ")
        ))
        .into());
    }
    let chosen = if targets.is_empty() { known } else { targets };
    for target in &chosen {
        println!("fuzz: {target} for {seconds} s");
        let limit = format!("-max_total_time={seconds}");
        // New inputs go to the first directory; the seeds are kept in git.
        let corpus = format!("fuzz/corpus/{target}");
        let seeds = format!("fuzz/seeds/{target}");
        std::fs::create_dir_all(workspace::root().join(&corpus))?;
        let mut command = cargo();
        command.args(["fuzz", "run", "--sanitizer", "none", target, &corpus]);
        if workspace::root().join(&seeds).is_dir() {
            command.arg(&seeds);
        }
        workspace::run(command.args(["--", &limit]))?;
    }
    Ok(())
}
