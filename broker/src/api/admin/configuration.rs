//! The whole configuration as a file: export, diff, apply.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::IntoResponse;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::AdminState;
use super::dead::actor;
use super::edit::{Answer, Payload, Seen, at_revision, refused, state, tag, tell};
use super::openapi::Refusal;
use crate::api::error::ApiError;
use crate::caller::Caller;
use crate::config_file::{self, Applied, ConfigFile};
use crate::prompt;

/// What applying a file did, or would do.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Changes {
    /// The revision that results; as before where nothing changes.
    revision: u64,
    changes: Vec<OneChange>,
}

/// One row that changes.
#[derive(Debug, Serialize, ToSchema)]
struct OneChange {
    /// Such as `model.put`, `feature.put`, `prompt.remove`.
    what: &'static str,
    /// Which one.
    subject: String,
    /// What was there.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Value>,
    /// What is there then.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Value>,
}

impl From<&Applied> for Changes {
    fn from(applied: &Applied) -> Self {
        let change = |edit: &crate::store::change::Edit| {
            let record = edit.record();
            OneChange {
                what: record.what,
                subject: record.subject,
                before: record.before,
                after: record.after,
            }
        };
        Self {
            revision: applied.revision,
            changes: applied.edits.iter().map(change).collect(),
        }
    }
}

/// A file from a body; other files of the broker's machine are not read for it.
fn file(payload: Payload) -> Result<ConfigFile, ApiError> {
    let bytes = payload.0?;
    let text = std::str::from_utf8(&bytes).map_err(|_| ApiError::invalid("", "the file has to be UTF-8"))?;
    config_file::parse(text, None, &prompt::check).map_err(ApiError::Problems)
}

/// The configuration as a file that applies to the same state
#[utoipa::path(get, path = "/admin/v1/config", tag = "config", operation_id = "exportConfig",
    responses((status = 200, description = "YAML, as `duo-broker config apply` takes it",
        body = Object, content_type = "application/yaml"), Refusal))]
pub(super) async fn export(State(admin): State<Arc<AdminState>>) -> Answer {
    let state = state(&admin).await?;
    let mut response = config_file::export(&state).into_response();
    let yaml = HeaderValue::from_static("application/yaml");
    response.headers_mut().insert(header::CONTENT_TYPE, yaml);
    tag(&mut response, state.revision);
    Ok(response)
}

/// What a file would change
#[utoipa::path(post, path = "/admin/v1/config/diff", tag = "config", operation_id = "diffConfig",
    request_body(content = String, content_type = "application/yaml", description = "the file; prompts as `text` only"),
    responses((status = 200, description = "the changes", body = Changes), Refusal))]
pub(super) async fn diff(
    State(admin): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    payload: Payload,
) -> Answer {
    let file = file(payload)?;
    let applied = config_file::dry_run(&admin.store, &file, &actor(&caller), &prompt::check).await;
    let applied = applied.map_err(refused)?;
    let from = applied.revision - u64::from(!applied.edits.is_empty());
    Ok(at_revision(from, StatusCode::OK, &Changes::from(&applied)))
}

/// Make the configuration what a file says, whole or not at all
#[utoipa::path(post, path = "/admin/v1/config/apply", tag = "config", operation_id = "applyConfig",
    params(("If-Match" = String, Header, description = "the `ETag` that the file starts from, or `*`")),
    request_body(content = String, content_type = "application/yaml", description = "the file; prompts as `text` only"),
    responses((status = 200, description = "the changes", body = Changes), Refusal))]
pub(super) async fn apply(
    State(admin): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    seen: Seen,
    payload: Payload,
) -> Answer {
    let expected = seen.revision()?;
    let (file, actor) = (file(payload)?, actor(&caller));
    let applied = config_file::apply(&admin.store, &file, &actor, expected, &prompt::check).await;
    let applied = applied.map_err(refused)?;
    tell(&actor, &applied);
    Ok(at_revision(
        applied.revision,
        StatusCode::OK,
        &Changes::from(&applied),
    ))
}
