//! Models: list, show, put, remove.

use std::sync::Arc;

use axum::extract::State;
use duo_contract::snapshot::Model;
use serde::Serialize;
use utoipa::ToSchema;

use super::AdminState;
use super::edit::{self, Answer, Edit, Payload, Said, show};
use super::openapi::Refusal;
use crate::api::error::ApiError;
use crate::config_file::resource::Target;
use crate::store::snapshot::ConfigState;

/// Every model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Models {
    /// The configuration's revision, also the `ETag`.
    revision: u64,
    models: Vec<OneModel>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OneModel {
    /// Its name.
    name: String,
    /// Its family, such as `mistral_7b`; the part before the first `_` picks prompts.
    family: String,
    /// Tokens of prompt and answer together.
    context_tokens: u32,
    /// Most tokens of an answer.
    max_output_tokens: u32,
    /// Features that it is assigned to.
    features: Vec<String>,
}

/// What a model is to be.
#[derive(ToSchema)]
#[schema(example = json!({"family": "mistral_7b", "context_tokens": 32768, "max_output_tokens": 4096}))]
#[expect(
    dead_code,
    reason = "the shape of a body, for the document; the configuration's own reader reads it"
)]
pub(super) struct PutModel {
    /// As in the path, or left out.
    name: Option<String>,
    family: String,
    /// Tokens of prompt and answer together, from 1.
    context_tokens: u32,
    /// Most tokens of an answer, `context_tokens` at most.
    max_output_tokens: u32,
}

impl OneModel {
    fn new(state: &ConfigState, model: &Model) -> Self {
        let features = state.features.iter().map(|row| &row.feature);
        let assigned = features.filter(|feature| feature.model.as_ref() == Some(&model.name));
        Self {
            name: model.name.to_string(),
            family: model.family.clone(),
            context_tokens: model.context_tokens,
            max_output_tokens: model.max_output_tokens,
            features: assigned.map(|feature| feature.name.to_string()).collect(),
        }
    }

    fn find(state: &ConfigState, name: &str) -> Result<Self, ApiError> {
        let model = state.models.iter().find(|model| model.name.as_str() == name);
        let model = model.ok_or_else(|| ApiError::NotFound(format!("there is no model {name:?}").into()))?;
        Ok(Self::new(state, model))
    }
}

/// Every model
#[utoipa::path(get, path = "/admin/v1/models", tag = "models", operation_id = "listModels",
    responses((status = 200, description = "what there is", body = Models), Refusal))]
pub(super) async fn list(State(admin): State<Arc<AdminState>>) -> Answer {
    let found = |state: &ConfigState| {
        let models = state.models.iter().map(|model| OneModel::new(state, model));
        Ok(Models {
            revision: state.revision,
            models: models.collect(),
        })
    };
    show(&admin, found).await
}

/// One model
#[utoipa::path(get, path = "/admin/v1/models/{name}", tag = "models", operation_id = "showModel",
    params(("name" = String, Path, description = "the model; `/` may stand as it is or as `%2F`")),
    responses((status = 200, description = "what there is", body = OneModel), Refusal))]
pub(super) async fn one(State(admin): State<Arc<AdminState>>, name: Said) -> Answer {
    let name = edit::text(name)?;
    show(&admin, |state| OneModel::find(state, &name)).await
}

/// Add a model or change it
///
/// Refused where a feature could not keep it: another family may need another acknowledgement.
#[utoipa::path(put, path = "/admin/v1/models/{name}", tag = "models", operation_id = "putModel",
    params(("name" = String, Path, description = "the model"),
        ("If-Match" = String, Header, description = "the `ETag` that the edit starts from, or `*`")),
    request_body = PutModel,
    responses((status = 200, description = "as it is now", body = OneModel),
        (status = 201, description = "it is new", body = OneModel), Refusal))]
pub(super) async fn put(edit: Edit, name: Said, payload: Payload) -> Answer {
    let name = edit::model(&edit::text(name)?)?;
    let found = |state: &ConfigState| OneModel::find(state, name.as_str());
    edit.put(Target::Model(name.clone()), payload, found).await
}

/// Remove a model that no feature uses
#[utoipa::path(delete, path = "/admin/v1/models/{name}", tag = "models", operation_id = "removeModel",
    params(("name" = String, Path, description = "the model"),
        ("If-Match" = String, Header, description = "the `ETag` that the edit starts from, or `*`")),
    responses((status = 204, description = "it is gone"), Refusal))]
pub(super) async fn remove(edit: Edit, name: Said) -> Answer {
    let name = edit::model(&edit::text(name)?)?;
    edit.remove(Target::Model(name)).await
}
