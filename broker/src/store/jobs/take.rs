//! Which waiting jobs a broker runs next, and which of a dead broker's wait again.

use std::collections::HashMap;
use std::time::Duration;

use duo_contract::audit::Who;
use duo_contract::name::{FeatureName, Lane, ModelName};
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::{Store, StoreError, parsed};
use super::{Sealed, by_job, day};
use crate::jobs::state::JobState;

/// Clients that one taking looks at; those after them have their turn in the next.
const CLIENTS: i32 = 256;

/// A job that this broker is to run.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The job.
    pub id: Uuid,
    /// Whose it is.
    pub client: String,
    /// Requests of this client that may run for one model.
    pub client_limit: u32,
    /// Who asked.
    pub who: Who,
    /// For what.
    pub feature: FeatureName,
    /// Which model.
    pub model: ModelName,
    /// How urgent.
    pub lane: Lane,
    /// The configuration it was made under.
    pub config_revision: u64,
    /// The trace it belongs to.
    pub traceparent: Option<String>,
    /// The client's own id of its request.
    pub correlation_id: Option<String>,
    /// Not over by then: expired.
    pub deadline: OffsetDateTime,
    /// The how many-eth run this is.
    pub run: i32,
    /// Runs that the system failed.
    pub failures: i32,
    /// The job that the input was sealed for.
    pub input_of: Uuid,
    /// What it asks of its model; nothing where its partition was dropped.
    pub input: Option<Sealed>,
}

/// Jobs of one client that wait for one model in one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// How urgent.
    pub lane: Lane,
    /// For which model.
    pub model: ModelName,
    /// Whose.
    pub client: String,
    /// How many.
    pub count: u64,
}

impl Store {
    /// This broker lives, and for so long from now if it says nothing more.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn say_alive(&self, broker: &str, lease: Duration) -> Result<(), StoreError> {
        sqlx::query!(
            "INSERT INTO job_owners (broker, alive_until) VALUES ($1, now() + make_interval(secs => $2))
             ON CONFLICT (broker) DO UPDATE SET alive_until = excluded.alive_until",
            broker,
            lease.as_secs_f64(),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// This broker runs no more jobs.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn say_gone(&self, broker: &str) -> Result<(), StoreError> {
        sqlx::query!("DELETE FROM job_owners WHERE broker = $1", broker)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Puts jobs of brokers whose word has run out back into the line, `limit` at most; how many. The word of `broker`,
    /// who asks, has to hold at the same moment: where its own has run out too, Postgres was the one that was silent.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn recover_jobs(&self, broker: &str, limit: i64) -> Result<u64, StoreError> {
        let mut transaction = self.begin_by_index().await?;
        let done = sqlx::query!(
            "UPDATE jobs SET state = 'queued', owner = NULL, run_after = now()
             FROM (SELECT lost.day, lost.id, lost.owner, lost.run FROM jobs AS lost
                   WHERE lost.owner IS NOT NULL
                     AND NOT EXISTS (SELECT FROM job_owners
                                     WHERE broker = lost.owner AND alive_until > now())
                   LIMIT $1) AS lost
             WHERE jobs.day = lost.day AND jobs.id = lost.id AND jobs.run = lost.run
               AND jobs.owner IS NOT DISTINCT FROM lost.owner
               AND EXISTS (SELECT FROM job_owners WHERE broker = $2 AND alive_until > now())",
            limit,
            broker,
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query!(
            "DELETE FROM job_owners AS gone
             WHERE alive_until < now() - interval '1 hour' AND NOT EXISTS (SELECT FROM jobs WHERE owner = gone.broker)"
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(done.rows_affected())
    }

    /// The jobs that this broker runs, as their rows say.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn owned_jobs(&self, broker: &str) -> Result<Vec<(Uuid, i32)>, StoreError> {
        let rows = sqlx::query!("SELECT id, run FROM jobs WHERE owner = $1", broker)
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.into_iter().map(|row| (row.id, row.run)).collect())
    }

