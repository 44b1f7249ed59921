//! What a broker takes, makes, and writes down: a delivery is one broker's while its lease lasts.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::{Store, StoreError, parsed, unsigned};
use super::deliveries::DeliveryState;
use super::receivers;
use super::secrets::{self, SealedSecret};
use crate::webhooks::address::Cidr;
use crate::webhooks::receiver::ReceiverUrl;

/// Who disables a receiver that says that it is gone.
const ACTOR: &str = "webhooks";

/// A delivery that this broker is to make now.
#[derive(Debug, Clone, PartialEq)]
pub struct Due {
    /// Its id.
    pub id: String,
    /// Whom to tell.
    pub receiver: Uuid,
    /// The same by name.
    pub receiver_name: String,
    /// Where.
    pub url: ReceiverUrl,
    /// Networks that it may be at although they are not public.
    pub addresses: Vec<Cidr>,
    /// What happened.
    pub event: String,
    /// To which job; none for a test.
    pub job_id: Option<Uuid>,
    /// When.
    pub occurred_at: OffsetDateTime,
    /// Attempts that have failed since it was queued.
    pub attempt: u32,
}

/// What a broker has taken, and what signs it.
#[derive(Debug, Default)]
pub struct Taken {
    /// The deliveries.
    pub deliveries: Vec<Due>,
    /// The good secrets of their receivers, the newest first.
    pub secrets: HashMap<Uuid, Vec<SealedSecret>>,
}

/// What becomes of a delivery after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It was delivered.
    Delivered,
    /// It is tried again after this time.
    Again(Duration),
    /// It is given up.
    Failed,
    /// It is given up since its receiver is gone, and with it whatever waits for that receiver.
    Gone,
    /// It could not even be tried; that does not count.
    Unmade(Duration),
}

/// An attempt that is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    /// The delivery.
    pub id: String,
    /// Its receiver.
    pub receiver: Uuid,
    /// Attempts that had failed before.
    pub attempt: u32,
    /// What becomes of it.
    pub next: Next,
    /// When it began.
    pub at: OffsetDateTime,
    /// `delivered`, or what went wrong.
    pub result: &'static str,
    /// The answer's status.
    pub status: Option<u16>,
    /// More about it, for people; 200 characters at most.
    pub detail: Option<String>,
    /// How long it took.
    pub duration: Duration,
}

impl Store {
    /// Takes deliveries that are due, for `lease`: at most `most`, and of each receiver at most `each` with those that
    /// `busy` says are under way here. The fewest are under way for whom, the sooner is his turn.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn take_deliveries(
        &self,
        broker: &str,
        lease: Duration,
        busy: &HashMap<Uuid, i64>,
        (most, each): (i64, i64),
    ) -> Result<Taken, StoreError> {
        let (receivers, counts): (Vec<Uuid>, Vec<i64>) = busy.iter().map(|(id, count)| (*id, *count)).unzip();
        let mut transaction = self.pool.begin().await?;
        let rows = sqlx::query!(
            r#"WITH due AS (
                   SELECT found.id,
                          row_number() OVER (PARTITION BY receiver.id ORDER BY found.next_at)
                              + coalesce(busy.count, 0) AS place
                   FROM webhook_receivers AS receiver
                   LEFT JOIN unnest($1::uuid[], $2::bigint[]) AS busy (id, count) ON busy.id = receiver.id
                   CROSS JOIN LATERAL (
                       SELECT delivery.id, delivery.next_at
                       FROM webhook_deliveries AS delivery
                       WHERE delivery.receiver = receiver.id AND delivery.state = 'pending'
                         AND delivery.next_at <= now()
                       ORDER BY delivery.next_at
                       LIMIT greatest($3 - coalesce(busy.count, 0), 0)
                       FOR UPDATE SKIP LOCKED
                   ) AS found
                   WHERE receiver.disabled_at IS NULL
               ), taken AS (
                   SELECT id FROM due ORDER BY place LIMIT $4
               )
               UPDATE webhook_deliveries AS delivery
               SET leased_by = $5, next_at = now() + make_interval(secs => $6)
               FROM taken, webhook_receivers AS receiver
               WHERE delivery.id = taken.id AND receiver.id = delivery.receiver
               RETURNING delivery.id, delivery.receiver, receiver.name AS "receiver_name", receiver.url,
                         receiver.addresses, delivery.event, delivery.job_id, delivery.occurred_at, delivery.attempt"#,
            &receivers,
            &counts,
            each,
            most,
            broker,
            lease.as_secs_f64(),
        )
        .fetch_all(&mut *transaction)
        .await?;
        let mut taken = Taken::default();
        if rows.is_empty() {
            return Ok(taken);
        }
        let receivers: Vec<Uuid> = rows.iter().map(|row| row.receiver).collect();
        for (receiver, secret) in secrets::live(&mut transaction, &receivers).await? {
            taken.secrets.entry(receiver).or_default().push(secret);
        }
        transaction.commit().await?;
        for row in rows {
            let read = parsed("receiver's URL", &row.url);
            let read = read.and_then(|url| Ok((url, receivers::networks(&row.addresses)?)));
            let (url, addresses) = match read {
                Ok(read) => read,
                // It comes again when its lease is over; the others need not wait for it.
                Err(error) => {
                    tracing::error!(error = %error, delivery = row.id, "a delivery cannot be read");
                    continue;
                }
            };
            taken.deliveries.push(Due {
                id: row.id,
                receiver: row.receiver,
                receiver_name: row.receiver_name,
                url,
                addresses,
                event: row.event,
                job_id: row.job_id,
                occurred_at: row.occurred_at,
                attempt: unsigned("count of attempts", i64::from(row.attempt))?,
            });
        }
        Ok(taken)
    }

    /// Writes down what attempts of `broker` met and what becomes of their deliveries; one whose lease somebody else has by
    /// now is left to him. Gives the names of receivers that were disabled by it.
    ///
    /// # Errors
    /// Postgres is away or refuses; then nothing is written.
    pub async fn settle_deliveries(
        &self,
        broker: &str,
        settled: &[Settled],
    ) -> Result<Vec<String>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let gone: Vec<Uuid> = settled
            .iter()
            .filter(|settled| settled.next == Next::Gone)
            .map(|settled| settled.receiver)
            .collect();
        let disabled = if gone.is_empty() {
            Vec::new()
        } else {
            receivers::disable_gone(&mut transaction, ACTOR, &gone).await?
        };
        update(&mut transaction, broker, settled).await?;
        let made = |settled: &&Settled| !matches!(settled.next, Next::Unmade(_));
        let made: Vec<&Settled> = settled.iter().filter(made).collect();
        log(&mut transaction, broker, &made).await?;
        transaction.commit().await?;
        Ok(disabled)
    }

    /// Gives back what `broker` has taken and not settled; it is anybody's at once.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn release_deliveries(&self, broker: &str) -> Result<u64, StoreError> {
        let result = sqlx::query!(
            "UPDATE webhook_deliveries SET leased_by = NULL, next_at = now()
             WHERE state = 'pending' AND leased_by = $1",
            broker,
        )
        .execute(&self.pool)
        .await?;
        Ok(result.rows_affected())
    }
}

