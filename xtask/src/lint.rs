//! `cargo xtask lint`: everything that can be checked without a server. Goes on after a failure, so that
//! all of them are seen at once.

mod direction;
mod links;
mod rules;
mod size;
mod words;

use anyhow::{Context, Result, bail};

use crate::workspace::{cargo, files, metadata, root, run as execute, succeeds};

type Check = fn() -> Result<()>;

/// Runs every check.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if let Some(argument) = arguments.first() {
        return Err(crate::Refusal(format!("lint takes no argument, not `{argument}`")).into());
    }
    let checks: [(&str, Check); 9] = [
        ("formatting", formatting),
        ("crate directions", || {
            report(&direction::check(&direction::packages(&metadata()?)))
        }),
        ("links in the documentation", || {
            report(&links::check(&root(), &files()?))
        }),
        ("tests that the documentation names", || {
            report(&rules::check(&root()))
        }),
        ("words that do not belong here", || {
            report(&words::check(&root(), &files()?))
        }),
        ("file sizes", || {
            size::warn(&root(), &files()?);
            Ok(())
        }),
        ("clippy", || {
            execute(cargo().args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ]))
        }),
        ("documentation", || {
            let mut doc = cargo();
            doc.args(["doc", "--workspace", "--no-deps", "--quiet"])
                .env("RUSTDOCFLAGS", "-D warnings");
            execute(&mut doc)
        }),
        ("dependencies", dependencies),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        println!("lint: {name}");
        if let Err(problem) = check() {
            eprintln!("{problem:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint found something in: {}", failed.join(", "));
    }
    Ok(())
}

/// Names the files; `cargo fmt` knows the differences.
fn formatting() -> Result<()> {
    execute(cargo().args(["fmt", "--all", "--", "--check", "-l"])).context("run `cargo fmt --all`")
}

/// Licences, bans and sources (`deny.toml`); advisories need the network and are left to a scheduled run.
fn dependencies() -> Result<()> {
    if !succeeds(cargo().args(["deny", "--version"])) {
        println!("lint: cargo-deny is not installed; deny.toml is not checked (`cargo install cargo-deny`)");
        return Ok(());
    }
    execute(cargo().args([
        "deny",
        "--offline",
        "--log-level",
        "error",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))
}

fn report(problems: &[String]) -> Result<()> {
    if problems.is_empty() {
        Ok(())
    } else {
        bail!("{}", problems.join("\n"))
    }
}
