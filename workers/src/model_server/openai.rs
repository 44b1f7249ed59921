//! The HTTP client of one server with OpenAI's API.

mod error;
mod lines;
mod stream;

use std::time::Duration;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use duo_contract::envelope::Endpoint;
use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Response, Url};
use secrecy::ExposeSecret as _;
use tokio::time::{Instant, timeout_at};

use super::facts::Facts;
use super::fold::{self, Fold};
use super::{Answer, Call, Fault, pressure};
use crate::config::{CallConfig, ServerConfig, ServerKind};
use crate::slots::auto::Pressure;

pub use lines::Lines;
pub use stream::{AnswerStream, Step};

/// A server beside this worker answers a connection at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// One look at a server's health.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// One question that is no generation, such as for the tokens of a text.
const ASIDE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of an answer that is no stream.
const MOST_BODY_BYTES: usize = 64 << 20;
/// Most bytes of a page of metrics; vLLM's has some hundred thousand.
const MOST_METRICS_BYTES: usize = 8 << 20;
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The pooled client of one server.
#[derive(Debug)]
pub struct Http {
    client: Client,
    chat: Url,
    completions: Url,
    embeddings: Url,
    /// What all models of KServe's API lie below.
    infer: Url,
    models: Url,
    health: Option<Url>,
    pressure: Url,
    /// What lies above `/v1`, with a slash at its end.
    root: Url,
    authorization: Option<HeaderValue>,
    kind: ServerKind,
    idle_timeout: Duration,
    first_timeout: Option<Duration>,
}

/// What a look at a server's health saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It takes requests.
    Well,
    /// It answers, but not well; why, for the log.
    Unwell(String),
    /// Nobody is there.
    Refused,
}