async fn update(connection: &mut PgConnection, broker: &str, settled: &[Settled]) -> Result<(), StoreError> {
    let (mut states, mut reasons, mut delays, mut counts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for settled in settled {
        let (state, reason, delay, counted) = match settled.next {
            Next::Delivered => (DeliveryState::Delivered, None, Duration::ZERO, 1),
            Next::Again(delay) => (DeliveryState::Pending, None, delay, 1),
            Next::Failed => (DeliveryState::Failed, None, Duration::ZERO, 1),
            Next::Gone => (DeliveryState::Dropped, Some("receiver_gone"), Duration::ZERO, 1),
            Next::Unmade(delay) => (DeliveryState::Pending, None, delay, 0),
        };
        states.push(state.as_str());
        reasons.push(reason);
        delays.push(delay.as_secs_f64());
        counts.push(counted);
    }
    sqlx::query!(
        "UPDATE webhook_deliveries AS delivery
         SET state = settled.state, reason = settled.reason, attempt = delivery.attempt + settled.counted,
             next_at = now() + make_interval(secs => settled.delay), leased_by = NULL,
             ended_at = CASE WHEN settled.state <> 'pending' THEN now() END
         FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::float8[], $6::int[])
                  AS settled (id, attempt, state, reason, delay, counted)
         WHERE delivery.id = settled.id AND delivery.attempt = settled.attempt
           AND delivery.state = 'pending' AND delivery.leased_by = $7",
        &settled
            .iter()
            .map(|settled| settled.id.as_str())
            .collect::<Vec<_>>() as &[&str],
        &settled
            .iter()
            .map(|settled| settled.attempt.cast_signed())
            .collect::<Vec<_>>(),
        &states as &[&str],
        &reasons as &[Option<&str>],
        &delays,
        &counts,
        broker,
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn log(connection: &mut PgConnection, broker: &str, settled: &[&Settled]) -> Result<(), StoreError> {
    let results: Vec<&str> = settled.iter().map(|settled| settled.result).collect();
    let details: Vec<Option<&str>> = settled.iter().map(|settled| settled.detail.as_deref()).collect();
    sqlx::query!(
        "INSERT INTO webhook_attempts (delivery, at, broker, result, status, detail, duration_ms)
         SELECT delivery.id, met.at, $1, met.result, met.status, met.detail, met.duration_ms
         FROM unnest($2::text[], $3::timestamptz[], $4::text[], $5::int[], $6::text[], $7::bigint[])
                  AS met (id, at, result, status, detail, duration_ms)
         JOIN webhook_deliveries AS delivery ON delivery.id = met.id
         FOR KEY SHARE OF delivery",
        broker,
        &settled
            .iter()
            .map(|settled| settled.id.as_str())
            .collect::<Vec<_>>() as &[&str],
        &settled.iter().map(|settled| settled.at).collect::<Vec<_>>(),
        &results as &[&str],
        &settled
            .iter()
            .map(|settled| settled.status.map(i32::from))
            .collect::<Vec<_>>() as &[Option<i32>],
        &details as &[Option<&str>],
        &settled
            .iter()
            .map(|settled| i64::try_from(settled.duration.as_millis()).unwrap_or(i64::MAX))
            .collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    Ok(())
}
