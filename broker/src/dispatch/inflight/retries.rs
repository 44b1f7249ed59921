//! What has been tried of a request, where it may be tried next, and how long
//! a next attempt is waited for.
//!
//! The rules stand in `docs/model-servers.md`, under retries.

use std::time::{Duration, Instant};

use duo_contract::claim::{ClaimReply, ClaimRequest};
use duo_contract::failure::{FailureKind, RetryRule};
use duo_contract::frame::FailedAttempt;

use super::{InFlight, State, Stop, Todo};
use crate::request::ExchangeError;

/// Delay after which a delivery that is to go to another worker comes again.
const ELSEWHERE_DELAY: Duration = Duration::from_millis(200);
/// How long a client that has some of its answer waits for a worker that has
/// not failed it, before one that has may try again.
const ELSEWHERE_PATIENCE: Duration = Duration::from_secs(1);

/// A handed-back request ends with its last attempt's failure when nobody
/// takes it for so long: the only worker's breaker has tripped, say.
const TAKER_PATIENCE: Duration = Duration::from_secs(3);
/// The same where the model server could not be reached: it may be starting.
/// And where the client has some of its answer and another worker is there, but busy.
const RETURN_PATIENCE: Duration = Duration::from_secs(10);

/// The failed attempts of a request.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Workers that failed it.
    workers: Vec<String>,
    /// Calls of model servers that these attempts took.
    calls: u32,
    /// When the last of them failed.
    at: Option<Instant>,
}

impl Failures {
    /// Notes a failed attempt.
    pub(super) fn note(&mut self, failed: &FailedAttempt, now: Instant) {
        self.calls = self.calls.saturating_add(failed.model_calls);
        self.at = Some(now);
        if !self.workers.contains(&failed.worker) {
            self.workers.push(failed.worker.clone());
        }
    }

    fn any_new(&self, workers: &[String]) -> bool {
        workers.iter().any(|worker| !self.workers.contains(worker))
    }
}

impl InFlight {
    /// Has this worker failed the request, so that [`InFlight::elsewhere`] is to be asked?
    #[must_use]
    pub fn was_failed_by(&self, worker: &str) -> bool {
        let state = self.state();
        state.end.is_none()
            && !state.attempt.alive
            && state.failures.workers.iter().any(|known| known == worker)
    }

    /// The answer to a worker that has failed the request before, if it is not
    /// to try again (now): `takers` are the workers that could take it.
    #[must_use]
    pub fn elsewhere(
        &self,
        claim: &ClaimRequest,
        takers: &[String],
        now: Instant,
    ) -> Option<(ClaimReply, Todo)> {
        let mut state = self.state();
        if state.end.is_some() || state.attempt.alive || claim.publication < state.publication {
            return None;
        }
        let failed_at = state.failures.at?;
        let failure = &state.last_failure.as_ref()?.failure;
        let wait = |until: Instant| {
            let left = until
                .saturating_duration_since(now)
                .min(ELSEWHERE_DELAY)
                .max(Duration::from_millis(1));
            let delay_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            Some((ClaimReply::Busy { delay_ms }, Todo::default()))
        };
        if state.failures.any_new(takers) {
            let patience = if state.received.is_empty() {
                self.first_byte_by.saturating_duration_since(failed_at) / 2
            } else {
                ELSEWHERE_PATIENCE
            };
            if now < failed_at + patience {
                return wait(failed_at + patience);
            }
        } else if failure.retry() == RetryRule::Elsewhere {
            let error = state.last_error()?;
            let todo = self.end_badly(&mut state, error, now);
            return Some((ClaimReply::Gone, todo));
        }
        // The server said when it may be asked again.
        let at = failed_at + failure.retry_after_ms.map(Duration::from_millis)?;
        (now < at).then(|| wait(at)).flatten()
    }

    /// Has an attempt failed, and has no other begun for longer than there is
    /// hope? `takers` are the workers that could take it, asked for when it matters.
    #[must_use]
    pub fn without_taker(&self, takers: impl FnOnce() -> Vec<String>, now: Instant) -> Option<Stop> {
        let state = self.state();
        if state.end.is_some() || state.attempt.alive {
            return None;
        }
        let failure = &state.last_failure.as_ref()?.failure;
        let nothing_yet = state.received.is_empty();
        let may_return = failure.kind == FailureKind::ModelUnavailable
            && failure.retry() == RetryRule::HereThenElsewhere
            && nothing_yet;
        let patience = if may_return {
            RETURN_PATIENCE
        } else {
            TAKER_PATIENCE
        };
        // Where the server's own time does not fit the request's, waiting for it is in vain.
        let told = failure
            .retry_after_ms
            .map(Duration::from_millis)
            .filter(|told| state.heard + *told < self.first_byte_by)
            .unwrap_or_default();
        let silent = now.saturating_duration_since(state.heard);
        if silent <= patience.max(told + ELSEWHERE_PATIENCE) {
            return None;
        }
        // One that is there and has not failed it is only busy: a failed request is first in its line.
        let hope = state.failures.any_new(&takers()) && (nothing_yet || silent <= RETURN_PATIENCE);
        (!hope).then_some(Stop::NoTaker)
    }
}

impl State {
    /// How the last attempt failed, and what had been tried by then.
    pub(super) fn last_error(&self) -> Option<ExchangeError> {
        let failed = self.last_failure.as_ref()?;
        let mut error = ExchangeError::from(failed.failure.clone());
        let attempts = self.attempt.number - self.attempt.given_up;
        let calls = self.failures.calls;
        if attempts > 1 || calls > 1 {
            error.message = format!(
                "{} (tried {} by {}, {} in all)",
                error.message,
                counted(attempts, "time"),
                counted(
                    u32::try_from(self.failures.workers.len()).unwrap_or(u32::MAX),
                    "worker"
                ),
                counted(calls, "call"),
            );
        }
        Some(error)
    }
}

fn counted(count: u32, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests;
