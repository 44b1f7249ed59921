//! New records at a steady pace, as brokers send them, and how long they take into PostgreSQL.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use duo_contract::audit::{AuditKind, AuditRecord, End, Outcome, What, Who, join};
use duo_contract::name::{FeatureName, ModelName};
use duo_contract::subject::AUDIT_RECORDS;
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Door, LOOK, PATIENCE};

/// Between two messages.
const EVERY: Duration = Duration::from_millis(10);

/// What became of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Flow {
    /// Records that were sent.
    pub records: u64,
    /// Records a second that were sent.
    pub per_second: f64,
    /// Seconds from a record's moment to its row: half of them, 99 in a hundred, the longest.
    pub lag_seconds: [f64; 3],
    /// Records that are not in PostgreSQL.
    pub missing: u64,
    /// CPU time a record in microseconds, by process.
    pub cpu_us: Vec<(String, f64)>,
}

impl Flow {
    pub(super) fn line(&self, what: &str) -> String {
        let [half, most, longest] = self.lag_seconds;
        let used: Vec<_> = self
            .cpu_us
            .iter()
            .map(|(name, us)| format!("{name} {us:.0}"))
            .collect();
        format!(
            "{what}: {} at {:.0} a second; in PostgreSQL after p50 {half:.2} s, p99 {most:.2} s, at the longest {longest:.2} s; \
             microseconds of CPU a record: {}",
            self.records,
            self.per_second,
            used.join(", ")
        )
    }
}

/// Sends so many records a second until `until` is over, and waits until they are in PostgreSQL.
pub(super) async fn run<T>(
    door: &Door<'_>,
    rate: u64,
    until: impl Future<Output = T>,
    wrong: &mut Vec<String>,
) -> anyhow::Result<(Flow, T)> {
    let nats = door
        .options
        .nats
        .as_deref()
        .context("this scenario needs DUO_NATS_URL")?;
    let nats = async_nats::connect(nats).await?;
    let run = format!("bench-{}", Uuid::now_v7().simple());
    let before = door.used()?;
    let began = Instant::now();
    let mut sent = 0;
    tokio::pin!(until);
    let over = loop {
        // Due by the clock, whatever became of those before.
        let due = u64::try_from(began.elapsed().as_millis())? * rate / 1000;
        let requests = due.saturating_sub(sent) / 2;
        for first in (0..requests).step_by(25) {
            let records: Vec<Bytes> = (first..requests.min(first + 25))
                .flat_map(|number| request(&run, sent / 2 + number))
                .collect();
            nats.publish(AUDIT_RECORDS, join(&records)).await?;
        }
        sent += 2 * requests;
        tokio::select! {
            over = &mut until => break over,
            () = tokio::time::sleep(EVERY) => {}
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    nats.flush().await?;
    let written = written(door, &run, sent).await?;
    let cpu_us = door.used_since(before, sent)?;
    let lags: Vec<f64> = sqlx::query_scalar(
        "SELECT percentile_disc(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (ORDER BY extract(epoch FROM recorded_at - occurred_at)::float8)
         FROM audit_events WHERE day >= $1 AND instance_id = $2",
    )
    .bind(door.until.date())
    .bind(&run)
    .fetch_one(&door.pool)
    .await?;
    let missing = sent.saturating_sub(written);
    if missing > 0 {
        wrong.push(format!("{missing} of {sent} new records are not in PostgreSQL"));
    }
    let flow = Flow {
        records: sent,
        per_second: sent as f64 / seconds,
        lag_seconds: lags.try_into().unwrap_or_default(),
        missing,
        cpu_us,
    };
    Ok((flow, over))
}

/// How many of them are in PostgreSQL, once all are or nothing more comes.
async fn written(door: &Door<'_>, run: &str, sent: u64) -> anyhow::Result<u64> {
    let until = Instant::now() + PATIENCE;
    loop {
        let there: i64 =
            sqlx::query_scalar("SELECT COALESCE(sum(records), 0)::bigint FROM audit_counts WHERE hour >= $1 AND instance_id = $2")
                .bind(door.until)
                .bind(run)
                .fetch_one(&door.pool)
                .await?;
        if there.unsigned_abs() >= sent || Instant::now() > until {
            return Ok(there.unsigned_abs());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Both records of a request, encoded.
fn request(run: &str, number: u64) -> [Bytes; 2] {
    let now = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000;
    let mut record = AuditRecord {
        kind: AuditKind::Admitted,
        request_id: Uuid::now_v7(),
        occurred_at_us: i64::try_from(now).unwrap_or_default(),
        broker: "bench".into(),
        who: Who {
            auth: "gitlab".into(),
            instance_id: Some(run.to_owned()),
            user_id: Some(format!("{:064x}", number % 2000)),
            token_id: Some(Uuid::now_v7().to_string()),
            client: Some("gitlab-workhorse/17.6".into()),
            address: Some("10.0.0.1".into()),
        },
        what: What {
            body_bytes: 2000,
            correlation_id: Some(Uuid::now_v7().simple().to_string()),
            trace_id: Some(Uuid::now_v7().simple().to_string()),
            prompt_id: Some("code_completion/base".into()),
            prompt_version: Some("1.0.0".into()),
            feature: FeatureName::parse("code_completion").ok(),
            model: ModelName::parse("codegemma").ok(),
            ..What::of("/v2/code/completions", 7)
        },
        end: None,
        details: None,
    };
    let admitted = record.encode();
    record.kind = AuditKind::Ended;
    record.end = Some(End {
        outcome: Outcome::Completed,
        reason: None,
        worker: Some("bench".into()),
        attempts: 1,
        queue_wait_us: Some(2000),
        first_byte_us: Some(90_000),
        duration_us: 250_000,
        input_tokens: Some(700),
        output_tokens: Some(40),
        prompt_sha256: None,
        answer_sha256: None,
    });
    [admitted, record.encode()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_two_records_that_brokers_write() {
        let records = request("run", 2001).map(|record| AuditRecord::decode(&record).unwrap());
        assert_eq!(
            records.each_ref().map(|record| record.kind),
            [AuditKind::Admitted, AuditKind::Ended]
        );
        assert_eq!(
            records.each_ref().map(|record| record.end.is_some()),
            [false, true]
        );
        assert_eq!(records[0].request_id, records[1].request_id);
        assert_eq!(records[0].request_id.get_version_num(), 7);
        assert!(records[0].what.feature.is_some() && records[0].what.model.is_some());
        assert_eq!(records[0].who.user_id, Some(format!("{:064x}", 1)));
    }
}
