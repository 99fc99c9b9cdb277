//! Questions: requests that are small or change nothing, repeated until an answer comes.
//!
//! A server that has not answered yet is given up after [`FIRST_CONTACT`], so that a wrong endpoint is told soon;
//! one that has answered is asked for as long as [`Patience::retry`](super::Patience::retry) says. After a question
//! that stayed without an answer the next ones are brief again: what is left to clean up does not wait for minutes
//! each time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use object_store::multipart::MultipartStore;
use object_store::{GetOptions, GetRange, MultipartId, ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::time::timeout;

use super::range::Identity;
use super::{Pauses, S3Store};
use crate::error::{Action, Answer, StoreError};
use crate::repository::{ObjectEntry, name};

/// How long a server is asked that has not answered yet.
const FIRST_CONTACT: Duration = Duration::from_secs(15);
/// How long one attempt may take then: two fit.
const FIRST_ATTEMPT: Duration = Duration::from_secs(7);
/// Entries that a listing gives at a time.
const LISTING_PAGE: usize = 1000;
/// Deletions under way at a time.
const DELETIONS: usize = 16;

impl S3Store {
    /// Asks until an answer comes, which may be that nothing is there.
    async fn ask<T, F>(&self, action: Action, name: &str, attempt: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, object_store::Error>> + Send,
    {
        let mut pauses = self.pauses();
        loop {
            let error = match timeout(self.attempt(), attempt()).await {
                Ok(Ok(answer)) => {
                    self.note_answer(true);
                    return Ok(answer);
                }
                Ok(Err(error)) => self.error(action, name, &error),
                Err(_) => self.silence(action, name),
            };
            self.again(&mut pauses, error).await?;
        }
    }

    /// Waits for the next attempt, or says that there is none.
    async fn again(&self, pauses: &mut Pauses, error: StoreError) -> Result<(), StoreError> {
        if !error.is_retryable() {
            if error.is_not_found() {
                self.note_answer(true);
            }
            return Err(error);
        }
        if !pauses.pause().await {
            self.note_answer(false);
            return Err(error);
        }
        tracing::debug!(%error, "asked again");
        Ok(())
    }

    /// Notes whether the server is one that answers.
    pub(super) fn note_answer(&self, answers: bool) {
        self.answers.store(answers, Ordering::Relaxed);
    }

    fn pauses(&self) -> Pauses {
        let retry = self.patience.retry;
        Pauses::new(if self.answers.load(Ordering::Relaxed) {
            retry
        } else {
            retry.min(FIRST_CONTACT)
        })
    }

    /// How long an attempt may take, or the next part of its answer.
    fn attempt(&self) -> Duration {
        if self.answers.load(Ordering::Relaxed) {
            self.patience.stall
        } else {
            self.patience.stall.min(FIRST_ATTEMPT)
        }
    }

    fn silence(&self, action: Action, name: &str) -> StoreError {
        StoreError::Timeout {
            subject: self.subject(action, name),
            source: Answer(format!("nothing came for {} s", self.attempt().as_secs_f32())),
        }
    }

    /// Reads a whole object. Where an answer breaks off, reading goes on from there.
    pub(in crate::repository) async fn get_bytes(&self, name: &str, limit: u64) -> Result<Bytes, StoreError> {
        let mut pauses = self.pauses();
        let mut seen = None;
        let mut bytes = Vec::new();
        loop {
            let before = bytes.len();
            let error = match self.get_some(name, limit, &mut seen, &mut bytes).await {
                Ok(()) => {
                    self.note_answer(true);
                    return Ok(bytes.into());
                }
                Err(error) => error,
            };
            if matches!(error, StoreError::Changed { .. }) {
                // Somebody wrote it anew meanwhile.
                seen = None;
                bytes.clear();
            } else if bytes.len() > before {
                pauses = Pauses::new(self.patience.retry);
            }
            self.again(&mut pauses, error).await?;
        }
    }

    /// Reads what is missing of a whole object, as far as that goes.
    async fn get_some(
        &self,
        name: &str,
        limit: u64,
        seen: &mut Option<Identity>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let failed = |error: object_store::Error| self.error(Action::Read, name, &error);
        let silence = |_| self.silence(Action::Read, name);
        let options = GetOptions {
            range: (!bytes.is_empty()).then_some(GetRange::Offset(bytes.len() as u64)),
            if_match: seen.as_ref().and_then(|seen| seen.tag.clone()),
            ..GetOptions::default()
        };
        let path = self.path(name);
        let answer = timeout(self.attempt(), self.once.get_opts(&path, options)).await;
        let result = answer.map_err(silence)?.map_err(failed)?;
        if result.meta.size > limit {
            return Err(StoreError::TooLarge {
                subject: self.subject(Action::Read, name),
                limit,
            });
        }
        let identity = Identity::of(&result.meta);
        if *seen.get_or_insert_with(|| identity.clone()) != identity
            || result.range.start != bytes.len() as u64
        {
            return Err(StoreError::Changed {
                subject: self.subject(Action::Read, name),
            });
        }
        let size = result.meta.size;
        bytes.reserve(
            usize::try_from(size)
                .unwrap_or_default()
                .saturating_sub(bytes.len()),
        );
        let mut stream = result.into_stream();
        while let Some(chunk) = timeout(self.attempt(), stream.next()).await.map_err(silence)? {
            let chunk = chunk.map_err(failed)?;
            bytes.extend_from_slice(&chunk);
            self.throttle.take(chunk.len()).await;
        }
        if (bytes.len() as u64) < size {
            return Err(StoreError::Unreachable {
                subject: self.subject(Action::Read, name),
                source: Answer("the answer ended too early".to_owned()),
            });
        }
        Ok(())
    }

    pub(super) async fn meta(&self, action: Action, name: &str) -> Result<Option<ObjectMeta>, StoreError> {
        let path = self.path(name);
        match self.ask(action, name, || self.once.head(&path)).await {
            Ok(meta) => Ok(Some(meta)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => {
                // The answer to a HEAD has no body, so a wrong key looks like a missing right: ask otherwise.
                if matches!(error, StoreError::PermissionDenied { .. }) {
                    let question = self.path("pgmahout-question");
                    let mut listed = self.once.list(Some(&question));
                    if let Ok(Some(Err(clearer))) = timeout(FIRST_ATTEMPT, listed.next()).await {
                        let clearer = self.error(action, name, &clearer);
                        if !matches!(clearer, StoreError::PermissionDenied { .. }) {
                            return Err(clearer);
                        }
                    }
                }
                Err(error)
            }
        }
    }

    pub(in crate::repository) async fn head(&self, name: &str) -> Result<Option<ObjectEntry>, StoreError> {
        Ok(self.meta(Action::Look, name).await?.map(|meta| ObjectEntry {
            name: name.to_owned(),
            ..self.entry(&meta)
        }))
    }

    /// Pages of all objects below a prefix, by name. A listing that breaks off goes on behind the last name.
    pub(in crate::repository) async fn list_each(
        &self,
        prefix: &str,
        mut each: impl FnMut(Vec<ObjectEntry>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let path = self.path(prefix);
        let under = (!path.as_ref().is_empty()).then_some(&path);
        let mut pauses = self.pauses();
        let mut last: Option<object_store::path::Path> = None;
        let mut is_sorted = true;
        loop {
            let listing = match &last {
                None => self.once.list(under),
                Some(last) => self.once.list_with_offset(under, last),
            };
            // Some servers ignore where a listing shall begin.
            let behind = last.clone();
            let mut pages = listing.ready_chunks(LISTING_PAGE);
            let mut failure = None;
            while failure.is_none() {
                let page = match timeout(self.attempt(), pages.next()).await {
                    Ok(Some(page)) => page,
                    Ok(None) => {
                        self.note_answer(true);
                        return Ok(());
                    }
                    Err(_) => {
                        failure = Some(self.silence(Action::List, prefix));
                        break;
                    }
                };
                let mut entries = Vec::with_capacity(page.len());
                for meta in page {
                    let meta = match meta {
                        Ok(meta) => meta,
                        Err(error) => {
                            failure = Some(self.error(Action::List, prefix, &error));
                            break;
                        }
                    };
                    if behind.as_ref().is_some_and(|behind| meta.location <= *behind) {
                        continue;
                    }
                    let entry = self.entry(&meta);
                    is_sorted &= last.as_ref().is_none_or(|last| meta.location > *last);
                    last = Some(meta.location);
                    if name::check(&entry.name).is_ok() {
                        entries.push(entry);
                    }
                }
                if !entries.is_empty() {
                    pauses = Pauses::new(self.patience.retry);
                    each(entries)?;
                }
            }
            if let Some(error) = failure {
                if !is_sorted {
                    return Err(error);
                }
                self.again(&mut pauses, error).await?;
            }
        }
    }

    /// Deletes; `false` when there was nothing to delete.
    pub(in crate::repository) async fn delete(&self, name: &str) -> Result<bool, StoreError> {
        // S3 answers a deletion with success whether or not the object was there.
        if self.meta(Action::Delete, name).await?.is_none() {
            return Ok(false);
        }
        self.delete_blindly(name).await
    }

    async fn delete_blindly(&self, name: &str) -> Result<bool, StoreError> {
        let path = self.path(name);
        let deleted = self.ask(Action::Delete, name, || self.once.delete(&path));
        match deleted.await {
            Ok(()) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes many, some at a time, without asking whether they are there. What failed does not keep the
    /// others.
    pub(in crate::repository) async fn delete_many(&self, names: &[String]) -> Result<(), StoreError> {
        let deletions = names.iter().map(|name| self.delete_blindly(name));
        let mut deletions = futures::stream::iter(deletions).buffer_unordered(DELETIONS);
        let mut first_error = None;
        while let Some(deleted) = deletions.next().await {
            if let Err(error) = deleted {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Gives up an upload, whose parts cost money until then.
    pub(super) async fn abort(&self, name: &str, upload: &MultipartId) -> Result<(), StoreError> {
        let path = self.path(name);
        self.ask(Action::Delete, name, || self.once.abort_multipart(&path, upload))
            .await
    }
}
