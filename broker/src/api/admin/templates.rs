//! Prompt templates that replace the built-in ones.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::AdminState;
use super::edit::{self, Answer, Edit, Payload, Said, show};
use super::openapi::Refusal;
use crate::api::error::ApiError;
use crate::config_file::resource::Target;
use crate::prompt::{Prompts, builtin_text};
use crate::store::snapshot::ConfigState;

/// Every template.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Templates {
    /// The configuration's revision, also the `ETag`.
    revision: u64,
    prompts: Vec<Listed>,
}

/// A template, without its text.
#[derive(Debug, Serialize, ToSchema)]
struct Listed {
    /// Prompt id, such as `chat/explain_code`.
    id: String,
    /// Prompt family, or `base`.
    family: String,
    /// The feature that asks by it.
    feature: String,
    /// Is it an administrator's?
    overridden: bool,
}

/// A template.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OneTemplate {
    /// Prompt id, such as `chat/explain_code`.
    id: String,
    /// Prompt family, or `base`.
    family: String,
    /// The template in force: front matter and text.
    text: String,
    /// Is it an administrator's?
    overridden: bool,
}

/// What a template is to be.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "the shape of a body, for the document; the configuration's own reader reads it"
)]
pub(super) struct PutTemplate {
    /// As in the path, or left out.
    id: Option<String>,
    /// As in the path, or left out.
    family: Option<String>,
    /// The template file's whole text, front matter included.
    text: String,
}

fn find(state: &ConfigState, id: &str, family: &str) -> Result<OneTemplate, ApiError> {
    let mut prompts = state.prompts.iter();
    let ours = prompts.find(|prompt| prompt.id == id && prompt.family == family);
    let text = ours.map(|prompt| prompt.text.as_str());
    let text = text.or_else(|| builtin_text(id, family)).ok_or_else(|| {
        ApiError::NotFound(format!("there is no prompt {id:?} for family {family:?}").into())
    })?;
    Ok(OneTemplate {
        id: id.to_owned(),
        family: family.to_owned(),
        text: text.to_owned(),
        overridden: ours.is_some(),
    })
}

/// `ID/FAMILY`, as the files of built-in templates are named; an id may hold slashes.
fn named(said: Said) -> Result<(String, String), ApiError> {
    let text = edit::text(said)?;
    let named = text
        .rsplit_once('/')
        .filter(|(id, family)| !id.is_empty() && !family.is_empty());
    let (id, family) = named.ok_or_else(|| ApiError::NotFound("Not Found".into()))?;
    Ok((id.to_owned(), family.to_owned()))
}

fn target(id: &str, family: &str) -> Target {
    Target::Prompt {
        id: id.to_owned(),
        family: family.to_owned(),
    }
}

/// Built in or an administrator's, of every family that has one.
fn all(prompts: &Prompts, state: &ConfigState) -> Vec<Listed> {
    let mut listed = Vec::new();
    for id in prompts.all() {
        let Some(purpose) = prompts.purpose(&id) else {
            continue;
        };
        let ours = state.prompts.iter().filter(|prompt| prompt.id == id);
        let mut families: Vec<_> = ours.map(|prompt| prompt.family.clone()).collect();
        families.extend(prompts.families(&id));
        families.sort();
        families.dedup();
        listed.extend(families.into_iter().filter_map(|family| {
            let found = find(state, &id, &family).ok()?;
            Some(Listed {
                id: found.id,
                family: found.family,
                feature: purpose.feature.to_string(),
                overridden: found.overridden,
            })
        }));
    }
    listed
}

/// Every template, built in or not
#[utoipa::path(get, path = "/admin/v1/prompts", tag = "prompts", operation_id = "listPrompts",
    responses((status = 200, description = "what there is", body = Templates), Refusal))]
pub(super) async fn list(State(admin): State<Arc<AdminState>>) -> Answer {
    let found = |state: &ConfigState| {
        Ok(Templates {
            revision: state.revision,
            prompts: all(&admin.prompts, state),
        })
    };
    show(&admin, found).await
}

/// One template, built in or not
#[utoipa::path(get, path = "/admin/v1/prompts/{id}/{family}", tag = "prompts", operation_id = "showPrompt",
    params(("id" = String, Path, description = "the prompt's id; `/` may stand as it is or as `%2F`"),
        ("family" = String, Path, description = "the prompt family, or `base`")),
    responses((status = 200, description = "what there is", body = OneTemplate), Refusal))]
pub(super) async fn one(State(admin): State<Arc<AdminState>>, said: Said) -> Answer {
    let (id, family) = named(said)?;
    show(&admin, |state| find(state, &id, &family)).await
}

/// Put a template in place of the built-in one
///
/// It is compiled and rendered with a sample before it is taken.
#[utoipa::path(put, path = "/admin/v1/prompts/{id}/{family}", tag = "prompts", operation_id = "putPrompt",
    params(("id" = String, Path, description = "the prompt's id"),
        ("family" = String, Path, description = "the prompt family, or `base`"),
        ("If-Match" = String, Header, description = "the `ETag` that the edit starts from, or `*`")),
    request_body = PutTemplate,
    responses((status = 200, description = "as it is now", body = OneTemplate),
        (status = 201, description = "the built-in one was in force", body = OneTemplate), Refusal))]
pub(super) async fn put(edit: Edit, said: Said, payload: Payload) -> Answer {
    let (id, family) = named(said)?;
    edit.put(target(&id, &family), payload, |state| find(state, &id, &family))
        .await
}

/// Go back to the built-in template
#[utoipa::path(delete, path = "/admin/v1/prompts/{id}/{family}", tag = "prompts", operation_id = "removePrompt",
    params(("id" = String, Path, description = "the prompt's id"),
        ("family" = String, Path, description = "the prompt family, or `base`"),
        ("If-Match" = String, Header, description = "the `ETag` that the edit starts from, or `*`")),
    responses((status = 204, description = "the built-in one is in force"), Refusal))]
pub(super) async fn remove(edit: Edit, said: Said) -> Answer {
    let (id, family) = named(said)?;
    edit.remove(target(&id, &family)).await
}
