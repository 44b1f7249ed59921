//! Legal holds: what of the audit log is not dropped and whose keys are not destroyed.

use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::change_records::{self, ChangeRecord};
use super::{Store, StoreError, config_revision, expect_rows};

/// One hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hold {
    /// Its id.
    pub id: Uuid,
    /// Whose texts, such as `user:…`; absent: everybody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Of what happened not before.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// And before; absent: to come as well.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub until: Option<OffsetDateTime>,
    /// Why.
    pub reason: String,
    /// Who wanted it.
    pub placed_by: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub placed_at: OffsetDateTime,
    /// Who ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifted_by: Option<String>,
    /// When.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub lifted_at: Option<OffsetDateTime>,
}

/// What is to be held.
#[derive(Debug, Clone, PartialEq)]
pub struct NewHold {
    /// As [`Hold::subject`].
    pub subject: Option<String>,
    /// As [`Hold::since`].
    pub since: OffsetDateTime,
    /// As [`Hold::until`].
    pub until: Option<OffsetDateTime>,
    /// As [`Hold::reason`].
    pub reason: String,
}

impl Store {
    /// Places a hold; nothing that it covers goes from now on.
    ///
    /// # Errors
    /// Postgres is away, or refuses, as it does a span that ends before it begins.
    pub async fn place_hold(&self, actor: &str, new: &NewHold) -> Result<Uuid, StoreError> {
        let id = Uuid::now_v7();
        let mut transaction = self.pool.begin().await?;
        let revision = config_revision::read(&mut transaction).await?;
        sqlx::query!(
            r#"INSERT INTO audit_holds (id, subject, since, "until", reason, placed_by) VALUES ($1, $2, $3, $4, $5, $6)"#,
            id,
            new.subject,
            new.since,
            new.until,
            new.reason,
            actor,
        )
        .execute(&mut *transaction)
        .await?;
        let after = json!({
            "subject": new.subject,
            "since": new.since.to_string(),
            "until": new.until.map(|until| until.to_string()),
            "reason": new.reason,
        });
        let record = ChangeRecord {
            what: "audit.hold.place",
            subject: id.to_string(),
            before: None,
            after: Some(after),
        };
        change_records::add(&mut transaction, actor, revision, &record).await?;
        transaction.commit().await?;
        Ok(id)
    }

    /// Lifts a hold.
    ///
    /// # Errors
    /// There is none of that id, it is lifted already, or Postgres is away.
    pub async fn lift_hold(&self, actor: &str, id: Uuid) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        let revision = config_revision::read(&mut transaction).await?;
        let result = sqlx::query!(
            "UPDATE audit_holds SET lifted_by = $2, lifted_at = now() WHERE id = $1 AND lifted_at IS NULL",
            id,
            actor,
        )
        .execute(&mut *transaction)
        .await?;
        if result.rows_affected() == 0 {
            return Err(StoreError::NotFound(format!("there is no hold {id} that stands")));
        }
        expect_rows(&result, 1)?;
        let record = ChangeRecord {
            what: "audit.hold.lift",
            subject: id.to_string(),
            before: None,
            after: None,
        };
        change_records::add(&mut transaction, actor, revision, &record).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// All holds, the newest first; those that are lifted only where `lifted` is set.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn holds(&self, lifted: bool) -> Result<Vec<Hold>, StoreError> {
        let holds = sqlx::query_as!(
            Hold,
            r#"SELECT id, subject, since, "until", reason, placed_by, placed_at, lifted_by, lifted_at
               FROM audit_holds WHERE $1 OR lifted_at IS NULL ORDER BY id DESC LIMIT 1000"#,
            lifted,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(holds)
    }
}

/// Lets nobody place a hold until the transaction ends.
pub(super) async fn settle(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("LOCK TABLE audit_holds IN SHARE MODE")
        .execute(connection)
        .await?;
    Ok(())
}
