//! Webhook receivers: list, add, show, change, remove, and give a new secret. A secret is in the answer that made it and
//! nowhere else.

pub(super) mod deliveries;

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use secrecy::ExposeSecret as _;
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use super::AdminState;
use super::dead::actor;
use super::edit::{self, Answer, Payload, Said, stored};
use super::openapi::Refusal;
use crate::api::error::ApiError;
use crate::caller::Caller;
use crate::config_file::receiver::{read_change, read_new, read_overlap};
use crate::store::webhooks::Receiver;

/// Every receiver, by name.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Receivers {
    webhooks: Vec<OneReceiver>,
}

/// A receiver, never its secrets.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OneReceiver {
    name: String,
    url: String,
    /// Networks that it may be at although they are not public.
    addresses: Vec<String>,
    /// Is anything sent to it?
    enabled: bool,
    /// Why not: `gone` (it answered 410) or `administrator`.
    #[serde(skip_serializing_if = "Option::is_none")]
    disabled_reason: Option<String>,
    #[schema(format = "date-time")]
    #[serde(skip_serializing_if = "Option::is_none")]
    disabled_at: Option<String>,
    #[schema(format = "date-time")]
    created_at: String,
    created_by: String,
    /// What signs for it, the newest first.
    secrets: Vec<OneSecret>,
    /// Deliveries that wait for it.
    pending: u64,
}

/// A secret, without itself.
#[derive(Debug, Serialize, ToSchema)]
struct OneSecret {
    #[schema(format = "date-time")]
    created_at: String,
    /// How long an older one is good yet.
    #[schema(format = "date-time")]
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_until: Option<String>,
}

/// A receiver that was just added.
#[derive(Serialize, ToSchema)]
pub(super) struct Added {
    #[serde(flatten)]
    receiver: OneReceiver,
    /// What its requests are signed with. Keep it: nothing shows it again.
    secret: String,
}

/// A new secret.
#[derive(Serialize, ToSchema)]
pub(super) struct NewSecret {
    /// What requests are signed with from now on. Keep it: nothing shows it again.
    secret: String,
    /// How long requests are signed with the old one too.
    #[schema(format = "date-time")]
    #[serde(skip_serializing_if = "Option::is_none")]
    old_valid_until: Option<String>,
}

/// A receiver to be.
#[derive(ToSchema)]
#[schema(example = json!({"name": "ci", "url": "https://ci.example.com/hooks/duo", "addresses": ["10.1.0.0/16"]}))]
#[expect(
    dead_code,
    reason = "the shape of a body, for the document; another reader reads it"
)]
pub(super) struct AddReceiver {
    /// What jobs call it: letters, digits, `.`, `-` and `_`.
    #[schema(pattern = "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    name: String,
    /// Where it is, http or https.
    #[schema(example = "https://ci.example.com/hooks/duo")]
    url: String,
    /// Networks in CIDR form that it may be at although they are not public.
    addresses: Option<Vec<String>>,
}

/// What is to be different; what is left out stays.
#[derive(ToSchema)]
#[schema(example = json!({"enabled": true}))]
#[expect(
    dead_code,
    reason = "the shape of a body, for the document; another reader reads it"
)]
pub(super) struct ChangeReceiver {
    /// Where it is.
    url: Option<String>,
    /// Networks in CIDR form that it may be at although they are not public.
    addresses: Option<Vec<String>>,
    /// `false` drops what waits for it; `true` sends what comes from then on.
    enabled: Option<bool>,
}

/// How a secret is replaced.
#[derive(ToSchema)]
#[schema(example = json!({"overlap": "24h"}))]
#[expect(
    dead_code,
    reason = "the shape of a body, for the document; another reader reads it"
)]
pub(super) struct RotateSecret {
    /// How long requests are signed with the old one too: `0s` to `30d`; `24h` without it.
    overlap: Option<String>,
}

impl From<Receiver> for OneReceiver {
    fn from(receiver: Receiver) -> Self {
        let secrets = receiver.secrets.iter().map(|secret| OneSecret {
            created_at: moment(secret.created_at),
            valid_until: secret.valid_until.map(moment),
        });
        let disabled = receiver.disabled.as_ref();
        Self {
            secrets: secrets.collect(),
            addresses: receiver.addresses.iter().map(ToString::to_string).collect(),
            enabled: disabled.is_none(),
            disabled_reason: disabled.map(|disabled| disabled.reason.clone()),
            disabled_at: disabled.map(|disabled| moment(disabled.at)),
            url: receiver.url.to_string(),
            name: receiver.name,
            created_at: moment(receiver.created_at),
            created_by: receiver.created_by,
            pending: receiver.pending,
        }
    }
}

fn moment(moment: OffsetDateTime) -> String {
    moment.format(&Rfc3339).unwrap_or_default()
}

/// An answer that no proxy is to keep.
fn fresh<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let mut response = (status, Json(value)).into_response();
    let none = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, none);
    response
}

