//! Batches: made, worked on in turns, ended.
//!
//! Whoever works on one has taken it for a turn: owner and run number are the fence, and every change that a turn makes
//! names them. Jobs of lines are written in the transaction that moves the place behind them, and so is what is written of
//! their ends, so that a turn that breaks off anywhere leaves nothing half done.

mod open;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use duo_contract::audit::Who;
use duo_contract::name::FeatureName;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{PgPool, Postgres, Transaction};
use time::{Date, OffsetDateTime, UtcOffset};
use uuid::Uuid;

pub use self::open::OpenBatches;
use super::files::{self, NewFile};
use super::jobs::{self, NewJob, Sealed, day};
use super::{Store, StoreError, parsed};
use crate::bulk::state::BatchState;
use crate::jobs::state::JobState;

/// A batch about to be made.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// A UUIDv7 whose last 32 bits are zero.
    pub id: Uuid,
    /// Whose it is.
    pub client: String,
    /// Requests of this client that may run for one model.
    pub client_limit: u32,
    /// Who asks, for the audit records of its runs.
    pub who: Who,
    /// For what.
    pub feature: FeatureName,
    /// The path that its lines name.
    pub endpoint: String,
    /// Models that the client may name; `None` for all.
    pub models: Option<Vec<String>>,
    /// The configuration of the moment.
    pub config_revision: u64,
    /// The trace it belongs to.
    pub traceparent: Option<String>,
    /// The client's own id of its request.
    pub correlation_id: Option<String>,
    /// Its lines.
    pub input_file: Uuid,
    /// In the client's words.
    pub completion_window: String,
    /// What the client wants to find again.
    pub metadata: Option<Value>,
    /// Not over by then: expired.
    pub expires_at: OffsetDateTime,
}

/// What became of a new batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It is there.
    New,
    /// Its file is gone.
    NoFile,
    /// The client has as many open as it may.
    TooMany,
}

/// A place in the input file: lines before it, and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// Lines.
    pub line: u32,
    /// Bytes.
    pub byte: u64,
}

/// A file that is being written: pieces and bytes so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub id: Uuid,
    /// Pieces.
    pub chunks: i32,
    /// Bytes.
    pub bytes: i64,
}

/// A batch as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchRow {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub client: String,
    /// Requests of this client that may run for one model.
    pub client_limit: u32,
    /// Who asked.
    pub who: Who,
    /// For what.
    pub feature: FeatureName,
    /// The path that its lines name.
    pub endpoint: String,
    /// Models that the client may name; `None` for all.
    pub models: Option<Vec<String>>,
    /// The configuration that its lines were looked at under.
    pub config_revision: u64,
    /// The trace it belongs to.
    pub traceparent: Option<String>,
    /// The client's own id of its request.
    pub correlation_id: Option<String>,
    /// Its lines.
    pub input_file: Uuid,
    /// In the client's words.
    pub completion_window: String,
    /// What the client wants to find again.
    pub metadata: Option<Value>,
    /// Where it is.
    pub state: BatchState,
    /// Why it failed.
    pub errors: Option<Value>,
    /// Made at.
    pub created_at: OffsetDateTime,
    /// Not over by then: expired.
    pub expires_at: OffsetDateTime,
    /// Found good at.
    pub in_progress_at: Option<OffsetDateTime>,
    /// Its last job ended at.
    pub finalizing_at: Option<OffsetDateTime>,
    /// Taken back at.
    pub cancelling_at: Option<OffsetDateTime>,
    /// Over at.
    pub ended_at: Option<OffsetDateTime>,
    /// Requests in it.
    pub total: u32,
    /// Those of them that are jobs.
    pub made: u32,
    /// Where the next one begins that is to be a job.
    pub made_to: Mark,
    /// Jobs that have ended.
    pub counts: Counts,
    /// Where the next one begins whose end is to be written.
    pub collected_to: Mark,
    /// Was there no time for one of them?
    pub ran_out: bool,
    /// What came of those that went well.
    pub output: Option<Written>,
    /// What came of the others.
    pub failures: Option<Written>,
    /// The turn that this row was taken for.
    pub fence: Option<BatchFence>,
}

/// Jobs of a batch by their ends, and their tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Those that went well.
    pub completed: u32,
    /// Those that ended otherwise.
    pub failed: u32,
    /// Those that have not ended.
    pub open: u32,
    /// Tokens of prompts.
    pub input_tokens: i64,
    /// Tokens generated.
    pub output_tokens: i64,
}

