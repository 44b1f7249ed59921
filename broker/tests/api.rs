//! The router with real NATS and PostgreSQL behind it: who gets in, and what
//! callers find where nothing is.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/servers.rs"]
#[expect(dead_code, reason = "the store's tests use the rest")]
mod servers;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use duo_broker::admission::Admission;
use duo_broker::api::{self, ApiState};
use duo_broker::audit::{AuditLog, sink};
use duo_broker::auth::{AuthConfig, Authenticator, install_crypto};
use duo_broker::config::QueueConfig;
use duo_broker::dispatch::storing::Storing;
use duo_broker::dispatch::{Dispatch, Parts};
use duo_broker::exchange::Exchange;
use duo_broker::fleet::Fleet;
use duo_broker::metrics::Metrics;
use duo_broker::prompt::Prompts;
use duo_broker::{identity, routing};
use duo_contract::seal::SealKeys;
use duo_contract::snapshot::{ApiToken, IdentitySnapshot, Role};
use duo_process::shutdown::Shutdown;
use http::{HeaderMap, Method, Request, StatusCode};
use tower::ServiceExt as _;
use uuid::Uuid;

const AUDITOR: &str = "duo_a_test";
const CLIENT: &str = "duo_c_test";

fn token(secret: &str, role: Role) -> ApiToken {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.as_bytes());
    ApiToken {
        id: Uuid::new_v4(),
        name: secret.into(),
        sha256: hex::encode(digest),
        role,
        expires_at_ms: None,
        features: None,
        models: None,
        limit: 8,
    }
}

async fn app() -> Router {
    install_crypto();
    let nats = servers::nats().await;
    let database = servers::Database::create().await;
    let registry = prometheus::Registry::new();
    let metrics = Metrics::new(&registry);
    let (audit_sink, written) = sink::sink(
        (nats.clone(), metrics.clone(), Storing::new(None)),
        Shutdown::new(),
        Shutdown::new(),
    );
    tokio::spawn(written);
    let audit = AuditLog::new("test", audit_sink, metrics.clone());
    let admission = Admission::new(Fleet::default());
    let queue = QueueConfig {
        lease: Duration::from_secs(5),
        max_attempts: 3,
        replicas: 1,
        live_max_messages: 1000,
        live_max_bytes: 1 << 20,
        audit_max_bytes: 1 << 20,
    };
    let parts = Parts {
        broker: "test".into(),
        nats,
        keys: SealKeys::generate("k"),
        queue,
        admission: admission.clone(),
        metrics,
        queue_stores: Storing::new(None),
        audit_stores: Storing::new(None),
    };
    let (dispatch, _chores, _letters) = Dispatch::new(parts);
    let (_routing_sink, routing) = routing::routing();
    let (identity_sink, identities) = identity::identities();
    identity_sink.store(IdentitySnapshot {
        revision: 1,
        tokens: vec![token(AUDITOR, Role::Auditor), token(CLIENT, Role::Client)],
        issuers: Vec::new(),
    });
    let state = ApiState {
        exchange: Exchange::new(routing, admission, audit.clone(), dispatch),
        authenticator: Authenticator::new(
            identities,
            AuthConfig::default(),
            reqwest::Client::new(),
            &registry,
        ),
        prompts: Prompts::builtin(),
        audit,
        documentation: None,
        readiness: Arc::new(|| false),
    };
    api::router(Arc::new(state), Some(api::events::router(database.store)), None)
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
    let (status, _, body) = ask(&app, Method::GET, "/audit/v1/events?limit=5", Some(AUDITOR)).await;
    assert_eq!(
        (status, body.as_str()),
        (StatusCode::OK, r#"{"events":[],"next_cursor":null}"#)
    );
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
