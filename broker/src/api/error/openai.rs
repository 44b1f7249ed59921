//! What OpenAI's clients read, and with the same statuses those of KServe's inference.

use std::borrow::Cow;

use axum::Json;
use axum::response::{IntoResponse, Response};
use duo_contract::failure::FailureKind;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::challenge;
use super::wrong::{ApiError, is_too_long, is_unknown};
use crate::request::ExchangeError;

/// The response of an endpoint of OpenAI's.
pub(super) fn answer(error: &ApiError) -> Response {
    let (status, ..) = error.openai_terms();
    let mut response = (status, Json(openai_object(error))).into_response();
    challenge(&mut response);
    response
}

/// KServe's form: the sentence alone, the model server's own where the client was wrong.
pub(super) fn inference(error: &ApiError) -> Response {
    let (status, ..) = error.openai_terms();
    let upstream = upstream_object(error);
    let text = upstream
        .as_ref()
        .and_then(|object| object["error"]["message"].as_str());
    let text = text.map_or_else(|| error.sentence(), Cow::Borrowed);
    let mut response = (status, Json(json!({ "error": text }))).into_response();
    challenge(&mut response);
    response
}

/// OpenAI's error object, also the event that ends a failed stream.
pub(crate) fn openai_object(error: &ApiError) -> Value {
    if let Some(object) = upstream_object(error) {
        return object;
    }
    let (_, kind, code, param) = error.openai_terms();
    json!({"error": {"message": error.sentence(), "type": kind, "param": param, "code": code}})
}

impl ApiError {
    /// Status, type, code and field as OpenAI's clients know them.
    pub(super) fn openai_terms(&self) -> (StatusCode, &'static str, Cow<'static, str>, Option<&str>) {
        const INVALID: &str = "invalid_request_error";
        const RATE_LIMIT: &str = "rate_limit_exceeded";
        let status = self.status();
        match self {
            Self::Malformed | Self::NotJson => {
                (StatusCode::BAD_REQUEST, INVALID, "invalid_json".into(), None)
            }
            Self::Invalid { path, .. } => (
                StatusCode::BAD_REQUEST,
                INVALID,
                "invalid_value".into(),
                Some(path.as_str()).filter(|path| !path.is_empty()),
            ),
            Self::ContextLength { path, .. } => {
                (StatusCode::BAD_REQUEST, INVALID, self.reason(), Some(*path))
            }
            Self::Stranger { .. } => (status, INVALID, "invalid_api_key".into(), None),
            Self::Forbidden(_) => (status, INVALID, "permission_denied".into(), None),
            Self::Senseless(_)
            | Self::Encoded
            | Self::TooLarge(_)
            | Self::BodyLate
            | Self::NotFound(_)
            | Self::MethodNotAllowed
            | Self::Problems(_)
            | Self::NoRevision
            | Self::Stale { .. }
            | Self::Erased(_)
            | Self::Conflict(_) => (status, INVALID, self.reason(), None),
            Self::NoSigningKey => (status, "server_error", self.reason(), None),
            Self::Exchange(error) if error.reason == "unknown_model" => (
                StatusCode::NOT_FOUND,
                INVALID,
                "model_not_found".into(),
                Some("model"),
            ),
            Self::Exchange(error) if is_unknown(error) => (status, INVALID, self.reason(), None),
            Self::Exchange(error) => {
                let (status, kind) = match error.kind {
                    FailureKind::InvalidRequest => (upstream_client_error(error), INVALID),
                    FailureKind::FeatureInactive | FailureKind::Unsupported | FailureKind::Unauthorized => {
                        (status, INVALID)
                    }
                    FailureKind::Overloaded if error.reason == error.kind.as_str() => {
                        return (status, RATE_LIMIT, RATE_LIMIT.into(), None);
                    }
                    FailureKind::Overloaded => (status, RATE_LIMIT),
                    FailureKind::ModelServerFault => (StatusCode::BAD_GATEWAY, "server_error"),
                    FailureKind::ModelUnavailable
                    | FailureKind::DeadlineExceeded
                    | FailureKind::Cancelled
                    | FailureKind::Internal => (status, "server_error"),
                };
                (status, kind, self.reason(), None)
            }
        }
    }
}

