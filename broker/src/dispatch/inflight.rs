//! One live request as its owner knows it: which attempt may speak, what has
//! arrived of its answer, and what the client has not read yet.
//!
//! Everything here is plain state behind one lock, without I/O, so that every
//! turn (a claim, a frame, a cancel, a deadline) is decided in one place.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use duo_contract::audit::{End, Outcome};
use duo_contract::cancel::CancelReason;
use duo_contract::claim::{ClaimReply, ClaimRequest};
use duo_contract::failure::{Failure, FailureKind, RetryRule};
use duo_contract::frame::{FailedAttempt, FrameAnswer, FrameKind, ReplyFrame, Summary};
use duo_contract::name::Lane;
use tokio::sync::Notify;
use uuid::Uuid;

use super::continuation::Received;
use crate::admission::Place;
use crate::audit::OpenRecord;
use crate::exchange::{ExchangeError, ReplyEvent, RoutedRequest, Work};

/// Bytes of an answer that may wait for a slow client.
pub const CLIENT_BUFFER: usize = 1 << 20;
/// Frames that may wait for a missing one before it.
const HELD_FRAMES: usize = 4096;
/// Delay after which a handed-back delivery may come to another worker.
const HAND_BACK_DELAY: Duration = Duration::from_millis(50);

/// A request under way.
#[derive(Debug)]
pub struct InFlight {
    /// Its id.
    pub request_id: Uuid,
    /// Its lane.
    pub lane: Lane,
    /// What is to be done, for whom.
    pub task: Task,
    /// Accepted at.
    pub accepted: Instant,
    /// Nothing sent by then: expired.
    pub first_byte_by: Instant,
    /// Not over by then: cut off.
    pub end_by: Instant,
    /// Wakes the client's side.
    pub wake: Notify,
    rules: Rules,
    state: Mutex<State>,
}

/// What a request is to do.
#[derive(Debug)]
pub struct Task {
    /// Its audit record.
    pub record: OpenRecord,
    /// Feature, model and revision.
    pub routed: RoutedRequest,
    /// What goes to the model server; kept should it have to be published again.
    pub work: Work,
}

/// The settings a request lives by.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// How long a worker may be silent.
    pub lease: Duration,
    /// Deliveries that may proceed.
    pub max_attempts: u32,
}

/// What changes while a request is under way.
#[derive(Debug)]
pub struct State {
    publication: u32,
    /// Where the current publication is in the stream, once NATS has said so.
    pub sequence: Option<u64>,
    attempt: Attempt,
    claimed_delivery: Option<(u32, u64, u64)>,
    first_claim: Option<Instant>,
    first_frame: Option<Instant>,
    heard: Instant,
    next_frame: u32,
    held: BTreeMap<u32, FrameKind>,
    /// What the client has or will have got.
    received: Received,
    waiting: VecDeque<ReplyEvent>,
    waiting_bytes: usize,
    end: Option<Ending>,
    last_failure: Option<FailedAttempt>,
    /// The answer to the current attempt's last frame, should the worker ask again.
    last_answer: Option<FrameAnswer>,
    model_tokens: Option<u64>,
    place: Option<Place>,
}

#[derive(Debug, Default)]
struct Attempt {
    /// The fencing token; 0 before the first claim.
    number: u32,
    worker: Option<String>,
    alive: bool,
}

/// How a request ended.
#[derive(Debug, Clone)]
enum Ending {
    Good,
    Bad(ExchangeError),
}

/// What a turn asks its caller to do besides.
#[derive(Debug, Default, PartialEq)]
pub struct Todo {
    /// Tell this worker to stop.
    pub cancel: Option<(String, CancelReason)>,
    /// Delete this message of the stream.
    pub delete: Option<u64>,
    /// The request is over: forget it.
    pub forget: bool,
    /// Ask this worker for frames again: attempt, from, until.
    pub resend: Option<(String, u32, u32, u32)>,
}

/// Why an owner ends a request before its answer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The client left.
    ClientGone,
    /// The client reads too slowly.
    SlowReader,
    /// A newer request took its place.
    Superseded,
    /// No first byte in time.
    Expired,
    /// Not over in time.
    Overdue,
}