/// The turn that is to change a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchFence {
    /// The batch.
    pub id: Uuid,
    /// The broker whose turn it is.
    pub owner: String,
    /// The how many-eth turn that is.
    pub run: i32,
}

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
    /// Makes a batch of a file that is there, unless its client has `most` open.
    ///
    /// # Errors
    /// Postgres is away, or refuses a value.
    pub async fn create_batch(&self, batch: &NewBatch, most: i64) -> Result<Created, StoreError> {
        let mut transaction = begin(&self.pool).await?;
        let file = sqlx::query_scalar!(
            "SELECT id FROM files WHERE day = $1 AND id = $2 AND is_whole FOR SHARE",
            day(batch.input_file),
            batch.input_file,
        )
        .fetch_optional(&mut *transaction)
        .await?;
        if file.is_none() {
            return Ok(Created::NoFile);
        }
        let open = sqlx::query_scalar!(
            r#"SELECT count(*) AS "open!" FROM batches WHERE client = $1 AND ended_at IS NULL"#,
            batch.client
        )
        .fetch_one(&mut *transaction)
        .await?;
        if open >= most {
            return Ok(Created::TooMany);
        }
        sqlx::query!(
            "INSERT INTO batches (day, id, client, client_limit, who, feature, endpoint, models, config_revision,
                                  traceparent, correlation_id, input_file, completion_window, metadata, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
            day(batch.id),
            batch.id,
            batch.client,
            i32::try_from(batch.client_limit).unwrap_or(i32::MAX),
            Json(&batch.who) as Json<&Who>,
            batch.feature.as_str(),
            batch.endpoint,
            batch.models.as_deref() as Option<&[String]>,
            batch.config_revision.cast_signed(),
            batch.traceparent,
            batch.correlation_id,
            batch.input_file,
            batch.completion_window,
            batch.metadata,
            batch.expires_at,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Created::New)
    }

    /// One batch.
    ///
    /// # Errors
    /// Postgres is away, or a row cannot be read.
    pub async fn batch(&self, id: Uuid) -> Result<Option<BatchRow>, StoreError> {
        one(&self.pool, id).await
    }

    /// Batches, newest first, those after `after`.
    ///
    /// # Errors
    /// Postgres is away, or a row cannot be read.
    pub async fn batches_page(
        &self,
        client: Option<&str>,
        after: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<BatchRow>, StoreError> {
        let rows = sqlx::query_as!(
            Raw,
            r#"SELECT id, client, client_limit, who AS "who: Json<Who>", feature, endpoint, models, config_revision, traceparent,
                      correlation_id, input_file, completion_window, metadata, state, errors, created_at, expires_at,
                      in_progress_at, finalizing_at, cancelling_at, ended_at, total, made, made_line, made_byte,
                      completed, failed, input_tokens, output_tokens, collected_line, collected_byte, ran_out,
                      output_file, output_chunks, output_bytes, error_file, error_chunks, error_bytes, owner, run
               FROM batches WHERE ($1::text IS NULL OR client = $1) AND ($2::uuid IS NULL OR id < $2)
               ORDER BY id DESC LIMIT $3"#,
            client,
            after,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(BatchRow::try_from).collect()
    }

    /// Takes a batch back that is not over nor about to be; true if this call did.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn cancel_batch(&self, id: Uuid) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "UPDATE batches SET state = 'cancelling', cancelling_at = now(), look_at = now()
             WHERE day = $1 AND id = $2 AND state = ANY($3)",
            day(id),
            id,
            &BatchState::Cancelling.from(),
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

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
        let sealed = rows.into_iter().map(|row| {
            let sealed = Sealed {
                key_id: row.key_id,
                bytes: row.sealed,
            };
            (row.job_id, sealed)
        });
        Ok(sealed.collect())
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

async fn one(pool: &PgPool, id: Uuid) -> Result<Option<BatchRow>, StoreError> {
    let row = sqlx::query_as!(
        Raw,
        r#"SELECT id, client, client_limit, who AS "who: Json<Who>", feature, endpoint, models, config_revision, traceparent,
                      correlation_id, input_file, completion_window, metadata, state, errors, created_at, expires_at,
                      in_progress_at, finalizing_at, cancelling_at, ended_at, total, made, made_line, made_byte,
                      completed, failed, input_tokens, output_tokens, collected_line, collected_byte, ran_out,
                      output_file, output_chunks, output_bytes, error_file, error_chunks, error_bytes, owner, run
           FROM batches WHERE day = $1 AND id = $2"#,
        day(id),
        id,
    )
    .fetch_optional(pool)
    .await?;
    row.map(BatchRow::try_from).transpose()
}

/// A row as Postgres gives it.
struct Raw {
    id: Uuid,
    client: String,
    client_limit: i32,
    who: Json<Who>,
    feature: String,
    endpoint: String,
    models: Option<Vec<String>>,
    config_revision: i64,
    traceparent: Option<String>,
    correlation_id: Option<String>,
    input_file: Uuid,
    completion_window: String,
    metadata: Option<Value>,
    state: String,
    errors: Option<Value>,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    in_progress_at: Option<OffsetDateTime>,
    finalizing_at: Option<OffsetDateTime>,
    cancelling_at: Option<OffsetDateTime>,
    ended_at: Option<OffsetDateTime>,
    total: i32,
    made: i32,
    made_line: i32,
    made_byte: i64,
    completed: i32,
    failed: i32,
    input_tokens: i64,
    output_tokens: i64,
    collected_line: i32,
    collected_byte: i64,
    ran_out: bool,
    output_file: Option<Uuid>,
    output_chunks: i32,
    output_bytes: i64,
    error_file: Option<Uuid>,
    error_chunks: i32,
    error_bytes: i64,
    owner: Option<String>,
    run: i32,
}

impl TryFrom<Raw> for BatchRow {
    type Error = StoreError;

    fn try_from(row: Raw) -> Result<Self, StoreError> {
        let written = |id: Option<Uuid>, chunks, bytes| id.map(|id| Written { id, chunks, bytes });
        let mark = |line: i32, byte: i64| Mark {
            line: unsigned(line.into()),
            byte: u64::try_from(byte).unwrap_or(0),
        };
        Ok(Self {
            feature: parsed("batches.feature", &row.feature)?,
            state: parsed("batches.state", &row.state)?,
            client_limit: u32::try_from(row.client_limit).unwrap_or(1),
            config_revision: u64::try_from(row.config_revision).unwrap_or(0),
            total: unsigned(row.total.into()),
            made: unsigned(row.made.into()),
            made_to: mark(row.made_line, row.made_byte),
            collected_to: mark(row.collected_line, row.collected_byte),
            counts: Counts {
                completed: unsigned(row.completed.into()),
                failed: unsigned(row.failed.into()),
                open: unsigned((row.made - row.completed - row.failed).into()),
                input_tokens: row.input_tokens,
                output_tokens: row.output_tokens,
            },
            output: written(row.output_file, row.output_chunks, row.output_bytes),
            failures: written(row.error_file, row.error_chunks, row.error_bytes),
            fence: row.owner.map(|owner| BatchFence {
                id: row.id,
                owner,
                run: row.run,
            }),
            id: row.id,
            client: row.client,
            who: row.who.0,
            endpoint: row.endpoint,
            models: row.models,
            traceparent: row.traceparent,
            correlation_id: row.correlation_id,
            input_file: row.input_file,
            completion_window: row.completion_window,
            metadata: row.metadata,
            errors: row.errors,
            created_at: row.created_at,
            expires_at: row.expires_at,
            in_progress_at: row.in_progress_at,
            finalizing_at: row.finalizing_at,
            cancelling_at: row.cancelling_at,
            ended_at: row.ended_at,
            ran_out: row.ran_out,
        })
    }
}

/// Where results of jobs lie that ended then; each day once.
fn places(ended: &[(Uuid, OffsetDateTime)]) -> (Vec<Date>, Vec<Uuid>) {
    let days = ended.iter().map(|(_, at)| at.to_offset(UtcOffset::UTC).date());
    let days: BTreeSet<Date> = days.collect();
    let ids = ended.iter().map(|(id, _)| *id).collect();
    (days.into_iter().collect(), ids)
}

/// A transaction that PostgreSQL ends by itself where its broker is frozen in the midst of it: the batch's row is locked.
async fn begin(pool: &PgPool) -> Result<Transaction<'static, Postgres>, StoreError> {
    let mut transaction = pool.begin().await?;
    sqlx::query!("SET LOCAL idle_in_transaction_session_timeout = '10s'")
        .execute(&mut *transaction)
        .await?;
    Ok(transaction)
}

fn signed(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn unsigned(count: i64) -> u32 {
    u32::try_from(count).unwrap_or(0)
}
