//! One delivery, from decode to settle.

mod alive;
mod endings;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use duo_contract::claim::{ClaimReply, ClaimRequest, FIRST_ATTEMPT, Have};
use duo_contract::envelope::{Endpoint, EnvelopeError, Head, RequestEnvelope};
use duo_contract::failure::Failure;
use duo_contract::{subject, trace};
use duo_process::clock;
use futures_util::FutureExt as _;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;
use uuid::Uuid;

use endings::{Times, Turn, unsendable};

use crate::claim;
use crate::delivery::{Ack, Delivery};
use crate::metrics::InFlight;
use crate::model_server::continuation::Continued;
use crate::model_server::openai::{AnswerStream, Step};
use crate::model_server::{Allowance, Answer, Call, Called, Fault, ModelServer, Spent};
use crate::outcome::Outcome;
use crate::reply::Reply;
use crate::slots::Slot;
use crate::startup::Worker;

/// In the last of so many parts of the time until its first byte a request's call does not begin beside its claim.
const LATE_PART: u64 = 8;

/// A delivery being worked.
#[derive(Debug)]
pub struct Job {
    worker: Arc<Worker>,
    server: Arc<ModelServer>,
    delivery: Delivery,
}

impl Job {
    /// A job that has not begun.
    #[must_use]
    pub fn new(worker: Arc<Worker>, server: Arc<ModelServer>, delivery: Delivery) -> Self {
        Self {
            worker,
            server,
            delivery,
        }
    }

    /// Works the delivery and settles it.
    pub async fn run(self) {
        let began = Instant::now();
        let Self {
            worker,
            server,
            delivery,
        } = self;
        let Delivery {
            message,
            ack_subject,
            ack,
            slot,
        } = delivery;
        let envelope = match decode(&worker, &message) {
            Ok(envelope) => envelope,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, subject = %message.subject, "a request cannot be read");
                worker.metrics.undecodable.inc();
                return settle(&worker, &ack_subject, Outcome::Undecodable).await;
            }
        };
        drop(message);
        let RequestEnvelope { head, body } = envelope;
        count(&worker, &head, ack);
        let metrics = &worker.metrics;
        let owner: Arc<str> = head.owner.as_str().into();
        let reply = Reply::new(
            Arc::clone(&worker.outbox),
            Arc::clone(&owner),
            head.request_id,
            metrics.frames.clone(),
            metrics.frames_resent.clone(),
        );
        let span =
            tracing::debug_span!("job.run", request_id = %head.request_id, model = head.model.as_str());
        // Held until the delivery is settled, so that a drain waits for that too.
        let running = worker.running.register(head.request_id, reply);
        let attempt = Attempt {
            worker: &worker,
            server: &server,
            head: &head,
            owner: &owner,
            ack,
            reply: &running.reply,
            job: Uuid::new_v4(),
            allowance: Allowance::default(),
            spent: Spent::default(),
            began,
            model_since: OnceLock::new(),
        };
        let outcome = async {
            // Boxed, since the task would have room for it twice otherwise.
            let mut work = Box::pin(AssertUnwindSafe(attempt.run(&body, slot)).catch_unwind());
            let turn = tokio::select! {
                biased;
                stop = running.stopped() => Turn::Stopped(stop),
                never = alive::keep(&worker, &ack_subject, lease(&head)) => match never {},
                unwanted = alive::unwanted(&worker, &ack_subject, &running.reply, &head) => Turn::Unwanted(unwanted),
                ended = &mut work => Turn::Ended(ended.ok()),
            };
            // The model server's connection closes with it, before anything is waited for.
            drop(work);
            attempt.settled_by(turn).await
        }
        .instrument(span)
        .await;
        settle(&worker, &ack_subject, outcome).await;
        tracing::debug!(request_id = %head.request_id, outcome = outcome.as_str(), "job ended");
    }
}

fn decode(worker: &Worker, message: &async_nats::Message) -> Result<RequestEnvelope, EnvelopeError> {
    let headers = message.headers.as_ref();
    let key_id = headers
        .and_then(|headers| headers.get(subject::KEY_ID_HEADER))
        .map_or("", |id| id.as_str());
    RequestEnvelope::decode(&message.payload, key_id, &worker.keys)
}

fn count(worker: &Worker, head: &Head, ack: Ack) {
    let labels = [head.feature.as_str(), head.model.as_str(), head.lane.as_str()];
    worker.metrics.deliveries.with_label_values(&labels).inc();
    if ack.delivered > 1 {
        worker.metrics.redeliveries.inc();
    }
}

