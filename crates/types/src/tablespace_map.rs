//! `tablespace_map`, which says what the links in `pg_tblspc` of a base backup point at.
//!
//! One line for each tablespace: its number, a blank, and the path, in which a backslash stands before
//! every line end, carriage return and backslash (`do_pg_backup_start` in
//! `src/backend/access/transam/xlog.c`; read by `read_tablespace_map` in `xlogrecovery.c`). A server that
//! finds the file makes the links anew before it recovers.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::diagnostic::Diagnose;
use crate::lsn::shortened;

#[cfg(test)]
mod tests;

/// Where the tablespaces of a base backup are, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TablespaceMap {
    links: Vec<TablespaceLink>,
}

/// One tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceLink {
    /// The tablespace's object identifier, which is the link's name in `pg_tblspc`.
    pub oid: u32,
    /// What the link points at.
    pub location: PathBuf,
}

impl TablespaceMap {
    /// The file's name in a data directory.
    pub const FILE_NAME: &'static str = "tablespace_map";

    /// From links that somebody chose, for example to restore tablespaces to other places.
    ///
    /// # Errors
    /// When a number is zero or occurs twice, or a path is empty or holds a zero byte.
    pub fn new(links: impl IntoIterator<Item = TablespaceLink>) -> Result<Self, TablespaceMapError> {
        let mut map = Self::default();
        for link in links {
            let location = link.location.as_os_str().as_bytes();
            if link.oid == 0 || location.is_empty() || location.contains(&0) {
                return Err(TablespaceMapError::Line {
                    line: map.links.len() + 1,
                    text: shortened(&link.location.to_string_lossy()),
                });
            }
            map.push(link)?;
        }
        Ok(map)
    }

    /// Reads the content of the file.
    ///
    /// # Errors
    /// Where the server would refuse it: a line without number or path, or one that does not end. A number
    /// that occurs twice and a path with a zero byte are refused too.
    pub fn parse(content: &[u8]) -> Result<Self, TablespaceMapError> {
        let mut map = Self::default();
        let mut line = Vec::new();
        let mut escaped = false;
        let mut number = 1;
        for &byte in content {
            match byte {
                b'\\' if !escaped => {
                    escaped = true;
                    continue;
                }
                b'\n' | b'\r' if !escaped => {
                    // Nothing stands between the two characters of a Windows line end.
                    if !line.is_empty() {
                        map.push(TablespaceLink::parse(&line, number)?)?;
                    }
                    number += 1;
                    line.clear();
                }
                _ => line.push(byte),
            }
            escaped = false;
        }
        if escaped || !line.is_empty() {
            return Err(TablespaceMapError::Unfinished);
        }
        Ok(map)
    }

    /// The content of the file, as the server writes it.
    pub fn render(&self) -> Vec<u8> {
        let mut content = Vec::new();
        for TablespaceLink { oid, location } in &self.links {
            content.extend_from_slice(oid.to_string().as_bytes());
            content.push(b' ');
            for &byte in location.as_os_str().as_bytes() {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    content.push(b'\\');
                }
                content.push(byte);
            }
            content.push(b'\n');
        }
        content
    }

    /// The tablespaces, in the order of the file.
    pub fn links(&self) -> &[TablespaceLink] {
        &self.links
    }

    fn push(&mut self, link: TablespaceLink) -> Result<(), TablespaceMapError> {
        if self.links.iter().any(|known| known.oid == link.oid) {
            return Err(TablespaceMapError::Twice { oid: link.oid });
        }
        self.links.push(link);
        Ok(())
    }
}

impl TablespaceLink {
    /// One line, without its end and its escapes.
    fn parse(line: &[u8], number: usize) -> Result<Self, TablespaceMapError> {
        let error = || TablespaceMapError::Line {
            line: number,
            text: shortened(&String::from_utf8_lossy(line)),
        };
        let blank = line.iter().position(|&byte| byte == b' ').ok_or_else(error)?;
        let (digits, location) = (&line[..blank], &line[blank + 1..]);
        let digits = std::str::from_utf8(digits)
            .ok()
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let oid = digits
            .and_then(|digits| digits.parse().ok())
            .filter(|&oid| oid != 0)
            .ok_or_else(error)?;
        if location.is_empty() || location.contains(&0) {
            return Err(error());
        }
        Ok(Self {
            oid,
            location: OsString::from_vec(location.to_vec()).into(),
        })
    }
}

/// Why a tablespace_map cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TablespaceMapError {
    /// A line that is not a number and a path.
    #[error("line {line} of tablespace_map has no tablespace number and path: {text:?}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// The line, or its beginning.
        text: String,
    },
    /// The last line does not end.
    #[error("tablespace_map is truncated in its last line")]
    Unfinished,
    /// A tablespace has two places.
    #[error("tablespace_map names tablespace {oid} twice")]
    Twice {
        /// The tablespace.
        oid: u32,
    },
}

impl Diagnose for TablespaceMapError {
    fn hint(&self) -> Option<String> {
        Some("take the file from the backup again, byte for byte as pg_backup_stop gave it".to_owned())
    }
}
