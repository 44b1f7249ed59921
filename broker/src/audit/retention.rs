//! Drops what has been kept long enough, a partition at a time.
//!
//! Every broker looks; one at a time works. A partition that somebody reads just now, or that a legal hold covers, is
//! tried again later.

use std::time::{Duration, Instant};

use duo_process::clock;
use duo_process::metrics::register;
use duo_process::shutdown::Shutdown;
use prometheus::{IntCounter, IntGauge, Registry};
use time::Date;

use super::checkpoint;
use crate::store::audit_retention::{Dropped, Partitioned};
use crate::store::{Store, StoreError};

/// How often it is looked for what is due.
const TICK: Duration = Duration::from_secs(10 * 60);
/// The same while somebody reads what is due: writers wait for two seconds of it at most, see `Store::drop_partition`.
const TICK_WHEN_PUT_OFF: Duration = Duration::from_secs(60);
/// After the start of a broker, which has more urgent things to do.
const FIRST_TICK: Duration = Duration::from_secs(60);
/// Partitions that are dropped in one look at most.
const AT_ONCE: usize = 16;

/// What retention tells of itself.
#[derive(Debug, Clone)]
pub struct RetentionMetrics {
    /// `duo_audit_partitions_due`: partitions whose time is over and that are still there.
    due: IntGauge,
    /// `duo_audit_partitions_held`: those of them that a legal hold keeps.
    held: IntGauge,
    /// `duo_audit_partitions_dropped_total`: partitions that this broker dropped.
    dropped: IntCounter,
}

impl RetentionMetrics {
    /// Declares and registers them.
    ///
    /// # Panics
    /// When the registry has them already.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let named = "a valid metric name";
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help).expect(named));
        Self {
            due: gauge(
                "duo_audit_partitions_due",
                "Partitions of the audit log whose time is over and that are still there.",
            ),
            held: gauge(
                "duo_audit_partitions_held",
                "Partitions of the audit log whose time is over and that a legal hold keeps.",
            ),
            dropped: register(
                registry,
                IntCounter::new(
                    "duo_audit_partitions_dropped_total",
                    "Partitions of the audit log that this broker dropped.",
                )
                .expect(named),
            ),
        }
    }
}

/// What one look came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    /// Partitions that went.
    pub dropped: u64,
    /// Partitions that are due and still there.
    pub due: usize,
    /// Those of them that are held.
    pub held: usize,
    /// Those of them that PostgreSQL did not drop: as a rule because somebody reads them.
    pub put_off: usize,
}

/// Looks now and then until the shutdown begins; records are kept for so many days.
pub async fn run(store: Store, events_days: u16, metrics: RetentionMetrics, shutdown: Shutdown) {
    let mut pause = FIRST_TICK;
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = TICK;
        match look(&store, clock::now().date(), events_days).await {
            Ok(look) => {
                metrics.due.set(i64::try_from(look.due).unwrap_or(i64::MAX));
                metrics.held.set(i64::try_from(look.held).unwrap_or(i64::MAX));
                metrics.dropped.inc_by(look.dropped);
                if look.put_off > 0 {
                    pause = TICK_WHEN_PUT_OFF;
                }
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "it could not be looked which partitions of the audit log are due"
                );
            }
        }
    }
}

/// Drops what is due on the day `today`.
///
/// # Errors
/// Postgres is away or refuses to be asked.
pub async fn look(store: &Store, today: Date, events_days: u16) -> Result<Look, StoreError> {
    let oldest = today.saturating_sub(time::Duration::days(events_days.into()));
    let tomorrow = today.saturating_add(time::Duration::DAY);
    let mut look = Look::default();
    let events = store.due_partitions(Partitioned::Events, oldest).await?;
    if !events.is_empty()
        && store.last_checkpoint_size().await? == 0
        && let Err(error) = checkpoint::keep_tiles(store).await
    {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "the tree of the audit log could not be made");
    }
    let bodies = store.due_partitions(Partitioned::Bodies, tomorrow).await?;
    for (of, due) in [(Partitioned::Events, events), (Partitioned::Bodies, bodies)] {
        for (number, day) in due.into_iter().enumerate() {
            look.due += 1;
            if number >= AT_ONCE {
                continue;
            }
            let began = Instant::now();
            match store.drop_partition(of, day).await {
                Ok(Dropped::Gone) => {
                    let seconds = began.elapsed().as_secs_f64();
                    tracing::info!(?of, %day, seconds, "dropped a partition of the audit log");
                    look.dropped += 1;
                    look.due -= 1;
                }
                Ok(Dropped::Held) => look.held += 1,
                Ok(Dropped::Elsewhere) => {}
                // Time brings more records and their tiles, and a log that is not signed gets them here.
                Ok(Dropped::NotInTree) => {
                    tracing::info!(?of, %day, "a partition of the audit log stays until the log's tree has its records");
                }
                Err(error) => {
                    look.put_off += 1;
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, ?of, %day, "a partition of the audit log could not be dropped; trying again later");
                }
            }
        }
    }
    Ok(look)
}
