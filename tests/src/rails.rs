//! The stand-in for GitLab's Rails side: it sends what Rails sends, waits as long as Rails waits, and understands
//! answers as Rails does: [`events`] those of chat, [`answers`] those of prompts.
//!
//! What Rails shows when something fails is kept too: the code of a chat's error, the text of a model test, the
//! breaker that opens for everybody. It knows no users, projects or permissions; whoever uses it says who asks.

use std::sync::Mutex;
use std::time::Duration;

use http::StatusCode;
use reqwest::Response;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::demo::rails as sent;
use crate::gitlab::TokenSpec;
use crate::harness::Cluster;

pub mod answers;
pub mod breaker;
pub mod chat;
pub mod events;

use breaker::Breaker;

/// How long the model test and the health check of completions may take.
const PROBE: Duration = Duration::from_secs(3);
/// How long Workhorse waits for headers.
const WORKHORSE: Duration = Duration::from_secs(55);
/// How long a prompt or a chat may be silent, by default.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a token for an editor may take.
const TOKEN: Duration = Duration::from_secs(30);
/// How often a prompt is asked, when it is told 429.
const TRIES: u32 = 3;
/// The first wait after a 429; the next is its square, in seconds.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// What a person reads when anything at all goes wrong with a prompt.
pub const UNEXPECTED: &str = "An unexpected error has occurred.";

/// Rails, asking for one person.
#[derive(Debug)]
pub struct Rails {
    http: reqwest::Client,
    base: String,
    headers: Vec<(&'static str, String)>,
    first_wait: Duration,
    breaker: Mutex<Breaker>,
}

/// What Workhorse hands on to an editor.
#[derive(Debug)]
pub struct Forwarded {
    /// The status.
    pub status: StatusCode,
    /// The body, as far as it came.
    pub body: String,
    /// Did it break off?
    pub broken: bool,
    /// How long the headers took.
    pub headers_after: Duration,
}

/// What Rails hands to an editor that may ask directly.
#[derive(Debug, Clone)]
pub struct DirectAccess {
    /// Where to ask.
    pub base_url: String,
    /// The token.
    pub token: String,
    /// When it ends, in seconds since the epoch.
    pub expires_at: u64,
    /// Headers to send along.
    pub headers: Vec<(String, String)>,
}

impl Rails {
    /// Rails of the cluster's GitLab, asking for `person`.
    ///
    /// # Panics
    /// No token can be signed, or no client be made.
    pub fn new(cluster: &Cluster, person: &str) -> Self {
        let token = cluster.gitlab.token(&TokenSpec::default()).expect("it signs");
        let mut headers = sent::headers(&token).expect("a token of ours");
        for (name, value) in &mut headers {
            if *name == sent::USER {
                person.clone_into(value);
            }
        }
        Self {
            http: crate::harness::client::client(),
            base: cluster.url(),
            headers,
            first_wait: FIRST_WAIT,
            breaker: Mutex::default(),
        }
    }

    /// With a shorter first wait after a 429 than GitLab's.
    #[must_use]
    pub fn impatient(mut self, first_wait: Duration) -> Self {
        self.first_wait = first_wait;
        self
    }

    /// A completion that an editor asks for through GitLab.
    pub async fn complete(&self, above: &str, stream: bool) -> Result<Forwarded, String> {
        let mut body = sent::completion();
        body["current_file"]["content_above_cursor"] = above.into();
        body["stream"] = stream.into();
        self.forward("/v2/code/completions", &body).await
    }

    /// A generation that an editor asks for through GitLab; it understands server-sent events.
    pub async fn generate(&self, stream: bool) -> Result<Forwarded, String> {
        let mut body = sent::generation();
        body["prompt_components"][0]["payload"]["stream"] = stream.into();
        self.forward("/v4/code/suggestions", &body).await
    }

    /// What Workhorse does: any status is handed on.
    async fn forward(&self, path: &str, body: &Value) -> Result<Forwarded, String> {
        let asked = Instant::now();
        let mut response = self.post(path, body, WORKHORSE).await?;
        let headers_after = asked.elapsed();
        let (mut bytes, mut broken) = (Vec::new(), false);
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        Ok(Forwarded {
            status: response.status(),
            body: String::from_utf8_lossy(&bytes).into_owned(),
            broken,
            headers_after,
        })
    }

    /// The health check's end-to-end probe of completions.
    ///
    /// # Errors
    /// What the administrator reads.
    pub async fn health_check(&self) -> Result<(), String> {
        let mut body = sent::completion();
        body["stream"] = false.into();
        body["current_file"]["file_name"] = "test.rb".into();
        let asked = async {
            let response = self.post("/v2/code/completions", &body, PROBE).await?;
            let status = response.status();
            let answer: Value = response.json().await.map_err(|error| error.to_string())?;
            let text = answer["choices"][0]["text"].as_str().unwrap_or_default();
            match status == StatusCode::OK && !text.is_empty() {
                true => Ok(()),
                false => Err(format!("{status}: {answer}")),
            }
        };
        within(PROBE, asked).await
    }

