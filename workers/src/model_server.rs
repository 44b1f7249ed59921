//! A model server beside this worker: a call in, an answer out.
//!
//! Retries happen here and only before the first data of an answer has been
//! handed on, so a client never sees a sentence twice. How often is the
//! attempt's own share of the request's budget, see [`Allowance`].

mod allowance;

pub mod breaker;
pub mod continuation;
pub mod facts;
pub mod fold;
pub mod health;
pub mod openai;
pub mod pressure;
pub mod sse;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use duo_contract::claim::Have;
use duo_contract::envelope::Endpoint;
use duo_contract::failure::{Failure, FailureKind, RetryRule};
use duo_contract::name::ModelName;
use duo_contract::presence::BreakerState;
use duo_process::retry::RetryPolicy;
use memchr::memmem;
use tokio::time::Instant;

use crate::config::{CallConfig, ServerConfig, ServerKind};
use crate::metrics::{Metrics, ServerMetrics};
use crate::slots::SlotPool;
use crate::slots::auto::Bounds;
pub use allowance::Allowance;
use breaker::Breaker;
use continuation::{Continued, Seam};
use facts::Facts;
use openai::{AnswerStream, Http};

/// Pauses between two calls of one attempt.
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(2);
/// Calls worth making of a server that fails: it may be the request that makes it fail.
const CALLS_WHEN_FAILING: u32 = 2;
/// Calls worth making of one that does not answer or has too much to do.
const CALLS_WHEN_AWAY: u32 = u32::MAX;
/// Longest `Retry-After` that is waited out with the slot held; beyond it the request goes back to the queue.
const LONGEST_PAUSE: Duration = RETRY_CAP;

/// One model server.
#[derive(Debug)]
pub struct ModelServer {
    /// Its name in the worker file.
    pub name: Box<str>,
    /// Which program it is.
    pub kind: ServerKind,
    /// Its slots.
    pub slots: Arc<SlotPool>,
    /// Between which bounds their number follows the server, if it does.
    pub auto: Option<Bounds>,
    /// Whether it is well enough to be pulled for.
    pub breaker: Breaker,
    models: Vec<Served>,
    http: Http,
    metrics: ServerMetrics,
    retry: RetryPolicy,
}

#[derive(Debug)]
struct Served {
    model: ModelName,
    served_as: Box<str>,
    tools: bool,
    /// `{"model":"…"`, which goes before the body's own members.
    opening: Box<[u8]>,
    /// The same, asking for token ids.
    opening_with_ids: Box<[u8]>,
}

/// The member that asks for token ids.
const RETURN_TOKEN_IDS: &str = "\"return_token_ids\"";

/// Tokens that the answer under way has cost so far, for whoever stops it. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Spent(Arc<AtomicU64>);

impl Spent {
    /// So many, all told.
    pub fn set(&self, tokens: u64) {
        self.0.store(tokens, Ordering::Relaxed);
    }

    /// How many, as far as anything is known.
    #[must_use]
    pub fn tokens(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|tokens| *tokens > 0)
    }
}

/// One call of a model server.
#[derive(Debug, Clone)]
pub struct Call {
    /// Which call it is.
    pub endpoint: Endpoint,
    /// Whether the body asks for a stream.
    pub stream: bool,
    /// The whole body, model name included.
    pub body: Bytes,
    /// The model's name in the path, where the body has none.
    pub infer_as: Option<Box<str>>,
    /// Only the worker asked for the token ids in the answer.
    pub hide_ids: bool,
    /// Where the answer goes on after an earlier attempt's.
    pub seam: Option<Seam>,
    /// Trace context of this call.
    pub traceparent: String,
    /// The request's own bound on the first data.
    pub first_by: Instant,
    /// The server's: it may not be silent for longer.
    pub silent_by: Option<Instant>,
    /// The end has to come by then.
    pub end_by: Instant,
    /// How many calls may be made for this attempt.
    pub allowance: Allowance,
    /// What its answer has cost so far.
    pub spent: Spent,
}

impl Call {
    /// The first data of a stream, and the whole of any other answer, has to come by then.
    #[must_use]
    pub fn data_by(&self) -> Instant {
        let request = self.requests_by();
        self.silent_by.map_or(request, |silent| silent.min(request))
    }

    /// The same as far as the request bounds it: the first byte that a client sees of an answer that is no stream is its
    /// last.
    #[must_use]
    pub fn requests_by(&self) -> Instant {
        if self.stream {
            self.first_by.min(self.end_by)
        } else {
            self.end_by
        }
    }
}

