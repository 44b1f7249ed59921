//! Jobs: accepted, taken, ended, each in batches; looked at one by one.
//!
//! Every change of a state is a compare-and-set: it names the states it may come from and, for a run, owner and run
//! number. Who finds no row was overtaken, which is no error.

mod accept;
mod end;
mod keep;
mod operate;
mod take;
mod tell;

use std::collections::HashMap;

use duo_contract::audit::Who;
use duo_contract::name::{FeatureName, Lane, ModelName};
use serde_json::Value;
use sqlx::PgTransaction;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::audit_events::day_of;
use super::{Store, StoreError};
use crate::jobs::state::JobState;

use end::{cancel, tell_receivers};

pub(super) use accept::insert;

pub use take::{Taken, Waiting};
pub use tell::{Cursor, Filter, MAX_PAGE, Page};

/// Sealed bytes and the key that opens them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The key's id.
    pub key_id: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A job about to be accepted.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// A UUIDv7.
    pub id: Uuid,
    /// Whose it is.
    pub client: String,
    /// Requests of this client that may run for one model.
    pub client_limit: u32,
    /// Who asks, for the audit records of its runs.
    pub who: Who,
    /// For what.
    pub feature: FeatureName,
    /// Which model.
    pub model: ModelName,
    /// How urgent.
    pub lane: Lane,
    /// Template: id and version.
    pub prompt: Option<(String, String)>,
    /// The configuration it was made under.
    pub config_revision: u64,
    /// The trace it belongs to.
    pub traceparent: Option<String>,
    /// The client's own id of its request.
    pub correlation_id: Option<String>,
    /// What the client wants to find again.
    pub metadata: Option<Value>,
    /// The webhook receiver to tell.
    pub callback: Option<String>,
    /// The job that this one repeats.
    pub retry_of: Option<Uuid>,
    /// Not over by then: expired.
    pub deadline: OffsetDateTime,
    /// What it asks of its model.
    pub input: Sealed,
    /// The client's idempotency key.
    pub key: Option<Key>,
}

/// An idempotency key with what it was first used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The client's word.
    pub key: String,
    /// SHA-256 of what was submitted.
    pub fingerprint: Vec<u8>,
    /// Forgotten after.
    pub expires_at: OffsetDateTime,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// There is a new job.
    New,
    /// The key was used for the same before: that job.
    Same(Uuid),
    /// The key was used for something else.
    Other,
    /// The key was known, and forgotten while it was looked up: asked again, it is new.
    Forgotten,
}

/// A job as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRow {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub client: String,
    /// Where it is.
    pub state: JobState,
    /// For what.
    pub feature: String,
    /// Which model.
    pub model: String,
    /// How urgent.
    pub lane: Lane,
    /// Template and its version.
    pub prompt: Option<(String, String)>,
    /// What the client wants to find again.
    pub metadata: Option<Value>,
    /// The webhook receiver to tell.
    pub callback: Option<String>,
    /// The job that this one repeats.
    pub retry_of: Option<Uuid>,
    /// Accepted at.
    pub created_at: OffsetDateTime,
    /// Not over by then: expired.
    pub deadline: OffsetDateTime,
    /// Not before.
    pub run_after: OffsetDateTime,
    /// The broker that runs it.
    pub owner: Option<String>,
    /// Runs so far.
    pub run: i32,
    /// Runs that the system failed.
    pub failures: i32,
    /// The audit record of its latest run.
    pub request_id: Option<Uuid>,
    /// When a worker first had it.
    pub started_at: Option<OffsetDateTime>,
    /// When it was over.
    pub ended_at: Option<OffsetDateTime>,
    /// The worker of its answer.
    pub worker: Option<String>,
    /// Why it ended so, one word.
    pub reason: Option<String>,
    /// The same in a sentence.
    pub message: Option<String>,
    /// The model server's status, where it refused.
    pub upstream_status: Option<i32>,
    /// Tokens of the prompt.
    pub input_tokens: Option<i64>,
    /// Tokens generated.
    pub output_tokens: Option<i64>,
}

