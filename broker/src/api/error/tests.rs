use serde_json::Value;

use super::*;
use crate::request::ExchangeError;

/// Status, body, and the seconds of `Retry-After`.
pub(super) async fn answer(error: ApiError, shape: Shape) -> (u16, String, Option<String>) {
    let response = error.respond(shape);
    assert!(response.extensions().get::<Refused>().is_some());
    let retry = response
        .headers()
        .get("retry-after")
        .map(|value| value.to_str().expect("text").to_owned());
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20)
        .await
        .expect("a body");
    (status, String::from_utf8(body.into()).expect("text"), retry)
}

pub(super) fn failure(kind: FailureKind, upstream: Option<u16>, retry: Option<u64>) -> ApiError {
    let mut error = ExchangeError::new(kind, "why", "words");
    error.upstream_status = upstream;
    error.retry_after = retry.map(Duration::from_millis);
    ApiError::Exchange(error)
}

const TEXT: Shape = Shape::Completion { stream: false };
const STREAM: Shape = Shape::Completion { stream: true };
pub(super) const PROMPT: Shape = Shape::Prompt { stream: false };
const PROMPT_STREAM: Shape = Shape::Prompt { stream: true };

#[tokio::test]
async fn the_table_of_statuses_is_true() {
    use FailureKind as F;
    let shapes = [
        TEXT,
        Shape::GitLab,
        PROMPT_STREAM,
        PROMPT,
        Shape::Chat,
        Shape::OpenAi,
    ];
    for (kind, upstream, retry, expected) in [
        (F::InvalidRequest, Some(400), None, [422, 422, 422, 421, 200, 400]),
        (F::FeatureInactive, None, None, [403; 6]),
        (F::Unsupported, None, None, [403; 6]),
        (F::Unauthorized, None, None, [403; 6]),
        (F::Overloaded, None, Some(1200), [200, 429, 429, 429, 200, 429]),
        (F::Overloaded, Some(429), None, [200, 429, 429, 421, 200, 429]),
        (F::ModelUnavailable, None, None, [200, 503, 503, 421, 200, 503]),
        (F::DeadlineExceeded, None, None, [200, 503, 503, 421, 200, 503]),
        (F::Cancelled, None, None, [200, 503, 503, 421, 200, 503]),
        (F::ModelServerFault, None, None, [503, 503, 503, 421, 200, 502]),
        (F::Internal, None, Some(1000), [503, 503, 503, 503, 200, 503]),
        (F::Internal, None, None, [500, 500, 500, 500, 200, 500]),
    ] {
        for (shape, expected) in shapes.into_iter().zip(expected) {
            let (status, body, _) = answer(failure(kind, upstream, retry), shape).await;
            assert_eq!(status, expected, "{kind} as {shape:?}: {body}");
        }
    }
}

#[tokio::test]
async fn overload_tells_when_to_come_back() {
    let overloaded = || failure(FailureKind::Overloaded, None, Some(1200));
    for shape in [Shape::GitLab, PROMPT, PROMPT_STREAM] {
        let (status, body, retry) = answer(overloaded(), shape).await;
        assert_eq!((status, retry.as_deref()), (429, Some("2")));
        assert_eq!(body, r#"{"detail":"Too many requests. Please try again later."}"#);
    }
    let (_, body, retry) = answer(overloaded(), Shape::OpenAi).await;
    assert_eq!(retry.as_deref(), Some("2"));
    assert_eq!(
        body,
        r#"{"error":{"code":"why","message":"words","param":null,"type":"rate_limit_exceeded"}}"#
    );
    let (_, body, _) = answer(overloaded(), TEXT).await;
    assert!(body.contains(r#""choices":[]"#), "{body}");
    assert_eq!(answer(overloaded(), STREAM).await.1, "");
}

#[tokio::test]
async fn a_field_is_named_in_every_shape() {
    let error = || ApiError::invalid("current_file.file_name", "is required");
    let (status, body, _) = answer(error(), TEXT).await;
    assert_eq!(status, 422);
    assert_eq!(
        body,
        r#"{"detail":[{"loc":["body","current_file","file_name"],"msg":"current_file.file_name: is required","type":"value_error"}]}"#
    );
    let (status, body, _) = answer(error(), Shape::OpenAi).await;
    assert_eq!(status, 400);
    assert!(body.contains(r#""param":"current_file.file_name""#), "{body}");
    assert_eq!(answer(error(), Shape::Plain).await.0, 422);
    assert_eq!(answer(ApiError::Malformed, TEXT).await.0, 422);
    assert_eq!(answer(ApiError::Malformed, Shape::OpenAi).await.0, 400);
    assert_eq!(answer(ApiError::Malformed, Shape::Plain).await.0, 400);
}

#[tokio::test]
async fn a_problem_of_the_whole_body_names_no_field() {
    let error = || ApiError::invalid("", "the body has to be an object");
    let (_, body, _) = answer(error(), Shape::GitLab).await;
    assert_eq!(
        body,
        r#"{"detail":[{"loc":["body"],"msg":"the body has to be an object","type":"value_error"}]}"#
    );
    let object = openai_object(&error());
    assert_eq!(object["error"]["param"], Value::Null);
    assert_eq!(object["error"]["message"], "the body has to be an object");
}
