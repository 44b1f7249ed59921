use duo_contract::snapshot::Role;
use futures_util::StreamExt;
use http::{Method, StatusCode};
use tower::ServiceExt;

use super::*;
use crate::exchange::Exchange;
use crate::prompt::Prompts;

fn state() -> ApiState {
    ApiState {
        exchange: Exchange {},
        authenticator: state::placeholder::Authenticator {},
        prompts: Prompts::builtin(),
        audit: state::placeholder::AuditLog {},
        readiness: Arc::new(|| false),
    }
}

fn api() -> Router {
    router(Arc::new(state()), None)
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
        without_slash(&path.parse().expect("a path"))
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

#[tokio::test]
async fn what_a_refusal_leaves_of_a_body_is_read_up_to_the_limit_and_in_bounded_time() {
    let refuse = || async { StatusCode::TOO_MANY_REQUESTS };
    let routes = || {
        Router::new()
            .route("/", post(refuse))
            .layer(from_fn(edge::absorb))
    };
    let left = |body: axum::body::Body, expect: bool| async move {
        let mut request = Request::builder().method(Method::POST).uri("/");
        if expect {
            request = request.header("expect", "100-continue");
        }
        let response = routes()
            .oneshot(request.body(body).expect("a request"))
            .await
            .expect("infallible");
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    };
    let counted = |pieces: usize| {
        let read = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = Arc::clone(&read);
        let pieces = futures_util::stream::iter(0..pieces).map(move |_| {
            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b'x'; 1 << 20]))
        });
        (axum::body::Body::from_stream(pieces), read)
    };
    for (pieces, expect, expected) in [(3, false, 3), (40, false, 5), (3, true, 0)] {
        let (body, read) = counted(pieces);
        left(body, expect).await;
        assert_eq!(read.load(std::sync::atomic::Ordering::SeqCst), expected);
    }
    tokio::time::pause();
    let endless = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
    left(axum::body::Body::from_stream(endless), false).await;
}

#[tokio::test]
async fn only_auditors_read_the_audit_log() {
    let events = Router::new().route("/audit/v1/events", get(|| async { "events" }));
    let caller = |role| crate::caller::Caller {
        grant: Arc::new(crate::caller::Grant::ApiToken {
            role,
            features: None,
            models: None,
        }),
        who: duo_contract::audit::Who::default(),
        share_key: String::new(),
        limit: 8,
        gitlab_version: None,
    };
    for (role, expected) in [
        (Role::Client, StatusCode::FORBIDDEN),
        (Role::Admin, StatusCode::FORBIDDEN),
        (Role::Auditor, StatusCode::OK),
    ] {
        let request = Request::builder()
            .uri("/audit/v1/events")
            .extension(caller(role))
            .body(axum::body::Body::empty())
            .expect("a request");
        let routes = routes(&Arc::new(state()), Some(events.clone()));
        let response = routes.oneshot(request).await.expect("infallible");
        assert_eq!(response.status(), expected);
    }
}

#[tokio::test]
async fn known_callers_get_404_and_405_in_the_shape_of_the_endpoint() {
    for (method, path, status, body) in [
        (Method::GET, "/nope", 404, r#"{"detail":"Not Found"}"#),
        (Method::GET, "/metrics", 404, r#"{"detail":"Not Found"}"#),
        (
            Method::GET,
            "/v2/code/completions",
            405,
            r#"{"detail":"Method Not Allowed"}"#,
        ),
        (Method::POST, "/v2/code/completions/", 307, ""),
    ] {
        let request = Request::builder().method(method).uri(path);
        let request = request.body(axum::body::Body::empty()).expect("a request");
        let response = routes(&Arc::new(state()), None)
            .oneshot(request)
            .await
            .expect("infallible");
        assert_eq!(response.status().as_u16(), status, "{path}");
        let text = axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .expect("a body");
        assert_eq!(text, body.as_bytes(), "{path}");
    }
}
