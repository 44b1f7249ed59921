use http::Method;
use tower::ServiceExt;

use super::*;
use crate::exchange::Exchange;
use crate::prompt::Prompts;

fn api() -> Router {
    let state = ApiState {
        exchange: Exchange {},
        authenticator: state::placeholder::Authenticator {},
        prompts: Prompts::builtin(),
        audit: state::placeholder::AuditLog {},
        readiness: Arc::new(|| false),
    };
    router(Arc::new(state), None)
}

async fn ask(method: Method, path: &str) -> (StatusCode, http::HeaderMap, String) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(axum::body::Body::from("x".repeat(64)));
    let response = api()
        .oneshot(request.expect("a request"))
        .await
        .expect("infallible");
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    (
        parts.status,
        parts.headers,
        String::from_utf8(body.into()).expect("text"),
    )
}

#[tokio::test]
async fn a_stranger_gets_401_before_routing_in_the_shape_of_the_endpoint() {
    for path in [
        "/",
        "/nope",
        "/v2/code/completions",
        "/metrics",
        "/v1/chat/explain_code",
    ] {
        let (status, _, body) = ask(Method::POST, path).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(body, r#"{"error":"No authorization header presented"}"#, "{path}");
    }
    let (status, _, body) = ask(Method::GET, "/v1/models").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(body.contains(r#""code":"invalid_api_key""#), "{body}");
    let (_, _, body) = ask(Method::GET, "/audit/v1/events").await;
    assert!(body.contains(r#""error":"invalid_api_key""#), "{body}");
}

#[tokio::test]
async fn health_and_definitions_need_no_token() {
    let (status, headers, body) = ask(Method::GET, "/monitoring/healthz").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "{}"));
    let seconds = headers["x-process-time"].to_str().expect("text");
    assert!(seconds.parse::<f64>().is_ok(), "{seconds}");
    assert!(headers.contains_key("x-request-id"));
    for method in [Method::HEAD, Method::POST] {
        assert_eq!(
            ask(method, "/monitoring/healthz").await.0,
            StatusCode::METHOD_NOT_ALLOWED
        );
    }
    assert_eq!(
        ask(Method::GET, "/monitoring/ready").await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
    for path in [
        "/v1/models/definitions",
        "/v1/models%2Fdefinitions",
        "/v1%2fmodels%2fdefinitions",
    ] {
        let (status, _, body) = ask(Method::GET, path).await;
        assert_eq!(
            (status, body.as_str()),
            (StatusCode::OK, r#"{"models":[],"unit_primitives":[]}"#)
        );
    }
}

#[test]
fn a_slash_at_the_end_is_redirected_away_and_never_to_another_host() {
    let redirect = |path: &str| {
        let request = Request::builder()
            .uri(path)
            .body(axum::body::Body::empty())
            .expect("a request");
        without_slash(&request)
            .map(|response| response.headers()["location"].to_str().expect("text").to_owned())
    };
    assert_eq!(
        redirect("/v2/code/completions/?a=b").as_deref(),
        Some("/v2/code/completions?a=b")
    );
    assert_eq!(redirect("/nope"), None);
    assert_eq!(redirect("/"), None);
    assert_eq!(redirect("//elsewhere.example/"), None);
}
