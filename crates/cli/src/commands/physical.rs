//! What the commands about physical backups share: which repositories, which stanza in them, and where the
//! local server's files are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use pgmahout_backup::physical::restore::restore_command;
use pgmahout_backup::physical::stanza::{PhysicalRepository, RepositoryMemory, StanzaName};
use pgmahout_config::Settings;
use pgmahout_config::secret::SecretReference;
use pgmahout_config::settings;
use pgmahout_postgres::connection::Connection;
use pgmahout_procedure::StateDirectory;
use pgmahout_store::repository::{EncryptionSettings, Location, Repository, RepositorySettings};
use pgmahout_types::diagnostic::Outcome;

use super::dump::place;
use crate::context::{ConnectionArgs, Context};
use crate::failure::Failure;

/// The stanza where nothing names one.
const DEFAULT_STANZA: &str = "main";

/// Which repositories, and which stanza in them.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Repository options")]
pub(crate) struct RepositoryArgs {
    /// The repository: the configured one of this name, or the one at this location (./DIRECTORY or
    /// s3://BUCKET/PREFIX) [default: what is configured].
    #[arg(long, value_name = "NAME|LOCATION")]
    pub repo: Option<String>,

    /// This cluster's name in the repository [default: `stanza` or `scope` of the configuration, else main].
    #[arg(long, value_name = "NAME")]
    pub stanza: Option<String>,

    /// Where the passphrase of a repository that is named by its location is: file:PATH, env:NAME or
    /// command:PROGRAM ARGUMENTS.
    #[arg(long, value_name = "REFERENCE", requires = "repo", conflicts_with_all = ["key_file", "passphrase_file"])]
    pub passphrase: Option<String>,

    /// The file that holds that passphrase; the same as --passphrase file:FILE.
    #[arg(long, value_name = "FILE", requires = "repo", conflicts_with = "key_file")]
    pub passphrase_file: Option<PathBuf>,

    /// The file that holds its key: 32 bytes, raw, hexadecimal or base64.
    #[arg(long, value_name = "FILE", requires = "repo")]
    pub key_file: Option<PathBuf>,
}

/// Where the files of the local server are.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Server options")]
pub(crate) struct DataDirectoryArgs {
    /// The server's data directory [default: postgresql.data_dir of the configuration, else the server's own
    /// answer].
    #[arg(long, value_name = "DIRECTORY", env = "PGDATA", hide_env_values = true)]
    pub data_dir: Option<PathBuf>,

    /// The directory of PostgreSQL's programs.
    #[arg(long, value_name = "DIRECTORY")]
    pub bin_dir: Option<PathBuf>,
}

/// A repository's place as the command line or the configuration says it.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    /// How to open it.
    pub store: RepositorySettings,
    /// Its element of the configuration; `None` for one that is named by its location.
    pub configured: Option<settings::Repository>,
}

impl Chosen {
    /// Opens the storage alone, for commands that need no stanza.
    pub(crate) async fn open_store(&self) -> Result<Repository, Failure> {
        Ok(Repository::open(self.store.clone()).await?)
    }
}

/// A repository that was opened, with what the configuration says of it.
#[derive(Clone)]
pub(crate) struct Opened {
    /// The repository, at its stanza.
    pub repository: PhysicalRepository,
    /// Where it came from.
    pub chosen: Chosen,
}

impl RepositoryArgs {
    /// The stanza: given, configured, or `main`.
    pub(crate) fn stanza(&self, settings: &Settings) -> Result<StanzaName, Failure> {
        let name = self.stanza.as_deref().or(settings.stanza.as_deref());
        Ok(name.unwrap_or(DEFAULT_STANZA).parse::<StanzaName>()?)
    }

    /// The one that is named, or all that are configured; never none.
    pub(crate) fn chosen(&self, settings: &Settings) -> Result<Vec<Chosen>, Failure> {
        let Some(wanted) = &self.repo else {
            if settings.repositories.is_empty() {
                return Err(none_configured(settings));
            }
            return settings.repositories.iter().map(configured).collect();
        };
        if let Some(found) = settings.repository(Some(wanted)) {
            if self.passphrase.is_some() || self.passphrase_file.is_some() || self.key_file.is_some() {
                return Err(Failure::new(
                    Outcome::Usage,
                    format!("repository {wanted} is configured, and so is what opens it"),
                )
                .hint(
                    "leave out --passphrase, --passphrase-file and --key-file, or change `encryption` in the \
                     configuration",
                ));
            }
            return Ok(vec![configured(found)?]);
        }
        let mut store = place::find(settings, wanted)?;
        store.encryption = self.encryption()?;
        Ok(vec![Chosen {
            store,
            configured: None,
        }])
    }

    fn encryption(&self) -> Result<Option<EncryptionSettings>, Failure> {
        if let Some(path) = &self.key_file {
            return Ok(Some(EncryptionSettings::KeyFile(path.clone())));
        }
        if let Some(path) = &self.passphrase_file {
            let reference = SecretReference::File(path.clone());
            return Ok(Some(EncryptionSettings::Passphrase(reference)));
        }
        let Some(text) = &self.passphrase else {
            return Ok(None);
        };
        let reference = SecretReference::parse(text)?;
        if matches!(reference, SecretReference::Literal(_)) {
            return Err(Failure::new(
                Outcome::Usage,
                "a passphrase on the command line can be read by every user of this machine",
            )
            .hint("use --passphrase file:PATH, env:NAME or command:PROGRAM"));
        }
        Ok(Some(EncryptionSettings::Passphrase(reference)))
    }

    /// Opens the one that is named, or all that are configured. The first that cannot be opened fails the
    /// whole: commands that can go on with fewer use [`RepositoryArgs::try_open_all`].
    pub(crate) async fn open_all(&self, context: &Context) -> Result<Vec<Opened>, Failure> {
        self.try_open_all(context)
            .await?
            .into_iter()
            .map(|(_, opened)| opened)
            .collect()
    }