    /// What waits, by lane, model and client; every such line, however long.
    ///
    /// # Errors
    /// Postgres is away, or it takes longer than ten seconds.
    pub async fn waiting_jobs(&self) -> Result<Vec<Waiting>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query!("SET LOCAL statement_timeout = '10s'")
            .execute(&mut *transaction)
            .await?;
        let rows = sqlx::query!(
            r#"SELECT lane, model, client, count(*) AS "count!" FROM jobs
               WHERE state = 'queued' AND owner IS NULL GROUP BY lane, model, client"#
        )
        .fetch_all(&mut *transaction)
        .await?;
        transaction.commit().await?;
        rows.into_iter()
            .map(|row| {
                Ok(Waiting {
                    lane: parsed("jobs.lane", &row.lane)?,
                    model: parsed("jobs.model", &row.model)?,
                    client: row.client,
                    count: u64::try_from(row.count).unwrap_or(0),
                })
            })
            .collect()
    }

    /// Lanes and models for which something may be run now.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn lines_with_jobs(&self) -> Result<Vec<(Lane, ModelName)>, StoreError> {
        // Jumps from line to line in the index instead of walking through them.
        let rows = sqlx::query!(
            r#"WITH RECURSIVE line AS (
                   (SELECT lane, model FROM jobs WHERE state = 'queued' AND owner IS NULL
                    ORDER BY lane, model LIMIT 1)
                   UNION ALL
                   SELECT next.lane, next.model FROM line, LATERAL (
                       SELECT lane, model FROM jobs
                       WHERE state = 'queued' AND owner IS NULL AND (lane, model) > (line.lane, line.model)
                       ORDER BY lane, model LIMIT 1) AS next
               )
               SELECT lane AS "lane!", model AS "model!" FROM line"#
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| Ok((parsed("jobs.lane", &row.lane)?, parsed("jobs.model", &row.model)?)))
            .collect()
    }

    /// Makes this broker the owner of waiting jobs of one lane and model so that `window` of them run at all brokers
    /// together, `most` at most now. Clients have turns: who has fewest running comes first, within their limits.
    /// Only one broker takes at a time; another one that asks meanwhile gets none. Told with them is the client after
    /// whom the next asking begins, nothing for the first one.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn take_jobs(
        &self,
        broker: &str,
        (lane, model): (Lane, &ModelName),
        window: i64,
        most: i64,
        after_client: &str,
    ) -> Result<(Vec<Taken>, String), StoreError> {
        let mut transaction = self.begin_by_index().await?;
        let line = format!("jobs {lane} {model}");
        let mine = sqlx::query_scalar!(
            r#"SELECT pg_try_advisory_xact_lock(hashtext($1)) AS "mine!""#,
            line
        )
        .fetch_one(&mut *transaction)
        .await?;
        if !mine {
            return Ok((Vec::new(), after_client.to_owned()));
        }
        let rows = sqlx::query!(
            r#"WITH RECURSIVE client AS (
                   (SELECT client, 1 AS number FROM jobs
                    WHERE state = 'queued' AND owner IS NULL AND lane = $2 AND model = $3 AND client > $6
                    ORDER BY client LIMIT 1)
                   UNION ALL
                   SELECT next.client, client.number + 1 FROM client, LATERAL (
                       SELECT client FROM jobs
                       WHERE state = 'queued' AND owner IS NULL AND lane = $2 AND model = $3
                         AND client > client.client
                       ORDER BY client LIMIT 1) AS next
                   WHERE client.number < $7
               ),
               running AS (
                   SELECT client, count(*) AS count FROM jobs
                   WHERE owner IS NOT NULL AND lane = $2 AND model = $3 GROUP BY client
               ),
               turn AS (
                   SELECT waiting.day, waiting.id, waiting.client_limit,
                          coalesce(running.count, 0)
                              + row_number() OVER (PARTITION BY client.client ORDER BY waiting.id) AS number
                   FROM client LEFT JOIN running USING (client)
                   CROSS JOIN LATERAL (
                       SELECT day, id, client_limit FROM jobs
                       WHERE state = 'queued' AND owner IS NULL AND lane = $2 AND model = $3
                         AND client = client.client AND run_after <= now()
                       ORDER BY id LIMIT $5) AS waiting
               ),
               picked AS (
                   SELECT day, id FROM turn WHERE number <= client_limit ORDER BY number, id
                   LIMIT least($5, greatest(0, $4 - (SELECT coalesce(sum(count), 0) FROM running))::bigint)
               )
               UPDATE jobs SET owner = $1, run = run + 1
               FROM picked
               WHERE jobs.day = picked.day AND jobs.id = picked.id AND jobs.state = ANY($8) AND jobs.owner IS NULL
               RETURNING jobs.id, client, client_limit, who AS "who: Json<Who>", feature, config_revision, traceparent,
                         correlation_id, deadline, run, failures, input_of,
                         (SELECT max(client.client) FROM client WHERE (SELECT count(*) FROM client) = $7) AS looked_at"#,
            broker,
            lane.as_str(),
            model.as_str(),
            window as _,
            most,
            after_client,
            CLIENTS,
            // Said so, it does not invite the planner to look for each of them through all that wait.
            &JobState::Running.from(),
        )
        .fetch_all(&mut *transaction)
        .await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let mut inputs = inputs(&mut transaction, &ids).await?;
        transaction.commit().await?;
        let next = rows.first().and_then(|row| row.looked_at.clone());
        let taken: Result<_, StoreError> = rows
            .into_iter()
            .map(|row| {
                Ok(Taken {
                    id: row.id,
                    client: row.client,
                    client_limit: u32::try_from(row.client_limit).unwrap_or(1),
                    who: row.who.0,
                    feature: parsed("jobs.feature", &row.feature)?,
                    model: model.clone(),
                    lane,
                    config_revision: u64::try_from(row.config_revision).unwrap_or(0),
                    traceparent: row.traceparent,
                    correlation_id: row.correlation_id,
                    deadline: row.deadline,
                    run: row.run,
                    failures: row.failures,
                    input_of: row.input_of.unwrap_or(row.id),
                    input: inputs.remove(&row.id),
                })
            })
            .collect();
        Ok((taken?, next.unwrap_or_default()))
    }
}

async fn inputs(connection: &mut PgConnection, ids: &[Uuid]) -> Result<HashMap<Uuid, Sealed>, StoreError> {
    let days: Vec<_> = ids.iter().map(|id| day(*id)).collect();
    let rows = sqlx::query!(
        "SELECT job_id, key_id, sealed FROM job_inputs
         JOIN unnest($1::date[], $2::uuid[]) AS told (day, id)
           ON job_inputs.day = told.day AND job_inputs.job_id = told.id",
        &days,
        ids,
    )
    .fetch_all(connection)
    .await?;
    Ok(by_job(
        rows.into_iter().map(|row| (row.job_id, row.key_id, row.sealed)),
    ))
}
