//! What is to be told to whom, and what became of it: written, listed, queued again, forgotten.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::{NoContext, Timestamp, Uuid};

use super::super::change_records::ChangeRecord;
use super::super::snapshot::freeze;
use super::super::{Store, StoreError, parsed, unsigned};
use super::receivers;

/// Most deliveries on one page.
pub const MAX_PAGE: u32 = 1000;
/// Deliveries removed at once.
const FORGOTTEN_AT_ONCE: i64 = 1000;

/// The end of a job that somebody is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobEnded {
    /// The job.
    pub job_id: Uuid,
    /// Name of the receiver.
    pub receiver: String,
    /// What happened, such as `job.succeeded`.
    pub event: &'static str,
    /// When.
    pub ended_at: OffsetDateTime,
}

/// How far a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It is to be sent, for the first time or again.
    Pending,
    /// The receiver has said that it has it.
    Delivered,
    /// Every attempt failed.
    Failed,
    /// It is not sent since the receiver is disabled.
    Dropped,
}

/// A delivery as administrators see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Delivery {
    /// Its id, which its receiver sees as `webhook-id`.
    pub id: String,
    /// What happened.
    pub event: String,
    /// To which job; none for a test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<Uuid>,
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    pub occurred_at: OffsetDateTime,
    /// How far it is.
    pub state: DeliveryState,
    /// Why it was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it is sent again.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub next_at: Option<OffsetDateTime>,
    /// Since when nothing more is done about it.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub ended_at: Option<OffsetDateTime>,
    /// What its attempts met, the first one first.
    pub attempts: Vec<Attempt>,
}

/// What one attempt met.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Attempt {
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Who made it.
    pub broker: String,
    /// `delivered`, or what went wrong.
    pub result: String,
    /// The answer's status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<i32>,
    /// More about it, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How long it took.
    pub duration_ms: i64,
}

/// Deliveries, newest first, and where the next page begins.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeliveryPage {
    /// The deliveries.
    pub deliveries: Vec<Delivery>,
    /// Give it back for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// What waits, of all brokers together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Backlog {
    /// Deliveries that are pending.
    pub pending: u64,
    /// How long the first of them has been.
    pub oldest_seconds: f64,
}

impl DeliveryState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Delivered, Self::Failed, Self::Dropped];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

impl std::str::FromStr for DeliveryState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::ALL.into_iter();
        all.find(|state| state.as_str() == text)
            .ok_or_else(|| "has to be one of pending, delivered, failed, dropped".to_owned())
    }
}