    /// The button that tests a model's connection.
    ///
    /// # Errors
    /// What the administrator reads.
    pub async fn model_test(&self) -> Result<(), String> {
        let body = json!({"inputs": {}, "prompt_version": "^1.0.0", "model_metadata": model_metadata()});
        let asked = async {
            let path = "/v1/prompts/model_configuration%2Fcheck";
            let response = self.post(path, &body, PROBE).await?;
            let status = response.status();
            let answer: Value = response.json().await.unwrap_or_default();
            match status.as_u16() {
                200 => Ok(()),
                421 => Err(answer["detail"].as_str().unwrap_or("Unknown error").to_owned()),
                _ => {
                    let told = answer["detail"][0]["msg"].as_str();
                    Err(told
                        .unwrap_or("Unknown error. Make sure your self-hosted model is running.")
                        .to_owned())
                }
            }
        };
        within(PROBE, asked).await
    }

    /// A prompt's text, as Rails gets it: tried again after 429, through a breaker that counts 5xx.
    ///
    /// # Errors
    /// What the person reads.
    pub async fn prompt(&self, id: &str, inputs: Value) -> Result<String, String> {
        let path = format!("/v1/prompts/{}", id.replace('/', "%2F"));
        let body = json!({"inputs": inputs, "prompt_version": "^1.0.0", "model_metadata": model_metadata()});
        let mut wait = self.first_wait;
        for attempt in 1..=TRIES {
            if self.breaker().is_open() {
                return Err(UNEXPECTED.to_owned());
            }
            let response = self
                .post(&path, &body, SILENCE)
                .await
                .map_err(|_| UNEXPECTED.to_owned())?;
            let status = response.status();
            self.breaker().count(status.is_server_error());
            if status == StatusCode::TOO_MANY_REQUESTS && attempt < TRIES {
                // Whatever `Retry-After` says: Rails does not look at it.
                tokio::time::sleep(wait).await;
                wait = wait.mul_f64(wait.as_secs_f64().max(2.0));
                continue;
            }
            if !status.is_success() {
                return Err(UNEXPECTED.to_owned());
            }
            let answer: Value = response.json().await.map_err(|_| UNEXPECTED.to_owned())?;
            let text = answer.as_str().or_else(|| answer["content"].as_str());
            return text.map(str::to_owned).ok_or_else(|| UNEXPECTED.to_owned());
        }
        Err(UNEXPECTED.to_owned())
    }

    /// A prompt's text as it flows; streams are never asked again.
    ///
    /// # Errors
    /// What the person reads.
    pub async fn stream_prompt(&self, id: &str, inputs: Value) -> Result<String, String> {
        let path = format!("/v1/prompts/{}", id.replace('/', "%2F"));
        let body = json!({
            "inputs": inputs, "prompt_version": "^1.0.0", "stream": true, "model_metadata": model_metadata(),
        });
        let response = self
            .post(&path, &body, SILENCE)
            .await
            .map_err(|_| UNEXPECTED.to_owned())?;
        if !response.status().is_success() {
            return Err(UNEXPECTED.to_owned());
        }
        response.text().await.map_err(|_| UNEXPECTED.to_owned())
    }

    /// What an editor gets that asks for direct access.
    ///
    /// # Errors
    /// The status that the editor gets instead: the gateway's own, or 503.
    pub async fn direct_access(&self) -> Result<DirectAccess, u16> {
        let asked = self
            .request("/v1/code/user_access_token")
            .timeout(TOKEN)
            .send()
            .await;
        let response = asked.map_err(|_| 503_u16)?;
        let status = response.status();
        if !status.is_success() {
            return Err(status.as_u16());
        }
        let given: Value = response.json().await.map_err(|_| 503_u16)?;
        let (Some(token), Some(expires_at)) = (given["token"].as_str(), given["expires_at"].as_u64()) else {
            return Err(503);
        };
        let headers = self.headers.iter().filter(|(name, _)| *name != "authorization");
        Ok(DirectAccess {
            base_url: self.base.clone(),
            token: token.to_owned(),
            expires_at,
            headers: headers
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
        })
    }

    fn request(&self, path: &str) -> reqwest::RequestBuilder {
        let mut request = self.http.post(format!("{}{path}", self.base));
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        request.header(sent::REQUEST_ID, sent::request_id())
    }

    /// Posts, and waits so long for the headers.
    async fn post(&self, path: &str, body: &Value, headers_within: Duration) -> Result<Response, String> {
        let sent = self.request(path).json(body).send();
        let sent = async { sent.await.map_err(|error| error.to_string()) };
        within(headers_within, sent).await
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn within<T>(span: Duration, asked: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(span, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {span:?}")),
    }
}

/// What the administrator has entered in GitLab; the endpoint is one where nobody listens.
fn model_metadata() -> Value {
    json!({
        "provider": "openai", "name": "mistral", "endpoint": "http://127.0.0.1:9/v1", "api_key": null,
        "identifier": "custom_openai/mistral",
    })
}
