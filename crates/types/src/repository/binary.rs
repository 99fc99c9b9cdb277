//! Reading and writing the binary formats: fixed little-endian numbers, and variable ones of seven bits to
//! the byte, the lowest first, the eighth bit saying that more follow (LEB128). Differences are folded so
//! that small ones of either sign are short: 0, -1, 1, -2, 2 become 0, 1, 2, 3, 4.

use crate::diagnostic::Diagnose;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// They do not begin as that format does.
    #[error("these bytes are no {what}")]
    Magic {
        /// What was to be read.
        what: &'static str,
    },
    /// They are of a version of the format that is unknown.
    #[error("the {what} has format version {version}, which is unknown")]
    Version {
        /// What was to be read.
        what: &'static str,
        /// The version.
        version: u8,
    },
    /// They contradict themselves.
    #[error("the {what} is damaged: {problem}")]
    Damaged {
        /// What was to be read.
        what: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Diagnose for DecodeError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Version { .. } => "a newer pgmahout wrote it: upgrade this one".to_owned(),
            Self::Magic { .. } | Self::Damaged { .. } => {
                "`pgmahout backup verify` finds every damaged object and the backups that need it".to_owned()
            }
        })
    }
}

/// Bytes that are read from the front.
pub(super) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads the magic number and the version.
    pub(super) fn begin(
        what: &'static str,
        bytes: &'a [u8],
        magic: [u8; 4],
        version: u8,
    ) -> Result<Self, DecodeError> {
        let Some((&found, rest)) = bytes.split_first_chunk::<4>() else {
            return Err(DecodeError::Magic { what });
        };
        if found != magic {
            return Err(DecodeError::Magic { what });
        }
        let mut reader = Self { what, rest };
        match reader.byte()? {
            found if found == version => Ok(reader),
            found => Err(DecodeError::Version { what, version: found }),
        }
    }

    pub(super) fn damaged(&self, problem: &'static str) -> DecodeError {
        DecodeError::Damaged {
            what: self.what,
            problem,
        }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        match self.rest.split_first_chunk::<N>() {
            Some((&array, rest)) => {
                self.rest = rest;
                Ok(array)
            }
            None => Err(self.damaged("it ends too early")),
        }
    }

    pub(super) fn byte(&mut self) -> Result<u8, DecodeError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(length) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(self.damaged("it ends too early")),
        }
    }

    /// A variable number.
    pub(super) fn variable(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(self.damaged("a number in it is too large"))
    }

    /// A variable number of 32 bits.
    pub(super) fn variable_u32(&mut self) -> Result<u32, DecodeError> {
        let number = self.variable()?;
        u32::try_from(number).map_err(|_| self.damaged("a number in it is too large"))
    }

    /// A number that was written as the difference from `expected`.
    pub(super) fn near(&mut self, expected: u64) -> Result<u64, DecodeError> {
        let folded = self.variable()?;
        let difference = (folded >> 1).cast_signed() ^ -((folded & 1).cast_signed());
        expected
            .checked_add_signed(difference)
            .ok_or_else(|| self.damaged("a number in it is out of range"))
    }

    /// As [`Reader::near`], of 32 bits.
    pub(super) fn near_u32(&mut self, expected: u32) -> Result<u32, DecodeError> {
        let number = self.near(u64::from(expected))?;
        u32::try_from(number).map_err(|_| self.damaged("a number in it is too large"))
    }

    /// The number of things that follow, each of which takes at least `least` bytes.
    pub(super) fn count(&mut self, least: usize) -> Result<usize, DecodeError> {
        let count = self.variable()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.rest.len() / least => Ok(count),
            _ => Err(self.damaged("it ends too early")),
        }
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.damaged("something follows its end"))
        }
    }
}

/// Bytes that are written one behind the other.
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn begin(magic: [u8; 4], version: u8, capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.extend_from_slice(&magic);
        bytes.push(version);
        Self(bytes)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn variable(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    pub(super) fn count(&mut self, count: usize) {
        self.variable(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// A number as its difference from `expected`. Both are below 2^63, so that the difference has a sign.
    pub(super) fn near(&mut self, number: u64, expected: u64) {
        let difference = number.wrapping_sub(expected).cast_signed();
        self.variable(((difference << 1) ^ (difference >> 63)).cast_unsigned());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_round_trip(number: u64, near in 0..1_u64 << 63, expected in 0..1_u64 << 63) {
            let mut writer = Writer::begin(*b"test", 1, 0);
            writer.variable(number);
            writer.near(near, expected);
            let mut reader = Reader::begin("test", &writer.0, *b"test", 1).expect("it begins so");
            prop_assert_eq!(reader.variable(), Ok(number));
            prop_assert_eq!(reader.near(expected), Ok(near));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn any_bytes_are_a_number_or_an_error(bytes: Vec<u8>) {
            let mut reader = Reader { what: "test", rest: &bytes };
            let _ = reader.variable();
            let _ = reader.near(5);
        }
    }

    #[test]
    fn a_number_of_more_than_64_bits_is_refused() {
        let mut reader = Reader {
            what: "test",
            rest: &[0xff; 10],
        };
        assert!(reader.variable().is_err());
        let mut reader = Reader {
            what: "test",
            rest: &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02],
        };
        assert!(reader.variable().is_err());
    }
}
