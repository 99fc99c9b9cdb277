//! Whose backups a stanza holds.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::control::ControlFile;
use crate::diagnostic::{Diagnose, Outcome};
use crate::system_identifier::SystemIdentifier;
use crate::wal::SegmentSize;

/// The version of the format that is written, and the newest that is read.
pub const FORMAT: u32 = 1;

/// The cluster that a stanza belongs to, and those it was before: a major upgrade gives a cluster a new
/// system identifier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StanzaInfo {
    /// The version of the format: [`FORMAT`].
    #[serde(rename = "stanza")]
    pub format: u32,
    /// The name of the stanza.
    pub name: String,
    /// The clusters, the newest last. Never none.
    pub history: Vec<StanzaSystem>,
}

/// One cluster of a stanza.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StanzaSystem {
    /// Its system identifier.
    pub system_identifier: SystemIdentifier,
    /// Its major version.
    pub major: u32,
    /// The version of its pg_control's format.
    pub control_version: u32,
    /// The version of its system catalogs.
    pub catalog_version: u32,
    /// The size of its WAL segments.
    pub wal_segment_size: SegmentSize,
    /// Since when the stanza is its.
    pub since: Timestamp,
}

impl StanzaSystem {
    /// The cluster with that pg_control; `None` where its major version is unknown.
    pub fn new(control: &ControlFile, since: Timestamp) -> Option<Self> {
        Some(Self {
            system_identifier: control.system_identifier,
            major: control.major()?,
            control_version: control.control_version,
            catalog_version: control.catalog_version,
            wal_segment_size: control.wal_segment_size,
            since,
        })
    }
}

impl StanzaInfo {
    /// A new stanza of that cluster.
    pub fn new(name: &str, system: StanzaSystem) -> Self {
        Self {
            format: FORMAT,
            name: name.to_owned(),
            history: vec![system],
        }
    }

    /// The cluster that it belongs to now.
    ///
    /// # Errors
    /// When there is none, which no reader lets through.
    pub fn current(&self) -> Result<&StanzaSystem, StanzaInfoError> {
        self.history.last().ok_or(StanzaInfoError::Empty)
    }

    /// Whether the cluster with that pg_control is the one that the stanza belongs to.
    ///
    /// # Errors
    /// [`StanzaMismatch`] when it is another, or one of another version.
    pub fn check(&self, control: &ControlFile) -> Result<(), StanzaMismatch> {
        let known = self.known();
        let same = known.is_some_and(|known| {
            known.system_identifier == control.system_identifier
                && known.control_version == control.control_version
                && known.catalog_version == control.catalog_version
                && known.wal_segment_size == control.wal_segment_size
        });
        if same {
            return Ok(());
        }
        Err(self.mismatch(control.system_identifier, control.major(), Some(control)))
    }

    /// Whether a server that says so of itself is the one that the stanza belongs to: for servers whose
    /// pg_control cannot be read.
    ///
    /// # Errors
    /// [`StanzaMismatch`] when it is another, or one of another version.
    pub fn check_identity(&self, system: SystemIdentifier, major: u32) -> Result<(), StanzaMismatch> {
        let known = self.known();
        if known.is_some_and(|known| known.system_identifier == system && known.major == major) {
            return Ok(());
        }
        Err(self.mismatch(system, Some(major), None))
    }

    /// The cluster of that system identifier, now or before.
    pub fn system(&self, identifier: SystemIdentifier) -> Option<&StanzaSystem> {
        let own = |system: &&StanzaSystem| system.system_identifier == identifier;
        self.history.iter().rev().find(own)
    }

    /// Gives the stanza to the cluster after a major upgrade.
    pub fn upgrade(&mut self, system: StanzaSystem) {
        self.history.push(system);
    }

    /// The content of the object.
    pub fn encode(&self) -> Vec<u8> {
        // Strings, numbers and lists: nothing that JSON cannot say.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the content of the object.
    ///
    /// # Errors
    /// When it is no stanza's, of a newer format, or names no cluster.
    pub fn decode(content: &[u8]) -> Result<Self, StanzaInfoError> {
        #[derive(Deserialize)]
        struct Format {
            stanza: u32,
        }
        let Format { stanza: format } = serde_json::from_slice(content).map_err(StanzaInfoError::Json)?;
        if format != FORMAT {
            return Err(StanzaInfoError::Format { format });
        }
        let info: Self = serde_json::from_slice(content).map_err(StanzaInfoError::Json)?;
        info.current()?;
        Ok(info)
    }

    fn known(&self) -> Option<&StanzaSystem> {
        self.history.last()
    }

    fn mismatch(
        &self,
        system: SystemIdentifier,
        major: Option<u32>,
        control: Option<&ControlFile>,
    ) -> StanzaMismatch {
        let describe = |system: SystemIdentifier,
                        major: Option<u32>,
                        catalog: Option<u32>,
                        size: Option<SegmentSize>| {
            let major = major.map_or_else(
                || "unknown version".to_owned(),
                |major| format!("PostgreSQL {major}"),
            );
            let catalog = catalog.map(|catalog| format!(", catalog version {catalog}"));
            let size = size.map(|size| format!(", WAL segments of {size}"));
            format!(
                "cluster {system} ({major}{}{})",
                catalog.unwrap_or_default(),
                size.unwrap_or_default()
            )
        };
        let known = self.known();
        // What is the same on both sides tells nobody anything, unless it is the identity.
        let catalogs = control.zip(known).filter(|(control, known)| {
            control.catalog_version != known.catalog_version
                || control.control_version != known.control_version
        });
        let sizes = control
            .zip(known)
            .filter(|(control, known)| control.wal_segment_size != known.wal_segment_size);
        StanzaMismatch {
            stanza: self.name.clone(),
            known: known.map_or_else(
                || "no cluster".to_owned(),
                |known| {
                    describe(
                        known.system_identifier,
                        Some(known.major),
                        catalogs.map(|(_, known)| known.catalog_version),
                        sizes.map(|(_, known)| known.wal_segment_size),
                    )
                },
            ),
            found: describe(
                system,
                major,
                catalogs.map(|(control, _)| control.catalog_version),
                sizes.map(|(control, _)| control.wal_segment_size),
            ),
            upgraded: known.is_some_and(|known| major.is_some_and(|major| major > known.major)),
        }
    }
}

/// A cluster is not the one that the stanza belongs to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stanza {stanza} belongs to {known}, but this is {found}")]
pub struct StanzaMismatch {
    stanza: String,
    known: String,
    found: String,
    upgraded: bool,
}

impl Diagnose for StanzaMismatch {
    fn hint(&self) -> Option<String> {
        Some(if self.upgraded {
            format!(
                "after a major upgrade give the new cluster a stanza of its own, with `stanza:` in the configuration and `pgmahout repo init`; {} keeps the backups from before. A stanza without any goes on with `pgmahout repo init --upgrade`",
                self.stanza
            )
        } else {
            "choose the cluster's own stanza with `--stanza NAME`, or make one with `pgmahout repo init --stanza NAME`"
                .to_owned()
        })
    }

