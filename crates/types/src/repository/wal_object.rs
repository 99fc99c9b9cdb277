//! What stands before the content of a WAL object.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ids::Digest;
use crate::diagnostic::Diagnose;
use crate::system_identifier::SystemIdentifier;
use crate::wal::WalFileName;

/// The version of the format that is written, and the newest that is read.
pub const FORMAT: u32 = 1;

/// The first frame of a WAL object: one line of JSON. The frames behind it hold the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalObjectHeader {
    /// The version of the format: [`FORMAT`].
    #[serde(rename = "wal")]
    pub format: u32,
    /// The name of the file in pg_wal.
    pub name: WalFileName,
    /// Its bytes.
    pub size: u64,
    /// The cluster that wrote it.
    pub system_identifier: SystemIdentifier,
    /// The magic number of its first page, which belongs to one major version; files without pages, such as
    /// timeline histories, have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_magic: Option<u16>,
    /// The digest of its content.
    pub blake3: Digest,
    /// When it was archived.
    pub archived_at: Timestamp,
    /// The host that archived it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
}

impl WalObjectHeader {
    /// The line, with its line end.
    pub fn encode(&self) -> Vec<u8> {
        // Strings and numbers: nothing that JSON cannot say.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// Reads the line.
    ///
    /// # Errors
    /// When it is no such line, or of a newer format.
    pub fn decode(line: &[u8]) -> Result<Self, WalObjectError> {
        #[derive(Deserialize)]
        struct Format {
            wal: u32,
        }
        let Format { wal: format } = serde_json::from_slice(line).map_err(WalObjectError::Json)?;
        if format != FORMAT {
            return Err(WalObjectError::Format { format });
        }
        serde_json::from_slice(line).map_err(WalObjectError::Json)
    }
}

/// Why the header of a WAL object cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalObjectError {
    /// It is not what it should be.
    #[error("the header of an archived WAL file cannot be understood")]
    Json(#[source] serde_json::Error),
    /// It was written by a newer pgmahout.
    #[error("the header of an archived WAL file has format version {format}, newest known is {FORMAT}")]
    Format {
        /// The version.
        format: u32,
    },
}

impl Diagnose for WalObjectError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Json(_) => "`pgmahout wal verify` finds every damaged file of the archive".to_owned(),
            Self::Format { .. } => "a newer pgmahout wrote it: upgrade this one".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_written_is_read() {
        for (name, page_magic) in [
            ("000000010000000000000003", Some(0xD110)),
            ("00000002.history", None),
            ("000000010000000000000003.00000028.backup", None),
        ] {
            let header = WalObjectHeader {
                format: FORMAT,
                name: name.parse().expect("a name"),
                size: 16 << 20,
                system_identifier: SystemIdentifier::new(7_383_921_345_678_901_234),
                page_magic,
                blake3: Digest::of(b"content"),
                archived_at: "2026-11-21T10:45:00.5Z".parse().expect("a time"),
                host: "db1".to_owned(),
            };
            let line = header.encode();
            assert!(line.ends_with(b"}\n"));
            assert_eq!(WalObjectHeader::decode(&line).expect("our own"), header);
        }
    }

    #[test]
    fn a_header_of_a_newer_format_is_refused() {
        assert!(matches!(
            WalObjectHeader::decode(br#"{"wal":2}"#),
            Err(WalObjectError::Format { format: 2 })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_an_error(line: Vec<u8>) {
            let _ = WalObjectHeader::decode(&line);
        }
    }
}
