//! A newer completion of the same person and file takes the place of an older
//! one that is still queued, across brokers.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::Subscriber;
use bytes::Bytes;
use duo_contract::subject;
use futures_util::StreamExt as _;
use uuid::Uuid;

use super::Dispatch;

/// The newest open request of each person and file at this broker.
#[derive(Debug, Default)]
pub(super) struct Latest(Mutex<Keys>);

#[derive(Debug, Default)]
struct Keys {
    by_key: HashMap<String, Uuid>,
    by_request: HashMap<Uuid, String>,
}

impl Latest {
    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers `request` as the newest of `key`, unless a newer one is
    /// known; the older one of the two, which is to give way.
    fn replace(&self, key: &str, request: Uuid) -> Option<Uuid> {
        let mut keys = self.keys();
        // UUIDv7 sorts by time.
        if keys.by_key.get(key).is_some_and(|known| *known > request) {
            return Some(request);
        }
        let older = keys.by_key.insert(key.to_owned(), request);
        keys.by_request.insert(request, key.to_owned());
        older.inspect(|older| {
            keys.by_request.remove(older);
        })
    }

    fn newest(&self, key: &str) -> Option<Uuid> {
        self.keys().by_key.get(key).copied()
    }

    fn older_than(&self, key: &str, request: Uuid) -> Option<Uuid> {
        self.keys()
            .by_key
            .get(key)
            .copied()
            .filter(|known| *known < request)
    }

    pub(super) fn forget(&self, request: Uuid) {
        let mut keys = self.keys();
        if let Some(key) = keys.by_request.remove(&request)
            && keys.by_key.get(&key) == Some(&request)
        {
            keys.by_key.remove(&key);
        }
    }
}

/// Subscribes to what other brokers say.
///
/// # Errors
/// The connection is closed for good.
pub async fn subscribe(dispatch: &Dispatch) -> Result<Subscriber, async_nats::SubscribeError> {
    dispatch.0.nats.client().subscribe(subject::SUPERSEDED_ALL).await
}

/// Follows what other brokers say until the connection is closed for good.
pub async fn run(dispatch: Dispatch, mut said: Subscriber) {
    while let Some(message) = said.next().await {
        let key = message.subject.rsplit('.').next().unwrap_or_default();
        let Ok(newer) = Uuid::from_slice(&message.payload) else {
            continue;
        };
        if let Some(older) = dispatch.0.latest.older_than(key, newer) {
            dispatch.give_way(older);
        }
    }
}

impl Dispatch {
    /// `request` is the newest of `key`: an older one that no worker has taken
    /// gives way, here and at the other brokers.
    pub(super) async fn supersede(&self, key: &str, request: Uuid) {
        if let Some(older) = self.0.latest.replace(key, request) {
            self.give_way(older);
        }
        let payload = Bytes::copy_from_slice(request.as_bytes());
        // Lost on a broken connection: then the older one runs, which costs only its slot.
        let _ = self
            .0
            .nats
            .client()
            .publish(subject::superseded(key), payload)
            .await;
    }

    /// Has this broker a request of `key` that no worker has taken, so that a newer one takes its place?
    pub fn has_queued(&self, key: &str) -> bool {
        let newest = self.0.latest.newest(key).and_then(|request| self.find(request));
        newest.is_some_and(|inflight| inflight.is_queued())
    }

    fn give_way(&self, older: Uuid) {
        if let Some(inflight) = self.find(older) {
            let todo = inflight.give_way(std::time::Instant::now());
            self.follow_up(&inflight, todo);
        }
    }
}
