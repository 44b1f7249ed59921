//! IDEs that ask for completions without a detour through GitLab: the token that GitLab fetches for one of them,
//! and the public halves of the keys that sign it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::error::{ApiError, Shape};
use super::state::ApiState;
use crate::auth::direct::MintError;
use crate::caller::Caller;

const REFUSAL: &str = "Unauthorized to create user access token";

/// `POST /v1/code/user_access_token`. There is no body: headers and token say for whom.
pub(super) async fn token(
    State(api): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
) -> Response {
    match api.authenticator.mint(&caller) {
        Ok(token) => Json(token).into_response(),
        Err(MintError::NotAllowed) => ApiError::Forbidden(REFUSAL.into()).respond(Shape::GitLab),
        Err(MintError::NoKey) => ApiError::NoSigningKey.respond(Shape::GitLab),
        Err(error @ MintError::Unsigned) => {
            tracing::error!(%error, "the first key of DUO_SIGNING_KEYS_FILE does not sign");
            ApiError::NoSigningKey.respond(Shape::GitLab)
        }
    }
}

/// `GET /.well-known/jwks.json`, open to everybody; no keys where there are none.
pub(super) async fn keys(State(api): State<Arc<ApiState>>) -> Response {
    match api.authenticator.signing_keys() {
        Some(keys) => Json(keys.published()).into_response(),
        None => Json(json!({"keys": []})).into_response(),
    }
}
