//! Jobs: accepted, taken, ended, each in batches; looked at one by one.
//!
//! Every change of a state is a compare-and-set: it names the states it may come from and, for a run, owner and run
//! number. Who finds no row was overtaken, which is no error.

mod keep;
mod operate;
mod take;
mod tell;

use duo_contract::audit::Who;
use duo_contract::name::{FeatureName, Lane, ModelName};
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::audit_events::day_of;
use super::webhooks::{self, JobEnded};
use super::{Store, StoreError, parsed};
use crate::jobs::state::JobState;

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

impl Store {
    /// Accepts jobs, all or none of them. Of those with an idempotency key that is known already, the first is told
    /// instead. No two of `jobs` may have the same client and key.
    ///
    /// # Errors
    /// Postgres is away, or refuses a value.
    pub async fn accept_jobs(&self, jobs: &[&NewJob]) -> Result<Vec<Accepted>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        // Whoever holds a key's row commits within milliseconds, or its broker is in trouble.
        sqlx::query!("SET LOCAL lock_timeout = '1s'")
            .execute(&mut *transaction)
            .await?;
        let accepted = reserve_keys(&mut transaction, jobs).await?;
        let new: Vec<&NewJob> = jobs
            .iter()
            .zip(&accepted)
            .filter(|(_, accepted)| **accepted == Accepted::New)
            .map(|(job, _)| *job)
            .collect();
        if !new.is_empty() {
            insert(&mut transaction, &new).await?;
        }
        transaction.commit().await?;
        Ok(accepted)
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

    /// Cancels a job that is not over; true if this call did.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn cancel_job(&self, id: Uuid, reason: &str, message: &str) -> Result<bool, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let done = cancel(&mut transaction, id, reason, message).await?;
        transaction.commit().await?;
        Ok(done)
    }

    /// A worker has these jobs.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn note_started(&self, fences: &[Fence]) -> Result<(), StoreError> {
        let (days, ids, owners, runs) = columns(fences.iter());
        sqlx::query!(
            "UPDATE jobs SET state = 'running', started_at = coalesce(started_at, now())
             FROM unnest($1::date[], $2::uuid[], $3::text[], $4::int[]) AS told (day, id, owner, run)
             WHERE jobs.day = told.day AND jobs.id = told.id AND jobs.owner = told.owner AND jobs.run = told.run
               AND jobs.state = ANY($5)",
            &days,
            &ids,
            &owners,
            &runs,
            &JobState::Running.from(),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Ends jobs by what their runs say, with their results; those that were ended now.
    ///
    /// # Errors
    /// Postgres is away, or refuses a value; then none is ended.
    pub async fn end_jobs(&self, ends: &[JobEnd]) -> Result<Vec<Ended>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let ended = end(&mut transaction, ends).await?;
        transaction.commit().await?;
        Ok(ended)
    }

    /// Puts jobs back whose runs came to nothing.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn hand_back_jobs(&self, backs: &[HandBack]) -> Result<(), StoreError> {
        let (days, ids, owners, runs) = columns(backs.iter().map(|back| &back.fence));
        let failures: Vec<i32> = backs.iter().map(|back| i32::from(back.is_failure)).collect();
        let after: Vec<f64> = backs.iter().map(|back| back.after.as_secs_f64()).collect();
        let requests: Vec<Option<Uuid>> = backs.iter().map(|back| back.request_id).collect();
        let reasons: Vec<&str> = backs.iter().map(|back| back.reason.as_str()).collect();
        let messages: Vec<&str> = backs.iter().map(|back| back.message.as_str()).collect();
        sqlx::query!(
            "UPDATE jobs SET state = 'queued', owner = NULL, failures = failures + told.failed,
                    run_after = now() + make_interval(secs => told.after),
                    request_id = coalesce(told.request_id, jobs.request_id),
                    reason = told.reason, message = told.message
             FROM unnest($1::date[], $2::uuid[], $3::text[], $4::int[], $5::int[], $6::float8[], $7::uuid[],
                         $8::text[], $9::text[])
                  AS told (day, id, owner, run, failed, after, request_id, reason, message)
             WHERE jobs.day = told.day AND jobs.id = told.id AND jobs.owner = told.owner AND jobs.run = told.run
               AND jobs.state IN ('queued', 'running')",
            &days,
            &ids,
            &owners,
            &runs,
            &failures,
            &after,
            &requests as &[Option<Uuid>],
            &reasons as &[&str],
            &messages as &[&str],
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// Cancels a job that is not over, and has its receiver told; true if this call did.
async fn cancel(
    connection: &mut PgConnection,
    id: Uuid,
    reason: &str,
    message: &str,
) -> Result<bool, StoreError> {
    let row = sqlx::query!(
        r#"UPDATE jobs SET state = 'cancelled', owner = NULL, ended_at = now(), reason = $4, message = $5
           WHERE day = $1 AND id = $2 AND state = ANY($3)
           RETURNING callback, ended_at AS "ended_at!""#,
        day(id),
        id,
        &JobState::Cancelled.from(),
        reason,
        message,
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(false) };
    let told = (id, JobState::Cancelled, row.ended_at, row.callback);
    tell_receivers(connection, [told]).await?;
    Ok(true)
}

/// Writes for their receivers that jobs have ended, in the transaction that ends them.
async fn tell_receivers(
    connection: &mut PgConnection,
    ends: impl IntoIterator<Item = (Uuid, JobState, OffsetDateTime, Option<String>)>,
) -> Result<(), StoreError> {
    let ends: Vec<JobEnded> = ends
        .into_iter()
        .filter_map(|(job_id, state, ended_at, callback)| {
            Some(JobEnded {
                job_id,
                receiver: callback?,
                event: state.event()?,
                ended_at,
            })
        })
        .collect();
    if !ends.is_empty() {
        webhooks::enqueue(connection, &ends).await?;
    }
    Ok(())
}

fn columns<'a>(fences: impl Iterator<Item = &'a Fence>) -> (Vec<Date>, Vec<Uuid>, Vec<String>, Vec<i32>) {
    let mut columns = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for fence in fences {
        columns.0.push(day(fence.id));
        columns.1.push(fence.id);
        columns.2.push(fence.owner.clone());
        columns.3.push(fence.run);
    }
    columns
}

