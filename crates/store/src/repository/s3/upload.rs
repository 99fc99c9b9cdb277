//! Writing an object in parts.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use object_store::PutPayload;
use object_store::multipart::{MultipartStore, PartId};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Pauses, S3Store, now};
use crate::error::{Action, StoreError, Subject};
use crate::repository::{ObjectEntry, PutMode};

const MIB: usize = 1024 * 1024;
/// S3's limit (Amazon S3 user guide, "Multipart upload limits").
const MOST_PARTS: usize = 10_000;
/// Bytes being uploaded at once, unless one part is larger.
const IN_FLIGHT: usize = 32 * MIB;
/// How long an abort may take before it is left to the bucket's lifecycle rule.
const ABORT_PATIENCE: Duration = Duration::from_secs(10);

/// The size of a part by its number: small objects take little memory, large ones fit into 10,000 parts.
fn part_length(number: usize) -> usize {
    match number {
        0..1024 => 8 * MIB,
        1024..2048 => 16 * MIB,
        2048..4096 => 32 * MIB,
        _ => 64 * MIB,
    }
}

pub(crate) struct S3Writer {
    store: Arc<S3Store>,
    runtime: Handle,
    subject: Subject,
    mode: PutMode,
    /// The object's tag before, to know our own object from an older one.
    tag_before: Option<String>,
    cancellation: CancellationToken,
    buffer: Vec<u8>,
    upload: Option<String>,
    next_part: usize,
    uploading: JoinSet<Result<(usize, usize, PartId), StoreError>>,
    in_flight: usize,
    parts: Vec<(usize, PartId)>,
    written: u64,
    failed: bool,
}

impl S3Writer {
    pub(super) fn new(
        store: Arc<S3Store>,
        name: &str,
        mode: PutMode,
        tag_before: Option<String>,
        cancellation: CancellationToken,
    ) -> Self {
        Self {
            subject: store.subject(Action::Write, name),
            store,
            runtime: Handle::current(),
            mode,
            tag_before,
            cancellation,
            buffer: Vec::new(),
            upload: None,
            next_part: 0,
            uploading: JoinSet::new(),
            in_flight: 0,
            parts: Vec::new(),
            written: 0,
            failed: false,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.subject.object
    }

    /// Waits for a future on the runtime, unless cancelled.
    fn wait<T>(&self, future: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        wait(&self.runtime, &self.cancellation, &self.subject, future)
    }

    fn fail(&self, error: &object_store::Error) -> StoreError {
        self.store.error(Action::Write, &self.subject.object, error)
    }

    /// Takes the result of one upload.
    fn take_one(&mut self) -> Result<(), StoreError> {
        let Self {
            runtime,
            cancellation,
            subject,
            uploading,
            ..
        } = self;
        let finished = wait(runtime, cancellation, subject, async {
            Ok(uploading.join_next().await)
        })?;
        match finished {
            None => Ok(()),
            Some(Ok(Ok((number, length, id)))) => {
                self.in_flight -= length;
                self.parts.push((number, id));
                Ok(())
            }
            Some(Ok(Err(error))) => Err(error),
            Some(Err(error)) => Err(StoreError::Other {
                subject: self.subject.clone(),
                source: Box::new(error),
            }),
        }
    }

    fn send_part(&mut self) -> Result<(), StoreError> {
        if self.next_part == MOST_PARTS {
            return Err(StoreError::TooLarge {
                subject: self.subject.clone(),
                limit: self.written,
            });
        }
        let path = self.store.path(&self.subject.object);
        let upload = if let Some(upload) = &self.upload {
            upload.clone()
        } else {
            let create = async {
                self.store
                    .patient
                    .create_multipart(&path)
                    .await
                    .map_err(|error| self.fail(&error))
            };
            let upload = self.wait(create)?;
            self.upload = Some(upload.clone());
            upload
        };
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        while self.in_flight > 0 && self.in_flight + bytes.len() > IN_FLIGHT {
            self.take_one()?;
        }
        let (number, length) = (self.next_part, bytes.len());
        self.next_part += 1;
        self.in_flight += length;
        let store = Arc::clone(&self.store);
        let name = self.subject.object.clone();
        let put = async move {
            store.throttle.take(bytes.len()).await;
            let payload = PutPayload::from_bytes(bytes);
            let put = store.patient.put_part(&path, &upload, number, payload).await;
            put.map(|id| (number, length, id))
                .map_err(|error| store.error(Action::Write, &name, &error))
        };
        self.uploading.spawn_on(put, &self.runtime);
        Ok(())
    }

    /// Runs a step; a failure ends the upload and removes its parts.
    fn guarded<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        if self.failed {
            let source = io::Error::other("an earlier write has failed").into();
            return Err(StoreError::Other {
                subject: self.subject.clone(),
                source,
            });
        }
        let result = if self.cancellation.is_cancelled() {
            Err(StoreError::Cancelled {
                subject: self.subject.clone(),
            })
        } else {
            step(self)
        };
        if result.is_err() {
            self.failed = true;
            if let Err(error) = self.remove_parts() {
                tracing::warn!(%error, "parts of an unfinished upload may be left in the bucket");
            }
        }
        result
    }

    pub(crate) fn publish(mut self) -> Result<ObjectEntry, StoreError> {
        self.guarded(Self::complete)?;
        Ok(ObjectEntry {
            name: self.subject.object.clone(),
            size: self.written,
            modified: now(),
        })
    }

