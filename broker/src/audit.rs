//! Opens and closes one audit record per request of a known caller.
//!
//! An *admitted* record goes to NATS beside the request; the one terminal
//! record goes when the request ends, whichever way. Records travel
//! through [`sink`], so that neither Postgres nor a restart of NATS makes a
//! request wait or loses a record.

pub mod bodies;
pub mod canonical;
pub mod checkpoint;
pub mod export;
pub mod forward;
pub mod keys;
pub mod manifest;
pub mod note;
pub mod prove;
pub mod reader;
pub mod reads;
pub mod redact;
pub mod retention;
pub mod sign_ins;
pub mod sink;
pub mod sweeper;
pub mod tree;
pub mod verify;
pub mod writer;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use duo_contract::audit::{AuditKind, AuditRecord, End, Outcome, What, Who};
use duo_contract::failure::FailureKind;
use duo_contract::name::{FeatureName, ModelName};
use duo_contract::snapshot::Feature;
use uuid::Uuid;

use crate::metrics::{Metrics, Stages};
use crate::request::{ExchangeError, Work};
use bodies::{Bodies, Leaves};
use sign_ins::SignIns;
use sink::{AuditSink, Stored};

/// Opens records. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AuditLog {
    broker: Arc<str>,
    sink: AuditSink,
    metrics: Metrics,
    shared: Arc<Shared>,
}

/// What all clones of a log have together.
#[derive(Debug, Default)]
struct Shared {
    sign_ins: SignIns,
    bodies: Option<Bodies>,
}

impl AuditLog {
    /// A log that writes through `sink` under this broker's name.
    #[must_use]
    pub fn new(broker: &str, sink: AuditSink, metrics: Metrics) -> Self {
        Self {
            broker: broker.into(),
            sink,
            metrics,
            shared: Arc::default(),
        }
    }

    /// The same log, which sees to prompts and answers too.
    #[must_use]
    pub fn with_bodies(self, bodies: Bodies) -> Self {
        let shared = Shared {
            bodies: Some(bodies),
            ..Shared::default()
        };
        Self {
            shared: Arc::new(shared),
            ..self
        }
    }

    /// Opens the record of a request that has just come in on `route`.
    #[must_use]
    pub fn open(
        &self,
        who: Who,
        route: &str,
        correlation_id: Option<String>,
        traceparent: Option<&str>,
    ) -> OpenRecord {
        self.metrics.received.inc();
        let traceparent = duo_contract::trace::child(traceparent);
        let what = What {
            correlation_id,
            trace_id: duo_contract::trace::trace_id(&traceparent).map(str::to_owned),
            ..What::of(route, 0)
        };
        OpenRecord(Arc::new(Inner {
            log: self.clone(),
            request_id: Uuid::now_v7(),
            received: Instant::now(),
            traceparent,
            state: Mutex::new(State {
                who,
                what,
                phase: Phase::Early,
                no_letter: false,
                is_judged: false,
                held: None,
                leaves: None,
                job_over: None,
            }),
        }))
    }

    /// Do more records wait for NATS than a new request should add to?
    #[must_use]
    pub fn is_saturated(&self) -> bool {
        self.sink.is_saturated()
    }
}

