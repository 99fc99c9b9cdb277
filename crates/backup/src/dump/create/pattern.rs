//! The object name patterns of `pg_dump`, as regular expressions for our own questions to the catalogs.
//!
//! pg_dump does the selecting; we need the same answer to count rows and to say which pattern matches
//! nothing. The rules are those of psql (PostgreSQL documentation, psql, "Patterns"; `patternToSQLRegex`
//! in src/fe_utils/string_utils.c): `*` and `?` are wildcards, letters fold to lower case outside double
//! quotes, a dot separates schema and name, everything else is a regular expression.

/// A pattern, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    /// Regular expression for the schema's name; `None` means whatever the search path shows.
    pub(super) schema: Option<String>,
    /// Regular expression for the object's name.
    pub(super) name: String,
}

impl Pattern {
    /// Reads a pattern. A database name before the schema, which pg_dump lets pass when it is the current
    /// one, is dropped.
    pub(super) fn parse(text: &str) -> Self {
        let mut parts = split(text);
        let name = parts.pop().unwrap_or_default();
        Self {
            schema: parts.pop().as_deref().map(anchored),
            name: anchored(&name),
        }
    }
}

/// A whole-name expression: `^(..)$`, as psql has it.
fn anchored(expression: &str) -> String {
    format!("^({expression})$")
}

/// The parts between the dots, each as a regular expression.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let part = parts.last_mut().expect("never empty");
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                part.push('"');
                characters.next();
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            '*' if !quoted => part.push_str(".*"),
            '?' if !quoted => part.push('.'),
            '$' => part.push_str("\\$"),
            '[' if !quoted && characters.peek() == Some(&']') => part.push_str("\\["),
            '|' | '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '.' | '^' | '\\' if quoted => {
                part.push('\\');
                part.push(character);
            }
            _ if quoted => part.push(character),
            _ => part.extend(character.to_lowercase()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_psql_says() {
        for (text, schema, name) in [
            ("orders", None, "^(orders)$"),
            ("Orders", None, "^(orders)$"),
            ("\"Orders\"", None, "^(Orders)$"),
            ("audit.*", Some("^(audit)$"), "^(.*)$"),
            ("audit.log_?", Some("^(audit)$"), "^(log_.)$"),
            ("\"a.b\".c$d", Some("^(a\\.b)$"), "^(c\\$d)$"),
            ("shop.public.t", Some("^(public)$"), "^(t)$"),
            ("\"say \"\"hi\"\"\"", None, "^(say \"hi\")$"),
            ("log_[0-9]+", None, "^(log_[0-9]+)$"),
        ] {
            let wanted = Pattern {
                schema: schema.map(str::to_owned),
                name: name.to_owned(),
            };
            assert_eq!(Pattern::parse(text), wanted, "{text}");
        }
    }
}
