//! How a request ends: well, by its owner's word, or by a failure.

use std::time::{Duration, Instant};

use duo_contract::audit::{End, Outcome};
use duo_contract::cancel::CancelReason;
use duo_contract::failure::{Failure, FailureKind};
use duo_contract::frame::Summary;

use super::{InFlight, State, Todo};
use crate::request::ExchangeError;

/// A balancer has another broker, or this one is back by then.
const LEAVING_RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long a terminal record waits for the worker to say what the request had
/// cost when it was told to stop; without its word the owner's own count stands.
const LAST_WORD: Duration = Duration::from_secs(1);

/// A terminal record that waits for the last word of a worker.
#[derive(Debug)]
pub(super) struct Unwritten {
    end: End,
    by: Instant,
}

/// How a request ended.
#[derive(Debug, Clone)]
pub(super) enum Ending {
    Good,
    Bad(ExchangeError),
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
    /// An attempt failed and nobody takes the request again.
    NoTaker,
    /// This broker ends and its grace is over.
    Leaving,
    /// It runs a job that somebody else has ended: how and why its record says that it did.
    JobOver(Outcome, &'static str),
}

impl Stop {
    fn order(self) -> CancelReason {
        match self {
            // A broker that leaves takes its clients' connections with it.
            Stop::ClientGone | Stop::Leaving | Stop::JobOver(..) => CancelReason::ClientGone,
            Stop::SlowReader => CancelReason::SlowReader,
            Stop::Superseded => CancelReason::Superseded,
            Stop::Expired | Stop::Overdue | Stop::NoTaker => CancelReason::DeadlineExceeded,
        }
    }

    fn outcome(self) -> (Outcome, &'static str) {
        match self {
            Stop::ClientGone => (Outcome::Cancelled, "client_gone"),
            Stop::SlowReader => (Outcome::Cancelled, "slow_reader"),
            Stop::Superseded => (Outcome::Cancelled, "superseded"),
            Stop::Expired => (Outcome::Expired, "first_byte_deadline"),
            Stop::Overdue => (Outcome::Expired, "end_deadline"),
            Stop::NoTaker => (Outcome::Failed, "no_further_attempt"),
            Stop::Leaving => (Outcome::Failed, "broker_stopping"),
            Stop::JobOver(outcome, reason) => (outcome, reason),
        }
    }

    pub(super) fn error(self) -> ExchangeError {
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
            Stop::NoTaker => cut_off(),
            Stop::JobOver(_, reason) => ExchangeError::new(FailureKind::Cancelled, reason, "the job is over"),
            Stop::Leaving => ExchangeError {
                retry_after: Some(LEAVING_RETRY_AFTER),
                ..ExchangeError::new(
                    FailureKind::ModelUnavailable,
                    self.outcome().1,
                    "this server is stopping; try again",
                )
            },
        }
    }
}

impl InFlight {
    /// Ends the request before its answer does; does nothing once it has ended.
    #[must_use]
    pub fn stop(&self, stop: Stop, now: Instant) -> Todo {
        let mut state = self.state();
        if state.end.is_some() {
            return Todo::default();
        }
        self.stop_locked(&mut state, stop, now)
    }

    /// Ends the request in favour of a newer one, unless a worker has it or
    /// the client has some of its answer.
    #[must_use]
    pub fn give_way(&self, now: Instant) -> Todo {
        let mut state = self.state();
        if state.end.is_some() || state.attempt.alive || !state.received.is_empty() {
            return Todo::default();
        }
        self.stop_locked(&mut state, Stop::Superseded, now)
    }

    /// NATS has acknowledged request and *admitted* record: the client may be told what came of it.
    pub fn admitted(&self) {
        let mut state = self.state();
        state.admitted = true;
        if let Some(end) = state.early_end.take() {
            self.task.record.close(end);
        }
    }

    /// Ends the request with an error that no worker reported.
    #[must_use]
    pub fn fail(&self, error: ExchangeError, now: Instant) -> Todo {
        let mut state = self.state();
        if let Some(end) = state.early_end.take() {
            // A worker was done before the admission failed; its answer reaches nobody.
            self.task.record.close(End {
                outcome: Outcome::Failed,
                reason: Some(error.reason.to_string()),
                ..end
            });
        }
        if state.end.is_some() {
            return Todo::default();
        }
        self.end_badly(&mut state, error, now)
    }

    /// The worker that was told to stop says what the request had cost; without
    /// its word (`None`) the record is written as it stands.
    pub(super) fn write_end(&self, state: &mut State, output_tokens: Option<u64>) -> Todo {
        let Some(Unwritten { mut end, .. }) = state.unwritten.take() else {
            return Todo::default();
        };
        if let Some(tokens) = output_tokens {
            end.output_tokens = i64::try_from(state.received.earlier_tokens() + tokens).ok();
        }
        self.task.record.close(end);
        Todo {
            forget: true,
            ..Todo::default()
        }
    }

    /// Writes the record of a request that has ended, if its worker has had
    /// long enough for its last word or `at_once` is set.
    #[must_use]
    pub fn write_late_end(&self, now: Instant, at_once: bool) -> Todo {
        let mut state = self.state();
        match &state.unwritten {
            Some(unwritten) if at_once || now >= unwritten.by => self.write_end(&mut state, None),
            _ => Todo::default(),
        }
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

    pub(super) fn stop_locked(&self, state: &mut State, stop: Stop, now: Instant) -> Todo {
        let (outcome, reason) = stop.outcome();
        let error = state.why(stop);
        let reason = if stop == Stop::NoTaker {
            &error.reason
        } else {
            reason
        };
        let end = self.audit_end(state, outcome, Some(reason), now, None);
        // What a broker leaves behind has not had its slot for as long as it needed one.
        if let Some(place) = state.place.take().filter(|_| stop != Stop::Leaving) {
            place.served(now);
        }
        let dead = match stop {
            Stop::NoTaker => self.dead_letter(state, outcome, &error, now),
            _ => None,
        };
        let todo = self.finish(state, Ending::Bad(error), end, stop.order(), now);
        Todo { dead, ..todo }
    }

    pub(super) fn end_badly(&self, state: &mut State, error: ExchangeError, now: Instant) -> Todo {
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
        let dead = self.dead_letter(state, outcome, &error, now);
        let todo = self.finish(
            state,
            Ending::Bad(error),
            end,
            CancelReason::DeadlineExceeded,
            now,
        );
        Todo { dead, ..todo }
    }

    /// Every bad end comes by here.
    fn finish(&self, state: &mut State, ending: Ending, end: End, order: CancelReason, now: Instant) -> Todo {
        let worker = state.alive_worker();
        state.end = Some(ending);
        state.left_behind = state.sequence.is_none();
        state.held.clear();
        state.place = None;
        state.unwritten = Some(Unwritten {
            end,
            by: now + LAST_WORD,
        });
        self.wake.notify_one();
        let written = match &worker {
            // It knows best what it has spent, and says so when it has stopped.
            Some(_) => Todo::default(),
            None => self.write_end(state, None),
        };
        Todo {
            cancel: worker.map(|worker| (worker, order)),
            delete: state.sequence,
            ..written
        }
    }

    pub(super) fn audit_end(
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
        let received = state.received.tokens();
        let spent = summary
            .and_then(|s| s.output_tokens)
            .or(state.model_tokens)
            .or((received > 0).then_some(received));
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
            prompt_sha256: None,
            answer_sha256: None,
        }
    }
}

/// A failure that the client can see: part of the answer has been sent.
pub(super) fn cut_off() -> ExchangeError {
    Failure::new(FailureKind::ModelServerFault, "the answer was cut off").into()
}
