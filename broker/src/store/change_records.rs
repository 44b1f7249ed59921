//! Every change of configuration or tokens: who, when, what, before and after. Append-only.

use serde_json::Value;
use sqlx::PgConnection;

use super::{StoreError, expect_rows};

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