impl std::fmt::Display for DeliveryState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Writes a delivery for each end, within the caller's transaction, and returns how many there are. An end whose receiver
/// is not there any more has none; one whose receiver is disabled is kept as dropped. Once the transaction is
/// committed, [`crate::webhooks::Webhooks::wake`] has them sent at once.
///
/// # Errors
/// Postgres is away or refuses.
pub async fn enqueue(connection: &mut PgConnection, ends: &[JobEnded]) -> Result<u64, StoreError> {
    if ends.is_empty() {
        return Ok(0);
    }
    let ids: Vec<String> = ends.iter().map(|_| new_id()).collect();
    let receivers: Vec<&str> = ends.iter().map(|end| end.receiver.as_str()).collect();
    let events: Vec<&str> = ends.iter().map(|end| end.event).collect();
    // A receiver is held until the end of the transaction, so that its removal does not break it.
    let result = sqlx::query!(
        "INSERT INTO webhook_deliveries (id, receiver, job_id, event, occurred_at, state, reason, ended_at)
         SELECT ended.id, receiver.id, ended.job_id, ended.event, ended.at,
                CASE WHEN receiver.disabled_at IS NULL THEN 'pending' ELSE 'dropped' END,
                CASE receiver.disabled_reason WHEN 'gone' THEN 'receiver_gone'
                                              WHEN 'administrator' THEN 'receiver_disabled' END,
                CASE WHEN receiver.disabled_at IS NOT NULL THEN now() END
         FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[])
                  AS ended (id, job_id, receiver, event, at)
         JOIN webhook_receivers AS receiver ON receiver.name = ended.receiver
         FOR KEY SHARE OF receiver",
        &ids,
        &ends.iter().map(|end| end.job_id).collect::<Vec<_>>(),
        &receivers as &[&str],
        &events as &[&str],
        &ends.iter().map(|end| end.ended_at).collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

impl Store {
    /// Drops what waits for disabled receivers: it was written while they were being disabled.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn drop_deliveries_of_disabled(&self) -> Result<u64, StoreError> {
        let mut connection = self.pool.acquire().await?;
        drop_for_disabled(&mut connection).await
    }

    /// What waits.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn delivery_backlog(&self) -> Result<Backlog, StoreError> {
        let row = sqlx::query!(
            r#"SELECT count(*) AS "pending!",
                      coalesce(extract(epoch FROM now() - min(queued_at)), 0)::float8 AS "oldest!"
               FROM webhook_deliveries WHERE state = 'pending'"#
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Backlog {
            pending: unsigned("count of deliveries", row.pending)?,
            oldest_seconds: row.oldest,
        })
    }

    /// Removes deliveries that were written before `moment` and have ended; gives how many, which is all of them if they
    /// are few.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn forget_deliveries(&self, moment: OffsetDateTime) -> Result<u64, StoreError> {
        let seconds = u64::try_from(moment.unix_timestamp()).unwrap_or(0);
        let first_kept = id_of(Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, 0)));
        let result = sqlx::query!(
            "DELETE FROM webhook_deliveries
             WHERE id IN (SELECT id FROM webhook_deliveries WHERE id < $1 AND state <> 'pending'
                          ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)",
            first_kept,
            FORGOTTEN_AT_ONCE,
        )
        .execute(&self.pool)
        .await?;
        Ok(result.rows_affected())
    }

    /// One page of a receiver's deliveries, newest first; it begins before the delivery `before`.
    ///
    /// # Errors
    /// There is no such receiver, or Postgres is away.
    pub async fn delivery_page(
        &self,
        receiver: &str,
        state: Option<DeliveryState>,
        limit: u32,
        before: Option<&str>,
    ) -> Result<DeliveryPage, StoreError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let mut transaction = self.pool.begin().await?;
        // Or a delivery would be shown as it was before the last of its attempts.
        freeze(&mut transaction).await?;
        let receiver = receivers::one(&mut transaction, receiver).await?;
        let wanted = Wanted {
            receiver: receiver.id,
            state,
            before,
            id: None,
        };
        let mut deliveries = select(&mut transaction, &wanted, i64::from(limit) + 1).await?;
        transaction.commit().await?;
        let more = deliveries.len() > limit as usize;
        deliveries.truncate(limit as usize);
        let next_cursor = deliveries
            .last()
            .filter(|_| more)
            .map(|delivery| delivery.id.clone());
        Ok(DeliveryPage {
            deliveries,
            next_cursor,
        })
    }

    /// Queues a test for a receiver.
    ///
    /// # Errors
    /// There is none of the name, it is disabled, or Postgres is away.
    pub async fn queue_test(&self, actor: &str, receiver: &str) -> Result<Delivery, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let receiver = enabled(&mut transaction, receiver).await?;
        let id = new_id();
        sqlx::query!(
            "INSERT INTO webhook_deliveries (id, receiver, event, occurred_at, state)
             VALUES ($1, $2, $3, now(), 'pending')",
            id,
            receiver.id,
            crate::webhooks::TEST_EVENT,
        )
        .execute(&mut *transaction)
        .await?;
        let record = ChangeRecord {
            what: "webhook.test",
            subject: receiver.name,
            before: None,
            after: Some(json!({"delivery": id})),
        };
        receivers::record_change(&mut transaction, actor, &record).await?;
        let delivery = by_id(&mut transaction, receiver.id, &id).await?;
        transaction.commit().await?;
        Ok(delivery)
    }

    /// Queues a delivery again, with its id and all its attempts before it; one that is pending is brought forward.
    /// Without a receiver the delivery's own is meant.
    ///
    /// # Errors
    /// There is none of the id, its receiver is disabled, or Postgres is away.
    pub async fn replay_delivery(
        &self,
        actor: &str,
        receiver: Option<&str>,
        id: &str,
    ) -> Result<Delivery, StoreError> {
        let unknown = || StoreError::NotFound(format!("there is no delivery {id:?}"));
        if !is_id(id) {
            return Err(unknown());
        }
        let mut transaction = self.pool.begin().await?;
        let found = sqlx::query_scalar!(
            "SELECT receiver.name FROM webhook_deliveries AS delivery
             JOIN webhook_receivers AS receiver ON receiver.id = delivery.receiver
             WHERE delivery.id = $1",
            id,
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let name = found
            .filter(|name| receiver.is_none_or(|wanted| wanted == name))
            .ok_or_else(unknown)?;
        let receiver = enabled(&mut transaction, &name).await?;
        let before = by_id(&mut transaction, receiver.id, id).await?;
        sqlx::query!(
            "UPDATE webhook_deliveries
             SET state = 'pending', reason = NULL, ended_at = NULL,
                 attempt = CASE state WHEN 'pending' THEN attempt ELSE 0 END,
                 queued_at = CASE state WHEN 'pending' THEN queued_at ELSE now() END,
                 next_at = CASE WHEN leased_by IS NULL THEN now() ELSE next_at END
             WHERE id = $1",
            id,
        )
        .execute(&mut *transaction)
        .await?;
        let record = ChangeRecord {
            what: "webhook.replay",
            subject: name,
            before: Some(json!({"delivery": id, "state": before.state})),
            after: Some(json!({"delivery": id, "state": DeliveryState::Pending})),
        };
        receivers::record_change(&mut transaction, actor, &record).await?;
        let delivery = by_id(&mut transaction, receiver.id, id).await?;
        transaction.commit().await?;
        Ok(delivery)
    }
}

