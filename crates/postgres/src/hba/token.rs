//! Words of a line, and their quotes.

use std::fmt;

/// One word. In quotes a word loses its special meaning: `"all"` is a database of that name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HbaToken {
    /// The word without quotes.
    pub text: String,
    /// Whether it began with a quote.
    pub quoted: bool,
}

impl HbaToken {
    /// A keyword, or a plain name.
    pub fn word(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            quoted: false,
        }
    }

    /// A name that is never taken for a keyword.
    pub fn name(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            quoted: true,
        }
    }

    /// Whether this is the keyword.
    pub fn is_keyword(&self, keyword: &str) -> bool {
        !self.quoted && self.text == keyword
    }
}

impl fmt::Display for HbaToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.quoted {
            write!(formatter, "\"{}\"", self.text.replace('"', "\"\""))
        } else {
            formatter.write_str(&quote(&self.text))
        }
    }
}

/// In quotes where the word needs them.
pub(super) fn quote(text: &str) -> String {
    let plain = !text.is_empty()
        && !text
            .contains(|character: char| is_blank(character) || matches!(character, ',' | '#' | '"' | '\\'));
    if plain {
        text.to_owned()
    } else {
        format!("\"{}\"", text.replace('"', "\"\""))
    }
}

/// `pg_isblank`.
pub(super) fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\r' | '\x0b' | '\x0c' | '\n')
}

/// Splits a line into fields, each a list of words that commas hold together.
pub(super) fn fields(line: &str) -> Vec<Vec<HbaToken>> {
    let mut reader = Reader { rest: line };
    let mut fields = Vec::new();
    loop {
        let mut field = Vec::new();
        loop {
            let (token, comma) = reader.next();
            match token {
                Some(token) => field.push(token),
                None => break,
            }
            if !comma {
                break;
            }
        }
        if field.is_empty() {
            return fields;
        }
        fields.push(field);
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    /// The next word, and whether a comma ended it.
    fn next(&mut self) -> (Option<HbaToken>, bool) {
        self.rest = self
            .rest
            .trim_start_matches(|character: char| is_blank(character) || character == ',');
        let mut text = String::new();
        let (mut in_quotes, mut was_quote, mut initial) = (false, false, false);
        let mut characters = self.rest.char_indices();
        let mut comma = false;
        let mut end = self.rest.len();
        for (position, character) in characters.by_ref() {
            if !in_quotes && (is_blank(character) || character == ',') {
                comma = character == ',';
                end = position + 1;
                break;
            }
            if !in_quotes && character == '#' {
                break;
            }
            if character != '"' || was_quote {
                text.push(character);
            }
            was_quote = in_quotes && character == '"' && !was_quote;
            if character == '"' {
                initial |= position == 0;
                in_quotes = !in_quotes;
            }
        }
        self.rest = &self.rest[end..];
        let found = initial || !text.is_empty();
        (
            found.then_some(HbaToken {
                text,
                quoted: initial,
            }),
            comma,
        )
    }
}
