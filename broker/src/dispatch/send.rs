//! Publishing a request, first and again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use bytes::Bytes;
use duo_contract::envelope::{Head, RequestEnvelope};
use duo_contract::failure::FailureKind;
use duo_contract::frame::Summary;
use duo_contract::subject;
use duo_process::clock;
use duo_process::nats::{Pending, RequestError};
use duo_process::retry::RetryPolicy;
use serde::Deserialize;

use super::Dispatch;
use super::inflight::{InFlight, Rules, Stop, Task, message_id};
use super::publish::{self, PublishError};
use super::storing::Storing;
use crate::admission::Place;
use crate::audit::OpenRecord;
use crate::audit::sink::Stored;
use crate::caller::{Caller, PERSON_LIMIT};
use crate::request::{ExchangeError, ReplyEvent, RoutedRequest, Work};

/// One publish may take this long before it is sent again under the same id.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// A request is refused when NATS has not acknowledged it for so long: its
/// client is to know within five seconds. A restart of the server is over well
/// before, and often the election of a stream's new leader.
const PATIENCE: Duration = Duration::from_millis(4500);
/// Shards of a service client's limit that are tried before it is refused.
const SHARD_TRIES: usize = 3;
/// Pause before a refused request is published once more: a caller who has had its
/// answer may be faster than the acknowledgement that frees its place in the stream.
const SETTLING: Duration = Duration::from_millis(20);

/// A request with everything that publishing it takes.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Who asks.
    pub caller: &'a Caller,
    /// Its record.
    pub record: &'a OpenRecord,
    /// Its feature and model.
    pub routed: &'a RoutedRequest,
    /// What goes to the model server.
    pub work: Work,
    /// Its place in line.
    pub place: Place,
}

/// The answer to a request under way. Dropping it before its end cancels the
/// request, whichever state it is in.
#[derive(Debug)]
pub struct Reply {
    inflight: Arc<InFlight>,
    dispatch: Dispatch,
}

impl Reply {
    /// The next piece; `None` after the end. After an error nothing follows.
    ///
    /// # Errors
    /// The request failed, expired, or was cut off; what was sent is not whole.
    pub async fn next(&mut self) -> Option<Result<ReplyEvent, ExchangeError>> {
        loop {
            let woken = self.inflight.wake.notified();
            if let Some(event) = self.inflight.poll() {
                return event;
            }
            woken.await;
        }
    }

    /// The request's record.
    #[must_use]
    pub fn record(&self) -> &OpenRecord {
        &self.inflight.task.record
    }

