//! What a repository is, as values: where it is, how it is encrypted, how long to try.

use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use pgmahout_config::secret::SecretReference;
use pgmahout_types::diagnostic::{Diagnose, Outcome};

use crate::codec::Codec;

/// Where objects are: what `--repo` and a dump's destination may be without a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory.
    Directory(PathBuf),
    /// A bucket and a prefix (empty, or without `/` at its ends).
    S3 {
        /// The bucket.
        bucket: String,
        /// What stands before every object's name.
        prefix: String,
    },
}

/// Why a text is no location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no place for a repository: {problem}")]
pub struct ParseLocationError {
    text: String,
    problem: &'static str,
}

impl Diagnose for ParseLocationError {
    fn hint(&self) -> Option<String> {
        Some("give a directory (/srv/pgmahout, ./backups) or s3://BUCKET/PREFIX".to_owned())
    }

    fn outcome(&self) -> Outcome {
        Outcome::Usage
    }
}

impl std::str::FromStr for Location {
    type Err = ParseLocationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |problem| {
            Err(ParseLocationError {
                text: text.to_owned(),
                problem,
            })
        };
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.trim_matches('/');
            if bucket.is_empty() {
                return refuse("the bucket is missing");
            }
            if !prefix.is_empty() && super::name::check(prefix).is_err() {
                return refuse("the prefix has characters other than letters, digits and . _ - = + @ , /");
            }
            return Ok(Self::S3 {
                bucket: bucket.to_owned(),
                prefix: prefix.to_owned(),
            });
        }
        if let Some(path) = text.strip_prefix("file://") {
            return if path.starts_with('/') {
                Ok(Self::Directory(PathBuf::from(path)))
            } else {
                refuse("after file:// an absolute path must follow")
            };
        }
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text.contains("://") {
            return refuse("only s3:// and file:// are known");
        }
        Ok(Self::Directory(PathBuf::from(text)))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(formatter, "{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(formatter, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(formatter, "s3://{bucket}/{prefix}"),
        }
    }
}

/// Everything about one repository: an element of `repository:` in the configuration file.
#[derive(Debug, Clone)]
pub struct RepositorySettings {
    /// Its name, for people and `--repo`.
    pub name: String,
    /// Where it is.
    pub storage: StorageSettings,
    /// What opens it; `None` for a repository in the clear.
    pub encryption: Option<EncryptionSettings>,
    /// How new objects are compressed when the command does not say.
    pub compression: Codec,
    /// Whether it is promised that one host alone writes to it, for storages that cannot create an object only
    /// where none is.
    pub single_writer: bool,
    /// The most bytes per second that uploads and downloads together may move; `None` for no limit.
    pub bandwidth_limit: Option<NonZeroU64>,
}

impl RepositorySettings {
    /// A repository at a location, in the clear, with all defaults. S3 credentials, region and endpoint come
    /// from the environment; see [`S3Settings::new`].
    pub fn at(name: impl Into<String>, location: Location) -> Self {
        let storage = match location {
            Location::Directory(path) => StorageSettings::Local { path },
            Location::S3 { bucket, prefix } => StorageSettings::S3(S3Settings {
                prefix,
                ..S3Settings::new(bucket)
            }),
        };
        Self {
            name: name.into(),
            storage,
            encryption: None,
            compression: Codec::default(),
            single_writer: false,
            bandwidth_limit: None,
        }
    }

    /// Where it is, as a person would type it.
    pub fn location(&self) -> Location {
        match &self.storage {
            StorageSettings::Local { path } => Location::Directory(path.clone()),
            StorageSettings::S3(s3) => Location::S3 {
                bucket: s3.bucket.clone(),
                prefix: s3.prefix.clone(),
            },
        }
    }
}

/// `type: local` or `type: s3`.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "there are a handful of repositories, not thousands"
)]
pub enum StorageSettings {
    /// A directory of a file system.
    Local {
        /// The directory. Made on the first write; its parent must exist.
        path: PathBuf,
    },
    /// S3 or what speaks its protocol.
    S3(S3Settings),
}

