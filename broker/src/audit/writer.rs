//! Moves audit records from their stream into Postgres, in batches.
//!
//! Every broker runs one; they share a durable consumer, so each record goes to one of them. A batch is acknowledged
//! after it is committed. A lost acknowledgement means a second delivery, which changes nothing in Postgres, so
//! plain publishes will do. While Postgres is away the records wait in the stream: nothing is pulled beyond the
//! batch in hand, and nothing else in the broker notices.

mod bodies;
mod source;

use std::collections::HashSet;
use std::time::Duration;

use duo_contract::audit::{self, AuditKind, AuditRecord};
use duo_process::clock;
use duo_process::metrics::register;
use duo_process::nats::Nats;
use duo_process::retry::RetryPolicy;
use duo_process::shutdown::Shutdown;
use prometheus::{Gauge, IntCounter, IntGauge, Registry};
use time::{Date, OffsetDateTime};

use self::source::{Delivery, Source};
use crate::store::audit_events::day_of;
use crate::store::{Store, StoreError};

/// Pauses while Postgres is away.
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(10);

/// What the writer tells of itself.
#[derive(Debug, Clone)]
pub struct WriterMetrics {
    /// `duo_audit_lag_seconds`: age of the oldest record that is in hand and not yet written.
    lag: Gauge,
    /// `duo_audit_pending`: messages that wait in the stream.
    pending: IntGauge,
    /// `duo_audit_written_total`: records written, repeated ones not counted.
    written: IntCounter,
    /// `duo_audit_batches_total`: batches committed.
    batches: IntCounter,
    /// `duo_audit_rejected_total`: records that could not be read or stored.
    rejected: IntCounter,
}

impl WriterMetrics {
    /// Declares and registers them.
    ///
    /// # Panics
    /// When the registry has them already.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let named = "a valid metric name";
        Self {
            lag: register(
                registry,
                Gauge::new(
                    "duo_audit_lag_seconds",
                    "Age of the oldest audit record in hand that is not in PostgreSQL yet.",
                )
                .expect(named),
            ),
            pending: register(
                registry,
                IntGauge::new(
                    "duo_audit_pending",
                    "Messages of audit records waiting in the stream.",
                )
                .expect(named),
            ),
            written: register(
                registry,
                IntCounter::new("duo_audit_written_total", "Audit records written to PostgreSQL.")
                    .expect(named),
            ),
            batches: register(
                registry,
                IntCounter::new("duo_audit_batches_total", "Batches of audit records written.").expect(named),
            ),
            rejected: register(
                registry,
                IntCounter::new(
                    "duo_audit_rejected_total",
                    "Audit records that could not be read or stored; they are kept in audit_rejects.",
                )
                .expect(named),
            ),
        }
    }
}

/// Writes until the shutdown has begun and the stream has nothing more to give.
///
/// # Panics
/// Never: its constants make a policy.
pub async fn run(store: Store, nats: Nats, metrics: WriterMetrics, shutdown: Shutdown) {
    let mut source = match Source::open(&nats).await {
        Ok(source) => source,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "audit records cannot be pulled; they stay in their stream");
            return;
        }
    };
    let mut writer = Writer {
        store,
        nats,
        metrics,
        shutdown,
        policy: RetryPolicy::try_new(RETRY_BASE, RETRY_CAP, u32::MAX).expect("constants that make a policy"),
        days: HashSet::new(),
        body_days: HashSet::new(),
    };
    loop {
        let batch = source.batch().await;
        if batch.is_empty() {
            writer.idle();
            if writer.shutdown.is_begun() {
                return;
            }
            continue;
        }
        if writer.write(&batch).await.is_err() {
            tracing::warn!(
                records = batch.len(),
                "PostgreSQL is away at the end; the records stay in their stream"
            );
            return;
        }
        writer.settle(&batch).await;
    }
}

struct Writer {
    store: Store,
    nats: Nats,
    metrics: WriterMetrics,
    shutdown: Shutdown,
    policy: RetryPolicy,
    /// Days whose partition is known to be there.
    days: HashSet<Date>,
    /// The same of sealed texts, by the day on which they are dropped.
    body_days: HashSet<Date>,
}

/// The shutdown has begun while Postgres was away.
struct GivenUp;

impl Writer {
    fn idle(&self) {
        self.metrics.lag.set(0.0);
        self.metrics.pending.set(0);
    }