/// The model server's own error object, for what the client did wrong.
fn upstream_object(error: &ApiError) -> Option<Value> {
    let ApiError::Exchange(error) = error else {
        return None;
    };
    if error.kind != FailureKind::InvalidRequest {
        return None;
    }
    let object: Map<String, Value> = serde_json::from_str(error.upstream_error.as_deref()?).ok()?;
    let mut object = match object.contains_key("error") {
        true => Value::Object(object),
        false => json!({ "error": object }),
    };
    if is_too_long(error)
        && let Some(Value::Object(error)) = object.get_mut("error")
    {
        error.insert("code".to_owned(), "context_length_exceeded".into());
    }
    Some(object)
}

fn upstream_client_error(error: &ExchangeError) -> StatusCode {
    let upstream = error
        .upstream_status
        .and_then(|code| StatusCode::from_u16(code).ok());
    upstream
        .filter(|code| code.is_client_error() && *code != StatusCode::UNAUTHORIZED)
        .unwrap_or(StatusCode::BAD_REQUEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::error::Shape;
    use crate::api::error::tests::{answer, failure};

    #[tokio::test]
    async fn openai_clients_get_the_model_servers_own_error() {
        let mut error = ExchangeError::new(FailureKind::InvalidRequest, "invalid_request", "ours");
        error.upstream_status = Some(404);
        error.upstream_error =
            Some(r#"{"error":{"message":"theirs","type":"x","param":null,"code":7}}"#.to_owned());
        let (status, body, _) = answer(ApiError::Exchange(error.clone()), Shape::OpenAi).await;
        assert_eq!(status, 404);
        assert!(body.contains("theirs"), "{body}");
        error.upstream_error = Some("no JSON".to_owned());
        error.upstream_status = Some(500);
        let (status, body, _) = answer(ApiError::Exchange(error), Shape::OpenAi).await;
        assert_eq!(status, 400);
        assert!(body.contains("ours"), "{body}");
        let unknown = ExchangeError::new(FailureKind::InvalidRequest, "unknown_model", "words");
        let (status, body, _) = answer(ApiError::Exchange(unknown), Shape::OpenAi).await;
        assert_eq!(status, 404);
        assert!(body.contains("model_not_found"), "{body}");
    }

    #[tokio::test]
    async fn a_window_that_only_the_model_server_could_measure_is_named_too() {
        for upstream in [
            r#"{"error":{"message":"This model's maximum context length is 8192 tokens.","type":"BadRequestError","param":"input_tokens","code":400}}"#,
            r#"{"error":{"message":"the request exceeds the available context size","type":"exceed_context_size_error","code":400}}"#,
        ] {
            let mut error = ExchangeError::new(FailureKind::InvalidRequest, "invalid_request", "ours");
            error.upstream_status = Some(400);
            error.upstream_error = Some(upstream.to_owned());
            let error = ApiError::Exchange(error);
            let object = openai_object(&error);
            assert_eq!(object["error"]["code"], "context_length_exceeded", "{object}");
            let (status, body, _) = answer(error, Shape::Chat).await;
            assert_eq!(status, 200);
            assert!(body.contains("prompt is too long"), "{body}");
        }
    }

    #[tokio::test]
    async fn inference_tells_a_sentence_and_the_model_servers_own_where_the_client_was_wrong() {
        let mut error = ExchangeError::new(FailureKind::InvalidRequest, "invalid_request", "words");
        error.upstream_status = Some(422);
        error.upstream_error = Some(r#"{"message":"no such input","code":null}"#.to_owned());
        let (status, body, _) = answer(ApiError::Exchange(error), Shape::Infer).await;
        assert_eq!((status, body.as_str()), (422, r#"{"error":"no such input"}"#));
        let (status, body, _) = answer(
            failure(FailureKind::ModelServerFault, Some(500), None),
            Shape::Infer,
        )
        .await;
        assert_eq!((status, body.as_str()), (502, r#"{"error":"words"}"#));
        let overloaded = answer(failure(FailureKind::Overloaded, None, Some(1200)), Shape::Infer).await;
        assert_eq!((overloaded.0, overloaded.2.as_deref()), (429, Some("2")));
        let (status, body, _) = answer(ApiError::invalid("inputs", "is required"), Shape::Infer).await;
        assert_eq!(
            (status, body.as_str()),
            (400, r#"{"error":"inputs: is required"}"#)
        );
    }
}
