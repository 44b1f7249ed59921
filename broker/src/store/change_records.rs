//! Every change of configuration or tokens, and every dead letter dropped: who, when, what, before and after.
//! Append-only.

use duo_contract::dead::DeadHead;
use serde_json::Value;
use sqlx::PgConnection;

use super::{Store, StoreError, config_revision, expect_rows};

/// One change, as it is recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangeRecord {
    /// What was done, such as `feature.put`.
    pub what: &'static str,
    /// To which one.
    pub subject: String,
    /// What was there.
    pub before: Option<Value>,
    /// What is there now.
    pub after: Option<Value>,
}

impl Store {
    /// Records that `actor` drops a dead letter, with all of it but the body.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn record_letter_drop(&self, actor: &str, letter: &DeadHead) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        let revision = config_revision::read(&mut transaction).await?;
        let record = ChangeRecord {
            what: "dead.drop",
            subject: letter.request_id.to_string(),
            before: Some(serde_json::to_value(letter).unwrap_or_default()),
            after: None,
        };
        add(&mut transaction, actor, revision, &record).await?;
        transaction.commit().await?;
        Ok(())
    }
}

pub(super) async fn add(
    connection: &mut PgConnection,
    actor: &str,
    revision: u64,
    record: &ChangeRecord,
) -> Result<(), StoreError> {
    let result = sqlx::query!(
        "INSERT INTO change_records (actor, what, subject, before, after, revision) VALUES ($1, $2, $3, $4, $5, $6)",
        actor,
        record.what,
        record.subject,
        record.before,
        record.after,
        revision.cast_signed(),
    )
    .execute(connection)
    .await?;
    expect_rows(&result, 1)
}