    /// Tries to open each, with what went wrong with it.
    pub(crate) async fn try_open_all(
        &self,
        context: &Context,
    ) -> Result<Vec<(String, Result<Opened, Failure>)>, Failure> {
        let settings = context.settings()?;
        let stanza = self.stanza(settings)?;
        let memory = memory();
        let mut all = Vec::new();
        for chosen in self.chosen(settings)? {
            let name = name_of(&chosen.store);
            all.push((name, open(chosen, &stanza, &memory).await));
        }
        Ok(all)
    }

    /// Opens the one that is named; without a name the first configured one that can be opened, with a warning
    /// about each that cannot.
    pub(crate) async fn open_one(&self, context: &Context) -> Result<Opened, Failure> {
        let mut first_failure = None;
        for (name, opened) in self.try_open_all(context).await? {
            match opened {
                Ok(opened) => {
                    if let Some((failed, failure)) = first_failure {
                        let failure: Failure = failure;
                        context.printer.warn(&format!(
                            "repository {failed} was passed over: {}",
                            failure.summary()
                        ));
                    }
                    return Ok(opened);
                }
                Err(failure) => {
                    first_failure.get_or_insert((name, failure));
                }
            }
        }
        Err(match first_failure {
            Some((_, failure)) => failure,
            None => none_configured(context.settings()?),
        })
    }
}

impl DataDirectoryArgs {
    /// The data directory that was given or is configured.
    pub(crate) fn given(&self, context: &Context) -> Result<Option<PathBuf>, Failure> {
        let configured = || Ok::<_, Failure>(context.settings()?.server.data_dir.clone());
        match &self.data_dir {
            Some(given) => Ok(Some(given.clone())),
            None => configured(),
        }
    }

    /// The directory of PostgreSQL's programs that was given or is configured.
    pub(crate) fn bin_dir(&self, context: &Context) -> Result<Option<PathBuf>, Failure> {
        match &self.bin_dir {
            Some(given) => Ok(Some(given.clone())),
            None => Ok(context.settings()?.server.bin_dir.clone()),
        }
    }

    /// The data directory, where the server must not be asked: given or configured, or an error.
    pub(crate) fn required(&self, context: &Context) -> Result<PathBuf, Failure> {
        self.given(context)?.ok_or_else(|| {
            Failure::new(Outcome::Usage, "it is not known where the data directory is").hint(
                "name it with --data-dir or PGDATA, or write `postgresql: {data_dir: /path}` into pgmahout.yml",
            )
        })
    }
}

/// Opens a session in which nobody's functions run with our rights.
pub(crate) async fn connect(args: &ConnectionArgs, context: &Context) -> Result<Connection, Failure> {
    Ok(Connection::open_secured(&context.connection(args)?).await?)
}

/// What this host remembers of repositories; nothing where there is no place for it.
pub(crate) fn memory() -> RepositoryMemory {
    match StateDirectory::locate() {
        Ok(state) => RepositoryMemory::new(&state),
        Err(_) => RepositoryMemory::none(),
    }
}

/// Opens one repository at a stanza.
pub(crate) async fn open(
    chosen: Chosen,
    stanza: &StanzaName,
    memory: &RepositoryMemory,
) -> Result<Opened, Failure> {
    let store = chosen.open_store().await?;
    let repository = PhysicalRepository::open(store, stanza.clone(), memory).await?;
    Ok(Opened { repository, chosen })
}

/// The `restore_command` that fetches from this repository: this very program, with the same configuration, from
/// any directory.
pub(crate) fn fetch_command(
    args: &RepositoryArgs,
    opened: &Opened,
    context: &Context,
) -> Result<String, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::caused_by("cannot find the path of this program", error))?;
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut words: Vec<OsString> = Vec::new();
    if let Some(file) = &context.settings()?.file {
        words.push("--config".into());
        words.push(absolute(file).into());
    }
    words.extend(["wal", "fetch"].map(OsString::from));
    let place = match (&opened.chosen.configured, opened.chosen.store.location()) {
        (Some(configured), _) => configured.name.clone(),
        (None, Location::Directory(path)) => absolute(&path).display().to_string(),
        (None, other) => other.to_string(),
    };
    words.push(format!("--repo={place}").into());
    words.push(format!("--stanza={}", opened.repository.stanza()).into());
    if let Some(passphrase) = &args.passphrase {
        words.push(format!("--passphrase={passphrase}").into());
    }
    for (flag, path) in [
        ("--passphrase-file", &args.passphrase_file),
        ("--key-file", &args.key_file),
    ] {
        if let Some(path) = path {
            words.push(format!("{flag}={}", absolute(path).display()).into());
        }
    }
    Ok(restore_command(&program, &words)?)
}

/// A repository's name, or its location where it has none.
pub(crate) fn name_of(store: &RepositorySettings) -> String {
    if store.name.is_empty() {
        store.location().to_string()
    } else {
        store.name.clone()
    }
}

fn configured(found: &settings::Repository) -> Result<Chosen, Failure> {
    Ok(Chosen {
        store: place::configured_repository(found)?,
        configured: Some(found.clone()),
    })
}

fn none_configured(settings: &Settings) -> Failure {
    let file = settings.file.as_deref().unwrap_or(Path::new("pgmahout.yml"));
    Failure::new(Outcome::Usage, "no repository is configured").hint(format!(
        "write into {}:\nrepository:\n  - {{name: local, type: local, path: /srv/pgmahout}}\n\
         or name a place: --repo /srv/pgmahout or --repo s3://BUCKET/PREFIX",
        file.display()
    ))
}
