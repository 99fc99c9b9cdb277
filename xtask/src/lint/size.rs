//! Files that grew: listed, not refused.

use std::path::{Path, PathBuf};

const LINES: usize = 600;

/// Lists the source files with more than 600 lines beside their tests.
pub(super) fn warn(root: &Path, files: &[PathBuf]) {
    for file in files.iter().filter(|file| is_source(file)) {
        let Ok(text) = std::fs::read_to_string(root.join(file)) else {
            continue;
        };
        let lines = without_tests(&text);
        if lines > LINES {
            println!(
                "lint: {} has {lines} lines without its tests: split it by meaning",
                file.display()
            );
        }
    }
}

fn is_source(file: &Path) -> bool {
    let is_rust = file.extension().is_some_and(|extension| extension == "rs");
    let is_test = file.components().any(|part| part.as_os_str() == "tests") || file.ends_with("tests.rs");
    is_rust && !is_test
}

/// Lines up to the inline test module, which stands last.
fn without_tests(text: &str) -> usize {
    text.find("\n#[cfg(test)]\nmod ")
        .map_or(text, |end| &text[..end])
        .lines()
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_do_not_count() {
        assert_eq!(without_tests("a\nb\n\n#[cfg(test)]\nmod tests {\n}\n"), 2);
        assert!(is_source(Path::new("crates/x/src/y.rs")));
        assert!(!is_source(Path::new("crates/x/src/y/tests.rs")));
        assert!(!is_source(Path::new("crates/cli/tests/it/main.rs")));
    }
}