/// An answer that has begun.
#[derive(Debug)]
pub enum Answer {
    /// A whole body.
    Whole(Bytes, Facts),
    /// A stream whose first data is here.
    Stream(Box<AnswerStream>),
}

/// What calling came to.
#[derive(Debug)]
pub struct Called {
    /// The answer, or why there is none.
    pub answer: Result<Answer, Failure>,
    /// Calls it took.
    pub calls: u32,
    /// When the last of them began.
    pub called_at: Instant,
    /// When its first data was here.
    pub first_at: Instant,
    /// Counts the request as long as the answer lasts.
    pub in_flight: Option<crate::metrics::InFlight>,
}

/// A failed call: what the owner is told, and what it means here.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{failure}")]
pub struct Fault {
    /// What the owner is told.
    pub failure: Failure,
    /// Calls that are worth making when they fail like this.
    pub most_calls: u32,
    /// What it says about the server.
    pub blame: Blame,
}

/// What a failed call says about the model server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The server failed.
    Server,
    /// It could not even be reached.
    Unreachable,
    /// Nothing: the request, the deadline or the load was at fault.
    Nobody,
}

impl Fault {
    /// A fault of the server that broke off, stalled or sent what nobody can read.
    #[must_use]
    pub fn server(message: &str) -> Self {
        Self {
            failure: Failure::new(FailureKind::ModelServerFault, message),
            most_calls: CALLS_WHEN_FAILING,
            blame: Blame::Server,
        }
    }

    /// The server stays silent for longer than it may, while the request still has time.
    #[must_use]
    pub fn silent(message: &str) -> Self {
        Self {
            most_calls: 1,
            ..Self::server(message)
        }
    }

    /// The request's time ran out.
    #[must_use]
    pub fn deadline(message: &str) -> Self {
        Self {
            failure: Failure::new(FailureKind::DeadlineExceeded, message),
            most_calls: 1,
            blame: Blame::Nobody,
        }
    }
}

impl ModelServer {
    /// Builds the client of one server.
    ///
    /// # Errors
    /// The CA file, the URL or the key cannot be used.
    pub fn try_new(config: ServerConfig, calls: &CallConfig, metrics: &Metrics) -> anyhow::Result<Self> {
        let server_metrics = metrics.server(&config);
        let models = config.models.iter().map(Served::new).collect::<Result<_, _>>()?;
        let auto = config.slots.bounds();
        let slots = auto.map_or(config.slots.most(), |bounds| bounds.min);
        Ok(Self {
            slots: SlotPool::new(slots, server_metrics.slots.clone()),
            auto,
            breaker: Breaker::new(server_metrics.breaker_state.clone()),
            http: Http::try_new(&config, calls)?,
            name: config.name.into(),
            kind: config.kind,
            models,
            metrics: server_metrics,
            retry: RetryPolicy::try_new(RETRY_BASE, RETRY_CAP, u32::MAX)?,
        })
    }

    /// The models it serves.
    pub fn models(&self) -> impl Iterator<Item = &ModelName> {
        self.models.iter().map(|served| &served.model)
    }

    /// Does it turn the tool calls of `model` into data?
    #[must_use]
    pub fn calls_tools(&self, model: &ModelName) -> bool {
        self.models
            .iter()
            .any(|served| served.model == *model && served.tools)
    }

    /// The models with the names that the server knows them by.
    pub fn served(&self) -> impl Iterator<Item = (&ModelName, &str)> {
        self.models
            .iter()
            .map(|served| (&served.model, &*served.served_as))
    }

    /// Its client, for health and checks.
    #[must_use]
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// Puts the name that the server knows `model` by before the members of
    /// `body`, which is an object without one; nothing else of it is read.
    /// A stream of a server that can give token ids is asked for them, unless
    /// the body has a word on that itself; whether it is comes back too.
    ///
    /// # Errors
    /// The server does not serve the model, or the body is no object.
    pub fn body(&self, model: &ModelName, body: &[u8], stream: bool) -> Result<(Bytes, bool), Failure> {
        let served = self.find(model)?;
        let asks = stream
            && self.kind == ServerKind::Vllm
            && memmem::find(body, RETURN_TOKEN_IDS.as_bytes()).is_none();
        let opening = if asks {
            &served.opening_with_ids
        } else {
            &served.opening
        };
        let body = splice(opening, body)
            .ok_or_else(|| Failure::new(FailureKind::Internal, "the request's body is not a JSON object"))?;
        Ok((body, asks))
    }

    /// The name that the server knows `model` by, for a call whose body has none.
    ///
    /// # Errors
    /// The server does not serve the model.
    pub fn infer_as(&self, model: &ModelName) -> Result<Box<str>, Failure> {
        self.find(model).map(|served| served.served_as.clone())
    }

