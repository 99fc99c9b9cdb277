//! What a receiver has that no repository has yet, for a restore: whole segments that are not stored, and the one
//! that was being received.
//!
//! Nothing here is written, and a receiver that still runs is not disturbed: its files only grow.

use std::fs;
use std::io::{self, Read as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use pgmahout_durable::write_atomically;
use pgmahout_postgres::params::{Host, HostTarget};
use pgmahout_types::wal::WalPageHeader;
use pgmahout_types::{Lsn, SegmentName, SegmentSize, SystemIdentifier, WalFileName};
use serde::{Deserialize, Serialize};

use super::super::error::WalError;
use super::segment::names_in;

/// The note about the server.
const NOTE: &str = "server.json";
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// The first page of a segment.
const PAGE: u64 = 8192;

/// From which server a receiver receives; beside its segments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerNote {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// Where it was reached: a name, an address or the directory of a socket.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl std::fmt::Display for ServerNote {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.host, self.port)
    }
}

impl ServerNote {
    /// That of a server that was reached.
    pub(super) fn new(system_identifier: SystemIdentifier, host: &Host) -> Self {
        Self {
            system_identifier,
            host: match &host.target {
                HostTarget::Address { address, .. } => address.clone(),
                _ => host.name(),
            },
            port: host.port,
        }
    }

    /// Notes it beside the segments. Another cluster's segments are left alone.
    pub(super) fn write(&self, directory: &Path) -> Result<Option<Self>, WalError> {
        let before = read_note(directory);
        if before.as_ref() == Some(self) {
            return Ok(None);
        }
        if let Some(before) = before
            && before.system_identifier != self.system_identifier
            && !names_in(directory)?.is_empty()
        {
            return Ok(Some(before));
        }
        let text = serde_json::to_vec(self).unwrap_or_default();
        write_atomically(directory.join(NOTE), &text, 0o600)?;
        Ok(None)
    }

    /// Whether a PostgreSQL server answers there. It may be starting, or full: any answer counts. Blocks for some
    /// seconds at most.
    pub fn answers(&self) -> bool {
        if self.host.starts_with('/') {
            let path = Path::new(&self.host).join(format!(".s.PGSQL.{}", self.port));
            return UnixStream::connect(path).is_ok_and(|stream| {
                let _ = stream.set_read_timeout(Some(PATIENCE));
                speaks(stream)
            });
        }
        let Ok(addresses) = (self.host.as_str(), self.port).to_socket_addrs() else {
            return false;
        };
        addresses.into_iter().any(|address| {
            TcpStream::connect_timeout(&address, PATIENCE).is_ok_and(|stream| {
                let _ = stream.set_read_timeout(Some(PATIENCE));
                speaks(stream)
            })
        })
    }
}

/// Whether the other end answers a request for TLS as PostgreSQL does, with one letter (documentation, "SSL Session
/// Encryption"). What merely forwards to a server that is gone does not.
fn speaks(mut stream: impl io::Read + io::Write) -> bool {
    const REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let mut answer = [0];
    stream.write_all(&REQUEST).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && b"SNE".contains(&answer[0])
}

/// A segment that a receiver has.
#[derive(Debug, Clone)]
pub struct LeftSegment {
    /// Its name.
    pub name: SegmentName,
    /// The file.
    pub path: PathBuf,
    /// Where what was received ends.
    pub end: Lsn,
    /// When it was last written.
    pub at: Timestamp,
    /// Whether all of it is there.
    pub is_whole: bool,
}

impl LeftSegment {
    /// Its content, filled with zeros where it is not whole.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read(&self, size: SegmentSize) -> io::Result<Vec<u8>> {
        let mut content = match fs::read(&self.path) {
            // It has become whole since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::read(self.path.with_file_name(self.name.to_string()))?
            }
            other => other?,
        };
        content.resize(size.bytes() as usize, 0);
        Ok(content)
    }
}

/// What a receiver has left in its directory.
#[derive(Debug, Clone, Default)]
pub struct LeftWal {
    /// The server that it received from.
    pub server: Option<ServerNote>,
    /// The segments, in their order.
    pub segments: Vec<LeftSegment>,
    /// Files of another cluster, or that are no WAL.
    pub foreign: Vec<WalFileName>,
}

impl LeftWal {
    /// Looks into a directory for the WAL of a cluster. Blocks.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub fn look(directory: &Path, system: SystemIdentifier, size: SegmentSize) -> Result<Self, WalError> {
        let mut left = Self {
            server: read_note(directory),
            ..Self::default()
        };
        for file in names_in(directory)? {
            let (name, is_whole) = match file {
                WalFileName::Segment(name) => (name, true),
                WalFileName::Partial(name) => (name, false),
                _ => continue,
            };
            let path = directory.join(file.to_string());
            match segment(&path, name, is_whole, system, size) {
                Ok(Some(segment)) => left.segments.push(segment),
                Ok(None) => left.foreign.push(file),
                // It became whole, or was stored, since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(WalError::Io {
                        doing: "read",
                        path,
                        source,
                    });
                }
            }
        }
        Ok(left)
    }
}

fn segment(
    path: &Path,
    name: SegmentName,
    is_whole: bool,
    system: SystemIdentifier,
    size: SegmentSize,
) -> io::Result<Option<LeftSegment>> {
    let file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    let mut page = Vec::new();
    file.take(PAGE).read_to_end(&mut page)?;
    let ours = WalPageHeader::parse(&page).is_ok_and(|header| {
        header.system_identifier == system && header.segment_size == size && header.check_name(name).is_ok()
    });
    let length = metadata.len().min(size.bytes());
    let Some(start) = name.start(size).ok().filter(|_| ours && length > 0) else {
        return Ok(None);
    };
    Ok(Some(LeftSegment {
        name,
        path: path.to_owned(),
        end: Lsn::new(start.as_u64() + length),
        at: Timestamp::try_from(metadata.modified()?).unwrap_or(Timestamp::UNIX_EPOCH),
        is_whole: is_whole && length == size.bytes(),
    }))
}

pub(super) fn read_note(directory: &Path) -> Option<ServerNote> {
    serde_json::from_slice(&fs::read(directory.join(NOTE)).ok()?).ok()
}
