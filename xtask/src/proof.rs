//! `cargo xtask proof`: the tests that inject faults at random moments, with a size of one's choice. CI runs
//! a small selection of each.

use anyhow::{Context, Result};

use crate::workspace::{self, cargo};
use crate::{Refusal, setup};

/// A long proof: its name, what it counts, the variable that says how many, its tests, and into how many
/// cases the number is divided.
struct Proof {
    name: &'static str,
    counts: &'static str,
    variable: &'static str,
    tests: &'static str,
    cases: u32,
    default: u32,
}

const PROOFS: [Proof; 5] = [
    Proof {
        name: "rounds",
        counts: "backups, each restored to a random target",
        variable: "PGMAHOUT_TEST_ROUNDS",
        tests: "test(/^backup_rounds::/)",
        cases: 4,
        default: 40,
    },
    Proof {
        name: "kills",
        counts: "kills of backups, restores, pushes, fetches, collections and receivers",
        variable: "PGMAHOUT_TEST_PHYSICAL_KILLS",
        tests: "test(/^backup_kills::/)",
        cases: 2,
        default: 200,
    },
    Proof {
        name: "receive",
        counts: "kills of a synchronous receiver, six of them in the life of each server that is destroyed",
        variable: "PGMAHOUT_TEST_RECEIVE",
        tests: "test(/^receive_proof::/)",
        cases: 2,
        default: 120,
    },
    Proof {
        name: "flips",
        counts: "flipped bytes of a real encrypted repository, and every byte of a small one",
        variable: "PGMAHOUT_TEST_FLIPS",
        tests: "test(/^backup_verify::every_flipped_byte/) + binary(flips)",
        cases: 1,
        default: 2000,
    },
    Proof {
        name: "upheavals",
        counts: "backups with upheavals before or during each, restored from any to any, and all else that happens to clusters",
        variable: "PGMAHOUT_TEST_UPHEAVALS",
        tests: "test(/^backup_upheavals::/)",
        cases: 2,
        default: 60,
    },
];

/// Runs one proof: `proof NAME [SIZE]`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let known = || {
        PROOFS
            .iter()
            .map(|proof| proof.name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let Some(name) = arguments.first() else {
        return Err(Refusal(format!("which proof? there are {}", known())).into());
    };
    let Some(proof) = PROOFS.iter().find(|proof| proof.name == name) else {
        return Err(Refusal(format!("no proof `{name}`; there are {}", known())).into());
    };
    let size = match arguments.get(1) {
        None => proof.default,
        Some(text) => text
            .parse()
            .with_context(|| format!("a size is a number, not `{text}`"))?,
    };
    let variables = setup::for_tests()?;
    setup::cargo_tool("nextest", "cargo-nextest")?;
    println!("proof: {size} {}", proof.counts);
    let mut tests = cargo();
    tests
        .args(["nextest", "run", "--package", "pgmahout", "--test", "it"])
        .args(["--package", "pgmahout-backup", "--test", "flips"])
        .args(["--profile", "proof", "--filter-expr", proof.tests])
        .env(proof.variable, size.div_ceil(proof.cases).to_string())
        .envs(variables);
    workspace::run(&mut tests)
}
