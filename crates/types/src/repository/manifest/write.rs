//! Writing a manifest.

use std::io::{self, Write};

use serde::Serialize;

use super::entry::FileLine;
use super::{Content, End, Entry, Finding, Header, LONGEST_LINE, ManifestError, PackEntry, Work};

/// Writes a manifest line by line.
pub struct ManifestWriter<W> {
    output: W,
    hasher: blake3::Hasher,
    line: u64,
    text: Vec<u8>,
    /// The number of owners in the header.
    owners: usize,
    /// One more than the greatest number of a pack so far.
    packs: u64,
    end: End,
}

impl<W: Write> ManifestWriter<W> {
    /// Writes the first line. Its `format` is written as [`FORMAT`](super::FORMAT), whatever it says.
    ///
    /// # Errors
    /// When `output` fails.
    pub fn new(output: W, header: &Header) -> Result<Self, ManifestError> {
        let mut writer = Self {
            output,
            hasher: blake3::Hasher::new(),
            line: 0,
            text: Vec::with_capacity(4096),
            owners: header.owners.len(),
            packs: 0,
            end: End {
                digest: blake3::Hash::from_bytes([0; 32]).into(),
                files: 0,
                directories: 0,
                links: 0,
                findings: 0,
                bytes: 0,
                pack_count: 0,
                work: Work::default(),
                packs: Vec::new(),
            },
        };
        if header.format == super::FORMAT {
            writer.put(header)?;
        } else {
            let mut header = header.clone();
            header.format = super::FORMAT;
            writer.put(&header)?;
        }
        Ok(writer)
    }

    /// Writes the line of an entry.
    ///
    /// # Errors
    /// When `output` fails, or the entry names an owner that the header has not.
    pub fn write(&mut self, entry: &Entry) -> Result<(), ManifestError> {
        let owner = match entry {
            Entry::Directory(directory) => Some(directory.owner),
            Entry::File(file) => Some(file.owner),
            Entry::Link(_) | Entry::Finding(_) => None,
        };
        if owner.is_some_and(|owner| usize::try_from(owner).is_ok_and(|owner| owner >= self.owners)) {
            return Err(self.wrong("its owner is not in the list of the first line"));
        }
        match entry {
            Entry::Directory(directory) => {
                self.end.directories += 1;
                self.put(directory)
            }
            Entry::File(file) => {
                let empty = matches!(&file.content, Content::Inline(map) if map.is_empty());
                if empty != (file.size == 0) {
                    return Err(self.wrong("the file's content is not of its size"));
                }
                let packs = file.data_packs().chain(file.map_packs());
                let packs = packs.map(|pack| u64::from(pack) + 1).max();
                self.packs = self.packs.max(packs.unwrap_or_default());
                self.end.files += 1;
                self.end.bytes = self.end.bytes.saturating_add(file.size);
                self.put(&FileLine::from(file))
            }
            Entry::Link(link) => {
                self.end.links += 1;
                self.put(link)
            }
            Entry::Finding(finding) => {
                #[derive(Serialize)]
                struct FindingLine<'a> {
                    finding: &'a Finding,
                }
                self.end.findings += 1;
                self.put(&FindingLine { finding })
            }
        }
    }

    /// Writes the packs and the last line, and gives the output back, flushed.
    ///
    /// # Errors
    /// When `output` fails, or an entry named a pack that is not among these.
    pub fn finish(mut self, packs: Vec<PackEntry>, work: Work) -> Result<(W, End), ManifestError> {
        #[derive(Serialize)]
        struct EndLine<'a> {
            end: &'a End,
        }
        self.end.pack_count = u64::try_from(packs.len()).unwrap_or(u64::MAX);
        if self.packs > self.end.pack_count {
            return Err(self.wrong("a file is in a pack that is not in the list"));
        }
        for pack in &packs {
            self.put(pack)?;
        }
        self.end.digest = self.hasher.finalize().into();
        self.end.packs = packs;
        self.end.work = work;
        let end = self.end.clone();
        self.put(&EndLine { end: &end })?;
        match self.output.flush() {
            Ok(()) => Ok((self.output, end)),
            Err(source) => Err(ManifestError::Write {
                line: self.line,
                source,
            }),
        }
    }

    fn wrong(&self, problem: &'static str) -> ManifestError {
        ManifestError::Line {
            line: self.line + 1,
            problem,
        }
    }

    fn put(&mut self, line: &impl Serialize) -> Result<(), ManifestError> {
        self.line += 1;
        self.text.clear();
        let failed = |line, source| ManifestError::Write { line, source };
        serde_json::to_writer(&mut self.text, line)
            .map_err(|error| failed(self.line, io::Error::other(error)))?;
        self.text.push(b'\n');
        if self.text.len() > LONGEST_LINE {
            return Err(ManifestError::TooLong { line: self.line });
        }
        self.hasher.update(&self.text);
        self.output
            .write_all(&self.text)
            .map_err(|source| failed(self.line, source))
    }
}
