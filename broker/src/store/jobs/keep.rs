//! What passes by itself: deadlines, keys, partitions.

use time::Date;

use super::super::{Store, StoreError};
use super::{Ended, tell_receivers};
use crate::jobs::state::JobState;

impl Store {
    /// Makes the partitions of `day` unless they are there; any number of brokers may ask together.
    ///
    /// # Errors
    /// Postgres is away, or this user may not make tables.
    pub async fn create_job_partitions(&self, day: Date) -> Result<(), StoreError> {
        sqlx::query!("SELECT create_job_partitions($1)", day)
            .fetch_one(&self.pool)
            .await?;
        Ok(())
    }

    /// Drops the partitions of `table` (`jobs`, `job_inputs` or `job_results`) before a day; how many. It waits two
    /// seconds at most for whoever reads them.
    ///
    /// # Errors
    /// Postgres is away, or somebody reads them for long; the next try may go better.
    pub async fn drop_job_partitions(&self, table: &str, before: Date) -> Result<i32, StoreError> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query!("SET LOCAL lock_timeout = '2s'")
            .execute(&mut *transaction)
            .await?;
        let dropped = sqlx::query_scalar!(
            r#"SELECT drop_job_partitions($1, $2) AS "dropped!""#,
            table,
            before
        )
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(dropped)
    }

    /// Forgets idempotency keys that have expired, `limit` at most; how many.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn forget_job_keys(&self, limit: i64) -> Result<u64, StoreError> {
        let done = sqlx::query!(
            "DELETE FROM job_keys WHERE (client, key) IN (
                 SELECT client, key FROM job_keys WHERE expires_at < now() ORDER BY expires_at LIMIT $1)",
            limit,
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    /// Ends jobs whose deadline has passed, `limit` at most.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn expire_jobs(&self, limit: i64) -> Result<Vec<Ended>, StoreError> {
        let mut transaction = self.begin_by_index().await?;
        // What is due is locked as it is found, so nobody ends it in between.
        let rows = sqlx::query!(
            "UPDATE jobs SET state = 'expired', owner = NULL, ended_at = now(), reason = 'deadline',
                    message = 'the deadline of the job passed before it was done'
             FROM (SELECT day, id FROM jobs WHERE ended_at IS NULL AND deadline < now()
                   ORDER BY deadline LIMIT $1 FOR UPDATE SKIP LOCKED) AS due
             WHERE jobs.day = due.day AND jobs.id = due.id
             RETURNING jobs.id, callback, jobs.ended_at",
            limit,
        )
        .fetch_all(&mut *transaction)
        .await?;
        let state = JobState::Expired;
        let ended = rows.iter().map(|row| Ended { id: row.id, state }).collect();
        let now = duo_process::clock::now();
        let told = rows
            .into_iter()
            .map(|row| (row.id, state, row.ended_at.unwrap_or(now), row.callback));
        tell_receivers(&mut transaction, told).await?;
        transaction.commit().await?;
        Ok(ended)
    }
}
