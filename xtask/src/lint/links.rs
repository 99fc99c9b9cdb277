//! Links in Markdown files that point to files of the repository must find them.

use std::path::{Component, Path, PathBuf};

/// Every link of every Markdown file among `files` that leads nowhere.
pub(super) fn check(root: &Path, files: &[PathBuf]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files
        .iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "md"))
    {
        let Ok(text) = std::fs::read_to_string(root.join(file)) else {
            continue;
        };
        for (line, target) in links(&text) {
            let path = resolve(file, target);
            let found = path.is_some_and(|path| root.join(path).exists());
            if !found {
                problems.push(format!(
                    "{}:{line}: no file for the link to {target}",
                    file.display()
                ));
            }
        }
    }
    problems
}

/// The targets of `[text](target)` outside code, with line numbers, that are no addresses or anchors.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        // Every second piece between backquotes is code.
        for piece in line.split('`').step_by(2) {
            for rest in piece.split("](").skip(1) {
                let Some((target, _)) = rest.split_once(')') else {
                    continue;
                };
                let target = target.split([' ', '#']).next().unwrap_or_default();
                let elsewhere = target.contains("://") || target.starts_with("mailto:");
                if !target.is_empty() && !elsewhere {
                    found.push((index + 1, target));
                }
            }
        }
    }
    found
}

/// The path of a link relative to the root; `None` where it leaves the repository.
fn resolve(file: &Path, target: &str) -> Option<PathBuf> {
    let base = if target.starts_with('/') {
        Path::new("")
    } else {
        file.parent()?
    };
    let mut path = PathBuf::new();
    for component in base.join(target.trim_start_matches('/')).components() {
        match component {
            Component::ParentDir => path.pop().then_some(())?,
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_and_code_and_addresses_are_not() {
        let text = "See [a](b.md#part) and [c](https://example.com), [d](#here).\n`x[1](2)` [e](../f.rs)\n\
                    ```\n[g](h)\n```\n[i](j)";
        assert_eq!(links(text), [(1, "b.md"), (2, "../f.rs"), (6, "j")]);
    }

    #[test]
    fn a_link_to_nowhere_is_reported() {
        let directory = std::env::temp_dir().join(format!("xtask-links-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("docs")).unwrap();
        std::fs::write(
            directory.join("docs/a.md"),
            "[here](a.md) [up](../README.md) [out](../../etc)",
        )
        .unwrap();
        let problems = check(&directory, &[PathBuf::from("docs/a.md")]);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("docs/a.md:1") && problems[0].contains("../README.md"));
    }
}
