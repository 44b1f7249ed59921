//! What came of a batch's lines, written down piece by piece.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use time::{Date, OffsetDateTime, UtcOffset};
use uuid::Uuid;

use super::{BatchFence, BatchRow, Mark, begin, signed};
use crate::bulk::state::BatchState;
use crate::jobs::state::JobState;
use crate::store::files::{self, NewFile};
use crate::store::jobs::{Sealed, by_job, day};
use crate::store::{Store, StoreError, parsed};

/// How the job of a line ended.
#[derive(Debug, Clone)]
pub struct LineEnd {
    /// The job.
    pub id: Uuid,
    /// Where it is.
    pub state: JobState,
    /// The audit record of its latest run.
    pub request_id: Option<Uuid>,
    /// Why, where it is no success.
    pub reason: Option<String>,
    /// The same in a sentence.
    pub message: Option<String>,
    /// The model server's status, where it refused.
    pub upstream_status: Option<i32>,
    /// When.
    pub ended_at: Option<OffsetDateTime>,
    /// Bytes of its sealed result, if it is kept.
    pub result_bytes: Option<i32>,
}

/// What a turn has written of lines' ends.
#[derive(Debug, Clone)]
pub struct Collected {
    /// Where the next one begins.
    pub to: Mark,
    /// Was there no time for one of them?
    pub ran_out: bool,
    /// One more piece of the output file, and its size.
    pub output: Option<(Sealed, usize)>,
    /// The same of the error file.
    pub failures: Option<(Sealed, usize)>,
}

impl Store {
    /// No job of the batch is open: what came of them is written into these files. One that is being cancelled stays so.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn finalize_batch(
        &self,
        fence: &BatchFence,
        output: Uuid,
        failures: Uuid,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "UPDATE batches SET state = CASE state WHEN 'in_progress' THEN 'finalizing' ELSE state END,
                    finalizing_at = CASE state WHEN 'in_progress' THEN now() END,
                    output_file = $5, error_file = $6
             WHERE day = $1 AND id = $2 AND owner = $3 AND run = $4 AND output_file IS NULL
               AND state IN ('in_progress', 'cancelling')",
            day(fence.id),
            fence.id,
            fence.owner,
            fence.run,
            output,
            failures,
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// How these jobs of a batch ended.
    ///
    /// # Errors
    /// Postgres is away, or a row cannot be read.
    pub async fn line_ends(&self, batch: Uuid, ids: &[Uuid]) -> Result<Vec<LineEnd>, StoreError> {
        let rows = sqlx::query!(
            "SELECT id, state, request_id, reason, message, upstream_status, ended_at FROM jobs
             WHERE day = $1 AND id = ANY($2)",
            day(batch),
            ids,
        )
        .fetch_all(&self.pool)
        .await?;
        let ended: Vec<(Uuid, OffsetDateTime)> = rows
            .iter()
            .filter_map(|row| Some((row.id, row.ended_at?)))
            .collect();
        let (days, ids) = places(&ended);
        let sizes = sqlx::query!(
            r#"SELECT job_id, octet_length(sealed) AS "bytes!" FROM job_results
               WHERE day = ANY($1) AND job_id = ANY($2)"#,
            &days,
            &ids,
        )
        .fetch_all(&self.pool)
        .await?;
        let sizes: HashMap<Uuid, i32> = sizes.into_iter().map(|row| (row.job_id, row.bytes)).collect();
        rows.into_iter()
            .map(|row| {
                Ok(LineEnd {
                    id: row.id,
                    state: parsed("jobs.state", &row.state)?,
                    request_id: row.request_id,
                    reason: row.reason,
                    message: row.message,
                    upstream_status: row.upstream_status,
                    ended_at: row.ended_at,
                    result_bytes: sizes.get(&row.id).copied(),
                })
            })
            .collect()
    }

