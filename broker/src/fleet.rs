//! Which workers are there and what they serve, from their presence keys.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::Operation;
use duo_contract::name::ModelName;
use duo_contract::presence::{BreakerState, Presence, ServedModel, kept_for_keystroke};
use duo_contract::subject;
use duo_process::nats::Nats;
use duo_process::shutdown::Shutdown;
use futures_util::StreamExt as _;

use crate::config::NO_WORKER_GRACE;
use crate::topology::PRESENCE_TTL;

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
    /// What each model last had while a worker served it, and when.
    served: HashMap<ModelName, (Instant, Slots)>,
    since: Instant,
    /// How long requests queue for a model that nobody serves.
    grace: Duration,
    /// What there is for each model, until a presence changes or runs out.
    offered: HashMap<ModelName, Arc<Capacity>>,
    offered_until: Option<Instant>,
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

    /// The slots of each server that takes work, by its models.
    fn servers(&self) -> Vec<(Vec<&ModelName>, Slots)> {
        let mut servers: Vec<(&str, Vec<&ModelName>, Slots)> = Vec::new();
        for served in &self.presence.models {
            let Some(slots) = Slots::of(served) else { continue };
            match servers.iter_mut().find(|(name, ..)| *name == served.server) {
                Some((_, models, _)) => models.push(&served.model),
                None => servers.push((&served.server, vec![&served.model], slots)),
            }
        }
        servers
            .into_iter()
            .map(|(_, models, slots)| (models, slots))
            .collect()
    }
}

/// Slots of one or more servers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Slots {
    all: u32,
    /// Of these, those that only keystroke may have.
    kept: u32,
}

impl Slots {
    /// What a server takes: nothing behind a tripped breaker, one request that
    /// tries behind a probing one.
    fn of(served: &ServedModel) -> Option<Self> {
        match served.breaker {
            BreakerState::Passing => Some(Self {
                all: served.slots,
                kept: kept_for_keystroke(served.slots),
            }),
            BreakerState::Probing => Some(Self {
                all: served.slots.min(1),
                kept: 0,
            }),
            BreakerState::Tripped => None,
        }
    }

    fn add(&mut self, other: Self) {
        self.all += other.all;
        self.kept += other.kept;
    }
}

/// What the fleet offers for one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Capacity {
    /// Slots of servers that take work; while all are away, what they had.
    pub slots: u32,
    /// Of these, those that only keystroke may have.
    pub kept: u32,
    /// Other models that are served with the same slots, and the part of their
    /// slots that these are.
    pub neighbours: Vec<(ModelName, f64)>,
    /// Does nobody serve the model at the moment?
    pub is_away: bool,
    deserted_from: Instant,
}

impl Capacity {
    /// Has nobody served the model for longer than the fleet's grace?
    #[must_use]
    pub fn is_deserted(&self) -> bool {
        self.is_away && Instant::now() > self.deserted_from
    }
}

impl Fleet {
    /// A fleet without workers, whose `grace` begins now.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        let workers = Workers {
            present: HashMap::new(),
            served: HashMap::new(),
            since: Instant::now(),
            grace,
            offered: HashMap::new(),
            offered_until: None,
        };
        Self {
            inner: Arc::new(RwLock::new(workers)),
        }
    }

    /// What is there for `model`.
    #[must_use]
    pub fn capacity(&self, model: &ModelName) -> Arc<Capacity> {
        let workers = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        if workers.offered_until.is_some_and(|until| Instant::now() < until)
            && let Some(offered) = workers.offered.get(model)
        {
            return Arc::clone(offered);
        }
        drop(workers);
        let mut workers = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        workers.offer();
        let offered = Arc::new(workers.away(model));
        Arc::clone(workers.offered.entry(model.clone()).or_insert(offered))
    }

    /// Do all servers that `model` may get to turn its tool calls into data?
    #[must_use]
    pub fn calls_tools(&self, model: &ModelName) -> bool {
        let workers = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let fresh = workers.present.values().filter(|seen| seen.is_fresh());
        let served = fresh.flat_map(|seen| &seen.presence.models);
        let mut served = served.filter(|served| served.model == *model).peekable();
        served.peek().is_some() && served.all(|served| served.tools)
    }

    /// Everything that is present now.
    #[must_use]
    pub fn present(&self) -> Vec<Presence> {
        let workers = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let fresh = workers.present.values().filter(|seen| seen.is_fresh());
        fresh.map(|seen| seen.presence.clone()).collect()
    }

    /// Takes a worker's presence as of now, unless it is known under that revision of the bucket.
    pub fn put(&self, presence: Presence, revision: u64) {
        let mut workers = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let known = workers.present.get(&presence.worker);
        if known.is_some_and(|known| known.revision == revision) {
            return;
        }
        let seen = Seen {
            presence,
            revision,
            at: Instant::now(),
        };
        workers.present.insert(seen.presence.worker.clone(), seen);
        workers
            .present
            .retain(|_, seen| seen.at.elapsed() < PRESENCE_TTL * 4);
        workers.offer();
    }

    pub(crate) fn remove(&self, worker: &str) {
        let mut workers = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        workers.present.remove(worker);
        workers.offer();
    }
}

