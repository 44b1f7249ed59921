//! Data keys of kept texts: destroyed, and wrapped anew.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use duo_contract::body::WrappedKey;
use serde_json::json;
use time::Date;

use super::change_records::{self, ChangeRecord};
use super::{Store, StoreError, audit_holds, config_revision};

/// Whose or which day's texts are to be erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Erasure {
    /// Of this user or token id, of all days.
    User(String),
    /// Of everybody, of requests of this day.
    Period(Date),
}

impl Erasure {
    /// Subjects, or all.
    fn subjects(&self) -> Option<Vec<String>> {
        match self {
            Erasure::User(id) => Some(
                ["user", "token", "instance"]
                    .map(|kind| format!("{kind}:{id}"))
                    .into(),
            ),
            Erasure::Period(_) => None,
        }
    }

    fn period(&self) -> Option<Date> {
        match self {
            Erasure::User(_) => None,
            Erasure::Period(day) => Some(*day),
        }
    }

    fn name(&self) -> String {
        match self {
            Erasure::User(id) => id.clone(),
            Erasure::Period(day) => day.to_string(),
        }
    }
}

/// A key that another master key than the first wraps.
#[derive(Debug, Clone)]
pub struct OldKey {
    /// The day on which it is dropped.
    pub drop_on: Date,
    /// The key.
    pub key: WrappedKey,
}

impl Store {
    /// Destroys the keys of what is to be erased, and records it; how many there were.
    ///
    /// # Errors
    /// A legal hold covers one of them, or Postgres is away; then none is destroyed.
    pub async fn destroy_keys(
        &self,
        actor: &str,
        erasure: &Erasure,
        reason: Option<&str>,
    ) -> Result<u64, StoreError> {
        let (subjects, period) = (erasure.subjects(), erasure.period());
        let mut transaction = self.pool.begin().await?;
        sqlx::query!("SET LOCAL lock_timeout = '10s'")
            .execute(&mut *transaction)
            .await?;
        let revision = config_revision::read(&mut transaction).await?;
        audit_holds::settle(&mut transaction).await?;
        let hold = sqlx::query!(
            r#"SELECT id, reason FROM audit_holds AS h
               WHERE lifted_at IS NULL AND EXISTS (
                   SELECT FROM audit_keys AS k
                   WHERE destroyed_at IS NULL
                     AND ($1::text[] IS NULL OR k.subject = ANY($1)) AND ($2::date IS NULL OR k.period = $2)
                     AND (h.subject IS NULL OR h.subject = k.subject)
                     AND h.since < (k.period + 1)::timestamp AT TIME ZONE 'UTC'
                     AND (h."until" IS NULL OR h."until" > k.period::timestamp AT TIME ZONE 'UTC'))
               LIMIT 1"#,
            subjects.as_deref() as Option<&[String]>,
            period,
        )
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some(hold) = hold {
            let message = format!(
                "the legal hold {} covers some of it ({}), so nothing was erased",
                hold.id, hold.reason
            );
            return Err(StoreError::Conflict(message));
        }
        let destroyed = sqlx::query!(
            "UPDATE audit_keys SET master = NULL, wrapped = NULL, destroyed_at = now()
             WHERE destroyed_at IS NULL AND ($1::text[] IS NULL OR subject = ANY($1)) AND ($2::date IS NULL OR period = $2)",
            subjects.as_deref() as Option<&[String]>,
            period,
        )
        .execute(&mut *transaction)
        .await?
        .rows_affected();
        let record = ChangeRecord {
            what: "audit.erase",
            subject: erasure.name(),
            before: Some(json!({"keys": destroyed})),
            after: Some(json!({"keys": 0, "reason": reason})),
        };
        change_records::add(&mut transaction, actor, revision, &record).await?;
        transaction.commit().await?;
        // What the rows held before goes from the table's pages too; it is worthless without the master key.
        if let Err(error) = sqlx::query!("VACUUM audit_keys").execute(&self.pool).await {
            tracing::warn!(%error, "the table of keys could not be vacuumed after an erasure");
        }
        Ok(destroyed)
    }

    /// Some keys that another master key than `first` wraps.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn old_keys(&self, first: &str, limit: i64) -> Result<Vec<OldKey>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT drop_on, key_id, subject, period, master AS "master!", wrapped AS "wrapped!"
               FROM audit_keys WHERE destroyed_at IS NULL AND master <> $1 LIMIT $2"#,
            first,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        let keys = rows.into_iter().map(|row| OldKey {
            drop_on: row.drop_on,
            key: WrappedKey {
                id: row.key_id,
                subject: row.subject,
                period: row.period.to_string(),
                master: row.master,
                wrapped: STANDARD.encode(row.wrapped),
            },
        });
        Ok(keys.collect())
    }

    /// Stores the same keys wrapped anew, and records how many; one that was destroyed meanwhile stays so.
    ///
    /// # Errors
    /// Postgres is away or refuses; then none is stored.
    pub async fn store_rewrapped(&self, actor: &str, keys: &[OldKey]) -> Result<(), StoreError> {
        let wrapped: Result<Vec<_>, _> = keys.iter().map(|old| STANDARD.decode(&old.key.wrapped)).collect();
        let wrapped = wrapped.map_err(|error| StoreError::Corrupt {
            what: "wrapped key".to_owned(),
            problem: error.to_string(),
        })?;
        let mut transaction = self.pool.begin().await?;
        let revision = config_revision::read(&mut transaction).await?;
        let stored = sqlx::query!(
            "UPDATE audit_keys AS k SET master = n.master, wrapped = n.wrapped
             FROM unnest($1::uuid[], $2::date[], $3::text[], $4::bytea[]) AS n (key_id, drop_on, master, wrapped)
             WHERE k.key_id = n.key_id AND k.drop_on = n.drop_on AND k.destroyed_at IS NULL",
            &keys.iter().map(|old| old.key.id).collect::<Vec<_>>(),
            &keys.iter().map(|old| old.drop_on).collect::<Vec<_>>(),
            &keys.iter().map(|old| old.key.master.clone()).collect::<Vec<_>>(),
            &wrapped,
        )
        .execute(&mut *transaction)
        .await?
        .rows_affected();
        let record = ChangeRecord {
            what: "audit.rewrap",
            subject: keys.first().map(|old| old.key.master.clone()).unwrap_or_default(),
            before: None,
            after: Some(json!({"keys": stored})),
        };
        change_records::add(&mut transaction, actor, revision, &record).await?;
        transaction.commit().await?;
        Ok(())
    }
}
