//! What a refusal or a silence of a model server means.

use std::time::Duration;

use duo_contract::failure::{Failure, FailureKind};
use http::StatusCode;
use http::header::RETRY_AFTER;
use reqwest::Response;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use crate::config::ServerKind;
use crate::model_server::{Blame, CALLS_WHEN_AWAY, CALLS_WHEN_FAILING, Fault};

/// Most bytes read of an error's body, and how long.
const MOST_ERROR_BYTES: usize = 64 << 10;
const ERROR_TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes of an error object that is handed on.
const MOST_OBJECT_BYTES: usize = 8 << 10;
/// Most characters of a longer one's message.
const MOST_MESSAGE_CHARS: usize = 1000;

/// The call ended without an answer.
pub(super) fn unanswered(error: &reqwest::Error) -> Fault {
    if error.is_connect() {
        Fault {
            failure: Failure::new(
                FailureKind::ModelUnavailable,
                "the model server cannot be reached",
            ),
            most_calls: CALLS_WHEN_AWAY,
            blame: Blame::Unreachable,
        }
    } else {
        Fault::server("the model server broke off before it answered")
    }
}

/// The server answered with another status than 200.
pub(super) async fn refused(response: Response, kind: ServerKind, deadline: Instant) -> Fault {
    let status = response.status();
    let retry_after_ms = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok())
        .map(|seconds| seconds.saturating_mul(1000));
    let body = timeout_at(deadline.min(Instant::now() + ERROR_TIMEOUT), body(response))
        .await
        .unwrap_or_default();
    let object = error_object(&body);
    let mut fault = judge(status, kind, object.as_deref());
    fault.failure.upstream_status = Some(status.as_u16());
    fault.failure.retry_after_ms = retry_after_ms;
    if fault.failure.kind == FailureKind::InvalidRequest {
        fault.failure.upstream_error = object;
    }
    fault
}

/// How llama-server's JSON library begins its words about a body that it cannot read; they come
/// with status 500 though the mistake is the client's.
const LLAMA_JSON_ERROR: &str = "[json.exception.";

fn judge(status: StatusCode, kind: ServerKind, explained: Option<&str>) -> Fault {
    use FailureKind::{InvalidRequest, ModelServerFault, ModelUnavailable, Overloaded};
    let unreadable =
        kind == ServerKind::Llama && explained.is_some_and(|words| words.contains(LLAMA_JSON_ERROR));
    let (failure, message, most_calls, blame) = match status.as_u16() {
        400 | 413 | 422 => (
            InvalidRequest,
            "the model server refused the request",
            1,
            Blame::Nobody,
        ),
        500 if unreadable => (
            InvalidRequest,
            "the model server cannot read the request",
            1,
            Blame::Nobody,
        ),
        // The key is the worker's own, never the client's.
        401 | 403 => (
            ModelUnavailable,
            "the model server refused the worker's key",
            1,
            Blame::Server,
        ),
        // Its other models may be served as they should be.
        404 => (
            ModelUnavailable,
            "the model server does not know the model",
            1,
            Blame::Nobody,
        ),
        408 | 503 => (
            ModelUnavailable,
            "the model server is not available",
            CALLS_WHEN_AWAY,
            Blame::Server,
        ),
        429 => (
            Overloaded,
            "the model server has too much to do",
            CALLS_WHEN_AWAY,
            Blame::Nobody,
        ),
        // llama-server answers more of its clients' mistakes with an explained 500.
        500 if kind == ServerKind::Llama && explained.is_some() => (
            ModelServerFault,
            "the model server failed",
            CALLS_WHEN_FAILING,
            Blame::Nobody,
        ),
        500.. => (
            ModelServerFault,
            "the model server failed",
            CALLS_WHEN_FAILING,
            Blame::Server,
        ),
        _ => (
            ModelServerFault,
            "the model server gave an unexpected answer",
            1,
            Blame::Server,
        ),
    };
    Fault {
        failure: Failure::new(failure, message),
        most_calls,
        blame,
    }
}