impl Stop {
    fn order(self) -> CancelReason {
        match self {
            Stop::ClientGone => CancelReason::ClientGone,
            Stop::SlowReader => CancelReason::SlowReader,
            Stop::Superseded => CancelReason::Superseded,
            Stop::Expired | Stop::Overdue => CancelReason::DeadlineExceeded,
        }
    }

    fn outcome(self) -> (Outcome, &'static str) {
        match self {
            Stop::ClientGone => (Outcome::Cancelled, "client_gone"),
            Stop::SlowReader => (Outcome::Cancelled, "slow_reader"),
            Stop::Superseded => (Outcome::Cancelled, "superseded"),
            Stop::Expired => (Outcome::Expired, "first_byte_deadline"),
            Stop::Overdue => (Outcome::Expired, "end_deadline"),
        }
    }

    fn error(self) -> ExchangeError {
        match self {
            Stop::ClientGone => ExchangeError::new(FailureKind::Cancelled, "client_gone", "the client left"),
            Stop::SlowReader => ExchangeError::new(
                FailureKind::Cancelled,
                "slow_reader",
                "the answer was not read fast enough",
            ),
            Stop::Superseded => ExchangeError::new(
                FailureKind::Cancelled,
                "superseded",
                "a newer request for the same file took this one's place",
            ),
            Stop::Expired | Stop::Overdue => ExchangeError::new(
                FailureKind::DeadlineExceeded,
                self.outcome().1,
                "the request's time ran out; try again later",
            ),
        }
    }
}

