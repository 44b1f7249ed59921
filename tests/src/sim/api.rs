//! The endpoints a model server has.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde_json::json;
use time::OffsetDateTime;

use super::fault::Fault;
use super::follow::UnderWay;
use super::generation::Generation;
use super::refusal::Refusal;
use super::request::{Ask, Shape};
use super::sequence::Start;
use super::settings::Settings;
use super::shared::{LastRequest, Shared};
use super::{control, embeddings, infer, stream, tokenize, unary};

/// Longest request body; far above any prompt.
const BODY_LIMIT: usize = 64 << 20;

/// All routes.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/models", get(models))
        .route("/v2/health/ready", get(infer::ready))
        .route("/v2/models/{model}/ready", get(infer::model_ready))
        .route("/v2/models/{model}/infer", post(infer::infer))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(health))
        .route(
            "/version",
            get(async || axum::Json(json!({"version": "sim-1.0"}))),
        )
        .route("/metrics", get(metrics))
        .nest("/control", control::router())
        .fallback(async || (StatusCode::NOT_FOUND, axum::Json(json!({"detail": "Not Found"}))))
        .method_not_allowed_fallback(async || {
            (
                StatusCode::METHOD_NOT_ALLOWED,
                axum::Json(json!({"detail": "Method Not Allowed"})),
            )
        })
        .with_state(shared)
}

async fn chat(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    shared.counters.chat();
    generate(&shared, Shape::Chat, request).await
}

async fn completions(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    shared.counters.completions();
    generate(&shared, Shape::Text, request).await
}

async fn generate(shared: &Arc<Shared>, shape: Shape, request: Request) -> Response {
    let settings = shared.settings();
    let refuse = |refusal: Refusal| {
        shared.counters.refused();
        refusal.into_response()
    };
    let key = settings.follow.as_ref().map(|_| bearer(request.headers()));
    let body = match receive(shared, &settings, request).await {
        Ok(body) => body,
        Err(refusal) => return refuse(refusal),
    };
    if shared.draining.load(Ordering::SeqCst) {
        return refuse(Refusal::draining());
    }
    let ask = match Ask::parse(shape, &body, &settings) {
        Ok(ask) => ask,
        Err(refusal) => return refuse(refusal),
    };
    let drawn = shared.faults.draw(&settings);
    match drawn.map(|drawn| drawn.fault) {
        Some(Fault::Fail) => return refuse(Refusal::fault(settings.fail_status, settings.retry_after)),
        Some(Fault::Reset) => {
            shared.counters.refused();
            unary::hang_up()
        }
        _ => {}
    }
    shared
        .counters
        .add(&shared.counters.prompt_tokens, ask.prompt_tokens);
    for start in &ask.starts {
        match start {
            Start::Fresh => {}
            Start::Continued => shared.counters.continued(),
            Start::Diverged => shared.counters.diverged(),
        }
    }
    let followed = key.zip(ask.id.clone()).map(|(key, id)| UnderWay { id, key });
    let generation = Generation::new(Arc::clone(shared), followed);
    if ask.stream {
        return stream::reply(shared, settings, ask, drawn, generation);
    }
    unary::reply(shared, &settings, ask, drawn, generation).await
}

/// The key that a request brings, or nothing.
fn bearer(headers: &HeaderMap) -> String {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let key = given.and_then(|given| given.strip_prefix("Bearer "));
    key.unwrap_or_default().to_owned()
}

/// Checks the key, reads the body and keeps the request for inspection.
pub(crate) async fn receive(
    shared: &Shared,
    settings: &Settings,
    request: Request<Body>,
) -> Result<Bytes, Refusal> {
    let (parts, body) = request.into_parts();
    shared.authorize(settings, &parts.headers)?;
    let body = to_bytes(body, BODY_LIMIT)
        .await
        .map_err(|error| Refusal::invalid("body", "value_error", &error.to_string()))?;
    let path = parts.uri.path().to_owned();
    shared.keep(LastRequest {
        path,
        headers: parts.headers,
        body: body.clone(),
    });
    Ok(body)
}

async fn models(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    shared.counters.models();
    let settings = shared.settings();
    if let Err(refusal) = shared.authorize(&settings, request.headers()) {
        return refusal.into_response();
    }
    let created = OffsetDateTime::now_utc().unix_timestamp();
    let models: Vec<_> = settings
        .model
        .iter()
        .map(|model| {
            json!({
                "id": model, "object": "model", "created": created, "owned_by": "vllm", "root": model,
                "parent": null, "max_model_len": settings.context, "permission": [],
            })
        })
        .collect();
    axum::Json(json!({"object": "list", "data": models})).into_response()
}

pub(crate) async fn health(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.counters.health();
    if shared.unhealthy.load(Ordering::SeqCst) {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    shared.counters.metrics();
    let settings = shared.settings();
    let model = settings.model.first().map_or("", String::as_str);
    let text = shared.stats().prometheus(model, &settings);
    (
        [(header::CONTENT_TYPE, "text/plain; version=1.0.0; charset=utf-8")],
        text,
    )
        .into_response()
}
