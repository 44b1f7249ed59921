//! From GitLab's settings to the assignments that they ask for, as far as the configuration allows them.

use std::collections::HashSet;

use duo_contract::name::ModelName;

use super::fetch::{FeatureNode, ModelNode, Settings, shown};
use super::{ACTOR, FeatureChange, Skipped};
use crate::config_file::{ConfigFile, PromptCheck, plan};
use crate::store::snapshot::ConfigState;

/// GitLab's features beside ours.
const FEATURES: [(&str, &str); 16] = [
    ("code_completions", "code_completion"),
    ("code_generations", "code_generation"),
    ("duo_chat", "duo_chat"),
    ("duo_chat_explain_code", "code_explanation"),
    ("duo_chat_explain_vulnerability", "vulnerability_explanation"),
    ("duo_chat_fix_code", "fix_code"),
    ("duo_chat_refactor_code", "refactor_code"),
    ("duo_chat_summarize_comments", "discussion_summary"),
    ("duo_chat_troubleshoot_job", "root_cause_analysis"),
    ("duo_chat_write_tests", "test_generation"),
    ("generate_commit_message", "generate_commit_message"),
    ("glab_ask_git_command", "git_suggestions"),
    ("resolve_vulnerability", "vulnerability_resolution"),
    ("review_merge_request", "review_merge_request"),
    ("summarize_new_merge_request", "merge_request_summary"),
    ("summarize_review", "code_review_summary"),
];

/// What settings come to.
#[derive(Debug)]
pub(super) struct Translated {
    /// The changes as a file would have them.
    pub(super) wanted: ConfigFile,
    /// The same for people.
    pub(super) changes: Vec<FeatureChange>,
    /// What is left alone.
    pub(super) skipped: Vec<Skipped>,
}

/// Compares `settings` with the configuration, feature by feature, so that one that is not allowed holds up no other.
pub(super) fn translate(settings: &Settings, state: &ConfigState, check: PromptCheck<'_>) -> Translated {
    let mut changes: Vec<FeatureChange> = Vec::new();
    let mut skipped = Vec::new();
    // Of a feature that is named again the last word counts, also where it changes nothing.
    let mut named = HashSet::new();
    let mut nodes: Vec<_> = settings.features.iter().rev().collect();
    nodes.retain(|node| named.insert(node.feature.to_ascii_lowercase()));
    for node in nodes.into_iter().rev() {
        match change(node, settings, state, check) {
            Ok(Some(change)) => changes.push(change),
            Ok(None) => {}
            Err(reason) => skipped.push(Skipped {
                setting: shown(&node.feature),
                model: model_of(node, settings).map(|model| shown(identifier(model))),
                reason,
            }),
        }
    }
    let wanted = changes
        .iter()
        .map(|change| (change.feature.clone(), change.to.clone()));
    Translated {
        wanted: ConfigFile::assignments(wanted),
        changes,
        skipped,
    }
}

/// What a setting changes, or why it is left alone.
fn change(
    node: &FeatureNode,
    settings: &Settings,
    state: &ConfigState,
    check: PromptCheck<'_>,
) -> Result<Option<FeatureChange>, String> {
    let to = match node.provider.as_deref().map(str::to_ascii_lowercase).as_deref() {
        Some("self_hosted") => Some(configured(node, settings, state)),
        Some("disabled") => None,
        // GitLab's cloud answers, or nobody has chosen: nothing of ours.
        _ => return Ok(None),
    };
    let name = node.feature.to_ascii_lowercase();
    let (_, ours) = FEATURES
        .iter()
        .find(|(theirs, _)| *theirs == name)
        .ok_or("this gateway has no such feature")?;
    let row = state
        .features
        .iter()
        .find(|row| row.feature.name.as_str() == *ours)
        .ok_or("this gateway has no such feature")?;
    let to = to.transpose()?;
    let from = row.feature.model.clone().filter(|_| row.feature.active);
    if from == to {
        return Ok(None);
    }
    let feature = row.feature.name.clone();
    let alone = ConfigFile::assignments([(feature.clone(), to.clone())]);
    plan(&alone, state, ACTOR, check).map_err(|problems| {
        let texts: Vec<String> = problems.into_iter().map(|problem| problem.message).collect();
        texts.join("; ")
    })?;
    Ok(Some(FeatureChange { feature, from, to }))
}

/// The configured model that a setting names.
fn configured(node: &FeatureNode, settings: &Settings, state: &ConfigState) -> Result<ModelName, String> {
    let model = model_of(node, settings).ok_or("GitLab names no model for it")?;
    let whole = identifier(model);
    // GitLab writes `custom_openai/NAME`; the part after the first slash is the name.
    let bare = whole.split_once('/').map_or(whole, |(_, name)| name);
    let known = |text: &str| state.models.iter().find(|known| known.name.as_str() == text);
    let found = known(whole)
        .or_else(|| known(bare))
        .or_else(|| known(&model.name));
    found.map(|known| known.name.clone()).ok_or_else(|| {
        "the configuration has no model of that name; add it with `duo-broker config apply`, or correct the \
         identifier in GitLab"
            .to_owned()
    })
}

