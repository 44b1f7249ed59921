//! Which workers are there and what they serve, from their presence keys.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::Operation;
use duo_contract::name::ModelName;
use duo_contract::presence::{BreakerState, Presence};
use duo_contract::subject;
use duo_process::nats::Nats;
use duo_process::shutdown::Shutdown;
use futures_util::StreamExt as _;

use crate::topology::PRESENCE_TTL;

/// Requests queue this long for a model that no worker serves, since a worker
/// may be restarting or loading the model; after that they are refused.
pub const NO_WORKER_GRACE: Duration = Duration::from_secs(30);
/// Pause before a watch that ended is opened again.
const REWATCH: Duration = Duration::from_millis(500);
/// Workers renew their presence more often than this: a watch that is silent
/// for longer may have gone blind, or nobody is there.
const QUIET: Duration = Duration::from_secs(5);

/// The workers of the moment. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fleet {
    inner: Arc<RwLock<Workers>>,
}

#[derive(Debug)]
struct Workers {
    present: HashMap<String, Seen>,
    /// When a worker last served the model; the start of this broker for none.
    served: HashMap<ModelName, Instant>,
    since: Instant,
}

#[derive(Debug)]
struct Seen {
    presence: Presence,
    /// The bucket's revision of it: a watch that is opened again repeats what is known.
    revision: u64,
    at: Instant,
}

impl Seen {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < PRESENCE_TTL
    }
}

/// What the fleet offers for one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Slots of servers whose breaker passes.
    pub slots: u32,
    /// Has nobody served the model for longer than [`NO_WORKER_GRACE`]?
    pub deserted: bool,
}

impl Fleet {
    /// A fleet without workers, whose grace begins now.
    #[must_use]
    pub fn new() -> Self {
        let workers = Workers {
            present: HashMap::new(),
            served: HashMap::new(),
            since: Instant::now(),
        };
        Self {
            inner: Arc::new(RwLock::new(workers)),
        }
    }

    /// What is there for `model`.
    #[must_use]
    pub fn capacity(&self, model: &ModelName) -> Capacity {
        let workers = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let slots: u32 = workers
            .present
            .values()
            .filter(|seen| !seen.presence.draining && seen.is_fresh())
            .flat_map(|seen| &seen.presence.models)
            .filter(|served| served.model == *model && served.breaker != BreakerState::Tripped)
            .map(|served| served.slots)
            .sum();
        let last = workers.served.get(model).copied().unwrap_or(workers.since);
        Capacity {
            slots,
            deserted: slots == 0 && last.elapsed() > NO_WORKER_GRACE,
        }
    }

    /// Everything that is present now.
    #[must_use]
    pub fn present(&self) -> Vec<Presence> {
        let workers = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let fresh = workers.present.values().filter(|seen| seen.is_fresh());
        fresh.map(|seen| seen.presence.clone()).collect()
    }

    fn put(&self, presence: Presence, revision: u64) {
        let mut workers = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let known = workers.present.get(&presence.worker);
        if known.is_some_and(|known| known.revision == revision) {
            return;
        }
        let at = Instant::now();
        for served in presence
            .models
            .iter()
            .filter(|served| served.breaker != BreakerState::Tripped)
        {
            workers.served.insert(served.model.clone(), at);
        }
        let seen = Seen {
            presence,
            revision,
            at,
        };
        workers.present.insert(seen.presence.worker.clone(), seen);
        workers
            .present
            .retain(|_, seen| seen.at.elapsed() < PRESENCE_TTL * 4);
    }

    fn remove(&self, worker: &str) {
        self.inner
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .present
            .remove(worker);
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

/// Follows the presence bucket until the drain begins.
pub async fn watch(nats: Nats, fleet: Fleet, shutdown: Shutdown) {
    while !shutdown.is_begun() {
        tokio::select! {
            () = shutdown.begun() => return,
            result = follow(&nats, &fleet) => {
                if let Err(error) = result {
                    tracing::warn!(error = %error, "the watch of worker presence ended; opening it again");
                }
            }
        }
        tokio::time::sleep(REWATCH).await;
    }
}

async fn follow(nats: &Nats, fleet: &Fleet) -> Result<(), async_nats::Error> {
    let bucket = nats.jetstream().get_key_value(subject::WORKERS_BUCKET).await?;
    let mut connections = nats.connections();
    connections.mark_unchanged();
    let mut watch = bucket.watch_many_with_history([">"]).await?;
    loop {
        let entry = tokio::select! {
            entry = watch.next() => entry,
            // Nothing is wrong: the watch is opened again, since it may not see a bucket that was made anew.
            _ = connections.changed() => return Ok(()),
            () = tokio::time::sleep(QUIET) => return Ok(()),
        };
        let Some(entry) = entry else { return Ok(()) };
        let entry = entry?;
        match entry.operation {
            Operation::Put => match Presence::decode(&entry.value) {
                Ok(presence) => fleet.put(presence, entry.revision),
                Err(error) => {
                    tracing::warn!(key = entry.key, error = %error, "a worker's presence does not parse")
                }
            },
            Operation::Delete | Operation::Purge => fleet.remove(&entry.key),
        }
    }
}

#[cfg(test)]
mod tests {
    use duo_contract::presence::ServedModel;

    use super::*;

    fn presence(worker: &str, breaker: BreakerState) -> Presence {
        Presence {
            worker: worker.into(),
            version: "1".into(),
            started_at_ms: 0,
            draining: false,
            models: vec![ServedModel {
                model: ModelName::parse("mistral").expect("a name"),
                server: "local".into(),
                slots: 4,
                in_flight: 0,
                breaker,
            }],
        }
    }

    #[test]
    fn slots_of_tripped_servers_do_not_count() {
        let fleet = Fleet::new();
        let model = ModelName::parse("mistral").expect("a name");
        assert_eq!(
            fleet.capacity(&model),
            Capacity {
                slots: 0,
                deserted: false
            }
        );
        fleet.put(presence("a", BreakerState::Passing), 1);
        fleet.put(presence("b", BreakerState::Tripped), 2);
        assert_eq!(fleet.capacity(&model).slots, 4);
        fleet.remove("a");
        assert_eq!(
            fleet.capacity(&model),
            Capacity {
                slots: 0,
                deserted: false
            }
        );
    }

    #[test]
    fn a_presence_that_a_new_watch_repeats_is_as_old_as_before() {
        let fleet = Fleet::new();
        let at = |fleet: &Fleet| fleet.inner.read().expect("unpoisoned").present["a"].at;
        fleet.put(presence("a", BreakerState::Passing), 7);
        let first = at(&fleet);
        fleet.put(presence("a", BreakerState::Passing), 7);
        assert_eq!(at(&fleet), first);
        fleet.put(presence("a", BreakerState::Passing), 2);
        assert!(
            at(&fleet) > first,
            "a bucket that was made anew counts from the start"
        );
    }
}
