//! Lists of objects that a collection is about to delete.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ids::{
    IdParseError, Label, PackId, hexadecimal_bytes, hexadecimal_id, hexadecimal_text, serde_as_text,
};
use super::manifest::WalRange;
use crate::diagnostic::Diagnose;
use crate::lsn::shortened;

/// The version of the format that is written, and the newest that is read.
pub const FORMAT: u32 = 1;

hexadecimal_id!(
    /// The name of a condemned list: random, never used twice.
    CondemnedId, 16, "the id of a condemned list (32 hexadecimal digits)"
);

/// The content of a condemned list, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CondemnedObjects {
    /// The version of the format: [`FORMAT`].
    #[serde(rename = "condemned")]
    pub format: u32,
    /// Its name.
    pub id: CondemnedId,
    /// When it was made.
    pub at: Timestamp,
    /// Packs of file content.
    #[serde(default)]
    pub packs: BTreeSet<PackId>,
    /// Packs of page maps.
    #[serde(default)]
    pub maps: BTreeSet<PackId>,
    /// Manifests.
    #[serde(default)]
    pub manifests: BTreeSet<Label>,
    /// WAL segments.
    #[serde(default)]
    pub wal: Vec<WalRange>,
}

impl CondemnedObjects {
    /// A list with nothing in it.
    pub fn new(id: CondemnedId, at: Timestamp) -> Self {
        Self {
            format: FORMAT,
            id,
            at,
            packs: BTreeSet::new(),
            maps: BTreeSet::new(),
            manifests: BTreeSet::new(),
            wal: Vec::new(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty() && self.maps.is_empty() && self.manifests.is_empty() && self.wal.is_empty()
    }

    /// Those of the packs, of content or of maps, that are condemned.
    pub fn condemned_of(&self, packs: impl IntoIterator<Item = PackId>) -> Vec<PackId> {
        packs
            .into_iter()
            .filter(|pack| self.packs.contains(pack) || self.maps.contains(pack))
            .collect()
    }

    /// The content of the object.
    pub fn encode(&self) -> Vec<u8> {
        // Strings, numbers and lists: nothing that JSON cannot say.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the content of the object.
    ///
    /// # Errors
    /// When it is no such list, or of a newer format.
    pub fn decode(content: &[u8]) -> Result<Self, CondemnedError> {
        #[derive(Deserialize)]
        struct Format {
            condemned: u32,
        }
        let Format { condemned: format } = serde_json::from_slice(content).map_err(CondemnedError::Json)?;
        if format != FORMAT {
            return Err(CondemnedError::Format { format });
        }
        serde_json::from_slice(content).map_err(CondemnedError::Json)
    }
}

/// Why a condemned list cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CondemnedError {
    /// It is not what it should be.
    #[error("a list of condemned objects cannot be understood")]
    Json(#[source] serde_json::Error),
    /// It was written by a newer pgmahout.
    #[error("a list of condemned objects has format version {format}, newest known is {FORMAT}")]
    Format {
        /// The version.
        format: u32,
    },
}

impl Diagnose for CondemnedError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Json(_) => "`pgmahout repo check` says whether the repository is sound".to_owned(),
            Self::Format { .. } => "a newer pgmahout wrote it: upgrade this one".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_says_which_packs_are_condemned() {
        let id = |byte| PackId::from_bytes([byte; 16]);
        let mut list = CondemnedObjects::new(CondemnedId::from_bytes([9; 16]), Timestamp::UNIX_EPOCH);
        assert!(list.is_empty());
        list.packs.insert(id(1));
        list.maps.insert(id(2));
        assert_eq!(list.condemned_of([id(1), id(2), id(3)]), [id(1), id(2)]);
        assert_eq!(CondemnedObjects::decode(&list.encode()).expect("our own"), list);
    }

    #[test]
    fn a_list_of_a_newer_format_is_refused() {
        let error = CondemnedObjects::decode(br#"{"condemned":2,"what":"ever"}"#).expect_err("newer");
        assert!(matches!(error, CondemnedError::Format { format: 2 }));
        assert!(error.hint().is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_list_or_an_error(content: Vec<u8>) {
            let _ = CondemnedObjects::decode(&content);
        }
    }
}
