//! Is the process there, and does it welcome work? Open to everybody.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

use super::state::ApiState;

/// The process runs; nothing else is asked, so a full queue changes nothing.
pub(super) async fn healthz() -> Response {
    Json(json!({})).into_response()
}

/// Work is welcome, or 503.
pub(super) async fn ready(State(api): State<Arc<ApiState>>) -> Response {
    let status = match (api.readiness)() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(json!({}))).into_response()
}
