//! Tells receivers that jobs have ended: signed HTTP requests in the Standard Webhooks scheme, at least once each.
//!
//! What is to be told is written with the end of a job ([`store::webhooks::enqueue`](crate::store::webhooks::enqueue)).
//! Every broker takes what is due, under a lease, makes the attempt, and writes down what came of it; what a broker
//! that dies has taken is anybody's once its lease is over. So a receiver may be told twice, by the same id. Who may be
//! told is a list that administrators keep, and where that leads is looked at by each connection ([`address`]).

pub mod address;
pub mod receiver;
pub mod schedule;
mod send;
pub mod sign;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use duo_contract::seal::SealKeys;
use duo_process::clock;
use duo_process::metrics::register;
use duo_process::shutdown::Shutdown;
use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use reqwest::Certificate;
use tokio::sync::Notify;
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use self::send::{Attempted, Clients, Met};
use crate::config::WebhookConfig;
use crate::store::webhooks::{Due, Next, SealedSecret, Settled};
use crate::store::{Store, StoreError};

/// The event of a test, which is tried once.
pub const TEST_EVENT: &str = "webhook.test";
/// Attempts that a broker makes at once.
const AT_ONCE: usize = 256;
/// Of these, for one receiver: a slow one holds up nobody but itself.
const AT_ONCE_EACH: usize = 8;
/// A lease is longer than an attempt by this, for writing down what came of it.
const LEASE_MARGIN: Duration = Duration::from_secs(5);
/// How often a broker looks for what is due, at the least and at the most: what other programs wrote, what is tried
/// again, what a dead broker has left.
const LEAST_TICK: Duration = Duration::from_millis(50);
const MOST_TICK: Duration = Duration::from_secs(1);
/// How often the gauges are set.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// How often old deliveries are removed and secrets are sealed anew.
const TIDY_EVERY: Duration = Duration::from_secs(3600);
/// How long deliveries are kept.
const KEEP: time::Duration = time::Duration::days(30);
/// When a delivery is looked at again whose secret no key here opens: another broker may have the key.
const UNOPENED_PAUSE: Duration = Duration::from_secs(30);
/// How long attempts under way may go on when the broker stops.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Has deliveries sent that were just written. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Webhooks {
    wake: Arc<Notify>,
}

impl Webhooks {
    /// Has this broker look for what is due at once; to be called when a transaction that has written deliveries is
    /// committed. Without it they are sent within a second.
    pub fn wake(&self) {
        self.wake.notify_one();
    }
}

/// What the task works with.
#[derive(Debug)]
pub struct Parts {
    /// This broker's name, which no other has.
    pub broker: String,
    /// When what is tried again.
    pub config: WebhookConfig,
    /// The deliveries.
    pub store: Store,
    /// What opens the receivers' secrets.
    pub keys: SealKeys,
    /// Private certificate authorities that receivers may have.
    pub certificates: Vec<Certificate>,
    /// What wakes it.
    pub webhooks: Webhooks,
}

/// What the task tells of itself.
#[derive(Debug, Clone)]
pub struct WebhookMetrics {
    /// `duo_webhook_deliveries_total`: attempts of this broker by `result`: `delivered`, `gone` (410), `redirect`, `status`
    /// (another one), `timed_out`, `unreachable`, `unresolved`, `address_refused`, `unopened` (no key for the secret).
    attempts: IntCounterVec,
    /// `duo_webhook_given_up_total`: deliveries whose last attempt failed at this broker.
    given_up: IntCounter,
    /// `duo_webhook_pending`: deliveries that wait, of all brokers together; each of them tells the same.
    pending: IntGauge,
    /// `duo_webhook_oldest_pending_seconds`: for how long the first of them has waited.
    oldest: Gauge,
}

impl WebhookMetrics {
    /// Declares and registers them.
    ///
    /// # Panics
    /// When the registry has them already.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let named = "a valid metric name";
        let attempts = Opts::new("duo_webhook_deliveries_total", "Attempts to tell a receiver.");
        let attempts = register(registry, IntCounterVec::new(attempts, &["result"]).expect(named));
        for met in Met::ALL {
            attempts.with_label_values(&[met.as_str()]);
        }
        let given_up = IntCounter::new(
            "duo_webhook_given_up_total",
            "Deliveries whose last attempt failed.",
        );
        let pending = IntGauge::new("duo_webhook_pending", "Deliveries that wait, of all brokers.");
        let oldest = Gauge::new(
            "duo_webhook_oldest_pending_seconds",
            "Age of the first delivery that waits.",
        );
        Self {
            attempts,
            given_up: register(registry, given_up.expect(named)),
            pending: register(registry, pending.expect(named)),
            oldest: register(registry, oldest.expect(named)),
        }
    }
}

