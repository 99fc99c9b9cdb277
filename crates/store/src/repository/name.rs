//! Names of objects.
//!
//! A name is one or more components with `/` between them. Components are made of characters that no file
//! system and no S3 server changes or escapes; text from outside (a database's name) is brought into that
//! form by [`encode_component`].

use crate::digest::hexadecimal;
use crate::error::StoreError;

/// S3's limit for keys is 1024 bytes; the rest is for the prefix.
const LONGEST_NAME: usize = 800;
/// `NAME_MAX` of Linux file systems is 255 bytes; the rest is for the ending of a temporary.
const LONGEST_COMPONENT: usize = 200;

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-=+@,".contains(&byte)
}

/// Refuses what cannot be a name. An empty `name` is refused too.
pub(super) fn check(name: &str) -> Result<(), StoreError> {
    let refuse = |problem| {
        Err(StoreError::InvalidName {
            name: name.to_owned(),
            problem,
        })
    };
    if name.is_empty() {
        return refuse("it is empty");
    }
    if name.len() > LONGEST_NAME {
        return refuse("it is too long");
    }
    for component in name.split('/') {
        if component.is_empty() {
            return refuse("it begins or ends with `/` or has two of them in a row");
        }
        if component.starts_with('.') {
            return refuse("a component begins with a dot");
        }
        if component.len() > LONGEST_COMPONENT {
            return refuse("a component is too long");
        }
        if !component.bytes().all(is_plain) {
            return refuse("it contains other characters than letters, digits and . _ - = + @ ,");
        }
    }
    Ok(())
}

/// Makes one component of a name out of any text, reversibly: bytes that a name cannot hold become `=XX`,
/// two hexadecimal digits. Long texts are the caller's to shorten.
pub fn encode_component(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for (position, byte) in text.bytes().enumerate() {
        let plain = is_plain(byte) && byte != b'=' && !(byte == b'.' && position == 0);
        if plain {
            encoded.push(char::from(byte));
        } else {
            encoded.push('=');
            encoded.push_str(&hexadecimal(&[byte]).to_ascii_uppercase());
        }
    }
    encoded
}

/// The text that [`encode_component`] was given; `None` for what it cannot have made.
pub fn decode_component(component: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(component.len());
    let mut rest = component.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'=' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        rest = after;
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        bytes.push(digit(digits[0])? << 4 | digit(digits[1])?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_repository_are_refused() {
        for bad in [
            "", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a/.b", "a b", "a\nb", "ä", "a\\b", "a%2fb",
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        assert!(check(&"a/".repeat(500)).is_err());
        assert!(check(&"a".repeat(201)).is_err());
        for good in ["a", "dumps/shop/2025-01-20T14=3A30.dump.zst", "A_b-c.d,e@f+g"] {
            check(good).unwrap();
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_survives_as_a_component(text in "\\PC{1,40}") {
            let encoded = encode_component(&text);
            proptest::prop_assert!(check(&encoded).is_ok() || encoded.len() > LONGEST_COMPONENT);
            proptest::prop_assert_eq!(decode_component(&encoded), Some(text));
        }
    }
}
