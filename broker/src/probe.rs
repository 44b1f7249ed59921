//! A small real request that tells whether a model answers: which one, and what it asks.
//!
//! A probe goes through the queue as everybody's requests do, in the most urgent lane and with a short deadline. The
//! test of a model asks that very model, whatever its features; the check of a feature asks the feature's model by
//! the feature's own prompt. Whoever sends one tells its caller how it went.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use duo_contract::envelope::Endpoint;
use duo_contract::name::{FeatureName, Lane, ModelName};
use duo_contract::snapshot::{BodyPolicy, Feature, Model};
use serde_json::json;

use crate::prompt::{PromptError, Prompts, Rendered};
use crate::request::{RoutedRequest, Work};
use crate::routing::{INFERENCE, OPENAI_PREFIX, RoutingTable};

/// How long a probe may take: GitLab gives its own up after 3 s.
pub const WITHIN: Duration = Duration::from_millis(2500);
/// Most tokens of a probe's answer.
const MOST_TOKENS: u32 = 16;
/// GitLab's test of a model's connection, and ours.
pub const PROMPT: &str = "model_configuration/check";
/// The prompt of completions.
const COMPLETION_PROMPT: &str = "code_suggestions/completions";
const CODE_COMPLETION: &str = "code_completion";
const CODE_EMBEDDINGS: &str = "code_embeddings";

/// What audit records and metrics call a test of a model; it is no feature that anybody can configure.
pub static MODEL_TEST: LazyLock<FeatureName> =
    LazyLock::new(|| FeatureName::parse("model_test").expect("a feature id"));

/// How a model is to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A conversation.
    Chat,
    /// Code with a cursor in it.
    Completion,
    /// A text to make a vector of.
    Embedding,
}

/// What is to be sent, and where.
#[derive(Debug)]
pub struct Probe {
    /// The model, under a feature with a probe's lane and deadlines.
    pub routed: RoutedRequest,
    /// The call.
    pub work: Work,
}

/// Why a model cannot be tested or a feature be checked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It serves nothing but features that are no language models, and only whoever trained it knows its tensors.
    #[error(
        "{0} serves only inference, for which there is no general test; send a request of your own to /v1/infer/{1}"
    )]
    OnlyInfers(ModelName, FeatureName),
    /// It is switched off.
    #[error("the feature {0} is inactive; assign a model to it first")]
    Inactive(FeatureName),
    /// Each of its requests names a model.
    #[error("requests for {0} name their model; say which is to be asked")]
    ModelUnsaid(FeatureName),
    /// It is no language-model feature.
    #[error("the feature {0} has no prompt, so there is nothing to check it with")]
    NoPrompt(FeatureName),
    /// There is no such model.
    #[error("there is no model {0:?}")]
    UnknownModel(String),
    /// Its prompt cannot be made.
    #[error(transparent)]
    Prompt(#[from] PromptError),
}

impl Probe {
    /// A test of `model`, asked as its features ask it: as a chat unless it only completes code or embeds.
    ///
    /// # Errors
    /// [`ProbeError::OnlyInfers`] unless `way` is said; or the prompt cannot be made, which only a model with a tiny
    /// window brings about.
    pub fn of_model(
        table: &RoutingTable,
        prompts: &Prompts,
        model: &Model,
        way: Option<Way>,
    ) -> Result<Self, ProbeError> {
        let feature = Feature {
            name: MODEL_TEST.clone(),
            active: true,
            model: Some(model.name.clone()),
            lane: Lane::Keystroke,
            first_byte_within_ms: within_ms(),
            end_within_ms: within_ms(),
            bodies: BodyPolicy::None,
        };
        let way = way.map_or_else(|| usual_way(table, &model.name), Ok)?;
        let work = asking(prompts, model, way)?;
        Ok(Self::new(table, feature, model, work))
    }

    /// A check of the feature `name`, for the model `said` where the feature has none of its own.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn of_feature(
        table: &RoutingTable,
        prompts: &Prompts,
        feature: &Feature,
        said: Option<&str>,
    ) -> Result<Self, ProbeError> {
        let name = &feature.name;
        if !feature.active {
            return Err(ProbeError::Inactive(name.clone()));
        }
        let model = match (&feature.model, said) {
            (Some(model), _) => model.as_str(),
            (None, Some(said)) => said,
            (None, None) => return Err(ProbeError::ModelUnsaid(name.clone())),
        };
        let model = table
            .model(model)
            .ok_or_else(|| ProbeError::UnknownModel(model.to_owned()))?;
        let work = match name.as_str().strip_prefix(OPENAI_PREFIX) {
            Some("chat") => asking(prompts, model, Way::Chat)?,
            Some("completion") => plain_completion(),
            Some("embedding") => embedding(),
            _ if name.as_str() == CODE_EMBEDDINGS => embedding(),
            _ => {
                let ids = prompts.ids(name);
                let id = ids.first().ok_or_else(|| ProbeError::NoPrompt(name.clone()))?;
                work(prompts.render_sample(id, &small(model))?)
            }
        };
        let feature = Feature {
            lane: Lane::Keystroke,
            first_byte_within_ms: within_ms(),
            end_within_ms: within_ms(),
            bodies: BodyPolicy::None,
            ..feature.clone()
        };
        Ok(Self::new(table, feature, model, work))
    }

    fn new(table: &RoutingTable, feature: Feature, model: &Model, work: Work) -> Self {
        let routed = RoutedRequest {
            feature,
            model: model.clone(),
            revision: table.revision(),
        };
        Self { routed, work }
    }
}

