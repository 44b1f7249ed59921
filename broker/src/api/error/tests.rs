use super::*;

async fn answer(error: ApiError, shape: Shape) -> (u16, String, Option<String>) {
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

fn failure(kind: FailureKind, upstream: Option<u16>, retry: Option<u64>) -> ApiError {
    let mut error = ExchangeError::new(kind, "why", "words");
    error.upstream_status = upstream;
    error.retry_after = retry.map(Duration::from_millis);
    ApiError::Exchange(error)
}

const TEXT: Shape = Shape::Completion { stream: false };
const STREAM: Shape = Shape::Completion { stream: true };
const PROMPT: Shape = Shape::Prompt { stream: false };
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

#[test]
fn a_broken_template_is_the_clients_fault_where_the_client_filled_it() {
    let error = ApiError::template().blame_inputs();
    assert!(
        matches!(&error, ApiError::Invalid { path, .. } if path == "inputs"),
        "{error}"
    );
    assert_eq!(ApiError::Malformed.blame_inputs().reason(), "malformed_json");
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
