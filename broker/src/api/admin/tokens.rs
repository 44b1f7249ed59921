//! API tokens: make, list, revoke. A secret is in the answer that made it and nowhere else.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::IntoResponse;
use duo_process::clock;
use http::{HeaderValue, StatusCode, header};
use secrecy::ExposeSecret as _;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use super::AdminState;
use super::dead::actor;
use super::edit::{self, Answer, Payload, Said, stored};
use super::openapi::Refusal;
use crate::api::error::ApiError;
use crate::caller::Caller;
use crate::config_file::resource::read_token;
use crate::store::StoreError;
use crate::store::api_tokens::{NewToken, TokenRow};

/// Every API token, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Tokens {
    tokens: Vec<OneToken>,
}

/// An API token, never its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OneToken {
    /// Its id, which audit records name.
    #[schema(format = "uuid")]
    id: String,
    name: String,
    /// `client`, `auditor` or `admin`.
    role: String,
    /// `valid`, `expired` or `revoked`.
    state: String,
    /// Features it may use; without any, the OpenAI features.
    #[serde(skip_serializing_if = "Option::is_none")]
    features: Option<Vec<String>>,
    /// Models it may use; without any, all.
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<Vec<String>>,
    /// Requests it may have queued or running for one feature and model.
    limit: i64,
    #[schema(format = "date-time")]
    created_at: String,
    created_by: String,
    #[schema(format = "date-time")]
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[schema(format = "date-time")]
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<String>,
}

/// A token that was just made.
#[derive(Serialize, ToSchema)]
pub(super) struct Made {
    #[schema(format = "uuid")]
    id: String,
    name: String,
    /// The token itself. Keep it: nothing shows it again.
    secret: String,
    #[schema(format = "date-time")]
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

/// What a token is to open.
#[derive(ToSchema)]
#[schema(example = json!({"name": "ci", "role": "client", "expires_in": "90d"}))]
#[expect(
    dead_code,
    reason = "the shape of a body, for the document; the configuration's own reader reads it"
)]
pub(super) struct MakeToken {
    /// What to call it; no other live token may have the name.
    name: String,
    /// `client` (inference), `auditor` (the audit log) or `admin` (administration).
    role: String,
    /// Such as `12h`, `30d`; without it, it is good until it is revoked.
    expires_in: Option<String>,
    /// Features it may use; without them, the OpenAI features.
    features: Option<Vec<String>>,
    /// Models it may use; without them, all.
    models: Option<Vec<String>>,
    /// Requests it may have queued or running for one feature and model, 1 to 1000000; 1000 without it.
    limit: Option<u32>,
}

impl From<TokenRow> for OneToken {
    fn from(row: TokenRow) -> Self {
        Self {
            id: row.id.to_string(),
            name: row.name,
            role: row.role,
            state: row.state,
            features: row.features,
            models: row.models,
            limit: row.limit,
            created_at: moment(row.created_at),
            created_by: row.created_by,
            expires_at: row.expires_at.map(moment),
            revoked_at: row.revoked_at.map(moment),
        }
    }
}

fn moment(moment: OffsetDateTime) -> String {
    moment.format(&Rfc3339).unwrap_or_default()
}

/// Every token, revoked ones too
#[utoipa::path(get, path = "/admin/v1/tokens", tag = "tokens", operation_id = "listTokens",
    responses((status = 200, description = "what there is", body = Tokens), Refusal))]
pub(super) async fn list(State(admin): State<Arc<AdminState>>) -> Answer {
    let tokens = admin.store.tokens().await.map_err(|error| stored(&error))?;
    let tokens = tokens.into_iter().map(OneToken::from).collect();
    Ok(Json(Tokens { tokens }).into_response())
}

/// Make a token; its secret is shown this once
#[utoipa::path(post, path = "/admin/v1/tokens", tag = "tokens", operation_id = "makeToken",
    request_body = MakeToken,
    responses((status = 201, description = "made; brokers know it within a second", body = Made), Refusal))]
pub(super) async fn create(
    State(admin): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    payload: Payload,
) -> Answer {
    let wanted = read_token(payload.json()?).map_err(ApiError::Problems)?;
    let far = || ApiError::invalid("expires_in", "is too far away");
    let expires_at = match wanted.expires_in {
        None => None,
        Some(span) => {
            let span = span.try_into().map_err(|_| far())?;
            Some(clock::now().checked_add(span).ok_or_else(far)?)
        }
    };
    let new = NewToken {
        name: wanted.name,
        role: wanted.role,
        expires_at,
        features: wanted.features,
        models: wanted.models,
        limit: wanted.limit,
    };
    let actor = actor(&caller);
    let made = admin.store.create_token(&actor, &new).await;
    let (id, secret) = made.map_err(|error| match error {
        // The features that the body names, not something that the path says.
        StoreError::NotFound(message) => ApiError::invalid("features", message),
        other => stored(&other),
    })?;
    tracing::info!(actor, token = %id, role = new.role.as_str(), "an API token was made");
    let made = Made {
        id: id.to_string(),
        name: new.name,
        secret: secret.expose_secret().to_owned(),
        expires_at: expires_at.map(moment),
    };
    let mut response = (StatusCode::CREATED, Json(made)).into_response();
    let none = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, none);
    Ok(response)
}

/// Make a token worthless within a second
#[utoipa::path(delete, path = "/admin/v1/tokens/{id}", tag = "tokens", operation_id = "revokeToken",
    params(("id" = String, Path, description = "its id or its name")),
    responses((status = 204, description = "revoked"), Refusal))]
pub(super) async fn revoke(
    State(admin): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    id: Said,
) -> Answer {
    let (id, actor) = (edit::text(id)?, actor(&caller));
    let unknown = || {
        let message = format!("no live token has the id or name {id:?}; GET /admin/v1/tokens lists them");
        ApiError::NotFound(message.into())
    };
    // No token has such a name, and Postgres takes no text with NUL.
    if id.chars().any(char::is_control) {
        return Err(unknown().into());
    }
    let revoked = admin.store.revoke_token(&actor, &id).await;
    let revoked = revoked.map_err(|error| match error {
        StoreError::NotFound(_) => unknown(),
        other => stored(&other),
    })?;
    tracing::info!(actor, token = %revoked, "an API token was revoked");
    Ok(StatusCode::NO_CONTENT.into_response())
}
