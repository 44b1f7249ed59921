//! Puts a request into the queue and brings its answer back.
//!
//! The request is known here before it is published, so that no frame of its
//! answer finds nobody; the subscriptions stand from the start. What a turn of
//! a request needs from NATS besides (orders, deletes) goes through [`chores`].

pub mod bundles;
pub mod chores;
mod claims;
mod continuation;
pub mod dead;
pub mod inflight;
pub mod publish;
pub mod questions;
mod replies;
pub mod send;
pub mod storing;
pub mod supersede;
pub mod watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use duo_contract::presence::{BreakerState, Presence};
use duo_contract::seal::SealKeys;
use duo_process::nats::Nats;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::admission::Admission;
use crate::config::QueueConfig;
use crate::metrics::Metrics;
use chores::Chore;
use dead::Outgoing;
use inflight::{InFlight, Stop, Todo};
use storing::Storing;
use supersede::Latest;

/// Shards of the table of open requests.
const SHARDS: usize = 32;

/// The dispatch; cheap to clone.
#[derive(Debug, Clone)]
pub struct Dispatch(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    broker: String,
    nats: Nats,
    keys: SealKeys,
    queue: QueueConfig,
    admission: Admission,
    metrics: Metrics,
    open: [Mutex<HashMap<Uuid, Arc<InFlight>>>; SHARDS],
    latest: Latest,
    chores: mpsc::Sender<Chore>,
    letters: mpsc::Sender<Outgoing>,
    queue_stores: Storing,
    audit_stores: Storing,
}

/// What a dispatch works with.
#[derive(Debug)]
pub struct Parts {
    /// This broker's name, a subject token.
    pub broker: String,
    /// The connection.
    pub nats: Nats,
    /// Keys that seal bodies.
    pub keys: SealKeys,
    /// Lease and attempts.
    pub queue: QueueConfig,
    /// Places in line.
    pub admission: Admission,
    /// Counters.
    pub metrics: Metrics,
    /// Whether the live stream stores requests.
    pub queue_stores: Storing,
    /// Whether the audit stream stores records.
    pub audit_stores: Storing,
}

impl Dispatch {
    /// A dispatch, the chores that [`chores::run`] is to do for it, and the dead letters that [`dead::run`] is to keep.
    #[must_use]
    pub fn new(parts: Parts) -> (Self, mpsc::Receiver<Chore>, mpsc::Receiver<Outgoing>) {
        let (sender, receiver) = mpsc::channel(chores::CAPACITY);
        let (letters, outgoing) = mpsc::channel(dead::CAPACITY);
        let Parts {
            broker,
            nats,
            keys,
            queue,
            admission,
            metrics,
            queue_stores,
            audit_stores,
        } = parts;
        let inner = Inner {
            broker,
            nats,
            keys,
            queue,
            admission,
            metrics,
            open: std::array::from_fn(|_| Mutex::default()),
            latest: Latest::default(),
            chores: sender,
            letters,
            queue_stores,
            audit_stores,
        };
        (Self(Arc::new(inner)), receiver, outgoing)
    }

    fn shard(&self, request: Uuid) -> MutexGuard<'_, HashMap<Uuid, Arc<InFlight>>> {
        // The last bytes of a UUIDv7 are random.
        let index = usize::from(request.as_bytes()[15]) % SHARDS;
        self.0.open[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Places in line.
    #[must_use]
    pub fn admission(&self) -> &Admission {
        &self.0.admission
    }

    /// The keys that seal bodies and open what they sealed.
    #[must_use]
    pub fn keys(&self) -> &SealKeys {
        &self.0.keys
    }

    /// The open request of that id.
    #[must_use]
    pub fn find(&self, request: Uuid) -> Option<Arc<InFlight>> {
        self.shard(request).get(&request).cloned()
    }

    /// Every open request.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<InFlight>> {
        let shards = self.0.open.iter();
        shards
            .flat_map(|shard| {
                shard
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .values()
                    .cloned()
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// Workers that could take this request now: they are there, stay, and their server is well.
    fn takers(&self, inflight: &InFlight) -> Vec<String> {
        let model = &inflight.task.routed.model.name;
        let serves = |presence: &Presence| {
            let mut models = presence.models.iter();
            !presence.draining
                && models.any(|served| served.model == *model && served.breaker != BreakerState::Tripped)
        };
        let present = self.0.admission.fleet().present().into_iter();
        present.filter(serves).map(|presence| presence.worker).collect()
    }

    fn keep(&self, inflight: &Arc<InFlight>) {
        self.shard(inflight.request_id)
            .insert(inflight.request_id, Arc::clone(inflight));
    }

    /// Does what a turn of `inflight` asked for.
    fn follow_up(&self, inflight: &InFlight, mut todo: Todo) {
        if let Some(letter) = todo.dead.take() {
            self.keep_letter(*letter);
        }
        if todo.forget {
            self.shard(inflight.request_id).remove(&inflight.request_id);
            self.0.latest.forget(inflight.request_id);
        }
        for chore in Chore::of(inflight.request_id, todo) {
            if self.0.chores.try_send(chore).is_err() {
                // The claim and the lease bring the same result, later.
                tracing::warn!(request_id = %inflight.request_id, "too many chores; one is left to the lease");
            }
        }
    }

    /// Ends an open request before its answer does.
    pub fn stop(&self, inflight: &InFlight, stop: Stop) {
        let todo = inflight.stop(stop, Instant::now());
        self.follow_up(inflight, todo);
    }

    fn write_late_end(&self, inflight: &InFlight, now: Instant, at_once: bool) {
        let todo = inflight.write_late_end(now, at_once);
        self.follow_up(inflight, todo);
    }

    /// Ends every open request because this broker ends, and writes their records.
    pub fn leave(&self) {
        for inflight in self.all() {
            self.stop(&inflight, Stop::Leaving);
            self.write_late_end(&inflight, Instant::now(), true);
        }
    }
}
