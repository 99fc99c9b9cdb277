//! The names of a repository's objects.
//!
//! ```text
//! repository                               the descriptor: format, id, hash key
//! stanza/NAME/stanza                       whose backups these are
//! stanza/NAME/head/SEQ                     the head log, 16 hexadecimal digits; the greatest is the head
//! stanza/NAME/manifest/LABEL               one backup
//! stanza/NAME/pack/XX/ID, map/XX/ID        packs of file content and of page maps, by their first two digits
//! stanza/NAME/condemned/ID                 what a collection is about to delete
//! stanza/NAME/lease/ID                     who is at work
//! stanza/NAME/wal/TIMELINE/LOG/SEGMENT     WAL segments
//! stanza/NAME/wal/TIMELINE/FILE            histories, backup histories, partial segments
//! ```

use std::fmt;
use std::str::FromStr;

use pgmahout_types::diagnostic::{Diagnose, Outcome};
use pgmahout_types::repository::{CondemnedId, Label, PackId};
use pgmahout_types::{TimelineId, WalFileName};

/// The descriptor's name.
pub const DESCRIPTOR: &str = "repository";

/// Under what all stanzas lie.
pub const STANZAS: &str = "stanza";

/// What an object is: bound to its bytes, so that none can stand in for another.
pub mod kind {
    /// The repository's descriptor.
    pub const DESCRIPTOR: &str = "repository";
    /// A stanza's description.
    pub const STANZA: &str = "stanza";
    /// A head.
    pub const HEAD: &str = "head";
    /// A backup's manifest.
    pub const MANIFEST: &str = "manifest";
    /// A pack of file content.
    pub const PACK: &str = "pack";
    /// A pack of page maps.
    pub const MAP: &str = "map";
    /// A list of condemned objects.
    pub const CONDEMNED: &str = "condemned";
    /// A lease.
    pub const LEASE: &str = "lease";
    /// A file of the WAL archive.
    pub const WAL: &str = "wal";
}

/// The name of a stanza: 1 to 64 letters, digits and `_ - .`, beginning with a letter, a digit or `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StanzaName(String);

impl StanzaName {
    /// The most characters of a name.
    pub const LONGEST: usize = 64;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StanzaName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl FromStr for StanzaName {
    type Err = StanzaNameError;

    fn from_str(text: &str) -> Result<Self, StanzaNameError> {
        let first = text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let all = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        if first && all && text.len() <= Self::LONGEST {
            Ok(Self(text.to_owned()))
        } else {
            Err(StanzaNameError(text.chars().take(80).collect()))
        }
    }
}

/// A text that cannot be the name of a stanza.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` cannot be the name of a stanza")]
pub struct StanzaNameError(String);

impl Diagnose for StanzaNameError {
    fn hint(&self) -> Option<String> {
        Some("use 1 to 64 letters, digits and _ - . and begin with a letter, a digit or _".to_owned())
    }

    fn outcome(&self) -> Outcome {
        Outcome::Usage
    }
}

/// Makes the names of a stanza's objects. Names *relative to the stanza* are what lists of condemned objects
/// hold; [`StanzaNames::full`] makes names in the repository of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StanzaNames {
    stanza: StanzaName,
    /// `stanza/NAME`.
    prefix: String,
}

impl StanzaNames {
    /// The names of that stanza's objects.
    pub fn new(stanza: StanzaName) -> Self {
        let prefix = format!("{STANZAS}/{stanza}");
        Self { stanza, prefix }
    }

    /// The stanza.
    pub fn stanza(&self) -> &StanzaName {
        &self.stanza
    }

    /// What all of its objects lie under, without a `/` at the end.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name in the repository of a name relative to the stanza.
    pub fn full(&self, relative: &str) -> String {
        format!("{}/{relative}", self.prefix)
    }

    /// The name relative to the stanza; `None` for another stanza's.
    pub fn relative<'a>(&self, full: &'a str) -> Option<&'a str> {
        full.strip_prefix(&self.prefix)?.strip_prefix('/')
    }

    /// The stanza's description.
    pub fn info(&self) -> String {
        self.full("stanza")
    }

    /// Where the head log is.
    pub fn heads(&self) -> String {
        self.full("head")
    }

    /// A head.
    pub fn head(&self, sequence: u64) -> String {
        self.full(&StanzaObject::Head(sequence).to_string())
    }

    /// A manifest.
    pub fn manifest(&self, label: Label) -> String {
        self.full(&StanzaObject::Manifest(label).to_string())
    }

    /// A pack of file content.
    pub fn pack(&self, id: PackId) -> String {
        self.full(&StanzaObject::Pack(id).to_string())
    }

    /// A pack of page maps.
    pub fn map(&self, id: PackId) -> String {
        self.full(&StanzaObject::Map(id).to_string())
    }

    /// A list of condemned objects.
    pub fn condemned(&self, id: CondemnedId) -> String {
        self.full(&StanzaObject::Condemned(id).to_string())
    }

    /// Where leases are.
    pub fn leases(&self) -> String {
        self.full("lease")
    }

    /// A file of the WAL archive.
    pub fn wal(&self, file: WalFileName) -> String {
        self.full(&StanzaObject::Wal(file).to_string())
    }

    /// Where the WAL of all timelines is.
    pub fn wal_prefix(&self) -> String {
        self.full("wal")
    }

    /// Where the WAL of one timeline is.
    pub fn wal_timeline(&self, timeline: TimelineId) -> String {
        self.full(&format!("wal/{:08X}", timeline.get()))
    }
}

