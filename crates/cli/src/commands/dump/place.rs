//! Where dumps are: a directory, or a repository that was configured or is named by its location.

use std::num::NonZeroU64;
use std::path::PathBuf;

use pgmahout_backup::dump::location::Place;
use pgmahout_config::Settings;
use pgmahout_config::settings::{self, Compression};
use pgmahout_store::codec::Codec;
use pgmahout_store::repository::{
    EncryptionSettings, Location, Patience, Repository, RepositorySettings, S3Settings, StorageSettings,
};
use pgmahout_types::diagnostic::Outcome;

pub(crate) use super::keys::KeyArgs;
use crate::context::Context;
use crate::failure::Failure;

/// The repository, instead of a directory.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct RepoArgs {
    /// Use a repository: the one of this name, the one at this location (./DIRECTORY or s3://BUCKET/PREFIX),
    /// or, without a value, the configured one.
    #[arg(long, value_name = "NAME|LOCATION", num_args = 0..=1, default_missing_value = "")]
    pub repo: Option<String>,
}

impl RepoArgs {
    /// The repository that was asked for on the command line.
    async fn named(&self, settings: &Settings) -> Result<Option<Repository>, Failure> {
        let Some(wanted) = &self.repo else { return Ok(None) };
        let configured = settings.dump.repository.as_deref().unwrap_or_default();
        let wanted = if wanted.is_empty() { configured } else { wanted };
        Ok(Some(Repository::open(find(settings, wanted)?).await?))
    }

    /// The repository that was asked for, here or, when nothing else was said, in the configuration.
    pub(crate) async fn repository(
        &self,
        settings: &Settings,
        directory_given: bool,
    ) -> Result<Option<Repository>, Failure> {
        match &settings.dump.repository {
            Some(configured) if self.repo.is_none() && !directory_given => {
                Ok(Some(Repository::open(find(settings, configured)?).await?))
            }
            _ => self.named(settings).await,
        }
    }

    /// Where to look: the repository, else the directory given, else what is configured, else here.
    pub(crate) async fn place_or(
        &self,
        context: &Context,
        directory: Option<&PathBuf>,
    ) -> Result<Place, Failure> {
        if let Some(repository) = self.repository(context.settings()?, directory.is_some()).await? {
            return Ok(Place::Repository(repository));
        }
        let directory = directory.or(context.settings()?.dump.directory.as_ref()).cloned();
        Ok(Place::Directory(directory.unwrap_or_else(|| PathBuf::from("."))))
    }

    /// The place and name of an existing dump. Without a repository the name is a path.
    pub(crate) async fn file(&self, context: &Context, file: &str) -> Result<(Place, String), Failure> {
        match self.named(context.settings()?).await? {
            Some(repository) => Ok((Place::Repository(repository), file.to_owned())),
            None => path(file),
        }
    }
}

/// A path as a place and a name.
pub(crate) fn path(file: &str) -> Result<(Place, String), Failure> {
    if file.contains("://") {
        return Err(Failure::new(Outcome::Usage, format!("\"{file}\" is no path"))
            .hint("name the repository with --repo s3://BUCKET/PREFIX, and only the dump's name as FILE"));
    }
    Place::of_path(std::path::Path::new(file)).ok_or_else(|| {
        Failure::new(Outcome::Usage, format!("\"{file}\" is no file name"))
            .hint("give a path that ends in a name, for example /srv/dumps/shop.sql.gz")
    })
}

/// The settings of a repository that is named, or named by its location.
pub(crate) fn find(settings: &Settings, wanted: &str) -> Result<RepositorySettings, Failure> {
    let name = (!wanted.is_empty()).then_some(wanted);
    if let Some(configured) = settings.repository(name) {
        return configured_repository(configured);
    }
    let Some(name) = name else {
        return Err(Failure::new(Outcome::Usage, "no repository is configured").hint(
            "add a section `repository` to pgmahout.yml, or name a place: --repo ./DIRECTORY or \
             --repo s3://BUCKET/PREFIX",
        ));
    };
    if !name.contains('/') {
        let known: Vec<&str> = settings
            .repositories
            .iter()
            .map(|repository| repository.name.as_str())
            .collect();
        let hint = if known.is_empty() {
            format!("none is configured; for a directory write --repo ./{name}")
        } else {
            format!(
                "configured are: {}; for a directory write --repo ./{name}",
                known.join(", ")
            )
        };
        let text = format!("there is no repository named \"{name}\"");
        return Err(Failure::new(Outcome::Usage, text).hint(hint));
    }
    Ok(RepositorySettings::at("", name.parse::<Location>()?))
}

/// A repository of the configuration file as the store knows it.
pub(crate) fn configured_repository(
    configured: &settings::Repository,
) -> Result<RepositorySettings, Failure> {
    let storage = match &configured.storage {
        settings::Storage::Local { path } => StorageSettings::Local { path: path.clone() },
        settings::Storage::S3 {
            bucket,
            prefix,
            endpoint,
            region,
            path_style,
            access_key,
            secret_key,
            session_token,
            ca_cert,
            timeouts,
        } => {
            // What the file leaves out comes from AWS's environment variables.
            let environment = S3Settings::new(bucket.clone());
            StorageSettings::S3(S3Settings {
                bucket: bucket.clone(),
                prefix: prefix.clone(),
                endpoint: endpoint.clone().or(environment.endpoint),
                region: region.clone().or(environment.region),
                path_style: *path_style,
                access_key: access_key.clone().or(environment.access_key),
                secret_key: secret_key.clone().or(environment.secret_key),
                session_token: session_token.clone().or(environment.session_token),
                ca_cert: ca_cert.clone().or(environment.ca_cert),
                patience: patience(*timeouts),
            })
        }
    };
    Ok(RepositorySettings {
        name: configured.name.clone(),
        storage,
        encryption: configured.encryption.as_ref().map(encryption),
        compression: configured
            .compression
            .map_or_else(|| Ok(Codec::default()), codec)?,
        single_writer: configured.single_writer,
        bandwidth_limit: configured.bandwidth.and_then(NonZeroU64::new),
    })
}

/// How long to wait for S3: what the configuration file says, else the default.
fn patience(configured: settings::Timeouts) -> Patience {
    let default = Patience::default();
    Patience {
        connect: default.connect,
        request: configured.request.unwrap_or(default.request),
        stall: configured.stall.unwrap_or(default.stall),
        retry: configured.retry.unwrap_or(default.retry),
    }
}

/// Encryption of the configuration file as the store knows it.
pub(crate) fn encryption(configured: &settings::Encryption) -> EncryptionSettings {
    use pgmahout_config::secret::SecretReference;
    match configured {
        settings::Encryption::Passphrase(reference) => EncryptionSettings::Passphrase(reference.clone()),
        settings::Encryption::KeyFile(path) => EncryptionSettings::KeyFile(path.clone()),
        settings::Encryption::Command(SecretReference::Command { program, arguments }) => {
            EncryptionSettings::Command {
                program: program.clone(),
                arguments: arguments.clone(),
            }
        }
        settings::Encryption::Command(other) => EncryptionSettings::Passphrase(other.clone()),
    }
}

/// A compression of the configuration file as the store knows it.
pub(super) fn codec(configured: Compression) -> Result<Codec, Failure> {
    Ok(configured.to_string().parse::<Codec>()?)
}
