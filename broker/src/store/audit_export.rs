//! Audit records for an export: all that a filter lets through, in the order of their numbers, as of one moment.

use futures_util::TryStreamExt as _;
use sqlx::PgConnection;
use tokio::sync::mpsc;

use super::audit_events::Event;
use super::audit_matching::matching;
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
        let mut events = matching!(
            query_as!(Event),
            filter,
            stretch,
            filter.since,
            filter.until,
            "SELECT request_id, kind, occurred_at, recorded_at, broker, auth, instance_id, user_id, token_id, client,
                    address, route, feature, lane, model, prompt_id, prompt_version, config_revision, stream,
                    body_bytes, correlation_id, trace_id, job_id, details, outcome, reason, worker, attempts,
                    queue_wait_us, first_byte_us, duration_us, input_tokens, output_tokens, seq, prompt_sha256,
                    answer_sha256",
            "AND",
            "ORDER BY seq"
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
        let mut events = matching!(
            query_as!(Event),
            filter,
            stretch,
            filter.since,
            filter.until,
            "SELECT request_id, kind, occurred_at, recorded_at, broker, auth, instance_id, user_id, token_id, client,
                    address, route, feature, lane, model, prompt_id, prompt_version, config_revision, stream,
                    body_bytes, correlation_id, trace_id, job_id, details, outcome, reason, worker, attempts,
                    queue_wait_us, first_byte_us, duration_us, input_tokens, output_tokens, seq, prompt_sha256,
                    answer_sha256",
            "AND",
            "ORDER BY md5(concat_ws('/', $19::text, request_id, kind)) LIMIT $20",
            sample.seed.as_str(),
            i64::from(sample.records)
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
    sqlx::query_scalar!(
        "SELECT concat(set_config('plan_cache_mode', 'force_custom_plan', true),
                       set_config('statement_timeout', '1h', true))"
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}
