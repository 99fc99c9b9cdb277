//! Names and words in the statements of a dump.

use std::borrow::Cow;

/// A table as a dump names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// Its schema, unquoted; empty where the dump leaves it to the search path.
    pub schema: String,
    /// Its name, unquoted.
    pub name: String,
}

impl TableName {
    /// A table.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            name: name.into(),
        }
    }

    /// Quoted as SQL wants it.
    pub fn to_sql(&self) -> String {
        if self.schema.is_empty() {
            quote_name(&self.name)
        } else {
            format!("{}.{}", quote_name(&self.schema), quote_name(&self.name))
        }
    }
}

impl std::fmt::Display for TableName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.schema.is_empty() {
            formatter.write_str(&self.name)
        } else {
            write!(formatter, "{}.{}", self.schema, self.name)
        }
    }
}

/// A name in double quotes.
pub fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string in single quotes that means the same whatever `standard_conforming_strings` says.
pub fn quote_text(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// Single-byte encodings by PostgreSQL's names (documentation, "Character Set Support"). LATIN1 is not here: its
/// bytes are the code points themselves.
fn single_byte(encoding: &str) -> Option<&'static encoding_rs::Encoding> {
    Some(match encoding {
        "WIN1250" => encoding_rs::WINDOWS_1250,
        "WIN" | "WIN1251" => encoding_rs::WINDOWS_1251,
        "WIN1252" => encoding_rs::WINDOWS_1252,
        "WIN1253" => encoding_rs::WINDOWS_1253,
        "WIN1254" | "LATIN5" => encoding_rs::WINDOWS_1254,
        "WIN1255" => encoding_rs::WINDOWS_1255,
        "WIN1256" => encoding_rs::WINDOWS_1256,
        "WIN1257" => encoding_rs::WINDOWS_1257,
        "WIN1258" => encoding_rs::WINDOWS_1258,
        "WIN866" | "ALT" => encoding_rs::IBM866,
        "WIN874" => encoding_rs::WINDOWS_874,
        "KOI8" | "KOI8R" => encoding_rs::KOI8_R,
        "KOI8U" => encoding_rs::KOI8_U,
        "LATIN2" => encoding_rs::ISO_8859_2,
        "LATIN3" => encoding_rs::ISO_8859_3,
        "LATIN4" => encoding_rs::ISO_8859_4,
        "LATIN6" => encoding_rs::ISO_8859_10,
        "LATIN7" => encoding_rs::ISO_8859_13,
        "LATIN8" => encoding_rs::ISO_8859_14,
        "LATIN9" => encoding_rs::ISO_8859_15,
        "LATIN10" => encoding_rs::ISO_8859_16,
        "ISO_8859_5" => encoding_rs::ISO_8859_5,
        "ISO_8859_6" => encoding_rs::ISO_8859_6,
        "ISO_8859_7" => encoding_rs::ISO_8859_7,
        "ISO_8859_8" => encoding_rs::ISO_8859_8,
        _ => return None,
    })
}

/// Whether names in this encoding can be read.
pub(crate) fn is_readable(encoding: Option<&str>) -> bool {
    encoding.is_none_or(|encoding| matches!(encoding, "UTF8" | "LATIN1") || single_byte(encoding).is_some())
}

/// A piece of a dump in UTF-8, as far as its encoding is one that we read; else as it is.
pub(super) fn decode<'a>(encoding: Option<&str>, bytes: &'a [u8]) -> Cow<'a, [u8]> {
    let Some(encoding) = encoding.filter(|encoding| *encoding != "UTF8") else {
        return Cow::Borrowed(bytes);
    };
    if bytes.is_ascii() {
        return Cow::Borrowed(bytes);
    }
    if encoding == "LATIN1" {
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        return Cow::Owned(text.into_bytes());
    }
    match single_byte(encoding) {
        Some(decoder) => {
            let (text, _) = decoder.decode_without_bom_handling(bytes);
            Cow::Owned(text.into_owned().into_bytes())
        }
        None => Cow::Borrowed(bytes),
    }
}

