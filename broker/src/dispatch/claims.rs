//! Answers workers that ask whether to work on a delivery.

use std::time::Instant;

use async_nats::Subscriber;
use duo_contract::claim::{ClaimReply, ClaimRequest};
use duo_contract::subject;
use futures_util::StreamExt as _;

use super::Dispatch;

/// Subscribes to this broker's claims.
///
/// # Errors
/// The connection is closed for good.
pub async fn subscribe(dispatch: &Dispatch) -> Result<Subscriber, async_nats::SubscribeError> {
    dispatch
        .0
        .nats
        .client()
        .subscribe(subject::claims(&dispatch.0.broker))
        .await
}

/// Answers claims until the connection is closed for good.
pub async fn run(dispatch: Dispatch, mut claims: Subscriber) {
    while let Some(message) = claims.next().await {
        let Some(reply) = message.reply else { continue };
        let answer = match ClaimRequest::decode(&message.payload) {
            Ok(claim) => dispatch.answer(&claim),
            Err(error) => {
                tracing::warn!(error = %error, "a claim does not parse; is a worker newer than this broker?");
                continue;
            }
        };
        if dispatch
            .0
            .nats
            .client()
            .publish(reply, answer.encode())
            .await
            .is_err()
        {
            return;
        }
    }
}

impl Dispatch {
    fn answer(&self, claim: &ClaimRequest) -> ClaimReply {
        let metrics = &self.0.metrics;
        if claim.delivery > 1 {
            metrics.redeliveries.inc();
        }
        let answer = match self.find(claim.request_id) {
            None => ClaimReply::Gone,
            Some(inflight) => {
                let waited_before = inflight.queue_wait();
                let now = Instant::now();
                let elsewhere = if inflight.was_failed_by(&claim.worker) {
                    inflight.elsewhere(claim, &self.takers(&inflight), now)
                } else {
                    None
                };
                let (answer, todo) = elsewhere.unwrap_or_else(|| inflight.claim(claim, now));
                if let (None, Some(wait)) = (waited_before, inflight.queue_wait()) {
                    metrics.wait_of(inflight.lane).observe(wait.as_secs_f64());
                }
                self.follow_up(&inflight, todo);
                answer
            }
        };
        let label = match answer {
            ClaimReply::Proceed { .. } => "proceed",
            ClaimReply::Continue { .. } => "continue",
            ClaimReply::Busy { .. } => "busy",
            ClaimReply::Gone => "gone",
        };
        metrics.claims.with_label_values(&[label]).inc();
        answer
    }
}
