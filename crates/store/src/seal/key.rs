//! Keys, passphrases and key files.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use aws_lc_rs::{hkdf, rand};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::SealError;
use crate::digest::hexadecimal;

/// Bytes of a key.
pub(super) const KEY_LENGTH: usize = 32;
/// No key file is longer than this: 64 hexadecimal digits and some white space.
const LONGEST_KEY_FILE: u64 = 256;

/// A symmetric key of 256 bits: that of a file, of a repository, or of a key file. Overwritten in memory
/// when dropped; never printed.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Key([u8; KEY_LENGTH]);

impl Key {
    /// A new random key.
    ///
    /// # Errors
    ///
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, SealError> {
        Ok(Self(random()?))
    }

    /// From its bytes.
    pub fn from_bytes(bytes: [u8; KEY_LENGTH]) -> Self {
        Self(bytes)
    }

    /// From key material as key files and key commands give it: 32 raw bytes, 64 hexadecimal digits, or
    /// base64 (44 characters, or 43 without padding; the URL alphabet too), with white space around the text
    /// forms ignored.
    ///
    /// # Errors
    ///
    /// [`SealError::NotAKey`].
    pub fn from_material(material: &[u8]) -> Result<Self, SealError> {
        if let Ok(raw) = <[u8; KEY_LENGTH]>::try_from(material) {
            return Ok(Self(raw));
        }
        let text = material.trim_ascii();
        let decoded = match text.len() {
            64 => decode_hexadecimal(text),
            43 | 44 => decode_base64(text),
            _ => None,
        };
        decoded.map(|bytes| Self(*bytes)).ok_or(SealError::NotAKey)
    }

    /// The key's bytes, for whoever stores it.
    pub fn as_bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }

    /// A key for one purpose: `HKDF-SHA256(salt, this key, purpose)`.
    pub(crate) fn derive(&self, salt: &[u8], purpose: &str) -> Result<Self, SealError> {
        let failed = |_| SealError::Crypto {
            operation: "deriving a key",
        };
        let mut derived = Self([0; KEY_LENGTH]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
            .extract(&self.0)
            .expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
            .map_err(failed)?
            .fill(&mut derived.0)
            .map_err(failed)?;
        Ok(derived)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key(***)")
    }
}

/// Random bytes of the system.
pub(crate) fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], SealError> {
    let mut bytes = [0; LENGTH];
    rand::fill(&mut bytes).map_err(|_| SealError::Crypto {
        operation: "random numbers",
    })?;
    Ok(bytes)
}

/// How hard a passphrase is to try: Argon2id's parameters (RFC 9106).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argon2Parameters {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for Argon2Parameters {
    /// 64 MiB, 3 passes, 4 lanes: RFC 9106's second recommended option (section 4).
    fn default() -> Self {
        Self {
            memory_kib: 64 * 1024,
            passes: 3,
            lanes: 4,
        }
    }
}

impl Argon2Parameters {
    const MOST_MEMORY_KIB: u32 = 256 * 1024;
    const MOST_PASSES: u32 = 16;
    const MOST_LANES: u32 = 8;
    const MOST_WORK_KIB: u64 = 2 * 1024 * 1024;

    /// Refuses what a hostile header could use to eat memory or time.
    pub(super) fn check(self) -> Result<(), SealError> {
        let Self {
            memory_kib,
            passes,
            lanes,
        } = self;
        let sane = (1..=Self::MOST_LANES).contains(&lanes)
            && (8 * lanes..=Self::MOST_MEMORY_KIB).contains(&memory_kib)
            && (1..=Self::MOST_PASSES).contains(&passes)
            && u64::from(memory_kib) * u64::from(passes) <= Self::MOST_WORK_KIB;
        if sane {
            Ok(())
        } else {
            Err(SealError::UnreasonableParameters {
                memory_kib,
                passes,
                lanes,
            })
        }
    }

    /// The key that a passphrase gives with a salt.
    pub(super) fn derive(self, passphrase: &str, salt: &[u8]) -> Result<Key, SealError> {
        self.check()?;
        let failed = |_| SealError::Crypto {
            operation: "argon2id",
        };
        let parameters = argon2::Params::new(self.memory_kib, self.passes, self.lanes, Some(KEY_LENGTH))
            .map_err(failed)?;
        let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, parameters);
        let mut key = Key([0; KEY_LENGTH]);
        argon2
            .hash_password_into(passphrase.as_bytes(), salt, &mut key.0)
            .map_err(failed)?;
        Ok(key)
    }
}

/// What opens a key slot.
#[derive(Clone)]
pub enum Credential {
    /// A passphrase, through Argon2id.
    Passphrase(Zeroizing<String>),
    /// The key in a key file.
    KeyFile(Key),
    /// The key that a program printed.
    Command(Key),
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Passphrase(_) => "Passphrase(***)",
            Self::KeyFile(_) => "KeyFile(***)",
            Self::Command(_) => "Command(***)",
        })
    }
}