fn within_ms() -> u64 {
    u64::try_from(WITHIN.as_millis()).unwrap_or(u64::MAX)
}

/// Base models that only complete code have no chat template, and embedding models no answer at all.
fn usual_way(table: &RoutingTable, model: &ModelName) -> Result<Way, ProbeError> {
    let assigned = |feature: &&Feature| feature.model.as_ref() == Some(model);
    let mut way = None;
    let mut infers = None;
    for feature in table.features().filter(assigned) {
        way = match (feature.name.as_str(), way) {
            (name, known) if INFERENCE.contains(&name) => {
                infers = Some(feature.name.clone());
                known
            }
            (CODE_COMPLETION, None | Some(Way::Embedding | Way::Completion)) => Some(Way::Completion),
            (CODE_EMBEDDINGS, None) => Some(Way::Embedding),
            (CODE_EMBEDDINGS, known) => known,
            _ => Some(Way::Chat),
        };
    }
    match (way, infers) {
        (None, Some(feature)) => Err(ProbeError::OnlyInfers(model.clone(), feature)),
        (way, _) => Ok(way.unwrap_or(Way::Chat)),
    }
}

fn asking(prompts: &Prompts, model: &Model, way: Way) -> Result<Work, PromptError> {
    let id = match way {
        Way::Chat => PROMPT,
        Way::Completion => COMPLETION_PROMPT,
        Way::Embedding => return Ok(embedding()),
    };
    Ok(work(prompts.render_sample(id, &small(model))?))
}

/// The same model with short answers.
fn small(model: &Model) -> Model {
    Model {
        max_output_tokens: model.max_output_tokens.min(MOST_TOKENS),
        ..model.clone()
    }
}

fn work(rendered: Rendered) -> Work {
    Work {
        endpoint: rendered.endpoint,
        body: rendered.body,
        stream: false,
        prompt: Some(rendered.prompt),
        supersede_key: None,
    }
}

fn plain_completion() -> Work {
    plain(
        Endpoint::Completions,
        json!({"prompt": "Reply with the single word: ready", "max_tokens": MOST_TOKENS}),
    )
}

fn embedding() -> Work {
    plain(
        Endpoint::Embeddings,
        json!({"input": ["ready"], "encoding_format": "float"}),
    )
}

fn plain(endpoint: Endpoint, body: serde_json::Value) -> Work {
    Work {
        endpoint,
        body: Bytes::from(body.to_string()),
        stream: false,
        prompt: None,
        supersede_key: None,
    }
}

#[cfg(test)]
mod tests {
    use duo_contract::snapshot::ConfigSnapshot;

    use super::*;

    fn table(features: &[&str]) -> RoutingTable {
        let feature = |name: &&str| Feature {
            name: FeatureName::parse(name).expect("a feature id"),
            active: true,
            model: Some(ModelName::parse("m").expect("a name")),
            lane: Lane::Interactive,
            first_byte_within_ms: 50_000,
            end_within_ms: 600_000,
            bodies: BodyPolicy::Full,
        };
        RoutingTable::new(ConfigSnapshot {
            revision: 3,
            models: vec![Model {
                name: ModelName::parse("m").expect("a name"),
                family: "codegemma_7b".to_owned(),
                context_tokens: 4096,
                max_output_tokens: 1024,
            }],
            features: features.iter().map(feature).collect(),
            support_levels: Vec::new(),
            prompts: Vec::new(),
        })
    }

    #[test]
    fn a_model_is_asked_as_its_features_ask_it() {
        for (features, endpoint) in [
            (&[][..], Endpoint::ChatCompletions),
            (&["code_completion"], Endpoint::Completions),
            (&["code_embeddings"], Endpoint::Embeddings),
            (&["code_completion", "code_embeddings"], Endpoint::Completions),
            (&["code_completion", "duo_chat"], Endpoint::ChatCompletions),
            (&["suggested_reviewers", "code_completion"], Endpoint::Completions),
        ] {
            let table = table(features);
            let model = table.model("m").expect("there");
            let probe = Probe::of_model(&table, &Prompts::builtin(), model, None).expect("a probe");
            assert_eq!(probe.work.endpoint, endpoint, "{features:?}");
            assert_eq!(probe.routed.feature.lane, Lane::Keystroke);
        }
    }

    #[test]
    fn a_model_that_only_infers_is_not_asked_as_a_chat() {
        let table = table(&["suggested_reviewers"]);
        let model = table.model("m").expect("there");
        let refused = Probe::of_model(&table, &Prompts::builtin(), model, None).expect_err("no test");
        assert!(
            refused.to_string().ends_with("/v1/infer/suggested_reviewers"),
            "{refused}"
        );
        let said = Probe::of_model(&table, &Prompts::builtin(), model, Some(Way::Embedding));
        assert_eq!(said.expect("a probe").work.endpoint, Endpoint::Embeddings);
    }

    #[test]
    fn a_feature_is_checked_by_its_own_prompt_with_a_short_answer() {
        let table = table(&["duo_chat"]);
        let feature = table.features().next().expect("one");
        let probe = Probe::of_feature(&table, &Prompts::builtin(), feature, None).expect("a probe");
        assert_eq!(probe.work.prompt.expect("a prompt").0, "chat/agent");
        let body: serde_json::Value = serde_json::from_slice(&probe.work.body).expect("JSON");
        assert_eq!(body["max_tokens"], MOST_TOKENS);
        assert_eq!(probe.routed.feature.name.as_str(), "duo_chat");
        assert_eq!(probe.routed.feature.end_within_ms, 2500);
    }
}