    /// The call that continues an answer after what the client already has.
    ///
    /// # Errors
    /// The server or the request cannot be continued.
    pub async fn continued(
        &self,
        model: &ModelName,
        endpoint: Endpoint,
        body: &Bytes,
        have: &Have,
    ) -> Result<Continued, Failure> {
        let served_as = &self.find(model)?.served_as;
        continuation::continued(&self.http, served_as, endpoint, body, have).await
    }

    fn find(&self, model: &ModelName) -> Result<&Served, Failure> {
        let served = self.models.iter().find(|served| served.model == *model);
        served.ok_or_else(|| {
            Failure::new(
                FailureKind::ModelUnavailable,
                "this worker does not serve the model",
            )
        })
    }

    /// Calls until an answer begins, retries are spent or time runs out.
    pub async fn call(&self, call: &Call) -> Called {
        let mut calls = 0;
        loop {
            calls += 1;
            let called_at = Instant::now();
            let answer = self.http.call(call).await;
            let first_at = Instant::now();
            let fault = match answer {
                Ok(answer) => {
                    self.metrics.calls_begun.inc();
                    self.breaker.begun();
                    return Called {
                        answer: Ok(answer),
                        calls,
                        called_at,
                        first_at,
                        in_flight: None,
                    };
                }
                Err(fault) => fault,
            };
            self.metrics.call_failed(fault.failure.kind);
            if fault.blame == Blame::Unreachable {
                self.breaker.suspect();
            }
            if let Some(pause) = self.pause(&fault, calls, call).await {
                tokio::time::sleep(pause).await;
                continue;
            }
            self.ended_badly(&fault);
            return Called {
                answer: Err(fault.failure),
                calls,
                called_at,
                first_at,
                in_flight: None,
            };
        }
    }

    /// An answer of this server came to a good end.
    pub fn ended_well(&self) {
        self.breaker.succeeded();
    }

    /// A call or an answer of this server failed for good.
    pub fn ended_badly(&self, fault: &Fault) {
        match fault.blame {
            Blame::Server | Blame::Unreachable => self.breaker.failed(),
            Blame::Nobody => {}
        }
    }

    /// The pause before the next call, if there is to be one.
    async fn pause(&self, fault: &Fault, calls: u32, call: &Call) -> Option<Duration> {
        if fault.failure.retry() != RetryRule::HereThenElsewhere || calls >= fault.most_calls {
            return None;
        }
        // Whoever knows that the server is down does not ask it again.
        if calls >= call.allowance.calls().await || self.breaker.now() == BreakerState::Tripped {
            return None;
        }
        let remaining = call.data_by().saturating_duration_since(Instant::now());
        let hint = fault.failure.retry_after_ms.map(Duration::from_millis);
        if hint.is_some_and(|hint| hint > LONGEST_PAUSE) {
            return None;
        }
        self.retry.delay_within(calls, remaining, hint)
    }
}

impl Served {
    fn new(config: &crate::config::ServedConfig) -> Result<Self, serde_json::Error> {
        let mut opening = br#"{"model":"#.to_vec();
        serde_json::to_writer(&mut opening, &config.served_as)?;
        let asking = [&opening[..], b",", RETURN_TOKEN_IDS.as_bytes(), b":true"].concat();
        Ok(Self {
            model: config.model.clone(),
            served_as: config.served_as.clone().into(),
            tools: config.tools,
            opening: opening.into(),
            opening_with_ids: asking.into(),
        })
    }
}

/// `opening` without its closing brace, then the members of the object `body`.
fn splice(opening: &[u8], body: &[u8]) -> Option<Bytes> {
    let members = body.trim_ascii().strip_prefix(b"{")?.trim_ascii_start();
    let mut whole = Vec::with_capacity(opening.len() + 1 + members.len());
    whole.extend_from_slice(opening);
    if members != b"}" {
        whole.push(b',');
    }
    whole.extend_from_slice(members);
    Some(whole.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_goes_before_the_bodys_own_members() {
        let opening = br#"{"model":"M""#;
        let spliced = |body: &[u8]| splice(opening, body);
        assert_eq!(
            spliced(br#"{"prompt":"x"}"#).as_deref(),
            Some(&br#"{"model":"M","prompt":"x"}"#[..])
        );
        assert_eq!(
            spliced(b" {\n \"n\":1} ").as_deref(),
            Some(&br#"{"model":"M","n":1}"#[..])
        );
        assert_eq!(spliced(b"{ }").as_deref(), Some(&br#"{"model":"M"}"#[..]));
        assert_eq!(spliced(b"[]"), None);
        assert_eq!(spliced(b""), None);
    }
}
