//! Features: list, show, assign.

use std::sync::Arc;

use axum::extract::State;
use duo_contract::snapshot::SupportLevel;
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use super::AdminState;
use super::edit::{self, Answer, Edit, Payload, Said, show};
use super::openapi::Refusal;
use crate::api::error::ApiError;
use crate::config_file::{resource::Target, span};
use crate::store::features::{FeatureKind, FeatureRow, body_policy_text};
use crate::store::snapshot::ConfigState;
use crate::store::support_levels::level_of;

/// Every feature.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Features {
    /// The configuration's revision, also the `ETag`.
    revision: u64,
    features: Vec<OneFeature>,
}

/// A feature, its assignment, and what else could be assigned.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OneFeature {
    /// Its id.
    name: String,
    /// Its name for people.
    title: String,
    kind: Kind,
    /// Unit primitives of GitLab tokens, any of which opens it.
    scopes: Vec<String>,
    active: bool,
    /// The model assigned to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// Who answers for a pair that is to be evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    acknowledgement: Option<Acknowledged>,
    /// `keystroke` or `interactive`.
    #[schema(example = "interactive")]
    lane: String,
    #[schema(example = "50s")]
    first_byte_within: String,
    #[schema(example = "10m")]
    end_within: String,
    /// What the audit log keeps of prompts and answers: `none`, `digest` or `full`.
    bodies: String,
    /// The drop-down: each model that goes with it, and inactive.
    choices: Vec<Choice>,
}

/// What a feature needs of a model.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// A language model.
    Language,
    /// A generic inference call.
    Generic,
    /// Whichever model the request names.
    Openai,
}

/// Somebody's word for a pair that is to be evaluated.
#[derive(Debug, Serialize, ToSchema)]
struct Acknowledged {
    text: String,
    /// The family it stands for.
    family: String,
    by: String,
    #[schema(format = "date-time")]
    at: String,
}

/// One entry of the drop-down.
#[derive(Debug, Serialize, ToSchema)]
struct Choice {
    /// `model`, `active` (OpenAI features, whose requests name a model) or `inactive`.
    choice: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<String>,
    /// `supported` or `to_be_evaluated`; what is not supported is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<&'static str>,
    /// Does assigning it take `acknowledge`? No longer where somebody has given it for the family.
    needs_acknowledgement: bool,
    /// Is it what is in force?
    selected: bool,
}

/// What a feature is to be; what is left out stays.
#[derive(ToSchema)]
#[schema(example = json!({"model": "mistral", "acknowledge": "two weeks of trials by the platform team"}))]
#[expect(
    dead_code,
    reason = "the shape of a body, for the document; the configuration's own reader reads it"
)]
pub(super) struct PutFeature {
    /// Assigns this model, which makes the feature active.
    model: Option<String>,
    /// `false` makes it inactive; `true` is for the OpenAI features, which have no model of their own.
    active: Option<bool>,
    /// Who answers for a model whose family is to be evaluated, and why.
    acknowledge: Option<String>,
    /// `keystroke` or `interactive`.
    lane: Option<String>,
    /// Such as `2500ms`, `50s`.
    first_byte_within: Option<String>,
    /// Such as `10m`, a day at most.
    end_within: Option<String>,
    /// `none`, `digest` or `full`.
    bodies: Option<String>,
}

impl OneFeature {
    fn new(state: &ConfigState, row: &FeatureRow) -> Self {
        let feature = &row.feature;
        let acknowledgement = row.acknowledgement.as_ref().map(|given| Acknowledged {
            text: given.text.clone(),
            family: given.family.clone(),
            by: given.by.clone(),
            at: given.at.format(&Rfc3339).unwrap_or_default(),
        });
        Self {
            name: feature.name.to_string(),
            title: row.title.clone(),
            kind: match row.kind {
                FeatureKind::Language => Kind::Language,
                FeatureKind::Generic => Kind::Generic,
                FeatureKind::Openai => Kind::Openai,
            },
            scopes: row.scopes.clone(),
            active: feature.active,
            model: feature.model.as_ref().map(ToString::to_string),
            acknowledgement,
            lane: feature.lane.to_string(),
            first_byte_within: span(feature.first_byte_within_ms),
            end_within: span(feature.end_within_ms),
            bodies: body_policy_text(feature.bodies).to_owned(),
            choices: choices(state, row),
        }
    }

    fn find(state: &ConfigState, name: &str) -> Result<Self, ApiError> {
        let row = state
            .features
            .iter()
            .find(|row| row.feature.name.as_str() == name);
        let row = row.ok_or_else(|| ApiError::NotFound(format!("there is no feature {name:?}").into()))?;
        Ok(Self::new(state, row))
    }
}

fn choices(state: &ConfigState, row: &FeatureRow) -> Vec<Choice> {
    let feature = &row.feature;
    let mut choices = Vec::new();
    let plain = |choice, selected| Choice {
        choice,
        model: None,
        family: None,
        level: None,
        needs_acknowledgement: false,
        selected,
    };
    if row.kind == FeatureKind::Openai {
        choices.push(plain("active", feature.active));
    } else {
        let levels = || state.support_levels.iter().map(|row| &row.support);
        for model in &state.models {
            let level = level_of(levels(), &feature.name, &model.family);
            if level == SupportLevel::NotSupported {
                continue;
            }
            let mut given = row.acknowledgement.iter();
            let is_given = given.any(|given| given.family == model.family);
            choices.push(Choice {
                choice: "model",
                model: Some(model.name.to_string()),
                family: Some(model.family.clone()),
                level: Some(level.as_str()),
                needs_acknowledgement: level == SupportLevel::ToBeEvaluated && !is_given,
                selected: feature.model.as_ref() == Some(&model.name),
            });
        }
    }
    choices.push(plain("inactive", !feature.active));
    choices
}

/// Every feature with its drop-down
#[utoipa::path(get, path = "/admin/v1/features", tag = "features", operation_id = "listFeatures",
    responses((status = 200, description = "what there is", body = Features), Refusal))]
pub(super) async fn list(State(admin): State<Arc<AdminState>>) -> Answer {
    let found = |state: &ConfigState| {
        let features = state.features.iter().map(|row| OneFeature::new(state, row));
        Ok(Features {
            revision: state.revision,
            features: features.collect(),
        })
    };
    show(&admin, found).await
}

/// One feature with its drop-down
#[utoipa::path(get, path = "/admin/v1/features/{name}", tag = "features", operation_id = "showFeature",
    params(("name" = String, Path, description = "the feature's id")),
    responses((status = 200, description = "what there is", body = OneFeature), Refusal))]
pub(super) async fn one(State(admin): State<Arc<AdminState>>, name: Said) -> Answer {
    let name = edit::text(name)?;
    show(&admin, |state| OneFeature::find(state, &name)).await
}

/// Assign a model, make it inactive, or change its settings
///
/// What the body leaves out stays as it is.
#[utoipa::path(put, path = "/admin/v1/features/{name}", tag = "features", operation_id = "putFeature",
    params(("name" = String, Path, description = "the feature's id"),
        ("If-Match" = String, Header, description = "the `ETag` that the edit starts from, or `*`")),
    request_body = PutFeature,
    responses((status = 200, description = "as it is now", body = OneFeature), Refusal))]
pub(super) async fn put(edit: Edit, name: Said, payload: Payload) -> Answer {
    let name = edit::feature(&edit::text(name)?)?;
    let found = |state: &ConfigState| OneFeature::find(state, name.as_str());
    edit.put(Target::Feature(name.clone()), payload, found).await
}
