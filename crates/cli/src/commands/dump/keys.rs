//! The keys of encrypted dumps: from a reference, a key file, the configuration, the repository, or a
//! person.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use pgmahout_backup::dump::create::Sealing;
use pgmahout_backup::dump::manifest::Encryption;
use pgmahout_config::Settings;
use pgmahout_config::secret::SecretReference;
use pgmahout_store::repository::{EncryptionSettings, Repository};
use pgmahout_store::seal::{Credential, Key, Keyring};
use pgmahout_types::diagnostic::Outcome;
use tokio_util::sync::CancellationToken;

use super::place;
use crate::failure::Failure;

/// What opens or seals a dump.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct KeyArgs {
    /// Where the passphrase is: file:PATH, env:NAME or command:PROGRAM ARGUMENTS.
    #[arg(long, value_name = "REFERENCE", conflicts_with_all = ["key_file", "passphrase_file"])]
    pub passphrase: Option<String>,

    /// The file that holds the passphrase; the same as --passphrase file:FILE.
    #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
    pub passphrase_file: Option<PathBuf>,

    /// The file that holds a key: 32 bytes, raw, hexadecimal or base64.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

impl KeyArgs {
    /// The keys that were given, or configured for dumps, without asking anybody; `None` for none.
    pub(crate) fn given(&self, settings: &Settings) -> Result<Option<(Keyring, &'static str)>, Failure> {
        if let Some(path) = &self.key_file {
            return Ok(Some((Keyring::from_key_file(path)?, "key-file")));
        }
        if let Some(path) = &self.passphrase_file {
            return Ok(Some((
                passphrase(&SecretReference::File(path.clone()))?,
                "passphrase",
            )));
        }
        if let Some(text) = &self.passphrase {
            let reference = SecretReference::parse(text)?;
            if matches!(reference, SecretReference::Literal(_)) {
                return Err(Failure::new(
                    Outcome::Usage,
                    "a passphrase on the command line can be read by every user of this machine",
                )
                .hint("use --passphrase file:PATH, env:NAME or command:PROGRAM"));
            }
            return Ok(Some((passphrase(&reference)?, "passphrase")));
        }
        match settings.dump.encryption.as_ref().map(place::encryption) {
            None => Ok(None),
            Some(EncryptionSettings::KeyFile(path)) => Ok(Some((Keyring::from_key_file(&path)?, "key-file"))),
            Some(EncryptionSettings::Passphrase(reference)) => {
                Ok(Some((passphrase(&reference)?, "passphrase")))
            }
            Some(EncryptionSettings::Command { program, arguments }) => {
                let secret = SecretReference::Command { program, arguments }.resolve()?;
                let key = Key::from_material(secret.expose().as_bytes())?;
                Ok(Some((
                    Keyring::new().with_credential(Credential::KeyFile(key)),
                    "key-file",
                )))
            }
        }
    }

    /// What seals a new dump: the repository's key in an encrypted repository; otherwise, when `--encrypt`
    /// or a key was given or one is configured, that; a passphrase is asked for when there is none.
    pub(crate) async fn sealing(
        &self,
        encrypt: bool,
        settings: &Settings,
        repository: Option<&Repository>,
    ) -> Result<Option<Sealing>, Failure> {
        if let Some(repository) = repository
            && let Some(keyring) = repository.keyring(&CancellationToken::new()).await?
        {
            return Ok(Some(sealing((*keyring).clone(), "repository")));
        }
        let explicit =
            encrypt || self.passphrase.is_some() || self.passphrase_file.is_some() || self.key_file.is_some();
        if !explicit && (repository.is_some() || settings.dump.encryption.is_none()) {
            return Ok(None);
        }
        if let Some((keyring, kind)) = self.given(settings)? {
            return Ok(Some(sealing(keyring, kind)));
        }
        let text = ask("Passphrase of the new dump", true)?;
        Ok(Some(sealing(Keyring::from_passphrase(&text)?, "passphrase")))
    }
}

fn sealing(keyring: Keyring, kind: &str) -> Sealing {
    Sealing {
        keyring,
        description: Encryption {
            cipher: "aes-256-gcm".to_owned(),
            key: kind.to_owned(),
        },
    }
}

fn passphrase(reference: &SecretReference) -> Result<Keyring, Failure> {
    Ok(Keyring::from_passphrase(reference.resolve()?.expose())?)
}

/// Asks a person for a passphrase, on the terminal, without showing it; twice where a typing error would
/// lose the dump.
pub(crate) fn ask(prompt: &str, twice: bool) -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Failure::new(
            Outcome::Refused,
            "a passphrase is needed and there is no terminal to ask on",
        )
        .hint("give it with --passphrase file:PATH, env:NAME or command:PROGRAM, or a key with --key-file"));
    }
    let mut question = dialoguer::Password::new().with_prompt(prompt);
    if twice {
        question = question.with_confirmation("Once more", "The two differ; try again");
    }
    question
        .interact()
        .map_err(|error| Failure::caused_by("cannot ask for the passphrase", error))
}
