//! Objects in a bucket.
//!
//! # Trying again
//!
//! Reading, putting, asking and completing an upload use a client that never repeats a request by itself,
//! because we do it here: what broke off goes on from there, and a create or completion whose answer was lost is
//! decided by looking. Parts of uploads use one that repeats (5xx, 429, lost connections, time-outs) with jitter.
//! All go on for as long as [`Patience::retry`] says, but for questions to a server that has not answered yet:
//! see `question`.
//!
//! # Create only
//!
//! An object in one piece is put with `If-None-Match: *`. An upload in parts is looked for before it starts
//! and before it completes, and completed with the same header, which AWS and newer servers obey. Where a
//! server ignores the header two writers that race can both succeed, and the later one stays;
//! `supports_conditional_put` tells.
//!
//! # Memory
//!
//! A writer holds the part being filled and up to 32 MiB (at least one part) being uploaded. Parts are of 8
//! MiB for the first 8 GiB and grow to 64 MiB, so that S3's 10,000 parts hold 457 GiB: at most 128 MiB. A
//! reader holds up to four ranges of 4 MiB.

mod answer;
mod download;
mod put;
mod question;
mod range;
mod upload;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, HeaderMap, HeaderValue, ObjectMeta, RetryConfig,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub(super) use download::S3Reader;
pub(super) use range::RangeSource;
pub(super) use upload::S3Writer;

use super::bandwidth::Throttle;
use super::{ObjectEntry, PutMode, S3Settings};
use crate::error::{Action, Answer, StoreError, Subject};
use crate::repository::settings::Patience;

/// Where AWS's machines ask for their role (Amazon EC2 user guide, "Instance metadata").
const METADATA_SERVICE: &str = "169.254.169.254";
/// How many times as long as an ordinary request one of up to 64 MiB may take: a part of an upload has 8.
const BULK_PATIENCE: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The secrets of a bucket, looked up.
pub(super) struct S3Secrets {
    pub(super) access_key: Option<pgmahout_config::Secret>,
    pub(super) secret_key: Option<pgmahout_config::Secret>,
    pub(super) session_token: Option<pgmahout_config::Secret>,
}

pub(super) struct S3Store {
    /// Never repeats a request.
    once: AmazonS3,
    /// Repeats for as long as the settings say.
    patient: AmazonS3,
    /// Never repeats a request, and gives it the longer: for large objects in one piece.
    bulk: AmazonS3,
    /// Never repeats a request, and every request carries `If-None-Match: *`: for completing uploads.
    creating: AmazonS3,
    /// Whether the settings name no access key.
    keyless: bool,
    prefix: String,
    repository: String,
    patience: Patience,
    throttle: Throttle,
    /// Whether the last question was answered.
    answers: AtomicBool,
}

impl std::fmt::Debug for S3Store {
    /// Only the repository: the clients hold the secret key.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("S3Store")
            .field("repository", &self.repository)
            .finish_non_exhaustive()
    }
}

