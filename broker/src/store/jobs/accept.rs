//! Accepts jobs: their rows, their inputs, their idempotency keys.

use duo_contract::audit::Who;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::{Store, StoreError};
use super::{Accepted, Key, NewJob, day};

/// Whoever holds a key's row commits within milliseconds, or its broker is in trouble. Keys are looked up, however few
/// there seem to be.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '1s'; SET LOCAL enable_seqscan = off; \
                     SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";

impl Store {
    /// Accepts jobs, all or none of them. Of those with an idempotency key that is known already, the first is told
    /// instead. No two of `jobs` may have the same client and key.
    ///
    /// # Errors
    /// Postgres is away, or refuses a value.
    pub async fn accept_jobs(&self, jobs: &[&NewJob]) -> Result<Vec<Accepted>, StoreError> {
        let mut transaction = self.pool.begin_with(BEGIN).await?;
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
    let kept = sqlx::query!(
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
    if kept.rows_affected() == keyed.len() as u64 {
        return Ok(accepted);
    }
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

pub(in crate::store) async fn insert(
    connection: &mut PgConnection,
    jobs: &[&NewJob],
) -> Result<(), StoreError> {
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
