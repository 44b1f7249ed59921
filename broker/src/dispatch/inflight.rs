//! One live request as its owner knows it: which attempt may speak, what has
//! arrived of its answer, and what the client has not read yet.
//!
//! Everything here is plain state behind one lock, without I/O, so that every
//! turn (a claim, a frame, a cancel, a deadline) is decided in one place:
//! claims here, what arrives in [`frames`], ends in [`endings`], what is tried
//! again in [`retries`], what attempts met in [`story`].

mod endings;
mod frames;
mod retries;
mod story;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use duo_contract::audit::End;
use duo_contract::cancel::CancelReason;
use duo_contract::claim::{ClaimReply, ClaimRequest};
use duo_contract::dead::{AttemptEnd, DeadLetter};
use duo_contract::failure::FailureKind;
use duo_contract::frame::{FailedAttempt, FrameAnswer};
use duo_contract::name::Lane;
use tokio::sync::Notify;
use uuid::Uuid;

use super::continuation::Received;
use crate::admission::Place;
use crate::audit::OpenRecord;
use crate::metrics::Stages;
use crate::request::{ExchangeError, ReplyEvent, RoutedRequest, Work};
use endings::{Ending, Unwritten, cut_off};
use frames::Held;
use retries::Failures;
use story::Story;

pub use endings::Stop;

/// Bytes of an answer that may wait for a slow client.
pub const CLIENT_BUFFER: usize = 1 << 20;

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
    /// Had a place in line at.
    placed: Instant,
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
    /// The claim that began the attempt: its asker gets the same answer again.
    claimed_by: Option<ClaimRequest>,
    /// When NATS had stored it, or a claim showed that it has.
    stored: Option<Instant>,
    first_claim: Option<Instant>,
    first_frame: Option<Instant>,
    /// When the first piece of the answer came, until the client's side has it.
    untaken: Option<Instant>,
    heard: Instant,
    next_frame: u32,
    held: Held,
    /// The gap that the worker was last asked to fill, and when.
    asked: Option<(u32, Instant)>,
    /// What the client has or will have got.
    received: Received,
    waiting: VecDeque<ReplyEvent>,
    waiting_bytes: usize,
    end: Option<Ending>,
    /// NATS has acknowledged request and *admitted* record.
    admitted: bool,
    /// The record of a good end that came before that.
    early_end: Option<End>,
    /// Its record, while that waits for the last word of the worker that was told to stop.
    unwritten: Option<Unwritten>,
    /// It ended before NATS had said where its message is.
    left_behind: bool,
    /// When its message was last looked for.
    looked: Option<Instant>,
    last_failure: Option<FailedAttempt>,
    failures: Failures,
    /// The answer to the current attempt's last frame, should the worker ask again.
    last_answer: Option<FrameAnswer>,
    model_tokens: Option<u64>,
    place: Option<Place>,
    story: Story,
}

#[derive(Debug, Default)]
struct Attempt {
    /// The fencing token; 0 before the first claim.
    number: u32,
    /// Attempts up to this one that a leaving worker gave up, which count for nothing.
    given_up: u32,
    worker: Option<String>,
    alive: bool,
}

/// What a turn asks its caller to do besides.
#[derive(Debug, Default, PartialEq)]
pub struct Todo {
    /// Tell this worker to stop.
    pub cancel: Option<(String, CancelReason)>,
    /// Delete this message of the stream.
    pub delete: Option<u64>,
    /// The request is over and its record is written: forget it.
    pub forget: bool,
    /// Ask this worker for frames again: attempt, from, until.
    pub resend: Option<(String, u32, u32, u32)>,
    /// Keep this: the request was given up.
    pub dead: Option<Box<DeadLetter>>,
}

