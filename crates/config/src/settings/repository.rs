//! Section `repository`: a list of places where dumps and backups are kept.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::node::Content;
use crate::problem::Problem;
use crate::quantity::{serialize_duration, serialize_size};
use crate::secret::SecretReference;
use crate::section::Section;

/// One repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repository {
    /// Its name, for people and `--repo`.
    pub name: String,
    /// Where it is.
    #[serde(flatten)]
    pub storage: Storage,
    /// How new objects are compressed; the default of what is stored where it is not said.
    pub compression: Option<Compression>,
    /// What opens it; none for a repository in the clear.
    pub encryption: Option<Encryption>,
    /// What `expire` keeps.
    pub retention: Retention,
    /// Whether it is in another place than the server, for the 3-2-1 rule; S3 is unless it is said not to
    /// be.
    pub off_site: bool,
    /// Whether it is promised that one host alone writes to it, where the storage cannot tell.
    pub single_writer: bool,
    /// The most bytes per second that go to it and come from it.
    #[serde(serialize_with = "serialize_size")]
    pub bandwidth: Option<u64>,
}

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[expect(
    clippy::large_enum_variant,
    reason = "there are a handful of them in the whole program"
)]
pub enum Storage {
    /// A directory.
    Local {
        /// The directory.
        path: PathBuf,
    },
    /// S3 or what speaks its protocol.
    S3 {
        /// The bucket.
        bucket: String,
        /// What stands before every object's name.
        prefix: String,
        /// The server's URL; none for AWS.
        endpoint: Option<String>,
        /// The region.
        region: Option<String>,
        /// Whether the bucket stands in the path instead of the host's name.
        path_style: Option<bool>,
        /// The access key.
        access_key: Option<SecretReference>,
        /// Its secret.
        secret_key: Option<SecretReference>,
        /// The token of a temporary access key.
        session_token: Option<SecretReference>,
        /// A file of CA certificates, trusted beside the system's.
        ca_cert: Option<PathBuf>,
        /// How long to wait for it.
        #[serde(flatten)]
        timeouts: Timeouts,
    },
}

/// How long to wait for an S3 server; its defaults where nothing is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    /// For one request, an upload included.
    #[serde(rename = "request_timeout", serialize_with = "serialize_duration")]
    pub request: Option<Duration>,
    /// For the next bytes of an answer.
    #[serde(rename = "stall_timeout", serialize_with = "serialize_duration")]
    pub stall: Option<Duration>,
    /// For all attempts of one request together.
    #[serde(rename = "retry_timeout", serialize_with = "serialize_duration")]
    pub retry: Option<Duration>,
}

/// A way to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// gzip, levels 1 to 9.
    Gzip,
    /// Zstandard, levels 1 to 19.
    Zstd,
    /// LZ4.
    Lz4,
    /// Not at all.
    None,
}

/// A way to compress, and how hard. Prints and reads as `zstd:3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// The codec.
    pub codec: Codec,
    /// Its level; its default where none is given.
    pub level: Option<u8>,
}

impl Compression {
    /// Reads `zstd`, `zstd:3`, `gzip:9`, `lz4`, `none`.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level.parse().ok()?)),
            None => (text, None),
        };
        let codec = match name {
            "gzip" | "gz" => Codec::Gzip,
            "zstd" | "zst" => Codec::Zstd,
            "lz4" => Codec::Lz4,
            "none" => Codec::None,
            _ => return None,
        };
        Self::new(codec, level)
    }

    /// `None` where the codec has no such level.
    pub fn new(codec: Codec, level: Option<u8>) -> Option<Self> {
        let highest = match codec {
            Codec::Gzip => 9,
            Codec::Zstd => 19,
            Codec::Lz4 | Codec::None => 0,
        };
        level
            .is_none_or(|level| (1..=highest).contains(&level))
            .then_some(Self { codec, level })
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self.codec {
            Codec::Gzip => "gzip",
            Codec::Zstd => "zstd",
            Codec::Lz4 => "lz4",
            Codec::None => "none",
        })?;
        self.level.map_or(Ok(()), |level| write!(formatter, ":{level}"))
    }
}

impl Serialize for Compression {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What opens an encrypted repository or dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// A passphrase.
    Passphrase(SecretReference),
    /// A file that holds a key.
    KeyFile(PathBuf),
    /// A program that prints a key, such as a client of a KMS.
    Command(SecretReference),
}

impl Encryption {
    /// The secret, unless it is a key file.
    pub fn reference(&self) -> Option<&SecretReference> {
        match self {
            Self::Passphrase(reference) | Self::Command(reference) => Some(reference),
            Self::KeyFile(_) => None,
        }
    }
}

/// What `expire` keeps. Rules add up: what any of them keeps, stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Retention {
    /// The newest so many.
    pub keep_last: Option<u32>,
    /// The newest of each of so many days.
    pub keep_daily: Option<u32>,
    /// The newest of each of so many weeks.
    pub keep_weekly: Option<u32>,
    /// The newest of each of so many months.
    pub keep_monthly: Option<u32>,
    /// All that are younger.
    #[serde(serialize_with = "serialize_duration")]
    pub keep_within: Option<Duration>,
    /// So far back any point in time can be restored.
    #[serde(serialize_with = "serialize_duration")]
    pub recovery_window: Option<Duration>,
}

