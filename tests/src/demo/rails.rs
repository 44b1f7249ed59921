//! Requests as GitLab 18.9 sends them: headers from the token's own claims, bodies as Rails merges them.

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

/// The header with the person, as a hash that means nothing outside the instance.
pub const USER: &str = "x-gitlab-global-user-id";
/// The header with the correlation id.
pub const REQUEST_ID: &str = "x-request-id";

/// The person of the demonstration.
const PERSON: &str = "7f83b1657ff1fc53b92dc18148a1d65dfc2d4b1fa3d677284addd200126d9069";

/// What the headers repeat of a token.
#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    gitlab_realm: Option<String>,
}

/// The headers of any request, except its own id. The token is read, not verified: that is the broker's work.
///
/// # Errors
/// The token is no JWT with `iss` and `sub`.
pub fn headers(token: &str) -> anyhow::Result<Vec<(&'static str, String)>> {
    let payload = token
        .split('.')
        .nth(1)
        .context("DUO_GITLAB_JWT is no JSON web token")?;
    let claims = URL_SAFE_NO_PAD
        .decode(payload)
        .context("the payload of DUO_GITLAB_JWT is no base64")?;
    let claims: Claims = serde_json::from_slice(&claims).context("DUO_GITLAB_JWT says no iss and sub")?;
    let host = claims
        .iss
        .split_once("://")
        .map_or(claims.iss.as_str(), |(_, host)| host);
    let sent = OffsetDateTime::now_utc().unix_timestamp_nanos() as f64 / 1e9;
    let fixed = |name, value: &str| (name, value.to_owned());
    Ok(vec![
        ("authorization", format!("Bearer {token}")),
        fixed("x-gitlab-authentication-type", "oidc"),
        ("x-gitlab-instance-id", claims.sub),
        (
            "x-gitlab-realm",
            claims.gitlab_realm.unwrap_or_else(|| "self-managed".to_owned()),
        ),
        fixed(USER, PERSON),
        fixed("x-gitlab-user-id", "42"),
        ("x-gitlab-host-name", host.to_owned()),
        fixed("x-gitlab-version", "18.9.0"),
        fixed("x-gitlab-deployment-type", "self-managed"),
        fixed("x-gitlab-enabled-feature-flags", ""),
        fixed("x-gitlab-enabled-instance-verbose-ai-logs", "false"),
        fixed("x-gitlab-feature-enablement-type", "duo_pro"),
        ("x-gitlab-rails-send-start", format!("{sent:.6}")),
        fixed("x-gitlab-client-type", "ide"),
        fixed("x-gitlab-client-name", "Visual Studio Code"),
        fixed("x-gitlab-interface", "code_suggestions"),
        fixed("user-agent", "duo-demo"),
    ])
}

/// A correlation id as Rails makes them: unique, without meaning.
#[must_use]
pub fn request_id() -> String {
    format!("demo-{}", Uuid::new_v4().simple())
}

/// Code above and below a cursor, as completion and generation both forward it.
fn file(above: &str, below: &str) -> Value {
    json!({
        "file_name": "lib/prices.py", "language_identifier": "python",
        "content_above_cursor": above, "content_below_cursor": below,
    })
}

/// A code completion, streamed.
#[must_use]
pub fn completion() -> Value {
    json!({
        "project_path": "shop/backend", "project_id": 17, "stream": true, "intent": "completion", "choices_count": 1,
        "current_file": file("def total(prices, vat):\n    net = sum(prices)\n    return ", "\n\n\nprint(total([1, 2], 0.19))\n"),
        "context": [], "telemetry": [],
        "prompt_version": 2, "prompt": null, "model_provider": "litellm", "model_name": "codegemma",
        "model_endpoint": "http://127.0.0.1:9/v1", "model_identifier": "custom_openai/codegemma",
    })
}

/// A code generation, streamed.
#[must_use]
pub fn generation() -> Value {
    let above = "import csv\n\n\n# read the prices from a CSV file and return them as a list of floats\n";
    json!({
        "prompt_components": [{
            "type": "code_editor_generation",
            "payload": {
                "file_name": "lib/prices.py", "content_above_cursor": above, "content_below_cursor": "",
                "language_identifier": "Python", "stream": true,
                "prompt_id": "code_suggestions/generations", "prompt_version": "^1.0.0",
                "prompt_enhancer": {
                    "examples_array": [], "trimmed_content_above_cursor": above, "trimmed_content_below_cursor": "",
                    "related_files": [], "related_snippets": [], "libraries": [],
                    "user_instruction": "read the prices from a CSV file and return them as a list of floats",
                },
            },
        }],
        "model_metadata": metadata(), "current_file": file(above, ""), "intent": "generation", "stream": true,
        "project_path": "shop/backend", "project_id": 17,
    })
}

/// A question to Duo Chat; its answers are always streams.
#[must_use]
pub fn chat() -> Value {
    json!({
        "messages": [{
            "role": "user", "content": "What does a merge train do, in two sentences?",
            "context": null, "current_file": null, "additional_context": [],
        }],
        "unavailable_resources": ["Pipelines", "Vulnerabilities"], "model_metadata": metadata(),
    })
}

/// What the administrator entered in GitLab. A broker takes the name as a hint and never calls the endpoint.
fn metadata() -> Value {
    json!({
        "provider": "openai", "name": "mistral", "endpoint": "http://127.0.0.1:9/v1", "api_key": null,
        "identifier": "custom_openai/mistral",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gitlab::{SigningKey, TokenSpec};

    #[test]
    fn the_headers_say_what_the_token_says() {
        let key = SigningKey::generate().unwrap();
        let token = TokenSpec::default()
            .mint(&key, "https://gitlab.test", "the-instance")
            .unwrap();
        let headers = headers(&token).unwrap();
        let value = |wanted: &str| {
            headers
                .iter()
                .find(|(name, _)| *name == wanted)
                .map(|(_, value)| value.as_str())
        };
        assert_eq!(value("x-gitlab-instance-id"), Some("the-instance"));
        assert_eq!(value("x-gitlab-realm"), Some("self-managed"));
        assert_eq!(value("x-gitlab-host-name"), Some("gitlab.test"));
        assert_eq!(value("authorization"), Some(format!("Bearer {token}").as_str()));
    }

    #[test]
    fn what_is_no_token_is_refused_in_words() {
        for (wrong, words) in [
            ("x", "no JSON web token"),
            ("a.?.c", "no base64"),
            ("a.e30.c", "no iss and sub"),
        ] {
            assert!(headers(wrong).unwrap_err().to_string().contains(words));
        }
    }
}
