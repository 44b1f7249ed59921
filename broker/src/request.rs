//! What the steps of a request hand on: which model it wants, what it was
//! routed to, what is sent, what comes back, and why it was refused.
//!
//! Owns no behaviour. [`crate::api`] makes and reads these; the steps of
//! [`crate::exchange`] turn one into the next.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use duo_contract::envelope::Endpoint;
use duo_contract::failure::{Failure, FailureKind};
use duo_contract::frame::Summary;
use duo_contract::snapshot::{Feature, Model};

/// Why a request was refused or failed, with all an answer needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} ({reason}): {message}")]
pub struct ExchangeError {
    /// What went wrong.
    pub kind: FailureKind,
    /// Why, one snake_case word for answer, metrics and audit record, such as
    /// `caller_limit`, `lane_full`, `unknown_model`.
    pub reason: Cow<'static, str>,
    /// A sentence a client may read, which says what to do next.
    pub message: String,
    /// When a retry makes sense.
    pub retry_after: Option<Duration>,
    /// Status of the model server's answer, when it gave one.
    pub upstream_status: Option<u16>,
    /// The model server's own error object (JSON), for OpenAI clients.
    pub upstream_error: Option<String>,
}

impl ExchangeError {
    /// An error of our own.
    #[must_use]
    pub fn new(kind: FailureKind, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            reason: Cow::Borrowed(reason),
            message: message.into(),
            retry_after: None,
            upstream_status: None,
            upstream_error: None,
        }
    }
}

impl From<Failure> for ExchangeError {
    fn from(failure: Failure) -> Self {
        Self {
            kind: failure.kind,
            reason: Cow::Borrowed(failure.kind.as_str()),
            message: failure.message,
            retry_after: failure.retry_after_ms.map(Duration::from_millis),
            upstream_status: failure.upstream_status,
            upstream_error: failure.upstream_error,
        }
    }
}

/// Which model a request wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelChoice {
    /// The feature's own.
    Assigned,
    /// The feature's own, unless this text names a configured model that the
    /// feature's rules allow; otherwise it is ignored (`model_metadata`, `model_name`).
    Hint(String),
    /// This one or nothing (OpenAI's `model`).
    Named(String),
}

/// A request whose feature and model are known and allowed.
#[derive(Debug, Clone)]
pub struct RoutedRequest {
    /// The feature's configuration.
    pub feature: Feature,
    /// The model that will answer.
    pub model: Model,
    /// Configuration revision it runs under.
    pub revision: u64,
}

/// What is to be sent to a model server.
#[derive(Debug, Clone)]
pub struct Work {
    /// Which call.
    pub endpoint: Endpoint,
    /// JSON object without its `model` member.
    pub body: Bytes,
    /// Does `body` ask for a stream?
    pub stream: bool,
    /// Template it was rendered from: id and version.
    pub prompt: Option<(String, String)>,
    /// Requests of one person with the same key replace each other while
    /// queued (completions of one file).
    pub supersede_key: Option<String>,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplyEvent {
    /// OpenAI chunk objects as the model server wrote them, one a line,
    /// joined by `\n`; never empty.
    Chunks(Bytes),
    /// The good end. For an answer that is no stream the whole body.
    Done {
        /// How it went.
        summary: Summary,
        /// The body of an answer that is no stream, else empty.
        body: Bytes,
    },
}