    /// Writes a batch, however long Postgres is away.
    async fn write(&mut self, batch: &[Delivery]) -> Result<(), GivenUp> {
        let mut records = Vec::with_capacity(batch.len());
        for delivery in batch {
            if delivery.is_body {
                self.write_body(delivery).await?;
                continue;
            }
            for line in audit::split(&delivery.payload) {
                match decode(line) {
                    Ok(record) => records.push((delivery, record)),
                    Err(problem) => self.reject(delivery, &problem).await?,
                }
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        let all: Vec<_> = records.iter().map(|(_, record)| record).collect();
        match self.insert(&all, batch).await? {
            Ok(written) => self.count(written),
            Err(_) => self.write_one_by_one(&records, batch).await?,
        }
        self.metrics.batches.inc();
        Ok(())
    }

    /// Finds the record that Postgres refuses, so that it does not hold up the others.
    async fn write_one_by_one(
        &mut self,
        records: &[(&Delivery, AuditRecord)],
        batch: &[Delivery],
    ) -> Result<(), GivenUp> {
        for (delivery, record) in records {
            match self.insert(&[record], batch).await? {
                Ok(written) => self.count(written),
                Err(refusal) => self.reject(delivery, &chain(&refusal)).await?,
            }
        }
        Ok(())
    }

    /// Inserts records, trying again while Postgres is away; what it refuses for good comes back.
    async fn insert(
        &mut self,
        records: &[&AuditRecord],
        batch: &[Delivery],
    ) -> Result<Result<u64, StoreError>, GivenUp> {
        let mut attempt = 0;
        loop {
            let inserted = self.try_insert(records).await;
            attempt += 1;
            match inserted {
                Err(StoreError::Unavailable(error)) => self.pause(attempt, &error, batch).await?,
                // A partition that was known may have been dropped since; ask once more.
                Err(StoreError::Refused(_)) if !self.days.is_empty() && attempt == 1 => self.days.clear(),
                other => return Ok(other),
            }
        }
    }

    async fn try_insert(&mut self, records: &[&AuditRecord]) -> Result<u64, StoreError> {
        if records.is_empty() {
            return Ok(0);
        }
        let days = records.iter().filter_map(|record| day_of(record.request_id));
        // Tomorrow's partition is made today, so that midnight is no rush.
        let tomorrow = clock::now().date().next_day();
        for day in days.chain(tomorrow) {
            if !self.days.contains(&day) {
                self.store.create_audit_partition(day).await?;
                self.days.insert(day);
            }
        }
        self.store.insert_audit_records(records).await
    }

    /// Keeps the whole message that a record came in, once.
    async fn reject(&mut self, delivery: &Delivery, problem: &str) -> Result<(), GivenUp> {
        tracing::error!(
            sequence = delivery.sequence,
            problem,
            "an audit record cannot be stored; it is kept in audit_rejects"
        );
        self.metrics.rejected.inc();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let kept = self
                .store
                .keep_audit_reject(delivery.sequence, problem, &delivery.payload)
                .await;
            match kept {
                Err(StoreError::Unavailable(error)) => {
                    self.pause(attempt, &error, std::slice::from_ref(delivery))
                        .await?;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "the audit record cannot even be kept; it is dropped");
                    return Ok(());
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    async fn pause(&self, attempt: u32, error: &sqlx::Error, batch: &[Delivery]) -> Result<(), GivenUp> {
        if attempt == 1 {
            tracing::warn!(%error, "PostgreSQL is not available; audit records wait in their stream");
        }
        self.observe(batch);
        tokio::select! {
            () = self.shutdown.begun() => Err(GivenUp),
            () = tokio::time::sleep(self.policy.delay(attempt)) => Ok(()),
        }
    }

    /// Acknowledges a batch that is committed.
    async fn settle(&self, batch: &[Delivery]) {
        self.observe(batch);
        for delivery in batch {
            let acked = self
                .nats
                .client()
                .publish(delivery.ack.clone(), "+ACK".into())
                .await;
            if acked.is_err() {
                return;
            }
        }
    }

    fn count(&self, written: u64) {
        self.metrics.written.inc_by(written);
    }

    fn observe(&self, batch: &[Delivery]) {
        let oldest = batch.iter().map(|delivery| delivery.published).min();
        if let Some(oldest) = oldest {
            let age = clock::now() - oldest;
            self.metrics.lag.set(age.as_seconds_f64().max(0.0));
        }
        if let Some(last) = batch.last() {
            self.metrics.pending.set(last.pending.cast_signed());
        }
    }
}

/// Reads a record and checks what the table demands of it.
fn decode(payload: &[u8]) -> Result<AuditRecord, String> {
    // Postgres stores no NUL in text, and one hostile header must not hide a request.
    let nul = br"\u0000";
    let cleaned;
    let payload = if memchr::memmem::find(payload, nul).is_some() {
        cleaned = String::from_utf8_lossy(payload).replace(r"\u0000", r"\ufffd");
        cleaned.as_bytes()
    } else {
        payload
    };
    let record: AuditRecord = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    if day_of(record.request_id).is_none() {
        return Err(format!("request id {} is no UUIDv7", record.request_id));
    }
    if (record.kind == AuditKind::Ended) != record.end.is_some() {
        return Err(format!(
            "a record of kind {} with the wrong end",
            record.kind.as_str()
        ));
    }
    if record.kind.is_of_a_request() != record.details.is_none() {
        return Err(format!(
            "a record of kind {} with the wrong details",
            record.kind.as_str()
        ));
    }
    Ok(record)
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A moment from the nanoseconds in an acknowledgement subject.
fn moment(nanoseconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanoseconds)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
