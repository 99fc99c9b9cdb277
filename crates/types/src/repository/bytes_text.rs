//! Bytes that are nearly always text, kept exactly.
//!
//! PostgreSQL's own names are ASCII, but the target of a link, and with it `tablespace_map`, may be any
//! bytes. In the text form a backslash is `\\`, and a byte that is not part of valid UTF-8 is `\x` and two
//! lower-case hexadecimal digits; everything else stands for itself.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The text form of the bytes.
pub fn escape(bytes: &[u8]) -> Cow<'_, str> {
    use fmt::Write as _;
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\\') => return Cow::Borrowed(text),
        Ok(text) => return Cow::Owned(text.replace('\\', r"\\")),
        Err(_) => {}
    }
    let mut text = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character == '\\' {
                text.push('\\');
            }
            text.push(character);
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, r"\x{byte:02x}");
        }
    }
    Cow::Owned(text)
}

/// The bytes of a text form.
///
/// # Errors
/// When something else stands behind a backslash than [`escape`] writes.
pub fn unescape(text: &str) -> Result<Vec<u8>, BadEscape> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..position]);
        let escape = &rest.as_bytes()[position + 1..];
        let length = match escape {
            [b'\\', ..] => {
                bytes.push(b'\\');
                2
            }
            [
                b'x',
                high @ (b'0'..=b'9' | b'a'..=b'f'),
                low @ (b'0'..=b'9' | b'a'..=b'f'),
                ..,
            ] => {
                let digit = |digit: u8| {
                    if digit <= b'9' {
                        digit - b'0'
                    } else {
                        digit - b'a' + 10
                    }
                };
                bytes.push(digit(*high) << 4 | digit(*low));
                4
            }
            _ => return Err(BadEscape),
        };
        rest = &rest[position + length..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

/// A backslash with something behind it that means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(r"a backslash stands before something else than a backslash or `x` and two digits")]
pub struct BadEscape;

/// The exact content of a small file that is text as a rule, such as `backup_label`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ExactBytes(Box<[u8]>);

impl ExactBytes {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for ExactBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<&[u8]> for ExactBytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl From<&str> for ExactBytes {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

impl fmt::Display for ExactBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&escape(&self.0))
    }
}

impl fmt::Debug for ExactBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", escape(&self.0))
    }
}

impl Serialize for ExactBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&escape(&self.0))
    }
}

impl<'de> Deserialize<'de> for ExactBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        visit_escaped(deserializer, "an escaped text", |bytes| {
            Ok::<_, BadEscape>(bytes.into())
        })
    }
}

/// Deserialises an escaped text and makes something of its bytes.
pub(super) fn visit_escaped<'de, D, T, E>(
    deserializer: D,
    expected: &'static str,
    make: fn(Vec<u8>) -> Result<T, E>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    E: fmt::Display,
{
    struct Visitor<T, E> {
        expected: &'static str,
        make: fn(Vec<u8>) -> Result<T, E>,
    }
    impl<T, E: fmt::Display> de::Visitor<'_> for Visitor<T, E> {
        type Value = T;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str(self.expected)
        }

        fn visit_str<X: de::Error>(self, text: &str) -> Result<T, X> {
            (self.make)(unescape(text).map_err(X::custom)?).map_err(X::custom)
        }
    }
    deserializer.deserialize_str(Visitor { expected, make })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_backslashes_and_broken_utf_8_are_escaped() {
        assert_eq!(escape("/srv/tables für alle".as_bytes()), "/srv/tables für alle");
        assert_eq!(escape(b"a\\b\xff\xc3\n"), "a\\\\b\\xff\\xc3\n");
        assert_eq!(unescape(r"a\\b\xff"), Ok(b"a\\b\xff".to_vec()));
    }

    #[test]
    fn other_escapes_are_refused() {
        for text in ["\\", "a\\n", "\\x", "\\xf", "\\xFF", "\\xfg", "\\xüü"] {
            assert_eq!(unescape(text), Err(BadEscape), "{text}");
        }
    }

    proptest! {
        #[test]
        fn bytes_round_trip(bytes: Vec<u8>) {
            prop_assert_eq!(unescape(&escape(&bytes)), Ok(bytes.clone()));
            let exact = ExactBytes::from(bytes);
            let json = serde_json::to_string(&exact).expect("text");
            prop_assert_eq!(serde_json::from_str::<ExactBytes>(&json).expect("our own"), exact);
        }

        #[test]
        fn any_text_is_bytes_or_an_error(text in "(\\PC|\\\\|x|[0-9a-f]){0,40}") {
            let _ = unescape(&text);
        }
    }
}
