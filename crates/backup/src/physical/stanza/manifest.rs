//! Writing and reading manifests.
//!
//! A manifest is written line by line into frames of 1 MiB and stored as one object; it is read the same way. In
//! memory it is compressed (about 60 bytes per file), and one frame of it is not.

use std::io::{self, BufRead, Read, Write};

use bytes::Bytes;
use pgmahout_store::framed::{FramedBuilder, FramedError, FramedOpener, Frames};
use pgmahout_store::repository::{CreateOutcome, PutMode};
use pgmahout_types::repository::manifest::{End, Entry, Header, ManifestError, PackEntry, Work};
use pgmahout_types::repository::{BackupEntry, Digest, Label, Manifest, ManifestReader, ManifestWriter};
use tokio_util::sync::CancellationToken;

use super::error::StanzaError;
use super::names::kind;
use super::protocol::References;
use super::{PhysicalRepository, SMALL_CODEC};

/// Raw bytes in a frame.
const FRAME: usize = 1 << 20;

/// Objects up to this are put in one piece.
const ONE_PIECE: usize = 64 << 20;

/// A manifest that is being made. For one thread; nothing is stored before
/// [`PhysicalRepository::write_manifest`].
pub struct ManifestBuilder {
    writer: ManifestWriter<FrameWriter>,
    header: Header,
    repository: PhysicalRepository,
    name: String,
}

/// A manifest that is complete, and not stored yet.
#[derive(Debug, Clone)]
pub struct FinishedManifest {
    /// Its first line.
    pub header: Header,
    /// Its last line, and the packs.
    pub end: End,
    /// The digest of the object.
    pub digest: Digest,
    object: Bytes,
}

impl FinishedManifest {
    /// What the head is to say of the backup.
    pub fn entry(&self) -> BackupEntry {
        BackupEntry::new(&self.header, &self.end, self.digest)
    }

    /// What the backup is made of.
    pub fn references(&self) -> References {
        References::of(&self.header, &self.end)
    }

    /// Bytes of the object.
    pub fn stored(&self) -> u64 {
        self.object.len() as u64
    }
}

impl ManifestBuilder {
    /// Writes the line of an entry.
    ///
    /// # Errors
    ///
    /// When the entry does not fit the header.
    pub fn write(&mut self, entry: &Entry) -> Result<(), StanzaError> {
        self.writer
            .write(entry)
            .map_err(|error| self.repository.format(&self.name, error))
    }

    /// Writes the last line.
    ///
    /// # Errors
    ///
    /// When an entry names a pack that is not among these.
    pub fn finish(self, packs: Vec<PackEntry>, work: Work) -> Result<FinishedManifest, StanzaError> {
        let Self {
            writer,
            header,
            repository,
            name,
        } = self;
        let (output, end) = writer
            .finish(packs, work)
            .map_err(|error| repository.format(&name, error))?;
        let object = output
            .finish()
            .map_err(|source| repository.framed(&name, source))?;
        Ok(FinishedManifest {
            header,
            end,
            digest: Digest::of(&object),
            object,
        })
    }
}

impl PhysicalRepository {
    /// Begins a manifest.
    ///
    /// # Errors
    ///
    /// When the cryptographic library fails.
    pub fn manifest_builder(&self, header: Header) -> Result<ManifestBuilder, StanzaError> {
        let name = self.names().manifest(header.label);
        let builder = FramedBuilder::new(&self.cipher(), kind::MANIFEST, &name, FRAME)
            .map_err(|source| self.framed(&name, source))?;
        let output = FrameWriter {
            builder,
            buffer: Vec::with_capacity(FRAME),
        };
        let writer = ManifestWriter::new(output, &header).map_err(|error| self.format(&name, error))?;
        Ok(ManifestBuilder {
            writer,
            header,
            repository: self.clone(),
            name,
        })
    }

    /// Stores a manifest. The backup does not exist before [`PhysicalRepository::publish`].
    ///
    /// # Errors
    ///
    /// What the storage says; also when there is another manifest of that label.
    pub async fn write_manifest(&self, manifest: &FinishedManifest) -> Result<(), StanzaError> {
        let name = self.names().manifest(manifest.header.label);
        let object = manifest.object.clone();
        if object.len() <= ONE_PIECE {
            return match self.repository().create_once(&name, object).await? {
                CreateOutcome::Created => Ok(()),
                CreateOutcome::AlreadyThere => {
                    Err(self.format(&name, "another manifest of this name is there already"))
                }
            };
        }
        let mut writer = self
            .repository()
            .writer(&name, PutMode::Create, &CancellationToken::new())
            .await?;
        let subject = pgmahout_store::Subject {
            repository: self.description(),
            object: name,
            action: pgmahout_store::Action::Write,
        };
        blocking(move || {
            writer
                .write_all(&object)
                .map_err(|error| pgmahout_store::StoreError::from_io(error, subject))?;
            writer.publish()
        })
        .await?;
        Ok(())
    }