/// Makes deliveries until the shutdown begins, then gives back what it has.
pub async fn run(parts: Parts, metrics: WebhookMetrics, shutdown: Shutdown) {
    let mut tick = tokio::time::interval((parts.config.schedule.shortest() / 4).clamp(LEAST_TICK, MOST_TICK));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let webhooks = parts.webhooks.clone();
    let mut post = Post::new(parts, metrics);
    loop {
        tokio::select! {
            () = shutdown.begun() => break,
            () = webhooks.wake.notified() => {}
            _ = tick.tick() => {}
            Some(ended) = post.tasks.join_next_with_id() => post.ended(ended),
        }
        // Whatever it was about to write is still there for the end, and what it had taken is given back.
        tokio::select! {
            () = shutdown.begun() => break,
            () = post.step() => {}
        }
    }
    post.finish().await;
}

struct Post {
    parts: Parts,
    metrics: WebhookMetrics,
    clients: Clients,
    tasks: JoinSet<Settled>,
    /// The receivers of the attempts that are being made.
    under_way: HashMap<task::Id, Uuid>,
    /// Attempts that are over and not written down.
    unsettled: Vec<Settled>,
    count_at: Instant,
    tidy_at: Instant,
    /// Does the log have it that Postgres is away?
    away: bool,
}

impl Post {
    fn new(mut parts: Parts, metrics: WebhookMetrics) -> Self {
        let now = Instant::now();
        Self {
            clients: Clients::new(std::mem::take(&mut parts.certificates)),
            parts,
            metrics,
            tasks: JoinSet::new(),
            under_way: HashMap::new(),
            unsettled: Vec::new(),
            count_at: now,
            tidy_at: now,
            away: false,
        }
    }

