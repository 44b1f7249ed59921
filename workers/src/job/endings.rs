//! The ends of an attempt: what its owner is told, and what becomes of the delivery.

use std::time::Duration;

use bytes::Bytes;
use duo_contract::cancel::CancelReason;
use duo_contract::failure::{Failure, FailureKind};
use duo_contract::frame::{FailedAttempt, FrameKind, Summary};
use tokio::time::{Instant, timeout};

use super::alive::Unwanted;
use super::{Attempt, instant, lease};
use crate::model_server::facts::Facts;
use crate::model_server::{Blame, Fault};
use crate::outcome::Outcome;
use crate::reply::{Ended, ReplyError};
use crate::running::Stop;

/// How long the owner of a handed-back request may take to say that it knows.
const LEAVE_WAIT: Duration = Duration::from_secs(1);

/// What ends an attempt first.
pub(super) enum Turn {
    Stopped(Stop),
    Unwanted(Unwanted),
    /// The work, if it did not panic.
    Ended(Option<Outcome>),
}

/// When the model server was called and answered.
pub(super) struct Times {
    pub(super) calls: u32,
    pub(super) called_at: Instant,
    pub(super) first_at: Instant,
}

impl Attempt<'_> {
    pub(super) async fn settled_by(&self, turn: Turn) -> Outcome {
        self.reply.unasked();
        match turn {
            Turn::Stopped(Stop::HandBack) => {
                let unheard = Outcome::HandedBack(Duration::ZERO);
                self.leave("the worker is stopping", unheard).await
            }
            Turn::Stopped(Stop::Cancelled(reason)) => self.cancelled(reason).await,
            // The message is deleted or in a successor's hands; its next delivery would tell.
            Turn::Unwanted(Unwanted::Stale) => Outcome::Superseded,
            Turn::Unwanted(Unwanted::Ownerless) => Outcome::Gone,
            // It may be frozen: when it thaws, it reads this and has the rest done by somebody else.
            Turn::Unwanted(Unwanted::Unheard) => self.leave("the owner was silent", Outcome::Gone).await,
            Turn::Ended(Some(outcome)) => outcome,
            Turn::Ended(None) => {
                let failure = Failure::new(FailureKind::Internal, "the worker failed");
                self.failed(failure, 0, None).await
            }
        }
    }

    pub(super) async fn done(&self, times: &Times, facts: &Facts, body: Bytes) -> Outcome {
        let summary = Summary {
            worker: self.worker.name.clone(),
            finish_reason: facts.finish_reason.clone(),
            input_tokens: facts.input_tokens,
            output_tokens: facts.generated(),
            model_first_us: micros(times.first_at - times.called_at),
            model_total_us: micros(times.called_at.elapsed()),
            model_calls: times.calls,
        };
        match self
            .reply
            .finish(
                FrameKind::Done { summary, body },
                lease(self.head),
                instant(self.head.end_by_ms),
            )
            .await
        {
            Ok(ended) => settled(ended),
            Err(error) => {
                self.failed(unsendable(&error).failure, times.calls, facts.generated())
                    .await
            }
        }
    }

    pub(super) async fn failed(
        &self,
        failure: Failure,
        model_calls: u32,
        output_tokens: Option<u64>,
    ) -> Outcome {
        tracing::info!(
            request_id = %self.head.request_id,
            feature = self.head.feature.as_str(),
            model = self.head.model.as_str(),
            server = &*self.server.name,
            status = failure.upstream_status,
            %failure,
            "an attempt failed"
        );
        let failed = FailedAttempt {
            worker: self.worker.name.clone(),
            failure,
            model_calls,
            output_tokens,
            leaving: false,
        };
        let ended = self
            .reply
            .finish(
                FrameKind::Failed(failed),
                lease(self.head),
                instant(self.head.end_by_ms),
            )
            .await;
        ended.map_or(Outcome::Unheard, settled)
    }

    /// Stops because the owner says so, and tells it what the request had cost.
    async fn cancelled(&self, reason: CancelReason) -> Outcome {
        tracing::debug!(request_id = %self.head.request_id, reason = reason.as_str(), "job cancelled");
        match reason {
            // The message may be in a successor's hands by now.
            CancelReason::Replaced => Outcome::Superseded,
            CancelReason::ClientGone
            | CancelReason::SlowReader
            | CancelReason::Superseded
            | CancelReason::DeadlineExceeded => {
                let stopped = self.stopped(
                    Failure::new(FailureKind::Cancelled, "stopped by its owner"),
                    false,
                );
                // Lost, the owner's own count stands.
                let _ = timeout(LEAVE_WAIT, self.reply.last_word(stopped)).await;
                Outcome::Cancelled
            }
        }
    }

    /// Gives the attempt up although nothing went wrong with it. The owner is told, so that it does not take the next
    /// delivery for a spurious one; `unheard` becomes of the message if it does not answer.
    pub(super) async fn leave(&self, why: &str, unheard: Outcome) -> Outcome {
        let left = self.stopped(Failure::new(FailureKind::ModelUnavailable, why), true);
        let by = Instant::now() + LEAVE_WAIT;
        match self.reply.finish(left, LEAVE_WAIT, by).await {
            Ok(Ended::Unheard) | Err(_) => unheard,
            Ok(ended) => settled(ended),
        }
    }

    fn stopped(&self, failure: Failure, leaving: bool) -> FrameKind {
        FrameKind::Failed(FailedAttempt {
            worker: self.worker.name.clone(),
            failure,
            model_calls: 0,
            output_tokens: self.spent.tokens(),
            leaving,
        })
    }
}

fn settled(ended: Ended) -> Outcome {
    match ended {
        Ended::Confirmed => Outcome::Answered,
        Ended::HandBack(delay) => Outcome::HandedBack(delay),
        Ended::Stale => Outcome::Superseded,
        Ended::Unheard => Outcome::Unheard,
    }
}

pub(super) fn unsendable(error: &ReplyError) -> Fault {
    // Any other worker would have the same answer for a request that wants so much.
    let (kind, message) = match error {
        ReplyError::TooLarge => (
            FailureKind::InvalidRequest,
            "the answer is larger than a message of the queue may be; ask for less at once",
        ),
        ReplyError::Closed => (FailureKind::Internal, "the queue is gone"),
    };
    Fault {
        failure: Failure::new(kind, message),
        most_calls: 1,
        blame: Blame::Nobody,
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
