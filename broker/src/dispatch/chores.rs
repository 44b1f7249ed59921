//! What turns of requests need from NATS besides: orders to workers, and
//! messages to delete. All of it only hastens what claim and lease bring anyway.

use std::time::Duration;

use bytes::Bytes;
use duo_contract::cancel::{CancelReason, Order};
use duo_contract::subject;
use duo_process::nats::Nats;
use duo_process::shutdown::Shutdown;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

use super::inflight::Todo;

/// Chores that may wait.
pub const CAPACITY: usize = 16_384;
/// Deletes under way at once.
const DELETES: usize = 256;
/// A delete may take this long.
const DELETE_TIMEOUT: Duration = Duration::from_secs(2);

/// One thing to do.
#[derive(Debug)]
pub enum Chore {
    /// Give a worker an order.
    Order {
        /// The worker.
        worker: String,
        /// The order.
        order: Order,
    },
    /// Delete a message of the live stream, so that it never starts and its
    /// caller's place is free.
    Delete {
        /// Its sequence.
        sequence: u64,
    },
}

impl Chore {
    /// The chores of one turn.
    pub fn of(request_id: Uuid, todo: Todo) -> impl Iterator<Item = Chore> {
        let cancel = todo
            .cancel
            .map(|(worker, reason): (String, CancelReason)| Chore::Order {
                worker,
                order: Order::Cancel { request_id, reason },
            });
        let resend = todo.resend.map(|(worker, attempt, from, until)| Chore::Order {
            worker,
            order: Order::Resend {
                request_id,
                attempt,
                from,
                until,
            },
        });
        let delete = todo.delete.map(|sequence| Chore::Delete { sequence });
        cancel.into_iter().chain(resend).chain(delete)
    }
}

/// Does chores until the dispatch is gone or `closing` begins, then what is left.
pub async fn run(mut chores: mpsc::Receiver<Chore>, nats: Nats, closing: Shutdown) {
    let deletes = Semaphore::new(DELETES);
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = under_way.next(), if !under_way.is_empty() => {}
            chore = chores.recv(), if under_way.len() < CAPACITY => match chore {
                Some(chore) => under_way.push(act(&nats, chore, &deletes)),
                None => break,
            },
            () = closing.begun(), if !chores.is_closed() => chores.close(),
        }
    }
    while under_way.next().await.is_some() {}
}

async fn act(nats: &Nats, chore: Chore, deletes: &Semaphore) {
    match chore {
        Chore::Order { worker, order } => {
            let sent = nats
                .client()
                .publish(subject::cancels(&worker), order.encode())
                .await;
            if let Err(error) = sent {
                tracing::debug!(worker, error = %error, "an order was not sent");
            }
        }
        Chore::Delete { sequence } => {
            // Never closed; an order must not wait behind deletes that JetStream is slow to answer.
            let _permit = deletes.acquire().await;
            let payload = Bytes::from(format!("{{\"seq\":{sequence},\"no_erase\":true}}"));
            let subject = format!("$JS.API.STREAM.MSG.DELETE.{}", subject::LIVE_STREAM);
            // A message that is gone already answers with an error, which is as good.
            if let Err(error) = nats.request(subject, payload, DELETE_TIMEOUT).await {
                tracing::debug!(sequence, error = %error, "a message was not deleted");
            }
        }
    }
}
