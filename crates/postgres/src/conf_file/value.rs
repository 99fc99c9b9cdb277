//! Values with units (`guc.c`: `memory_unit_conversion_table`, `time_unit_conversion_table`; units are
//! case-sensitive).

/// What a number without a unit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Byte,
    /// 1024 bytes.
    Kilobyte,
    /// Blocks of 8192 bytes (`shared_buffers`).
    Block,
    /// 1024 kilobytes (`max_wal_size`).
    Megabyte,
    /// Microseconds.
    Microsecond,
    /// Milliseconds (`statement_timeout`).
    Millisecond,
    /// Seconds (`checkpoint_timeout`).
    Second,
    /// Minutes (`log_rotation_age`).
    Minute,
}

const BLOCK: f64 = 8192.0;

fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let end = digits
            .find(|digit: char| !digit.is_ascii_hexdigit())
            .unwrap_or(digits.len());
        return Some((
            u64::from_str_radix(&digits[..end], 16).ok()? as f64,
            digits[end..].trim(),
        ));
    }
    let end = text
        .find(|character: char| !(character.is_ascii_digit() || matches!(character, '.' | '-' | '+')))
        .unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim()))
}

/// Bytes of a memory setting: `128MB`, `16384` (in `default`).
pub fn parse_memory_bytes(text: &str, default: Unit) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" => match default {
            Unit::Byte => 1.0,
            Unit::Kilobyte => 1024.0,
            Unit::Block => BLOCK,
            Unit::Megabyte => 1024.0 * 1024.0,
            _ => return None,
        },
        "B" => 1.0,
        "kB" => 1024.0,
        "MB" => 1024.0_f64.powi(2),
        "GB" => 1024.0_f64.powi(3),
        "TB" => 1024.0_f64.powi(4),
        _ => return None,
    };
    let bytes = number * factor;
    (bytes >= 0.0 && bytes <= u64::MAX as f64).then_some(bytes.round() as u64)
}

/// Milliseconds of a time setting: `5min`, `300` (in `default`). Negative ones stand for "off" in several
/// settings.
pub fn parse_time_milliseconds(text: &str, default: Unit) -> Option<f64> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" => match default {
            Unit::Microsecond => 0.001,
            Unit::Millisecond => 1.0,
            Unit::Second => 1000.0,
            Unit::Minute => 60_000.0,
            _ => return None,
        },
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return None,
    };
    Some(number * factor)
}

/// A boolean as the server reads it: any unambiguous beginning of `true`, `false`, `yes`, `no`, `on`,
/// `off`, and `1`, `0`, in any case (`bool.c`, `parse_bool_with_len`).
pub fn parse_boolean(text: &str) -> Option<bool> {
    let text = text.to_ascii_lowercase();
    match text.as_str() {
        "" | "o" => None,
        "1" | "on" => Some(true),
        "0" | "of" | "off" => Some(false),
        word if "true".starts_with(word) || "yes".starts_with(word) => Some(true),
        word if "false".starts_with(word) || "no".starts_with(word) => Some(false),
        _ => None,
    }
}