impl Workers {
    /// Counts what there is for each model.
    fn offer(&mut self) {
        let now = Instant::now();
        let takers = || {
            let fresh = self.present.values().filter(|seen| seen.is_fresh());
            fresh.filter(|seen| !seen.presence.draining)
        };
        let servers: Vec<_> = takers().flat_map(Seen::servers).collect();
        let mut slots: HashMap<ModelName, Slots> = HashMap::new();
        let mut shared: HashMap<(ModelName, ModelName), u32> = HashMap::new();
        for (models, offered) in &servers {
            for model in models {
                slots.entry((*model).clone()).or_default().add(*offered);
                for other in models.iter().filter(|other| *other != model) {
                    *shared.entry(((*model).clone(), (*other).clone())).or_default() += offered.all;
                }
            }
        }
        let until = takers().map(|seen| seen.at + PRESENCE_TTL).min();
        self.offered = slots
            .iter()
            .map(|(model, offered)| {
                let pairs = shared.iter().filter(|((one, _), _)| one == model);
                let part = |other, count: u32| f64::from(count) / f64::from(slots[other].all.max(1));
                let capacity = Capacity {
                    slots: offered.all,
                    kept: offered.kept,
                    neighbours: pairs
                        .map(|((_, other), count)| (other.clone(), part(other, *count)))
                        .collect(),
                    is_away: false,
                    deserted_from: now + self.grace,
                };
                (model.clone(), Arc::new(capacity))
            })
            .collect();
        let served = slots.into_iter().map(|(model, slots)| (model, (now, slots)));
        self.served.extend(served);
        self.offered_until = Some(until.unwrap_or(now + PRESENCE_TTL));
    }

    /// A model that nobody serves at the moment: what it had may come back.
    fn away(&self, model: &ModelName) -> Capacity {
        let (last, slots) = self
            .served
            .get(model)
            .copied()
            .unwrap_or((self.since, Slots::default()));
        Capacity {
            slots: slots.all,
            kept: slots.kept,
            neighbours: Vec::new(),
            is_away: true,
            deserted_from: last + self.grace,
        }
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new(NO_WORKER_GRACE)
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
                tools: false,
            }],
        }
    }

    #[test]
    fn slots_of_tripped_servers_do_not_count() {
        let fleet = Fleet::default();
        let model = ModelName::parse("mistral").expect("a name");
        let offered = |fleet: &Fleet| {
            let capacity = fleet.capacity(&model);
            (
                capacity.slots,
                capacity.kept,
                capacity.is_away,
                capacity.is_deserted(),
            )
        };
        assert_eq!(offered(&fleet), (0, 0, true, false));
        fleet.put(presence("a", BreakerState::Passing), 1);
        fleet.put(presence("b", BreakerState::Tripped), 2);
        assert_eq!(offered(&fleet), (4, 1, false, false));
        fleet.put(presence("b", BreakerState::Probing), 3);
        assert_eq!(offered(&fleet), (5, 1, false, false));
        fleet.remove("b");
        fleet.remove("a");
        assert_eq!(
            offered(&fleet),
            (4, 1, true, false),
            "what was there may come back"
        );
    }

    #[test]
    fn a_model_calls_tools_only_if_it_does_on_every_server() {
        let fleet = Fleet::default();
        let model = ModelName::parse("mistral").expect("a name");
        assert!(!fleet.calls_tools(&model));
        let mut able = presence("one", BreakerState::Passing);
        able.models[0].tools = true;
        fleet.put(able, 1);
        assert!(fleet.calls_tools(&model));
        fleet.put(presence("two", BreakerState::Tripped), 2);
        assert!(!fleet.calls_tools(&model));
    }

    #[test]
    fn models_on_one_server_share_its_slots() {
        let fleet = Fleet::default();
        let name = |name: &str| ModelName::parse(name).expect("a name");
        let mut both = presence("a", BreakerState::Passing);
        let mut second = both.models[0].clone();
        second.model = name("codegemma");
        both.models.push(second.clone());
        let mut alone = presence("b", BreakerState::Passing);
        second.slots = 12;
        alone.models = vec![second];
        fleet.put(both, 1);
        fleet.put(alone, 2);
        let mistral = fleet.capacity(&name("mistral"));
        assert_eq!((mistral.slots, mistral.kept), (4, 1));
        assert_eq!(mistral.neighbours, [(name("codegemma"), 0.25)]);
        let codegemma = fleet.capacity(&name("codegemma"));
        assert_eq!((codegemma.slots, codegemma.kept), (16, 2));
        assert_eq!(codegemma.neighbours, [(name("mistral"), 1.0)]);
    }

    #[test]
    fn a_presence_that_a_new_watch_repeats_is_as_old_as_before() {
        let fleet = Fleet::default();
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
