//! What holds for every configuration, whichever way it came about.

use duo_contract::name::ModelName;
use duo_contract::snapshot::{Model, SupportLevel};

use super::PromptCheck;
use crate::store::features::{FeatureKind, FeatureRow};
use crate::store::snapshot::ConfigState;
use crate::store::support_levels::level_of;

/// A rule that a configuration breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which part breaks it, such as `features.duo_chat.model`.
    pub part: String,
    /// How, and what to do.
    pub message: String,
}

/// Every rule that `state` breaks.
#[must_use]
pub fn check(state: &ConfigState, check_prompt: PromptCheck<'_>) -> Vec<Violation> {
    let mut violations: Vec<_> = state
        .features
        .iter()
        .filter_map(|row| check_feature(state, row))
        .collect();
    for prompt in &state.prompts {
        if let Err(message) = check_prompt(prompt) {
            violations.push(Violation {
                part: format!("prompts.{}.{}", prompt.id, prompt.family),
                message,
            });
        }
    }
    violations
}

fn check_feature(state: &ConfigState, row: &FeatureRow) -> Option<Violation> {
    let feature = &row.feature;
    let part = format!("features.{}", feature.name);
    let violation = |field: &str, message: String| {
        Some(Violation {
            part: format!("{part}{field}"),
            message,
        })
    };
    if feature.end_within_ms < feature.first_byte_within_ms {
        let message = "the end may not come before the first byte".to_owned();
        return violation(".end_within", message);
    }
    match (&feature.model, row.kind) {
        (None, FeatureKind::Openai) => None,
        (None, _) if !feature.active => None,
        (None, _) => violation("", "an active feature needs a model: {model: NAME}".to_owned()),
        (Some(_), FeatureKind::Openai) => {
            let message =
                "has no model of its own, the request names one; write `active` or `inactive`".to_owned();
            violation(".model", message)
        }
        (Some(model), _) => {
            check_assignment(state, row, model).map_or_else(|message| violation(".model", message), |()| None)
        }
    }
}

/// The blueprint's rule: S may be assigned, N may not, E needs somebody who answers for it.
fn check_assignment(state: &ConfigState, row: &FeatureRow, name: &ModelName) -> Result<(), String> {
    let feature = &row.feature.name;
    let Some(Model { family, .. }) = state.models.iter().find(|model| model.name == *name) else {
        return Err(format!(
            "there is no model {name:?}; it is assigned to {feature}",
            name = name.as_str()
        ));
    };
    match level_of(
        state.support_levels.iter().map(|row| &row.support),
        feature,
        family,
    ) {
        SupportLevel::Supported => Ok(()),
        SupportLevel::NotSupported => Err(format!(
            "the feature {feature} does not go with the model family {family} (level not_supported), so {name} cannot \
             be assigned to it; choose another model, or raise the level with a reason after an evaluation"
        )),
        SupportLevel::ToBeEvaluated
            if row
                .acknowledgement
                .as_ref()
                .is_some_and(|given| given.family == *family) =>
        {
            Ok(())
        }
        SupportLevel::ToBeEvaluated => Err(format!(
            "the feature {feature} has not been evaluated with the model family {family} (level to_be_evaluated); \
             add `acknowledge: \"who answers for it and why\"` to assign {name} all the same"
        )),
    }
}