    /// Has a worker had it?
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.inflight.queue_wait().is_some()
    }

    /// The body of an answer that is no stream.
    ///
    /// # Errors
    /// As [`Reply::next`].
    pub async fn whole(&mut self) -> Result<(Summary, Bytes), ExchangeError> {
        loop {
            match self.next().await {
                Some(Ok(ReplyEvent::Done { summary, body })) => return Ok((summary, body)),
                Some(Ok(ReplyEvent::Chunks(_))) => {}
                Some(Err(error)) => return Err(error),
                None => {
                    return Err(ExchangeError::new(
                        FailureKind::Internal,
                        "read_twice",
                        "the answer was read already",
                    ));
                }
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let stop = match self.record().job_over() {
            Some((outcome, reason)) => Stop::JobOver(outcome, reason),
            None => Stop::ClientGone,
        };
        self.dispatch.stop(&self.inflight, stop);
    }
}

impl Dispatch {
    /// Lets nothing pass while the queue or the audit log has stored nothing for long.
    ///
    /// # Errors
    /// The queue or the audit log is unavailable.
    pub fn gate(&self) -> Result<(), ExchangeError> {
        if self.0.queue_stores.is_shut() {
            return Err(queue_unavailable());
        }
        if self.0.audit_stores.is_shut() {
            return Err(audit_unavailable());
        }
        Ok(())
    }

    /// Publishes a request while its admitted record is on its way; comes back
    /// when both are acknowledged.
    ///
    /// # Errors
    /// The caller's or the stream's limit, or NATS does not take it.
    pub async fn send(&self, out: Outgoing<'_>) -> Result<Reply, ExchangeError> {
        let accepted = out.record.received();
        let rules = Rules {
            lease: self.0.queue.lease,
            max_attempts: self.0.queue.max_attempts,
        };
        let task = Task {
            record: out.record.clone(),
            routed: out.routed.clone(),
            work: out.work,
        };
        let inflight = Arc::new(InFlight::new(task, rules, out.place, accepted, Instant::now()));
        let admitted = out.record.admit();
        self.keep(&inflight);
        let reply = Reply {
            inflight: Arc::clone(&inflight),
            dispatch: self.clone(),
        };
        if let Some(key) = &inflight.task.work.supersede_key {
            self.supersede(key, inflight.request_id).await;
        }
        let envelope = self.envelope(&inflight, 1);
        match self.store(out.caller, &inflight, &envelope, admitted).await {
            Ok(()) => {
                inflight.admitted();
                Ok(reply)
            }
            Err(error) => {
                let todo = inflight.fail(error.clone(), Instant::now());
                self.follow_up(&inflight, todo);
                Err(error)
            }
        }
    }

    fn envelope(&self, inflight: &InFlight, publication: u32) -> RequestEnvelope {
        let Task { record, routed, work } = &inflight.task;
        let now = clock::unix_ms();
        let left = |until: Instant| {
            let left = until.saturating_duration_since(Instant::now()).as_millis();
            now.saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
        };
        let head = Head {
            request_id: inflight.request_id,
            publication,
            owner: self.0.broker.clone(),
            feature: routed.feature.name.clone(),
            model: routed.model.name.clone(),
            lane: inflight.lane,
            endpoint: work.endpoint,
            stream: work.stream,
            accepted_at_ms: now,
            first_byte_by_ms: left(inflight.first_byte_by),
            end_by_ms: left(inflight.end_by),
            lease_ms: u32::try_from(self.0.queue.lease.as_millis()).unwrap_or(u32::MAX),
            traceparent: Some(record.traceparent().to_owned()),
            config_revision: routed.revision,
        };
        RequestEnvelope {
            head,
            body: work.body.clone(),
        }
    }

    async fn store(
        &self,
        caller: &Caller,
        inflight: &Arc<InFlight>,
        envelope: &RequestEnvelope,
        admitted: Stored,
    ) -> Result<(), ExchangeError> {
        let (payload, key_id) = envelope.encode(&self.0.keys).map_err(|error| {
            tracing::error!(error = %error, "a request could not be sealed");
            ExchangeError::new(FailureKind::Internal, "seal", "the request could not be sealed")
        })?;
        let message = Message::new(&envelope.head, &key_id, payload);
        let by = inflight.first_byte_by.min(Instant::now() + PATIENCE);
        let queued = self.store_request(caller, inflight, envelope, message, by);
        let (audited, queued) = tokio::join!(admitted.by(by), queued);
        queued?;
        if !audited {
            self.0.audit_stores.silent();
            tracing::warn!("the admitted record was not acknowledged in time; the request is refused");
            return Err(audit_unavailable());
        }
        Ok(())
    }

    async fn store_request(
        &self,
        caller: &Caller,
        inflight: &Arc<InFlight>,
        envelope: &RequestEnvelope,
        message: Message,
        by: Instant,
    ) -> Result<(), ExchangeError> {
        let head = &envelope.head;
        let mut refused = None;
        let keys = keys(caller);
        for (number, key) in keys.iter().chain(&keys).enumerate() {
            if number == keys.len() {
                tokio::time::sleep(SETTLING).await;
            }
            let subject = subject::request(head.lane, &head.feature, &head.model, key);
            let stored = self.persist(&subject, &message, by, Some(inflight)).await;
            note(&self.0.queue_stores, &stored);
            match stored {
                Ok(sequence) => {
                    let todo = inflight.stored(1, sequence, Instant::now());
                    self.follow_up(inflight, todo);
                    return Ok(());
                }
                Err(PublishError::Full) => refused = Some(subject),
                Err(error) => {
                    tracing::warn!(error = %error, "a request could not be queued");
                    return Err(match error {
                        PublishError::TooLarge => ExchangeError::new(
                            FailureKind::InvalidRequest,
                            "too_large",
                            "the request is larger than the queue takes",
                        ),
                        _ => queue_unavailable(),
                    });
                }
            }
        }
        Err(self
            .refusal(
                caller,
                refused.as_deref().unwrap_or_default(),
                &inflight.task.routed,
            )
            .await)
    }

    /// Publishes until acknowledged, with the same id, so that an answer that
    /// was lost does no harm.
    async fn persist(
        &self,
        subject: &str,
        message: &Message,
        by: Instant,
        inflight: Option<&Arc<InFlight>>,
    ) -> Result<u64, PublishError> {
        let pause = RetryPolicy::try_new(Duration::from_millis(20), Duration::from_millis(500), u32::MAX)
            .expect("the constants are in order");
        let mut attempt = 1;
        loop {
            let left = by.saturating_duration_since(Instant::now());
            let result = async {
                let sent = self.0.nats.send(
                    subject.to_owned(),
                    Some(message.headers.clone()),
                    message.payload.clone(),
                );
                let timeout = ACK_TIMEOUT.min(left.max(Duration::from_millis(1)));
                let mut unanswered = Unanswered {
                    pending: Some(sent.await?),
                    of: inflight.map(|inflight| (self, inflight)),
                };
                unanswered.stored(timeout).await
            };
            match result.await {
                Err(error) if error.is_passing() => {
                    let left = by.saturating_duration_since(Instant::now());
                    let Some(delay) = pause.delay_within(attempt, left, None) else {
                        return Err(error);
                    };
                    tokio::time::sleep(delay).await;
                    attempt += 1;
                }
                settled => return settled,
            }
        }
    }

    /// Code 10077 is two things: the caller's own limit, or a full stream. A
    /// look at the subject tells.
    async fn refusal(&self, caller: &Caller, subject: &str, routed: &RoutedRequest) -> ExchangeError {
        let admission = &self.0.admission;
        match self.messages_of(subject).await {
            Ok(count) if count < u64::from(PERSON_LIMIT) => admission.stream_full(),
            _ => admission.caller_limit(caller.into(), &routed.feature, &routed.model.name),
        }
    }

    /// Messages that the live stream holds under one subject.
    async fn messages_of(&self, subject: &str) -> Result<u64, RequestError> {
        #[derive(Deserialize)]
        struct Info {
            state: State,
        }
        #[derive(Deserialize)]
        struct State {
            #[serde(default)]
            subjects: HashMap<String, u64>,
        }
        let payload = format!("{{\"subjects_filter\":\"{subject}\"}}");
        let api = format!("$JS.API.STREAM.INFO.{}", subject::LIVE_STREAM);
        let answer = self.0.nats.request(api, payload.into(), ACK_TIMEOUT).await?;
        let info = serde_json::from_slice::<Info>(&answer.payload).ok();
        Ok(info
            .and_then(|info| info.state.subjects.get(subject).copied())
            .unwrap_or(0))
    }

    /// Publishes a lost request again, under a key that no caller's limit covers.
    pub(super) async fn publish_again(&self, inflight: &InFlight, publication: u32, lost: u64) {
        let envelope = self.envelope(inflight, publication);
        let head = &envelope.head;
        let key = subject::republish_key(head.request_id);
        let subject = subject::request(head.lane, &head.feature, &head.model, &key);
        let Ok((payload, key_id)) = envelope.encode(&self.0.keys) else {
            return;
        };
        let message = Message::new(head, &key_id, payload);
        let by = Instant::now() + PATIENCE;
        match self.persist(&subject, &message, by, None).await {
            Ok(sequence) => {
                let todo = inflight.stored(publication, sequence, Instant::now());
                self.follow_up(inflight, todo);
                self.0.metrics.republished.inc();
            }
            Err(error) => {
                tracing::warn!(request_id = %inflight.request_id, error = %error, "could not publish again");
                inflight.not_stored(publication, lost);
            }
        }
    }
}

struct Message {
    headers: HeaderMap,
    payload: Bytes,
}

impl Message {
    fn new(head: &Head, key_id: &str, payload: Bytes) -> Self {
        let mut headers = HeaderMap::new();
        let id = message_id(head.request_id, head.publication);
        headers.insert(async_nats::header::NATS_MESSAGE_ID, id.as_str());
        headers.insert(subject::KEY_ID_HEADER, key_id);
        Self { headers, payload }
    }
}

/// A publish that NATS has not acknowledged. Dropped before that, because the
/// client has left, it still waits for the place of the message, to delete it.
struct Unanswered<'a> {
    pending: Option<Pending>,
    of: Option<(&'a Dispatch, &'a Arc<InFlight>)>,
}

