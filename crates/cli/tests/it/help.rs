//! Every command's help, as a reader of a terminal of 100 columns sees it.

use std::process::Command;

fn help(path: &[String]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_pgmahout"))
        .args(path)
        .arg("--help")
        .env_clear()
        .env("COLUMNS", "100")
        .output()
        .expect("the binary runs");
    assert!(
        output.status.success(),
        "{path:?} --help ended with {}",
        output.status
    );
    assert!(output.stderr.is_empty(), "{path:?} --help wrote to stderr");
    String::from_utf8(output.stdout).expect("help is UTF-8")
}

/// The names in the `Commands:` section of a help text.
fn subcommands(text: &str) -> Vec<String> {
    text.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_explains_itself() {
    let mut waiting: Vec<Vec<String>> = vec![vec![]];
    let mut seen = 0;
    while let Some(path) = waiting.pop() {
        let text = help(&path);
        for name in subcommands(&text) {
            let mut child = path.clone();
            child.push(name);
            waiting.push(child);
        }
        let name = if path.is_empty() {
            "pgmahout".to_owned()
        } else {
            format!("pgmahout_{}", path.join("_"))
        };
        insta::assert_snapshot!(name, text);
        seen += 1;
    }
    assert!(
        seen > 20,
        "only {seen} commands found: the search for subcommands is broken"
    );
}

#[test]
fn help_of_a_subcommand_exists_by_flag_and_h_stays_the_host() {
    let output = Command::new(env!("CARGO_BIN_EXE_pgmahout"))
        .args(["health", "-h", "/nowhere", "-p", "1", "--json"])
        .env_clear()
        .output()
        .expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("server.reachable"),
        "-h was not taken as the host: {text}"
    );
}
