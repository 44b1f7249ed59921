//! What runs say of their jobs: begun, over, come to nothing; and cancellations.

use sqlx::PgConnection;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::super::webhooks::{self, JobEnded};
use super::super::{Store, StoreError, parsed};
use super::{Ended, Fence, HandBack, JobEnd, Sealed, day};
use crate::jobs::state::JobState;

impl Store {
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
        let mut transaction = self.begin_by_index().await?;
        sqlx::query!(
            "UPDATE jobs SET state = 'running', started_at = coalesce(started_at, now())
             FROM unnest($1::date[], $2::uuid[], $3::text[], $4::int[]) AS told (day, id, owner, run)
             WHERE jobs.day = told.day AND jobs.id = told.id
               AND jobs.owner IS NOT DISTINCT FROM told.owner AND jobs.run = told.run AND jobs.state = ANY($5)",
            &days,
            &ids,
            &owners,
            &runs,
            &JobState::Running.from(),
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Ends jobs by what their runs say, with their results; those that were ended now.
    ///
    /// # Errors
    /// Postgres is away, or refuses a value; then none is ended.
    pub async fn end_jobs(&self, ends: &[JobEnd]) -> Result<Vec<Ended>, StoreError> {
        let mut transaction = self.begin_by_index().await?;
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
        let mut transaction = self.begin_by_index().await?;
        sqlx::query!(
            "UPDATE jobs SET state = 'queued', owner = NULL, failures = failures + told.failed,
                    run_after = now() + make_interval(secs => told.after),
                    request_id = coalesce(told.request_id, jobs.request_id),
                    reason = told.reason, message = told.message
             FROM unnest($1::date[], $2::uuid[], $3::text[], $4::int[], $5::int[], $6::float8[], $7::uuid[],
                         $8::text[], $9::text[])
                  AS told (day, id, owner, run, failed, after, request_id, reason, message)
             WHERE jobs.day = told.day AND jobs.id = told.id
               AND jobs.owner IS NOT DISTINCT FROM told.owner AND jobs.run = told.run
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
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }
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
           WHERE jobs.day = told.day AND jobs.id = told.id
             AND jobs.owner IS NOT DISTINCT FROM told.owner AND jobs.run = told.run AND jobs.state = ANY($14)
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

/// Cancels a job that is not over, and has its receiver told; true if this call did.
pub(super) async fn cancel(
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
pub(super) async fn tell_receivers(
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

/// What statements about these jobs compare. Owners are compared by `IS NOT DISTINCT FROM`, which no index can do: the
/// one on owners has all that a broker runs under one key, and seems the shorter way while a partition is empty.
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