/// Keeps the keys that are new, and tells of the others what they were used for.
async fn reserve_keys(connection: &mut PgConnection, jobs: &[&NewJob]) -> Result<Vec<Accepted>, StoreError> {
    let mut keyed: Vec<(usize, &NewJob, &Key)> = jobs
        .iter()
        .enumerate()
        .filter_map(|(at, job)| Some((at, *job, job.key.as_ref()?)))
        .collect();
    let mut accepted = vec![Accepted::New; jobs.len()];
    if keyed.is_empty() {
        return Ok(accepted);
    }
    // In one order for all brokers, so that no two wait for each other.
    keyed.sort_by(|(_, one, key), (_, other, other_key)| {
        (&one.client, &key.key).cmp(&(&other.client, &other_key.key))
    });
    let clients: Vec<&str> = keyed.iter().map(|(_, job, _)| job.client.as_str()).collect();
    let keys: Vec<&str> = keyed.iter().map(|(_, _, key)| key.key.as_str()).collect();
    let prints: Vec<&[u8]> = keyed
        .iter()
        .map(|(_, _, key)| key.fingerprint.as_slice())
        .collect();
    let ids: Vec<Uuid> = keyed.iter().map(|(_, job, _)| job.id).collect();
    let expiries: Vec<OffsetDateTime> = keyed.iter().map(|(_, _, key)| key.expires_at).collect();
    // One that has expired is as good as new.
    sqlx::query!(
        "INSERT INTO job_keys (client, key, fingerprint, job_id, expires_at)
         SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::uuid[], $5::timestamptz[])
         ON CONFLICT (client, key) DO UPDATE
             SET fingerprint = excluded.fingerprint, job_id = excluded.job_id, expires_at = excluded.expires_at
             WHERE job_keys.expires_at < now()",
        &clients as &[&str],
        &keys as &[&str],
        &prints as &[&[u8]],
        &ids,
        &expiries,
    )
    .execute(&mut *connection)
    .await?;
    let held = sqlx::query!(
        r#"SELECT told.at AS "at!", held.fingerprint, held.job_id
           FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS told (client, key, at)
           JOIN job_keys AS held ON held.client = told.client AND held.key = told.key"#,
        &clients as &[&str],
        &keys as &[&str],
    )
    .fetch_all(connection)
    .await?;
    for row in held {
        let place = usize::try_from(row.at - 1).unwrap_or(0);
        let Some((at, job, key)) = keyed.get(place) else {
            continue;
        };
        accepted[*at] = match row.job_id {
            id if id == job.id => Accepted::New,
            id if row.fingerprint == key.fingerprint => Accepted::Same(id),
            _ => Accepted::Other,
        };
    }
    Ok(accepted)
}

