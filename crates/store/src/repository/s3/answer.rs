//! What an S3 server said, sorted by what a person would do about it.

use object_store::client::{HttpError, HttpErrorKind};

use crate::error::{Action, Answer, StoreError, Subject};

/// The parts of an error that matter.
struct Said {
    /// S3's error code (`NoSuchBucket`), where the answer had a body.
    code: Option<String>,
    /// The HTTP status, where there was an answer.
    status: Option<u16>,
    /// What kind of failure, where there was none.
    transport: Option<HttpErrorKind>,
    /// One line for a person.
    text: String,
}

fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = text.split_once(&format!("<{name}>"))?;
    after
        .split_once(&format!("</{name}>"))
        .map(|(content, _)| content.trim())
}

/// Reads an error's chain: its texts repeat each other, so the innermost one is taken.
fn said(error: &object_store::Error) -> Said {
    let mut transport = None;
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
        if let Some(http) = innermost.downcast_ref::<HttpError>() {
            transport = Some(http.kind());
        }
    }
    let full = innermost.to_string();
    let status_text = full.split_once("status code: ").map(|(_, after)| after);
    let status = status_text
        .and_then(|text| text.get(..3))
        .and_then(|digits| digits.parse().ok());
    let code = element(&full, "Code").map(str::to_owned);
    let text = match (&code, element(&full, "Message")) {
        (Some(code), Some(message)) if !message.is_empty() => format!("{code}: {message}"),
        (Some(code), _) => code.clone(),
        (None, _) => {
            let text = status_text.unwrap_or(&full).trim().trim_end_matches(':');
            // Proxies answer with pages of HTML.
            text.lines()
                .next()
                .unwrap_or_default()
                .chars()
                .take(300)
                .collect()
        }
    };
    Said {
        code,
        status,
        transport,
        text,
    }
}

/// An error of the client as one of ours.
pub(super) fn store_error(error: &object_store::Error, subject: Subject) -> StoreError {
    let said = said(error);
    let source = Answer(said.text);
    if let Some(code) = &said.code {
        match code.as_str() {
            "NoSuchBucket" => {
                return StoreError::RepositoryMissing {
                    subject,
                    kind: "bucket",
                };
            }
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "InvalidToken"
            | "ExpiredToken"
            | "InvalidSecurity"
            | "NotSignedUp" => {
                return StoreError::Authentication { subject, source };
            }
            "RequestTimeTooSkewed" => return StoreError::Clock { subject, source },
            "PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed" => {
                return StoreError::WrongRegion { subject, source };
            }
            "XMinioStorageFull" | "InsufficientStorage" | "InsufficientCapacity" | "QuotaExceeded" => {
                return StoreError::NoSpace { subject };
            }
            // A range that was inside the object when it was looked at.
            "InvalidRange" if subject.action == Action::Read => return StoreError::Changed { subject },
            // Another conditional write to the same key is under way (AWS), or an error behind a status of 200.
            "ConditionalRequestConflict"
            | "OperationAborted"
            | "InternalError"
            | "SlowDown"
            | "ServiceUnavailable" => {
                return StoreError::Unavailable { subject, source };
            }
            _ => {}
        }
    }
    match error {
        object_store::Error::NotFound { .. } => return StoreError::NotFound { subject },
        object_store::Error::AlreadyExists { .. } => return StoreError::AlreadyExists { subject },
        object_store::Error::Precondition { .. } | object_store::Error::NotModified { .. } => {
            return match subject.action {
                Action::Write => StoreError::AlreadyExists { subject },
                _ => StoreError::Changed { subject },
            };
        }
        object_store::Error::PermissionDenied { .. } => {
            return StoreError::PermissionDenied { subject, source };
        }
        object_store::Error::Unauthenticated { .. } => return StoreError::Authentication { subject, source },
        _ => {}
    }
    match (said.transport, said.status) {
        (Some(HttpErrorKind::Timeout), _) => StoreError::Timeout { subject, source },
        (Some(_), _) if is_tls(&source.0) => StoreError::Tls { subject, source },
        (Some(_), _) => StoreError::Unreachable { subject, source },
        (None, Some(507)) => StoreError::NoSpace { subject },
        (None, Some(301 | 302 | 307 | 308)) => StoreError::WrongRegion { subject, source },
        (None, Some(408 | 429 | 500..)) => StoreError::Unavailable { subject, source },
        (None, None) if source.0.contains("redirect") => StoreError::WrongRegion { subject, source },
        _ => StoreError::Other {
            subject,
            source: Box::new(source),
        },
    }
}

/// Whether a server does not know conditional writes at all (HTTP 501).
pub(super) fn is_not_implemented(error: &object_store::Error) -> bool {
    let said = said(error);
    said.status == Some(501) || said.code.as_deref() == Some("NotImplemented")
}

fn is_tls(text: &str) -> bool {
    [
        "certificate",
        "UnknownIssuer",
        "handshake",
        "InvalidContentType",
        "TLS",
    ]
    .iter()
    .any(|word| text.contains(word))
}
