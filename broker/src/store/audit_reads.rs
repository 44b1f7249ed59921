//! Reading the audit log on the command line is recorded like reading it through a broker, here without NATS.

use duo_contract::audit::{AuditKind, AuditRecord, What, Who};
use duo_process::clock;
use serde_json::Value;
use uuid::Uuid;

use super::{Store, StoreError, audit_events, config_revision};

/// How who works on the database signs in.
const COMMAND_LINE: &str = "command_line";

impl Store {
    /// Records that `actor` reads audit records on the command line. What is read may be shown only after this.
    ///
    /// # Errors
    /// Postgres is away or refuses; then nothing may be shown.
    pub async fn record_audit_read(
        &self,
        id: Uuid,
        actor: &str,
        command: &str,
        details: &Value,
    ) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        let revision = config_revision::read(&mut transaction).await?;
        let now = clock::now().unix_timestamp_nanos() / 1000;
        let record = AuditRecord {
            kind: AuditKind::Read,
            request_id: id,
            occurred_at_us: i64::try_from(now).unwrap_or(i64::MAX),
            broker: COMMAND_LINE.to_owned(),
            who: Who {
                auth: COMMAND_LINE.to_owned(),
                user_id: Some(actor.to_owned()),
                ..Who::default()
            },
            what: What::of(command, revision),
            end: None,
            details: Some(details.to_string()),
        };
        audit_events::insert_here(&mut transaction, &record).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// May this login record readings? One of `duo_auditor` reads only.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn may_record_audit_reads(&self) -> Result<bool, StoreError> {
        let may = sqlx::query_scalar!(
            r#"SELECT has_table_privilege('audit_events', 'INSERT') AND has_table_privilege('audit_head', 'UPDATE')
                      AND current_setting('transaction_read_only') = 'off' AS "may!""#
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(may)
    }
}
