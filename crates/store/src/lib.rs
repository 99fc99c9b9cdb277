//! IO with repositories: objects on a file system or S3, compression, encryption, durable publication.