/// The tokens of a statement: words, quoted names and strings with their quotes, single other bytes.
/// Good enough for the statements that pg_dump writes; dollar quotes are not known here.
pub(super) fn tokens(statement: &[u8]) -> Vec<&[u8]> {
    let mut tokens = Vec::new();
    let mut index = 0;
    while let Some(&byte) = statement.get(index) {
        let start = index;
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => {
                index += 1;
                continue;
            }
            b'"' | b'\'' => {
                index += 1;
                while let Some(end) = memchr::memchr(byte, &statement[index..]) {
                    index += end + 1;
                    if statement.get(index) != Some(&byte) {
                        break;
                    }
                    index += 1;
                }
                if index == start + 1 {
                    index = statement.len();
                }
            }
            _ if is_word(byte) => {
                index += statement[index..]
                    .iter()
                    .position(|byte| !is_word(*byte))
                    .unwrap_or(statement.len() - index);
            }
            _ => index += 1,
        }
        tokens.push(&statement[start..index]);
    }
    tokens
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

pub(super) fn is(token: Option<&&[u8]>, word: &str) -> bool {
    token.is_some_and(|token| token.eq_ignore_ascii_case(word.as_bytes()))
}

/// A name from its token: unquoted, or folded to lower case.
pub(super) fn name(token: &[u8]) -> Option<String> {
    match token {
        [b'"', inner @ .., b'"'] => Some(String::from_utf8_lossy(inner).replace("\"\"", "\"")),
        [first, ..] if is_word(*first) => Some(String::from_utf8_lossy(token).to_ascii_lowercase()),
        _ => None,
    }
}

/// A possibly qualified table name at the beginning of these tokens, and how many tokens it takes.
pub(super) fn table_name(tokens: &[&[u8]]) -> Option<(TableName, usize)> {
    let first = name(tokens.first()?)?;
    if tokens.get(1) == Some(&&b"."[..]) {
        let second = name(tokens.get(2)?)?;
        return Some((TableName::new(first, second), 3));
    }
    Some((TableName::new("", first), 1))
}

/// The table of `COPY table (...) FROM stdin` or of `INSERT INTO table ...`.
pub(super) fn target_table(statement: &[u8]) -> Option<TableName> {
    let tokens = tokens(&statement[..statement.len().min(2048)]);
    let skip = if is(tokens.first(), "copy") {
        if is(tokens.get(1), "binary") { 2 } else { 1 }
    } else if is(tokens.first(), "insert") && is(tokens.get(1), "into") {
        2
    } else {
        return None;
    };
    table_name(tokens.get(skip..)?).map(|(table, _)| table)
}

/// What a `SET` statement says of `standard_conforming_strings`, if it is about that.
pub(super) fn standard_strings_setting(statement: &[u8]) -> Option<bool> {
    if statement.len() > 128 {
        return None;
    }
    let tokens = tokens(statement);
    let mut rest = tokens.get(1..)?;
    if is(rest.first(), "session") || is(rest.first(), "local") {
        rest = &rest[1..];
    }
    if !is(rest.first(), "standard_conforming_strings") {
        return None;
    }
    let value = rest.get(2)?;
    let value: Vec<u8> = value
        .iter()
        .filter(|byte| **byte != b'\'')
        .map(u8::to_ascii_lowercase)
        .collect();
    Some(!matches!(
        value.as_slice(),
        b"off" | b"false" | b"no" | b"0" | b"f" | b"n"
    ))
}

/// What `SET client_encoding` sets, if this statement does.
pub(super) fn client_encoding_setting(statement: &[u8]) -> Option<String> {
    if statement.len() > 128 {
        return None;
    }
    let tokens = tokens(statement);
    if is(tokens.get(1), "client_encoding") {
        let value = String::from_utf8_lossy(tokens.get(3)?).replace('\'', "");
        return Some(value.to_ascii_uppercase());
    }
    None
}

