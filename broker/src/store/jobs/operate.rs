//! What operators do to jobs, with a record of who did it.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::super::change_records::{self, ChangeRecord};
use super::super::{Store, StoreError, config_revision};
use super::{cancel, day};

impl Store {
    /// Cancels a job that is not over; true if this call did.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn cancel_job_as(&self, actor: &str, id: Uuid) -> Result<bool, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let message = "cancelled by an administrator";
        if !cancel(&mut transaction, id, "cancelled", message).await? {
            return Ok(false);
        }
        let revision = config_revision::read(&mut transaction).await?;
        let record = ChangeRecord {
            what: "job.cancel",
            subject: id.to_string(),
            before: None,
            after: Some(json!({"state": "cancelled"})),
        };
        change_records::add(&mut transaction, actor, revision, &record).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Submits what a job that is over asked for once more, as the same client's, to be over within `deadline`; `None`
    /// where its input is not kept any more.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn repeat_job(
        &self,
        actor: &str,
        id: Uuid,
        deadline: Duration,
    ) -> Result<Option<Uuid>, StoreError> {
        let again = Uuid::now_v7();
        let mut transaction = self.pool.begin().await?;
        let input = sqlx::query!(
            "INSERT INTO job_inputs (day, job_id, key_id, sealed)
             SELECT $1, $2, key_id, sealed FROM job_inputs WHERE day = $3 AND job_id = $4",
            day(again),
            again,
            day(id),
            id,
        )
        .execute(&mut *transaction)
        .await?;
        if input.rows_affected() == 0 {
            return Ok(None);
        }
        sqlx::query!(
            "INSERT INTO jobs (day, id, client, client_limit, who, feature, model, lane, prompt_id, prompt_version,
                               config_revision, traceparent, correlation_id, metadata, callback, retry_of, input_of,
                               deadline)
             SELECT $1, $2, client, client_limit, who, feature, model, lane, prompt_id, prompt_version,
                    config_revision, traceparent, correlation_id, metadata, callback, id, coalesce(input_of, id),
                    now() + make_interval(secs => $5)
             FROM jobs WHERE day = $3 AND id = $4",
            day(again),
            again,
            day(id),
            id,
            deadline.as_secs_f64(),
        )
        .execute(&mut *transaction)
        .await?;
        let revision = config_revision::read(&mut transaction).await?;
        let record = ChangeRecord {
            what: "job.retry",
            subject: id.to_string(),
            before: None,
            after: Some(json!({"job": again})),
        };
        change_records::add(&mut transaction, actor, revision, &record).await?;
        transaction.commit().await?;
        Ok(Some(again))
    }
}
