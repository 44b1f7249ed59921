//! Support levels: which feature goes with which family.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::AdminState;
use super::edit::{self, Answer, Edit, Payload, Said, show};
use super::openapi::Refusal;
use crate::api::error::ApiError;
use crate::config_file::resource::Target;
use crate::store::snapshot::ConfigState;
use crate::store::support_levels::SupportRow;

/// Every level that somebody set, or that installations start with.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Levels {
    /// The configuration's revision, also the `ETag`.
    revision: u64,
    support: Vec<Level>,
}

/// The level of a feature and a family.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Level {
    feature: String,
    /// The family; `*` stands for every family without a level of its own.
    family: String,
    /// `supported`, `to_be_evaluated` or `not_supported`.
    level: &'static str,
    /// Why somebody changed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Which levels are listed; all without any.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Of this feature.
    feature: Option<String>,
    /// Of this family.
    family: Option<String>,
}

impl Asked {
    fn names(&self, level: &Level) -> bool {
        let is = |asked: &Option<String>, found: &str| asked.as_ref().is_none_or(|asked| asked == found);
        is(&self.feature, &level.feature) && is(&self.family, &level.family)
    }
}

/// What a level is to be.
#[derive(ToSchema)]
#[schema(example = json!({"level": "supported", "reason": "two weeks of trials"}))]
#[expect(
    dead_code,
    reason = "the shape of a body, for the document; the configuration's own reader reads it"
)]
pub(super) struct PutLevel {
    /// As in the path, or left out.
    feature: Option<String>,
    /// As in the path, or left out.
    family: Option<String>,
    /// `supported`, `to_be_evaluated` or `not_supported`.
    level: String,
    /// Why.
    reason: String,
}

impl From<&SupportRow> for Level {
    fn from(row: &SupportRow) -> Self {
        Self {
            feature: row.support.feature.to_string(),
            family: row.support.family.clone(),
            level: row.support.level.as_str(),
            reason: row.reason.clone(),
        }
    }
}

fn find(state: &ConfigState, feature: &str, family: &str) -> Result<Level, ApiError> {
    let mut rows = state.support_levels.iter();
    let row = rows.find(|row| row.support.feature.as_str() == feature && row.support.family == family);
    row.map(Level::from).ok_or_else(|| {
        let message = format!("no level is set for {feature:?} and {family:?}: it is to be evaluated");
        ApiError::NotFound(message.into())
    })
}

/// `FEATURE/FAMILY`; a family may hold slashes.
fn pair(said: Said) -> Result<(String, String), ApiError> {
    let text = edit::text(said)?;
    let pair = text.split_once('/').filter(|(_, family)| !family.is_empty());
    let (feature, family) = pair.ok_or_else(|| ApiError::NotFound("Not Found".into()))?;
    Ok((feature.to_owned(), family.to_owned()))
}

/// Every support level
#[utoipa::path(get, path = "/admin/v1/support", tag = "support", operation_id = "listSupport",
    params(Asked), responses((status = 200, description = "what there is", body = Levels), Refusal))]
pub(super) async fn list(
    State(admin): State<Arc<AdminState>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Answer {
    let Query(asked) = asked.map_err(|error| ApiError::invalid("", error.body_text()))?;
    let found = |state: &ConfigState| {
        let levels = state.support_levels.iter().map(Level::from);
        Ok(Levels {
            revision: state.revision,
            support: levels.filter(|level| asked.names(level)).collect(),
        })
    };
    show(&admin, found).await
}

/// One support level
#[utoipa::path(get, path = "/admin/v1/support/{feature}/{family}", tag = "support", operation_id = "showSupport",
    params(("feature" = String, Path, description = "the feature's id"),
        ("family" = String, Path, description = "the family, or `*`")),
    responses((status = 200, description = "what there is", body = Level), Refusal))]
pub(super) async fn one(State(admin): State<Arc<AdminState>>, said: Said) -> Answer {
    let (feature, family) = pair(said)?;
    show(&admin, |state| find(state, &feature, &family)).await
}

/// Raise or lower a level, with a reason
///
/// Refused where an assignment that is there would break the rules.
#[utoipa::path(put, path = "/admin/v1/support/{feature}/{family}", tag = "support", operation_id = "putSupport",
    params(("feature" = String, Path, description = "the feature's id"),
        ("family" = String, Path, description = "the family, or `*`"),
        ("If-Match" = String, Header, description = "the `ETag` that the edit starts from, or `*`")),
    request_body = PutLevel,
    responses((status = 200, description = "as it is now", body = Level),
        (status = 201, description = "there was none", body = Level), Refusal))]
pub(super) async fn put(edit: Edit, said: Said, payload: Payload) -> Answer {
    let (feature, family) = pair(said)?;
    let target = Target::Support {
        feature: edit::feature(&feature)?,
        family: family.clone(),
    };
    edit.put(target, payload, |state| find(state, &feature, &family))
        .await
}
