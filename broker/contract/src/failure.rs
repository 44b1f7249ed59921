//! The closed list of ways a request can fail, with one retry rule each.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a request failed. `api/error.rs` of the broker maps it to a status,
/// `outcome.rs` of the worker to a settlement, metrics use its snake_case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The client's mistake; the model server or we refused it.
    InvalidRequest,
    /// The feature is switched off.
    FeatureInactive,
    /// The feature does not go with the model.
    Unsupported,
    /// The caller may not do this.
    Unauthorized,
    /// Too much work ahead, here or at the model server.
    Overloaded,
    /// No worker serves the model, or its server is down.
    ModelUnavailable,
    /// The request's time ran out.
    DeadlineExceeded,
    /// The model server broke off, stalled, or sent what nobody can read.
    ModelServerFault,
    /// The client left.
    Cancelled,
    /// Our own fault.
    Internal,
}

/// What a worker does about a failure before the first frame has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryRule {
    /// Never again: the same call fails the same way.
    Never,
    /// The same model server again with backoff, then another worker.
    HereThenElsewhere,
}

impl FailureKind {
    /// Every kind, for metrics that start at zero.
    pub const ALL: [FailureKind; 10] = [
        FailureKind::InvalidRequest,
        FailureKind::FeatureInactive,
        FailureKind::Unsupported,
        FailureKind::Unauthorized,
        FailureKind::Overloaded,
        FailureKind::ModelUnavailable,
        FailureKind::DeadlineExceeded,
        FailureKind::ModelServerFault,
        FailureKind::Cancelled,
        FailureKind::Internal,
    ];

    /// The kind's snake_case name, as in JSON, SQL, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FailureKind::InvalidRequest => "invalid_request",
            FailureKind::FeatureInactive => "feature_inactive",
            FailureKind::Unsupported => "unsupported",
            FailureKind::Unauthorized => "unauthorized",
            FailureKind::Overloaded => "overloaded",
            FailureKind::ModelUnavailable => "model_unavailable",
            FailureKind::DeadlineExceeded => "deadline_exceeded",
            FailureKind::ModelServerFault => "model_server_fault",
            FailureKind::Cancelled => "cancelled",
            FailureKind::Internal => "internal",
        }
    }

    /// May the call be made again, and where.
    #[must_use]
    pub fn retry(self) -> RetryRule {
        match self {
            FailureKind::Overloaded | FailureKind::ModelUnavailable | FailureKind::ModelServerFault => {
                RetryRule::HereThenElsewhere
            }
            FailureKind::InvalidRequest
            | FailureKind::FeatureInactive
            | FailureKind::Unsupported
            | FailureKind::Unauthorized
            | FailureKind::DeadlineExceeded
            | FailureKind::Cancelled
            | FailureKind::Internal => RetryRule::Never,
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure as a worker reports it to a request's owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct Failure {
    /// What went wrong.
    pub kind: FailureKind,
    /// A sentence a client may read: no prompt, no key, no address.
    pub message: String,
    /// Status of the model server's answer, when it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_status: Option<u16>,
    /// The model server's own error object, handed on to OpenAI clients for
    /// [`FailureKind::InvalidRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_error: Option<String>,
    /// The model server's `Retry-After`, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Failure {
    /// A failure that no model server answered for.
    #[must_use]
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            upstream_status: None,
            upstream_error: None,
            retry_after_ms: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_written_alike_everywhere() {
        for kind in FailureKind::ALL {
            assert_eq!(
                serde_json::to_string(&kind).expect("writes"),
                format!("\"{kind}\"")
            );
        }
    }
}