impl S3Store {
    pub(super) fn new(
        settings: &S3Settings,
        secrets: &S3Secrets,
        repository: String,
        name: &str,
        throttle: Throttle,
    ) -> Result<Self, StoreError> {
        let wrong = |problem: String, hint: &str| StoreError::Settings {
            repository: name.to_owned(),
            problem,
            hint: hint.to_owned(),
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&settings.bucket)
            // One object, one DELETE: not every server knows the bulk request.
            .with_disable_bulk_delete(true)
            .with_region(settings.region.as_deref().unwrap_or("us-east-1"))
            .with_virtual_hosted_style_request(!settings.path_style.unwrap_or(settings.endpoint.is_some()));
        if let Some(endpoint) = &settings.endpoint {
            if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
                return Err(wrong(
                    format!("the endpoint `{endpoint}` is no URL"),
                    "write endpoint: https://HOST or http://HOST:PORT",
                ));
            }
            let endpoint = endpoint.trim_end_matches('/');
            builder = builder
                .with_endpoint(virtual_host(endpoint, settings))
                .with_allow_http(endpoint.starts_with("http://"));
        }
        match (&secrets.access_key, &secrets.secret_key) {
            (Some(key), Some(secret)) => {
                builder = builder
                    .with_access_key_id(key.expose())
                    .with_secret_access_key(secret.expose());
            }
            // An instance's own role, where the machine has one.
            (None, None) => {}
            _ => {
                return Err(wrong(
                    "only one of access_key and secret_key is given".to_owned(),
                    "give both access_key and secret_key, or neither for the instance's role",
                ));
            }
        }
        if let Some(token) = &secrets.session_token {
            builder = builder.with_token(token.expose());
        }
        let Patience {
            connect,
            request,
            retry,
            ..
        } = settings.patience;
        let mut options = ClientOptions::new()
            .with_user_agent(HeaderValue::from_static(concat!(
                "pgmahout/",
                env!("CARGO_PKG_VERSION")
            )))
            .with_connect_timeout(connect)
            .with_timeout(request)
            .with_allow_http(
                settings
                    .endpoint
                    .as_deref()
                    .is_some_and(|endpoint| endpoint.starts_with("http://")),
            );
        if let Some(path) = &settings.ca_cert {
            let hint = format!(
                "ca_cert must name a readable file of certificates in PEM: ls -l {}",
                path.display()
            );
            let pem = std::fs::read(path)
                .map_err(|error| wrong(format!("cannot read {}: {error}", path.display()), &hint))?;
            let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| {
                wrong(
                    format!("{} holds no certificates: {error}", path.display()),
                    &hint,
                )
            })?;
            if certificates.is_empty() {
                return Err(wrong(format!("{} holds no certificates", path.display()), &hint));
            }
            for certificate in certificates {
                options = options.with_root_certificate(certificate);
            }
        }
        let build = |retries: usize, time: Duration, options: &ClientOptions| {
            let backoff = BackoffConfig {
                init_backoff: FIRST_PAUSE,
                max_backoff: LONGEST_PAUSE,
                base: 2.0,
            };
            builder
                .clone()
                .with_client_options(options.clone())
                .with_retry(RetryConfig {
                    backoff,
                    max_retries: retries,
                    retry_timeout: time,
                })
                .build()
                .map_err(|error| wrong(error.to_string(), "check endpoint, region and bucket"))
        };
        let only_create =
            HeaderMap::from_iter([(http::header::IF_NONE_MATCH, HeaderValue::from_static("*"))]);
        Ok(Self {
            once: build(0, Duration::ZERO, &options)?,
            patient: build(usize::MAX, retry, &options)?,
            bulk: build(
                0,
                Duration::ZERO,
                &options
                    .clone()
                    .with_timeout(request.saturating_mul(BULK_PATIENCE)),
            )?,
            creating: build(
                0,
                Duration::ZERO,
                &options.clone().with_default_headers(only_create),
            )?,
            keyless: secrets.access_key.is_none(),
            prefix: settings.prefix.trim_matches('/').to_owned(),
            repository,
            patience: settings.patience,
            throttle,
            answers: AtomicBool::new(false),
        })
    }

    fn subject(&self, action: Action, object: &str) -> Subject {
        Subject {
            repository: self.repository.clone(),
            object: object.to_owned(),
            action,
        }
    }

    fn error(&self, action: Action, name: &str, error: &object_store::Error) -> StoreError {
        let about_role = error.to_string().contains(METADATA_SERVICE);
        let error = answer::store_error(error, self.subject(action, name));
        match error {
            // Without keys in the settings the client asks the machine (an instance's metadata service).
            StoreError::Unreachable { subject, .. } | StoreError::Timeout { subject, .. }
                if self.keyless && about_role =>
            {
                let source = Answer("no access key is configured, and this machine has no role".to_owned());
                StoreError::Authentication { subject, source }
            }
            error => error,
        }
    }

    /// The key of an object. Names and prefixes are of characters that `Path` takes as they are.
    fn path(&self, name: &str) -> Path {
        let separator = if self.prefix.is_empty() || name.is_empty() {
            ""
        } else {
            "/"
        };
        Path::from(format!("{}{separator}{name}", self.prefix))
    }

    fn entry(&self, meta: &ObjectMeta) -> ObjectEntry {
        let key = meta.location.as_ref();
        let name = key
            .strip_prefix(&self.prefix)
            .unwrap_or(key)
            .trim_start_matches('/')
            .to_owned();
        let modified = meta.last_modified.into();
        ObjectEntry {
            name,
            size: meta.size,
            modified,
        }
    }

    /// One object to read parts of; nothing is asked yet.
    pub(super) fn open_random(self: &Arc<Self>, name: &str) -> RangeSource {
        RangeSource::new(Arc::clone(self), name)
    }

    pub(super) async fn writer(
        self: &Arc<Self>,
        name: &str,
        mode: PutMode,
        cancellation: CancellationToken,
    ) -> Result<S3Writer, StoreError> {
        let before = self.meta(Action::Write, name).await?;
        if mode == PutMode::Create && before.is_some() {
            return Err(StoreError::AlreadyExists {
                subject: self.subject(Action::Write, name),
            });
        }
        Ok(S3Writer::new(
            Arc::clone(self),
            name,
            mode,
            before.and_then(|meta| meta.e_tag),
            cancellation,
        ))
    }

    pub(super) async fn reader(
        self: &Arc<Self>,
        name: &str,
        cancellation: CancellationToken,
    ) -> Result<(S3Reader, ObjectEntry), StoreError> {
        let subject = || self.subject(Action::Read, name);
        let meta = self
            .meta(Action::Read, name)
            .await?
            .ok_or_else(|| StoreError::NotFound { subject: subject() })?;
        let entry = ObjectEntry {
            name: name.to_owned(),
            ..self.entry(&meta)
        };
        Ok((S3Reader::new(Arc::clone(self), name, &meta, cancellation), entry))
    }
}

/// With an endpoint and the bucket in the host's name, the client wants the whole host.
fn virtual_host(endpoint: &str, settings: &S3Settings) -> String {
    if settings.path_style == Some(false)
        && let Some((scheme, host)) = endpoint.split_once("://")
        && !host.starts_with(&format!("{}.", settings.bucket))
    {
        return format!("{scheme}://{}.{host}", settings.bucket);
    }
    endpoint.to_owned()
}

/// Pauses between attempts: longer each time, with jitter, bounded altogether.
struct Pauses {
    until: Instant,
    next: Duration,
}

impl Pauses {
    fn new(patience: Duration) -> Self {
        Self {
            until: Instant::now() + patience,
            next: FIRST_PAUSE,
        }
    }

    /// Waits, or says that the time for attempts is over.
    async fn pause(&mut self) -> bool {
        // Between half of the pause and the whole, so that many clients do not come back together.
        let mut random = [0; 1];
        let jitter = if rand::fill(&mut random).is_ok() {
            f64::from(random[0]) / 512.0
        } else {
            0.0
        };
        let pause = self.next.mul_f64(0.5 + jitter);
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        if Instant::now() + pause >= self.until {
            return false;
        }
        sleep(pause).await;
        true
    }
}

/// The time of writing, for entries that the store has not told yet.
fn now() -> SystemTime {
    SystemTime::now()
}
