//! `cargo xtask bench`: figures, each against its peer in the same run.
//!
//! The measuring programs that need a server are examples of the testkit, which knows how to start one.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::workspace::{self, cargo};
use crate::{Refusal, setup};

/// Runs one benchmark with the release binary.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    match arguments.split_first() {
        Some((name, rest)) if name == "dump" || name == "health" => with_server(name, rest),
        Some((name, rest)) if name == "backup" => backup(rest),
        Some((name, [])) if name == "start" => start(),
        _ => Err(Refusal("bench wants one of: backup, dump, health, start".to_owned()).into()),
    }
}

/// Against the pgBackRest that `--peer` names, else against Debian's.
fn backup(arguments: &[String]) -> Result<()> {
    let mut arguments = arguments.to_vec();
    if !arguments.iter().any(|argument| argument == "--peer") {
        match setup::pgbackrest() {
            Ok(path) => arguments.extend(["--peer".to_owned(), path.display().to_string()]),
            Err(error) => println!("no pgBackRest to compare with: {error:#}; name one with --peer PATH"),
        }
    }
    with_server("backup", &arguments)
}

fn with_server(name: &str, arguments: &[String]) -> Result<()> {
    let variables = setup::for_tests()?;
    let binary = workspace::release_binary()?;
    let example = format!("bench_{name}");
    workspace::run(
        cargo()
            .args([
                "run",
                "--quiet",
                "--package",
                "pgmahout-testkit",
                "--example",
                &example,
                "--",
            ])
            .arg("--binary")
            .arg(binary)
            .args(arguments)
            .envs(variables),
    )
}

fn start() -> Result<()> {
    const RUNS: usize = 50;
    let binary = workspace::release_binary()?;
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let begin = Instant::now();
        let status = Command::new(&binary)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        times.push(begin.elapsed());
        ensure!(
            status.context("cannot start the binary")?.success(),
            "`pgmahout --version` failed"
        );
    }
    times.sort_unstable();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    let size = std::fs::metadata(&binary)?.len();
    println!(
        "pgmahout --version: median {:.2} ms, fastest {:.2} ms, slowest {:.2} ms of {RUNS} runs",
        milliseconds(times[RUNS / 2]),
        milliseconds(times[0]),
        milliseconds(times[RUNS - 1])
    );
    println!("release binary: {:.1} MB", size as f64 / 1e6);
    Ok(())
}
