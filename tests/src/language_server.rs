//! The stand-in for the language server that editors run: it asks the gateway directly as long as that goes well, and
//! through GitLab when it does not.
//!
//! Its clock is its own: a test lets hours pass by [`LanguageServer::pass`] and waits for none of them.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::rails::{DirectAccess, Rails};

mod breaker;

use breaker::Breaker;

/// How long a direct completion may take, all of it.
const WITHIN: Duration = Duration::from_secs(5);
/// A token is renewed so long before its end.
const EARLY: Duration = Duration::from_secs(40);
/// The version that it names.
const VERSION: &str = "7.17.1";

/// One editor's language server.
#[derive(Debug)]
pub struct LanguageServer {
    http: reqwest::Client,
    access: Option<DirectAccess>,
    /// Opened by a direct call that failed.
    direct: Breaker,
    /// Opened by direct access that was refused.
    details: Breaker,
    passed: Duration,
    fetched: u32,
}

/// What an editor shows, and which way it came.
#[derive(Debug, PartialEq, Eq)]
pub enum Suggestion {
    /// Asked directly.
    Direct(Option<String>),
    /// Asked through GitLab.
    ThroughGitlab(Option<String>),
    /// Both ways failed.
    Failed,
}

enum Refused {
    /// The token is not taken.
    Token,
    /// Anything else.
    Other,
}

impl Default for LanguageServer {
    fn default() -> Self {
        Self {
            http: crate::harness::client::client(),
            access: None,
            direct: Breaker::direct(),
            details: Breaker::details(),
            passed: Duration::ZERO,
            fetched: 0,
        }
    }
}

impl LanguageServer {
    /// Lets time pass.
    pub fn pass(&mut self, span: Duration) {
        self.passed += span;
    }

    /// How many tokens it has fetched.
    pub fn fetched(&self) -> u32 {
        self.fetched
    }

    /// Takes another token for its own, as if the old one had been spoilt.
    pub fn spoil_token(&mut self, token: &str) {
        if let Some(access) = &mut self.access {
            token.clone_into(&mut access.token);
        }
    }

    /// A suggestion for what follows `above`; `rails` is the GitLab that the editor is signed in to.
    pub async fn suggest(&mut self, rails: &Rails, above: &str) -> Suggestion {
        if let Some(access) = self.access(rails).await {
            match self.ask(&access, above).await {
                Ok(text) => {
                    self.direct.succeeded();
                    return Suggestion::Direct(text);
                }
                Err(Refused::Token) => {
                    self.access = None;
                    // The next suggestion comes with a new one.
                }
                Err(Refused::Other) => self.direct.failed(1, self.passed),
            }
        }
        match rails.complete(above, false).await {
            Ok(answer) if answer.status == StatusCode::OK => {
                Suggestion::ThroughGitlab(first_choice(&answer.body))
            }
            _ => Suggestion::Failed,
        }
    }

    /// Direct access, if it may be used now.
    async fn access(&mut self, rails: &Rails) -> Option<DirectAccess> {
        if self.direct.is_open(self.passed) {
            return None;
        }
        let now = seconds_now() + self.passed.as_secs();
        if let Some(access) = self
            .access
            .as_ref()
            .filter(|access| now + EARLY.as_secs() < access.expires_at)
        {
            return Some(access.clone());
        }
        if self.details.is_open(self.passed) {
            return None;
        }
        match rails.direct_access().await {
            Ok(mut access) => {
                self.details.succeeded();
                self.fetched += 1;
                // The gateway's clock has not moved with ours.
                access.expires_at += self.passed.as_secs();
                self.access = Some(access.clone());
                Some(access)
            }
            Err(status) => {
                // To be unknown counts for three.
                self.details
                    .failed(if status == 401 { 3 } else { 1 }, self.passed);
                None
            }
        }
    }

    async fn ask(&self, access: &DirectAccess, above: &str) -> Result<Option<String>, Refused> {
        let body = json!({
            "prompt_version": 1, "project_path": "shop/backend", "project_id": -1, "choices_count": 1,
            "current_file": {
                "file_name": "lib/prices.py", "content_above_cursor": above, "content_below_cursor": "",
            },
            "intent": "completion",
        });
        let mut request = self.http.post(format!("{}/v2/completions", access.base_url));
        for (name, value) in &access.headers {
            request = request.header(name, value);
        }
        let request = request
            .bearer_auth(&access.token)
            .header("x-gitlab-language-server-version", VERSION)
            // It writes the type with a blank in front.
            .header("content-type", " application/json")
            .body(body.to_string())
            .timeout(WITHIN);
        let response = request.send().await.map_err(|_| Refused::Other)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => return Err(Refused::Token),
            _ => return Err(Refused::Other),
        }
        let body = response.text().await.map_err(|_| Refused::Other)?;
        Ok(first_choice(&body))
    }
}

fn first_choice(body: &str) -> Option<String> {
    let answer: Value = serde_json::from_str(body).ok()?;
    answer["choices"][0]["text"].as_str().map(str::to_owned)
}

fn seconds_now() -> u64 {
    u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp()).unwrap_or_default()
}
