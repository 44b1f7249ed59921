//! GitLab's self-hosted models and feature settings over its GraphQL API.
//!
//! It keeps nothing and retries nothing; what it reads is bounded in size and time. Models' endpoints and keys are not
//! asked for.

use std::time::Duration;

use http::StatusCode;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// Bound of one question.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer read.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// As much of GitLab's own words is told.
const MAX_WORDS: usize = 200;
/// Models at most; GitLab gives no more at once.
const QUERY: &str = "query { \
    aiSelfHostedModels(first: 100) { nodes { id name identifier } pageInfo { hasNextPage } } \
    aiFeatureSettings { nodes { feature provider selfHostedModel { id } } } }";

/// What GitLab says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Its self-hosted models.
    pub models: Vec<ModelNode>,
    /// Its features.
    pub features: Vec<FeatureNode>,
}

/// A self-hosted model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ModelNode {
    /// Its global id.
    pub id: String,
    /// The name that administrators gave it.
    pub name: String,
    /// What it is called at a model server, with a provider before it.
    pub identifier: Option<String>,
}

/// A feature's setting.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FeatureNode {
    /// GitLab's name of it.
    pub feature: String,
    /// Who answers: `self_hosted`, `disabled`, `vendored`, `unassigned`.
    pub provider: Option<String>,
    /// The model, where it is self-hosted.
    #[serde(rename = "selfHostedModel")]
    pub model: Option<ModelReference>,
}

/// A model by its id.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ModelReference {
    /// Its global id.
    pub id: String,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection, or it broke.
    #[error("{url} cannot be reached; check DUO_GITLAB_SYNC_URL and DUO_GITLAB_CA_FILE")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What went wrong.
        #[source]
        source: reqwest::Error,
    },
    /// Nothing, or not everything, in time.
    #[error("no answer from {url} within {} s", TIMEOUT.as_secs())]
    TimedOut {
        /// What was asked for.
        url: String,
    },
    /// The token is not taken, or not enough.
    #[error(
        "{url} does not take the token ({status}); it has to be an administrator's, with the scope read_api"
    )]
    Unauthorized {
        /// What was asked for.
        url: String,
        /// The answer's status.
        status: u16,
    },
    /// Another status than 200.
    #[error("{url} answered {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The answer's status.
        status: u16,
    },
    /// Longer than any settings.
    #[error("the answer of {url} is larger than {MAX_ANSWER_BYTES} bytes")]
    TooLarge {
        /// What was asked for.
        url: String,
    },
    /// Not what it should be.
    #[error("the answer of {url} is no answer of GitLab's GraphQL API")]
    Malformed {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// GitLab refuses the question.
    #[error(
        "GitLab refuses the question, it may be too old or have no licence for self-hosted models: {words}"
    )]
    Refused {
        /// Its own words.
        words: String,
    },
    /// The parts that were asked for are empty.
    #[error(
        "GitLab shows no settings to this token; it has to be an administrator's, with the scope read_api"
    )]
    Hidden,
    /// More models than come at once.
    #[error("GitLab has more than 100 self-hosted models")]
    TooMany,
}

impl FetchError {
    /// Every reason, for metrics that start at zero.
    pub const REASONS: [&'static str; 9] = [
        "unreachable",
        "timed_out",
        "unauthorized",
        "status",
        "too_large",
        "malformed",
        "question_refused",
        "hidden",
        "too_many",
    ];

    /// The reason in one snake_case word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            FetchError::Unreachable { .. } => "unreachable",
            FetchError::TimedOut { .. } => "timed_out",
            FetchError::Unauthorized { .. } => "unauthorized",
            FetchError::Status { .. } => "status",
            FetchError::TooLarge { .. } => "too_large",
            FetchError::Malformed { .. } => "malformed",
            FetchError::Refused { .. } => "question_refused",
            FetchError::Hidden => "hidden",
            FetchError::TooMany => "too_many",
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    data: Option<Data>,
    errors: Option<Vec<GraphqlError>>,
}

#[derive(Deserialize)]
struct GraphqlError {
    message: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    ai_self_hosted_models: Option<Connection<ModelNode>>,
    ai_feature_settings: Option<Connection<FeatureNode>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound = "N: DeserializeOwned")]