/// The run of a job that is to change it: the fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The job.
    pub id: Uuid,
    /// The broker that runs it.
    pub owner: String,
    /// The how many-eth run that is.
    pub run: i32,
}

/// How a run ends a job.
#[derive(Debug, Clone)]
pub struct JobEnd {
    /// Which run says so.
    pub fence: Fence,
    /// A terminal state.
    pub state: JobState,
    /// The audit record of the run.
    pub request_id: Option<Uuid>,
    /// When a worker had it.
    pub started_at: Option<OffsetDateTime>,
    /// The worker of the answer.
    pub worker: Option<String>,
    /// Why, where it is no success.
    pub reason: Option<String>,
    /// The same in a sentence.
    pub message: Option<String>,
    /// The model server's status, where it refused.
    pub upstream_status: Option<u16>,
    /// Tokens of the prompt.
    pub input_tokens: Option<u64>,
    /// Tokens generated.
    pub output_tokens: Option<u64>,
    /// The result of a success.
    pub result: Option<Sealed>,
}

/// A run that gives its job back.
#[derive(Debug, Clone)]
pub struct HandBack {
    /// Which run says so.
    pub fence: Fence,
    /// Did the system fail it?
    pub is_failure: bool,
    /// Not again before.
    pub after: std::time::Duration,
    /// The audit record of the run.
    pub request_id: Option<Uuid>,
    /// Why, one word.
    pub reason: String,
    /// The same in a sentence.
    pub message: String,
}

/// An ended job, for whoever is to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// The job.
    pub id: Uuid,
    /// How.
    pub state: JobState,
}

/// The day that a job's id lies in; ids that are none have the first of all days, where nothing is.
#[must_use]
pub fn day(id: Uuid) -> Date {
    day_of(id).unwrap_or(Date::MIN)
}

/// What is sealed of each job.
pub(super) fn by_job(rows: impl Iterator<Item = (Uuid, String, Vec<u8>)>) -> HashMap<Uuid, Sealed> {
    rows.map(|(job, key_id, bytes)| (job, Sealed { key_id, bytes }))
        .collect()
}

/// Partitions are made every day and grow within hours, before anybody has counted what is in them, and a plan that was
/// made for empty ones is used until somebody has. Left alone, the planner then reads whole partitions, or all that a
/// broker runs, to find a handful of rows: every asking for jobs read all that had ended. So statements that change
/// jobs go by indexes, whatever is believed of sizes, and their plans, which name the partitions of all days and take
/// long to make, are made once. Bitmaps are off too: a scan of that kind goes to the row of every entry that is no more,
/// again and again until a vacuum, where a plain one marks such entries and passes them by the next time; jobs leave an
/// entry behind with each change.
const BEGIN: &str = "BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; \
                     SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; \
                     SET LOCAL plan_cache_mode = force_generic_plan";

impl Store {
    /// Begins a transaction that changes jobs.
    async fn begin_by_index(&self) -> Result<PgTransaction<'static>, StoreError> {
        Ok(self.pool.begin_with(BEGIN).await?)
    }

    /// One job.
    ///
    /// # Errors
    /// Postgres is away, or a row cannot be read.
    pub async fn job(&self, id: Uuid) -> Result<Option<JobRow>, StoreError> {
        tell::one(&self.pool, id).await
    }

    /// The input of a job, while it is kept.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn job_input(&self, id: Uuid) -> Result<Option<Sealed>, StoreError> {
        let row = sqlx::query!(
            "SELECT key_id, sealed FROM job_inputs WHERE day = $1 AND job_id = $2",
            day(id),
            id
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| Sealed {
            key_id: row.key_id,
            bytes: row.sealed,
        }))
    }

    /// The result of a job that succeeded at `ended_at`, while it is kept.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn job_result(&self, id: Uuid, ended_at: OffsetDateTime) -> Result<Option<Sealed>, StoreError> {
        let row = sqlx::query!(
            "SELECT key_id, sealed FROM job_results WHERE day = $1 AND job_id = $2",
            ended_at.to_offset(time::UtcOffset::UTC).date(),
            id
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| Sealed {
            key_id: row.key_id,
            bytes: row.sealed,
        }))
    }
}
