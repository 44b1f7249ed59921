//! While an attempt works: its lease is prolonged, its owner hears of it, and it hears whether it is still wanted.

use std::convert::Infallible;
use std::time::Duration;

use duo_contract::envelope::Head;
use duo_contract::frame::FrameAnswer;
use duo_process::nats::RequestError;
use tokio::time::Instant;

use super::lease;
use crate::reply::Reply;
use crate::startup::Worker;

/// Progress is reported this often within a lease.
const REPORTS_PER_LEASE: u32 = 3;

/// Prolongs the lease. It ends with the work, which a server that makes no progress ends: its silence is bounded before
/// the first data by the deadline and after it by the idle timeout.
pub(super) async fn keep(worker: &Worker, ack_subject: &str, lease: Duration) -> Infallible {
    let period = (lease / REPORTS_PER_LEASE).max(Duration::from_millis(1));
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        worker.nats.progress(ack_subject).await;
    }
}

/// Why an attempt is worth nothing any more.
pub(super) enum Unwanted {
    /// The owner goes on without it, and its order to stop was lost.
    Stale,
    /// Nobody has listened for replies during a whole lease: the owner died, and nobody waits for the answer.
    Ownerless,
    /// The owner has said nothing for two leases although the queue works: it is frozen, cut off, or its machine died
    /// and took its connections with it.
    Unheard,
}

/// Shows the owner signs of life and asks whether it still wants the attempt; returns when it is worth nothing any more.
/// A frame alone would not tell, since it asks for no answer.
pub(super) async fn unwanted(worker: &Worker, ack_subject: &str, reply: &Reply, head: &Head) -> Unwanted {
    let period = (lease(head) / REPORTS_PER_LEASE).max(Duration::from_millis(1));
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut alone_since, mut heard) = (None, Instant::now());
    loop {
        ticks.tick().await;
        let answer = reply.probe(period).await;
        if !matches!(answer, Some(Err(RequestError::NoResponders))) {
            alone_since = None;
        }
        match answer {
            Some(Ok(FrameAnswer::Stale)) => return Unwanted::Stale,
            Some(Err(RequestError::NoResponders)) => {
                let since = *alone_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= lease(head) {
                    tracing::info!(owner = head.owner, "the owner is gone; its request is removed");
                    return Unwanted::Ownerless;
                }
            }
            Some(Err(RequestError::TimedOut)) => {
                // A queue that hangs says nothing about the owner.
                if worker.nats.prolong(ack_subject, period).await.is_err() {
                    heard = Instant::now();
                }
                // The next look would come too late.
                if heard.elapsed() + period >= lease(head) * 2 {
                    tracing::info!(owner = head.owner, "the owner is silent; its request is given up");
                    return Unwanted::Unheard;
                }
            }
            _ => heard = Instant::now(),
        }
    }
}
