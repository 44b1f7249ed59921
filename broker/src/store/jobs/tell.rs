//! Jobs as readers see them: one, a page, a place in line.

use duo_contract::name::Lane;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::{Store, StoreError, parsed};
use super::{JobRow, day};
use crate::jobs::state::JobState;

/// Most jobs on one page.
pub const MAX_PAGE: u32 = 100;
/// Jobs that are counted in front of one; who has more before it waits long anyway.
const MOST_AHEAD: i64 = 10_000;

/// What to look for; everything named must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this client.
    pub client: Option<String>,
    /// In this state.
    pub state: Option<JobState>,
    /// For this feature.
    pub feature: Option<String>,
    /// For this model.
    pub model: Option<String>,
}

/// A place in the list: the last job of a page.
pub type Cursor = Uuid;

/// Jobs, newest first, and where the next page begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The jobs.
    pub jobs: Vec<JobRow>,
    /// Give it back for the next page; absent on the last one.
    pub next: Option<Cursor>,
}

impl Store {
    /// One page of jobs, newest first. Pages do not shift when jobs come.
    ///
    /// # Errors
    /// Postgres is away, or a row cannot be read.
    pub async fn jobs_page(
        &self,
        filter: &Filter,
        limit: u32,
        after: Option<Cursor>,
    ) -> Result<Page, StoreError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let mut transaction = self.pool.begin().await?;
        sqlx::query!("SET LOCAL plan_cache_mode = 'force_custom_plan'")
            .execute(&mut *transaction)
            .await?;
        sqlx::query!("SET LOCAL statement_timeout = '15s'")
            .execute(&mut *transaction)
            .await?;
        let mut jobs = select(&mut transaction, filter, i64::from(limit) + 1, after).await?;
        transaction.commit().await?;
        let more = jobs.len() > limit as usize;
        jobs.truncate(limit as usize);
        let next = jobs.last().filter(|_| more).map(|job| job.id);
        Ok(Page { jobs, next })
    }

    /// Waiting jobs of the same client, lane and model that stand before this one, ten thousand at most.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn own_jobs_ahead(&self, job: &JobRow) -> Result<u64, StoreError> {
        let ahead = sqlx::query_scalar!(
            r#"SELECT count(*) AS "ahead!" FROM (
                   SELECT FROM jobs WHERE state = 'queued' AND owner IS NULL
                     AND lane = $1 AND model = $2 AND client = $3 AND id < $4
                   LIMIT $5) AS before"#,
            job.lane.as_str(),
            job.model,
            job.client,
            job.id,
            MOST_AHEAD,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(u64::try_from(ahead).unwrap_or(0))
    }
}

/// A row as Postgres gives it.
struct Raw {
    id: Uuid,
    client: String,
    state: String,
    feature: String,
    model: String,
    lane: String,
    prompt_id: Option<String>,
    prompt_version: Option<String>,
    metadata: Option<Value>,
    callback: Option<String>,
    retry_of: Option<Uuid>,
    created_at: OffsetDateTime,
    deadline: OffsetDateTime,
    run_after: OffsetDateTime,
    owner: Option<String>,
    run: i32,
    failures: i32,
    request_id: Option<Uuid>,
    started_at: Option<OffsetDateTime>,
    ended_at: Option<OffsetDateTime>,
    worker: Option<String>,
    reason: Option<String>,
    message: Option<String>,
    upstream_status: Option<i32>,
    input_tokens: Option<i64>,
    output_tokens: Option<i64>,
}

impl TryFrom<Raw> for JobRow {
    type Error = StoreError;

    fn try_from(row: Raw) -> Result<Self, StoreError> {
        Ok(Self {
            state: parsed("jobs.state", &row.state)?,
            lane: parsed::<Lane>("jobs.lane", &row.lane)?,
            prompt: row.prompt_id.zip(row.prompt_version),
            id: row.id,
            client: row.client,
            feature: row.feature,
            model: row.model,
            metadata: row.metadata,
            callback: row.callback,
            retry_of: row.retry_of,
            created_at: row.created_at,
            deadline: row.deadline,
            run_after: row.run_after,
            owner: row.owner,
            run: row.run,
            failures: row.failures,
            request_id: row.request_id,
            started_at: row.started_at,
            ended_at: row.ended_at,
            worker: row.worker,
            reason: row.reason,
            message: row.message,
            upstream_status: row.upstream_status,
            input_tokens: row.input_tokens,
            output_tokens: row.output_tokens,
        })
    }
}

/// One job.
pub(super) async fn one(pool: &PgPool, id: Uuid) -> Result<Option<JobRow>, StoreError> {
    let row = sqlx::query_as!(
        Raw,
        "SELECT id, client, state, feature, model, lane, prompt_id, prompt_version, metadata, callback, retry_of,
                created_at, deadline, run_after, owner, run, failures, request_id, started_at, ended_at, worker,
                reason, message, upstream_status, input_tokens, output_tokens
         FROM jobs WHERE day = $1 AND id = $2",
        day(id),
        id,
    )
    .fetch_optional(pool)
    .await?;
    row.map(JobRow::try_from).transpose()
}

async fn select(
    connection: &mut PgConnection,
    filter: &Filter,
    limit: i64,
    after: Option<Cursor>,
) -> Result<Vec<JobRow>, StoreError> {
    let rows = sqlx::query_as!(
        Raw,
        "SELECT id, client, state, feature, model, lane, prompt_id, prompt_version, metadata, callback, retry_of,
                created_at, deadline, run_after, owner, run, failures, request_id, started_at, ended_at, worker,
                reason, message, upstream_status, input_tokens, output_tokens
         FROM jobs
         WHERE ($1::text IS NULL OR client = $1)
           AND ($2::text IS NULL OR state = $2)
           AND ($3::text IS NULL OR feature = $3)
           AND ($4::text IS NULL OR model = $4)
           AND ($5::uuid IS NULL OR id < $5)
           AND ($6::date IS NULL OR day <= $6)
         ORDER BY day DESC, id DESC
         LIMIT $7",
        filter.client.as_deref(),
        filter.state.map(JobState::as_str),
        filter.feature.as_deref(),
        filter.model.as_deref(),
        after,
        after.map(day),
        limit,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(JobRow::try_from).collect()
}