    /// Fetches a manifest, to be read line by line. With the digest that the head gives, another manifest in its
    /// place is noticed.
    ///
    /// # Errors
    ///
    /// [`StanzaError::Store`] with not found; what else is wrong with the object.
    pub async fn fetch_manifest(
        &self,
        label: Label,
        digest: Option<Digest>,
    ) -> Result<StoredManifest, StanzaError> {
        let name = self.names().manifest(label);
        let reader = self.repository().reader(&name, &CancellationToken::new()).await?;
        let subject = pgmahout_store::Subject {
            repository: self.description(),
            object: name.clone(),
            action: pgmahout_store::Action::Read,
        };
        let mut reader = reader;
        let object = blocking(move || {
            let mut object = Vec::new();
            match reader.read_to_end(&mut object) {
                Ok(_) => Ok(object),
                Err(error) => Err(pgmahout_store::StoreError::from_io(error, subject)),
            }
        })
        .await?;
        if digest.is_some_and(|digest| digest != Digest::of(&object)) {
            return Err(self.format(&name, "it is not the one that the list of backups names"));
        }
        let opener = match FramedOpener::from_header(&self.cipher(), kind::MANIFEST, &name, &object) {
            Err(FramedError::UnknownKey { .. }) => {
                let cipher = self.reload_cipher().await?;
                FramedOpener::from_header(&cipher, kind::MANIFEST, &name, &object)
            }
            opened => opened,
        }
        .map_err(|source| self.framed(&name, source))?;
        Ok(StoredManifest {
            repository: self.clone(),
            name,
            opener,
            object,
        })
    }

    /// Reads the manifest of a backup into memory: a few hundred bytes per file.
    ///
    /// # Errors
    ///
    /// As [`PhysicalRepository::fetch_manifest`] and [`StoredManifest::reader`].
    pub async fn read_manifest(&self, label: Label) -> Result<Manifest, StanzaError> {
        let stored = self.fetch_manifest(label, None).await?;
        blocking(move || {
            let read = Manifest::read(stored.input());
            read.map_err(|error| stored.repository.manifest_error(&stored.name, error))
        })
        .await
    }

    /// Reads only the first and the last line of a manifest, and makes sure that what is between is whole.
    ///
    /// # Errors
    ///
    /// As [`PhysicalRepository::read_manifest`].
    pub async fn read_manifest_ends(
        &self,
        label: Label,
        digest: Option<Digest>,
    ) -> Result<(Header, End), StanzaError> {
        let stored = self.fetch_manifest(label, digest).await?;
        blocking(move || stored.ends()).await
    }

    /// An error of reading a manifest, with a damaged frame told as such.
    pub fn manifest_error(&self, name: &str, error: ManifestError) -> StanzaError {
        match error {
            ManifestError::Read { line, source } => match source.downcast::<FramedError>() {
                Ok(source) => self.framed(name, source),
                Err(source) => self.format(name, ManifestError::Read { line, source }),
            },
            error => self.format(name, error),
        }
    }
}

/// A manifest's object, in memory as it is stored.
pub struct StoredManifest {
    repository: PhysicalRepository,
    name: String,
    opener: FramedOpener,
    object: Vec<u8>,
}

impl StoredManifest {
    /// The object's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Begins to read it line by line. Map what it says with [`PhysicalRepository::manifest_error`].
    ///
    /// # Errors
    ///
    /// When the first line cannot be read.
    pub fn reader(&self) -> Result<ManifestReader<FrameReader<'_>>, StanzaError> {
        ManifestReader::new(self.input()).map_err(|error| self.repository.manifest_error(&self.name, error))
    }

    /// Reads all of it, for its first and last line.
    ///
    /// # Errors
    ///
    /// When anything of it is wrong.
    pub fn ends(&self) -> Result<(Header, End), StanzaError> {
        self.reader()?
            .into_ends()
            .map_err(|error| self.repository.manifest_error(&self.name, error))
    }

    fn input(&self) -> FrameReader<'_> {
        FrameReader {
            frames: self.opener.frames(&self.object),
            buffer: Vec::new(),
            at: 0,
        }
    }
}

/// The content of a manifest's object.
pub struct FrameReader<'object> {
    frames: Frames<'object>,
    buffer: Vec<u8>,
    at: usize,
}

impl Read for FrameReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(out.len());
        out[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for FrameReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.buffer.len() {
            self.at = 0;
            if !self
                .frames
                .next_into(&mut self.buffer)
                .map_err(io::Error::other)?
            {
                break;
            }
        }
        Ok(&self.buffer[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at = (self.at + count).min(self.buffer.len());
    }
}

/// Cuts what is written into frames.
struct FrameWriter {
    builder: FramedBuilder,
    buffer: Vec<u8>,
}

impl FrameWriter {
    fn finish(self) -> Result<Bytes, FramedError> {
        self.builder.finish(&self.buffer, SMALL_CODEC)
    }
}

impl Write for FrameWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == FRAME {
            self.builder
                .push(SMALL_CODEC, &self.buffer)
                .map_err(io::Error::other)?;
            self.buffer.clear();
        }
        let count = bytes.len().min(FRAME - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs blocking work on a thread for that. A panic there goes on here.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and nobody will see the result.
            Err(_) => std::future::pending().await,
        },
    }
}
