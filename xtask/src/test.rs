//! `cargo xtask test`: every test, on both ends of the range of supported versions.

use anyhow::Result;

use crate::setup;
use crate::workspace::{self, cargo};

/// Sets up and runs the tests; `arguments` are a filter and, after `--`, what nextest takes.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let variables = setup::for_tests()?;
    let has_nextest = setup::cargo_tool("nextest", "cargo-nextest")
        .inspect_err(|problem| println!("setup: {problem:#}; using `cargo test`, which is slower"))
        .is_ok();
    let (filters, passed_on) = split(arguments);

    let mut tests = cargo();
    if has_nextest {
        tests.args(["nextest", "run", "--workspace"]);
    } else {
        tests.args(["test", "--workspace", "--bins", "--lib", "--tests"]);
    }
    tests
        .args(&filters)
        .args(passed_on)
        .envs(variables.iter().cloned());
    workspace::run(&mut tests)?;
    if filters.is_empty() {
        workspace::run(
            cargo()
                .args(["test", "--workspace", "--doc", "--quiet"])
                .envs(variables),
        )?;
    }
    Ok(())
}

/// The filters (`--filter` before one is optional), and what stands after `--`.
fn split(arguments: &[String]) -> (Vec<&String>, &[String]) {
    let end = arguments.iter().position(|argument| argument == "--");
    let (ours, passed_on) = match end {
        Some(index) => (&arguments[..index], &arguments[index + 1..]),
        None => (arguments, &arguments[arguments.len()..]),
    };
    (
        ours.iter().filter(|argument| *argument != "--filter").collect(),
        passed_on,
    )
}
