//! The signing keys of one instance: cached, refreshed, fetched by one at a time.
//!
//! Keys once loaded are used until others replace them: an instance that is away must not lock its people out. A
//! token that no key verifies may mean that the keys have changed, or that somebody is trying; so it provokes one
//! fetch in a while, which everybody waiting shares.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use duo_process::retry::RetryPolicy;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::Instant;

use super::AuthConfig;
use super::fetch::{self, Key, KeyFetchError};
use super::metrics::AuthMetrics;

/// First ceiling and cap of the delay after a failed fetch, and its floor.
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_secs(60);
const RETRY_FLOOR: Duration = Duration::from_millis(100);

/// How the keys of an issuer stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerKeys {
    /// The issuer's URL.
    pub url: String,
    /// How many keys there are; none before the first good fetch.
    pub keys: usize,
    /// How long ago they were last fetched.
    pub age: Option<Duration>,
    /// Are they older than [`AuthConfig::keys_max_age`]? They are used all the same.
    pub stale: bool,
}

/// Keys that were published together; never none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeySet(Vec<Key>);

/// How keys are fetched, for all issuers.
pub(super) struct Refresh {
    client: reqwest::Client,
    timeout: Duration,
    every: Duration,
    max_age: Duration,
    /// Least time between two fetches that tokens provoke.
    provoked_every: Duration,
    retry: RetryPolicy,
}

/// The place of one issuer's keys.
#[derive(Debug)]
pub(super) struct KeySlot {
    url: String,
    keys: ArcSwapOption<KeySet>,
    /// Held for a few instructions, never across an await.
    state: Mutex<SlotState>,
}

#[derive(Debug)]
struct SlotState {
    /// The fetch under way. Whoever waits drives it, so it needs no task, and a client that leaves stops nobody.
    fetch: Option<(u64, Fetch)>,
    /// Counts fetches, so that a result is recorded once.
    started: u64,
    /// When a token that fitted no key last provoked a fetch.
    provoked_at: Option<Instant>,
    loaded_at: Option<Instant>,
    failed_at: Option<Instant>,
    /// Failed fetches since the last good one.
    failures: u32,
    /// When the background is to fetch next.
    refresh_at: Instant,
}

type Fetched = Result<Arc<KeySet>, Arc<KeyFetchError>>;
type Fetch = Shared<BoxFuture<'static, Fetched>>;

impl KeySet {
    /// Keys that somebody else than an instance has published; some at least.
    pub(super) fn of(keys: Vec<Key>) -> Self {
        Self(keys)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }

    /// The key of that name, then all others.
    pub(super) fn best_first(&self, kid: Option<&str>) -> impl Iterator<Item = &Key> {
        let is_named = move |key: &&Key| kid.is_some() && key.kid() == kid;
        let named = self.0.iter().filter(is_named);
        named.chain(self.0.iter().filter(move |key| !is_named(key)))
    }
}

impl Refresh {
    pub(super) fn new(client: reqwest::Client, config: &AuthConfig) -> Self {
        Self {
            client,
            timeout: config.fetch_timeout,
            every: config.keys_refresh,
            max_age: config.keys_max_age,
            provoked_every: config.unknown_key_refresh,
            retry: RetryPolicy::try_new(RETRY_BASE, RETRY_CAP, u32::MAX).expect("the base is below the cap"),
        }
    }
}

impl KeySlot {
    pub(super) fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            keys: ArcSwapOption::empty(),
            state: Mutex::new(SlotState {
                fetch: None,
                started: 0,
                provoked_at: None,
                loaded_at: None,
                failed_at: None,
                failures: 0,
                refresh_at: Instant::now(),
            }),
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn keys(&self) -> Option<Arc<KeySet>> {
        self.keys.load_full()
    }

    pub(super) fn has_keys(&self) -> bool {
        self.keys.load().is_some()
    }