impl Http {
    /// Builds the client.
    ///
    /// # Errors
    /// The CA file, the URL or the key cannot be used.
    pub fn try_new(config: &ServerConfig, calls: &CallConfig) -> anyhow::Result<Self> {
        let mut builder = Client::builder()
            // Model servers stand beside the worker; a proxy for the internet is not for them.
            .no_proxy()
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            // A redirect would carry prompts and key elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            // Retries have one owner, which is not the client.
            .retry(reqwest::retry::never())
            .pool_max_idle_per_host(config.slots.most().saturating_add(2));
        if let Some(path) = &calls.ca_file {
            let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .with_context(|| format!("{} holds no certificates in PEM form", path.display()))?;
            builder = builder.tls_certs_merge(certificates);
        }
        let url = |path: &str| {
            Url::parse(&format!("{}{path}", config.url))
                .with_context(|| format!("server {:?}: the URL cannot be used", config.name))
        };
        let authorization = config.api_key.as_ref().map(|key| {
            let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose_secret()))?;
            value.set_sensitive(true);
            anyhow::Ok(value)
        });
        let root = config.url.strip_suffix("/v1").unwrap_or(&config.url);
        Ok(Self {
            client: builder.build().context("cannot build the HTTP client")?,
            chat: url(Endpoint::ChatCompletions.path())?,
            completions: url(Endpoint::Completions.path())?,
            embeddings: url(Endpoint::Embeddings.path())?,
            infer: Url::parse(&format!("{root}{}", Endpoint::Infer.path()))?,
            models: url("/models")?,
            health: match config.kind {
                ServerKind::Vllm | ServerKind::Llama => Some(Url::parse(&format!("{root}/health"))?),
                ServerKind::Kserve => Some(Url::parse(&format!("{root}/v2/health/ready"))?),
                ServerKind::Openai => None,
            },
            pressure: Url::parse(&format!("{root}/metrics"))?,
            root: Url::parse(&format!("{root}/"))?,
            authorization: authorization
                .transpose()
                .with_context(|| format!("server {:?}: the key cannot be sent as a header", config.name))?,
            kind: config.kind,
            idle_timeout: calls.idle_timeout,
            first_timeout: calls.first_timeout,
        })
    }

    /// Makes one call, up to the first data of a stream or the whole body.
    ///
    /// # Errors
    /// No answer, a refusal, or an answer that failed before it began.
    pub async fn call(&self, call: &Call) -> Result<Answer, Fault> {
        let limit = self.first_timeout.filter(|_| call.stream);
        let deadline = limit.map_or(call.data_by(), |limit| call.data_by().min(Instant::now() + limit));
        let streamed = match self.kind {
            ServerKind::Llama if !call.stream => fold::streamed(call.endpoint, &call.body),
            _ => None,
        };
        let body = streamed.as_ref().unwrap_or(&call.body);
        let response = timeout_at(deadline, self.post(call, body.clone()))
            .await
            .map_err(|_| stream::not_begun(call.requests_by()))?
            .map_err(|error| error::unanswered(&error))?;
        if response.status() != StatusCode::OK {
            return Err(error::refused(response, self.kind, deadline).await);
        }
        if streamed.is_some() && is_stream(&response) {
            return self.folded(call, response).await;
        }
        if !call.stream {
            let body = timeout_at(call.end_by, whole(response))
                .await
                .map_err(|_| Fault::deadline("the model server did not answer in time"))??;
            let facts = Facts::whole(call.endpoint, &body)?;
            return Ok(Answer::Whole(body, facts));
        }
        let stream = AnswerStream::begin(response, self.idle_timeout, deadline, call).await?;
        Ok(Answer::Stream(Box::new(stream)))
    }

    /// Folds the stream of a call that wants a whole answer.
    async fn folded(&self, call: &Call, response: Response) -> Result<Answer, Fault> {
        let mut stream = AnswerStream::begin(response, self.idle_timeout, call.end_by, call).await?;
        let mut fold = Fold::new(call.endpoint);
        loop {
            match stream.next().await? {
                Step::Chunks(lines) => fold.push(&lines.text)?,
                Step::End(last) => {
                    fold.push(&last)?;
                    break;
                }
            }
        }
        let facts = stream.facts();
        stream.recycle().await;
        Ok(Answer::Whole(fold.finish()?, facts))
    }

    /// Asks one of the server's own endpoints, which lie beside OpenAI's; its
    /// answer, unless there is none.
    pub async fn ask(&self, path: &str, body: &serde_json::Value) -> Option<serde_json::Value> {
        let url = self.root.join(path).ok()?;
        let request = self.client.post(url).timeout(ASIDE_TIMEOUT).json(body);
        let answer = self.authorized(request).send().await.ok()?;
        let answer = answer.error_for_status().ok()?.bytes().await.ok()?;
        serde_json::from_slice(&answer).ok()
    }

    /// Tokens of prompt and answer that fit into one request of the model
    /// that the server lists as `name`, if it says.
    pub async fn room(&self, name: &str) -> Option<u64> {
        let list = self.get(&self.models).send().await.ok()?.bytes().await.ok()?;
        let list: serde_json::Value = serde_json::from_slice(&list).ok()?;
        let served = list["data"]
            .as_array()?
            .iter()
            .find(|entry| entry["id"] == name)?;
        served["max_model_len"].as_u64()
    }

    /// Longest time between two data events of an answer.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    /// Which program the server is.
    #[must_use]
    pub fn kind(&self) -> ServerKind {
        self.kind
    }

    /// Looks at the server's health; a draining vLLM answers well here and fails its requests.
    pub async fn health(&self) -> Health {
        let Some(page) = &self.health else {
            return self.look(&self.models).await;
        };
        match self.look(page).await {
            // Not every server has the page; all of them list their models.
            Health::Unwell(status) if status == StatusCode::NOT_FOUND.as_str() => {
                self.look(&self.models).await
            }
            health => health,
        }
    }

    /// What the server says of its own line and cache.
    ///
    /// # Errors
    /// No answer in time, or one without these metrics.
    pub async fn pressure(&self) -> anyhow::Result<Pressure> {
        let mut response = self.get(&self.pressure).send().await?.error_for_status()?;
        let mut text = Vec::new();
        while let Some(part) = response.chunk().await? {
            text.extend_from_slice(&part);
            anyhow::ensure!(text.len() <= MOST_METRICS_BYTES, "its metrics are too long");
        }
        pressure::parse(&String::from_utf8_lossy(&text)).context(
            "its metrics name neither vllm:num_requests_waiting nor sglang:num_queue_reqs with the cache's use",
        )
    }

    /// The names that the server lists its models under.
    ///
    /// # Errors
    /// No answer, or not a list.
    pub async fn model_names(&self) -> anyhow::Result<Vec<String>> {
        let response = self.get(&self.models).send().await?.error_for_status()?;
        let list: serde_json::Value = serde_json::from_slice(&response.bytes().await?)?;
        let entries = list["data"]
            .as_array()
            .context("the list of models has no data")?;
        Ok(entries
            .iter()
            .filter_map(|entry| entry["id"].as_str().map(str::to_owned))
            .collect())
    }

    /// Is this model ready at a server with KServe's API?
    pub async fn model_ready(&self, name: &str) -> Health {
        self.look(&self.of_model(name, "ready")).await
    }

    /// Where KServe's API has a model's `what`.
    fn of_model(&self, name: &str, what: &str) -> Url {
        let mut url = self.infer.clone();
        // Any URL of a server has segments; its name may hold slashes.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend([name, what]);
        }
        url
    }

    async fn look(&self, url: &Url) -> Health {
        match self.get(url).send().await {
            Ok(response) if response.status().is_success() => Health::Well,
            Ok(response) => Health::Unwell(response.status().as_str().to_owned()),
            Err(error) if error.is_connect() => Health::Refused,
            Err(_) => Health::Unwell("no answer".to_owned()),
        }
    }

    fn get(&self, url: &Url) -> reqwest::RequestBuilder {
        self.authorized(self.client.get(url.clone()).timeout(HEALTH_TIMEOUT))
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.authorization {
            Some(authorization) => request.header(AUTHORIZATION, authorization.clone()),
            None => request,
        }
    }

    async fn post(&self, call: &Call, body: Bytes) -> reqwest::Result<Response> {
        let url = match call.endpoint {
            Endpoint::ChatCompletions => self.chat.clone(),
            Endpoint::Completions => self.completions.clone(),
            Endpoint::Embeddings => self.embeddings.clone(),
            Endpoint::Infer => self.of_model(call.infer_as.as_deref().unwrap_or_default(), "infer"),
        };
        let mut request = reqwest::Request::new(http::Method::POST, url);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(traceparent) = HeaderValue::try_from(&call.traceparent) {
            headers.insert(TRACEPARENT, traceparent);
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        *request.body_mut() = Some(body.into());
        self.client.execute(request).await
    }
}

/// A server in between may answer whole all the same.
fn is_stream(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

async fn whole(mut response: Response) -> Result<Bytes, Fault> {
    let broke_off = |_| Fault::server("the model server's answer broke off");
    let first = response.chunk().await.map_err(broke_off)?.unwrap_or_default();
    let Some(second) = response.chunk().await.map_err(broke_off)? else {
        return Ok(first);
    };
    let mut body = BytesMut::with_capacity(first.len() + second.len());
    body.extend_from_slice(&first);
    body.extend_from_slice(&second);
    while let Some(next) = response.chunk().await.map_err(broke_off)? {
        if body.len() + next.len() > MOST_BODY_BYTES {
            return Err(Fault::server("the model server's answer is too long"));
        }
        body.extend_from_slice(&next);
    }
    Ok(body.freeze())
}
