//! The part of GitLab's GraphQL API that tells its self-hosted models and feature settings, and the ways in which it
//! may fail to.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use super::Shared;

/// The token that it takes.
pub const TOKEN: &str = "glpat-stand-in";

/// How it answers.
#[derive(Clone, Debug, Default)]
pub enum GraphqlAnswer {
    /// With no models and no settings.
    #[default]
    Empty,
    /// With these models and feature settings, as lists of nodes.
    Settings(Value, Value),
    /// With this body, whatever it is.
    Text(String),
    /// With this status.
    Status(u16),
    /// With more bytes than anybody reads.
    Endless,
    /// Never.
    Silence,
    /// By leading elsewhere.
    Redirect(String),
}

pub(super) async fn answer(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    shared.graphql_asked.fetch_add(1, Ordering::SeqCst);
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    if token != Some(&format!("Bearer {TOKEN}")) {
        let body = json!({"errors": [{"message": "Invalid token"}]});
        return (StatusCode::UNAUTHORIZED, axum::Json(body)).into_response();
    }
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let query = asked["query"].as_str().unwrap_or_default().to_owned();
    if !query.contains("aiSelfHostedModels") || !query.contains("aiFeatureSettings") {
        let body = json!({"errors": [{"message": "the stand-in knows two fields only"}]});
        return axum::Json(body).into_response();
    }
    match shared.graphql() {
        GraphqlAnswer::Empty => settings(&json!([]), &json!([])),
        GraphqlAnswer::Settings(models, features) => settings(&models, &features),
        GraphqlAnswer::Text(text) => text.into_response(),
        GraphqlAnswer::Status(status) => StatusCode::from_u16(status).unwrap_or_default().into_response(),
        GraphqlAnswer::Endless => {
            let piece = Bytes::from(vec![b' '; 64 << 10]);
            let pieces = futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
            Body::from_stream(pieces).into_response()
        }
        GraphqlAnswer::Silence => std::future::pending().await,
        GraphqlAnswer::Redirect(url) => Redirect::temporary(&url).into_response(),
    }
}

fn settings(models: &Value, features: &Value) -> Response {
    let models = json!({"nodes": models, "pageInfo": {"hasNextPage": false}});
    let body = json!({"data": {"aiSelfHostedModels": models, "aiFeatureSettings": {"nodes": features}}});
    axum::Json(body).into_response()
}
