//! How far records were forwarded, and the next of them.

use sqlx::{Postgres, Transaction};

use super::audit_events::Event;
use super::{Store, StoreError, expect_rows};

/// The next records for a target. Nobody else has a turn for it until this one ends; dropping it forwards nothing.
#[derive(Debug)]
pub struct Turn {
    transaction: Transaction<'static, Postgres>,
    target: String,
    next: i64,
    /// The records, in the order of their numbers.
    pub events: Vec<Event>,
    /// Records that wait, these among them.
    pub backlog: i64,
}

impl Store {
    /// Takes a turn for a target, with so many records at most; `None` while somebody else has it. A target that was never
    /// heard of begins with what comes after this moment.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn forward_turn(&self, target: &str, limit: i64) -> Result<Option<Turn>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let mine = sqlx::query_scalar!(
            r#"SELECT pg_try_advisory_xact_lock(hashtext('audit_forward ' || $1)) AS "mine!""#,
            target
        )
        .fetch_one(&mut *transaction)
        .await?;
        if !mine {
            return Ok(None);
        }
        let begun = sqlx::query!(
            "INSERT INTO audit_forwards (target, next_seq) SELECT $1, size FROM audit_head ON CONFLICT DO NOTHING",
            target
        )
        .execute(&mut *transaction)
        .await?;
        if begun.rows_affected() == 1 {
            transaction.commit().await?;
            return Ok(None);
        }
        let place = sqlx::query!(
            "SELECT next_seq, size FROM audit_forwards, audit_head WHERE target = $1",
            target
        )
        .fetch_one(&mut *transaction)
        .await?;
        let events = match place.size > place.next_seq {
            true => next(&mut transaction, place.next_seq, limit).await?,
            false => Vec::new(),
        };
        Ok(Some(Turn {
            transaction,
            target: target.to_owned(),
            next: place.next_seq,
            events,
            backlog: place.size - place.next_seq,
        }))
    }
}

async fn next(
    transaction: &mut Transaction<'static, Postgres>,
    from: i64,
    limit: i64,
) -> Result<Vec<Event>, StoreError> {
    let events = sqlx::query_as!(
        Event,
        "SELECT request_id, kind, occurred_at, recorded_at, broker, auth, instance_id, user_id, token_id, client,
                address, route, feature, lane, model, prompt_id, prompt_version, config_revision, stream,
                body_bytes, correlation_id, trace_id, job_id, details, outcome, reason, worker, attempts, queue_wait_us,
                first_byte_us, duration_us, input_tokens, output_tokens, seq, prompt_sha256, answer_sha256
         FROM audit_events WHERE seq >= $1 ORDER BY seq LIMIT $2",
        from,
        limit,
    )
    .fetch_all(&mut **transaction)
    .await?;
    Ok(events)
}

impl Turn {
    /// The target has the records; what remains waits for the next turn.
    ///
    /// # Errors
    /// Postgres is away or refuses; the records come again.
    pub async fn done(mut self) -> Result<i64, StoreError> {
        let last = self.events.last().and_then(|event| event.seq);
        let next = last.map_or(self.next, |last| last + 1);
        let result = sqlx::query!(
            "UPDATE audit_forwards SET next_seq = $2, changed_at = now() WHERE target = $1",
            self.target,
            next,
        )
        .execute(&mut *self.transaction)
        .await?;
        expect_rows(&result, 1)?;
        self.transaction.commit().await?;
        Ok(self.backlog - (next - self.next))
    }
}