impl Unanswered<'_> {
    async fn stored(&mut self, timeout: Duration) -> Result<u64, PublishError> {
        let Some(pending) = &mut self.pending else {
            return Err(PublishError::Unknown);
        };
        let stored = publish::stored(pending, timeout).await;
        self.pending = None;
        stored
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let (Some(mut pending), Some((dispatch, inflight))) = (self.pending.take(), self.of) else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (dispatch, inflight) = (dispatch.clone(), Arc::clone(inflight));
        runtime.spawn(async move {
            // Without an answer the claim finds nobody, and the worker removes the message.
            if let Ok(sequence) = publish::stored(&mut pending, ACK_TIMEOUT).await {
                let todo = inflight.stored(1, sequence, Instant::now());
                dispatch.follow_up(&inflight, todo);
            }
        });
    }
}

/// What an answer to a publish, or none in all its patience, says of its stream.
fn note(storing: &Storing, stored: &Result<u64, PublishError>) {
    match stored {
        Err(error) if error.is_passing() => storing.silent(),
        _ => storing.answered(),
    }
}

fn queue_unavailable() -> ExchangeError {
    unavailable(
        "queue_unavailable",
        "the queue cannot take requests just now; try again",
    )
}

fn audit_unavailable() -> ExchangeError {
    unavailable(
        "audit_unavailable",
        "the audit log cannot take a record just now; try again",
    )
}

fn unavailable(reason: &'static str, message: &str) -> ExchangeError {
    ExchangeError {
        retry_after: Some(Duration::from_secs(1)),
        ..ExchangeError::new(FailureKind::ModelUnavailable, reason, message)
    }
}

/// The keys under which a caller's request may be queued: a person has one; a
/// service client's limit is spread over shards, a few of which are tried.
fn keys(caller: &Caller) -> Vec<String> {
    if caller.limit <= PERSON_LIMIT {
        return vec![caller.share_key.clone()];
    }
    let shards = caller.limit.div_ceil(PERSON_LIMIT);
    (0..SHARD_TRIES)
        .map(|_| format!("{}-{}", caller.share_key, rand::random_range(0..shards)))
        .collect()
}