/// The body as JSON; none at all is an empty object.
fn optional_json(payload: Payload) -> Result<Value, ApiError> {
    match payload.0 {
        Ok(bytes) if bytes.is_empty() => Ok(json!({})),
        read => Payload(read).json(),
    }
}

/// Every receiver
#[utoipa::path(get, path = "/admin/v1/webhooks", tag = "webhooks", operation_id = "listWebhooks",
    responses((status = 200, description = "what there is", body = Receivers), Refusal))]
pub(super) async fn list(State(admin): State<Arc<AdminState>>) -> Answer {
    let receivers = admin.store.receivers().await.map_err(|error| stored(&error))?;
    let webhooks = receivers.into_iter().map(OneReceiver::from).collect();
    Ok(fresh(StatusCode::OK, &Receivers { webhooks }))
}

/// Add a receiver; its secret is shown this once
#[utoipa::path(post, path = "/admin/v1/webhooks", tag = "webhooks", operation_id = "addWebhook",
    request_body = AddReceiver,
    responses((status = 201, description = "added; jobs may name it at once", body = Added), Refusal))]
pub(super) async fn create(
    State(admin): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    payload: Payload,
) -> Answer {
    let new = read_new(payload.json()?).map_err(ApiError::Problems)?;
    let (actor, keys) = (actor(&caller), admin.dispatch.keys());
    let added = admin.store.add_receiver(&actor, &new, keys).await;
    let (receiver, secret) = added.map_err(|error| stored(&error))?;
    tracing::info!(actor, receiver = receiver.name, "a webhook receiver was added");
    let added = Added {
        receiver: receiver.into(),
        secret: secret.expose_secret().to_owned(),
    };
    Ok(fresh(StatusCode::CREATED, &added))
}

/// One receiver
#[utoipa::path(get, path = "/admin/v1/webhooks/{name}", tag = "webhooks", operation_id = "showWebhook",
    params(("name" = String, Path, description = "its name")),
    responses((status = 200, description = "the receiver", body = OneReceiver), Refusal))]
pub(super) async fn one(State(admin): State<Arc<AdminState>>, name: Said) -> Answer {
    let receiver = admin.store.receiver(&edit::text(name)?).await;
    let receiver = receiver.map_err(|error| stored(&error))?;
    Ok(fresh(StatusCode::OK, &OneReceiver::from(receiver)))
}

/// Change a receiver, disable it, or enable it again
#[utoipa::path(put, path = "/admin/v1/webhooks/{name}", tag = "webhooks", operation_id = "putWebhook",
    params(("name" = String, Path, description = "its name")),
    request_body = ChangeReceiver,
    responses((status = 200, description = "the receiver as it is now", body = OneReceiver), Refusal))]
pub(super) async fn put(
    State(admin): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    name: Said,
    payload: Payload,
) -> Answer {
    let (name, actor) = (edit::text(name)?, actor(&caller));
    let wanted = read_change(payload.json()?).map_err(ApiError::Problems)?;
    let changed = admin.store.change_receiver(&actor, &name, &wanted).await;
    let receiver = changed.map_err(|error| stored(&error))?;
    tracing::info!(actor, receiver = receiver.name, "a webhook receiver was changed");
    Ok(fresh(StatusCode::OK, &OneReceiver::from(receiver)))
}

/// Remove a receiver, with its secrets and deliveries
#[utoipa::path(delete, path = "/admin/v1/webhooks/{name}", tag = "webhooks", operation_id = "removeWebhook",
    params(("name" = String, Path, description = "its name")),
    responses((status = 204, description = "it is gone"), Refusal))]
pub(super) async fn remove(
    State(admin): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    name: Said,
) -> Answer {
    let (name, actor) = (edit::text(name)?, actor(&caller));
    let removed = admin.store.remove_receiver(&actor, &name).await;
    removed.map_err(|error| stored(&error))?;
    tracing::info!(actor, receiver = name, "a webhook receiver was removed");
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Give a receiver a new secret; it is shown this once
#[utoipa::path(post, path = "/admin/v1/webhooks/{name}/secret", tag = "webhooks", operation_id = "rotateWebhookSecret",
    params(("name" = String, Path, description = "its name")),
    request_body = Option<RotateSecret>,
    responses((status = 200, description = "the new secret", body = NewSecret), Refusal))]
pub(super) async fn rotate(
    State(admin): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    name: Said,
    payload: Payload,
) -> Answer {
    let (name, actor) = (edit::text(name)?, actor(&caller));
    let overlap = read_overlap(optional_json(payload)?).map_err(ApiError::Problems)?;
    let keys = admin.dispatch.keys();
    let rotated = admin.store.rotate_secret(&actor, &name, overlap, keys).await;
    let rotated = rotated.map_err(|error| stored(&error))?;
    tracing::info!(actor, receiver = name, "a webhook receiver has a new secret");
    let secret = NewSecret {
        secret: rotated.secret.expose_secret().to_owned(),
        old_valid_until: rotated.old_valid_until.map(moment),
    };
    Ok(fresh(StatusCode::OK, &secret))
}
