//! Feature configuration to model, from a snapshot that is kept fresh.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use duo_contract::failure::FailureKind;
use duo_contract::name::{FeatureName, ModelName};
use duo_contract::snapshot::{ConfigSnapshot, Feature, Model, PromptOverride, SupportLevel};
use tokio::sync::watch;

use crate::caller::Caller;
use crate::request::{ExchangeError, ModelChoice, RoutedRequest};

/// Features whose requests name their model, such as `openai_chat`.
pub const OPENAI_PREFIX: &str = "openai_";
/// Features whose models are no language models; each has a scope of its own name.
pub const INFERENCE: [&str; 2] = ["suggested_reviewers", "value_stream_forecasting"];

/// The configuration of the moment, indexed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Routing {
    table: Arc<ArcSwap<RoutingTable>>,
    changed: watch::Receiver<u64>,
}

/// The side that stores a new snapshot.
#[derive(Debug)]
pub struct RoutingSink {
    table: Arc<ArcSwap<RoutingTable>>,
    changed: watch::Sender<u64>,
}

/// One revision of the configuration, indexed by name.
#[derive(Debug, Default)]
pub struct RoutingTable {
    revision: u64,
    features: HashMap<FeatureName, Feature>,
    models: HashMap<ModelName, Model>,
    support: HashMap<(FeatureName, String), SupportLevel>,
    prompts: Arc<[PromptOverride]>,
}

/// An empty table and the sink that fills it.
#[must_use]
pub fn routing() -> (RoutingSink, Routing) {
    let table = Arc::new(ArcSwap::from_pointee(RoutingTable::default()));
    let (sender, changed) = watch::channel(0);
    (
        RoutingSink {
            table: Arc::clone(&table),
            changed: sender,
        },
        Routing { table, changed },
    )
}

impl RoutingSink {
    /// Replaces the table and wakes whoever watches it.
    pub fn store(&self, snapshot: ConfigSnapshot) {
        let revision = snapshot.revision;
        self.table.store(Arc::new(RoutingTable::new(snapshot)));
        self.changed.send_replace(revision);
    }
}

impl Routing {
    /// The table of the moment.
    #[must_use]
    pub fn load(&self) -> arc_swap::Guard<Arc<RoutingTable>> {
        self.table.load()
    }

    /// Tells each new revision.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }
}

impl RoutingTable {
    /// Indexes a snapshot.
    #[must_use]
    pub fn new(snapshot: ConfigSnapshot) -> Self {
        Self {
            revision: snapshot.revision,
            features: snapshot
                .features
                .into_iter()
                .map(|f| (f.name.clone(), f))
                .collect(),
            models: snapshot.models.into_iter().map(|m| (m.name.clone(), m)).collect(),
            support: snapshot
                .support_levels
                .into_iter()
                .map(|s| ((s.feature, s.family), s.level))
                .collect(),
            prompts: snapshot.prompts.into(),
        }
    }

    /// Its revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Prompt templates that replace the built-in ones.
    #[must_use]
    pub fn prompts(&self) -> &Arc<[PromptOverride]> {
        &self.prompts
    }

    /// A feature, active or not.
    #[must_use]
    pub fn feature(&self, name: &FeatureName) -> Option<&Feature> {
        self.features.get(name)
    }

