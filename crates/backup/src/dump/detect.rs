//! What kind of file this is, by its first bytes, never by its name.

use std::io::{self, Read};

use pgmahout_store::codec::{Codec, Decompressor};
use pgmahout_store::seal::{Context, Keyring, Opener, is_sealed};

/// How many first bytes are looked at.
const PEEK: usize = 64 * 1024;

/// The most layers of compression and encryption that are looked through.
const MOST_LAYERS: usize = 8;

/// What lies under compression and encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Payload {
    /// SQL for psql: of pg_dump, of pg_dumpall, or of pg_restore.
    Sql,
    /// `pg_dump -Fc`.
    Custom,
    /// A tar with `toc.dat` at its top: `pg_dump -Ft`, or the files of `pg_dump -Fd`.
    ArchiveTar,
    /// A tar of other files, which may be dumps.
    Tar,
    /// A directory of `pg_dump -Fd` on this machine.
    Directory,
}

impl Payload {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Sql => "plain SQL",
            Self::Custom => "custom archive",
            Self::ArchiveTar => "tar of an archive",
            Self::Tar => "tar of several files",
            Self::Directory => "directory archive",
        }
    }
}

/// One layer around the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layer {
    /// Encrypted by pgmahout.
    Sealed,
    /// Compressed.
    Compressed(Codec),
}

impl Layer {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Sealed => "encrypted",
            Self::Compressed(codec) => codec.name(),
        }
    }
}

/// What the first bytes of an unwrapped stream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// Another layer.
    Layer(Layer),
    /// The payload.
    Payload(Payload),
    /// Nothing at all.
    Empty,
    /// None of it.
    Unknown,
}

/// Looks at the first bytes. They should be all of a short stream, or some kilobytes.
pub fn look(first: &[u8]) -> First {
    if first.is_empty() {
        return First::Empty;
    }
    if is_sealed(first) {
        return First::Layer(Layer::Sealed);
    }
    let codec = Codec::detect(first);
    if codec != Codec::None {
        return First::Layer(Layer::Compressed(codec));
    }
    // The magic of src/bin/pg_dump/pg_backup_archiver.c.
    if first.starts_with(b"PGDMP") {
        return First::Payload(Payload::Custom);
    }
    if is_tar(first) {
        let name = &first[..100];
        let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(100)];
        let name = name.strip_prefix(b"./").unwrap_or(name);
        let is_archive = name == b"toc.dat";
        return First::Payload(if is_archive {
            Payload::ArchiveTar
        } else {
            Payload::Tar
        });
    }
    if looks_like_sql(first) {
        First::Payload(Payload::Sql)
    } else {
        First::Unknown
    }
}

/// A tar header: its checksum is right, as `isValidTarHeader` in `src/bin/pg_dump/pg_backup_tar.c` asks.
fn is_tar(first: &[u8]) -> bool {
    let Some(header) = first.get(..512) else {
        return false;
    };
    let field = String::from_utf8_lossy(&header[148..156])
        .trim_matches(['\0', ' '])
        .to_owned();
    let Ok(wanted) = u64::from_str_radix(&field, 8) else {
        return false;
    };
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(index, byte)| {
            if (148..156).contains(&index) {
                u64::from(b' ')
            } else {
                u64::from(*byte)
            }
        })
        .sum();
    sum == wanted && header[0] != 0
}

/// Text whose first line that says something is a comment or begins with a word of SQL or `\restrict`.
fn looks_like_sql(first: &[u8]) -> bool {
    if memchr::memchr(0, first).is_some() || first.starts_with(b"-----BEGIN") {
        return false;
    }
    let text = first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(first);
    let text = String::from_utf8_lossy(text);
    let Some(line) = text.lines().map(str::trim).find(|line| !line.is_empty()) else {
        return false;
    };
    if line.starts_with("--") || line.starts_with("/*") || line.starts_with('\\') {
        return true;
    }
    let word: String = line.chars().take_while(char::is_ascii_alphabetic).collect();
    matches!(
        word.to_ascii_uppercase().as_str(),
        "SET"
            | "SELECT"
            | "CREATE"
            | "ALTER"
            | "COPY"
            | "INSERT"
            | "BEGIN"
            | "DROP"
            | "GRANT"
            | "REVOKE"
            | "COMMENT"
            | "START"
            | "DO"
            | "UPDATE"
            | "DELETE"
            | "TRUNCATE"
    )
}