/// A request's record from acceptance to its terminal record. Cheap to clone;
/// the last clone's drop closes what nobody closed, as cancelled.
#[derive(Debug, Clone)]
pub struct OpenRecord(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    log: AuditLog,
    request_id: Uuid,
    received: Instant,
    traceparent: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    who: Who,
    what: What,
    phase: Phase,
    /// Does it run a dead letter again?
    no_letter: bool,
    /// Is the answer looked at before its good end stands?
    is_judged: bool,
    /// The good end that waits for that.
    held: Option<End>,
    /// Prompt and answer, where the feature's policy wants something of them.
    leaves: Option<Box<Leaves>>,
    /// How it ends if nobody wants its answer any more because its job is over.
    job_over: Option<(Outcome, &'static str)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not admitted: a refusal or the client's going ends it.
    Early,
    /// Admitted: the dispatch ends it.
    Admitted,
    /// The model server has answered; whether the answer is of use is being looked at.
    Held,
    /// Its terminal record is written.
    Closed,
}

impl OpenRecord {
    /// The request's id, a UUIDv7.
    #[must_use]
    pub fn request_id(&self) -> Uuid {
        self.0.request_id
    }

    /// When the request came in.
    #[must_use]
    pub fn received(&self) -> Instant {
        self.0.received
    }

    /// The request's head was here at `came`, before anybody knew its caller.
    pub(crate) fn note_arrival(&self, came: Instant) {
        let auth = self.0.received.saturating_duration_since(came);
        self.stages().auth.observe(auth.as_secs_f64());
    }

    /// Where the stages of its way are counted.
    pub(crate) fn stages(&self) -> &Stages {
        &self.0.log.metrics.stages
    }

    /// The trace context to hand on.
    #[must_use]
    pub fn traceparent(&self) -> &str {
        &self.0.traceparent
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the record is to say the request was for, as far as it is known.
    pub fn note(&self, feature: Option<&FeatureName>, model: Option<&ModelName>, stream: bool) {
        let mut state = self.state();
        if let Some(feature) = feature {
            state.what.feature = Some(feature.clone());
        }
        if let Some(model) = model {
            state.what.model = Some(model.clone());
        }
        state.what.stream = stream;
    }

    /// Notes the feature's lane and the revision that the request runs under.
    pub fn note_route(&self, feature: &Feature, revision: u64) {
        let mut state = self.state();
        state.what.lane = Some(feature.lane);
        state.what.config_revision = revision;
    }

    /// Notes the job that the request submits, cancels or runs.
    pub fn note_job(&self, job: Uuid) {
        self.state().what.job_id = Some(job);
    }

    /// Notes the template and the size of what goes to the model server.
    pub fn note_work(&self, prompt: Option<&(String, String)>, body_bytes: usize) {
        let mut state = self.state();
        if let Some((id, version)) = prompt {
            state.what.prompt_id = Some(id.clone());
            state.what.prompt_version = Some(version.clone());
        }
        state.what.body_bytes = u64::try_from(body_bytes).unwrap_or(u64::MAX);
    }

    /// Holds on to what the feature's policy wants of the prompt, and from now on of the answer.
    ///
    /// # Errors
    /// More waits for NATS than a new request should add to.
    pub(crate) fn keep_bodies(&self, feature: &Feature, work: &Work) -> Result<(), ExchangeError> {
        let Some(bodies) = &self.0.log.shared.bodies else {
            return Ok(());
        };
        if bodies.is_saturated() {
            return Err(ExchangeError {
                retry_after: Some(Duration::from_secs(1)),
                ..ExchangeError::new(
                    FailureKind::ModelUnavailable,
                    "audit_unavailable",
                    "the audit log cannot take a record just now; try again",
                )
            });
        }
        self.state().leaves = Some(Box::new(Leaves::of(feature, work)));
        Ok(())
    }

    /// A piece of the answer has come.
    pub(crate) fn keep_answer(&self, piece: &Bytes) {
        if let Some(leaves) = &mut self.state().leaves {
            leaves.add(piece);
        }
    }

    /// Notes that the request leaves no dead letter: it runs one again, or is a probe that nobody would repeat.
    pub(crate) fn leave_no_letter(&self) {
        self.state().no_letter = true;
    }

    /// Who asked for what, for a dead letter; `None` where one is replayed, which gets no other.
    pub(crate) fn told(&self) -> Option<(Who, What)> {
        let state = self.state();
        (!state.no_letter).then(|| (state.who.clone(), state.what.clone()))
    }

    /// The answer is looked at before it counts: a good end waits until this record is refused, which makes it a failure,
    /// or let go of, which lets it stand.
    pub(crate) fn judge_answer(&self) {
        self.state().is_judged = true;
    }

    /// The job that the request runs is over: it ends so, and not as if a client had left, unless it has ended.
    pub(crate) fn note_job_over(&self, outcome: Outcome, reason: &'static str) {
        self.state().job_over = Some((outcome, reason));
    }

    /// How it ends because its job is over, if it is.
    pub(crate) fn job_over(&self) -> Option<(Outcome, &'static str)> {
        self.state().job_over
    }

    /// Closes the record as refused, unless the queue has the request or the
    /// record is closed already; as failed, where the model server's answer was of no use.
    pub fn refuse(&self, reason: &str) {
        let mut state = self.state();
        if let (Phase::Held, Some(end)) = (state.phase, state.held.take()) {
            let end = End {
                outcome: Outcome::Failed,
                reason: Some(reason.to_owned()),
                ..end
            };
            return self.0.finish(&mut state, end);
        }
        if state.phase == Phase::Early {
            self.0.log.metrics.refused_early.inc();
            self.0.log.metrics.refusals.with_label_values(&[reason]).inc();
            self.0.end_early(&mut state, Outcome::Refused, Some(reason));
        }
    }

    /// Closes the record of a request that was answered without a model, as completed.
    pub fn answered(&self) {
        let mut state = self.state();
        if state.phase == Phase::Early {
            self.0.log.metrics.answered_early.inc();
            self.0.end_early(&mut state, Outcome::Completed, None);
        }
    }

    /// Writes the *admitted* record; from now on only [`OpenRecord::close`] ends it.
    pub(crate) fn admit(&self) -> Stored {
        let mut state = self.state();
        state.phase = Phase::Admitted;
        let metrics = &self.0.log.metrics;
        metrics.admitted.inc();
        metrics.open.inc();
        if let Some(model) = &state.what.model {
            metrics.inference_began(model.as_str());
        }
        let record = self.0.record(&state, AuditKind::Admitted, None);
        self.0.log.sink.write_awaited(&record)
    }

    /// Writes the terminal record of an admitted request; later calls do nothing.
    pub(crate) fn close(&self, end: End) {
        let mut state = self.state();
        if state.phase != Phase::Admitted {
            return;
        }
        if state.is_judged && end.outcome == Outcome::Completed {
            state.phase = Phase::Held;
            state.held = Some(end);
            return;
        }
        self.0.finish(&mut state, end);
    }
}

impl Inner {
    /// Writes the terminal record of an admitted request.
    fn finish(&self, state: &mut State, end: End) {
        state.phase = Phase::Closed;
        let metrics = &self.log.metrics;
        metrics.open.dec();
        metrics.ended.with_label_values(&[end.outcome.as_str()]).inc();
        if let (Outcome::Refused, Some(reason)) = (end.outcome, &end.reason) {
            metrics.refusals.with_label_values(&[reason]).inc();
        }
        metrics.inference_ended(&state.what, &end);
        tracing::info!(
            request_id = %self.request_id,
            feature = state.what.feature.as_ref().map(FeatureName::as_str),
            model = state.what.model.as_ref().map(ModelName::as_str),
            outcome = end.outcome.as_str(),
            reason = end.reason.as_deref(),
            attempts = end.attempts,
            duration_us = end.duration_us,
            "request ended"
        );
        let record = self.record(state, AuditKind::Ended, Some(end));
        match (state.leaves.take(), &self.log.shared.bodies) {
            (Some(leaves), Some(bodies)) => bodies.keep(leaves, record, &self.log.sink),
            _ => self.log.sink.write(&record),
        }
    }

    fn record(&self, state: &State, kind: AuditKind, end: Option<End>) -> AuditRecord {
        let now = duo_process::clock::now().unix_timestamp_nanos() / 1000;
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        // A record may be written some time after its end.
        let late = end.as_ref().map_or(0, |end| {
            let open = i64::try_from(self.received.elapsed().as_micros()).unwrap_or(i64::MAX);
            open.saturating_sub(end.duration_us).max(0)
        });
        AuditRecord {
            kind,
            request_id: self.request_id,
            occurred_at_us: now.saturating_sub(late),
            broker: self.log.broker.to_string(),
            who: state.who.clone(),
            what: state.what.clone(),
            end,
            details: None,
        }
    }

    fn end_early(&self, state: &mut State, outcome: Outcome, reason: Option<&str>) {
        let refused = state.phase == Phase::Early && outcome != Outcome::Completed;
        state.phase = Phase::Closed;
        let end = End {
            outcome,
            reason: reason.map(str::to_owned),
            worker: None,
            attempts: 0,
            queue_wait_us: None,
            first_byte_us: None,
            duration_us: i64::try_from(self.received.elapsed().as_micros()).unwrap_or(i64::MAX),
            input_tokens: None,
            output_tokens: None,
            prompt_sha256: None,
            answer_sha256: None,
        };
        let record = self.record(state, AuditKind::Ended, Some(end));
        if refused {
            self.log.sink.write_refusal(&record);
        } else {
            self.log.sink.write(&record);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut state = std::mem::replace(
            self.state.get_mut().unwrap_or_else(PoisonError::into_inner),
            State {
                who: Who::default(),
                what: What::of("", 0),
                phase: Phase::Closed,
                no_letter: false,
                is_judged: false,
                held: None,
                leaves: None,
                job_over: None,
            },
        );
        match state.phase {
            Phase::Closed => {}
            // Nobody found fault with it.
            Phase::Held => {
                if let Some(end) = state.held.take() {
                    self.finish(&mut state, end);
                }
            }
            Phase::Early => {
                self.log.metrics.refused_early.inc();
                let (outcome, reason) = state.job_over.unwrap_or((Outcome::Cancelled, "client_gone"));
                self.end_early(&mut state, outcome, Some(reason));
            }
            Phase::Admitted => {
                // Every way out of the dispatch closes the record; this is the net below them.
                self.log.metrics.open.dec();
                self.log
                    .metrics
                    .ended
                    .with_label_values(&[Outcome::Failed.as_str()])
                    .inc();
                self.end_early(&mut state, Outcome::Failed, Some("internal"));
            }
        }
    }
}
