//! Asks a request's owner whether to work on a delivery.

use std::time::Duration;

use duo_contract::claim::{ClaimReply, ClaimRequest};
use duo_contract::subject;
use duo_process::nats::{Nats, RequestError};
use duo_process::retry::RetryPolicy;
use tokio::time::Instant;

/// How long one question may take; the owner answers from memory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Pauses between questions.
const PAUSE_BASE: Duration = Duration::from_millis(50);
const PAUSE_CAP: Duration = Duration::from_millis(500);

/// Asks `owner` until it answers, `lease` has passed on a connection that is
/// up, or `end_by`. Silence for so long means that nobody waits any more;
/// sooner it may be a restart, and without a connection it means nothing.
pub async fn ask(
    nats: &Nats,
    owner: &str,
    request: &ClaimRequest,
    lease: Duration,
    end_by: Instant,
) -> ClaimReply {
    let policy = RetryPolicy::try_new(PAUSE_BASE, PAUSE_CAP, u32::MAX).expect("valid constants");
    let subject = subject::claims(owner);
    let question = request.encode();
    let mut give_up = Instant::now() + lease;
    for attempt in 1.. {
        let answer = nats
            .request(subject.clone(), question.clone(), ANSWER_TIMEOUT)
            .await;
        match answer
            .as_ref()
            .map(|message| ClaimReply::decode(&message.payload))
        {
            Ok(Ok(reply)) => return reply,
            Ok(Err(error)) => {
                tracing::error!(%error, owner, "the owner's answer to a claim does not parse");
            }
            Err(RequestError::Closed | RequestError::TooLarge) => break,
            Err(error) => tracing::debug!(%error, owner, "a claim has no answer yet"),
        }
        if !nats.is_up() {
            give_up = end_by.min(Instant::now() + lease);
        }
        let left = give_up.saturating_duration_since(Instant::now());
        match policy.delay_within(attempt, left, None) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => break,
        }
    }
    tracing::info!(request_id = %request.request_id, owner, "the owner is gone; its request is removed");
    ClaimReply::Gone
}
