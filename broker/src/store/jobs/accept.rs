//! Accepts jobs: their rows, their inputs, their idempotency keys.

use std::collections::HashSet;

use duo_contract::audit::Who;
use serde_json::Value;
use sqlx::PgExecutor;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::{Store, StoreError};
use super::{Accepted, Key, NewJob, day};

/// Keys are looked up, however few there seem to be.
const BEGIN: &str = "BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
                     SET LOCAL enable_mergejoin = off";

impl Store {
    /// Accepts jobs, all or none of them. Of those with an idempotency key that is known already, the first is told
    /// instead. No two of `jobs` may have the same client and key.
    ///
    /// # Errors
    /// Postgres is away, or refuses a value.
    pub async fn accept_jobs(&self, jobs: &[&NewJob]) -> Result<Vec<Accepted>, StoreError> {
        let new = insert(&self.pool, jobs).await?;
        let mut accepted = vec![Accepted::New; jobs.len()];
        if new.len() == jobs.len() {
            return Ok(accepted);
        }
        let new: HashSet<Uuid> = new.into_iter().collect();
        let mut known = Vec::new();
        for (accepted, job) in accepted.iter_mut().zip(jobs) {
            if let (false, Some(key)) = (new.contains(&job.id), &job.key) {
                // Unless its key is found.
                *accepted = Accepted::Forgotten;
                known.push((accepted, job.client.as_str(), key));
            }
        }
        self.tell_of_known(known).await?;
        Ok(accepted)
    }

    /// What the keys of these submissions were used for.
    async fn tell_of_known(&self, mut known: Vec<(&mut Accepted, &str, &Key)>) -> Result<(), StoreError> {
        let clients: Vec<&str> = known.iter().map(|(_, client, _)| *client).collect();
        let keys: Vec<&str> = known.iter().map(|(_, _, key)| key.key.as_str()).collect();
        let mut transaction = self.pool.begin_with(BEGIN).await?;
        let held = sqlx::query!(
            r#"SELECT told.at AS "at!", held.fingerprint, held.job_id
               FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS told (client, key, at)
               JOIN job_keys AS held ON held.client = told.client AND held.key = told.key"#,
            &clients as &[&str],
            &keys as &[&str],
        )
        .fetch_all(&mut *transaction)
        .await?;
        transaction.commit().await?;
        for row in held {
            let place = usize::try_from(row.at - 1).unwrap_or(usize::MAX);
            if let Some((accepted, _, key)) = known.get_mut(place) {
                **accepted = match row.fingerprint == key.fingerprint {
                    true => Accepted::Same(row.job_id),
                    false => Accepted::Other,
                };
            }
        }
        Ok(())
    }
}

/// Writes jobs with their keys and inputs, but those whose key somebody had before; the ids of what was written. It is
/// one statement, so that nobody who dies or freezes between two of them keeps a key from others, and what a submission
/// costs is one asking.
pub(in crate::store) async fn insert(
    executor: impl PgExecutor<'_>,
    jobs: &[&NewJob],
) -> Result<Vec<Uuid>, StoreError> {
    macro_rules! column {
        ($job:ident => $value:expr) => {
            &jobs.iter().map(|$job| $value).collect::<Vec<_>>()[..]
        };
    }
    let new = sqlx::query_scalar!(
        r#"WITH told AS (
               SELECT * FROM unnest($1::date[], $2::uuid[], $3::text[], $4::int[], $5::jsonb[], $6::text[], $7::text[],
                   $8::text[], $9::text[], $10::text[], $11::bigint[], $12::text[], $13::text[], $14::jsonb[], $15::text[],
                   $16::uuid[], $17::timestamptz[], $18::text[], $19::bytea[], $20::text[], $21::bytea[], $22::timestamptz[])
               AS told (day, id, client, client_limit, who, feature, model, lane, prompt_id, prompt_version,
                        config_revision, traceparent, correlation_id, metadata, callback, retry_of, deadline, key_id,
                        sealed, key, fingerprint, expires_at)
           ),
           kept AS (
               INSERT INTO job_keys (client, key, fingerprint, job_id, expires_at)
               -- in one order for all brokers, so that no two wait for each other
               SELECT client, key, fingerprint, id, expires_at FROM told WHERE key IS NOT NULL ORDER BY client, key
               -- one that has expired is as good as new
               ON CONFLICT (client, key) DO UPDATE
                   SET fingerprint = excluded.fingerprint, job_id = excluded.job_id, expires_at = excluded.expires_at
                   WHERE job_keys.expires_at < now()
               RETURNING job_id
           ),
           new AS (
               SELECT * FROM told WHERE key IS NULL OR id IN (SELECT job_id FROM kept)
           ),
           made AS (
               INSERT INTO jobs (day, id, client, client_limit, who, feature, model, lane, prompt_id, prompt_version,
                                 config_revision, traceparent, correlation_id, metadata, callback, retry_of, deadline)
               SELECT day, id, client, client_limit, who, feature, model, lane, prompt_id, prompt_version,
                      config_revision, traceparent, correlation_id, metadata, callback, retry_of, deadline FROM new
           ),
           asked AS (
               INSERT INTO job_inputs (day, job_id, key_id, sealed) SELECT day, id, key_id, sealed FROM new
           )
           SELECT id AS "id!" FROM new"#,
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
        column!(j => j.input.key_id.as_str()) as &[&str],
        column!(j => j.input.bytes.as_slice()) as &[&[u8]],
        column!(j => j.key.as_ref().map(|key| key.key.as_str())) as &[Option<&str>],
        column!(j => j.key.as_ref().map(|key| key.fingerprint.as_slice())) as &[Option<&[u8]>],
        column!(j => j.key.as_ref().map(|key| key.expires_at)) as &[Option<OffsetDateTime>],
    )
    .fetch_all(executor)
    .await?;
    Ok(new)
}
