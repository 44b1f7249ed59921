//! KServe's inference API, second version: scores that are a pure function of each input's data.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::receive;
use super::sequence::{hash, mix};
use super::shared::Shared;
use super::unary;

#[derive(Deserialize)]
struct Wire {
    id: Option<String>,
    inputs: Vec<Input>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    shape: Vec<u64>,
    data: Value,
}

pub(crate) async fn ready(State(shared): State<Arc<Shared>>) -> StatusCode {
    super::api::health(State(shared)).await
}

pub(crate) async fn model_ready(State(shared): State<Arc<Shared>>, Path(model): Path<String>) -> StatusCode {
    if shared.settings().model.contains(&model) {
        StatusCode::OK
    } else {
        StatusCode::NOT_FOUND
    }
}

pub(crate) async fn infer(
    State(shared): State<Arc<Shared>>,
    Path(model): Path<String>,
    request: Request,
) -> Response {
    shared.counters.infer();
    let settings = shared.settings();
    let body = match receive(&shared, &settings, request).await {
        Ok(body) => body,
        Err(refusal) => return refusal.into_response(),
    };
    if !settings.model.contains(&model) {
        let text = format!("Request for unknown model: '{model}' is not found");
        return refused(&shared, StatusCode::NOT_FOUND, &text);
    }
    let wire: Wire = match serde_json::from_slice(&body) {
        Ok(wire) => wire,
        Err(error) => {
            return refused(
                &shared,
                StatusCode::BAD_REQUEST,
                &format!("failed to parse the request: {error}"),
            );
        }
    };
    for input in &wire.inputs {
        let (wanted, given) = (input.shape.iter().product::<u64>(), elements(&input.data));
        if wanted != given {
            let text = format!(
                "unexpected number of elements for input '{}': {given}, expecting {wanted}",
                input.name
            );
            return refused(&shared, StatusCode::BAD_REQUEST, &text);
        }
    }
    let broken = json!({"model_name": model});
    unary::without_tokens(&shared, &settings, 0, broken, || answer(&model, &wire)).await
}

fn answer(model: &str, wire: &Wire) -> Value {
    let outputs: Vec<Value> = wire
        .inputs
        .iter()
        .map(|input| {
            let seed = hash(input.data.to_string().as_bytes());
            let scores: Vec<f64> = (0..elements(&input.data))
                .map(|index| (mix(seed ^ mix(index + 1)) % 1000) as f64 / 1000.0)
                .collect();
            json!({"name": format!("{}_scores", input.name), "datatype": "FP32", "shape": [scores.len()], "data": scores})
        })
        .collect();
    let mut answer = json!({"model_name": model, "model_version": "1", "outputs": outputs});
    if let Some(id) = &wire.id {
        answer["id"] = id.as_str().into();
    }
    answer
}

/// How many numbers or texts there are, however deep.
fn elements(data: &Value) -> u64 {
    match data {
        Value::Array(items) => items.iter().map(elements).sum(),
        _ => 1,
    }
}

/// KServe's form of an error.
fn refused(shared: &Shared, status: StatusCode, text: &str) -> Response {
    shared.counters.refused();
    (status, axum::Json(json!({ "error": text }))).into_response()
}