/// What a name relative to a stanza names. Its text is the name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StanzaObject {
    /// The stanza's description.
    Info,
    /// A head.
    Head(u64),
    /// A manifest.
    Manifest(Label),
    /// A pack of file content.
    Pack(PackId),
    /// A pack of page maps.
    Map(PackId),
    /// A list of condemned objects.
    Condemned(CondemnedId),
    /// A lease, by its id.
    Lease(String),
    /// A file of the WAL archive.
    Wal(WalFileName),
}

impl StanzaObject {
    /// Reads a name relative to a stanza; `None` for what is none of ours.
    pub fn parse(relative: &str) -> Option<Self> {
        let object = Self::read(relative)?;
        // One name, one object: what is written differently is not ours.
        (object.to_string() == relative).then_some(object)
    }

    fn read(relative: &str) -> Option<Self> {
        let Some((class, rest)) = relative.split_once('/') else {
            return (relative == "stanza").then_some(Self::Info);
        };
        let last = rest.rsplit('/').next().unwrap_or(rest);
        match class {
            "head" => u64::from_str_radix(rest, 16).ok().map(Self::Head),
            "manifest" => rest.parse().ok().map(Self::Manifest),
            "pack" => last.parse().ok().map(Self::Pack),
            "map" => last.parse().ok().map(Self::Map),
            "condemned" => rest.parse().ok().map(Self::Condemned),
            "lease" => Some(Self::Lease(rest.to_owned())),
            "wal" => last.parse().ok().map(Self::Wal),
            _ => None,
        }
    }
}

impl fmt::Display for StanzaObject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Info => formatter.write_str("stanza"),
            Self::Head(sequence) => write!(formatter, "head/{sequence:016x}"),
            Self::Manifest(label) => write!(formatter, "manifest/{label}"),
            Self::Pack(id) => write!(formatter, "pack/{:02x}/{id}", id.as_bytes()[0]),
            Self::Map(id) => write!(formatter, "map/{:02x}/{id}", id.as_bytes()[0]),
            Self::Condemned(id) => write!(formatter, "condemned/{id}"),
            Self::Lease(id) => write!(formatter, "lease/{id}"),
            Self::Wal(file) => {
                let name = file.to_string();
                let timeline = file.timeline().get();
                match file {
                    // The middle eight digits: at most 4096 segments of 1 MiB, 256 of 16 MiB.
                    WalFileName::Segment(_) => {
                        write!(formatter, "wal/{timeline:08X}/{}/{name}", &name[8..16])
                    }
                    _ => write!(formatter, "wal/{timeline:08X}/{name}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_leave_the_stanza_is_refused() {
        for text in ["", ".", "..", "a/b", "-a", ".a", "a b", "ä", &"a".repeat(65)] {
            let error = text.parse::<StanzaName>().expect_err(text);
            assert!(error.hint().is_some());
        }
        for text in ["main", "15-main", "_x", "Prod.eu_1", &"a".repeat(64)] {
            assert_eq!(text.parse::<StanzaName>().expect(text).as_str(), text);
        }
    }

    #[test]
    fn every_name_is_read_as_it_is_written() {
        let names = StanzaNames::new("main".parse().expect("a name"));
        let label: Label = "20261121T104500Z-3f9a".parse().expect("a label");
        let pack = PackId::from_bytes([0xab; 16]);
        for (name, expected) in [
            (names.info(), "stanza/main/stanza"),
            (names.head(31), "stanza/main/head/000000000000001f"),
            (
                names.manifest(label),
                "stanza/main/manifest/20261121T104500Z-3f9a",
            ),
            (
                names.pack(pack),
                "stanza/main/pack/ab/abababababababababababababababab",
            ),
            (
                names.map(pack),
                "stanza/main/map/ab/abababababababababababababababab",
            ),
            (
                names.wal("000000020000000A000000FF".parse().expect("a segment")),
                "stanza/main/wal/00000002/0000000A/000000020000000A000000FF",
            ),
            (
                names.wal("0000000A.history".parse().expect("a history")),
                "stanza/main/wal/0000000A/0000000A.history",
            ),
            (
                names.wal(
                    "000000010000000000000003.00000028.backup"
                        .parse()
                        .expect("a backup history"),
                ),
                "stanza/main/wal/00000001/000000010000000000000003.00000028.backup",
            ),
            (
                names.wal(
                    "000000010000000000000003.partial"
                        .parse()
                        .expect("a partial segment"),
                ),
                "stanza/main/wal/00000001/000000010000000000000003.partial",
            ),
        ] {
            assert_eq!(name, expected);
            let relative = names.relative(&name).expect("of this stanza");
            let object = StanzaObject::parse(relative).expect("one of ours");
            assert_eq!(names.full(&object.to_string()), name);
        }
    }

    #[test]
    fn what_is_not_exactly_one_of_our_names_is_left_alone() {
        for name in [
            "head/1",
            "head/000000000000001F",
            "pack/00/abababababababababababababababab",
            "pack/abababababababababababababababab",
            "wal/00000002/0000000A/000000010000000A000000FF",
            "wal/00000002/000000020000000A000000FF",
            "stanza/x",
            "other",
            "manifest/latest",
        ] {
            assert_eq!(StanzaObject::parse(name), None, "{name}");
        }
        let names = StanzaNames::new("main".parse().expect("a name"));
        assert_eq!(names.relative("stanza/main2/stanza"), None);
    }
}
