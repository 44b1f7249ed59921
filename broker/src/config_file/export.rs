//! The configuration as a file that applies to the same state.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::store::features::FeatureRow;
use crate::store::features::{FeatureKind, body_policy_text};
use crate::store::snapshot::ConfigState;

#[derive(Serialize)]
struct File<'a> {
    models: Vec<ExportedModel<'a>>,
    features: BTreeMap<&'a str, ExportedFeature<'a>>,
    issuers: Vec<ExportedIssuer<'a>>,
    support_levels: Vec<ExportedSupport<'a>>,
    prompts: Vec<ExportedPrompt<'a>>,
}

#[derive(Serialize)]
struct ExportedModel<'a> {
    name: &'a str,
    family: &'a str,
    context_tokens: u32,
    max_output_tokens: u32,
}

#[derive(Serialize)]
struct ExportedFeature<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    active: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    acknowledge: Option<&'a str>,
    lane: &'static str,
    first_byte_within: String,
    end_within: String,
    bodies: &'static str,
}

#[derive(Serialize)]
struct ExportedIssuer<'a> {
    url: &'a str,
    audience: &'a str,
    openai: bool,
}

#[derive(Serialize)]
struct ExportedSupport<'a> {
    feature: &'a str,
    family: &'a str,
    level: &'static str,
    reason: &'a str,
}

#[derive(Serialize)]
struct ExportedPrompt<'a> {
    id: &'a str,
    family: &'a str,
    text: &'a str,
}

/// Writes a file; support levels are in it only where somebody changed them, since every installation has the others.
///
/// # Panics
/// Never: plain structs with text keys can be written.
#[must_use]
pub fn export(state: &ConfigState) -> String {
    let file = File {
        models: state
            .models
            .iter()
            .map(|model| ExportedModel {
                name: model.name.as_str(),
                family: &model.family,
                context_tokens: model.context_tokens,
                max_output_tokens: model.max_output_tokens,
            })
            .collect(),
        features: state
            .features
            .iter()
            .map(|row| (row.feature.name.as_str(), feature(row)))
            .collect(),
        issuers: state
            .issuers
            .iter()
            .map(|issuer| ExportedIssuer {
                url: &issuer.url,
                audience: &issuer.audience,
                openai: issuer.openai,
            })
            .collect(),
        support_levels: state
            .support_levels
            .iter()
            .filter_map(|row| {
                Some(ExportedSupport {
                    feature: row.support.feature.as_str(),
                    family: &row.support.family,
                    level: row.support.level.as_str(),
                    reason: row.reason.as_deref()?,
                })
            })
            .collect(),
        prompts: state
            .prompts
            .iter()
            .map(|prompt| ExportedPrompt {
                id: &prompt.id,
                family: &prompt.family,
                text: &prompt.text,
            })
            .collect(),
    };
    let yaml = serde_saphyr::to_string(&file).expect("plain structs with text keys can be written");
    format!("# Configuration at revision {}.\n{yaml}", state.revision)
}

fn feature(row: &FeatureRow) -> ExportedFeature<'_> {
    let feature = &row.feature;
    let says_active = row.kind == FeatureKind::Openai || !feature.active;
    ExportedFeature {
        model: feature.model.as_ref().map(|model| model.as_str()),
        active: says_active.then_some(feature.active),
        acknowledge: row.acknowledgement.as_ref().map(|given| given.text.as_str()),
        lane: feature.lane.as_str(),
        first_byte_within: span(feature.first_byte_within_ms),
        end_within: span(feature.end_within_ms),
        bodies: body_policy_text(feature.bodies),
    }
}

/// A span in the longest unit that leaves a whole number.
pub(crate) fn span(milliseconds: u64) -> String {
    let units = [("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let unit = units.iter().find(|(_, size)| milliseconds.is_multiple_of(*size));
    match unit {
        Some((unit, size)) => format!("{}{unit}", milliseconds / size),
        None => format!("{milliseconds}ms"),
    }
}
