//! Answers workers that ask whether to work on a delivery.

use std::time::Instant;

use duo_contract::claim::{ClaimReply, ClaimRequest};

use super::Dispatch;

impl Dispatch {
    /// The answer to a claim, for the same job always the same.
    pub(super) fn claimed(&self, claim: &ClaimRequest) -> ClaimReply {
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
