//! The closed list of ways a request can fail, with one retry rule each, and
//! the budget of calls that all retries of one request share.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a request failed. `api/error.rs` of the broker maps it to a status,
/// `outcome.rs` of the worker to a settlement, metrics use its snake_case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(
    feature = "document",
    derive(utoipa::ToSchema),
    schema(description = "How a request failed.")
)]
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
    /// Another worker may do better; the same one fails the same way.
    Elsewhere,
    /// The same model server again with backoff, then another worker.
    HereThenElsewhere,
}

/// Calls of a model server in a request's first attempt.
const CALLS_OF_FIRST_ATTEMPT: u32 = 3;

/// Most calls of a model server that attempt `attempt`, from 1, may make: three,
/// then two, then one each. The attempt's number comes with the claim, so the
/// budget of a request holds across workers without being carried along.
#[must_use]
pub fn calls_of_attempt(attempt: u32) -> u32 {
    CALLS_OF_FIRST_ATTEMPT
        .saturating_sub(attempt.saturating_sub(1))
        .max(1)
}

/// Most calls of model servers that a request of so many attempts can cost.
#[must_use]
pub fn calls_of_request(attempts: u32) -> u32 {
    let falling = attempts.min(CALLS_OF_FIRST_ATTEMPT);
    let calls: u32 = (1..=falling).map(calls_of_attempt).sum();
    calls.saturating_add(attempts - falling)
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
    /// May the call be made again, and where. A model server that refuses the
    /// worker's key or does not know the model does so every time.
    #[must_use]
    pub fn retry(&self) -> RetryRule {
        match (self.kind.retry(), self.upstream_status) {
            (RetryRule::HereThenElsewhere, Some(401 | 403 | 404)) => RetryRule::Elsewhere,
            (rule, _) => rule,
        }
    }

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
    fn the_calls_of_all_attempts_are_within_the_requests_budget() {
        assert_eq!([1, 2, 3, 4].map(calls_of_attempt), [3, 2, 1, 1]);
        assert_eq!([1, 2, 3, 5].map(calls_of_request), [3, 5, 6, 8]);
        for attempts in 1..50 {
            let calls: u32 = (1..=attempts).map(calls_of_attempt).sum();
            assert_eq!(calls, calls_of_request(attempts));
        }
    }

    #[test]
    fn a_refused_key_is_tried_elsewhere_only_and_a_bad_request_nowhere() {
        let rule = |kind, status| {
            let failure = Failure {
                upstream_status: Some(status),
                ..Failure::new(kind, "")
            };
            failure.retry()
        };
        for status in [401, 403, 404] {
            assert_eq!(rule(FailureKind::ModelUnavailable, status), RetryRule::Elsewhere);
        }
        for status in [400, 413, 422] {
            assert_eq!(rule(FailureKind::InvalidRequest, status), RetryRule::Never);
        }
        for status in [408, 503] {
            assert_eq!(
                rule(FailureKind::ModelUnavailable, status),
                RetryRule::HereThenElsewhere
            );
        }
    }

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
