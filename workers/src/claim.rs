//! Asks a request's owner whether to work on a delivery.

use std::sync::Arc;
use std::time::Duration;

use duo_contract::bundle::Kind;
use duo_contract::claim::{ClaimReply, ClaimRequest};
use duo_process::nats::RequestError;
use duo_process::retry::RetryPolicy;
use tokio::time::Instant;

use crate::startup::Worker;

/// How long one question may take; the owner answers from memory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The same for an owner that has been silent for a lease already.
const SILENT_TIMEOUT: Duration = Duration::from_millis(100);
/// Pauses between questions.
const PAUSE_BASE: Duration = Duration::from_millis(50);
const PAUSE_CAP: Duration = Duration::from_millis(500);

/// Asks `owner` until it answers, has been silent for a `lease` on a
/// connection that is up, or `end_by`. Silence for so long means that nobody
/// waits any more; sooner it may be a restart, and without a connection it
/// means nothing. What other jobs have heard of the owner counts too.
pub async fn ask(
    worker: &Worker,
    owner: &Arc<str>,
    request: &ClaimRequest,
    lease: Duration,
    end_by: Instant,
) -> ClaimReply {
    let policy = RetryPolicy::try_new(PAUSE_BASE, PAUSE_CAP, u32::MAX).expect("valid constants");
    let question = request.encode();
    let Worker {
        nats, outbox, owners, ..
    } = worker;
    for attempt in 1.. {
        let connection = nats.connections().borrow().count;
        let timeout = if owners.silent_for(owner, lease) >= lease {
            SILENT_TIMEOUT
        } else {
            ANSWER_TIMEOUT
        };
        let answer = outbox
            .ask(owner, Kind::Claim, request.request_id, question.clone(), timeout)
            .await;
        match answer.map(|payload| ClaimReply::decode(&payload)) {
            Ok(Ok(reply)) => {
                owners.answered(owner);
                return reply;
            }
            Ok(Err(error)) => {
                tracing::error!(%error, %owner, "the owner's answer to a claim does not parse");
            }
            Err(RequestError::Closed | RequestError::TooLarge) => break,
            Err(error) => tracing::debug!(%error, %owner, "a claim has no answer yet"),
        }
        let give_up = if nats.is_up() {
            owners.unanswered(owner, connection, lease) + lease
        } else {
            Instant::now() + lease
        };
        let left = give_up.min(end_by).saturating_duration_since(Instant::now());
        match policy.delay_within(attempt, left, None) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => break,
        }
    }
    tracing::info!(request_id = %request.request_id, %owner, "the owner is gone; its request is removed");
    ClaimReply::Gone
}