    fn complete(&mut self) -> Result<(), StoreError> {
        let name = self.subject.object.clone();
        if self.upload.is_none() {
            let bytes = Bytes::from(std::mem::take(&mut self.buffer));
            return self.wait(self.store.put_bytes(&name, bytes, self.mode));
        }
        if !self.buffer.is_empty() {
            self.send_part()?;
        }
        while !self.uploading.is_empty() {
            self.take_one()?;
        }
        let mut parts = std::mem::take(&mut self.parts);
        parts.sort_by_key(|(number, _)| *number);
        let parts: Vec<PartId> = parts.into_iter().map(|(_, id)| id).collect();
        let upload = self.upload.clone().expect("an upload was begun above");
        self.wait(self.complete_upload(&upload, parts))?;
        // Nothing is left to abort.
        self.upload = None;
        Ok(())
    }

    async fn complete_upload(&self, upload: &String, parts: Vec<PartId>) -> Result<(), StoreError> {
        let name = &self.subject.object;
        let client = match self.mode {
            PutMode::Create => {
                if self.store.head(name).await?.is_some() {
                    return Err(StoreError::AlreadyExists {
                        subject: self.subject.clone(),
                    });
                }
                &self.store.creating
            }
            PutMode::Overwrite => &self.store.once,
        };
        let path = self.store.path(name);
        let mut pauses = Pauses::new(self.store.patience.retry);
        // Whether an answer was lost: a repeated request then finds no upload any more, or our own object.
        let mut may_be_ours = false;
        loop {
            let completed = client.complete_multipart(&path, upload, parts.clone()).await;
            let Err(answered) = completed else { return Ok(()) };
            let error = self.fail(&answered);
            may_be_ours |= error.is_retryable();
            if may_be_ours && self.is_there().await {
                return Ok(());
            }
            if error.is_retryable() && pauses.pause().await {
                continue;
            }
            return Err(match error {
                StoreError::NotFound { subject } => {
                    let source = io::Error::other("the storage has lost the parts of the upload").into();
                    StoreError::Other { subject, source }
                }
                error => error,
            });
        }
    }

    /// Whether the object is there as we wrote it: its length, a new tag, and as many parts as ours where the
    /// tag tells them (AWS ends the tag of an upload in parts with their number).
    async fn is_there(&self) -> bool {
        let mut pauses = Pauses::new(Duration::from_secs(5));
        loop {
            match self.store.meta(Action::Write, &self.subject.object).await {
                Ok(Some(meta)) => {
                    let tag = meta.e_tag.as_deref().unwrap_or_default().trim_matches('"');
                    let parts = tag.rsplit_once('-').map(|(_, parts)| parts);
                    let as_many = parts.is_none_or(|parts| parts == self.next_part.to_string());
                    return meta.size == self.written && meta.e_tag != self.tag_before && as_many;
                }
                Err(error) if error.is_retryable() && pauses.pause().await => {}
                Ok(None) | Err(_) => return false,
            }
        }
    }

    pub(crate) fn abort(mut self) -> Result<(), StoreError> {
        self.failed = true;
        self.remove_parts()
    }

    /// Stops what is being uploaded and removes the parts. From a thread of its own, so that dropping a
    /// writer works wherever it happens; waits for it only so long.
    fn remove_parts(&mut self) -> Result<(), StoreError> {
        self.buffer = Vec::new();
        self.uploading.abort_all();
        let Some(upload) = self.upload.take() else {
            return Ok(());
        };
        let store = Arc::clone(&self.store);
        let name = self.subject.object.clone();
        let mut uploading = std::mem::take(&mut self.uploading);
        let (sender, receiver) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            // A part that arrives after the abort would stay.
            while uploading.join_next().await.is_some() {}
            let result = match store.abort(&name, &upload).await {
                Err(error) if !error.is_not_found() => Err(error),
                _ => Ok(()),
            };
            // Nobody may be waiting any more.
            let _ = sender.send(result);
        });
        receiver.recv_timeout(ABORT_PATIENCE).unwrap_or_else(|_| {
            let source = crate::error::Answer("removing the parts of the unfinished upload".to_owned());
            Err(StoreError::Timeout {
                subject: self.subject.clone(),
                source,
            })
        })
    }
}

fn wait<T>(
    runtime: &Handle,
    cancellation: &CancellationToken,
    subject: &Subject,
    future: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    runtime.block_on(async {
        match select(Box::pin(cancellation.cancelled()), Box::pin(future)).await {
            Either::Left(_) => Err(StoreError::Cancelled {
                subject: subject.clone(),
            }),
            Either::Right((result, _)) => result,
        }
    })
}

impl Write for S3Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.guarded(|writer| {
            let length = part_length(writer.next_part);
            if writer.buffer.len() == length && !bytes.is_empty() {
                writer.send_part()?;
            }
            let length = part_length(writer.next_part);
            if writer.buffer.capacity() == 0 {
                // Small objects should not take a whole part.
                writer.buffer.reserve(bytes.len().min(length));
            }
            let taken = bytes.len().min(length - writer.buffer.len());
            if writer.buffer.len() + taken > writer.buffer.capacity() && writer.buffer.capacity() < length {
                let wanted = (writer.buffer.capacity() * 2).clamp(writer.buffer.len() + taken, length);
                writer.buffer.reserve_exact(wanted - writer.buffer.len());
            }
            writer.buffer.extend_from_slice(&bytes[..taken]);
            writer.written += taken as u64;
            Ok(taken)
        })?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for S3Writer {
    fn drop(&mut self) {
        if self.upload.is_some()
            && let Err(error) = self.remove_parts()
        {
            tracing::warn!(%error, "parts of an unfinished upload may be left in the bucket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_parts_hold_what_the_documentation_says() {
        let total: usize = (0..MOST_PARTS).map(part_length).sum();
        let gib = total / (1024 * MIB);
        assert_eq!(gib, 457);
        assert!(
            (0..MOST_PARTS).all(|number| part_length(number) >= 5 * MIB),
            "S3's smallest part is 5 MiB"
        );
    }
}
