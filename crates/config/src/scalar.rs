//! What a plain scalar means, as PyYAML's safe loader has it (YAML 1.1: `on`, `yes`, `0755` is octal,
//! `1:30` is 90). Patroni's files are written for it, and must mean the same to us.
//!
//! The rules are those of PyYAML's implicit resolvers and constructors (its `resolver.py` and
//! `constructor.py`); a table made by running PyYAML is the test.

/// A resolved scalar.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// `~`, `null`, nothing.
    Null,
    /// `yes`, `on`, `true` and their kin.
    Bool(bool),
    /// Decimal, octal, hexadecimal, binary, base 60.
    Int(i128),
    /// With a point; base 60 too.
    Float(f64),
    /// A date, or date and time, as written.
    Timestamp(String),
    /// Anything else.
    Str(String),
}

impl Scalar {
    /// Resolves a plain scalar. What PyYAML would choke on (`0b_`) is text.
    pub fn resolve(text: &str) -> Self {
        boolean(text)
            .map(Self::Bool)
            .or_else(|| float(text).map(Self::Float))
            .or_else(|| integer(text).map(Self::Int))
            .or_else(|| matches!(text, "" | "~" | "null" | "Null" | "NULL").then_some(Self::Null))
            .or_else(|| is_timestamp(text).then(|| Self::Timestamp(text.to_owned())))
            .unwrap_or_else(|| Self::Str(text.to_owned()))
    }

    /// As JSON: whole numbers that JSON's readers cannot hold and floats that JSON cannot say become text.
    pub(crate) fn into_json(self) -> serde_json::Value {
        use serde_json::Value;
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(value),
            Self::Int(value) => i64::try_from(value)
                .map(Value::from)
                .or_else(|_| u64::try_from(value).map(Value::from))
                .unwrap_or_else(|_| Value::String(value.to_string())),
            Self::Float(value) => serde_json::Number::from_f64(value)
                .map_or_else(|| Value::String(value.to_string()), Value::Number),
            Self::Timestamp(text) | Self::Str(text) => Value::String(text),
        }
    }
}

/// The words that PyYAML takes for truth values; a lone `y` or `n` is none of them.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Some(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

/// Splits a sign off.
fn sign(text: &str) -> (bool, &str) {
    match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    }
}

fn without_underscores(text: &str) -> String {
    text.chars().filter(|character| *character != '_').collect()
}

/// Whether the text is made of these characters and underscores only, at least one.
fn made_of(text: &str, digit: impl Fn(char) -> bool) -> bool {
    !text.is_empty() && text.chars().all(|character| character == '_' || digit(character))
}

/// A digit and then digits and underscores.
fn is_number(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit()) && made_of(text, |digit| digit.is_ascii_digit())
}

/// The groups after the first of a base-60 number: up to 59, one digit or two.
fn is_sixtieth(group: &str) -> bool {
    group.len() <= 2 && group.parse::<u8>().is_ok_and(|value| value < 60) && !group.starts_with('+')
}

pub(crate) fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = sign(text);
    let radix = |digits: &str, radix| i128::from_str_radix(&without_underscores(digits), radix).ok();
    let value = if let Some(binary) = digits.strip_prefix("0b") {
        made_of(binary, |digit| matches!(digit, '0' | '1')).then(|| radix(binary, 2))??
    } else if let Some(hexadecimal) = digits.strip_prefix("0x") {
        made_of(hexadecimal, |digit| digit.is_ascii_hexdigit()).then(|| radix(hexadecimal, 16))??
    } else if digits == "0" {
        0
    } else if let Some(octal) = digits.strip_prefix('0') {
        made_of(octal, |digit| ('0'..='7').contains(&digit)).then(|| radix(digits, 8))??
    } else {
        let mut groups = digits.split(':');
        let first = groups.next().filter(|first| is_number(first))?;
        let mut value = radix(first, 10)?;
        for group in groups {
            if !is_sixtieth(group) {
                return None;
            }
            value = value.checked_mul(60)?.checked_add(radix(group, 10)?)?;
        }
        value
    };
    Some(if negative { -value } else { value })
}

