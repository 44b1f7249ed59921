//! GitLab instances whose tokens are accepted.

use std::sync::Arc;

use axum::extract::State;
use duo_contract::snapshot::Issuer;
use serde::Serialize;
use utoipa::ToSchema;

use super::AdminState;
use super::edit::{self, Answer, Edit, Payload, Said, show};
use super::openapi::Refusal;
use crate::api::error::ApiError;
use crate::config_file::resource::Target;
use crate::store::snapshot::ConfigState;

/// Every GitLab instance.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Issuers {
    /// The configuration's revision, also the `ETag`.
    revision: u64,
    issuers: Vec<OneIssuer>,
}

/// A GitLab instance.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OneIssuer {
    /// What the instance calls itself; its tokens carry it.
    url: String,
    /// `aud` that tokens must hold.
    audience: String,
    /// May its tokens use the OpenAI endpoints too?
    openai: bool,
}

/// What a GitLab instance is to be.
#[derive(ToSchema)]
#[schema(example = json!({"audience": "gitlab-ai-gateway"}))]
#[expect(
    dead_code,
    reason = "the shape of a body, for the document; the configuration's own reader reads it"
)]
pub(super) struct PutIssuer {
    /// As in the path, or left out.
    url: Option<String>,
    /// `aud` that tokens must hold.
    audience: String,
    /// May its tokens use the OpenAI endpoints too? Without it, no.
    openai: Option<bool>,
}

impl From<&Issuer> for OneIssuer {
    fn from(issuer: &Issuer) -> Self {
        Self {
            url: issuer.url.clone(),
            audience: issuer.audience.clone(),
            openai: issuer.openai,
        }
    }
}

fn find(state: &ConfigState, url: &str) -> Result<OneIssuer, ApiError> {
    let issuer = state.issuers.iter().find(|issuer| issuer.url == url);
    issuer
        .map(OneIssuer::from)
        .ok_or_else(|| ApiError::NotFound(format!("there is no GitLab instance {url:?}").into()))
}

/// Every GitLab instance
#[utoipa::path(get, path = "/admin/v1/issuers", tag = "issuers", operation_id = "listIssuers",
    responses((status = 200, description = "what there is", body = Issuers), Refusal))]
pub(super) async fn list(State(admin): State<Arc<AdminState>>) -> Answer {
    let found = |state: &ConfigState| {
        Ok(Issuers {
            revision: state.revision,
            issuers: state.issuers.iter().map(OneIssuer::from).collect(),
        })
    };
    show(&admin, found).await
}

/// One GitLab instance
#[utoipa::path(get, path = "/admin/v1/issuers/{url}", tag = "issuers", operation_id = "showIssuer",
    params(("url" = String, Path, description = "its URL, percent-encoded: `https%3A%2F%2Fgitlab.example.com`")),
    responses((status = 200, description = "what there is", body = OneIssuer), Refusal))]
pub(super) async fn one(State(admin): State<Arc<AdminState>>, url: Said) -> Answer {
    let url = edit::text(url)?;
    show(&admin, |state| find(state, &url)).await
}

/// Trust a GitLab instance, or change how
#[utoipa::path(put, path = "/admin/v1/issuers/{url}", tag = "issuers", operation_id = "putIssuer",
    params(("url" = String, Path, description = "its URL, percent-encoded"),
        ("If-Match" = String, Header, description = "the `ETag` that the edit starts from, or `*`")),
    request_body = PutIssuer,
    responses((status = 200, description = "as it is now", body = OneIssuer),
        (status = 201, description = "it is new", body = OneIssuer), Refusal))]
pub(super) async fn put(edit: Edit, url: Said, payload: Payload) -> Answer {
    let url = edit::text(url)?;
    let target = Target::Issuer(url.clone());
    edit.put(target, payload, |state| find(state, &url)).await
}

/// Trust a GitLab instance no longer
///
/// Its tokens are refused within a second.
#[utoipa::path(delete, path = "/admin/v1/issuers/{url}", tag = "issuers", operation_id = "removeIssuer",
    params(("url" = String, Path, description = "its URL, percent-encoded"),
        ("If-Match" = String, Header, description = "the `ETag` that the edit starts from, or `*`")),
    responses((status = 204, description = "it is gone"), Refusal))]
pub(super) async fn remove(edit: Edit, url: Said) -> Answer {
    edit.remove(Target::Issuer(edit::text(url)?)).await
}
