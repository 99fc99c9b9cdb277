//! The connection service file (PostgreSQL documentation, "The Connection Service File"; `fe-connect.c`,
//! `parseServiceInfo`).

use super::environment::Environment;
use super::error::ParameterError;
use super::keyword::{self, Values};
use std::path::{Path, PathBuf};

/// Fills absent values from the definition of `service`.
pub(crate) fn apply(
    values: &mut Values,
    service: &str,
    environment: &Environment,
) -> Result<(), ParameterError> {
    let mut searched = Vec::new();
    let named = values
        .get("servicefile")
        .or_else(|| environment.variable("PGSERVICEFILE"));
    let user_file = match named {
        Some(path) => Some(PathBuf::from(path)),
        None => environment
            .home()
            .map(|home| home.join(".pg_service.conf"))
            .filter(|path| path.exists()),
    };
    let system_file = environment
        .variable("PGSYSCONFDIR")
        // Where Debian's libpq looks when the variable is not set.
        .map_or_else(|| PathBuf::from("/etc/postgresql-common"), PathBuf::from)
        .join("pg_service.conf");
    let files = user_file
        .into_iter()
        .chain(Some(system_file).filter(|path| path.exists()));
    for path in files {
        let text =
            std::fs::read_to_string(&path).map_err(|source| ParameterError::ServiceFileUnreadable {
                path: path.clone(),
                source,
            })?;
        if apply_text(values, &text, service, &path)? {
            return Ok(());
        }
        searched.push(path);
    }
    Err(ParameterError::ServiceNotFound {
        service: service.to_owned(),
        searched,
    })
}

/// Whether the text defines the service. Earlier lines win over later ones, and all lose against what is
/// set already.
fn apply_text(values: &mut Values, text: &str, service: &str, path: &Path) -> Result<bool, ParameterError> {
    let mut found = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let wrong = |what: &str| ParameterError::ServiceFileSyntax {
            path: path.to_owned(),
            line: index + 1,
            what: what.to_owned(),
        };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            if found {
                break;
            }
            found = section
                .strip_prefix(service)
                .is_some_and(|rest| rest.starts_with(']'));
            continue;
        }
        if !found {
            continue;
        }
        if line.starts_with("ldap") {
            return Err(wrong("services looked up through LDAP are not supported"));
        }
        let (name, value) = line
            .split_once('=')
            .ok_or_else(|| wrong("no \"=\" in the line"))?;
        if matches!(name, "service" | "servicefile") {
            return Err(wrong(&format!("\"{name}\" cannot be set inside a service")));
        }
        let keyword =
            keyword::find(name).ok_or_else(|| wrong(&format!("unknown connection option \"{name}\"")))?;
        values.set_if_absent(keyword, value);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgmahout_types::diagnostic::Diagnose;

    fn read(text: &str, service: &str) -> Result<Option<Values>, ParameterError> {
        let mut values = Values::default();
        let found = apply_text(&mut values, text, service, Path::new("services"))?;
        Ok(found.then_some(values))
    }

    #[test]
    fn only_the_named_section_counts_and_its_first_value_wins() {
        let text = "# comment\n[shop2]\nhost=wrong\n\n [shop] \n  host=right\nport=5433\nport=1\n[shop]\nuser=late\n";
        let values = read(text, "shop").expect("valid").expect("found");
        assert_eq!(values.pairs(), [("host", "right"), ("port", "5433")]);
        assert!(read(text, "sho").expect("valid").is_none());
    }

    #[test]
    fn wrong_lines_are_named_by_number() {
        for (text, message) in [
            (
                "[s]\nhost\n",
                "service file services, line 2: no \"=\" in the line",
            ),
            (
                "[s]\nhosst=a\n",
                "service file services, line 2: unknown connection option \"hosst\"",
            ),
            (
                "[s]\nservice=b\n",
                "service file services, line 2: \"service\" cannot be set inside a service",
            ),
        ] {
            let error = read(text, "s").err().expect("refused");
            assert_eq!(error.to_string(), message);
            assert!(error.hint().is_some());
        }
    }
}