fn float(text: &str) -> Option<f64> {
    match text {
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Some(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Some(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Some(f64::NAN),
        _ => {}
    }
    let (negative, digits) = sign(text);
    let (whole, rest) = digits.split_once('.')?;
    let value = if whole.contains(':') {
        sexagesimal(whole, rest)?
    } else {
        // A sign is allowed before a digit, not before the point.
        let signed = digits.len() != text.len();
        let (fraction, exponent) = match rest.find(['e', 'E']) {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        let whole_fits = if whole.is_empty() {
            !signed && is_number(fraction)
        } else {
            is_number(whole)
        };
        let fraction_fits = fraction.is_empty() || made_of(fraction, |digit| digit.is_ascii_digit());
        // The exponent must have a sign: 1.0e3 is text.
        let exponent_fits = exponent.is_none_or(|exponent| {
            let (_, power) = sign(exponent);
            power.len() < exponent.len()
                && !power.is_empty()
                && power.chars().all(|digit| digit.is_ascii_digit())
        });
        if !(whole_fits && fraction_fits && exponent_fits) {
            return None;
        }
        without_underscores(digits).parse().ok()?
    };
    Some(if negative { -value } else { value })
}

/// `1:30.5`.
fn sexagesimal(whole: &str, fraction: &str) -> Option<f64> {
    if !fraction
        .chars()
        .all(|digit| digit.is_ascii_digit() || digit == '_')
    {
        return None;
    }
    let mut groups = whole.split(':');
    let first = groups.next().filter(|first| is_number(first))?;
    let mut value: f64 = without_underscores(first).parse().ok()?;
    for group in groups {
        if !is_sixtieth(group) {
            return None;
        }
        value = value * 60.0 + group.parse::<f64>().ok()?;
    }
    let fraction = format!("0.{}", without_underscores(fraction));
    Some(value + fraction.parse::<f64>().unwrap_or(0.0))
}

/// `2001-12-14`, or with a time after `T` or blanks.
fn is_timestamp(text: &str) -> bool {
    let digits = |part: &str, shortest: usize, longest: usize| {
        (shortest..=longest).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    let (date, time) = match text.find(['T', 't', ' ', '\t']) {
        Some(at) => (&text[..at], Some(text[at + 1..].trim_start_matches([' ', '\t']))),
        None => (text, None),
    };
    let parts: Vec<&str> = date.split('-').collect();
    let [year, month, day] = parts[..] else {
        return false;
    };
    let Some(time) = time else {
        return digits(year, 4, 4) && digits(month, 2, 2) && digits(day, 2, 2);
    };
    if !(digits(year, 4, 4) && digits(month, 1, 2) && digits(day, 1, 2)) {
        return false;
    }
    let end = time
        .find(|character: char| !character.is_ascii_digit() && character != ':')
        .unwrap_or(time.len());
    let parts: Vec<&str> = time[..end].split(':').collect();
    let [hour, minute, second] = parts[..] else {
        return false;
    };
    let mut rest = &time[end..];
    if let Some(fraction) = rest.strip_prefix('.') {
        rest = fraction.trim_start_matches(|character: char| character.is_ascii_digit());
    }
    let zone = rest.trim_start_matches([' ', '\t']);
    let zone_fits = match zone.strip_prefix(['-', '+']) {
        None => (zone.is_empty() && rest.is_empty()) || zone == "Z",
        Some(offset) => match offset.split_once(':') {
            None => digits(offset, 1, 2),
            Some((hours, minutes)) => digits(hours, 1, 2) && digits(minutes, 2, 2),
        },
    };
    digits(hour, 1, 2) && digits(minute, 2, 2) && digits(second, 2, 2) && zone_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_mean_what_pyyaml_says() {
        let mut wrong = Vec::new();
        let mut seen = 0;
        for line in include_str!("scalar/corpus.tsv")
            .lines()
            .filter(|line| !line.starts_with('#'))
        {
            let mut fields = line.split('\t');
            let text: String = serde_json::from_str(fields.next().unwrap()).unwrap();
            let (kind, value) = (fields.next().unwrap(), fields.next().unwrap_or_default());
            let resolved = Scalar::resolve(&text);
            let right = match (&resolved, kind) {
                (Scalar::Null, "null") | (Scalar::Timestamp(_), "timestamp") => true,
                (Scalar::Bool(found), "bool") => found.to_string() == value,
                (Scalar::Int(found), "int") => found.to_string() == value,
                (Scalar::Float(found), "float") => {
                    let expected: f64 = value.parse().unwrap();
                    (found.is_nan() && expected.is_nan()) || found.to_bits() == expected.to_bits()
                }
                (Scalar::Str(found), "str") => serde_json::from_str::<String>(value).unwrap() == *found,
                _ => false,
            };
            seen += 1;
            if !right {
                wrong.push(format!("{text:?}: {resolved:?}, PyYAML says {kind} {value}"));
            }
        }
        assert!(seen > 150, "{seen}");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    proptest::proptest! {
        #[test]
        fn resolving_any_text_never_panics(text in "[-+0-9.:_eExXbBTtZ~ a-z\u{e9}]{0,24}") {
            let _ = Scalar::resolve(&text);
        }
    }
}