async fn settle(worker: &Worker, ack_subject: &str, outcome: Outcome) {
    worker.metrics.ended(outcome);
    outcome.settle(&worker.nats, ack_subject).await;
}

fn lease(head: &Head) -> Duration {
    Duration::from_millis(head.lease_ms.into())
}

/// The work between decode and settle.
struct Attempt<'a> {
    worker: &'a Worker,
    server: &'a ModelServer,
    head: &'a Head,
    owner: &'a Arc<str>,
    ack: Ack,
    reply: &'a Reply,
    /// Tells it from another job that was given the same delivery.
    job: Uuid,
    allowance: Allowance,
    spent: Spent,
    /// When its delivery was in hand.
    began: Instant,
    /// Since when the model's part counts: since then or, where the call waited for it, the owner's leave.
    model_since: OnceLock<Instant>,
}

impl Attempt<'_> {
    async fn run(&self, body: &Bytes, slot: Slot) -> Outcome {
        if self.is_fresh() {
            return self.run_beside_claim(body, slot).await;
        }
        match self.claim().await {
            ClaimReply::Proceed { .. } => {
                let called = self.call(body).await;
                self.answer(called, slot).await
            }
            ClaimReply::Continue { have, .. } => {
                let called = self.call_after(body, &have).await;
                self.answer(called, slot).await
            }
            ClaimReply::Busy { delay_ms } => Outcome::HandedBack(Duration::from_millis(delay_ms)),
            ClaimReply::Gone => Outcome::Gone,
        }
    }

    /// May work begin before the owner has given leave, since it almost always does?
    fn is_fresh(&self) -> bool {
        let Head {
            owner,
            publication,
            accepted_at_ms,
            first_byte_by_ms,
            ..
        } = self.head;
        // Near its deadline a request may be over by the time the claim is answered, and must not start then.
        let reserve = first_byte_by_ms.saturating_sub(*accepted_at_ms) / LATE_PART;
        let late = clock::unix_ms().saturating_add(reserve) > *first_byte_by_ms;
        let known = self.worker.owners.silent_for(owner, lease(self.head)).is_zero();
        known && *publication == 1 && self.ack.delivered == 1 && !late
    }

    /// Calls the model server and sends what it says while the owner is asked. The claim goes first, so an owner that
    /// gives leave has done so when the frames come, and one that does not takes none.
    async fn run_beside_claim(&self, body: &Bytes, slot: Slot) -> Outcome {
        self.reply.begin(self.job);
        self.model_since.get_or_init(|| self.began);
        let verdict = {
            let mut claim = std::pin::pin!(self.claim());
            // The first poll sends the question.
            let mut answered = Box::pin(async { self.answer(self.call(body).await, slot).await });
            let verdict = tokio::select! {
                biased;
                verdict = &mut claim => verdict,
                // An owner that answers a last frame has given leave.
                outcome = &mut answered => return outcome,
            };
            if let ClaimReply::Proceed {
                attempt: FIRST_ATTEMPT,
            } = verdict
            {
                return answered.await;
            }
            verdict
        };
        match verdict {
            // Somebody had begun it although the queue says otherwise, having been restarted, perhaps. The next delivery
            // counts on from this one.
            ClaimReply::Proceed { .. } | ClaimReply::Continue { .. } => {
                let unheard = Outcome::HandedBack(Duration::ZERO);
                self.leave("the request had been begun before", unheard).await
            }
            ClaimReply::Busy { delay_ms } => Outcome::HandedBack(Duration::from_millis(delay_ms)),
            ClaimReply::Gone => Outcome::Gone,
        }
    }

    /// Asks the owner for leave; with it frames may leave as its attempt's.
    async fn claim(&self) -> ClaimReply {
        let request = ClaimRequest {
            request_id: self.head.request_id,
            publication: self.head.publication,
            stream_sequence: self.ack.stream_sequence,
            delivery: self.ack.delivered,
            worker: self.worker.name.clone(),
            job: Some(self.job),
            server: Some(self.server.name.to_string()),
        };
        let end_by = instant(self.head.end_by_ms);
        let verdict = claim::ask(self.worker, self.owner, &request, lease(self.head), end_by).await;
        if let ClaimReply::Proceed { attempt } | ClaimReply::Continue { attempt, .. } = &verdict {
            self.allowance.grant(*attempt);
            let granted = Instant::now();
            self.model_since.get_or_init(|| granted);
            let claim = granted.saturating_duration_since(self.began);
            self.worker.metrics.claim.observe(claim.as_secs_f64());
            let running = &self.worker.running;
            running.replace_others(self.head.request_id, self.reply);
            self.reply.open(*attempt);
        }
        verdict
    }

    async fn call(&self, body: &Bytes) -> Result<Called, Failure> {
        let whole = Continued::from_the_start(self.head.endpoint, body.clone());
        self.call_for(whole, None).await
    }

    async fn call_after(&self, body: &Bytes, have: &Have) -> Result<Called, Failure> {
        let head = self.head;
        // The client is in the middle of its answer, so the next piece may take as long as anywhere in one, with all
        // that is asked of the server for it.
        let silent_by = Instant::now() + self.server.http().idle_timeout();
        let rest = self.server.continued(&head.model, head.endpoint, body, have);
        let rest = timeout_at(silent_by, rest).await.map_err(|_| {
            let fault = Fault::silent("the model server did not say how the answer goes on in time");
            self.server.ended_badly(&fault);
            fault.failure
        })?;
        self.call_for(rest?, Some(silent_by)).await
    }

    async fn call_for(&self, wanted: Continued, silent_by: Option<Instant>) -> Result<Called, Failure> {
        let engine = self.server.kind.as_str();
        let in_flight = InFlight::new(self.worker.metrics.inferences(engine, self.head.model.as_str()));
        let model = &self.head.model;
        let (body, hide_ids, infer_as) = if wanted.endpoint == Endpoint::Infer {
            (wanted.body, false, Some(self.server.infer_as(model)?))
        } else {
            let (body, hide_ids) = self.server.body(model, &wanted.body, self.head.stream)?;
            (body, hide_ids, None)
        };
        let end_by = instant(self.head.end_by_ms);
        let first_by = match silent_by {
            None => instant(self.head.first_byte_by_ms),
            // The client has its first byte.
            Some(_) => end_by,
        };
        let call = Call {
            endpoint: wanted.endpoint,
            stream: self.head.stream,
            body,
            infer_as,
            hide_ids,
            seam: wanted.seam,
            traceparent: trace::child(self.head.traceparent.as_deref()),
            first_by,
            silent_by,
            end_by,
            allowance: self.allowance.clone(),
            spent: self.spent.clone(),
        };
        let mut called = self.server.call(&call).await;
        called.in_flight = Some(in_flight);
        Ok(called)
    }

    /// Sends the answer; the slot is free as soon as the model server is done.
    async fn answer(&self, called: Result<Called, Failure>, slot: Slot) -> Outcome {
        let called = match called {
            Ok(called) => called,
            Err(failure) => return self.failed(failure, 0, None).await,
        };
        let Called {
            answer,
            calls,
            called_at,
            first_at,
            in_flight,
        } = called;
        let times = Times {
            calls,
            called_at,
            first_at,
        };
        if let (Ok(_), Some(since)) = (&answer, self.model_since.get()) {
            let model = first_at.saturating_duration_since(*since);
            self.worker.metrics.model.observe(model.as_secs_f64());
        }
        match answer {
            Err(failure) => {
                drop((in_flight, slot));
                self.failed(failure, calls, None).await
            }
            Ok(Answer::Whole(body, facts)) => {
                drop((in_flight, slot));
                self.server.ended_well();
                self.done(&times, &facts, body).await
            }
            Ok(Answer::Stream(mut stream)) => {
                let model = self.head.model.as_str();
                self.worker
                    .metrics
                    .first_token(model)
                    .observe((first_at - called_at).as_secs_f64());
                let ended = self.forward(&mut stream).await;
                drop((in_flight, slot));
                match ended {
                    Ok(last) => {
                        self.server.ended_well();
                        let facts = stream.facts();
                        // The owner need not wait for the connection to be ready again.
                        tokio::join!(self.done(&times, &facts, last), stream.recycle()).0
                    }
                    Err(fault) => {
                        self.server.ended_badly(&fault);
                        let generated = stream.facts().generated();
                        // The model server stops when its connection closes.
                        drop(stream);
                        self.failed(fault.failure, calls, generated).await
                    }
                }
            }
        }
    }

    /// Hands the stream on until its last chunks, which come back.
    async fn forward(&self, stream: &mut AnswerStream) -> Result<Bytes, Fault> {
        loop {
            match stream.next().await? {
                Step::Chunks(lines) => self
                    .reply
                    .chunks(lines)
                    .await
                    .map_err(|error| unsendable(&error))?,
                Step::End(last) => return Ok(last),
            }
        }
    }
}

fn instant(unix_ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(unix_ms.saturating_sub(clock::unix_ms()))
}
