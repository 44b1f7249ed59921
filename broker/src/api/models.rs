//! Which models there are.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use duo_contract::name::ModelName;
use http::Uri;
use serde_json::{Value, json};

use super::error::{ApiError, Shape};
use super::state::ApiState;
use crate::caller::Caller;
use crate::exchange::ExchangeError;

/// `GET /v1/models`: the models that the caller may name.
pub(super) async fn list(State(api): State<Arc<ApiState>>, Extension(caller): Extension<Caller>) -> Response {
    let models: Vec<Value> = api.exchange.models(&caller).iter().map(object).collect();
    Json(json!({"object": "list", "data": models})).into_response()
}

/// `GET /v1/models/{id}`.
pub(super) async fn one(
    State(api): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    let id = id.map_or_else(|_| String::new(), |Path(id)| id);
    if id.ends_with('/')
        && let Some(redirect) = super::without_slash(&uri)
    {
        return redirect;
    }
    match api
        .exchange
        .models(&caller)
        .iter()
        .find(|name| name.as_str() == id)
    {
        Some(name) => Json(object(name)).into_response(),
        None => ApiError::Exchange(unknown()).respond(Shape::OpenAi),
    }
}

/// `GET /v1/models/definitions`: models that GitLab manages, of which there are none here.
pub(super) async fn definitions() -> Response {
    Json(json!({"models": [], "unit_primitives": []})).into_response()
}

fn unknown() -> ExchangeError {
    ExchangeError::new(
        duo_contract::failure::FailureKind::InvalidRequest,
        "unknown_model",
        "that model does not exist or you may not use it; GET /v1/models lists the models you may name",
    )
}

/// OpenAI's model object. Creation is not kept, and clients only show it.
fn object(name: &ModelName) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "duo-broker"})
}