fn model_of<'a>(node: &FeatureNode, settings: &'a Settings) -> Option<&'a ModelNode> {
    let id = &node.model.as_ref()?.id;
    settings.models.iter().find(|model| model.id == *id)
}

fn identifier(model: &ModelNode) -> &str {
    model
        .identifier
        .as_deref()
        .filter(|text| !text.is_empty())
        .unwrap_or(&model.name)
}

#[cfg(test)]
mod tests {
    use duo_contract::name::{FeatureName, Lane};
    use duo_contract::snapshot::{BodyPolicy, Feature, Model, PromptOverride, Support, SupportLevel};
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::gitlab_sync::fetch::ModelReference;
    use crate::store::change::Edit;
    use crate::store::features::{FeatureKind, FeatureRow};
    use crate::store::support_levels::SupportRow;

    const MODELS: [&str; 3] = ["mistral", "llama", "unfit"];

    /// Every feature and three models, the last of which goes with none.
    fn state() -> ConfigState {
        let model = |name: &str| Model {
            name: ModelName::parse(name).expect("a name"),
            family: name.to_owned(),
            context_tokens: 100,
            max_output_tokens: 10,
        };
        let feature = |name: FeatureName| FeatureRow {
            feature: Feature {
                name,
                active: false,
                model: None,
                lane: Lane::Interactive,
                first_byte_within_ms: 1,
                end_within_ms: 2,
                bodies: BodyPolicy::None,
            },
            title: String::new(),
            kind: FeatureKind::Language,
            scopes: Vec::new(),
            acknowledgement: None,
        };
        let names = FEATURES.map(|(_, ours)| FeatureName::parse(ours).expect("a name"));
        let level = |feature: &FeatureName, family: &str| SupportRow {
            support: Support {
                feature: feature.clone(),
                family: family.to_owned(),
                level: match family {
                    "unfit" => SupportLevel::NotSupported,
                    _ => SupportLevel::Supported,
                },
            },
            reason: None,
        };
        ConfigState {
            revision: 1,
            models: MODELS.map(model).to_vec(),
            support_levels: names
                .iter()
                .flat_map(|feature| MODELS.map(|family| level(feature, family)))
                .collect(),
            features: names.map(feature).to_vec(),
            prompts: Vec::new(),
            issuers: Vec::new(),
        }
    }

    fn settings() -> impl Strategy<Value = Settings> {
        let names = vec![
            "code_completions",
            "DUO_CHAT",
            "duo_chat",
            "summarize_review",
            "surprise",
        ];
        let providers = vec![
            Some("self_hosted"),
            Some("SELF_HOSTED"),
            Some("disabled"),
            Some("vendored"),
            None,
        ];
        let feature = (select(names), select(providers), prop::option::of(0usize..5));
        let feature = feature.prop_map(|(feature, provider, model)| FeatureNode {
            feature: feature.to_owned(),
            provider: provider.map(str::to_owned),
            model: model.map(|id| ModelReference { id: id.to_string() }),
        });
        let identifiers = ["custom_openai/mistral", "llama", "unfit", "unknown"];
        let models = identifiers.iter().enumerate().map(|(id, identifier)| ModelNode {
            id: id.to_string(),
            name: format!("model {id}"),
            identifier: Some((*identifier).to_owned()),
        });
        let models: Vec<_> = models.collect();
        prop::collection::vec(feature, 0..8).prop_map(move |features| Settings {
            models: models.clone(),
            features,
        })
    }

    proptest! {
        #[test]
        fn nothing_but_assignments_changes_and_once_is_enough(before in settings(), after in settings()) {
            let accept = |_: &PromptOverride| Ok(());
            let mut now = state();
            for settings in [before, after] {
                let translated = translate(&settings, &now, &accept);
                let plan = plan(&translated.wanted, &now, ACTOR, &accept).expect("each change is allowed");
                prop_assert_eq!(plan.edits.len(), translated.changes.len());
                for edit in &plan.edits {
                    let Edit::PutFeature(from, to) = edit else {
                        return Err(TestCaseError::fail(format!("{edit:?}")));
                    };
                    let mut only = (**from).clone();
                    only.feature.active = to.feature.active;
                    only.feature.model.clone_from(&to.feature.model);
                    prop_assert_eq!(&only, &**to);
                    prop_assert_ne!(to.feature.model.as_ref().map(ModelName::as_str), Some("unfit"));
                }
                now = plan.state;
                let again = translate(&settings, &now, &accept);
                prop_assert!(again.changes.is_empty(), "{:?}", again.changes);
            }
        }
    }

    #[test]
    fn every_feature_of_ours_has_a_valid_name_and_is_meant_once() {
        let mut ours: Vec<&str> = FEATURES.iter().map(|(_, ours)| *ours).collect();
        assert!(ours.iter().all(|name| FeatureName::parse(name).is_ok()));
        ours.sort_unstable();
        ours.dedup();
        assert_eq!(ours.len(), FEATURES.len());
    }
}
