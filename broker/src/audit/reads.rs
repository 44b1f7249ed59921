//! Whoever reads audit records is recorded too, before anything is shown.

use std::time::{Duration, Instant};

use duo_contract::audit::{AuditKind, AuditRecord, What, Who};
use duo_process::clock;
use serde_json::Value;
use uuid::Uuid;

use super::AuditLog;

/// Longest wait for NATS to store the record of a reading.
const PATIENCE: Duration = Duration::from_millis(4500);

/// Something of the audit log that somebody is about to be shown.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The record's id.
    pub id: Uuid,
    /// Who reads.
    pub who: Who,
    /// By which call.
    pub route: &'static str,
    /// Its `X-Request-ID`.
    pub correlation_id: Option<String>,
    /// What was asked for, and how much of it there is.
    pub details: Value,
}

impl AuditLog {
    /// Records a reading; false when NATS did not store that in time, so that nothing may be shown.
    #[must_use = "what is not recorded may not be shown"]
    pub async fn read(&self, reading: Reading) -> bool {
        if self.is_saturated() {
            return false;
        }
        let now = clock::now().unix_timestamp_nanos() / 1000;
        let stored = self.sink.write_awaited(&AuditRecord {
            kind: AuditKind::Read,
            request_id: reading.id,
            occurred_at_us: i64::try_from(now).unwrap_or(i64::MAX),
            broker: self.broker.to_string(),
            who: reading.who,
            what: What {
                correlation_id: reading.correlation_id,
                ..What::of(reading.route, 0)
            },
            end: None,
            details: Some(reading.details.to_string()),
        });
        stored.by(Instant::now() + PATIENCE).await
    }
}
