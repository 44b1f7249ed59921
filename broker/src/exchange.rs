//! The story of one request: route, admit, record, send.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use duo_contract::envelope::Endpoint;
use duo_contract::failure::{Failure, FailureKind};
use duo_contract::frame::Summary;
use duo_contract::name::{FeatureName, ModelName};
use duo_contract::snapshot::{Feature, Model};

use crate::admission::Admission;
use crate::audit::{AuditLog, OpenRecord};
use crate::caller::Caller;
use crate::dispatch::Dispatch;
use crate::dispatch::send::Outgoing;
pub use crate::dispatch::send::Reply;
use crate::routing::Routing;

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

/// The exchange; cheap to clone.
#[derive(Debug, Clone)]
pub struct Exchange {
    routing: Routing,
    admission: Admission,
    audit: AuditLog,
    dispatch: Dispatch,
}

impl Exchange {
    /// The exchange of these parts.
    #[must_use]
    pub fn new(routing: Routing, admission: Admission, audit: AuditLog, dispatch: Dispatch) -> Self {
        Self {
            routing,
            admission,
            audit,
            dispatch,
        }
    }

    /// The configuration of the moment.
    #[must_use]
    pub fn routing(&self) -> &Routing {
        &self.routing
    }

    /// The first gate, before the body is read: feature active, worker there,
    /// the lane's expected wait within its bound.
    ///
    /// # Errors
    /// A refusal with its `Retry-After`.
    pub fn gate(
        &self,
        caller: &Caller,
        record: &OpenRecord,
        name: &FeatureName,
    ) -> Result<(), ExchangeError> {
        let table = self.routing.load();
        record.note(Some(name), None, false);
        let feature = table.active_feature(caller, name)?;
        record.note_route(feature, table.revision());
        if self.audit.is_saturated() {
            return Err(ExchangeError {
                retry_after: Some(Duration::from_secs(1)),
                ..ExchangeError::new(
                    FailureKind::ModelUnavailable,
                    "audit_unavailable",
                    "the audit log cannot take a record just now; try again",
                )
            });
        }
        match &feature.model {
            Some(model) => self.admission.check(feature, model),
            None => Ok(()),
        }
    }

    /// Finds the model for a feature and checks that the caller may use both.
    ///
    /// # Errors
    /// Feature unknown or inactive, pair not supported, model unknown or not allowed.
    pub fn route(
        &self,
        caller: &Caller,
        record: &OpenRecord,
        feature: &FeatureName,
        choice: &ModelChoice,
    ) -> Result<RoutedRequest, ExchangeError> {
        let routed = self.routing.load().route(caller, feature, choice)?;
        record.note_route(&routed.feature, routed.revision);
        Ok(routed)
    }

    /// Admits, records, queues; comes back when the request is durably queued.
    ///
    /// # Errors
    /// A refusal, or the queue could not take it.
    pub async fn send(
        &self,
        caller: &Caller,
        record: &OpenRecord,
        routed: &RoutedRequest,
        work: Work,
    ) -> Result<Reply, ExchangeError> {
        record.note(Some(&routed.feature.name), Some(&routed.model.name), work.stream);
        record.note_work(work.prompt.as_ref(), work.body.len());
        let place = self.admission.admit(&routed.feature, &routed.model.name)?;
        self.dispatch
            .send(Outgoing {
                caller,
                record,
                routed,
                work,
                place,
            })
            .await
    }

    /// Models that a caller may name.
    #[must_use]
    pub fn models(&self, caller: &Caller) -> Vec<ModelName> {
        let table = self.routing.load();
        let mut models: Vec<_> = table
            .models()
            .map(|model| model.name.clone())
            .filter(|model| caller.may_use_model(model))
            .collect();
        models.sort();
        models
    }
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
