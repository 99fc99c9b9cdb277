//! Completion scripts, manual pages, version, and closed pipes.

use std::io::Read as _;
use std::process::{Command, Stdio};

fn pgmahout() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgmahout"));
    command.env_clear().stdin(Stdio::null());
    command
}

#[test]
fn completion_scripts_are_accepted_by_their_shell() {
    let output = pgmahout()
        .args(["completions", "bash"])
        .output()
        .expect("the binary runs");
    assert!(output.status.success());
    let script = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(script.path(), &output.stdout).expect("the script is written");
    let check = Command::new("bash")
        .arg("-n")
        .arg(script.path())
        .output()
        .expect("bash runs");
    assert!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("dump"));
}

#[test]
fn every_command_has_a_manual_page() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let output = pgmahout()
        .args(["man", "--directory"])
        .arg(directory.path())
        .output()
        .expect("the binary runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for page in ["pgmahout.1", "pgmahout-health.1", "pgmahout-dump-create.1"] {
        let text = std::fs::read_to_string(directory.path().join(page)).unwrap_or_default();
        assert!(text.contains(".TH"), "{page} is missing or is no manual page");
    }
    let page = std::fs::read_to_string(directory.path().join("pgmahout-dump-create.1")).expect("the page");
    assert!(page.contains("Example"), "the page has no example");
}

#[test]
fn the_version_is_one_line_on_stdout() {
    let output = pgmahout().arg("--version").output().expect("the binary runs");
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("pgmahout {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let mut child = pgmahout()
        .args(["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut stderr)
        .expect("stderr is UTF-8");
    let status = child.wait().expect("the child ends");
    assert!(status.success(), "{status}: {stderr}");
    assert_eq!(stderr, "");
}
