//! Frames of an answer, in order, without gaps, from the attempt that may speak.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use duo_contract::audit::Outcome;
use duo_contract::failure::RetryRule;
use duo_contract::frame::{FailedAttempt, FrameAnswer, FrameKind, ReplyFrame, Summary, Tokens};
use duo_contract::snapshot::BodyPolicy;
use uuid::Uuid;

use super::endings::{Ending, Stop, cut_off};
use super::{CLIENT_BUFFER, InFlight, State, Todo};
use crate::request::{ExchangeError, ReplyEvent};

/// Frames that may wait for a missing one before them, and their bytes.
const HELD_FRAMES: usize = 4096;
const HELD_BYTES: usize = 4 << 20;
/// Delay after which a handed-back delivery may come to another worker.
const HAND_BACK_DELAY: Duration = Duration::from_millis(50);
/// The order to send missing frames again is given again after so long: it may be lost itself.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Frames that came before one that is missing, by their number.
#[derive(Debug, Default)]
pub(super) struct Held {
    frames: BTreeMap<u32, FrameKind>,
    bytes: usize,
}

impl Held {
    /// Keeps a frame, unless there are too many or they are too big. One that
    /// is too big by itself is not refused.
    fn insert(&mut self, number: u32, kind: FrameKind) -> bool {
        if self.frames.contains_key(&number) {
            return true;
        }
        let size = kind.size();
        let full = self.frames.len() >= HELD_FRAMES || self.bytes + size > HELD_BYTES;
        if full && !self.frames.is_empty() {
            return false;
        }
        self.frames.insert(number, kind);
        self.bytes += size;
        true
    }

    fn remove(&mut self, number: u32) -> Option<FrameKind> {
        let kind = self.frames.remove(&number)?;
        self.bytes -= kind.size();
        Some(kind)
    }

    fn first(&self) -> Option<u32> {
        self.frames.keys().next().copied()
    }

    /// Forgets them all.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl InFlight {
    /// Takes a frame; of an early one `job` says whose it is. The answer is for last frames, which are requests.
    #[must_use]
    pub fn frame(&self, frame: ReplyFrame, job: Option<Uuid>, now: Instant) -> (FrameAnswer, Todo) {
        let mut state = self.state();
        let speaks = job.is_none() || state.claimed_by.as_ref().is_some_and(|claim| claim.job == job);
        if frame.attempt != state.attempt.number || !speaks {
            return (FrameAnswer::Stale, Todo::default());
        }
        if !state.attempt.alive {
            let answer = state.last_answer.clone().unwrap_or(FrameAnswer::Stale);
            return (answer, Todo::default());
        }
        if state.end.is_some() {
            return self.last_word(&mut state, &frame.kind);
        }
        state.heard = now;
        if frame.kind == FrameKind::Heartbeat {
            // It carries the number of the next frame, so it shows a gap before a silence.
            let answer = match frame.number > state.next_frame {
                true => FrameAnswer::Missing {
                    from: state.next_frame,
                    until: frame.number,
                },
                false => FrameAnswer::Confirmed,
            };
            return (answer, ask(&mut state, frame.number, now));
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
            kind = state.held.remove(number);
        }
        if !state.attempt.alive {
            state.last_answer = Some(answer.0.clone());
        } else if let Some(held) = state.held.first() {
            answer.1 = ask(&mut state, held, now);
        }
        self.wake.notify_one();
        answer
    }

    /// A frame of an attempt that was told to stop: only what it had cost is of interest.
    fn last_word(&self, state: &mut State, kind: &FrameKind) -> (FrameAnswer, Todo) {
        let tokens = match kind {
            FrameKind::Done { summary, .. } => summary.output_tokens,
            FrameKind::Failed(failed) => failed.output_tokens,
            // It works on: its order was lost, or is on its way.
            FrameKind::Chunk(_) | FrameKind::Tokens(..) | FrameKind::Heartbeat => {
                return (FrameAnswer::Stale, Todo::default());
            }
        };
        (FrameAnswer::Confirmed, self.write_end(state, tokens))
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
        if !state.held.insert(frame.number, frame.kind) {
            return (FrameAnswer::Stale, self.end_badly(state, cut_off(), now));
        }
        let until = state.held.first().unwrap_or(frame.number);
        (missing, ask(state, until, now))
    }

