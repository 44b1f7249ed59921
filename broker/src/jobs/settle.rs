//! Writes what runs say into their rows, and carries orders between brokers.
//!
//! What is said waits here while Postgres is away. A word that comes too late finds its row changed and does nothing:
//! the fence (owner and run) decides, not who was first to say it.

use std::time::Duration;

use bytes::Bytes;
use duo_contract::subject;
use duo_process::retry::RetryPolicy;
use duo_process::shutdown::Shutdown;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Jobs, Stopped};
use crate::store::StoreError;
use crate::store::jobs::{Fence, HandBack, JobEnd};

/// Words that wait for Postgres; whoever has more to say waits.
pub(super) const CAPACITY: usize = 4096;
/// Most words of one transaction.
const BATCH: usize = 256;
/// What is said within this time is written together: nobody waits for a row, and a transaction costs Postgres about
/// as much for ten jobs as for one. Short jobs are over by then and are never said to have started.
const GATHER: Duration = Duration::from_millis(40);
/// Pauses while Postgres is away.
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(5);
/// Pause before orders are listened for again.
const SUBSCRIBE_PAUSE: Duration = Duration::from_secs(1);

/// What a run says.
#[derive(Debug)]
pub(super) enum Word {
    /// A worker has it.
    Started(Fence),
    /// It is over.
    End(Box<JobEnd>),
    /// It came to nothing.
    HandBack(HandBack),
}

impl Jobs {
    pub(super) async fn say(&self, word: Word) {
        self.parts().metrics.unsettled.inc();
        // Without a receiver this broker is gone, and another one takes the job back.
        let _ = self.0.words.send(word).await;
    }
}

/// Writes words until `closing` has begun and nothing more is said.
pub(super) async fn run(jobs: Jobs, mut words: mpsc::Receiver<Word>, closing: Shutdown) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            biased;
            count = words.recv_many(&mut batch, BATCH) => if count == 0 { return },
            () = closing.begun() => return,
        }
        gather(&mut words, &mut batch).await;
        let count = batch.len();
        write(&jobs, std::mem::take(&mut batch), &closing).await;
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        jobs.parts().metrics.unsettled.sub(count);
    }
}

/// Adds what is said within moments of the first word.
async fn gather(words: &mut mpsc::Receiver<Word>, batch: &mut Vec<Word>) {
    let by = tokio::time::Instant::now() + GATHER;
    while batch.len() < BATCH {
        let left = BATCH - batch.len();
        match tokio::time::timeout_at(by, words.recv_many(batch, left)).await {
            Ok(count) if count > 0 => {}
            _ => return,
        }
    }
}

async fn write(jobs: &Jobs, batch: Vec<Word>, closing: &Shutdown) {
    let (mut started, mut ends, mut backs) = (Vec::new(), Vec::new(), Vec::new());
    for word in batch {
        match word {
            Word::Started(fence) => started.push(fence),
            Word::End(end) => ends.push(*end),
            Word::HandBack(back) => backs.push(back),
        }
    }
    // Whoever is over need not be said to have started.
    started.retain(|fence| {
        ends.iter().all(|end| end.fence != *fence) && backs.iter().all(|back| back.fence != *fence)
    });
    if !started.is_empty() {
        let ids = started.iter().map(|fence| fence.id).collect();
        let store = jobs.store();
        if insist(closing, || store.note_started(&started)).await.is_some() {
            tell(jobs, ids).await;
        }
    }
    if !ends.is_empty() {
        end(jobs, &ends, closing).await;
    }
    if !backs.is_empty() {
        let ids = backs.iter().map(|back| back.fence.id).collect();
        let store = jobs.store();
        if insist(closing, || store.hand_back_jobs(&backs)).await.is_some() {
            tell(jobs, ids).await;
        }
        jobs.0.room.notify_one();
    }
}