/// What bytes that are no dump look like, for the error.
pub fn describe_unknown(first: &[u8]) -> (String, String) {
    let magics: [(&[u8], &str, &str); 9] = [
        (
            b"PK\x03\x04",
            "a zip archive",
            "unzip it and restore the file in it",
        ),
        (
            b"BZh",
            "compressed with bzip2",
            "decompress it first: bzip2 -dk FILE",
        ),
        (
            b"\xfd7zXZ\x00",
            "compressed with xz",
            "decompress it first: xz -dk FILE",
        ),
        (
            b"7z\xbc\xaf\x27\x1c",
            "a 7z archive",
            "unpack it first: 7z x FILE",
        ),
        (
            b"-----BEGIN PGP",
            "encrypted with GnuPG",
            "decrypt it first: gpg --decrypt FILE",
        ),
        (
            b"age-encryption.org",
            "encrypted with age",
            "decrypt it first: age --decrypt FILE",
        ),
        (
            b"Salted__",
            "encrypted with openssl",
            "decrypt it first: openssl enc -d ...",
        ),
        (
            b"<",
            "HTML or XML: perhaps the error page of a download",
            "look at it: head FILE",
        ),
        (
            b"{",
            "JSON: perhaps a manifest",
            "name the dump, not its manifest",
        ),
    ];
    for (magic, what, hint) in magics {
        if first.starts_with(magic) {
            return (
                format!("its first bytes are those of a file that is {what}"),
                hint.to_owned(),
            );
        }
    }
    let shown: Vec<String> = first.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let text: String = first
        .iter()
        .take(16)
        .map(|byte| {
            if byte.is_ascii_graphic() || *byte == b' ' {
                char::from(*byte)
            } else {
                '.'
            }
        })
        .collect();
    (
        format!("its first bytes are {} (\"{text}\")", shown.join(" ")),
        "restore what pg_dump, pg_dumpall or pgmahout wrote: SQL, a custom, directory or tar archive, compressed with gzip, zstd or lz4, or a tar of these".to_owned(),
    )
}

/// A stream whose first bytes were looked at.
pub struct Peeked {
    first: Vec<u8>,
    position: usize,
    rest: Box<dyn Read + Send>,
}

impl Peeked {
    /// Reads the first bytes.
    ///
    /// # Errors
    /// When reading fails.
    pub fn new(mut rest: Box<dyn Read + Send>) -> io::Result<Self> {
        let mut first = vec![0; PEEK];
        let mut length = 0;
        while length < PEEK {
            match rest.read(&mut first[length..]) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        first.truncate(length);
        Ok(Self {
            first,
            position: 0,
            rest,
        })
    }

    /// The first bytes.
    pub fn first(&self) -> &[u8] {
        &self.first
    }
}

impl Read for Peeked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = &self.first[self.position..];
        if left.is_empty() {
            return self.rest.read(buffer);
        }
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.position += count;
        Ok(count)
    }
}

/// A stream without its layers.
pub struct Unwrapped {
    /// The layers, outermost first.
    pub layers: Vec<Layer>,
    /// What the inner bytes are.
    pub first: First,
    /// The inner bytes.
    pub stream: Peeked,
}

/// The context that dumps are sealed in.
pub(crate) fn seal_context() -> Context {
    Context::file("dump")
}