impl InFlight {
    /// A request about to be published for the first time.
    #[must_use]
    pub fn new(task: Task, rules: Rules, place: Place, accepted: Instant) -> Self {
        let feature = &task.routed.feature;
        Self {
            request_id: task.record.request_id(),
            lane: feature.lane,
            accepted,
            first_byte_by: accepted + Duration::from_millis(feature.first_byte_within_ms),
            end_by: accepted + Duration::from_millis(feature.end_within_ms),
            task,
            wake: Notify::new(),
            rules,
            state: Mutex::new(State {
                publication: 1,
                sequence: None,
                attempt: Attempt::default(),
                claimed_delivery: None,
                first_claim: None,
                first_frame: None,
                heard: accepted,
                next_frame: 0,
                held: BTreeMap::new(),
                received: Received::default(),
                waiting: VecDeque::new(),
                waiting_bytes: 0,
                end: None,
                last_failure: None,
                last_answer: None,
                model_tokens: None,
                place: Some(place),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// NATS has stored publication `publication` at `sequence`.
    pub fn stored(&self, publication: u32, sequence: u64) {
        let mut state = self.state();
        if state.publication == publication {
            state.sequence = Some(sequence);
        }
    }

    /// Is no worker on it?
    #[must_use]
    pub fn is_queued(&self) -> bool {
        !self.state().attempt.alive
    }

    /// Has the first claim come, and how long after acceptance?
    #[must_use]
    pub fn queue_wait(&self) -> Option<Duration> {
        self.state().first_claim.map(|at| at - self.accepted)
    }

    /// Answers a worker's claim for a delivery.
    #[must_use]
    pub fn claim(&self, claim: &ClaimRequest, now: Instant) -> (ClaimReply, Todo) {
        let mut state = self.state();
        let delivery = (claim.publication, claim.stream_sequence, claim.delivery);
        if state.end.is_some() || claim.publication < state.publication {
            return (ClaimReply::Gone, Todo::default());
        }
        state.sequence = Some(claim.stream_sequence);
        if state.claimed_delivery == Some(delivery) && state.attempt.alive {
            return (state.permission(), Todo::default());
        }
        let silent = now.saturating_duration_since(state.heard);
        if state.attempt.alive && silent < self.rules.lease {
            let left = self.rules.lease - silent;
            let delay_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
            return (ClaimReply::Busy { delay_ms }, Todo::default());
        }
        let replaced = state
            .attempt
            .alive
            .then(|| state.attempt.worker.clone())
            .flatten()
            // An order names no attempt: a worker that started again under its name would stop the new one.
            .filter(|worker| *worker != claim.worker);
        state.attempt.alive = false;
        if let Some(error) = self.no_further_attempt(&state, now) {
            let todo = self.end_badly(&mut state, error, now);
            drop(state);
            self.wake.notify_one();
            return (ClaimReply::Gone, todo);
        }
        state.attempt = Attempt {
            number: state.attempt.number + 1,
            worker: Some(claim.worker.clone()),
            alive: true,
        };
        state.claimed_delivery = Some(delivery);
        state.last_answer = None;
        state.first_claim.get_or_insert(now);
        if let Some(place) = &mut state.place {
            place.claimed();
        }
        state.heard = now;
        state.next_frame = 0;
        state.held.clear();
        state.received.begin_attempt();
        let cancel = replaced.map(|worker| (worker, CancelReason::Replaced));
        (
            state.permission(),
            Todo {
                cancel,
                ..Todo::default()
            },
        )
    }

    /// Why this request may not be tried again, if so.
    fn no_further_attempt(&self, state: &State, now: Instant) -> Option<ExchangeError> {
        if state.received.is_empty() && now >= self.first_byte_by {
            return Some(state.why(Stop::Expired));
        }
        if state.attempt.number >= self.rules.max_attempts {
            let error = match &state.last_failure {
                Some(failed) => failed.failure.clone().into(),
                None => ExchangeError::new(
                    FailureKind::ModelServerFault,
                    "workers_lost",
                    "every worker that took the request was lost",
                ),
            };
            return Some(error);
        }
        let goes_on = self.task.work.stream && state.received.can_continue();
        (!state.received.is_empty() && !goes_on).then(cut_off)
    }

    /// Takes a frame. The answer is for last frames, which are requests.
    #[must_use]
    pub fn frame(&self, frame: ReplyFrame, now: Instant) -> (FrameAnswer, Todo) {
        let mut state = self.state();
        if frame.attempt != state.attempt.number {
            return (FrameAnswer::Stale, Todo::default());
        }
        if !state.attempt.alive {
            let answer = state.last_answer.clone().unwrap_or(FrameAnswer::Stale);
            return (answer, Todo::default());
        }
        state.heard = now;
        if frame.kind == FrameKind::Heartbeat || state.end.is_some() {
            return (FrameAnswer::Confirmed, Todo::default());
        }
        if frame.number < state.next_frame {
            return (FrameAnswer::Confirmed, Todo::default());
        }
        if frame.number > state.next_frame {
            return self.hold(&mut state, frame, now);
        }
        let mut kind = Some(frame.kind);
        let mut answer = (FrameAnswer::Confirmed, Todo::default());
        while let Some(next) = kind {
            state.next_frame += 1;
            answer = self.apply(&mut state, next, now);
            if state.end.is_some() || !state.attempt.alive {
                break;
            }
            let number = state.next_frame;
            kind = state.held.remove(&number);
        }
        if !state.attempt.alive {
            state.last_answer = Some(answer.0.clone());
        }
        self.wake.notify_one();
        answer
    }

    /// Keeps a frame that came before one that is missing, and asks for that one.
    fn hold(&self, state: &mut State, frame: ReplyFrame, now: Instant) -> (FrameAnswer, Todo) {
        let missing = FrameAnswer::Missing {
            from: state.next_frame,
            until: frame.number,
        };
        if frame.is_last() {
            // The worker sends the missing ones and then this one again.
            return (missing, Todo::default());
        }
        if state.held.len() >= HELD_FRAMES {
            return (FrameAnswer::Stale, self.end_badly(state, cut_off(), now));
        }
        let first_gap = state.held.is_empty();
        let (number, attempt) = (frame.number, frame.attempt);
        state.held.insert(number, frame.kind);
        let resend = first_gap
            .then(|| state.attempt.worker.clone())
            .flatten()
            .map(|worker| (worker, attempt, state.next_frame, number));
        (
            missing,
            Todo {
                resend,
                ..Todo::default()
            },
        )
    }

    fn apply(&self, state: &mut State, kind: FrameKind, now: Instant) -> (FrameAnswer, Todo) {
        match kind {
            FrameKind::Heartbeat => (FrameAnswer::Confirmed, Todo::default()),
            FrameKind::Chunk(chunks) => (FrameAnswer::Confirmed, self.chunks(state, chunks, now)),
            FrameKind::Done { summary, body } => {
                let todo = self.done(state, summary, body, now);
                (FrameAnswer::Confirmed, todo)
            }
            FrameKind::Failed(failed) => self.failed(state, failed, now),
        }
    }

    fn chunks(&self, state: &mut State, chunks: Bytes, now: Instant) -> Todo {
        let chunks = state.received.take(chunks);
        if chunks.is_empty() {
            return Todo::default();
        }
        state.first_frame.get_or_insert(now);
        state.waiting_bytes += chunks.len();
        if state.waiting_bytes > CLIENT_BUFFER {
            return self.stop_locked(state, Stop::SlowReader, now);
        }
        state.waiting.push_back(ReplyEvent::Chunks(chunks));
        Todo::default()
    }

    fn done(&self, state: &mut State, mut summary: Summary, body: Bytes, now: Instant) -> Todo {
        state.received.sum_usage(&mut summary);
        let body = if self.task.work.stream {
            let todo = if body.is_empty() {
                Todo::default()
            } else {
                self.chunks(state, body, now)
            };
            if state.end.is_some() {
                return todo;
            }
            Bytes::new()
        } else {
            body
        };
        state.first_frame.get_or_insert(now);
        state.attempt.alive = false;
        if let Some(place) = state.place.take() {
            place.served(now.saturating_duration_since(state.first_claim.unwrap_or(now)));
        }
        let end = self.audit_end(state, Outcome::Completed, None, now, Some(&summary));
        state.waiting.push_back(ReplyEvent::Done { summary, body });
        state.end = Some(Ending::Good);
        self.task.record.close(end);
        Todo {
            forget: true,
            ..Todo::default()
        }
    }

    fn failed(&self, state: &mut State, failed: FailedAttempt, now: Instant) -> (FrameAnswer, Todo) {
        state.attempt.alive = false;
        state.model_tokens = failed.output_tokens;
        let error = ExchangeError::from(failed.failure.clone());
        let again = failed.failure.kind.retry() == RetryRule::HereThenElsewhere;
        state.last_failure = Some(failed);
        if again && self.no_further_attempt(state, now).is_none() {
            let delay_ms = u64::try_from(HAND_BACK_DELAY.as_millis()).unwrap_or(u64::MAX);
            return (FrameAnswer::HandBack { delay_ms }, Todo::default());
        }
        let mut todo = self.end_badly(state, error, now);
        // The worker removes the message when it reads `Confirmed`.
        todo.delete = None;
        (FrameAnswer::Confirmed, todo)
    }

    /// The next piece for the client, or the error that ended it; `None` while
    /// there is nothing yet, `Some(None)` after the end.
    pub(crate) fn poll(&self) -> Option<Option<Result<ReplyEvent, ExchangeError>>> {
        let mut state = self.state();
        if let Some(event) = state.waiting.pop_front() {
            if let ReplyEvent::Chunks(chunks) = &event {
                state.waiting_bytes -= chunks.len();
            }
            return Some(Some(Ok(event)));
        }
        match state.end.take() {
            None => None,
            Some(Ending::Good) => {
                state.end = Some(Ending::Good);
                Some(None)
            }
            Some(Ending::Bad(error)) => {
                state.end = Some(Ending::Good);
                Some(Some(Err(error)))
            }
        }
    }

    /// Ends the request before its answer does; does nothing once it has ended.
    #[must_use]
    pub fn stop(&self, stop: Stop, now: Instant) -> Todo {
        let mut state = self.state();
        if state.end.is_some() {
            return Todo::default();
        }
        let todo = self.stop_locked(&mut state, stop, now);
        drop(state);
        self.wake.notify_one();
        todo
    }

    /// Ends the request with an error that no worker reported.
    #[must_use]
    pub fn fail(&self, error: ExchangeError, now: Instant) -> Todo {
        let mut state = self.state();
        if state.end.is_some() {
            return Todo::default();
        }
        let todo = self.end_badly(&mut state, error, now);
        drop(state);
        self.wake.notify_one();
        todo
    }

    /// Is its time over?
    #[must_use]
    pub fn overdue(&self, now: Instant) -> Option<Stop> {
        let state = self.state();
        if state.end.is_some() {
            return None;
        }
        if now >= self.end_by {
            return Some(Stop::Overdue);
        }
        let nothing_yet = state.first_frame.is_none();
        (nothing_yet && now >= self.first_byte_by).then_some(Stop::Expired)
    }

    /// Has its worker been silent so long that its message may be lost? The
    /// sequence to look for in the stream.
    #[must_use]
    pub fn lost_suspect(&self, now: Instant) -> Option<u64> {
        let state = self.state();
        let silent = now.saturating_duration_since(state.heard);
        let patience = self.rules.lease + self.rules.lease / 2;
        (state.end.is_none() && silent > patience)
            .then_some(state.sequence)
            .flatten()
    }

    /// The message at `sequence` is gone although nobody finished it: the
    /// number of the next publication, unless something has happened since.
    #[must_use]
    pub fn next_publication(&self, sequence: u64, now: Instant) -> Option<u32> {
        let mut state = self.state();
        let silent = now.saturating_duration_since(state.heard) > self.rules.lease;
        if state.end.is_some() || state.sequence != Some(sequence) || !silent {
            return None;
        }
        state.publication += 1;
        state.sequence = None;
        state.attempt.alive = false;
        state.heard = now;
        Some(state.publication)
    }

    fn stop_locked(&self, state: &mut State, stop: Stop, now: Instant) -> Todo {
        let (outcome, reason) = stop.outcome();
        let end = self.audit_end(state, outcome, Some(reason), now, None);
        let error = state.why(stop);
        self.finish(state, Ending::Bad(error), end, Some(stop.order()))
    }

    fn end_badly(&self, state: &mut State, error: ExchangeError, now: Instant) -> Todo {
        let outcome = match error.kind {
            FailureKind::DeadlineExceeded => Outcome::Expired,
            FailureKind::Cancelled => Outcome::Cancelled,
            FailureKind::Overloaded | FailureKind::Unsupported | FailureKind::FeatureInactive
                if state.attempt.number == 0 =>
            {
                Outcome::Refused
            }
            _ => Outcome::Failed,
        };
        let end = self.audit_end(state, outcome, Some(&error.reason), now, None);
        self.finish(
            state,
            Ending::Bad(error),
            end,
            Some(CancelReason::DeadlineExceeded),
        )
    }

    fn finish(&self, state: &mut State, ending: Ending, end: End, order: Option<CancelReason>) -> Todo {
        let worker = state
            .attempt
            .alive
            .then(|| state.attempt.worker.clone())
            .flatten();
        state.end = Some(ending);
        state.held.clear();
        state.place = None;
        self.task.record.close(end);
        Todo {
            cancel: worker.zip(order),
            delete: state.sequence,
            forget: true,
            resend: None,
        }
    }

    fn audit_end(
        &self,
        state: &State,
        outcome: Outcome,
        reason: Option<&str>,
        now: Instant,
        summary: Option<&Summary>,
    ) -> End {
        let since = |at: Instant| {
            let micros = at
                .saturating_duration_since(self.task.record.received())
                .as_micros();
            i64::try_from(micros).unwrap_or(i64::MAX)
        };
        let tokens = |count: Option<u64>| count.and_then(|count| i64::try_from(count).ok());
        let sent = state.received.chunks();
        let spent = summary
            .and_then(|s| s.output_tokens)
            .or(state.model_tokens)
            .or((sent > 0).then_some(sent));
        End {
            outcome,
            reason: reason.map(str::to_owned),
            worker: state.attempt.worker.clone(),
            attempts: state.attempt.number,
            queue_wait_us: state.first_claim.map(since),
            first_byte_us: state.first_frame.map(since),
            duration_us: since(now),
            input_tokens: tokens(summary.and_then(|s| s.input_tokens)),
            output_tokens: tokens(spent),
        }
    }
}

impl State {
    /// What the client is told. One whose time ran out while it waited for
    /// another attempt hears how the last one failed: that is the reason.
    fn why(&self, stop: Stop) -> ExchangeError {
        match (&self.last_failure, stop) {
            (Some(failed), Stop::Expired) if !self.attempt.alive => failed.failure.clone().into(),
            _ => stop.error(),
        }
    }

    fn permission(&self) -> ClaimReply {
        let attempt = self.attempt.number;
        match self.received.have() {
            None => ClaimReply::Proceed { attempt },
            Some(have) => ClaimReply::Continue { attempt, have },
        }
    }
}

/// A failure that the client can see: part of the answer has been sent.
fn cut_off() -> ExchangeError {
    Failure::new(FailureKind::ModelServerFault, "the answer was cut off").into()
}

#[cfg(test)]
mod tests;
