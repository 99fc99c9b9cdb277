//! Reading a manifest.

use std::io::{BufRead, Read};

use serde::Deserialize;

use super::entry::AnyLine;
use super::{Content, End, Entry, FORMAT, Header, LONGEST_LINE, ManifestError, PackEntry};

/// Reads a manifest line by line.
///
/// That it is whole is known only when [`ManifestReader::next_entry`] has given `None`: until then the
/// entries are to be taken as promises.
pub struct ManifestReader<R> {
    input: R,
    header: Header,
    hasher: blake3::Hasher,
    line: u64,
    text: Vec<u8>,
    /// One more than the greatest number of a pack that an entry named.
    packs: u64,
    /// What the last line must say.
    seen: Seen,
    known_packs: Vec<PackEntry>,
    end: Option<End>,
    /// Whether an error was given by the iterator, which then ends.
    failed: bool,
}

#[derive(Default, PartialEq, Eq)]
struct Seen {
    files: u64,
    directories: u64,
    links: u64,
    findings: u64,
    bytes: u64,
}

impl<R: BufRead> ManifestReader<R> {
    /// Reads the first line.
    ///
    /// # Errors
    /// When `input` fails, or its first line is not that of a manifest of a known version.
    pub fn new(input: R) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Format {
            manifest: u32,
        }
        let mut input = input;
        let mut text = Vec::with_capacity(4096);
        if !read_line(&mut input, &mut text, 1)? {
            return Err(ManifestError::Truncated { line: 0 });
        }
        let json = |source| ManifestError::Json { line: 1, source };
        let Format { manifest: format } = serde_json::from_slice(&text).map_err(json)?;
        if format != FORMAT {
            return Err(ManifestError::Format { format });
        }
        let header: Header = serde_json::from_slice(&text).map_err(json)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&text);
        Ok(Self {
            input,
            header,
            hasher,
            line: 1,
            text,
            packs: 0,
            seen: Seen::default(),
            known_packs: Vec::new(),
            end: None,
            failed: false,
        })
    }

    /// The first line.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The last line and the packs, once they were read.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// The next entry; `None` when the manifest has ended and was found whole.
    ///
    /// # Errors
    /// When the input fails, a line is wrong, or what was read is not what was written.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ManifestError> {
        while self.end.is_none() {
            if !read_line(&mut self.input, &mut self.text, self.line + 1)? {
                return Err(ManifestError::Truncated { line: self.line });
            }
            self.line += 1;
            // Most lines are files, whose key stands first because that is how they are written.
            if self.text.starts_with(b"{\"p\":") {
                let pack = self.parse()?;
                self.known_packs.push(pack);
            } else if self.text.starts_with(b"{\"end\":") {
                self.finish()?;
                break;
            } else {
                let line: AnyLine = self.parse()?;
                let entry = line.entry().map_err(|problem| self.wrong(problem))?;
                if let Some(entry) = entry {
                    self.note(&entry)?;
                    self.hasher.update(&self.text);
                    return Ok(Some(entry));
                }
            }
            self.hasher.update(&self.text);
        }
        Ok(None)
    }

    /// Reads what is left, for those who want only the ends.
    ///
    /// # Errors
    /// As [`ManifestReader::next_entry`].
    pub fn into_ends(mut self) -> Result<(Header, End), ManifestError> {
        while self.next_entry()?.is_some() {}
        let line = self.line;
        let end = self.end.ok_or(ManifestError::Truncated { line })?;
        Ok((self.header, end))
    }

    fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ManifestError> {
        serde_json::from_slice(&self.text).map_err(|source| ManifestError::Json {
            line: self.line,
            source,
        })
    }

    fn wrong(&self, problem: &'static str) -> ManifestError {
        ManifestError::Line {
            line: self.line,
            problem,
        }
    }

    /// Counts an entry and looks whether it fits the first line.
    fn note(&mut self, entry: &Entry) -> Result<(), ManifestError> {
        let owner = match entry {
            Entry::Directory(directory) => {
                self.seen.directories += 1;
                directory.owner
            }
            Entry::File(file) => {
                self.seen.files += 1;
                self.seen.bytes = self.seen.bytes.saturating_add(file.size);
                let packs = file.data_packs().chain(file.map_packs());
                let packs = packs.map(|pack| u64::from(pack) + 1).max();
                self.packs = self.packs.max(packs.unwrap_or_default());
                if matches!(&file.content, Content::Inline(map) if map.is_empty()) != (file.size == 0) {
                    return Err(self.wrong("the file's content is not of its size"));
                }
                file.owner
            }
            Entry::Link(_) => {
                self.seen.links += 1;
                return Ok(());
            }
            Entry::Finding(_) => {
                self.seen.findings += 1;
                return Ok(());
            }
        };
        if usize::try_from(owner).is_ok_and(|owner| owner < self.header.owners.len()) {
            Ok(())
        } else {
            Err(self.wrong("its owner is not in the list of the first line"))
        }
    }

    /// Reads the last line and compares.
    fn finish(&mut self) -> Result<(), ManifestError> {
        #[derive(Deserialize)]
        struct EndLine {
            end: End,
        }
        let EndLine { mut end } = self.parse()?;
        if end.digest != self.hasher.finalize().into() {
            return Err(ManifestError::Digest);
        }
        let said = Seen {
            files: end.files,
            directories: end.directories,
            links: end.links,
            findings: end.findings,
            bytes: end.bytes,
        };
        if said != self.seen {
            return Err(self.wrong("its numbers are not those of the lines before it"));
        }
        end.packs = std::mem::take(&mut self.known_packs);
        if u64::try_from(end.packs.len()) != Ok(end.pack_count) || self.packs > end.pack_count {
            return Err(self.wrong("a pack is missing in the lines before it"));
        }
        if read_line(&mut self.input, &mut self.text, self.line + 1)? {
            return Err(ManifestError::Line {
                line: self.line + 1,
                problem: "it stands behind the last line",
            });
        }
        self.end = Some(end);
        Ok(())
    }
}

impl<R: BufRead> Iterator for ManifestReader<R> {
    type Item = Result<Entry, ManifestError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_entry().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

/// Reads a line with its line end; false where there is none.
fn read_line(input: &mut impl BufRead, text: &mut Vec<u8>, line: u64) -> Result<bool, ManifestError> {
    text.clear();
    let limit = u64::try_from(LONGEST_LINE).unwrap_or(u64::MAX);
    input
        .by_ref()
        .take(limit)
        .read_until(b'\n', text)
        .map_err(|source| ManifestError::Read { line, source })?;
    match text.last() {
        None => Ok(false),
        Some(b'\n') => Ok(true),
        Some(_) if text.len() >= LONGEST_LINE => Err(ManifestError::TooLong { line }),
        Some(_) => Err(ManifestError::Truncated { line: line - 1 }),
    }
}

/// A manifest as a whole, in memory: a few hundred bytes per file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The first line.
    pub header: Header,
    /// The entries, in the order in which they stand.
    pub entries: Vec<Entry>,
    /// The last line, and the packs.
    pub end: End,
}

impl Manifest {
    /// Reads all of it.
    ///
    /// # Errors
    /// As [`ManifestReader`].
    pub fn read(input: impl BufRead) -> Result<Self, ManifestError> {
        let mut reader = ManifestReader::new(input)?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        entries.shrink_to_fit();
        let (header, end) = reader.into_ends()?;
        Ok(Self { header, entries, end })
    }
}