/// Takes all layers off. Blocks: deriving a key takes some tenths of a second.
///
/// # Errors
/// When reading fails, or a sealed layer does not open; see [`pgmahout_store::seal::SealError::of`].
pub fn unwrap(raw: Box<dyn Read + Send>, keyring: &Keyring) -> io::Result<Unwrapped> {
    let mut layers = Vec::new();
    let mut stream = Peeked::new(raw)?;
    loop {
        let first = look(stream.first());
        let First::Layer(layer) = first else {
            return Ok(Unwrapped {
                layers,
                first,
                stream,
            });
        };
        if layers.len() == MOST_LAYERS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "too many layers of compression or encryption",
            ));
        }
        layers.push(layer);
        let inner: Box<dyn Read + Send> = match layer {
            Layer::Sealed => Box::new(Opener::new(stream, keyring, &seal_context())?),
            Layer::Compressed(codec) => Box::new(Decompressor::new(codec, stream)?),
        };
        stream = Peeked::new(inner)?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use pgmahout_store::codec::Compressor;

    use super::*;

    fn tar_of(name: &str) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o600);
        header.set_cksum();
        builder.append_data(&mut header, name, &b"abc"[..]).unwrap();
        builder.into_inner().unwrap()
    }

    fn compressed(codec: Codec, bytes: &[u8]) -> Vec<u8> {
        let mut compressor = Compressor::new(codec, 1, Vec::new()).unwrap();
        compressor.write_all(bytes).unwrap();
        compressor.finish().unwrap()
    }

    #[test]
    fn kinds_are_told_by_content() {
        for (bytes, first) in [
            (b"".to_vec(), First::Empty),
            (b"PGDMP\x01\x0e".to_vec(), First::Payload(Payload::Custom)),
            (
                b"--\n-- PostgreSQL database dump\n--\n".to_vec(),
                First::Payload(Payload::Sql),
            ),
            (
                b"\n\nset client_encoding = 'UTF8';".to_vec(),
                First::Payload(Payload::Sql),
            ),
            (
                b"\xef\xbb\xbfCREATE TABLE t ();".to_vec(),
                First::Payload(Payload::Sql),
            ),
            (tar_of("toc.dat"), First::Payload(Payload::ArchiveTar)),
            (tar_of("backup/full.backup"), First::Payload(Payload::Tar)),
            (b"PK\x03\x04zip".to_vec(), First::Unknown),
            (b"hello world".to_vec(), First::Unknown),
            (b"-- text\0".to_vec(), First::Unknown),
            (vec![0; 1024], First::Unknown),
        ] {
            assert_eq!(
                look(&bytes),
                first,
                "{:?}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
            );
        }
    }

    #[test]
    fn layers_are_taken_off_in_any_order_and_number() {
        let sql = b"SELECT 1;\n".repeat(100_000);
        for codecs in [
            vec![],
            vec![Codec::GZIP],
            vec![Codec::ZSTD],
            vec![Codec::Lz4],
            vec![Codec::GZIP, Codec::ZSTD, Codec::GZIP],
        ] {
            let mut bytes = sql.clone();
            for codec in &codecs {
                bytes = compressed(*codec, &bytes);
            }
            let mut unwrapped = unwrap(Box::new(io::Cursor::new(bytes)), &Keyring::new()).unwrap();
            assert_eq!(unwrapped.layers.len(), codecs.len());
            assert_eq!(unwrapped.first, First::Payload(Payload::Sql));
            let mut content = Vec::new();
            unwrapped.stream.read_to_end(&mut content).unwrap();
            assert!(content == sql);
        }
    }

    #[test]
    fn what_is_no_dump_is_described_by_its_first_bytes() {
        assert!(describe_unknown(b"PK\x03\x04").0.contains("zip"));
        let (what, hint) = describe_unknown(&[1, 2, b'a', 0xff]);
        assert!(what.contains("01 02 61 ff"), "{what}");
        assert!(hint.contains("pg_dump"));
    }
}