/// The receiver, held as it is until the end of the transaction; nothing is queued for a disabled one.
async fn enabled(connection: &mut PgConnection, name: &str) -> Result<receivers::Receiver, StoreError> {
    receivers::lock(connection, name).await?;
    let receiver = receivers::one(connection, name).await?;
    match &receiver.disabled {
        None => Ok(receiver),
        Some(disabled) => Err(StoreError::Conflict(format!(
            "receiver {name:?} is disabled ({}); enable it first",
            disabled.reason
        ))),
    }
}

fn new_id() -> String {
    id_of(Uuid::now_v7())
}

fn id_of(id: Uuid) -> String {
    format!("msg_{}", id.simple())
}

/// Could it be the id of a delivery?
fn is_id(text: &str) -> bool {
    text.strip_prefix("msg_")
        .is_some_and(|digits| digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// Drops what waits for disabled receivers, unless a broker is about to tell it.
pub(super) async fn drop_for_disabled(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let result = sqlx::query!(
        "WITH idle AS (
             SELECT delivery.id, receiver.disabled_reason
             FROM webhook_receivers AS receiver
             JOIN webhook_deliveries AS delivery ON delivery.receiver = receiver.id
             WHERE receiver.disabled_at IS NOT NULL AND delivery.state = 'pending'
               AND (delivery.leased_by IS NULL OR delivery.next_at <= now())
             FOR UPDATE OF delivery SKIP LOCKED
         )
         UPDATE webhook_deliveries AS delivery
         SET state = 'dropped', leased_by = NULL, ended_at = now(),
             reason = CASE idle.disabled_reason WHEN 'gone' THEN 'receiver_gone' ELSE 'receiver_disabled' END
         FROM idle WHERE delivery.id = idle.id"
    )
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

/// Which deliveries; everything named must hold.
struct Wanted<'a> {
    receiver: Uuid,
    state: Option<DeliveryState>,
    before: Option<&'a str>,
    id: Option<&'a str>,
}

async fn by_id(connection: &mut PgConnection, receiver: Uuid, id: &str) -> Result<Delivery, StoreError> {
    let wanted = Wanted {
        receiver,
        state: None,
        before: None,
        id: Some(id),
    };
    let found = select(connection, &wanted, 1).await?.pop();
    found.ok_or_else(|| StoreError::NotFound(format!("there is no delivery {id:?}")))
}

async fn select(
    connection: &mut PgConnection,
    wanted: &Wanted<'_>,
    limit: i64,
) -> Result<Vec<Delivery>, StoreError> {
    let rows = sqlx::query!(
        "SELECT id, event, job_id, occurred_at, state, reason, next_at, ended_at
         FROM webhook_deliveries
         WHERE receiver = $1
           AND ($2::text IS NULL OR state = $2)
           AND ($3::text IS NULL OR id < $3)
           AND ($4::text IS NULL OR id = $4)
         ORDER BY id DESC
         LIMIT $5",
        wanted.receiver,
        wanted.state.map(DeliveryState::as_str),
        wanted.before,
        wanted.id,
        limit,
    )
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
    let mut attempts = attempts_of(connection, &ids).await?;
    let deliveries = rows.into_iter().map(|row| {
        let state = parsed("state of a delivery", &row.state)?;
        Ok(Delivery {
            attempts: attempts.remove(&row.id).unwrap_or_default(),
            id: row.id,
            event: row.event,
            job_id: row.job_id,
            occurred_at: row.occurred_at,
            state,
            reason: row.reason,
            next_at: Some(row.next_at).filter(|_| state == DeliveryState::Pending),
            ended_at: row.ended_at,
        })
    });
    deliveries.collect()
}

async fn attempts_of(
    connection: &mut PgConnection,
    ids: &[String],
) -> Result<HashMap<String, Vec<Attempt>>, StoreError> {
    let rows = sqlx::query!(
        "SELECT delivery, at, broker, result, status, detail, duration_ms
         FROM webhook_attempts WHERE delivery = ANY($1) ORDER BY id",
        ids,
    )
    .fetch_all(connection)
    .await?;
    let mut all: HashMap<String, Vec<Attempt>> = HashMap::new();
    for row in rows {
        all.entry(row.delivery).or_default().push(Attempt {
            at: row.at,
            broker: row.broker,
            result: row.result,
            status: row.status,
            detail: row.detail,
            duration_ms: row.duration_ms,
        });
    }
    Ok(all)
}