    fn outcome(&self) -> Outcome {
        Outcome::Refused
    }
}

/// Why the description of a stanza cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StanzaInfoError {
    /// It is not what it should be.
    #[error("the description of the stanza cannot be understood")]
    Json(#[source] serde_json::Error),
    /// It was written by a newer pgmahout.
    #[error("the description of the stanza has format version {format}, newest known is {FORMAT}")]
    Format {
        /// The version.
        format: u32,
    },
    /// It names no cluster.
    #[error("the description of the stanza names no cluster")]
    Empty,
}

impl Diagnose for StanzaInfoError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Format { .. } => "a newer pgmahout wrote it: upgrade this one".to_owned(),
            Self::Json(_) | Self::Empty => {
                "`pgmahout repo check` says whether the repository is sound".to_owned()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info() -> StanzaInfo {
        StanzaInfo::new(
            "main",
            StanzaSystem {
                system_identifier: SystemIdentifier::new(7_383_921_345_678_901_234),
                major: 15,
                control_version: 1300,
                catalog_version: 202_209_061,
                wal_segment_size: SegmentSize::DEFAULT,
                since: "2026-11-21T10:45:00Z".parse().expect("a time"),
            },
        )
    }

    fn control_17() -> ControlFile {
        let mut file = include_bytes!("../../tests/fixtures/pg_control-17.bin").to_vec();
        file.resize(ControlFile::FILE_SIZE, 0);
        ControlFile::parse(&file).expect("a real one")
    }

    #[test]
    fn another_cluster_is_refused_and_both_are_named() {
        let error = info()
            .check_identity(SystemIdentifier::new(5), 15)
            .expect_err("another");
        assert_eq!(
            error.to_string(),
            "stanza main belongs to cluster 7383921345678901234 (PostgreSQL 15), but this is cluster 5 (PostgreSQL 15)"
        );
        assert!(error.hint().expect("a hint").contains("--stanza"));
        assert_eq!(error.outcome(), Outcome::Refused);
    }

    #[test]
    fn an_upgraded_cluster_is_refused_until_the_stanza_is_upgraded() {
        let mut info = info();
        let control = control_17();
        let error = info.check(&control).expect_err("another version");
        assert!(
            error
                .to_string()
                .contains("PostgreSQL 17, catalog version 202406281"),
            "{error}"
        );
        assert!(error.hint().expect("a hint").contains("--upgrade"));
        info.upgrade(StanzaSystem::new(&control, Timestamp::UNIX_EPOCH).expect("a known version"));
        info.check(&control).expect("it is the current one");
        assert_eq!(
            info.system(SystemIdentifier::new(7_383_921_345_678_901_234))
                .map(|old| old.major),
            Some(15)
        );
    }

    #[test]
    fn other_wal_segments_are_refused_by_their_size() {
        let control = control_17();
        let mut system = StanzaSystem::new(&control, Timestamp::UNIX_EPOCH).expect("a known version");
        system.wal_segment_size = SegmentSize::MIN;
        let error = StanzaInfo::new("main", system)
            .check(&control)
            .expect_err("another size");
        assert!(
            error.to_string().contains("WAL segments of 1 MiB), but this is"),
            "{error}"
        );
    }

    #[test]
    fn what_was_written_is_read_and_unknown_keys_do_not_hurt() {
        let info = info();
        let content = info.encode();
        assert_eq!(StanzaInfo::decode(&content).expect("our own"), info);
        let text = String::from_utf8(content).expect("text");
        let newer = text.replacen("{\"stanza\"", "{\"news\":[1],\"stanza\"", 1);
        assert_eq!(StanzaInfo::decode(newer.as_bytes()).expect("tolerated"), info);
        let format = text.replacen("\"stanza\":1", "\"stanza\":2", 1);
        assert!(matches!(
            StanzaInfo::decode(format.as_bytes()),
            Err(StanzaInfoError::Format { format: 2 })
        ));
        assert!(matches!(
            StanzaInfo::decode(br#"{"stanza":1,"name":"main","history":[]}"#),
            Err(StanzaInfoError::Empty)
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_stanza_or_an_error(content: Vec<u8>) {
            let _ = StanzaInfo::decode(&content);
        }
    }
}