/// The keys at hand. A sealer makes one slot for each passphrase and key file; an opener tries them all.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    pub(super) keys: Vec<Key>,
    pub(super) credentials: Vec<Credential>,
    pub(super) argon2: Argon2Parameters,
}

impl Keyring {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One passphrase.
    ///
    /// # Errors
    ///
    /// When it is empty.
    pub fn from_passphrase(passphrase: &str) -> Result<Self, SealError> {
        Self::new().with_passphrase(passphrase)
    }

    /// One key file; see [`read_key_file`].
    ///
    /// # Errors
    ///
    /// When it cannot be read, holds no key, or others may read it.
    pub fn from_key_file(path: &Path) -> Result<Self, SealError> {
        Ok(Self::new().with_credential(Credential::KeyFile(read_key_file(path)?)))
    }

    /// A repository's key: files are sealed with it directly, without slots.
    pub fn from_repository_key(key: Key) -> Self {
        Self {
            keys: vec![key],
            ..Self::default()
        }
    }

    /// The same, with one more passphrase.
    ///
    /// # Errors
    ///
    /// When it is empty.
    pub fn with_passphrase(self, passphrase: &str) -> Result<Self, SealError> {
        if passphrase.is_empty() {
            return Err(SealError::EmptyPassphrase);
        }
        Ok(self.with_credential(Credential::Passphrase(Zeroizing::new(passphrase.to_owned()))))
    }

    /// The same, with one more credential.
    pub fn with_credential(mut self, credential: Credential) -> Self {
        self.credentials.push(credential);
        self
    }

    /// The same, with one more repository key that opens objects. The first one given seals.
    pub fn with_repository_key(mut self, key: Key) -> Self {
        self.keys.push(key);
        self
    }

    /// The same, with other parameters for the passphrase slots of what is sealed. What is opened has its own.
    pub fn with_argon2(mut self, parameters: Argon2Parameters) -> Self {
        self.argon2 = parameters;
        self
    }

    /// The passphrases and keys that open slots.
    pub fn credentials(&self) -> &[Credential] {
        &self.credentials
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.credentials.is_empty()
    }
}

/// Reads a key file: see [`Key::from_material`].
///
/// # Errors
///
/// When it cannot be read, when it holds no key, or when users other than its owner and group may read or
/// write it.
pub fn read_key_file(path: &Path) -> Result<Key, SealError> {
    let failed = |source| SealError::KeyFile {
        action: "read",
        path: path.to_path_buf(),
        source,
    };
    let file = fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    if metadata.is_file() && mode & 0o007 != 0 {
        return Err(SealError::KeyFileExposed {
            path: path.to_path_buf(),
            mode,
        });
    }
    let mut content = Zeroizing::new(Vec::with_capacity(LONGEST_KEY_FILE as usize + 1));
    file.take(LONGEST_KEY_FILE + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    Key::from_material(&content).map_err(|_| SealError::NotAKeyFile {
        path: path.to_path_buf(),
    })
}

/// Makes a key file with a new random key, as 64 hexadecimal digits (so that it can be printed and kept in a
/// safe), readable by its owner alone, and gives the key. Never overwrites.
///
/// # Errors
///
/// When the file exists or cannot be written; then no file is left that was not there before.
pub fn generate_key_file(path: &Path) -> Result<Key, SealError> {
    let failed = |source| SealError::KeyFile {
        action: "create",
        path: path.to_path_buf(),
        source,
    };
    let key = Key::generate()?;
    let mut text = Zeroizing::new(hexadecimal(key.as_bytes()));
    text.push('\n');
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            pgmahout_durable::sync_directory(directory.unwrap_or(Path::new("."))).map_err(io::Error::other)
        });
    if let Err(error) = written {
        // The file is ours: it was created above.
        let _ = fs::remove_file(path);
        return Err(failed(error));
    }
    Ok(key)
}

fn decode_hexadecimal(text: &[u8]) -> Option<Zeroizing<[u8; KEY_LENGTH]>> {
    let mut bytes = Zeroizing::new([0; KEY_LENGTH]);
    for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |character: u8| char::from(character).to_digit(16);
        *byte = (digit(digits[0])? * 16 + digit(digits[1])?) as u8;
    }
    Some(bytes)
}

/// 32 bytes from 43 characters of base64 (RFC 4648, both alphabets) and at most one `=`.
fn decode_base64(text: &[u8]) -> Option<Zeroizing<[u8; KEY_LENGTH]>> {
    let text = match text.len() {
        44 => text.strip_suffix(b"=")?,
        _ => text,
    };
    let mut bytes = Zeroizing::new([0; KEY_LENGTH]);
    let mut position = 0;
    let mut bits: u32 = 0;
    let mut count = 0;
    for &character in text {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            *bytes.get_mut(position)? = (bits >> count) as u8;
            position += 1;
            bits &= (1 << count) - 1;
        }
    }
    // 43 characters are 258 bits: two are left, and they must be zero.
    (position == KEY_LENGTH && bits == 0).then_some(bytes)
}
