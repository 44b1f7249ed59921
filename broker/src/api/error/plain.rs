//! What the clients of audit and administration read.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};

use super::challenge;
use super::wrong::ApiError;

/// One word, a sentence, and the fields that are wrong.
pub(super) fn answer(error: &ApiError) -> Response {
    let (status, _, code, _) = error.openai_terms();
    let status = match error {
        ApiError::Invalid { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        _ => status,
    };
    let mut body = json!({"error": code, "message": error.sentence()});
    if let Some(problems) = problems(error) {
        body["problems"] = problems;
    }
    let mut response = (status, Json(body)).into_response();
    challenge(&mut response);
    response
}

/// What is wrong, field by field.
fn problems(error: &ApiError) -> Option<Value> {
    let problem = |field: &str, message: &str| json!({"field": field, "message": message});
    match error {
        ApiError::Invalid { path, problem: words } => Some(json!([problem(path, words)])),
        ApiError::Problems(problems) => {
            let problems = problems.iter().map(|found| problem(&found.part, &found.message));
            Some(problems.collect())
        }
        _ => None,
    }
}