impl Retention {
    /// Whether nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn read(section: &Section<'_>) -> Self {
        const ANY: std::ops::RangeInclusive<u32> = 0..=100_000;
        Self {
            keep_last: section.integer("keep_last", ANY),
            keep_daily: section.integer("keep_daily", ANY),
            keep_weekly: section.integer("keep_weekly", ANY),
            keep_monthly: section.integer("keep_monthly", ANY),
            keep_within: section.duration("keep_within"),
            recovery_window: None,
        }
    }
}

/// Reads `encryption`: exactly one of its three ways.
pub(super) fn read_encryption(section: &Section<'_>) -> Option<Encryption> {
    let encryption = section.section("encryption");
    let passphrase = encryption.secret("passphrase").map(Encryption::Passphrase);
    let key_file = encryption.path("key_file").map(Encryption::KeyFile);
    let command = encryption.read("command", "a program with its arguments", |text| {
        let text = if text.starts_with("command:") {
            text.to_owned()
        } else {
            format!("command:{text}")
        };
        SecretReference::parse(&text).ok().map(Encryption::Command)
    });
    let mut given = [passphrase, key_file, command].into_iter().flatten();
    let (first, second) = (given.next(), given.next());
    if second.is_some() || (first.is_none() && encryption.entries().is_empty() && encryption.exists()) {
        encryption.problem(format!(
            "'{}' needs one of passphrase, key_file, command",
            section.full("encryption")
        ));
    }
    encryption.finish();
    first
}

/// Reads `compression`: a mapping of codec and level, or the short form `zstd:3`.
fn read_compression(section: &Section<'_>) -> Option<Compression> {
    const EXPECTED: &str = "one of none, lz4, gzip:1-9, zstd:1-19";
    let node = section.get("compression")?;
    if !matches!(node.content, Content::Mapping(_)) {
        return section.read("compression", EXPECTED, Compression::parse);
    }
    let mapping = section.section("compression");
    let codec = mapping.one_of(
        "codec",
        &[
            ("gzip", Codec::Gzip),
            ("zstd", Codec::Zstd),
            ("lz4", Codec::Lz4),
            ("none", Codec::None),
        ],
    );
    let level = mapping
        .integer("level", 1..=19)
        .and_then(|level| u8::try_from(level).ok());
    let compression = codec.and_then(|codec| Compression::new(codec, level));
    if let (Some(_), None) = (codec, &compression) {
        mapping.problem(format!("'{}' must be {EXPECTED}", section.full("compression")));
    }
    if codec.is_none() && mapping.get("codec").is_none() {
        mapping.missing("codec");
    }
    mapping.finish();
    compression
}

pub(crate) fn read(root: &Section<'_>) -> Vec<Repository> {
    let problems = root.problems();
    let mut repositories: Vec<Repository> = Vec::new();
    for (path, node) in root.list("repository") {
        let section = Section::new(path.clone(), Some(node), problems);
        let repository = read_one(&section);
        if let Some(repository) = repository {
            if repositories.iter().any(|other| other.name == repository.name) {
                let message = format!("two repositories have the name '{}'", repository.name);
                problems.add(Problem::error(node.origin.clone(), message));
            }
            repositories.push(repository);
        }
        section.finish();
    }
    repositories
}

#[derive(Clone, Copy)]
enum Kind {
    Local,
    S3,
}

fn read_one(section: &Section<'_>) -> Option<Repository> {
    let name = section.read("name", "a name of letters, digits, - and _", |text| {
        let fits = !text.is_empty()
            && text
                .chars()
                .all(|character| character.is_ascii_alphanumeric() || "-_".contains(character));
        fits.then(|| text.to_owned())
    });
    let kind = section.one_of("type", &[("local", Kind::Local), ("s3", Kind::S3)]);
    if section.get("name").is_none() {
        section.missing("name");
    }
    if section.get("type").is_none() {
        section.missing("type");
    }
    let compression = read_compression(section);
    let encryption = read_encryption(section);
    let retention = section.section("retention");
    let mut kept = Retention::read(&retention);
    kept.recovery_window = retention.duration("recovery_window");
    retention.finish();
    let off_site = section.boolean("off_site");
    let single_writer = section.boolean("single_writer").unwrap_or(false);
    let bandwidth = section.size("bandwidth");
    let storage = match kind? {
        Kind::Local => {
            let path = section.path("path");
            if section.get("path").is_none() {
                section.missing("path");
            }
            Storage::Local { path: path? }
        }
        Kind::S3 => {
            let bucket = section.text("bucket");
            if bucket.is_none() {
                section.missing("bucket");
            }
            let prefix = section.text("prefix").unwrap_or_default();
            let endpoint = section.read("endpoint", "a URL that begins with https:// or http://", |text| {
                (text.starts_with("https://") || text.starts_with("http://")).then(|| text.to_owned())
            });
            let region = section.text("region");
            let path_style = section.boolean("path_style");
            let access_key = section.secret("access_key");
            let secret_key = section.secret("secret_key");
            let session_token = section.secret("session_token");
            let ca_cert = section.path("ca_cert");
            let timeouts = Timeouts {
                request: section.duration("request_timeout"),
                stall: section.duration("stall_timeout"),
                retry: section.duration("retry_timeout"),
            };
            Storage::S3 {
                bucket: bucket?,
                prefix: prefix.trim_matches('/').to_owned(),
                endpoint,
                region,
                path_style,
                access_key,
                secret_key,
                session_token,
                ca_cert,
                timeouts,
            }
        }
    };
    let off_site = off_site.unwrap_or(matches!(storage, Storage::S3 { .. }));
    Some(Repository {
        name: name?,
        storage,
        compression,
        encryption,
        retention: kept,
        off_site,
        single_writer,
        bandwidth,
    })
}