/// The database that a `\connect` line leads to, in the forms that pg_dump and pg_dumpall write
/// (`appendPsqlMetaConnect` in `src/fe_utils/string_utils.c`): a plain name, a quoted name, or
/// `-reuse-previous=on "dbname='name'"`.
pub(super) fn connect_target(line: &str) -> Option<String> {
    let rest = line
        .strip_prefix("\\connect")
        .or_else(|| line.strip_prefix("\\c"))?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim();
    let (rest, is_string) = match rest.strip_prefix("-reuse-previous=on") {
        Some(rest) => (rest.trim_start(), true),
        None => (rest, false),
    };
    let argument = if rest.starts_with('"') {
        let token = *tokens(rest.as_bytes()).first()?;
        name(token)?
    } else {
        rest.split_ascii_whitespace().next()?.to_owned()
    };
    if !is_string {
        return Some(argument);
    }
    let value = argument.strip_prefix("dbname=")?;
    let value = value
        .strip_prefix('\'')
        .and_then(|value| value.strip_suffix('\''))
        .unwrap_or(value);
    let mut database = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        database.push(if character == '\\' {
            characters.next()?
        } else {
            character
        });
    }
    Some(database)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_found_in_copy_and_insert() {
        for (statement, schema, table) in [
            ("COPY shop.customers (id, name) FROM stdin;", "shop", "customers"),
            (
                "COPY \"Odd \"\"S\"\"\".\"a.b; (\" (\"x\") FROM stdin;",
                "Odd \"S\"",
                "a.b; (",
            ),
            ("COPY Plain FROM stdin;", "", "plain"),
            ("INSERT INTO public.\"Größe\" VALUES (1);", "public", "Größe"),
        ] {
            assert_eq!(
                target_table(statement.as_bytes()),
                Some(TableName::new(schema, table)),
                "{statement}"
            );
        }
        assert_eq!(target_table(b"SELECT 1;"), None);
    }

    #[test]
    fn the_target_of_connect_is_read_in_every_form_that_pg_dump_writes() {
        for (line, database) in [
            ("\\connect shop", "shop"),
            ("\\connect \"Odd \"\"name\"\"\"", "Odd \"name\""),
            (
                "\\connect -reuse-previous=on \"dbname='it\\'s a \"\"name\"\" \\\\ here'\"",
                "it's a \"name\" \\ here",
            ),
            ("\\c shop", "shop"),
        ] {
            assert_eq!(connect_target(line).as_deref(), Some(database), "{line}");
        }
        assert_eq!(connect_target("\\copy t from f"), None);
    }

    #[test]
    fn names_are_read_in_the_encoding_of_the_dump() {
        for (encoding, bytes) in [
            (
                "WIN1251",
                &b"COPY public.\"\xd3\xf7\xb8\xf2\" (n) FROM stdin;"[..],
            ),
            ("KOI8R", b"COPY public.\"\xf5\xde\xa3\xd4\" (n) FROM stdin;"),
        ] {
            assert_eq!(
                target_table(&decode(Some(encoding), bytes)),
                Some(TableName::new("public", "Учёт")),
                "{encoding}"
            );
        }
        let text = "COPY public.\"Учёт\" FROM stdin;".as_bytes();
        assert_eq!(decode(Some("UTF8"), text), text);
        assert_eq!(decode(None, text), text);
        assert_eq!(&*decode(Some("LATIN1"), b"\xe9"), "é".as_bytes());
        assert!(!is_readable(Some("EUC_JP")) && is_readable(Some("WIN1251")));
    }

    #[test]
    fn quoting_survives_quotes_and_backslashes() {
        assert_eq!(quote_name("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_text("it's"), "'it''s'");
        assert_eq!(quote_text("a\\'"), "E'a\\\\'''");
    }
}
