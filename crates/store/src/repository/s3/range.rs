//! Parts of one object, which must be the same object each time.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use futures::StreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore};
use tokio::time::timeout;

use super::{Pauses, S3Store};
use crate::error::{Action, Answer, StoreError, Subject};
use crate::repository::random::too_short;

/// What tells an object from one that was put in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) tag: Option<String>,
    pub(super) size: u64,
}

impl Identity {
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        Self {
            tag: meta.e_tag.clone(),
            size: meta.size,
        }
    }
}

/// One object, and what it was when it was first seen. Every later request asks for that one, and every answer is
/// compared with it.
#[derive(Debug)]
pub(crate) struct RangeSource {
    store: Arc<S3Store>,
    subject: Subject,
    path: Path,
    identity: OnceLock<Identity>,
}

impl RangeSource {
    /// An object that was not looked at yet.
    pub(super) fn new(store: Arc<S3Store>, name: &str) -> Self {
        Self {
            subject: store.subject(Action::Read, name),
            path: store.path(name),
            store,
            identity: OnceLock::new(),
        }
    }

    /// An object as it was seen.
    pub(super) fn seen(store: Arc<S3Store>, name: &str, meta: &ObjectMeta) -> Self {
        let source = Self::new(store, name);
        source.identity.get_or_init(|| Identity::of(meta));
        source
    }

    pub(crate) fn name(&self) -> &str {
        &self.subject.object
    }

    /// Bytes of the object.
    pub(crate) async fn size(&self) -> Result<u64, StoreError> {
        if let Some(identity) = self.identity.get() {
            return Ok(identity.size);
        }
        let meta = self.store.meta(Action::Read, self.name()).await?;
        let meta = meta.ok_or_else(|| StoreError::NotFound {
            subject: self.subject.clone(),
        })?;
        self.pin(&meta)?;
        Ok(meta.size)
    }

    /// Refuses another object than the one that was seen first.
    fn pin(&self, meta: &ObjectMeta) -> Result<(), StoreError> {
        let seen = Identity::of(meta);
        if *self.identity.get_or_init(|| seen.clone()) == seen {
            Ok(())
        } else {
            // Not every server obeys If-Match.
            Err(StoreError::Changed {
                subject: self.subject.clone(),
            })
        }
    }

    /// Reads one range whole, behind what is in `bytes`. What came before a failure is kept, and the next attempt
    /// goes on from there.
    pub(crate) async fn read(&self, range: Range<u64>, bytes: &mut Vec<u8>) -> Result<(), StoreError> {
        if let Some(identity) = self.identity.get()
            && range.end > identity.size
        {
            return Err(too_short(&self.subject, identity.size));
        }
        let begin = bytes.len();
        bytes.reserve(range.end.saturating_sub(range.start) as usize);
        let mut pauses = Pauses::new(self.store.patience.retry);
        loop {
            let before = bytes.len();
            let rest = range.start + (before - begin) as u64..range.end;
            if rest.is_empty() {
                return Ok(());
            }
            let Err(error) = self.read_some(GetRange::Bounded(rest), bytes).await else {
                return Ok(());
            };
            self.go_on(&mut pauses, error, bytes.len() > before).await?;
        }
    }

    /// Reads the last `length` bytes, or all where there are fewer, and gives the object's size.
    pub(crate) async fn read_tail(&self, length: u64, bytes: &mut Vec<u8>) -> Result<u64, StoreError> {
        if length == 0 {
            return self.size().await;
        }
        // The first answer tells the size, and from then on it is a range like any other. Not every server gives a
        // tail that is longer than the object, so any failure is asked another way.
        if self.identity.get().is_none() {
            match self.read_some(GetRange::Suffix(length), bytes).await {
                Ok(()) => return self.size().await,
                Err(error @ (StoreError::NotFound { .. } | StoreError::PermissionDenied { .. })) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::debug!(%error, object = self.name(), "the tail is asked for by its place");
                    bytes.clear();
                }
            }
        }
        let size = self.size().await?;
        self.read(size.saturating_sub(length)..size, bytes).await?;
        Ok(size)
    }

    async fn go_on(
        &self,
        pauses: &mut Pauses,
        error: StoreError,
        has_progress: bool,
    ) -> Result<(), StoreError> {
        if !error.is_retryable() || matches!(error, StoreError::Changed { .. }) {
            return Err(error);
        }
        if has_progress {
            // The time for attempts begins anew.
            *pauses = Pauses::new(self.store.patience.retry);
        }
        if !pauses.pause().await {
            self.store.note_answer(false);
            return Err(error);
        }
        tracing::debug!(%error, object = self.name(), "reading goes on where it broke off");
        Ok(())
    }

    async fn read_some(&self, wanted: GetRange, bytes: &mut Vec<u8>) -> Result<(), StoreError> {
        let store = &*self.store;
        let stalled = || {
            let source = Answer(format!(
                "nothing came for {} s",
                store.patience.stall.as_secs_f32()
            ));
            StoreError::Timeout {
                subject: self.subject.clone(),
                source,
            }
        };
        let failed = |error: object_store::Error| store.error(Action::Read, self.name(), &error);
        let known = self.identity.get();
        let options = GetOptions {
            range: Some(wanted.clone()),
            if_match: known.and_then(|identity| identity.tag.clone()),
            ..GetOptions::default()
        };
        let answer = timeout(store.patience.stall, store.once.get_opts(&self.path, options)).await;
        let result = match answer.map_err(|_| stalled())?.map_err(failed) {
            // The range is outside an object that nobody has seen larger.
            Err(StoreError::Changed { .. }) if known.is_none() => {
                return Err(too_short(&self.subject, self.size().await?));
            }
            other => other?,
        };
        self.pin(&result.meta)?;
        let mut expected = match &wanted {
            GetRange::Bounded(range) if result.range != *range => {
                return Err(too_short(&self.subject, result.meta.size));
            }
            _ => (result.range.end - result.range.start) as usize,
        };
        let mut stream = result.into_stream();
        while expected > 0 {
            let next = timeout(store.patience.stall, stream.next())
                .await
                .map_err(|_| stalled())?;
            let Some(chunk) = next else {
                let source = Answer("the answer ended too early".to_owned());
                return Err(StoreError::Unreachable {
                    subject: self.subject.clone(),
                    source,
                });
            };
            let mut chunk = chunk.map_err(failed)?;
            chunk.truncate(expected);
            expected -= chunk.len();
            bytes.extend_from_slice(&chunk);
            store.throttle.take(chunk.len()).await;
        }
        Ok(())
    }
}
