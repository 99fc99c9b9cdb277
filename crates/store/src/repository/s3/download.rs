//! Reading an object in ranges, ahead of the reader.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Pauses, S3Store};
use crate::error::{Action, Answer, StoreError, Subject};

const RANGE: u64 = 4 * 1024 * 1024;
const RANGES_AHEAD: usize = 3;

pub(crate) struct S3Reader {
    store: Arc<S3Store>,
    runtime: Handle,
    subject: Subject,
    path: Path,
    tag: Option<String>,
    size: u64,
    /// Where the next range to ask for begins.
    next: u64,
    coming: VecDeque<JoinHandle<Result<Bytes, StoreError>>>,
    current: Bytes,
    cancellation: CancellationToken,
    failed: bool,
}

impl S3Reader {
    pub(super) fn new(
        store: Arc<S3Store>,
        name: &str,
        meta: &ObjectMeta,
        cancellation: CancellationToken,
    ) -> Self {
        Self {
            subject: store.subject(Action::Read, name),
            path: store.path(name),
            store,
            runtime: Handle::current(),
            tag: meta.e_tag.clone(),
            size: meta.size,
            next: 0,
            coming: VecDeque::new(),
            current: Bytes::new(),
            cancellation,
            failed: false,
        }
    }

    fn ask_ahead(&mut self) {
        while self.coming.len() <= RANGES_AHEAD && self.next < self.size {
            let range = self.next..(self.next + RANGE).min(self.size);
            self.next = range.end;
            let store = Arc::clone(&self.store);
            let (subject, path, tag) = (self.subject.clone(), self.path.clone(), self.tag.clone());
            let read = async move { read_range(&store, &subject, &path, tag.as_deref(), range).await };
            self.coming.push_back(self.runtime.spawn(read));
        }
    }

    fn next_range(&mut self) -> Result<Option<Bytes>, StoreError> {
        self.ask_ahead();
        let Some(mut oldest) = self.coming.pop_front() else {
            return Ok(None);
        };
        let cancelled = || StoreError::Cancelled {
            subject: self.subject.clone(),
        };
        let finished = self.runtime.block_on(async {
            tokio::select! {
                // Both are safe to drop: a cancelled token stays cancelled, and the task is aborted below.
                () = self.cancellation.cancelled() => None,
                finished = &mut oldest => Some(finished),
            }
        });
        match finished {
            None => {
                oldest.abort();
                Err(cancelled())
            }
            Some(Ok(result)) => result.map(Some),
            Some(Err(error)) => Err(StoreError::Other {
                subject: self.subject.clone(),
                source: Box::new(error),
            }),
        }
    }
}

impl Read for S3Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.failed {
            return Err(io::Error::other("an earlier read has failed"));
        }
        while self.current.is_empty() {
            match self.next_range() {
                Ok(Some(bytes)) => self.current = bytes,
                Ok(None) => return Ok(0),
                Err(error) => {
                    self.failed = true;
                    return Err(error.into());
                }
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

impl Drop for S3Reader {
    fn drop(&mut self) {
        for task in &self.coming {
            task.abort();
        }
    }
}

/// Reads one range whole. What came before a failure is kept, and the next attempt goes on from there.
async fn read_range(
    store: &S3Store,
    subject: &Subject,
    path: &Path,
    tag: Option<&str>,
    range: Range<u64>,
) -> Result<Bytes, StoreError> {
    let mut pauses = Pauses::new(store.patience.retry);
    let mut bytes = BytesMut::with_capacity((range.end - range.start) as usize);
    loop {
        let rest = range.start + bytes.len() as u64..range.end;
        let before = bytes.len();
        match read_some(store, subject, path, tag, rest, &mut bytes).await {
            Ok(()) => return Ok(bytes.freeze()),
            Err(error) if error.is_retryable() && !matches!(error, StoreError::Changed { .. }) => {
                if bytes.len() > before {
                    // Progress: the time for attempts begins anew.
                    pauses = Pauses::new(store.patience.retry);
                }
                if !pauses.pause().await {
                    return Err(error);
                }
                tracing::debug!(%error, object = subject.object, "reading goes on where it broke off");
            }
            Err(error) => return Err(error),
        }
    }
}

async fn read_some(
    store: &S3Store,
    subject: &Subject,
    path: &Path,
    tag: Option<&str>,
    range: Range<u64>,
    bytes: &mut BytesMut,
) -> Result<(), StoreError> {
    let stalled = || {
        let source = Answer(format!(
            "nothing came for {} s",
            store.patience.stall.as_secs_f32()
        ));
        StoreError::Timeout {
            subject: subject.clone(),
            source,
        }
    };
    let failed = |error: object_store::Error| super::answer::store_error(&error, subject.clone());
    let mut expected = (range.end - range.start) as usize;
    let options = GetOptions {
        range: Some(GetRange::Bounded(range)),
        if_match: tag.map(str::to_owned),
        ..GetOptions::default()
    };
    let answer = timeout(store.patience.stall, store.once.get_opts(path, options)).await;
    let result = answer.map_err(|_| stalled())?.map_err(failed)?;
    // Not every server obeys If-Match.
    if result.meta.e_tag.as_deref() != tag {
        return Err(StoreError::Changed {
            subject: subject.clone(),
        });
    }
    let mut stream = result.into_stream();
    while expected > 0 {
        let next = timeout(store.patience.stall, stream.next())
            .await
            .map_err(|_| stalled())?;
        let Some(chunk) = next else {
            let source = Answer("the answer ended too early".to_owned());
            return Err(StoreError::Unreachable {
                subject: subject.clone(),
                source,
            });
        };
        let mut chunk = chunk.map_err(failed)?;
        chunk.truncate(expected);
        expected -= chunk.len();
        bytes.extend_from_slice(&chunk);
    }
    Ok(())
}