/// How to reach a bucket.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// The bucket.
    pub bucket: String,
    /// What stands before every object's name; empty for nothing.
    pub prefix: String,
    /// The server's URL; `None` for AWS. `http://` is taken at its word.
    pub endpoint: Option<String>,
    /// The region; `None` for `us-east-1`, which most compatible servers accept.
    pub region: Option<String>,
    /// Whether the bucket stands in the path (`https://host/bucket/key`) instead of the host's name. `None`:
    /// in the path when there is an endpoint.
    pub path_style: Option<bool>,
    /// The access key.
    pub access_key: Option<SecretReference>,
    /// Its secret.
    pub secret_key: Option<SecretReference>,
    /// The token of a temporary access key.
    pub session_token: Option<SecretReference>,
    /// A file of CA certificates in PEM, trusted beside the system's.
    pub ca_cert: Option<PathBuf>,
    /// How long to wait and to try.
    pub patience: Patience,
}

impl S3Settings {
    /// A bucket, with everything else from AWS's environment variables where they are set:
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION` (or
    /// `AWS_DEFAULT_REGION`), `AWS_ENDPOINT_URL_S3` (or `AWS_ENDPOINT_URL`), `AWS_CA_BUNDLE`.
    pub fn new(bucket: impl Into<String>) -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let secret = |name: &str| variable(name).map(|_| SecretReference::Environment(name.to_owned()));
        Self {
            bucket: bucket.into(),
            prefix: String::new(),
            endpoint: variable("AWS_ENDPOINT_URL_S3").or_else(|| variable("AWS_ENDPOINT_URL")),
            region: variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")),
            path_style: None,
            access_key: secret("AWS_ACCESS_KEY_ID"),
            secret_key: secret("AWS_SECRET_ACCESS_KEY"),
            session_token: secret("AWS_SESSION_TOKEN"),
            ca_cert: variable("AWS_CA_BUNDLE").map(PathBuf::from),
            patience: Patience::default(),
        }
    }
}

/// How long operations on S3 may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For one request, upload of a part included.
    pub request: Duration,
    /// For the next bytes of an answer.
    pub stall: Duration,
    /// For all attempts of one request together: no new attempt begins after it.
    pub retry: Duration,
}

impl Default for Patience {
    /// 5 s to connect, 2 min per request, 30 s for the next bytes, 3 min for all attempts.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Duration::from_mins(2),
            stall: Duration::from_secs(30),
            retry: Duration::from_mins(3),
        }
    }
}

/// What opens an encrypted repository.
#[derive(Debug, Clone)]
pub enum EncryptionSettings {
    /// A passphrase.
    Passphrase(SecretReference),
    /// A key file; see [`crate::seal::read_key_file`].
    KeyFile(PathBuf),
    /// A program that prints a key of 32 bytes as hexadecimal digits or base64, for a KMS.
    Command {
        /// The program.
        program: String,
        /// Its arguments.
        arguments: Vec<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_as_people_write_them() {
        let s3 = |bucket: &str, prefix: &str| Location::S3 {
            bucket: bucket.into(),
            prefix: prefix.into(),
        };
        let directory = |path: &str| Location::Directory(path.into());
        for (text, expected) in [
            ("s3://backups", s3("backups", "")),
            ("s3://backups/", s3("backups", "")),
            ("s3://backups/pg/main/", s3("backups", "pg/main")),
            ("/srv/pgmahout", directory("/srv/pgmahout")),
            ("backups", directory("backups")),
            ("file:///srv/x", directory("/srv/x")),
        ] {
            assert_eq!(text.parse::<Location>().unwrap(), expected, "{text}");
            assert_eq!(expected.to_string().parse::<Location>().unwrap(), expected);
        }
        for text in [
            "",
            "s3://",
            "s3:///prefix",
            "gs://bucket",
            "file://relative",
            "s3://bucket/a//b",
            "s3://b/ä",
        ] {
            let error = text.parse::<Location>().unwrap_err();
            assert!(error.hint().unwrap().contains("s3://BUCKET"), "{text}");
        }
    }
}