impl InFlight {
    /// A request about to be published for the first time, `accepted` a while ago and `placed` in line now.
    #[must_use]
    pub fn new(task: Task, rules: Rules, place: Place, accepted: Instant, placed: Instant) -> Self {
        let admit = placed.saturating_duration_since(accepted);
        task.record.stages().admit.observe(admit.as_secs_f64());
        let feature = &task.routed.feature;
        Self {
            request_id: task.record.request_id(),
            lane: feature.lane,
            accepted,
            placed,
            first_byte_by: accepted + Duration::from_millis(feature.first_byte_within_ms),
            end_by: accepted + Duration::from_millis(feature.end_within_ms),
            task,
            wake: Notify::new(),
            rules,
            state: Mutex::new(State {
                publication: 1,
                sequence: None,
                attempt: Attempt::default(),
                claimed_by: None,
                stored: None,
                first_claim: None,
                first_frame: None,
                untaken: None,
                heard: accepted,
                next_frame: 0,
                held: Held::default(),
                asked: None,
                received: Received::default(),
                waiting: VecDeque::new(),
                waiting_bytes: 0,
                end: None,
                admitted: false,
                early_end: None,
                unwritten: None,
                left_behind: false,
                looked: None,
                last_failure: None,
                failures: Failures::default(),
                last_answer: None,
                model_tokens: None,
                place: Some(place),
                story: Story::default(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// NATS has stored publication `publication` at `sequence`. Where the
    /// request has ended in the meantime, the message is to be deleted.
    #[must_use]
    pub fn stored(&self, publication: u32, sequence: u64, now: Instant) -> Todo {
        let mut state = self.state();
        if state.publication == publication {
            self.note_stored(&mut state, now);
            state.sequence = Some(sequence);
        }
        if let Some(place) = &mut state.place {
            place.stored();
        }
        let left_behind = state.publication == publication && std::mem::take(&mut state.left_behind);
        Todo {
            delete: left_behind.then_some(sequence),
            ..Todo::default()
        }
    }

    /// NATS has it at the latest now; says since when.
    fn note_stored(&self, state: &mut State, now: Instant) -> Instant {
        *state.stored.get_or_insert_with(|| {
            let publish = now.saturating_duration_since(self.placed);
            self.task.record.stages().publish.observe(publish.as_secs_f64());
            now
        })
    }

    /// Where its message is, as far as is known, and whether no worker is on it.
    #[must_use]
    pub fn place_in_stream(&self) -> Option<(u64, bool)> {
        let state = self.state();
        let sequence = state.end.is_none().then_some(state.sequence).flatten();
        sequence.map(|sequence| (sequence, !state.attempt.alive))
    }

    /// The id under which NATS knows the current publication.
    #[must_use]
    pub fn message_id(&self) -> String {
        message_id(self.request_id, self.state().publication)
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
        if state.end.is_some() || claim.publication < state.publication {
            return (ClaimReply::Gone, Todo::default());
        }
        state.sequence = Some(claim.stream_sequence);
        if state.attempt.alive && state.claimed_by.as_ref() == Some(claim) {
            return (state.permission(), Todo::default());
        }
        let silent = now.saturating_duration_since(state.heard);
        if state.attempt.alive && silent < self.rules.lease {
            let left = self.rules.lease - silent;
            let delay_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
            return (ClaimReply::Busy { delay_ms }, Todo::default());
        }
        let replaced = state.alive_worker();
        if std::mem::take(&mut state.attempt.alive) {
            let frames = state.next_frame;
            state.story.ends(AttemptEnd::Lost, frames, now);
        }
        state.lose_slot();
        if let Some(error) = self.no_further_attempt(&state, now) {
            let mut todo = self.end_badly(&mut state, error, now);
            // Silent, but perhaps at work all the same.
            todo.cancel = replaced.map(|worker| (worker, CancelReason::DeadlineExceeded));
            return (ClaimReply::Gone, todo);
        }
        // A worker that gets its own request again stops the old attempt by
        // itself; an order names the request and would stop both.
        let replaced = replaced.filter(|worker| *worker != claim.worker);
        state.attempt = Attempt {
            number: state.attempt.number + 1,
            given_up: state.attempt.given_up,
            worker: Some(claim.worker.clone()),
            alive: true,
        };
        let number = state.attempt.number;
        state.story.begins(number, claim, now);
        state.claimed_by = Some(claim.clone());
        state.last_answer = None;
        if state.first_claim.is_none() {
            let wait = now.saturating_duration_since(self.note_stored(&mut state, now));
            self.task.record.stages().wait.observe(wait.as_secs_f64());
            state.first_claim = Some(now);
        }
        if let Some(place) = &mut state.place {
            place.claimed(now);
        }
        state.heard = now;
        state.next_frame = 0;
        state.held.clear();
        state.asked = None;
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
        if now >= self.end_by {
            return Some(state.why(Stop::Overdue));
        }
        if state.received.is_empty() && now >= self.first_byte_by {
            return Some(state.why(Stop::Expired));
        }
        if state.attempt.number - state.attempt.given_up >= self.rules.max_attempts {
            let lost = || {
                ExchangeError::new(
                    FailureKind::ModelServerFault,
                    "workers_lost",
                    "every worker that took the request was lost",
                )
            };
            return Some(state.last_error().unwrap_or_else(lost));
        }
        let goes_on = self.task.work.stream && state.received.can_continue();
        (!state.received.is_empty() && !goes_on).then(cut_off)
    }

    /// The next piece for the client, or the error that ended it; `None` while
    /// there is nothing yet, `Some(None)` after the end.
    pub(crate) fn poll(&self) -> Option<Option<Result<ReplyEvent, ExchangeError>>> {
        let mut state = self.state();
        if let Some(event) = state.waiting.pop_front() {
            if let Some(came) = state.untaken.take() {
                let reply = came.elapsed().as_secs_f64();
                self.task.record.stages().reply.observe(reply);
            }
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

    /// Has nothing been heard for so long that its message may be lost? The
    /// sequence to look for in the stream; looking once per such span will do.
    #[must_use]
    pub fn lost_suspect(&self, now: Instant) -> Option<u64> {
        let mut state = self.state();
        let patience = self.rules.lease + self.rules.lease / 2;
        let long_ago = |at: Instant| now.saturating_duration_since(at) > patience;
        if state.end.is_some() || !long_ago(state.heard) || !state.looked.is_none_or(long_ago) {
            return None;
        }
        state.looked = Some(now);
        state.sequence
    }

    /// The message at `sequence` is gone although nobody finished it: the
    /// number of the next publication, unless something has happened since.
    #[must_use]
    pub fn next_publication(&self, sequence: u64, now: Instant) -> Option<(u32, Todo)> {
        let mut state = self.state();
        let silent = now.saturating_duration_since(state.heard) > self.rules.lease;
        let worked_on = state.attempt.alive && !silent;
        if state.end.is_some() || state.sequence != Some(sequence) || worked_on {
            return None;
        }
        let cancel = state
            .alive_worker()
            .map(|worker| (worker, CancelReason::Replaced));
        state.publication += 1;
        state.sequence = None;
        if std::mem::take(&mut state.attempt.alive) {
            let frames = state.next_frame;
            state.story.ends(AttemptEnd::Lost, frames, now);
        }
        state.lose_slot();
        state.heard = now;
        let todo = Todo {
            cancel,
            ..Todo::default()
        };
        Some((state.publication, todo))
    }

    /// The next publication could not be stored: its predecessor's `sequence`
    /// is looked for again, so that it is tried again.
    pub fn not_stored(&self, publication: u32, sequence: u64) {
        let mut state = self.state();
        if state.publication == publication && state.sequence.is_none() {
            state.sequence = Some(sequence);
        }
    }
}

/// The id under which NATS recognises a publication that is sent twice.
pub(super) fn message_id(request: Uuid, publication: u32) -> String {
    format!("{}-{publication}", request.simple())
}

impl State {
    /// What the client is told. One whose time ran out while it waited for
    /// another attempt hears how the last one failed: that is the reason.
    pub(super) fn why(&self, stop: Stop) -> ExchangeError {
        match (self.last_error(), stop) {
            (Some(_), Stop::NoTaker) if !self.received.is_empty() => cut_off(),
            (Some(error), Stop::Expired | Stop::NoTaker) if !self.attempt.alive => error,
            _ => stop.error(),
        }
    }

    /// The worker that had the request has it no more since it was last heard.
    fn lose_slot(&mut self) {
        if let Some(place) = &mut self.place {
            place.released(self.heard);
        }
    }

    /// Something of the answer is there; for the first time, that is noted.
    fn first_byte(&mut self, stages: &Stages, now: Instant) {
        if self.first_frame.is_none() {
            self.first_frame = Some(now);
            self.untaken = Some(now);
            if let Some(claimed) = self.first_claim {
                let work = now.saturating_duration_since(claimed);
                stages.work.observe(work.as_secs_f64());
            }
            if let Some(place) = self.place.as_ref().filter(|_| self.attempt.number == 1) {
                place.first_byte(now);
            }
        }
    }

    fn alive_worker(&self) -> Option<String> {
        self.attempt.alive.then(|| self.attempt.worker.clone()).flatten()
    }

    fn permission(&self) -> ClaimReply {
        let attempt = self.attempt.number;
        match self.received.have() {
            None => ClaimReply::Proceed { attempt },
            Some(have) => ClaimReply::Continue { attempt, have },
        }
    }
}

#[cfg(test)]
mod tests;