pub(super) async fn insert(connection: &mut PgConnection, jobs: &[&NewJob]) -> Result<(), StoreError> {
    macro_rules! column {
        ($job:ident => $value:expr) => {
            &jobs.iter().map(|$job| $value).collect::<Vec<_>>()[..]
        };
    }
    sqlx::query!(
        "INSERT INTO jobs (day, id, client, client_limit, who, feature, model, lane, prompt_id, prompt_version,
                           config_revision, traceparent, correlation_id, metadata, callback, retry_of, deadline)
         SELECT * FROM unnest($1::date[], $2::uuid[], $3::text[], $4::int[], $5::jsonb[], $6::text[], $7::text[],
             $8::text[], $9::text[], $10::text[], $11::bigint[], $12::text[], $13::text[], $14::jsonb[],
             $15::text[], $16::uuid[], $17::timestamptz[])",
        column!(j => day(j.id)),
        column!(j => j.id),
        column!(j => j.client.as_str()) as &[&str],
        column!(j => i32::try_from(j.client_limit).unwrap_or(i32::MAX)),
        column!(j => Json(&j.who)) as &[Json<&Who>],
        column!(j => j.feature.as_str()) as &[&str],
        column!(j => j.model.as_str()) as &[&str],
        column!(j => j.lane.as_str()) as &[&str],
        column!(j => j.prompt.as_ref().map(|(id, _)| id.as_str())) as &[Option<&str>],
        column!(j => j.prompt.as_ref().map(|(_, version)| version.as_str())) as &[Option<&str>],
        column!(j => j.config_revision.cast_signed()),
        column!(j => j.traceparent.as_deref()) as &[Option<&str>],
        column!(j => j.correlation_id.as_deref()) as &[Option<&str>],
        column!(j => j.metadata.as_ref().map(Json)) as &[Option<Json<&Value>>],
        column!(j => j.callback.as_deref()) as &[Option<&str>],
        column!(j => j.retry_of) as &[Option<Uuid>],
        column!(j => j.deadline),
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO job_inputs (day, job_id, key_id, sealed)
         SELECT * FROM unnest($1::date[], $2::uuid[], $3::text[], $4::bytea[])",
        column!(j => day(j.id)),
        column!(j => j.id),
        column!(j => j.input.key_id.as_str()) as &[&str],
        column!(j => j.input.bytes.as_slice()) as &[&[u8]],
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn end(connection: &mut PgConnection, ends: &[JobEnd]) -> Result<Vec<Ended>, StoreError> {
    macro_rules! column {
        ($end:ident => $value:expr) => {
            &ends.iter().map(|$end| $value).collect::<Vec<_>>()[..]
        };
    }
    let (days, ids, owners, runs) = columns(ends.iter().map(|end| &end.fence));
    let rows = sqlx::query!(
        r#"UPDATE jobs SET state = told.state, owner = NULL, ended_at = now(),
                  started_at = coalesce(jobs.started_at, told.started_at), request_id = told.request_id,
                  worker = told.worker, reason = told.reason, message = told.message,
                  upstream_status = told.upstream_status, input_tokens = told.input_tokens,
                  output_tokens = told.output_tokens
           FROM unnest($1::date[], $2::uuid[], $3::text[], $4::int[], $5::text[], $6::timestamptz[], $7::uuid[],
                       $8::text[], $9::text[], $10::text[], $11::int[], $12::bigint[], $13::bigint[])
                AS told (day, id, owner, run, state, started_at, request_id, worker, reason, message,
                         upstream_status, input_tokens, output_tokens)
           WHERE jobs.day = told.day AND jobs.id = told.id AND jobs.owner = told.owner AND jobs.run = told.run
             AND jobs.state = ANY($14)
           RETURNING jobs.id, jobs.state, jobs.callback, jobs.ended_at AS "ended_at!",
                     (jobs.ended_at AT TIME ZONE 'UTC')::date AS "day!""#,
        &days,
        &ids,
        &owners,
        &runs,
        column!(e => e.state.as_str()) as &[&str],
        column!(e => e.started_at) as &[Option<OffsetDateTime>],
        column!(e => e.request_id) as &[Option<Uuid>],
        column!(e => e.worker.as_deref()) as &[Option<&str>],
        column!(e => e.reason.as_deref()) as &[Option<&str>],
        column!(e => e.message.as_deref()) as &[Option<&str>],
        column!(e => e.upstream_status.map(i32::from)) as &[Option<i32>],
        column!(e => e.input_tokens.map(u64::cast_signed)) as &[Option<i64>],
        column!(e => e.output_tokens.map(u64::cast_signed)) as &[Option<i64>],
        &JobState::Succeeded.from(),
    )
    .fetch_all(&mut *connection)
    .await?;
    let results: Vec<(Date, Uuid, &Sealed)> = rows
        .iter()
        .filter_map(|row| {
            let end = ends.iter().find(|end| end.fence.id == row.id)?;
            Some((row.day, row.id, end.result.as_ref()?))
        })
        .collect();
    if !results.is_empty() {
        sqlx::query!(
            "INSERT INTO job_results (day, job_id, key_id, sealed)
             SELECT * FROM unnest($1::date[], $2::uuid[], $3::text[], $4::bytea[])",
            &results.iter().map(|(day, _, _)| *day).collect::<Vec<_>>(),
            &results.iter().map(|(_, id, _)| *id).collect::<Vec<_>>(),
            &results
                .iter()
                .map(|(_, _, sealed)| sealed.key_id.as_str())
                .collect::<Vec<_>>() as &[&str],
            &results
                .iter()
                .map(|(_, _, sealed)| sealed.bytes.as_slice())
                .collect::<Vec<_>>() as &[&[u8]],
        )
        .execute(&mut *connection)
        .await?;
    }
    let mut ended = Vec::with_capacity(rows.len());
    let mut told = Vec::new();
    for row in rows {
        let state = parsed("jobs.state", &row.state)?;
        ended.push(Ended { id: row.id, state });
        told.push((row.id, state, row.ended_at, row.callback));
    }
    tell_receivers(connection, told).await?;
    Ok(ended)
}
