//! What only a running broker can do, asked of it as an administrator.

use std::time::Duration;

use anyhow::{Context as _, bail};
use duo_process::config::Env;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use super::ConfigProblem;

/// Where brokers listen by default.
const DEFAULT_URL: &str = "http://127.0.0.1:5052";

/// A running broker.
pub(super) struct Broker {
    url: String,
    token: SecretString,
    client: reqwest::Client,
}

impl Broker {
    /// The broker at `url`, else at `DUO_URL`, with the token in `DUO_ADMIN_TOKEN`.
    pub(super) fn from_env(url: Option<String>, timeout: Duration) -> anyhow::Result<Self> {
        let mut env = Env::from_process();
        let url = url.or_else(|| env.optional("DUO_URL"));
        let token = env.secret("DUO_ADMIN_TOKEN");
        env.finish_part()?;
        let Some(token) = token else {
            let text = "DUO_ADMIN_TOKEN is not set: this takes an API token with the admin role; \
                        duo-broker token create --name ops --role admin makes one";
            return Err(ConfigProblem(text.to_owned()).into());
        };
        duo_broker::auth::install_crypto();
        let url = url.unwrap_or_else(|| DEFAULT_URL.to_owned());
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            token,
            client: reqwest::Client::builder().no_proxy().timeout(timeout).build()?,
        })
    }

    /// Posts to a path without a body and reads the JSON that comes back.
    pub(super) async fn post(&self, path: &str) -> anyhow::Result<Value> {
        let url = &self.url;
        let answer = self
            .client
            .post(format!("{url}{path}"))
            .bearer_auth(self.token.expose_secret())
            .send()
            .await
            .with_context(|| format!("no broker answers at {url}; --url or DUO_URL names another"))?;
        let status = answer.status();
        let answer: Value = answer
            .json()
            .await
            .context("the broker's answer cannot be read")?;
        if !status.is_success() {
            let message = answer["message"].as_str().unwrap_or("no reason given");
            bail!("the broker refuses ({status}): {message}");
        }
        Ok(answer)
    }
}
