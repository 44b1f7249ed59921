//! Lines of a batch as jobs: made, counted, cancelled.

use std::time::Duration;

use uuid::Uuid;

use super::{BatchFence, Counts, Mark, begin, signed, unsigned};
use crate::jobs::state::JobState;
use crate::store::jobs::{self, NewJob, day};
use crate::store::{Store, StoreError};

impl Store {
    /// Makes jobs of the lines up to `to`, all or none of them; false where the turn is another's by now or the batch was
    /// taken back.
    ///
    /// # Errors
    /// Postgres is away, or refuses a value.
    pub async fn make_lines(
        &self,
        fence: &BatchFence,
        jobs: &[&NewJob],
        to: Mark,
        lease: Duration,
    ) -> Result<bool, StoreError> {
        let mut transaction = begin(&self.pool).await?;
        let done = sqlx::query!(
            "UPDATE batches SET made = made + $5, made_line = $6, made_byte = $7,
                    held_until = now() + make_interval(secs => $8)
             WHERE day = $1 AND id = $2 AND owner = $3 AND run = $4 AND state = 'in_progress' AND made_line < $6",
            day(fence.id),
            fence.id,
            fence.owner,
            fence.run,
            i32::try_from(jobs.len()).unwrap_or(i32::MAX),
            signed(to.line),
            to.byte.cast_signed(),
            lease.as_secs_f64(),
        )
        .execute(&mut *transaction)
        .await?;
        if done.rows_affected() != 1 {
            return Ok(false);
        }
        if !jobs.is_empty() {
            jobs::insert(&mut *transaction, jobs).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// How the jobs of a batch stand, of lines up to `line`.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn count_lines(&self, batch: Uuid, last: Uuid) -> Result<Counts, StoreError> {
        let row = sqlx::query!(
            r#"SELECT count(*) FILTER (WHERE state = 'succeeded') AS "completed!",
                      count(*) FILTER (WHERE ended_at IS NULL) AS "open!", count(*) AS "all!",
                      coalesce(sum(input_tokens), 0)::bigint AS "input_tokens!",
                      coalesce(sum(output_tokens), 0)::bigint AS "output_tokens!"
               FROM jobs WHERE day = $1 AND id > $2 AND id <= $3"#,
            day(batch),
            batch,
            last,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Counts {
            completed: unsigned(row.completed),
            failed: unsigned(row.all - row.completed - row.open),
            open: unsigned(row.open),
            input_tokens: row.input_tokens,
            output_tokens: row.output_tokens,
        })
    }

    /// Tells the batch how its jobs stand.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn note_counts(&self, fence: &BatchFence, counts: &Counts) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "UPDATE batches SET completed = $5, failed = $6, input_tokens = $7, output_tokens = $8
             WHERE day = $1 AND id = $2 AND owner = $3 AND run = $4",
            day(fence.id),
            fence.id,
            fence.owner,
            fence.run,
            signed(counts.completed),
            signed(counts.failed),
            counts.input_tokens,
            counts.output_tokens,
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Cancels jobs of a batch that are not over, `limit` at most, but for those that are ending just now; each with whether a
    /// broker runs it.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn cancel_lines(
        &self,
        batch: Uuid,
        last: Uuid,
        limit: i64,
    ) -> Result<Vec<(Uuid, bool)>, StoreError> {
        let rows = sqlx::query!(
            r#"UPDATE jobs SET state = 'cancelled', owner = NULL, ended_at = now(), reason = 'cancelled',
                      message = 'its batch was cancelled'
               FROM (SELECT day, id, owner FROM jobs WHERE day = $1 AND id > $2 AND id <= $3 AND ended_at IS NULL
                     LIMIT $4 FOR UPDATE SKIP LOCKED) AS open
               WHERE jobs.day = open.day AND jobs.id = open.id AND jobs.state = ANY($5)
               RETURNING jobs.id, open.owner IS NOT NULL AS "is_owned!""#,
            day(batch),
            batch,
            last,
            limit,
            &JobState::Cancelled.from(),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| (row.id, row.is_owned)).collect())
    }
}
