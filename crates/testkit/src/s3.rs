//! A real S3 server (s3s-fs) in this process, that fails when told.
//!
//! It runs on threads of its own, so that a test may block while the program under test speaks to it.

mod fault;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::runtime::Runtime;

use crate::proxy::{listen, runtime};
use crate::sandbox::Sandbox;
use fault::{Answer, Faults};
pub use fault::{Fault, Rule};

const BUCKET: &str = "backups";
const ACCESS_KEY: &str = "AKIATESTKIT";
const SECRET_KEY: &str = "testkit/secret+key";

/// An S3 server with one empty bucket, on a free loopback port, path-style, plain HTTP.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    root: PathBuf,
    _sandbox: Sandbox,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

#[derive(Debug, Default)]
struct Shared {
    faults: Faults,
    requests: Mutex<Vec<Request>>,
    /// What listings show, where they are behind.
    listed: Mutex<Option<BTreeSet<String>>>,
    /// Conditional writes are carried out one at a time, as S3 does: s3s-fs looks first and writes then.
    conditional: tokio::sync::Mutex<()>,
}

impl S3Server {
    /// Starts a server.
    pub fn start() -> Self {
        let sandbox = Sandbox::new();
        let root = sandbox.directory("s3");
        std::fs::create_dir(root.join(BUCKET)).expect("the directory is new");
        let runtime = runtime("s3");
        let (listener, address) = listen(&runtime);
        let mut builder =
            S3ServiceBuilder::new(s3s_fs::FileSystem::new(&root).expect("the directory exists"));
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let shared = Arc::new(Shared::default());
        let for_requests = Arc::clone(&shared);
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (service, shared) = (service.clone(), Arc::clone(&for_requests));
                tokio::spawn(async move {
                    let handler = hyper::service::service_fn(move |request| {
                        answer(service.clone(), Arc::clone(&shared), request)
                    });
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(socket), handler).await;
                });
            }
        });
        Self {
            address,
            root,
            _sandbox: sandbox,
            shared,
            runtime: Some(runtime),
        }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &'static str {
        BUCKET
    }

    /// The access key that it knows.
    pub fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// The secret of the access key.
    pub fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// A region to sign for; any is accepted.
    pub fn region(&self) -> &'static str {
        "us-east-1"
    }

    /// Where the bucket's objects lie as files, to be damaged.
    pub fn directory(&self) -> PathBuf {
        self.root.join(BUCKET)
    }

    /// Keys of the bucket's objects, sorted; unfinished uploads are no objects.
    pub fn keys(&self) -> Vec<String> {
        let root = self.directory();
        let mut keys = Vec::new();
        collect(&root, &root, &mut keys);
        keys.sort();
        keys
    }

    /// Makes the requests that `rule` matches fail, until it has been used up.
    pub fn inject(&self, rule: Rule) {
        self.shared.faults.add(rule);
    }

    /// Makes `percent` of all requests fail from now on, each with one of these faults; the seed decides which.
    /// Bodies are cut and held up before the byte that the fault names.
    pub fn fail_at_random(&self, seed: u64, percent: u64, faults: &[Fault]) {
        self.shared.faults.set_weather(seed, percent, faults);
    }

    /// How many requests have failed so far.
    pub fn failed(&self) -> usize {
        self.shared.faults.failed()
    }

    /// Listings show from now on only what the bucket holds at this moment: S3-compatible servers that replicate may
    /// be behind. Reading an object by its name is not affected. [`fresh_listings`](Self::fresh_listings) ends it.
    pub fn stale_listings(&self) {
        let keys = self.keys().into_iter().collect();
        *self.shared.listed.lock().unwrap_or_else(PoisonError::into_inner) = Some(keys);
    }

    /// Listings show everything again.
    pub fn fresh_listings(&self) {
        *self.shared.listed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Forgets all faults. Requests that hang go on hanging.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Every request so far: `PUT /backups/key?partNumber=1`.
    pub fn requests(&self) -> Vec<String> {
        let requests = self.recorded();
        requests
            .into_iter()
            .map(|request| format!("{} {}", request.method, request.target))
            .collect()
    }

    /// Every request so far, with its headers.
    pub fn recorded(&self) -> Vec<Request> {
        self.shared
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `PUT`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Headers, their names in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    fn of(request: &hyper::Request<hyper::body::Incoming>) -> Self {
        let text =
            |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        Self {
            method: request.method().as_str().to_owned(),
            target: request
                .uri()
                .path_and_query()
                .map(ToString::to_string)
                .unwrap_or_default(),
            headers: request
                .headers()
                .iter()
                .map(|(name, value)| (name.to_string(), text(value)))
                .collect(),
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(
    service: S3Service,
    shared: Arc<Shared>,
    request: hyper::Request<hyper::body::Incoming>,
) -> Result<hyper::Response<Answer>, std::io::Error> {
    let recorded = Request::of(&request);
    let fault = shared.faults.take(&recorded.method, &recorded.target);
    let listed = if recorded.method == "GET" && recorded.target.contains("list-type=") {
        shared
            .listed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    } else {
        None
    };
    let is_conditional = recorded.headers.contains_key("if-none-match");
    shared
        .requests
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(recorded);
    let cut = match fault {
        Some(Fault::Status(status)) => return Ok(fault::refusal(status)),
        Some(Fault::Stall) => return std::future::pending().await,
        Some(Fault::Reset) => return Err(std::io::ErrorKind::ConnectionReset.into()),
        Some(Fault::CutBody { after }) => Some((after, false)),
        Some(Fault::StallBody { after }) => Some((after, true)),
        Some(Fault::LoseAnswer) | None => None,
    };
    let alone = if is_conditional {
        Some(shared.conditional.lock().await)
    } else {
        None
    };
    let response = service
        .call(request.map(s3s::Body::from))
        .await
        .map_err(|error| std::io::Error::other(format!("{error:?}")))?;
    drop(alone);
    if fault == Some(Fault::LoseAnswer) {
        return Err(std::io::ErrorKind::ConnectionReset.into());
    }
    let Some(listed) = listed else {
        return Ok(response.map(|body| Answer::new(body, cut)));
    };
    let (mut parts, mut body) = response.into_parts();
    let whole = body
        .store_all_limited(64 << 20)
        .await
        .map_err(std::io::Error::other)?;
    let shown = without_newer(&String::from_utf8_lossy(&whole), &listed);
    parts.headers.remove(hyper::header::CONTENT_LENGTH);
    let body = Answer::new(s3s::Body::from(shown), cut);
    Ok(hyper::Response::from_parts(parts, body))
}

/// A listing without the objects that are not among those.
fn without_newer(listing: &str, listed: &BTreeSet<String>) -> String {
    let mut shown = String::new();
    let mut rest = listing;
    while let Some((before, entry)) = rest.split_once("<Contents>") {
        shown.push_str(before);
        let (entry, after) = entry
            .split_once("</Contents>")
            .expect("an element that begins ends");
        let key = entry
            .split_once("<Key>")
            .and_then(|(_, key)| key.split_once("</Key>"))
            .map_or("", |(key, _)| key);
        if listed.contains(key) {
            shown.push_str("<Contents>");
            shown.push_str(entry);
            shown.push_str("</Contents>");
        }
        rest = after;
    }
    shown + rest
}

fn collect(root: &Path, directory: &Path, keys: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(root, &path, keys);
        } else {
            let key = path
                .strip_prefix(root)
                .expect("below the root")
                .display()
                .to_string();
            if !entry.file_name().to_string_lossy().starts_with('.') {
                keys.push(key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