    /// Are `keys` still the ones in use?
    pub(super) fn has_same(&self, keys: &Arc<KeySet>) -> bool {
        self.keys
            .load()
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, keys))
    }

    pub(super) fn refresh_at(&self) -> Instant {
        self.state().refresh_at
    }

    pub(super) fn is_due(&self) -> bool {
        self.refresh_at() <= Instant::now()
    }

    pub(super) fn status(&self, refresh: &Refresh) -> IssuerKeys {
        let age = self.state().loaded_at.map(|moment| moment.elapsed());
        IssuerKeys {
            url: self.url.clone(),
            keys: self.keys.load().as_ref().map_or(0, |keys| keys.0.len()),
            age,
            stale: age.is_some_and(|age| age > refresh.max_age),
        }
    }

    /// Fetches the keys, or waits for whoever does.
    pub(super) async fn refresh(&self, refresh: &Refresh, metrics: &AuthMetrics) {
        let fetch = self.join_or_start(&mut self.state(), refresh);
        self.finish(fetch, refresh, metrics).await;
    }

    /// Keys other than `known`: those that came in meanwhile, or those of a fetch if one may be provoked now.
    pub(super) async fn newer_than(
        &self,
        known: Option<&Arc<KeySet>>,
        refresh: &Refresh,
        metrics: &AuthMetrics,
    ) -> Option<Arc<KeySet>> {
        if let Some(fetch) = self.provoke(known, refresh) {
            self.finish(fetch, refresh, metrics).await;
        }
        self.keys()
            .filter(|keys| !known.is_some_and(|known| Arc::ptr_eq(known, keys)))
    }

    fn provoke(&self, known: Option<&Arc<KeySet>>, refresh: &Refresh) -> Option<(u64, Fetch)> {
        let mut state = self.state();
        let is_newest = match known {
            Some(known) => self.has_same(known),
            None => !self.has_keys(),
        };
        if !is_newest {
            return None;
        }
        if state.fetch.is_none() {
            // Without keys what counts is the last failure, the background's too: nobody is to wait for an instance
            // that is away. With keys it is the last token that fitted none, so that a rotation is noticed even
            // right after a refresh.
            let last = match known {
                None => state.failed_at,
                Some(_) => state.provoked_at,
            };
            if last.is_some_and(|moment| moment.elapsed() < refresh.provoked_every) {
                return None;
            }
            if known.is_some() {
                state.provoked_at = Some(Instant::now());
            }
        }
        Some(self.join_or_start(&mut state, refresh))
    }

    fn join_or_start(&self, state: &mut SlotState, refresh: &Refresh) -> (u64, Fetch) {
        if let Some(fetch) = &state.fetch {
            return fetch.clone();
        }
        let (client, url, timeout) = (refresh.client.clone(), self.url.clone(), refresh.timeout);
        let fetch = async move {
            match fetch::fetch_keys_within(&client, &url, timeout).await {
                Ok(keys) => Ok(Arc::new(KeySet(keys))),
                Err(error) => Err(Arc::new(error)),
            }
        };
        state.started += 1;
        let fetch = (state.started, fetch.boxed().shared());
        state.fetch = Some(fetch.clone());
        fetch
    }

    async fn finish(&self, (number, fetch): (u64, Fetch), refresh: &Refresh, metrics: &AuthMetrics) {
        let fetched = fetch.await;
        let mut state = self.state();
        if state
            .fetch
            .as_ref()
            .is_none_or(|(under_way, _)| *under_way != number)
        {
            return; // Somebody who waited for the same has recorded it.
        }
        state.fetch = None;
        metrics.fetched(fetched.as_ref().err().map(Arc::as_ref));
        match fetched {
            Ok(keys) => self.record_keys(&mut state, keys, refresh),
            Err(error) => self.record_failure(&mut state, &error, refresh),
        }
    }

    fn record_keys(&self, state: &mut SlotState, keys: Arc<KeySet>, refresh: &Refresh) {
        let now = Instant::now();
        state.loaded_at = Some(now);
        state.failed_at = None;
        state.failures = 0;
        // A tenth of jitter keeps brokers that started together apart.
        state.refresh_at = now + rand::random_range(refresh.every * 9 / 10..=refresh.every).max(RETRY_FLOOR);
        // The same keys stay the same object, which keeps verified tokens.
        if self.keys.load().as_deref() != Some(&*keys) {
            tracing::info!(issuer = self.url, keys = keys.0.len(), "signing keys loaded");
            self.keys.store(Some(keys));
        }
    }

    fn record_failure(&self, state: &mut SlotState, error: &KeyFetchError, refresh: &Refresh) {
        let now = Instant::now();
        state.failed_at = Some(now);
        state.failures = state.failures.saturating_add(1);
        state.refresh_at = now + refresh.retry.delay(state.failures).max(RETRY_FLOOR);
        let age = state.loaded_at.map(|moment| now - moment);
        let consequence = match age {
            None => "its tokens are refused until they are there",
            Some(age) if age > refresh.max_age => "stale keys are used on",
            Some(_) => "the keys at hand are used on",
        };
        tracing::warn!(
            issuer = self.url,
            %error,
            failures = state.failures,
            keys_age_seconds = age.map(|age| age.as_secs()),
            "signing keys not fetched: {consequence}"
        );
    }

    fn state(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
