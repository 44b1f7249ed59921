//! Who is calling: what a checked token and its headers say.

use std::collections::HashSet;
use std::sync::Arc;

use duo_contract::audit::Who;
use duo_contract::name::{FeatureName, ModelName};
use duo_contract::snapshot::Role;

/// Requests a person may have queued or running for one feature and model.
pub const PERSON_LIMIT: u32 = 8;

/// The same for a GitLab instance's own calls, which name no person.
pub const SERVICE_LIMIT: u32 = 1000;

/// A caller whose token was good. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Caller {
    /// What the token says, shared with the cache of checked tokens.
    pub grant: Arc<Grant>,
    /// Who it is, for the audit record: the grant's part and this request's headers.
    pub who: Who,
    /// Hash that keys this caller's place in the queue: instance and person,
    /// or the service's token; 16 hexadecimal digits.
    pub share_key: String,
    /// Requests it may have queued or running for one feature and model.
    pub limit: u32,
    /// `X-Gitlab-Version`, for tools that need a minimum.
    pub gitlab_version: Option<String>,
}

/// What a token opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// A token that a GitLab instance signed.
    GitLab {
        /// Unit primitives it holds.
        scopes: HashSet<String>,
        /// May it use the OpenAI endpoints too?
        openai: bool,
        /// URL of the instance, as configured.
        issuer: String,
        /// `gitlab_realm`, if the token says one.
        realm: Option<String>,
    },
    /// A token of ours for a person's IDE: it opens `/v2/completions` and nothing else. It has no scopes, so
    /// endpoints that ask for some refuse it.
    Direct,
    /// One of our own API tokens.
    ApiToken {
        /// What it opens.
        role: Role,
        /// Features it may use; none named means the OpenAI features.
        features: Option<Vec<FeatureName>>,
        /// Models it may use; none named means all.
        models: Option<Vec<ModelName>>,
    },
}

impl Caller {
    /// May it use what `scope` opens? API tokens have features instead of
    /// scopes, see [`Caller::may_use`].
    #[must_use]
    pub fn has_scope(&self, scope: &str) -> bool {
        match &*self.grant {
            Grant::GitLab { scopes, .. } => scopes.contains(scope),
            Grant::Direct | Grant::ApiToken { .. } => false,
        }
    }

    /// May an API token use `feature`? For GitLab tokens scopes decide.
    #[must_use]
    pub fn may_use(&self, feature: &FeatureName) -> bool {
        match &*self.grant {
            Grant::GitLab { openai, .. } => !feature.as_str().starts_with("openai_") || *openai,
            Grant::ApiToken {
                role: Role::Client,
                features: Some(features),
                ..
            } => features.contains(feature),
            Grant::ApiToken {
                role: Role::Client,
                features: None,
                ..
            } => feature.as_str().starts_with("openai_"),
            Grant::Direct => feature.as_str() == "code_completion",
            Grant::ApiToken { .. } => false,
        }
    }

    /// May it use `model`?
    #[must_use]
    pub fn may_use_model(&self, model: &ModelName) -> bool {
        match &*self.grant {
            Grant::ApiToken {
                models: Some(models), ..
            } => models.contains(model),
            Grant::ApiToken { models: None, .. } | Grant::GitLab { .. } | Grant::Direct => true,
        }
    }

    /// Its role, for endpoints that are no inference.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        match &*self.grant {
            Grant::ApiToken { role, .. } => Some(*role),
            Grant::GitLab { .. } | Grant::Direct => None,
        }
    }
}
