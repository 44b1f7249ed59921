//! Turns of a batch: taken, held, released, and how it begins or fails.

use std::time::Duration;

use serde_json::Value;

use super::{BatchFence, BatchRow, one, signed};
use crate::bulk::state::BatchState;
use crate::store::jobs::day;
use crate::store::{Store, StoreError};

impl Store {
    /// Takes the batch that has waited longest for a turn of `lease`, if one is due.
    ///
    /// # Errors
    /// Postgres is away, or a row cannot be read.
    pub async fn take_batch(&self, broker: &str, lease: Duration) -> Result<Option<BatchRow>, StoreError> {
        let taken = sqlx::query_scalar!(
            "UPDATE batches SET owner = $1, run = run + 1, held_until = now() + make_interval(secs => $2)
             FROM (SELECT day, id FROM batches
                   WHERE ended_at IS NULL AND look_at <= now() AND (owner IS NULL OR held_until < now())
                   ORDER BY look_at LIMIT 1 FOR UPDATE SKIP LOCKED) AS due
             WHERE batches.day = due.day AND batches.id = due.id
             RETURNING batches.id",
            broker,
            lease.as_secs_f64(),
        )
        .fetch_optional(&self.pool)
        .await?;
        match taken {
            Some(id) => one(&self.pool, id).await,
            None => Ok(None),
        }
    }

    /// The turn goes on; false where it is another's by now.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn hold_batch(&self, fence: &BatchFence, lease: Duration) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "UPDATE batches SET held_until = now() + make_interval(secs => $5)
             WHERE day = $1 AND id = $2 AND owner = $3 AND run = $4",
            day(fence.id),
            fence.id,
            fence.owner,
            fence.run,
            lease.as_secs_f64(),
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The turn is over; the next one not before `after`. A batch that was taken back meanwhile has its next one at once.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn release_batch(
        &self,
        fence: &BatchFence,
        state: BatchState,
        after: Duration,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "UPDATE batches SET owner = NULL, look_at = CASE WHEN state = $6 THEN now() + make_interval(secs => $5)
                                                             ELSE now() END
             WHERE day = $1 AND id = $2 AND owner = $3 AND run = $4",
            day(fence.id),
            fence.id,
            fence.owner,
            fence.run,
            after.as_secs_f64(),
            state.as_str(),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The batch cannot be done.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn fail_batch(
        &self,
        fence: &BatchFence,
        total: u32,
        errors: &Value,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "UPDATE batches SET state = 'failed', ended_at = now(), owner = NULL, errors = $5, total = $6
             WHERE day = $1 AND id = $2 AND owner = $3 AND run = $4 AND state = ANY($7)",
            day(fence.id),
            fence.id,
            fence.owner,
            fence.run,
            errors,
            signed(total),
            &BatchState::Failed.from(),
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Every line is good, so that they become jobs.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn start_batch(
        &self,
        fence: &BatchFence,
        total: u32,
        config_revision: u64,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "UPDATE batches SET state = 'in_progress', in_progress_at = now(), total = $5, config_revision = $6
             WHERE day = $1 AND id = $2 AND owner = $3 AND run = $4 AND state = ANY($7)",
            day(fence.id),
            fence.id,
            fence.owner,
            fence.run,
            signed(total),
            config_revision.cast_signed(),
            &BatchState::InProgress.from(),
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}
