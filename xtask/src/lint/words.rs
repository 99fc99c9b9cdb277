//! What has no place in the repository: paths of the machine it was written on, and marks of unfinished work.

use std::path::{Path, PathBuf};

/// Written in two halves, so that this file does not hold them.
const WORDS: [(&str, &str); 4] = [
    (concat!(" /wo", "rk/"), "a path of one machine"),
    (concat!("/tmp/", "team"), "a path of one machine"),
    (concat!("/tmp/", "probe"), "a path of one machine"),
    (concat!("<<<<", "<<< "), "a merge conflict"),
];

/// Every line that holds one of the words.
pub(super) fn check(root: &Path, files: &[PathBuf]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(root.join(file)) else {
            continue;
        };
        for (index, line) in text.lines().enumerate() {
            if let Some((word, reason)) = find(line) {
                let place = file.display();
                problems.push(format!("{place}:{}: `{}` is {reason}", index + 1, word.trim()));
            }
        }
    }
    problems
}

fn find(line: &str) -> Option<(&'static str, &'static str)> {
    // Quotes and brackets count as the space before a path.
    let spaced = format!(" {}", line.replace(['"', '\'', '`', '(', '=', ':'], " "));
    WORDS.into_iter().find(|(word, _)| spaced.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_one_machine_is_found_in_quotes_and_a_word_that_contains_it_is_not() {
        let machine = concat!("/wo", "rk/main");
        assert!(find(&format!("open(\"{machine}\")")).is_some());
        assert!(find(&format!("cd {machine}")).is_some());
        assert!(find(&format!("https://example.com/docs{machine}")).is_none());
        assert!(find("a framework/library").is_none());
    }
}