async fn end(jobs: &Jobs, ends: &[JobEnd], closing: &Shutdown) {
    let store = jobs.store();
    let Some(ended) = insist(closing, || store.end_jobs(ends)).await else {
        return;
    };
    jobs.parts().webhooks.wake();
    let metrics = &jobs.parts().metrics;
    metrics.overtaken.inc_by((ends.len() - ended.len()) as u64);
    for one in &ended {
        metrics.ended.with_label_values(&[one.state.as_str()]).inc();
    }
    tell(jobs, ended.into_iter().map(|one| one.id).collect()).await;
}

/// Tries until it is done, refused, or too late; `None` when it was not done.
async fn insist<T, F>(closing: &Shutdown, mut statement: impl FnMut() -> F) -> Option<T>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let policy = RetryPolicy::try_new(RETRY_BASE, RETRY_CAP, u32::MAX).expect("constants that make a policy");
    let mut tries = 0u32;
    loop {
        match statement().await {
            Ok(done) => return Some(done),
            Err(StoreError::Unavailable(error)) if !closing.is_begun() => {
                tries = tries.saturating_add(1);
                if tries == 1 {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "what jobs came to cannot be written; trying again");
                }
                tokio::select! {
                    () = tokio::time::sleep(policy.delay(tries)) => {}
                    () = closing.begun() => {}
                }
            }
            Err(error) => {
                // Another broker takes the jobs back when this one is gone.
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "what jobs came to was not written");
                return None;
            }
        }
    }
}

/// Wakes whoever follows these jobs.
async fn tell(jobs: &Jobs, ids: Vec<Uuid>) {
    let client = jobs.parts().nats.client();
    for id in ids {
        // They look by themselves every few seconds.
        let _ = client.publish(subject::job_news(id), Bytes::new()).await;
    }
}

/// Tells every broker that a job is over: whoever runs it stops, whoever follows it looks.
pub(super) async fn order(jobs: &Jobs, id: Uuid, why: Stopped) {
    let client = jobs.parts().nats.client();
    let order = write_order(id, why);
    let _ = client.publish(subject::JOB_STOPS, Bytes::from(order)).await;
    tell(jobs, vec![id]).await;
}

fn write_order(id: Uuid, why: Stopped) -> String {
    let (_, reason) = why.recorded();
    format!("{} {reason}", id.simple())
}

/// An order of a broker that gives no reason, or one that is unknown here, is obeyed too.
fn read_order(payload: &[u8]) -> Option<(Uuid, Stopped)> {
    let text = std::str::from_utf8(payload).ok()?;
    let (id, reason) = text.split_once(' ').unwrap_or((text, ""));
    let why = [Stopped::Cancelled, Stopped::Expired]
        .into_iter()
        .find(|why| why.recorded().1 == reason);
    Some((id.parse().ok()?, why.unwrap_or(Stopped::TakenOver)))
}

/// Stops runs whose jobs somebody else has ended, until the shutdown begins.
pub(super) async fn orders(jobs: Jobs, shutdown: Shutdown) {
    loop {
        let subscribed = jobs.parts().nats.client().subscribe(subject::JOB_STOPS).await;
        let Ok(mut orders) = subscribed else {
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(SUBSCRIBE_PAUSE) => continue,
            }
        };
        loop {
            tokio::select! {
                () = shutdown.begun() => return,
                order = orders.next() => {
                    let Some(order) = order else { break };
                    if let Some((id, why)) = read_order(&order.payload) {
                        jobs.stop(id, why);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_says_which_job_is_over_and_why() {
        let id = Uuid::now_v7();
        for why in [Stopped::Cancelled, Stopped::Expired, Stopped::TakenOver] {
            assert_eq!(read_order(write_order(id, why).as_bytes()), Some((id, why)));
        }
        let bare = id.simple().to_string();
        assert_eq!(read_order(bare.as_bytes()), Some((id, Stopped::TakenOver)));
        assert_eq!(read_order(b"x job_cancelled"), None);
    }
}