    /// Results of jobs that ended on these days, of those that are kept.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn line_results(
        &self,
        ended: &[(Uuid, OffsetDateTime)],
    ) -> Result<HashMap<Uuid, Sealed>, StoreError> {
        let (days, ids) = places(ended);
        let rows = sqlx::query!(
            "SELECT job_id, key_id, sealed FROM job_results WHERE day = ANY($1) AND job_id = ANY($2)",
            &days,
            &ids,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(by_job(
            rows.into_iter().map(|row| (row.job_id, row.key_id, row.sealed)),
        ))
    }

    /// Writes what came of lines, all or nothing of it; false where the turn is another's by now.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn add_collected(
        &self,
        batch: &BatchRow,
        fence: &BatchFence,
        collected: &Collected,
        lease: Duration,
    ) -> Result<bool, StoreError> {
        let mut transaction = begin(&self.pool).await?;
        let size = |piece: &Option<(Sealed, usize)>| {
            let bytes = piece.as_ref().map(|(_, bytes)| *bytes);
            (
                i32::from(bytes.is_some()),
                i64::try_from(bytes.unwrap_or(0)).unwrap_or(i64::MAX),
            )
        };
        let (output_chunks, output_bytes) = size(&collected.output);
        let (error_chunks, error_bytes) = size(&collected.failures);
        let done = sqlx::query!(
            "UPDATE batches SET collected_line = $5, collected_byte = $6, ran_out = ran_out OR $7,
                    output_chunks = output_chunks + $8, output_bytes = output_bytes + $9,
                    error_chunks = error_chunks + $10, error_bytes = error_bytes + $11,
                    held_until = now() + make_interval(secs => $12)
             WHERE day = $1 AND id = $2 AND owner = $3 AND run = $4 AND collected_line < $5",
            day(fence.id),
            fence.id,
            fence.owner,
            fence.run,
            signed(collected.to.line),
            collected.to.byte.cast_signed(),
            collected.ran_out,
            output_chunks,
            output_bytes,
            error_chunks,
            error_bytes,
            lease.as_secs_f64(),
        )
        .execute(&mut *transaction)
        .await?;
        if done.rows_affected() != 1 {
            return Ok(false);
        }
        for (piece, file) in [
            (&collected.output, batch.output),
            (&collected.failures, batch.failures),
        ] {
            if let (Some((sealed, _)), Some(file)) = (piece, file) {
                files::add_chunk(&mut transaction, file.id, file.chunks, sealed).await?;
            }
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// The batch is over, and its files are whole.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn end_batch(
        &self,
        batch: &BatchRow,
        fence: &BatchFence,
        state: BatchState,
        names: [&str; 2],
    ) -> Result<bool, StoreError> {
        let mut transaction = begin(&self.pool).await?;
        let done = sqlx::query!(
            "UPDATE batches SET state = $5, ended_at = now(), owner = NULL, failed = total - completed
             WHERE day = $1 AND id = $2 AND owner = $3 AND run = $4 AND state = ANY($6)",
            day(fence.id),
            fence.id,
            fence.owner,
            fence.run,
            state.as_str(),
            &state.from(),
        )
        .execute(&mut *transaction)
        .await?;
        if done.rows_affected() != 1 {
            return Ok(false);
        }
        for (file, filename) in [batch.output, batch.failures].into_iter().zip(names) {
            let Some(file) = file.filter(|file| file.chunks > 0) else {
                continue;
            };
            let head = NewFile {
                id: file.id,
                client: &batch.client,
                purpose: "batch_output",
                filename,
            };
            files::insert(&mut transaction, &head, Some(file.bytes)).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }
}

/// Where results of jobs lie that ended then; each day once.
fn places(ended: &[(Uuid, OffsetDateTime)]) -> (Vec<Date>, Vec<Uuid>) {
    let days = ended.iter().map(|(_, at)| at.to_offset(UtcOffset::UTC).date());
    let days: BTreeSet<Date> = days.collect();
    let ids = ended.iter().map(|(id, _)| *id).collect();
    (days.into_iter().collect(), ids)
}