    fn apply(&self, state: &mut State, kind: FrameKind, now: Instant) -> (FrameAnswer, Todo) {
        match kind {
            FrameKind::Heartbeat => (FrameAnswer::Confirmed, Todo::default()),
            FrameKind::Chunk(chunks) => (FrameAnswer::Confirmed, self.chunks(state, chunks, None, now)),
            FrameKind::Tokens(tokens, chunks) => {
                let todo = self.chunks(state, chunks, Some(&tokens), now);
                (FrameAnswer::Confirmed, todo)
            }
            FrameKind::Done { summary, body } => {
                let todo = self.done(state, summary, body, now);
                (FrameAnswer::Confirmed, todo)
            }
            FrameKind::Failed(failed) => self.failed(state, failed, now),
        }
    }

    fn chunks(&self, state: &mut State, chunks: Bytes, tokens: Option<&Tokens>, now: Instant) -> Todo {
        let chunks = state.received.take(chunks, tokens);
        if chunks.is_empty() {
            return Todo::default();
        }
        self.keep(&chunks);
        state.first_byte(self.task.record.stages(), now);
        state.waiting_bytes += chunks.len();
        // A piece that is too big by itself is not the reader's fault.
        if state.waiting_bytes > CLIENT_BUFFER && !state.waiting.is_empty() {
            return self.stop_locked(state, Stop::SlowReader, now);
        }
        state.waiting.push_back(ReplyEvent::Chunks(chunks));
        Todo::default()
    }

    /// For the record, where the feature's policy wants something of the answer.
    fn keep(&self, piece: &Bytes) {
        if self.task.routed.feature.bodies != BodyPolicy::None {
            self.task.record.keep_answer(piece);
        }
    }

    fn done(&self, state: &mut State, mut summary: Summary, body: Bytes, now: Instant) -> Todo {
        state.received.sum_usage(&mut summary);
        let body = if self.task.work.stream {
            let todo = if body.is_empty() {
                Todo::default()
            } else {
                self.chunks(state, body, None, now)
            };
            if state.end.is_some() {
                return todo;
            }
            Bytes::new()
        } else {
            self.keep(&body);
            body
        };
        state.first_byte(self.task.record.stages(), now);
        state.attempt.alive = false;
        if let Some(place) = state.place.take() {
            place.served(now);
        }
        let end = self.audit_end(state, Outcome::Completed, None, now, Some(&summary));
        state.waiting.push_back(ReplyEvent::Done { summary, body });
        state.end = Some(Ending::Good);
        if state.admitted {
            self.task.record.close(end);
        } else {
            state.early_end = Some(end);
        }
        Todo {
            forget: true,
            ..Todo::default()
        }
    }

    fn failed(&self, state: &mut State, failed: FailedAttempt, now: Instant) -> (FrameAnswer, Todo) {
        state.attempt.alive = false;
        let frames = state.next_frame.saturating_sub(1);
        state.story.fails(&failed, frames, now);
        // Heard just now.
        state.lose_slot();
        let earlier = state.received.earlier_tokens();
        state.model_tokens = failed.output_tokens.map(|tokens| earlier + tokens);
        let error = ExchangeError::from(failed.failure.clone());
        let again = failed.failure.retry() != RetryRule::Never;
        let delay = if failed.leaving {
            state.attempt.given_up += 1;
            Duration::ZERO
        } else {
            state.failures.note(&failed, now);
            state.last_failure = Some(failed);
            HAND_BACK_DELAY
        };
        if again && self.no_further_attempt(state, now).is_none() {
            let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            return (FrameAnswer::HandBack { delay_ms }, Todo::default());
        }
        let error = if again {
            state.last_error().unwrap_or(error)
        } else {
            error
        };
        let mut todo = self.end_badly(state, error, now);
        // The worker removes the message when it reads `Confirmed`.
        todo.delete = None;
        (FrameAnswer::Confirmed, todo)
    }
}

/// Asks the worker for what is missing before frame `until`, unless it was asked just now.
fn ask(state: &mut State, until: u32, now: Instant) -> Todo {
    let from = state.next_frame;
    let asked = state
        .asked
        .is_some_and(|(gap, at)| gap == from && now.saturating_duration_since(at) < ASK_AGAIN_AFTER);
    if until <= from || asked {
        return Todo::default();
    }
    state.asked = Some((from, now));
    let attempt = state.attempt.number;
    Todo {
        resend: state.alive_worker().map(|worker| (worker, attempt, from, until)),
        ..Todo::default()
    }
}
