//! What signs: sealed with the seal keys, so that a copy of the database signs nothing.

use std::time::Duration;

use duo_contract::seal::{SealError, SealKeys};
use secrecy::SecretString;
use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::change_records::ChangeRecord;
use super::super::{Store, StoreError, expect_rows};
use super::receivers;
use crate::webhooks::sign::Secret;

/// A secret as it lies in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSecret {
    id: Uuid,
    key_id: String,
    sealed: Vec<u8>,
}

/// A secret as lists show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecretRow {
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// How long an older one is good yet.
    pub valid_until: Option<OffsetDateTime>,
}

/// What came of a rotation.
#[derive(Debug)]
pub struct Rotated {
    /// The new secret, which nothing can show again.
    pub secret: SecretString,
    /// How long the one before it is good yet; absent when it is not any more.
    pub old_valid_until: Option<OffsetDateTime>,
}

impl SealedSecret {
    /// Opens it.
    ///
    /// # Errors
    /// No key here opens it.
    pub fn open(&self, keys: &SealKeys) -> Result<Secret, SealError> {
        keys.open(&self.key_id, self.id.as_bytes(), &self.sealed)
            .map(Secret::of_bytes)
    }
}

impl Store {
    /// Gives a receiver a new secret. The one before stays good for `overlap`; an older one goes at once, since two are
    /// good at most.
    ///
    /// # Errors
    /// There is none of the name, or Postgres is away.
    pub async fn rotate_secret(
        &self,
        actor: &str,
        name: &str,
        overlap: Duration,
        keys: &SealKeys,
    ) -> Result<Rotated, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let receiver = receivers::lock(&mut transaction, name).await?;
        sqlx::query!(
            "DELETE FROM webhook_secrets WHERE receiver = $1 AND (valid_until IS NOT NULL OR $2::float8 <= 0)",
            receiver,
            overlap.as_secs_f64(),
        )
        .execute(&mut *transaction)
        .await?;
        let old_valid_until = sqlx::query_scalar!(
            r#"UPDATE webhook_secrets SET valid_until = now() + make_interval(secs => $2)
               WHERE receiver = $1 RETURNING valid_until AS "valid_until!""#,
            receiver,
            overlap.as_secs_f64(),
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let secret = insert(&mut transaction, receiver, keys).await?;
        let record = ChangeRecord {
            what: "webhook.rotate",
            subject: name.to_owned(),
            before: None,
            after: Some(
                json!({"name": name, "old_valid_until": old_valid_until.map(OffsetDateTime::unix_timestamp)}),
            ),
        };
        receivers::record_change(&mut transaction, actor, &record).await?;
        transaction.commit().await?;
        Ok(Rotated {
            secret: secret.text(),
            old_valid_until,
        })
    }

    /// Seals every secret with the first of `keys` that another one sealed, and removes those that are not good any more;
    /// gives how many were sealed and how many no key here opens.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn reseal_secrets(&self, keys: &SealKeys) -> Result<(u64, u64), StoreError> {
        sqlx::query!("DELETE FROM webhook_secrets WHERE valid_until <= now()")
            .execute(&self.pool)
            .await?;
        let first = keys.ids().next().unwrap_or_default();
        let others = sqlx::query_as!(
            SealedSecret,
            "SELECT id, key_id, sealed FROM webhook_secrets WHERE key_id <> $1",
            first
        )
        .fetch_all(&self.pool)
        .await?;
        let (mut sealed, mut closed) = (0, 0);
        for other in others {
            let Ok(secret) = other.open(keys) else {
                closed += 1;
                continue;
            };
            let again = seal(other.id, &secret, keys);
            let result = sqlx::query!(
                "UPDATE webhook_secrets SET key_id = $3, sealed = $4 WHERE id = $1 AND key_id = $2",
                other.id,
                other.key_id,
                again.key_id,
                again.sealed,
            )
            .execute(&self.pool)
            .await?;
            sealed += result.rows_affected();
        }
        Ok((sealed, closed))
    }
}

/// Makes a secret and keeps it.
pub(super) async fn insert(
    connection: &mut PgConnection,
    receiver: Uuid,
    keys: &SealKeys,
) -> Result<Secret, StoreError> {
    let secret = Secret::generate();
    let kept = seal(Uuid::now_v7(), &secret, keys);
    let result = sqlx::query!(
        "INSERT INTO webhook_secrets (id, receiver, key_id, sealed) VALUES ($1, $2, $3, $4)",
        kept.id,
        receiver,
        kept.key_id,
        kept.sealed,
    )
    .execute(connection)
    .await?;
    expect_rows(&result, 1)?;
    Ok(secret)
}

/// Bound to its row, so that no other receiver signs with it.
fn seal(id: Uuid, secret: &Secret, keys: &SealKeys) -> SealedSecret {
    let mut sealed = Vec::new();
    let key_id = keys
        .seal(id.as_bytes(), secret.bytes(), &mut sealed)
        .expect("there is a key and the system has random bytes");
    SealedSecret {
        id,
        key_id: key_id.into(),
        sealed,
    }
}

/// Those that are good, the newest first, each with its receiver.
pub(super) async fn live_rows(
    connection: &mut PgConnection,
    receivers: &[Uuid],
) -> Result<Vec<(Uuid, SecretRow)>, StoreError> {
    let rows = sqlx::query!(
        "SELECT receiver, created_at, valid_until FROM webhook_secrets
         WHERE receiver = ANY($1) AND (valid_until IS NULL OR valid_until > now())
         ORDER BY valid_until DESC NULLS FIRST, id DESC",
        receivers,
    )
    .fetch_all(connection)
    .await?;
    let rows = rows.into_iter().map(|row| {
        let secret = SecretRow {
            created_at: row.created_at,
            valid_until: row.valid_until,
        };
        (row.receiver, secret)
    });
    Ok(rows.collect())
}

/// The same, to sign with.
pub(super) async fn live(
    connection: &mut PgConnection,
    receivers: &[Uuid],
) -> Result<Vec<(Uuid, SealedSecret)>, StoreError> {
    let rows = sqlx::query!(
        "SELECT receiver, id, key_id, sealed FROM webhook_secrets
         WHERE receiver = ANY($1) AND (valid_until IS NULL OR valid_until > now())
         ORDER BY valid_until DESC NULLS FIRST, id DESC",
        receivers,
    )
    .fetch_all(connection)
    .await?;
    let rows = rows.into_iter().map(|row| {
        let secret = SealedSecret {
            id: row.id,
            key_id: row.key_id,
            sealed: row.sealed,
        };
        (row.receiver, secret)
    });
    Ok(rows.collect())
}
