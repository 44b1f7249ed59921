//! Batches: made, worked on in turns, ended.
//!
//! Whoever works on one has taken it for a turn: owner and run number are the fence, and every change that a turn makes
//! names them. Jobs of lines are written in the transaction that moves the place behind them, and so is what is written of
//! their ends, so that a turn that breaks off anywhere leaves nothing half done.

mod collect;
mod lines;
mod open;
mod turn;

use duo_contract::audit::Who;
use duo_contract::name::FeatureName;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{PgPool, Postgres, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::collect::{Collected, LineEnd};
pub use self::open::OpenBatches;
use super::jobs::day;
use super::{Store, StoreError, parsed};
use crate::bulk::state::BatchState;

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