    /// A model.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.get(name)
    }

    /// The model that a hint means, whatever any feature's rules say.
    ///
    /// Rails writes `custom_openai/NAME`; the part after the first slash is the name.
    #[must_use]
    pub fn meant(&self, hint: &str) -> Option<&Model> {
        let bare = hint.split_once('/').map_or(hint, |(_, name)| name);
        self.models.get(hint).or_else(|| self.models.get(bare))
    }

    /// Every model.
    pub fn models(&self) -> impl Iterator<Item = &Model> {
        self.models.values()
    }

    /// Models that `caller` may name in a request for `feature`.
    pub fn nameable<'a>(
        &'a self,
        caller: &'a Caller,
        feature: &'a Feature,
    ) -> impl Iterator<Item = &'a ModelName> {
        let supported = |model: &&Model| self.goes_with(feature, model);
        self.models
            .values()
            .filter(supported)
            .map(|model| &model.name)
            .filter(|name| caller.may_use_model(name))
    }

    fn goes_with(&self, feature: &Feature, model: &Model) -> bool {
        self.support(&feature.name, &model.family) == SupportLevel::Supported
    }

    /// Every feature.
    pub fn features(&self) -> impl Iterator<Item = &Feature> {
        self.features.values()
    }

    /// How well `feature` goes with `family`: what the table names, else to be
    /// evaluated; the OpenAI features have no prompt of ours and go with every family.
    #[must_use]
    pub fn support(&self, feature: &FeatureName, family: &str) -> SupportLevel {
        let level = |family: &str| self.support.get(&(feature.clone(), family.to_owned())).copied();
        level(family).or_else(|| level("*")).unwrap_or_else(|| {
            if feature.as_str().starts_with(OPENAI_PREFIX) {
                SupportLevel::Supported
            } else {
                SupportLevel::ToBeEvaluated
            }
        })
    }

    /// An active feature that the caller may use.
    ///
    /// # Errors
    /// `unknown_feature`, `feature_not_allowed` or `feature_inactive`.
    pub fn active_feature(&self, caller: &Caller, name: &FeatureName) -> Result<&Feature, ExchangeError> {
        let feature = self.features.get(name).ok_or_else(|| {
            ExchangeError::new(
                FailureKind::InvalidRequest,
                "unknown_feature",
                format!("feature {name} does not exist"),
            )
        })?;
        if !caller.may_use(name) {
            return Err(ExchangeError::new(
                FailureKind::Unauthorized,
                "feature_not_allowed",
                format!(
                    "this token may not use the feature {name}; an administrator can make a client token that may, \
                     with duo-broker token create"
                ),
            ));
        }
        let assigned = feature.model.is_some() || name.as_str().starts_with(OPENAI_PREFIX);
        if !feature.active || !assigned {
            return Err(ExchangeError::new(
                FailureKind::FeatureInactive,
                "feature_inactive",
                format!("feature {name} is switched off; an administrator can assign a model to it"),
            ));
        }
        Ok(feature)
    }

    /// Finds the model for a feature and checks that the caller may use both.
    ///
    /// # Errors
    /// As [`RoutingTable::active_feature`], and `unknown_model`,
    /// `model_not_allowed` or `unsupported_pair`.
    pub fn route(
        &self,
        caller: &Caller,
        name: &FeatureName,
        choice: &ModelChoice,
    ) -> Result<RoutedRequest, ExchangeError> {
        let feature = self.active_feature(caller, name)?;
        let model = match choice {
            ModelChoice::Named(text) => self.named_model(feature, text)?,
            ModelChoice::Hint(text) => self
                .hinted_model(caller, feature, text)
                .or_else(|| self.assigned_model(feature))
                .ok_or_else(|| no_model(name))?,
            ModelChoice::Assigned => self.assigned_model(feature).ok_or_else(|| no_model(name))?,
        };
        if !caller.may_use_model(&model.name) {
            return Err(ExchangeError::new(
                FailureKind::Unauthorized,
                "model_not_allowed",
                format!("this token may not use model {}", model.name),
            ));
        }
        Ok(RoutedRequest {
            feature: feature.clone(),
            model: model.clone(),
            revision: self.revision,
        })
    }

    /// The route of a request that ran before, whoever asked then.
    ///
    /// # Errors
    /// `unknown_feature`, `feature_inactive`, `unknown_model` or `unsupported_pair`.
    pub fn again(&self, name: &FeatureName, model: &ModelName) -> Result<RoutedRequest, ExchangeError> {
        let error = |kind, reason, message: String| ExchangeError::new(kind, reason, message);
        let feature = self.features.get(name).ok_or_else(|| {
            let message = format!("feature {name} does not exist any more");
            error(FailureKind::InvalidRequest, "unknown_feature", message)
        })?;
        if !feature.active {
            let message = format!("feature {name} is switched off");
            return Err(error(FailureKind::FeatureInactive, "feature_inactive", message));
        }
        let model = self.models.get(model).ok_or_else(|| {
            let message = format!("model {model}, which the request was made for, does not exist any more");
            error(FailureKind::InvalidRequest, "unknown_model", message)
        })?;
        if self.support(name, &model.family) == SupportLevel::NotSupported {
            let message = format!(
                "feature {name} is not supported with model {} any more",
                model.name
            );
            return Err(error(FailureKind::Unsupported, "unsupported_pair", message));
        }
        Ok(RoutedRequest {
            feature: feature.clone(),
            model: model.clone(),
            revision: self.revision,
        })
    }

    fn assigned_model(&self, feature: &Feature) -> Option<&Model> {
        self.models.get(feature.model.as_ref()?)
    }

    /// A hint only ever selects among configured models that need no acknowledgement.
    fn hinted_model(&self, caller: &Caller, feature: &Feature, hint: &str) -> Option<&Model> {
        let model = self.meant(hint)?;
        (self.goes_with(feature, model) && caller.may_use_model(&model.name)).then_some(model)
    }

    fn named_model(&self, feature: &Feature, text: &str) -> Result<&Model, ExchangeError> {
        let model = self.models.get(text).ok_or_else(|| {
            ExchangeError::new(
                FailureKind::InvalidRequest,
                "unknown_model",
                "that model does not exist; GET /v1/models lists the models you may name",
            )
        })?;
        let assigned = feature.model.as_ref() == Some(&model.name);
        if assigned || self.goes_with(feature, model) {
            return Ok(model);
        }
        Err(ExchangeError::new(
            FailureKind::Unsupported,
            "unsupported_pair",
            format!(
                "feature {} is not supported with model {}",
                feature.name, model.name
            ),
        ))
    }
}

fn no_model(name: &FeatureName) -> ExchangeError {
    ExchangeError::new(
        FailureKind::FeatureInactive,
        "feature_inactive",
        format!("feature {name} has no model; an administrator can assign one"),
    )
}
