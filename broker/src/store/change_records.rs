//! Every change of configuration or tokens, and every dead letter dropped: who, when, what, before and after.
//! Append-only. Each is an audit record too, written in the same transaction.

use duo_contract::audit::{AuditKind, AuditRecord, What, Who};
use duo_contract::dead::DeadHead;
use duo_process::clock;
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Store, StoreError, audit_events, config_revision, expect_rows};

/// Stands in an audit record where a request would name its broker and how its caller signed in.
const ADMINISTRATION: &str = "administration";

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
    .execute(&mut *connection)
    .await?;
    expect_rows(&result, 1)?;
    let record = audit_record(actor, revision, record);
    audit_events::insert_here(connection, &record).await?;
    Ok(())
}

/// The change as the audit log tells it.
fn audit_record(actor: &str, revision: u64, record: &ChangeRecord) -> AuditRecord {
    let now = clock::now().unix_timestamp_nanos() / 1000;
    let details = json!({
        "what": record.what,
        "subject": record.subject,
        "before": record.before,
        "after": record.after,
    });
    AuditRecord {
        kind: AuditKind::Changed,
        request_id: Uuid::now_v7(),
        occurred_at_us: i64::try_from(now).unwrap_or(i64::MAX),
        broker: ADMINISTRATION.to_owned(),
        who: Who {
            auth: ADMINISTRATION.to_owned(),
            user_id: Some(actor.to_owned()),
            ..Who::default()
        },
        what: What::of(record.what, revision),
        end: None,
        details: Some(details.to_string()),
    }
}
