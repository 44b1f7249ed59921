//! What the handlers of one simulated server share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use http::{HeaderMap, header};
use tokio::sync::watch;

use super::fault::Faults;
use super::follow::List;
use super::refusal::Refusal;
use super::settings::Settings;
use super::slots::Slots;
use super::stats::{Counters, Stats};

/// The last request that reached an endpoint under `/v1`.
#[derive(Clone, Debug, Default)]
pub struct LastRequest {
    /// Its path.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, byte for byte.
    pub body: Bytes,
}

/// The state behind one server.
#[derive(Debug)]
pub(crate) struct Shared {
    settings: RwLock<Arc<Settings>>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) faults: Faults,
    pub(crate) counters: Counters,
    pub(crate) under_way: List,
    last: Mutex<Option<LastRequest>>,
    replies: AtomicU64,
    pub(crate) draining: AtomicBool,
    pub(crate) unhealthy: AtomicBool,
    /// Set while the server dies, so that streams cut by it do not count as aborted by clients.
    pub(crate) killed: AtomicBool,
    /// Stops the server; set once it runs.
    pub(crate) stopper: OnceLock<watch::Sender<bool>>,
}

impl Shared {
    /// State with these settings.
    pub(crate) fn new(mut settings: Settings) -> Arc<Self> {
        let faults = Faults::default();
        faults.adopt(&mut settings);
        Arc::new(Self {
            slots: Arc::new(Slots::new(settings.slots)),
            settings: RwLock::new(Arc::new(settings)),
            faults,
            counters: Counters::default(),
            under_way: List::default(),
            last: Mutex::default(),
            replies: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            unhealthy: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            stopper: OnceLock::new(),
        })
    }

    /// The settings in force.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the settings; requests under way keep theirs.
    pub(crate) fn replace(&self, mut settings: Settings) {
        self.faults.adopt(&mut settings);
        let slots = settings.slots;
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        self.slots.resize(slots);
        self.counters.touch();
    }

    /// One look at the counters.
    pub(crate) fn stats(&self) -> Stats {
        self.counters.look(self.slots.count())
    }

    /// Keeps a request for whoever asks what arrived.
    pub(crate) fn keep(&self, request: LastRequest) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
    }

    /// The request kept.
    pub(crate) fn last(&self) -> Option<LastRequest> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of the next reply.
    pub(crate) fn next_reply(&self) -> u64 {
        self.replies.fetch_add(1, Ordering::Relaxed)
    }

    /// Checks the key, if the settings ask for one.
    pub(crate) fn authorize(&self, settings: &Settings, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(key) = &settings.api_key else {
            return Ok(());
        };
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        match given.and_then(|given| given.strip_prefix("Bearer ")) {
            Some(given) if given == key => Ok(()),
            _ => Err(Refusal::unauthorized()),
        }
    }

    /// Ends the server at once.
    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        if let Some(stopper) = self.stopper.get() {
            stopper.send_replace(true);
        }
    }
}
