//! Tests that a page of the documentation names must exist: a promise whose test was renamed or removed is one that
//! nobody keeps any more.

use std::path::Path;

/// The page, and below what its paths are.
const PAGE: &str = "docs/backup-rules.md";
const BELOW: &str = "crates";

/// The rules that the page has: one row each.
const RULES: u32 = 38;

/// Every test that the page names and nobody has, every rule without a row or a test.
pub(super) fn check(root: &Path) -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    match read(PAGE) {
        Some(page) => problems(&page, |path| read(&format!("{BELOW}/{path}"))),
        None => vec![format!("{PAGE} is not there")],
    }
}

fn problems(page: &str, source: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut seen = Vec::new();
    for (index, line) in page.lines().enumerate() {
        let mut named = 0;
        for (path, test) in tests(line) {
            named += 1;
            if !source(path).is_some_and(|text| has_test(&text, test)) {
                problems.push(format!(
                    "{PAGE}:{}: there is no test {test} in {BELOW}/{path}",
                    index + 1
                ));
            }
        }
        if let Some(number) = rule(line) {
            if named == 0 {
                problems.push(format!("{PAGE}:{}: rule {number} has no test", index + 1));
            }
            seen.push(number);
        }
    }
    seen.sort_unstable();
    if !seen.iter().copied().eq(1..=RULES) {
        problems.push(format!("{PAGE}: its rows are not the rules 1 to {RULES}"));
    }
    problems
}

/// The number of the rule in a row of a table.
fn rule(line: &str) -> Option<u32> {
    line.strip_prefix("| ")?.split(" |").next()?.parse().ok()
}

/// What stands in backquotes as `path.rs::name`.
fn tests(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let code = line.split('`').skip(1).step_by(2);
    code.filter_map(|code| code.split_once("::")).filter(|(path, _)| {
        Path::new(path)
            .extension()
            .is_some_and(|extension| extension == "rs")
    })
}

/// Whether a source has a test of that name: the function, and an attribute with `test` in the lines before it. Tests
/// in `proptest!` have one as well.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    lines.iter().enumerate().any(|(index, line)| {
        let declared = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        let is_it = declared
            .and_then(|rest| rest.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with('('));
        is_it
            && lines[..index]
                .iter()
                .rev()
                .take_while(|before| before.starts_with("#[") || before.starts_with("//"))
                .any(|before| before.starts_with("#[") && before.contains("test"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "#[rstest]\n#[case(1)]\n#[tokio::test(flavor = \"multi_thread\")]\nasync fn kept(x: u8) {}\n\
                          proptest! {\n    #[test]\n    fn held(x in any()) {}\n}\nfn helper() {}\n";

    fn page(rows: impl IntoIterator<Item = String>) -> Vec<String> {
        let text: String = rows.into_iter().map(|row| row + "\n").collect();
        problems(&text, |path| (path == "a/src/b.rs").then(|| SOURCE.to_owned()))
    }

    fn row(number: u32, tests: &str) -> String {
        format!("| {number} | rule | how | {tests} |")
    }

    #[test]
    fn a_page_whose_tests_exist_passes() {
        let rows = (1..=RULES).map(|number| row(number, "`a/src/b.rs::kept` `a/src/b.rs::held`"));
        assert_eq!(page(rows), [""; 0]);
    }

    #[test]
    fn a_test_that_does_not_exist_a_rule_without_one_and_a_missing_rule_are_found() {
        let found = page([
            row(1, "`a/src/b.rs::gone`"),
            row(2, "`a/src/c.rs::kept`"),
            row(3, "no test yet"),
            row(4, "`a/src/b.rs::helper`"),
            row(5, "`a/src/b.rs::kep`"),
        ]);
        assert_eq!(found.len(), 6, "{found:#?}");
        assert!(found[0].contains(":1: there is no test gone"), "{found:#?}");
        assert!(found[2].contains("rule 3 has no test"), "{found:#?}");
        assert!(found[5].contains("1 to 38"), "{found:#?}");
    }
}