struct Connection<N> {
    nodes: Vec<N>,
    page_info: Option<PageInfo>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageInfo {
    has_next_page: bool,
}

/// Asks the GitLab at `base` for its settings, within ten seconds.
///
/// # Errors
/// It cannot be reached, refuses, or does not answer with settings.
pub async fn settings(
    client: &reqwest::Client,
    base: &str,
    token: &SecretString,
) -> Result<Settings, FetchError> {
    let url = format!("{}/api/graphql", base.trim_end_matches('/'));
    let body = tokio::time::timeout(TIMEOUT, ask(client, &url, token))
        .await
        .unwrap_or_else(|_| Err(FetchError::TimedOut { url: url.clone() }))?;
    read(&url, &body)
}

async fn ask(client: &reqwest::Client, url: &str, token: &SecretString) -> Result<Vec<u8>, FetchError> {
    let unreachable = |error: reqwest::Error| FetchError::Unreachable {
        url: url.to_owned(),
        source: error.without_url(),
    };
    let url = url.to_owned();
    let request = client
        .post(&url)
        .bearer_auth(token.expose_secret())
        .json(&json!({ "query": QUERY }));
    let mut response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    match status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let status = status.as_u16();
            return Err(FetchError::Unauthorized { url, status });
        }
        _ => {
            let status = status.as_u16();
            return Err(FetchError::Status { url, status });
        }
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|source| FetchError::Unreachable {
        url: url.clone(),
        source: source.without_url(),
    })? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(FetchError::TooLarge { url });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn read(url: &str, body: &[u8]) -> Result<Settings, FetchError> {
    let answer: Answer = serde_json::from_slice(body).map_err(|source| FetchError::Malformed {
        url: url.to_owned(),
        source,
    })?;
    if let Some(error) = answer.errors.and_then(|errors| errors.into_iter().next()) {
        let words = shown(error.message.as_deref().unwrap_or("no reason given"));
        return Err(FetchError::Refused { words });
    }
    let data = answer.data.ok_or(FetchError::Hidden)?;
    let models = data.ai_self_hosted_models.ok_or(FetchError::Hidden)?;
    let features = data.ai_feature_settings.ok_or(FetchError::Hidden)?;
    if models.page_info.is_some_and(|page| page.has_next_page) {
        return Err(FetchError::TooMany);
    }
    Ok(Settings {
        models: models.nodes,
        features: features.nodes,
    })
}

/// Foreign words, fit for a terminal and a log.
pub(super) fn shown(text: &str) -> String {
    let plain = |sign: char| if sign.is_control() { '\u{fffd}' } else { sign };
    text.chars().take(MAX_WORDS).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reason(body: &str) -> &'static str {
        read("http://gitlab", body.as_bytes())
            .expect_err("no settings")
            .reason()
    }

    #[test]
    fn an_answer_is_settings_or_has_a_reason() {
        let good = r#"{"data":{"aiSelfHostedModels":{"nodes":[{"id":"gid/1","name":"m","identifier":null,"endpoint":"http://x"}],
            "pageInfo":{"hasNextPage":false}},"aiFeatureSettings":{"nodes":[
            {"feature":"duo_chat","provider":"self_hosted","selfHostedModel":{"id":"gid/1"}},
            {"feature":"code_completions","provider":"disabled","selfHostedModel":null}]}}}"#;
        let settings = read("http://gitlab", good.as_bytes()).expect("settings");
        assert_eq!((settings.models.len(), settings.features.len()), (1, 2));
        assert_eq!(reason(&good.replace("false", "true")), "too_many");
        assert_eq!(
            reason(r#"{"errors":[{"message":"Field 'x'\u0007"}]}"#),
            "question_refused"
        );
        assert_eq!(
            reason(r#"{"data":{"aiSelfHostedModels":null,"aiFeatureSettings":null}}"#),
            "hidden"
        );
        assert_eq!(reason(r#"{"data":null}"#), "hidden");
        assert_eq!(reason("<html>"), "malformed");
        assert_eq!(reason(r#"{"data":{"aiSelfHostedModels":[]}}"#), "malformed");
    }

    #[test]
    fn foreign_words_are_short_and_plain() {
        assert_eq!(shown("a\u{1b}[31mb\nc"), "a\u{fffd}[31mb\u{fffd}c");
        assert_eq!(shown(&"x".repeat(999)).len(), MAX_WORDS);
    }

    proptest! {
        #[test]
        fn no_answer_is_a_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _read = read("http://gitlab", &body);
        }
    }
}