    /// Writes down what is over, takes what is due, and looks after the rest where it is time.
    async fn step(&mut self) {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.ended(ended);
        }
        let stepped = async {
            self.settle().await?;
            self.take().await?;
            self.look_after().await
        };
        match stepped.await {
            Ok(()) => self.away = false,
            Err(error) if !self.away => {
                self.away = true;
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "webhooks wait for the database; trying again"
                );
            }
            Err(_) => {}
        }
    }

    fn ended(&mut self, ended: Result<(task::Id, Settled), task::JoinError>) {
        match ended {
            Ok((id, settled)) => {
                self.under_way.remove(&id);
                self.unsettled.push(settled);
            }
            // Its lease will end.
            Err(error) => {
                self.under_way.remove(&error.id());
                tracing::error!(error = %error, "an attempt to tell a receiver broke off");
            }
        }
    }

    async fn settle(&mut self) -> Result<(), StoreError> {
        if self.unsettled.is_empty() {
            return Ok(());
        }
        let Parts { store, broker, .. } = &self.parts;
        let disabled = store.settle_deliveries(broker, &self.unsettled).await?;
        for name in disabled {
            tracing::warn!(
                receiver = name,
                "a receiver says that it is gone: it is disabled, and what waited for it is dropped"
            );
        }
        self.unsettled.clear();
        Ok(())
    }

    async fn take(&mut self) -> Result<(), StoreError> {
        let room = AT_ONCE.saturating_sub(self.under_way.len());
        if room == 0 {
            return Ok(());
        }
        let mut busy: HashMap<Uuid, i64> = HashMap::new();
        for receiver in self.under_way.values() {
            *busy.entry(*receiver).or_default() += 1;
        }
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let bounds = (signed(room), signed(AT_ONCE_EACH));
        let lease = self.parts.config.timeout + LEASE_MARGIN;
        let Parts { store, broker, .. } = &self.parts;
        let mut taken = store.take_deliveries(broker, lease, &busy, bounds).await?;
        for due in std::mem::take(&mut taken.deliveries) {
            let secrets = taken.secrets.get(&due.receiver).map_or(&[][..], Vec::as_slice);
            self.begin(due, secrets);
        }
        Ok(())
    }

    fn begin(&mut self, due: Due, secrets: &[SealedSecret]) {
        let (receiver, metrics) = (due.receiver, self.metrics.clone());
        let WebhookConfig { schedule, timeout } = self.parts.config.clone();
        let opened: Vec<_> = secrets
            .iter()
            .filter_map(|secret| secret.open(&self.parts.keys).ok())
            .collect();
        let client = self.clients.client(&due.addresses);
        let task = async move {
            let attempted = match client {
                _ if opened.is_empty() => {
                    send::unopened("no key here opens the receiver's secret; see DUO_SEAL_KEYS_FILE")
                }
                Ok(client) => send::attempt(&client, &due, &opened, timeout).await,
                Err(error) => send::unopened(&error.to_string()),
            };
            let next = next(&due, &attempted, &schedule);
            tell(&due, &attempted, next, &metrics);
            Settled {
                id: due.id,
                receiver: due.receiver,
                attempt: due.attempt,
                next,
                at: attempted.at,
                result: attempted.met.as_str(),
                status: attempted.status,
                detail: attempted.detail,
                duration: attempted.duration,
            }
        };
        let id = self.tasks.spawn(task).id();
        self.under_way.insert(id, receiver);
    }

    async fn look_after(&mut self) -> Result<(), StoreError> {
        let (now, store) = (Instant::now(), &self.parts.store);
        if now >= self.count_at {
            store.drop_deliveries_of_disabled().await?;
            let backlog = store.delivery_backlog().await?;
            self.metrics
                .pending
                .set(i64::try_from(backlog.pending).unwrap_or(i64::MAX));
            self.metrics.oldest.set(backlog.oldest_seconds);
            self.count_at = now + COUNT_EVERY;
        }
        if now >= self.tidy_at {
            let (sealed, closed) = store.reseal_secrets(&self.parts.keys).await?;
            if sealed > 0 {
                tracing::info!(
                    sealed,
                    "secrets of receivers are sealed with the first seal key now"
                );
            }
            if closed > 0 {
                tracing::error!(
                    closed,
                    "no key in DUO_SEAL_KEYS_FILE opens some secrets of receivers: put the old key back or rotate them"
                );
            }
            let forgotten = store.forget_deliveries(clock::now() - KEEP).await?;
            // There may be more; they go with the next count.
            let pause = if forgotten > 0 { COUNT_EVERY } else { TIDY_EVERY };
            self.tidy_at = now + pause;
        }
        Ok(())
    }

    /// Lets attempts end that are about to, and gives the others back.
    async fn finish(mut self) {
        let last_words = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.ended(ended);
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
        self.tasks.abort_all();
        let settled = async {
            self.settle().await?;
            let Parts { store, broker, .. } = &self.parts;
            store.release_deliveries(broker).await
        };
        if !matches!(tokio::time::timeout(LAST_WORDS, settled).await, Ok(Ok(_))) {
            tracing::warn!("webhooks under way are left to the other brokers when their leases end");
        }
    }
}

/// What becomes of a delivery.
fn next(due: &Due, attempted: &Attempted, schedule: &schedule::Schedule) -> Next {
    match attempted.met {
        Met::Delivered => Next::Delivered,
        Met::Gone => Next::Gone,
        Met::Unopened => Next::Unmade(UNOPENED_PAUSE),
        _ if due.event == TEST_EVENT => Next::Failed,
        Met::Redirect
        | Met::Status
        | Met::TimedOut
        | Met::Unreachable
        | Met::Unresolved
        | Met::AddressRefused => schedule
            .delay_after(due.attempt + 1, attempted.hint)
            .map_or(Next::Failed, Next::Again),
    }
}

fn tell(due: &Due, attempted: &Attempted, next: Next, metrics: &WebhookMetrics) {
    let result = attempted.met.as_str();
    metrics.attempts.with_label_values(&[result]).inc();
    let (delivery, receiver) = (&due.id, &due.receiver_name);
    let (status, detail) = (attempted.status, attempted.detail.as_deref());
    match next {
        Next::Delivered => tracing::debug!(delivery, receiver, status, "a receiver was told"),
        Next::Failed => {
            metrics.given_up.inc();
            tracing::warn!(
                delivery,
                receiver,
                result,
                status,
                detail,
                "a delivery is given up"
            );
        }
        // The log has it once for all of them.
        Next::Unmade(_) => tracing::debug!(delivery, receiver, detail, "a delivery cannot be made"),
        Next::Again(_) | Next::Gone => {
            tracing::info!(
                delivery,
                receiver,
                result,
                status,
                detail,
                "a receiver could not be told"
            );
        }
    }
}