async fn body(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(part)) = response.chunk().await {
        let room = MOST_ERROR_BYTES - body.len();
        body.extend_from_slice(part.get(..room).unwrap_or(&part));
        if body.len() >= MOST_ERROR_BYTES {
            break;
        }
    }
    body
}

#[derive(Deserialize)]
struct ErrorBody<'a> {
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    detail: Option<&'a RawValue>,
}

/// The server's error as an OpenAI error object, bounded.
fn error_object(body: &[u8]) -> Option<String> {
    let body: ErrorBody<'_> = serde_json::from_slice(body).ok()?;
    let raw = body.error.or(body.detail)?.get();
    if body.error.is_some() && raw.starts_with('{') && raw.len() <= MOST_OBJECT_BYTES {
        return Some(raw.to_owned());
    }
    let message = match serde_json::from_str(raw).ok()? {
        serde_json::Value::Object(mut object) => match object.remove("message") {
            Some(serde_json::Value::String(message)) => message,
            _ => "the model server refused the request".to_owned(),
        },
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    let message: String = message.chars().take(MOST_MESSAGE_CHARS).collect();
    let object = serde_json::json!({
        "message": message, "type": "invalid_request_error", "param": null, "code": null,
    });
    Some(object.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16) -> FailureKind {
        let status = StatusCode::from_u16(status).expect("a status");
        judge(status, ServerKind::Vllm, Some("{}")).failure.kind
    }

    #[test]
    fn each_status_has_its_meaning() {
        assert_eq!(kind(400), FailureKind::InvalidRequest);
        assert_eq!(kind(422), FailureKind::InvalidRequest);
        assert_eq!(kind(401), FailureKind::ModelUnavailable);
        assert_eq!(kind(404), FailureKind::ModelUnavailable);
        assert_eq!(kind(429), FailureKind::Overloaded);
        assert_eq!(kind(503), FailureKind::ModelUnavailable);
        assert_eq!(kind(500), FailureKind::ModelServerFault);
        assert_eq!(kind(302), FailureKind::ModelServerFault);
    }

    #[test]
    fn a_clients_mistake_is_not_held_against_the_server() {
        let blame = |status, kind, explained| {
            judge(StatusCode::from_u16(status).expect("a status"), kind, explained).blame
        };
        assert_eq!(blame(400, ServerKind::Vllm, Some("{}")), Blame::Nobody);
        assert_eq!(blame(500, ServerKind::Llama, Some("{}")), Blame::Nobody);
        assert_eq!(blame(500, ServerKind::Llama, None), Blame::Server);
        assert_eq!(blame(500, ServerKind::Vllm, Some("{}")), Blame::Server);
        let words = Some(r#"{"message":"[json.exception.type_error.302] type must be string"}"#);
        let typed = judge(StatusCode::INTERNAL_SERVER_ERROR, ServerKind::Llama, words);
        assert_eq!(
            (typed.failure.kind, typed.most_calls),
            (FailureKind::InvalidRequest, 1)
        );
    }

    #[test]
    fn an_error_is_handed_on_as_an_object_whatever_its_shape() {
        let openai = br#"{"error":{"message":"too long","type":"BadRequestError","code":400}}"#;
        assert_eq!(
            error_object(openai).as_deref(),
            Some(r#"{"message":"too long","type":"BadRequestError","code":400}"#)
        );
        let object = error_object(br#"{"detail":"nope"}"#).expect("an object");
        assert!(object.contains("\"message\":\"nope\""), "{object}");
        let long = format!(r#"{{"error":{{"message":"{}"}}}}"#, "x".repeat(20_000));
        assert!(error_object(long.as_bytes()).expect("an object").len() < 2_000);
        assert_eq!(error_object(b"Internal Server Error"), None);
    }
}
