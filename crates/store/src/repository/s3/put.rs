//! Objects in one piece.

use bytes::Bytes;
use object_store::aws::AmazonS3;
use object_store::{ObjectStore, ObjectStoreExt, PutOptions, PutPayload};

use super::{Pauses, S3Store, answer};
use crate::error::{Action, StoreError};
use crate::repository::PutMode;

/// Objects beyond this get more time per request.
const BULK: usize = 8 * 1024 * 1024;
/// S3's limit for an object in one piece (Amazon S3 user guide, "Uploading objects").
const LARGEST: usize = 5 * 1024 * 1024 * 1024;

impl S3Store {
    /// Puts an object with one request per attempt. The bytes are shared with the request, not copied.
    pub(in crate::repository) async fn put_bytes(
        &self,
        name: &str,
        bytes: Bytes,
        mode: PutMode,
    ) -> Result<(), StoreError> {
        match mode {
            PutMode::Overwrite => self.overwrite(name, bytes).await,
            PutMode::Create => self.create(name, bytes, false).await,
        }
    }

    fn client_for(&self, bytes: &Bytes) -> &AmazonS3 {
        if bytes.len() > BULK {
            &self.bulk
        } else {
            &self.once
        }
    }

    async fn admit(&self, name: &str, bytes: &Bytes) -> Result<(), StoreError> {
        if bytes.len() > LARGEST {
            return Err(StoreError::TooLarge {
                subject: self.subject(Action::Write, name),
                limit: LARGEST as u64,
            });
        }
        self.throttle.take(bytes.len()).await;
        Ok(())
    }

    async fn overwrite(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.admit(name, &bytes).await?;
        let (client, path) = (self.client_for(&bytes), self.path(name));
        let mut pauses = Pauses::new(self.patience.retry);
        loop {
            let put = client.put(&path, PutPayload::from_bytes(bytes.clone())).await;
            let Err(answered) = put else {
                self.note_answer(true);
                return Ok(());
            };
            let error = self.error(Action::Write, name, &answered);
            if !error.is_retryable() {
                return Err(error);
            }
            if !pauses.pause().await {
                self.note_answer(false);
                return Err(error);
            }
        }
    }

    /// Puts an object only where nothing is, and repeats without losing track: an answer that was lost may
    /// mean that our own bytes are what "exists already". Where the server does not know the condition, it is
    /// looked whether the object is there, unless `only_conditional`.
    pub(in crate::repository) async fn create(
        &self,
        name: &str,
        bytes: Bytes,
        only_conditional: bool,
    ) -> Result<(), StoreError> {
        self.admit(name, &bytes).await?;
        let (client, path) = (self.client_for(&bytes), self.path(name));
        let mut pauses = Pauses::new(self.patience.retry);
        let mut may_be_ours = false;
        loop {
            let options = PutOptions::from(object_store::PutMode::Create);
            let put = client
                .put_opts(&path, PutPayload::from_bytes(bytes.clone()), options)
                .await;
            let Err(answered) = put else {
                self.note_answer(true);
                return Ok(());
            };
            if answer::is_not_implemented(&answered) {
                let subject = self.subject(Action::Write, name);
                if only_conditional {
                    return Err(StoreError::NotConditional { subject });
                }
                if self.head(name).await?.is_some() {
                    return Err(StoreError::AlreadyExists { subject });
                }
                return self.overwrite(name, bytes).await;
            }
            let error = self.error(Action::Write, name, &answered);
            match error {
                StoreError::AlreadyExists { .. } if may_be_ours => {
                    return self.decide(name, &bytes, error).await;
                }
                error if error.is_retryable() => {
                    may_be_ours = true;
                    if !pauses.pause().await {
                        self.note_answer(false);
                        return self.decide(name, &bytes, error).await;
                    }
                }
                error => return Err(error),
            }
        }
    }

    /// Looks whose object is there after an answer that was lost. `last` is what is told when nothing is there.
    async fn decide(&self, name: &str, bytes: &Bytes, last: StoreError) -> Result<(), StoreError> {
        match self.get_bytes(name, bytes.len() as u64).await {
            Ok(there) if there == *bytes => Ok(()),
            Ok(_) | Err(StoreError::TooLarge { .. }) => Err(StoreError::AlreadyExists {
                subject: self.subject(Action::Write, name),
            }),
            Err(StoreError::NotFound { .. }) => Err(last),
            // "It exists" is not said of what nobody could look at.
            Err(error) if matches!(last, StoreError::AlreadyExists { .. }) => Err(error),
            Err(_) => Err(last),
        }
    }

    /// One attempt to create, for proving that the store obeys.
    pub(in crate::repository) async fn attempt_create(
        &self,
        name: &str,
        bytes: Bytes,
    ) -> Result<bool, StoreError> {
        let options = PutOptions::from(object_store::PutMode::Create);
        match self
            .once
            .put_opts(&self.path(name), PutPayload::from_bytes(bytes), options)
            .await
        {
            Ok(_) => Ok(true),
            Err(answered) => match self.error(Action::Write, name, &answered) {
                StoreError::AlreadyExists { .. } => Ok(false),
                error => Err(error),
            },
        }
    }
}
