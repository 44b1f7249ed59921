//! Closes the records of requests whose broker died, as *abandoned*.
//!
//! Every broker runs one; they need no agreement. A request is closed when it was admitted, has no terminal record,
//! and its broker does not know it or has been away from NATS for [`Parts::after`], and still has none once the
//! writer has passed everything that was stored before the broker was asked. Sweepers that find the same request
//! write under one message id, so NATS keeps one record; should its broker come back after all, that one's own
//! record is kept as a late end. Nothing is concluded while NATS or Postgres is away.
//!
//! What it remembers is only a saving: open requests found earlier, and the place up to which all others have ended.

mod open;
mod owners;
mod watermark;

use std::time::{Duration, Instant};

use duo_contract::audit::{AuditKind, AuditRecord, End, Outcome};
use duo_process::clock;
use duo_process::metrics::register;
use duo_process::nats::Nats;
use duo_process::shutdown::Shutdown;
use prometheus::{IntCounter, IntGauge, Registry};
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use self::open::Open;
use self::owners::Owners;
use self::watermark::{Watermark, WatermarkError};
use super::sink::AuditSink;
use crate::store::{Store, StoreError};

/// The reason in an abandoned request's record.
pub const REASON: &str = "broker_lost";
/// Sweeps follow each other at a quarter of [`Parts::after`], within these bounds.
const LEAST_TICK: Duration = Duration::from_millis(250);
const MOST_TICK: Duration = Duration::from_secs(5);
/// How long the writer may take to pass what was stored before the owners were asked; else the next sweep asks again.
const WRITER_PATIENCE: Duration = Duration::from_secs(10);
/// Requests that one sweep may close.
const CLOSED_AT_ONCE: usize = 4096;
/// A record that has not reached Postgres after so long is written again.
const WRITE_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What a sweeper works with.
#[derive(Debug)]
pub struct Parts {
    /// This broker's name, which stands in the records that it writes.
    pub broker: String,
    /// How long an owner must be away, and how old a request must be to be looked at.
    pub after: Duration,
    /// Where records end up.
    pub store: Store,
    /// Where owners are asked.
    pub nats: Nats,
    /// Where the records go, as every other.
    pub sink: AuditSink,
}

/// What the sweeper tells of itself.
#[derive(Debug, Clone)]
pub struct SweeperMetrics {
    /// `duo_requests_abandoned_total`: terminal records this broker wrote for others' requests; these are in no
    /// other counter of requests.
    abandoned: IntCounter,
    /// `duo_audit_unended`: requests known to this sweeper that are older than `DUO_ABANDON_AFTER` and have not
    /// ended, long answers among them.
    unended: IntGauge,
}

impl SweeperMetrics {
    /// Declares and registers them.
    ///
    /// # Panics
    /// When the registry has them already.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let named = "a valid metric name";
        Self {
            abandoned: register(
                registry,
                IntCounter::new(
                    "duo_requests_abandoned_total",
                    "Requests of brokers that are gone which this broker has closed.",
                )
                .expect(named),
            ),
            unended: register(
                registry,
                IntGauge::new(
                    "duo_audit_unended",
                    "Requests older than DUO_ABANDON_AFTER without a terminal record in PostgreSQL.",
                )
                .expect(named),
            ),
        }
    }
}

/// Why a sweep was left off; the next one begins anew.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Watermark(#[from] WatermarkError),
}

/// Sweeps until the shutdown begins.
pub async fn run(parts: Parts, metrics: SweeperMetrics, shutdown: Shutdown) {
    let mut tick = tokio::time::interval((parts.after / 4).clamp(LEAST_TICK, MOST_TICK));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweeper = Sweeper {
        open: Open::new(parts.after),
        owners: Owners::new(parts.nats.clone(), parts.after),
        watermark: Watermark::new(parts.nats.clone()),
        connection: parts.nats.connections().borrow().count,
        parts,
        metrics,
    };
    let mut failing = false;
    loop {
        let swept = tokio::select! {
            () = shutdown.begun() => return,
            swept = async {
                tick.tick().await;
                sweeper.sweep().await
            } => swept,
        };
        if let (Err(error), false) = (&swept, failing) {
            let error = error as &dyn std::error::Error;
            tracing::warn!(error, "open audit records cannot be looked after; trying again");
        }
        failing = swept.is_err();
    }
}

struct Sweeper {
    parts: Parts,
    metrics: SweeperMetrics,
    open: Open,
    owners: Owners,
    watermark: Watermark,
    /// The connection to NATS over which owners have been asked so far.
    connection: u64,
}

impl Sweeper {
    async fn sweep(&mut self) -> Result<(), SweepError> {
        if !self.parts.nats.is_up() || self.parts.sink.is_saturated() {
            return Ok(());
        }
        let connection = self.parts.nats.connections().borrow().count;
        if connection != self.connection {
            // Who was not heard over the old one may have been cut off together with us.
            self.owners.forget();
            self.connection = connection;
        }
        let passed = self.watermark.step().await?;
        self.open.gather(&self.parts.store, passed).await?;
        self.open.drop_ended(&self.parts.store).await?;
        let known = i64::try_from(self.open.len()).unwrap_or(i64::MAX);
        self.metrics.unended.set(known);
        let mut orphans = self.owners.orphans(&mut self.open).await;
        orphans.truncate(CLOSED_AT_ONCE);
        if orphans.is_empty() {
            return Ok(());
        }
        self.close(&orphans).await
    }

    /// Closes those that still have no end once the writer has passed all that their owners may have said.
    async fn close(&mut self, orphans: &[Uuid]) -> Result<(), SweepError> {
        if !self.watermark.passes_all(WRITER_PATIENCE).await? {
            tracing::debug!("the audit writer is behind; abandoned requests are closed later");
            return Ok(());
        }
        self.open.drop_ended(&self.parts.store).await?;
        let mut closed = 0_u64;
        for id in orphans {
            let Some(admitted) = self.open.put_off(*id, Instant::now() + WRITE_AGAIN_AFTER) else {
                continue;
            };
            tracing::debug!(request_id = %id, owner = admitted.broker, "closing a request whose broker is gone");
            self.parts.sink.write(&abandoned(admitted, &self.parts.broker));
            closed += 1;
        }
        if closed > 0 {
            self.metrics.abandoned.inc_by(closed);
            tracing::warn!(
                requests = closed,
                "closed requests whose broker is gone, as abandoned"
            );
        }
        Ok(())
    }
}

/// The terminal record of a request of which only the *admitted* record is left.
fn abandoned(admitted: &AuditRecord, broker: &str) -> AuditRecord {
    let now = clock::now().unix_timestamp_nanos() / 1000;
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    AuditRecord {
        kind: AuditKind::Ended,
        occurred_at_us: now,
        broker: broker.to_owned(),
        end: Some(End {
            outcome: Outcome::Abandoned,
            reason: Some(REASON.to_owned()),
            // What the broker knew of attempts is gone with it.
            worker: None,
            attempts: 0,
            queue_wait_us: None,
            first_byte_us: None,
            duration_us: now.saturating_sub(admitted.occurred_at_us).max(0),
            input_tokens: None,
            output_tokens: None,
            prompt_sha256: None,
            answer_sha256: None,
        }),
        ..admitted.clone()
    }
}
