//! What GitLab and its editors read: `detail`, 421 for the model server, and the gentle answers of those who would rather
//! have nothing.

use std::borrow::Cow;

use axum::Json;
use axum::response::{IntoResponse, Response};
use duo_contract::failure::FailureKind;
use http::StatusCode;
use serde_json::json;

use super::wrong::{ApiError, is_retryable, is_unknown, public_message, sentence_about};
use super::{Shape, challenge};
use crate::api::{chat, code};

/// Text of a 429 on GitLab endpoints.
const TOO_MANY: &str = "Too many requests. Please try again later.";
/// Text of a 503 on GitLab endpoints when the model server is to blame.
const FAILED: &str = "Inference failed";

/// The response of an endpoint of GitLab's with this shape.
pub(super) fn answer(error: &ApiError, shape: Shape) -> Response {
    match shape {
        Shape::Completion { stream } if error.is_nothing_to_suggest() => code::nothing(stream),
        Shape::Chat if error.is_event() => chat::error_response(&error.sentence(), error.retryable()),
        Shape::Prompt { stream: false } | Shape::ModelTest => match error.upstream_code() {
            Some(code) => detail(StatusCode::MISDIRECTED_REQUEST, &phrase(code)),
            None => told(error, shape == Shape::ModelTest),
        },
        _ => told(error, false),
    }
}

impl ApiError {
    /// Is an empty answer the gentle one for someone who types?
    fn is_nothing_to_suggest(&self) -> bool {
        let Self::Exchange(error) = self else { return false };
        match error.kind {
            FailureKind::Overloaded
            | FailureKind::ModelUnavailable
            | FailureKind::DeadlineExceeded
            | FailureKind::Cancelled => true,
            FailureKind::InvalidRequest
            | FailureKind::FeatureInactive
            | FailureKind::Unsupported
            | FailureKind::Unauthorized
            | FailureKind::ModelServerFault
            | FailureKind::Internal => false,
        }
    }

    /// Does a chat client get it as an event?
    fn is_event(&self) -> bool {
        let Self::Exchange(error) = self else { return false };
        match error.kind {
            FailureKind::FeatureInactive | FailureKind::Unsupported | FailureKind::Unauthorized => false,
            FailureKind::InvalidRequest
            | FailureKind::Overloaded
            | FailureKind::ModelUnavailable
            | FailureKind::DeadlineExceeded
            | FailureKind::ModelServerFault
            | FailureKind::Cancelled
            | FailureKind::Internal => !is_unknown(error),
        }
    }

    fn retryable(&self) -> bool {
        matches!(self, Self::Exchange(error) if is_retryable(error))
    }

    /// The code a GitLab prompt answers for the model server, by 421.
    fn upstream_code(&self) -> Option<StatusCode> {
        let Self::Exchange(error) = self else { return None };
        let upstream = error
            .upstream_status
            .and_then(|code| StatusCode::from_u16(code).ok());
        match error.kind {
            FailureKind::InvalidRequest | FailureKind::Overloaded => upstream,
            FailureKind::ModelUnavailable => Some(upstream.unwrap_or(StatusCode::SERVICE_UNAVAILABLE)),
            FailureKind::Cancelled => Some(StatusCode::SERVICE_UNAVAILABLE),
            FailureKind::DeadlineExceeded => Some(StatusCode::REQUEST_TIMEOUT),
            FailureKind::ModelServerFault => Some(upstream.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)),
            FailureKind::FeatureInactive
            | FailureKind::Unsupported
            | FailureKind::Unauthorized
            | FailureKind::Internal => None,
        }
    }
}

/// `detail`: a sentence, or for the model test a list wherever it may be.
fn told(error: &ApiError, in_list: bool) -> Response {
    let status = error.status();
    let text: Cow<'_, str> = match error {
        ApiError::Stranger { text, .. } => {
            let mut response = (status, Json(json!({ "error": text }))).into_response();
            challenge(&mut response);
            return response;
        }
        ApiError::Invalid { path, problem } => return invalid(path, problem),
        ApiError::Exchange(inner) if !in_list => match inner.kind {
            FailureKind::Overloaded => TOO_MANY.into(),
            FailureKind::ModelServerFault => FAILED.into(),
            FailureKind::Internal if status == StatusCode::INTERNAL_SERVER_ERROR => {
                return (status, "Internal Server Error").into_response();
            }
            _ => public_message(inner).into(),
        },
        other => other.sentence(),
    };
    if in_list {
        return (status, Json(json!({"detail": [{ "msg": text }]}))).into_response();
    }
    detail(status, &text)
}

fn invalid(path: &str, problem: &str) -> Response {
    let location: Vec<&str> = std::iter::once("body")
        .chain(path.split('.').filter(|part| !part.is_empty()))
        .collect();
    let entry = json!({"loc": location, "msg": sentence_about(path, problem), "type": "value_error"});
    (
        StatusCode::UNPROCESSABLE_ENTITY,
        Json(json!({ "detail": [entry] })),
    )
        .into_response()
}

fn detail(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "detail": text }))).into_response()
}

/// `503: Service Unavailable`, as GitLab's model test shows it.
fn phrase(code: StatusCode) -> String {
    format!(
        "{}: {}",
        code.as_u16(),
        code.canonical_reason().unwrap_or("Unknown")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::error::tests::{PROMPT, answer, failure};

    #[tokio::test]
    async fn a_prompt_says_what_the_model_server_said() {
        let text = |kind, upstream| async move { answer(failure(kind, upstream, None), PROMPT).await.1 };
        assert_eq!(
            text(FailureKind::ModelUnavailable, None).await,
            r#"{"detail":"503: Service Unavailable"}"#
        );
        assert_eq!(
            text(FailureKind::DeadlineExceeded, None).await,
            r#"{"detail":"408: Request Timeout"}"#
        );
        assert_eq!(
            text(FailureKind::ModelServerFault, Some(404)).await,
            r#"{"detail":"404: Not Found"}"#
        );
    }

    #[tokio::test]
    async fn the_model_test_shows_administrators_the_reason() {
        let (status, body, _) = answer(
            failure(FailureKind::FeatureInactive, None, None),
            Shape::ModelTest,
        )
        .await;
        assert_eq!((status, body.as_str()), (403, r#"{"detail":[{"msg":"words"}]}"#));
        let (status, ..) = answer(
            failure(FailureKind::ModelUnavailable, None, None),
            Shape::ModelTest,
        )
        .await;
        assert_eq!(status, 421);
    }
}
