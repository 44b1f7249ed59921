//! An error to status and body: the only status codes of the API.
//!
//! What went wrong is an [`ApiError`] (`wrong`); how the endpoint's clients read errors
//! is a [`Shape`], one file for each family of them. Before the first byte of an answer:
//!
//! | what | completion | other code, prompt streams | prompt, not streamed | chat | OpenAI |
//! |---|---|---|---|---|---|
//! | malformed, wrong or missing field | 422 | 422 | 422 | 422 | 400 |
//! | wrong content type | 422 | 422 | 422 | 422 | – |
//! | compressed body | 415 | 415 | 415 | 415 | 415 |
//! | body too large, too slow | 413, 408 | 413, 408 | 413, 408 | 413, 408 | 413, 408 |
//! | no or bad token | 401 | 401 | 401 | 401 | 401 |
//! | scope, role, inactive feature, unsupported pair | 403 | 403 | 403 | 403 | 403 |
//! | unknown path, prompt, feature, model | 404 | 404 | 404 | 404 | 404 |
//! | `invalid_request` of the model server | 422 | 422 | 421 with its code | `error` event | its 4xx, else 400 |
//! | `overloaded` by us | empty answer | 429 | 429 | `error` event | 429 |
//! | `overloaded` by the model server | empty answer | 429 | 421 `429: …` | `error` event | 429 |
//! | `model_unavailable` | empty answer | 503 | 421 `503: …` | `error` event | 503 |
//! | `deadline_exceeded` | empty answer | 503 | 421 `408: …` | `error` event | 503 |
//! | `cancelled` (superseded, too slow a reader) | empty answer | 503 | 421 `503: …` | `error` event | 503 |
//! | `model_server_fault` | 503 | 503 | 421 with its code, else `500: …` | `error` event | 502 |
//! | `internal` with a time to try again | 503 | 503 | 503 | `error` event | 503 |
//! | no key signs a token for an IDE | – | 500 | – | – | – |
//! | `internal` | 500 | 500 | 500 | `error` event | 500 |
//!
//! The empty answer is 200 with `choices: []`, or for a stream 200 with no
//! text: an editor takes it as nothing to suggest. An `error` event has status
//! 200; it is `retryable` when the wait should clear within five seconds. The
//! model test shows administrators the reason of every status but 200 and 421,
//! so its errors have the list form of `detail`. Audit and administration read
//! `{"error", "message"}` with the statuses of OpenAI, 422 for fields (with
//! `problems`), 428 and 409 for revisions, 410 for what was erased; inference by other than language
//! models has OpenAI's statuses and `{"error": "…"}`. Where the
//! exchange refused, `X-Duo-Reason` has the reason in every shape, as OpenAI's
//! `code` has it.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use duo_contract::failure::FailureKind;
use http::{HeaderName, HeaderValue, StatusCode, header};

mod gitlab;
mod openai;
mod plain;
mod wrong;

pub(crate) use openai::openai_object;
use wrong::is_unknown;
pub(crate) use wrong::{ApiError, is_retryable, public_message};

/// The refusal's reason, for endpoints whose clients expect a fixed text or
/// none at all.
const REASON: HeaderName = HeaderName::from_static("x-duo-reason");

/// How an endpoint's clients read errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Code completion, which would rather have nothing than wait.
    Completion {
        /// Did the client ask for a stream?
        stream: bool,
    },
    /// The other GitLab endpoints.
    GitLab,
    /// GitLab's prompts.
    Prompt {
        /// Did the client ask for a stream?
        stream: bool,
    },
    /// GitLab's model test.
    ModelTest,
    /// GitLab's chat, whose errors are events.
    Chat,
    /// OpenAI's endpoints.
    OpenAi,
    /// Inference by models that are no language models.
    Infer,
    /// Audit and administration.
    Plain,
}

/// Why a response is a refusal: goes into its extensions for the record.
#[derive(Debug, Clone)]
pub(crate) struct Refused(pub(crate) Cow<'static, str>);

impl ApiError {
    /// The response in the shape the endpoint's clients read.
    pub(crate) fn respond(&self, shape: Shape) -> Response {
        let mut response = match shape {
            Shape::OpenAi => openai::answer(self),
            Shape::Infer => openai::inference(self),
            Shape::Plain => plain::answer(self),
            Shape::Completion { .. }
            | Shape::GitLab
            | Shape::Prompt { .. }
            | Shape::ModelTest
            | Shape::Chat => gitlab::answer(self, shape),
        };
        if let Some(after) = self.retry_after()
            && (response.status() == StatusCode::TOO_MANY_REQUESTS
                || response.status() == StatusCode::SERVICE_UNAVAILABLE)
        {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        let reason = self.reason();
        if let Self::Exchange(_) = self
            && let Ok(value) = HeaderValue::from_str(&reason)
        {
            response.headers_mut().insert(REASON, value);
        }
        response.extensions_mut().insert(Refused(reason));
        response
    }

    /// The status on GitLab's code endpoints, which the other shapes start from.
    fn status(&self) -> StatusCode {
        match self {
            Self::Malformed
            | Self::Invalid { .. }
            | Self::Problems(_)
            | Self::NotJson
            | Self::ContextLength { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NoRevision => StatusCode::PRECONDITION_REQUIRED,
            Self::Senseless(_) => StatusCode::BAD_REQUEST,
            Self::Encoded => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyLate => StatusCode::REQUEST_TIMEOUT,
            Self::Stranger { .. } => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict(_) | Self::Stale { .. } => StatusCode::CONFLICT,
            Self::Erased(_) => StatusCode::GONE,
            Self::NoSigningKey => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Exchange(error) if is_unknown(error) => StatusCode::NOT_FOUND,
            Self::Exchange(error) => match error.kind {
                FailureKind::InvalidRequest => StatusCode::UNPROCESSABLE_ENTITY,
                FailureKind::FeatureInactive | FailureKind::Unsupported | FailureKind::Unauthorized => {
                    StatusCode::FORBIDDEN
                }
                FailureKind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
                FailureKind::ModelUnavailable
                | FailureKind::DeadlineExceeded
                | FailureKind::Cancelled
                | FailureKind::ModelServerFault => StatusCode::SERVICE_UNAVAILABLE,
                FailureKind::Internal if error.retry_after.is_some() => StatusCode::SERVICE_UNAVAILABLE,
                FailureKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }
}

fn challenge(response: &mut Response<Body>) {
    if response.status() == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
}

fn whole_seconds(after: Duration) -> u64 {
    after
        .as_millis()
        .div_ceil(1000)
        .try_into()
        .unwrap_or(u64::MAX)
        .max(1)
}

#[cfg(test)]
mod tests;
