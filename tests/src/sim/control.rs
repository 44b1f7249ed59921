//! The part no model server has: looking into the simulator and steering it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::Shared;
use super::stats::Stats;

/// Routes below `/control`.
pub(crate) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/", get(show).patch(change))
        .route("/stats", get(stats))
        .route("/running", get(running))
        .route("/last", get(last))
        .route("/last/headers", get(last_headers))
        .route("/kill", post(kill))
        .route("/drain", post(drain))
        .route("/unhealthy", post(unhealthy))
}

#[derive(Default, Deserialize)]
struct Switch {
    on: Option<bool>,
}

async fn show(State(shared): State<Arc<Shared>>) -> Response {
    axum::Json(settings(&shared)).into_response()
}

async fn change(State(shared): State<Arc<Shared>>, axum::Json(change): axum::Json<Value>) -> Response {
    match shared.settings().patched(&change) {
        Ok(changed) => {
            shared.replace(changed);
            axum::Json(settings(&shared)).into_response()
        }
        Err(problem) => (StatusCode::BAD_REQUEST, axum::Json(json!({"error": problem}))).into_response(),
    }
}

/// The settings, with the exact faults that are still to come.
fn settings(shared: &Shared) -> Value {
    let mut shown = json!(*shared.settings());
    shown["next_faults"] = json!(shared.faults.pending());
    shown["api_key"] = json!(shared.settings().api_key.as_ref().map(|_| "(set)"));
    shown
}

async fn stats(State(shared): State<Arc<Shared>>) -> axum::Json<Stats> {
    axum::Json(shared.stats())
}

async fn running(State(shared): State<Arc<Shared>>) -> Response {
    axum::Json(shared.under_way.now()).into_response()
}

async fn last(State(shared): State<Arc<Shared>>) -> Response {
    match shared.last() {
        Some(last) => ([(header::CONTENT_TYPE, "application/json")], last.body).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn last_headers(State(shared): State<Arc<Shared>>) -> axum::Json<Value> {
    let last = shared.last().unwrap_or_default();
    let headers: serde_json::Map<_, _> = last
        .headers
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                Value::from(String::from_utf8_lossy(value.as_bytes())),
            )
        })
        .collect();
    axum::Json(json!({"path": last.path, "headers": headers}))
}

/// Never answers: the server is gone before it could, as a killed one would be.
async fn kill(State(shared): State<Arc<Shared>>) {
    shared.kill();
    std::future::pending().await
}

async fn drain(State(shared): State<Arc<Shared>>, switch: Option<axum::Json<Switch>>) -> StatusCode {
    let on = switch.and_then(|switch| switch.on).unwrap_or(true);
    shared.draining.store(on, Ordering::SeqCst);
    StatusCode::OK
}

async fn unhealthy(State(shared): State<Arc<Shared>>, switch: Option<axum::Json<Switch>>) -> StatusCode {
    let on = switch.and_then(|switch| switch.on).unwrap_or(true);
    shared.unhealthy.store(on, Ordering::SeqCst);
    StatusCode::OK
}
