//! What brokers and workers serve from memory: the configuration and, for
//! brokers only, the identities. Postgres is the source; a relay puts each
//! revision into its key-value bucket whole.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::claim::json_message;
use crate::name::{FeatureName, Lane, ModelName};

/// The configuration at one revision, the value of [`crate::subject::CONFIG_BUCKET`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigSnapshot {
    /// Counts changes; requests and audit records carry it.
    pub revision: u64,
    /// Models that exist.
    pub models: Vec<Model>,
    /// Features, active or not.
    pub features: Vec<Feature>,
    /// Which pairs of feature and family go together.
    pub support_levels: Vec<Support>,
    /// Prompt templates that replace the built-in ones.
    #[serde(default)]
    pub prompts: Vec<PromptOverride>,
}

/// A model as Postgres owns it; where its servers are is the workers' business.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Its name.
    pub name: ModelName,
    /// Its family, such as `mistral_7b`; the part before the first `_` picks prompts.
    pub family: String,
    /// Tokens of prompt and answer together.
    pub context_tokens: u32,
    /// Most tokens of an answer.
    pub max_output_tokens: u32,
}

/// A feature and its assignment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// Its id.
    pub name: FeatureName,
    /// Inactive features answer 403.
    pub active: bool,
    /// The model assigned to it; OpenAI features have none, the request names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// How urgent its live requests are.
    pub lane: Lane,
    /// First byte worth waiting for, milliseconds after acceptance.
    pub first_byte_within_ms: u64,
    /// The end at the latest, milliseconds after acceptance.
    pub end_within_ms: u64,
    /// Whether the audit log keeps prompts and answers.
    #[serde(default)]
    pub bodies: BodyPolicy,
}

/// What the audit log keeps of prompts and answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BodyPolicy {
    /// Nothing.
    #[default]
    None,
    /// A digest.
    Digest,
    /// Everything, encrypted.
    Full,
}

/// How well a feature goes with a family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Support {
    /// The feature.
    pub feature: FeatureName,
    /// The family.
    pub family: String,
    /// The level.
    pub level: SupportLevel,
}

/// A level of the blueprint's feature table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SupportLevel {
    /// May be assigned.
    Supported,
    /// May be assigned with an acknowledgement, which is recorded.
    ToBeEvaluated,
    /// May not be assigned.
    NotSupported,
}

impl SupportLevel {
    /// The level's snake_case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            SupportLevel::Supported => "supported",
            SupportLevel::ToBeEvaluated => "to_be_evaluated",
            SupportLevel::NotSupported => "not_supported",
        }
    }
}

/// A template that replaces the built-in one of its id and family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptOverride {
    /// Prompt id, such as `chat/explain_code`.
    pub id: String,
    /// Prompt family, or `base`.
    pub family: String,
    /// The template file's whole text, front matter included.
    pub text: String,
}

/// Who may call, the value of [`crate::subject::IDENTITY_BUCKET`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IdentitySnapshot {
    /// Counts changes, together with the configuration's.
    pub revision: u64,
    /// API tokens that are neither revoked nor long expired.
    pub tokens: Vec<ApiToken>,
    /// GitLab instances whose tokens are accepted.
    pub issuers: Vec<Issuer>,
}

/// An API token as it is stored: a hash and its rights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    /// Its id, which audit records name.
    pub id: Uuid,
    /// What its creator called it.
    pub name: String,
    /// SHA-256 of the whole secret, hexadecimal.
    pub sha256: String,
    /// What it opens.
    pub role: Role,
    /// Not valid from then on, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// Features it may use; none named means the OpenAI features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<FeatureName>>,
    /// Models it may use; none named means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<ModelName>>,
    /// Requests it may have queued or running for one feature and model.
    pub limit: u32,
}

/// What a token opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Inference.
    Client,
    /// The audit log, reading.
    Auditor,
    /// Configuration.
    Admin,
}

impl Role {
    /// The role's snake_case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Client => "client",
            Role::Auditor => "auditor",
            Role::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Role::Client, Role::Auditor, Role::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("unknown role {text:?}: client, auditor or admin"))
    }
}

/// A GitLab instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issuer {
    /// Base URL; discovery is below it and tokens carry it as `iss`.
    pub url: String,
    /// `aud` that tokens must hold.
    pub audience: String,
    /// May its tokens use the OpenAI endpoints too?
    #[serde(default)]
    pub openai: bool,
}

json_message!(ConfigSnapshot);
json_message!(IdentitySnapshot);
