//! Amounts of data, for people.

use std::fmt;

/// An amount of data in bytes.
///
/// Its text is for people: binary units, and below 100 one decimal place where it says something: `512 B`,
/// `16 MiB`, `1.5 GiB`, `237 GiB`. JSON output gives [`Bytes::get`] instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(u64);

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

impl Bytes {
    /// From a number of bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl From<u64> for Bytes {
    fn from(bytes: u64) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = u128::from(self.0);
        let half = |unit: usize| (1 << (10 * unit)) / 2;
        let whole = |unit: usize| (bytes + half(unit)) >> (10 * unit);
        let last = UNITS.len() - 1;
        let unit = (0..last).find(|&unit| whole(unit) < 1024).unwrap_or(last);
        let tenths = (bytes * 10 + half(unit)) >> (10 * unit);
        formatter.pad(&match (tenths / 10, tenths % 10) {
            (integer @ 0..100, tenth @ 1..) => format!("{integer}.{tenth} {}", UNITS[unit]),
            _ => format!("{} {}", whole(unit), UNITS[unit]),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_short_and_rounded() {
        for (bytes, text) in [
            (0, "0 B"),
            (1, "1 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (10_189, "10 KiB"),
            (102_348, "99.9 KiB"),
            (102_349, "100 KiB"),
            (16 << 20, "16 MiB"),
            (1023 << 10, "1023 KiB"),
            ((1 << 20) - 1, "1 MiB"),
            (1000 << 10, "1000 KiB"),
            (999 << 10, "999 KiB"),
            (3 << 29, "1.5 GiB"),
            (237 << 30, "237 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(Bytes::new(bytes).to_string(), text, "{bytes}");
        }
        assert_eq!(format!("[{:>8}]", Bytes::new(1536)), "[ 1.5 KiB]");
    }

    proptest! {
        #[test]
        fn the_text_is_within_a_twentieth_and_short(bytes: u64) {
            let text = Bytes::new(bytes).to_string();
            let (amount, unit) = text.split_once(' ').expect("amount and unit");
            let unit = UNITS.iter().position(|known| *known == unit).expect("a unit");
            let (whole, tenth) = amount.split_once('.').unwrap_or((amount, "0"));
            let tenths = whole.parse::<u128>().expect("digits") * 10 + tenth.parse::<u128>().expect("a digit");
            let exact = u128::from(bytes) * 10;
            let said = tenths << (10 * unit);
            prop_assert!(said.abs_diff(exact) * 20 <= exact, "{} for {}", text, bytes);
            prop_assert!(text.len() <= 8);
        }
    }
}
