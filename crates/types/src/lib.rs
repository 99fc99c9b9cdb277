//! Pure data types and codecs of PostgreSQL and of pgmahout: no IO, no clock, no randomness.
//!
//! Everything here that reads bytes from outside is total: any input gives a value or an error, never a
//! panic, and is fuzzed.

pub mod diagnostic;
pub mod version;
