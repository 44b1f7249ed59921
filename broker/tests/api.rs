//! The router with real NATS and PostgreSQL behind it: who gets in, and what
//! callers find where nothing is.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/servers.rs"]
#[expect(dead_code, reason = "the store's tests use the rest")]
mod servers;

#[path = "support/app.rs"]
mod app;

use async_nats::jetstream;
use axum::Router;
use axum::body::Body;
use duo_broker::fleet::Fleet;
use duo_contract::snapshot::{ConfigSnapshot, Role};
use duo_contract::subject;
use http::{HeaderMap, Method, Request, StatusCode};
use tower::ServiceExt as _;

const AUDITOR: &str = "duo_a_test";
const CLIENT: &str = "duo_c_test";

async fn app() -> Router {
    let database = servers::Database::create().await;
    app::app(
        servers::nats().await,
        vec![
            app::token(AUDITOR, Role::Auditor),
            app::token(CLIENT, Role::Client),
        ],
        ConfigSnapshot::default(),
        Fleet::default(),
        Some((database.store, None)),
    )
}

async fn ask(
    app: &Router,
    method: Method,
    path: &str,
    secret: Option<&str>,
) -> (StatusCode, HeaderMap, String) {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(secret) = secret {
        request = request.header("authorization", format!("Bearer {secret}"));
    }
    let request = request.body(Body::from("x".repeat(64))).unwrap();
    let (parts, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    (
        parts.status,
        parts.headers,
        String::from_utf8(body.into()).unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_401_before_routing_in_the_shape_of_the_endpoint() {
    let app = app().await;
    for path in [
        "/",
        "/nope",
        "/v2/code/completions",
        "/metrics",
        "/v1/chat/explain_code",
    ] {
        let (status, _, body) = ask(&app, Method::POST, path, None).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(body, r#"{"error":"No authorization header presented"}"#, "{path}");
    }
    let (status, _, body) = ask(&app, Method::GET, "/v1/models", None).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(body.contains(r#""code":"invalid_api_key""#), "{body}");
    let (_, _, body) = ask(&app, Method::GET, "/audit/v1/events", Some("duo_a_wrong")).await;
    assert!(body.contains(r#""error":"invalid_api_key""#), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_definitions_need_no_token() {
    let app = app().await;
    let (status, headers, body) = ask(&app, Method::GET, "/monitoring/healthz", None).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "{}"));
    let seconds = headers["x-process-time"].to_str().unwrap();
    assert!(seconds.parse::<f64>().is_ok(), "{seconds}");
    assert!(headers.contains_key("x-request-id"));
    for method in [Method::HEAD, Method::POST] {
        assert_eq!(
            ask(&app, method, "/monitoring/healthz", None).await.0,
            StatusCode::METHOD_NOT_ALLOWED
        );
    }
    assert_eq!(
        ask(&app, Method::GET, "/monitoring/ready", None).await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
    for path in [
        "/v1/models/definitions",
        "/v1/models%2Fdefinitions",
        "/v1%2fmodels%2fdefinitions",
    ] {
        let (status, _, body) = ask(&app, Method::GET, path, None).await;
        assert_eq!(
            (status, body.as_str()),
            (StatusCode::OK, r#"{"models":[],"unit_primitives":[]}"#)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_auditors_read_the_audit_log() {
    let app = app().await;
    let (status, _, _) = ask(&app, Method::GET, "/audit/v1/events?limit=5", Some(CLIENT)).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let path = "/audit/v1/events?limit=5";
    // NATS has no stream for records: what cannot be recorded is not shown.
    let (status, _, body) = ask(&app, Method::GET, path, Some(AUDITOR)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        body.contains("audit_unavailable") && !body.contains("events"),
        "{body}"
    );
    let config = jetstream::stream::Config {
        name: subject::AUDIT_STREAM.to_owned(),
        subjects: vec![subject::AUDIT_SUBJECTS.to_owned()],
        ..Default::default()
    };
    let stream = servers::nats().await.jetstream().create_stream(config).await;
    let stream = stream.unwrap();
    let (status, _, body) = ask(&app, Method::GET, path, Some(AUDITOR)).await;
    assert_eq!(
        (status, body.as_str()),
        (StatusCode::OK, r#"{"events":[],"next_cursor":null}"#)
    );
    let record = stream
        .get_last_raw_message_by_subject(subject::AUDIT_RECORDS)
        .await;
    let record = String::from_utf8(record.unwrap().payload.into()).unwrap();
    assert!(record.contains(r#""kind":"read""#), "{record}");
    assert!(record.contains(r#"\"limit\":5"#), "{record}");
    let (status, _, body) = ask(&app, Method::GET, "/audit/v1/facets?by=kind", Some(AUDITOR)).await;
    assert_eq!(
        (status, body.as_str()),
        (StatusCode::OK, r#"{"records":0,"facets":{"kind":[]}}"#)
    );
    let (status, _, body) = ask(&app, Method::GET, "/audit/v1/facets?by=colour", Some(AUDITOR)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    let none = "/audit/v1/events/01939b2c-0000-7000-8000-000000000000";
    let (status, _, body) = ask(&app, Method::GET, none, Some(AUDITOR)).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
    for bad in [
        "limit=0",
        "limit=x",
        "outcome=fine",
        "cursor=!",
        "since=yesterday",
        "nonsense=1",
    ] {
        let (status, _, body) = ask(
            &app,
            Method::GET,
            &format!("/audit/v1/events?{bad}"),
            Some(AUDITOR),
        )
        .await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{bad}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn known_callers_get_404_and_405_in_the_shape_of_the_endpoint() {
    let app = app().await;
    for (method, path, status, expected) in [
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
        let (got, _, body) = ask(&app, method, path, Some(CLIENT)).await;
        assert_eq!((got.as_u16(), body.as_str()), (status, expected), "{path}");
    }
}
