//! Printing values as YAML that reads back as the same values.

use std::fmt::Write as _;

use serde_json::Value;

use crate::scalar::Scalar;

/// Writes a value as a YAML document in block form.
pub fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(value, 0, &mut text),
        Value::Array(items) if !items.is_empty() => block(value, 0, &mut text),
        other => {
            text.push_str(&inline(other));
            text.push('\n');
        }
    }
    text
}

/// Without what is not set: nulls, empty lists and empty mappings inside mappings.
pub fn without_unset(value: Value) -> Value {
    let is_unset = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(map) => map
            .into_iter()
            .map(|(key, value)| (key, without_unset(value)))
            .filter(|(_, value)| !is_unset(value))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_unset).collect(),
        other => other,
    }
}

fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let _ = write!(text, "{indent}{}:", scalar(key));
                after(value, depth, text);
            }
        }
        Value::Array(items) => {
            for item in items {
                let _ = write!(text, "{indent}-");
                match item {
                    Value::Object(map) if !map.is_empty() => {
                        let mut inner = String::new();
                        block(item, depth + 1, &mut inner);
                        // The first key stands beside the dash.
                        text.push_str(&inner[indent.len() + 1..]);
                    }
                    other => after(other, depth, text),
                }
            }
        }
        _ => {}
    }
}

fn after(value: &Value, depth: usize, text: &mut String) {
    let nested = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if nested {
        text.push('\n');
        block(value, depth + 1, text);
    } else {
        let _ = writeln!(text, " {}", inline(value));
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::Null => "~".to_owned(),
        Value::String(text) => scalar(text),
        Value::Array(_) => "[]".to_owned(),
        Value::Object(_) => "{}".to_owned(),
        other => other.to_string(),
    }
}

/// Plain where that reads back as the same text, else in double quotes.
fn scalar(text: &str) -> String {
    let plain = matches!(Scalar::resolve(text), Scalar::Str(_))
        && text.starts_with(|first: char| first.is_ascii_alphanumeric() || "/._".contains(first))
        && text
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || "/._-:@%+=<> ,()".contains(character))
        && !text.contains(": ")
        && !text.ends_with([':', ' '])
        && text != "---"
        && text != "...";
    if plain {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_back(value: &Value) -> Value {
        crate::node::parse(&to_yaml(value), std::path::Path::new("x"))
            .unwrap()
            .to_json()
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[ -~]{0,12}".prop_map(Value::from),
            "[a-z:#\n\t\u{e9}\u{1f418}-]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[ -~]{0,8}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back_as_the_same(value in any_value()) {
            let value = serde_json::json!({ "value": value });
            prop_assert_eq!(read_back(&value), value);
        }
    }
}
