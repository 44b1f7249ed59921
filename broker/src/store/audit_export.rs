//! Audit records for an export: all that a filter lets through, in the order of their numbers, as of one moment.

use duo_contract::audit::{AuditKind, Outcome};
use futures_util::TryStreamExt as _;
use sqlx::PgConnection;
use tokio::sync::mpsc;

use super::audit_events::Event;
use super::audit_search::{Filter, days, stretch};
use super::{Store, StoreError};

/// Events handed on together.
const BATCH: usize = 256;

/// Some records instead of all: the same seed finds the same ones among the same records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// How many at most.
    pub records: u32,
    /// What decides which.
    pub seed: String,
}

impl Store {
    /// Hands on what the filter lets through, until the receiver is gone. However much that is, little of it is held
    /// here: Postgres sends on as it is read.
    ///
    /// # Errors
    /// Postgres is away, or takes longer than an hour.
    pub async fn audit_export(
        &self,
        filter: &Filter,
        out: mpsc::Sender<Vec<Event>>,
    ) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        prepare(&mut transaction).await?;
        if filter.user.is_none() && filter.request_id.is_none() && filter.job_id.is_none() {
            // Most of the log is best read by the index of its numbers; to sort it, Postgres would write it once more.
            sqlx::query!("SET LOCAL enable_sort = off")
                .execute(&mut *transaction)
                .await?;
        }
        let days = days(&mut transaction).await?;
        let Some(stretch) = stretch(&days, filter.since, filter.until, days.len()) else {
            return Ok(());
        };
        let mut events = sqlx::query_as!(
            Event,
            "SELECT request_id, kind, occurred_at, recorded_at, broker, auth, instance_id, user_id, token_id, client,
                    address, route, feature, lane, model, prompt_id, prompt_version, config_revision, stream,
                    body_bytes, correlation_id, trace_id, job_id, details, outcome, reason, worker, attempts,
                    queue_wait_us, first_byte_us, duration_us, input_tokens, output_tokens, seq, prompt_sha256,
                    answer_sha256
             FROM audit_events
             WHERE day = ANY($1)
               AND ($2::timestamptz IS NULL OR occurred_at >= $2)
               AND ($3::timestamptz IS NULL OR occurred_at < $3)
               AND ($4::text IS NULL OR hashtextextended(COALESCE(user_id, token_id), 0) = hashtextextended($4, 0)
                    AND COALESCE(user_id, token_id) = $4)
               AND ($5::text IS NULL OR feature = $5)
               AND ($6::text IS NULL OR model = $6)
               AND ($7::text IS NULL OR instance_id = $7)
               AND ($8::text IS NULL OR client = $8)
               AND ($9::text IS NULL OR outcome = $9)
               AND ($10::text IS NULL OR reason = $10)
               AND ($11::uuid IS NULL OR request_id = $11)
               AND ($12::uuid IS NULL OR job_id = $12)
               AND ($13::text IS NULL OR correlation_id = $13)
               AND ($14::text IS NULL OR trace_id = $14)
               AND ($15::text IS NULL OR kind = $15)
               AND ($16::text IS NULL OR strpos(lower(concat_ws(E'\\x1f', route, feature, model, prompt_id, user_id,
                    token_id, client, address, worker, reason, correlation_id, details)), lower($16)) > 0)
             ORDER BY seq",
            &stretch.days,
            filter.since,
            filter.until,
            filter.user.as_deref(),
            filter.feature.as_deref(),
            filter.model.as_deref(),
            filter.instance.as_deref(),
            filter.client.as_deref(),
            filter.outcome.map(Outcome::as_str),
            filter.reason.as_deref(),
            filter.request_id,
            filter.job_id,
            filter.correlation_id.as_deref(),
            filter.trace_id.as_deref(),
            filter.kind.map(AuditKind::as_str),
            filter.q.as_deref(),
        )
        .fetch(&mut *transaction);
        let mut batch = Vec::with_capacity(BATCH);
        while let Some(event) = events.try_next().await? {
            batch.push(event);
            if batch.len() == BATCH && out.send(std::mem::take(&mut batch)).await.is_err() {
                return Ok(());
            }
        }
        // Where nobody listens any more there is nothing left to do.
        let _ = out.send(batch).await;
        Ok(())
    }

    /// A sample of what the filter lets through, in the order of the records' numbers.
    ///
    /// # Errors
    /// Postgres is away, or takes longer than an hour.
    pub async fn audit_sample(&self, filter: &Filter, sample: &Sample) -> Result<Vec<Event>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        prepare(&mut transaction).await?;
        let days = days(&mut transaction).await?;
        let Some(stretch) = stretch(&days, filter.since, filter.until, days.len()) else {
            return Ok(Vec::new());
        };
        let mut events = sqlx::query_as!(
            Event,
            "SELECT request_id, kind, occurred_at, recorded_at, broker, auth, instance_id, user_id, token_id, client,
                    address, route, feature, lane, model, prompt_id, prompt_version, config_revision, stream,
                    body_bytes, correlation_id, trace_id, job_id, details, outcome, reason, worker, attempts,
                    queue_wait_us, first_byte_us, duration_us, input_tokens, output_tokens, seq, prompt_sha256,
                    answer_sha256
             FROM audit_events
             WHERE day = ANY($1)
               AND ($2::timestamptz IS NULL OR occurred_at >= $2)
               AND ($3::timestamptz IS NULL OR occurred_at < $3)
               AND ($4::text IS NULL OR hashtextextended(COALESCE(user_id, token_id), 0) = hashtextextended($4, 0)
                    AND COALESCE(user_id, token_id) = $4)
               AND ($5::text IS NULL OR feature = $5)
               AND ($6::text IS NULL OR model = $6)
               AND ($7::text IS NULL OR instance_id = $7)
               AND ($8::text IS NULL OR client = $8)
               AND ($9::text IS NULL OR outcome = $9)
               AND ($10::text IS NULL OR reason = $10)
               AND ($11::uuid IS NULL OR request_id = $11)
               AND ($12::uuid IS NULL OR job_id = $12)
               AND ($13::text IS NULL OR correlation_id = $13)
               AND ($14::text IS NULL OR trace_id = $14)
               AND ($15::text IS NULL OR kind = $15)
               AND ($16::text IS NULL OR strpos(lower(concat_ws(E'\\x1f', route, feature, model, prompt_id, user_id,
                    token_id, client, address, worker, reason, correlation_id, details)), lower($16)) > 0)
             ORDER BY md5(concat_ws('/', $17::text, request_id, kind))
             LIMIT $18",
            &stretch.days,
            filter.since,
            filter.until,
            filter.user.as_deref(),
            filter.feature.as_deref(),
            filter.model.as_deref(),
            filter.instance.as_deref(),
            filter.client.as_deref(),
            filter.outcome.map(Outcome::as_str),
            filter.reason.as_deref(),
            filter.request_id,
            filter.job_id,
            filter.correlation_id.as_deref(),
            filter.trace_id.as_deref(),
            filter.kind.map(AuditKind::as_str),
            filter.q.as_deref(),
            sample.seed.as_str(),
            i64::from(sample.records),
        )
        .fetch_all(&mut *transaction)
        .await?;
        events.sort_by_key(|event| (event.seq.is_none(), event.seq, event.occurred_at));
        Ok(events)
    }
}

/// One moment for all, and an hour of time.
async fn prepare(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .execute(&mut *connection)
        .await?;
    sqlx::query!("SET LOCAL plan_cache_mode = 'force_custom_plan'")
        .execute(&mut *connection)
        .await?;
    sqlx::query!("SET LOCAL statement_timeout = '1h'")
        .execute(connection)
        .await?;
    Ok(())
}
