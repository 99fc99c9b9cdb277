//! Reading an object in ranges, ahead of the reader.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use object_store::ObjectMeta;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::S3Store;
use super::range::RangeSource;
use crate::error::{Action, StoreError, Subject};

const RANGE: u64 = 4 * 1024 * 1024;
const RANGES_AHEAD: usize = 3;

pub(crate) struct S3Reader {
    source: Arc<RangeSource>,
    runtime: Handle,
    subject: Subject,
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
            source: Arc::new(RangeSource::seen(store, name, meta)),
            runtime: Handle::current(),
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
            let source = Arc::clone(&self.source);
            let read = async move {
                let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
                source.read(range, &mut bytes).await.map(|()| Bytes::from(bytes))
            };
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
