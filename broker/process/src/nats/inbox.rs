//! One subscription that receives the answers to many requests.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::subject::ToSubject;
use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{Notify, oneshot, watch};

use super::Connection;

/// Shards of the waiting table; a power of two, a few times the cores.
const SHARDS: usize = 16;

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Nobody listens on the subject.
    #[error("nobody answers on that subject")]
    NoResponders,
    /// No answer in time; it may have been received all the same.
    #[error("no answer in time")]
    TimedOut,
    /// There is no connection, or it was lost with the request under way.
    #[error("there is no connection to NATS, or it was lost with the request under way")]
    Disconnected,
    /// The payload is over the server's limit.
    #[error("the message is over the NATS server's max_payload")]
    TooLarge,
    /// The inbox or the connection is closed for good.
    #[error("the connection to NATS is closed")]
    Closed,
}

/// Requests and their answers over one subscription. Cheap to clone; the
/// subscription ends with the last clone or with [`Inbox::close`].
#[derive(Debug, Clone)]
pub struct Inbox {
    client: Client,
    waiting: Arc<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    prefix: String,
    next: AtomicU64,
    shards: [Mutex<HashMap<u64, oneshot::Sender<Message>>>; SHARDS],
    closed: Arc<Notify>,
}

impl Waiting {
    fn shard(&self, token: u64) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Message>>> {
        let index = usize::try_from(token).unwrap_or(0) % SHARDS;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail_all(&self) {
        for shard in &self.shards {
            shard.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.closed.notify_one();
    }
}

impl Inbox {
    pub(super) async fn open(
        client: &Client,
        connections: watch::Receiver<Connection>,
    ) -> Result<Self, async_nats::SubscribeError> {
        let prefix = client.new_inbox();
        let subscriber = client.subscribe(format!("{prefix}.*")).await?;
        let closed = Arc::new(Notify::new());
        let waiting = Arc::new(Waiting {
            prefix,
            next: AtomicU64::new(RandomState::new().hash_one(0u8) >> 24),
            shards: std::array::from_fn(|_| Mutex::default()),
            closed: Arc::clone(&closed),
        });
        tokio::spawn(receive(subscriber, Arc::downgrade(&waiting), closed, connections));
        Ok(Self {
            client: client.clone(),
            waiting,
        })
    }

    /// Sends a request now; the answer is the future that comes back.
    ///
    /// # Errors
    /// There is no connection, it is closed for good, or the payload is over the server's limit.
    pub async fn send(
        &self,
        subject: impl ToSubject,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Pending, RequestError> {
        // The library would keep it and send it when whoever asked has long been refused; and once it keeps as much
        // as it can, this would wait without a bound.
        if self.client.connection_state() != State::Connected {
            return Err(RequestError::Disconnected);
        }
        let token = self.waiting.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.shard(token).insert(token, sender);
        let pending = Pending {
            token,
            answer,
            waiting: Arc::clone(&self.waiting),
        };
        let reply = format!("{}.{token}", self.waiting.prefix);
        let sent = match headers {
            Some(headers) => {
                self.client
                    .publish_with_reply_and_headers(subject, reply, headers, payload)
                    .await
            }
            None => self.client.publish_with_reply(subject, reply, payload).await,
        };
        match sent {
            Ok(()) => Ok(pending),
            Err(error) if error.kind() == async_nats::client::PublishErrorKind::MaxPayloadExceeded => {
                Err(RequestError::TooLarge)
            }
            Err(_) => Err(RequestError::Closed),
        }
    }

    /// Ends the subscription: the server sees that nobody listens any more,
    /// and every waiter fails.
    pub fn close(&self) {
        self.waiting.closed.notify_one();
    }

    /// Requests that wait for their answer now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
            .shards
            .iter()
            .map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len())
            .sum()
    }
}

/// An answer that has not come yet. Dropping it forgets the request.
#[derive(Debug)]
pub struct Pending {
    token: u64,
    answer: oneshot::Receiver<Message>,
    waiting: Arc<Waiting>,
}

impl Pending {
    /// Waits for the answer, `timeout` at most.
    ///
    /// # Errors
    /// Nobody there, no answer in time, or the connection was lost on the way.
    pub async fn within(mut self, timeout: Duration) -> Result<Message, RequestError> {
        self.wait(timeout).await
    }

    /// As [`Pending::within`], for a request that may be waited for again
    /// unless its answer or its failure has come.
    ///
    /// # Errors
    /// As [`Pending::within`].
    pub async fn wait(&mut self, timeout: Duration) -> Result<Message, RequestError> {
        match tokio::time::timeout(timeout, &mut self.answer).await {
            Ok(Ok(message)) if message.status == Some(StatusCode::NO_RESPONDERS) => {
                Err(RequestError::NoResponders)
            }
            Ok(Ok(message)) => Ok(message),
            Ok(Err(_)) => Err(RequestError::Disconnected),
            Err(_) => Err(RequestError::TimedOut),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.waiting.shard(self.token).remove(&self.token);
    }
}

async fn receive(
    mut subscriber: Subscriber,
    waiting: std::sync::Weak<Waiting>,
    closed: Arc<Notify>,
    mut connections: watch::Receiver<Connection>,
) {
    let mut before = *connections.borrow_and_update();
    loop {
        tokio::select! {
            message = subscriber.next() => {
                let (Some(message), Some(waiting)) = (message, waiting.upgrade()) else { break };
                let token = message.subject.rsplit('.').next().and_then(|token| token.parse().ok());
                let sender = token.and_then(|token| waiting.shard(token).remove(&token));
                if let Some(sender) = sender {
                    // A waiter that has just left needs no answer.
                    let _ = sender.send(message);
                }
            }
            changed = connections.changed() => {
                let Some(waiting) = waiting.upgrade() else { break };
                let now = *connections.borrow_and_update();
                let lost_unseen = before.up && now.count != before.count;
                before = now;
                if changed.is_err() || !now.up || lost_unseen {
                    waiting.fail_all();
                }
                if changed.is_err() {
                    break;
                }
            }
            () = closed.notified() => {
                if let Some(waiting) = waiting.upgrade() {
                    waiting.fail_all();
                }
                break;
            }
        }
    }
    // The connection may be gone already, and then so is the interest.
    let _ = subscriber.unsubscribe().await;
}
