//! Whose turn it is to ask GitLab for its settings, and what it last said: one row for all brokers.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use sqlx::{Postgres, Transaction};
use time::OffsetDateTime;

use super::{Store, StoreError, expect_rows};

/// One broker's turn; while it lasts no other broker has one.
#[derive(Debug)]
pub struct SyncTurn {
    transaction: Transaction<'static, Postgres>,
    broker: String,
    mode: &'static str,
}

/// What GitLab last said.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SyncRow {
    /// `propose` or `apply`.
    pub mode: String,
    /// Who asked last.
    pub broker: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub asked_at: OffsetDateTime,
    /// What went wrong then.
    pub error: Option<String>,
    /// When all was well last.
    #[serde(with = "time::serde::rfc3339::option")]
    pub answered_at: Option<OffsetDateTime>,
    /// What came of it.
    pub report: Option<Value>,
}

impl Store {
    /// The turn of `broker`, unless another has it or GitLab was asked in this mode within `every`.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn sync_turn(
        &self,
        broker: &str,
        mode: &'static str,
        every: Duration,
    ) -> Result<Option<SyncTurn>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let mine =
            sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock(hashtext('gitlab_sync')) AS "mine!""#)
                .fetch_one(&mut *transaction)
                .await?;
        if !mine {
            return Ok(None);
        }
        let done = sqlx::query_scalar!(
            r#"SELECT EXISTS (
                   SELECT FROM gitlab_sync
                   WHERE mode = $1 AND asked_at > clock_timestamp() - make_interval(secs => $2)
               ) AS "done!""#,
            mode,
            every.as_secs_f64(),
        )
        .fetch_one(&mut *transaction)
        .await?;
        let turn = SyncTurn {
            transaction,
            broker: broker.to_owned(),
            mode,
        };
        Ok((!done).then_some(turn))
    }

    /// What GitLab last said; nothing where it was never asked.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn sync_row(&self) -> Result<Option<SyncRow>, StoreError> {
        let row = sqlx::query_as!(
            SyncRow,
            "SELECT mode, broker, asked_at, error, answered_at, report FROM gitlab_sync"
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row)
    }
}

impl SyncTurn {
    /// Ends it with what came of GitLab's answer.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn answered(mut self, report: &Value) -> Result<(), StoreError> {
        let result = sqlx::query!(
            "INSERT INTO gitlab_sync (mode, broker, asked_at, answered_at, report)
             VALUES ($1, $2, clock_timestamp(), clock_timestamp(), $3)
             ON CONFLICT (only_row) DO UPDATE
             SET mode = excluded.mode, broker = excluded.broker, asked_at = excluded.asked_at, error = NULL,
                 answered_at = excluded.answered_at, report = excluded.report",
            self.mode,
            self.broker,
            report,
        )
        .execute(&mut *self.transaction)
        .await?;
        expect_rows(&result, 1)?;
        self.transaction.commit().await?;
        Ok(())
    }

    /// Ends it with why there was no answer to work with; the last good one stays.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn failed(mut self, error: &str) -> Result<(), StoreError> {
        let result = sqlx::query!(
            "INSERT INTO gitlab_sync (mode, broker, asked_at, error) VALUES ($1, $2, clock_timestamp(), $3)
             ON CONFLICT (only_row) DO UPDATE
             SET mode = excluded.mode, broker = excluded.broker, asked_at = excluded.asked_at, error = excluded.error",
            self.mode,
            self.broker,
            error.replace('\0', "\u{fffd}"),
        )
        .execute(&mut *self.transaction)
        .await?;
        expect_rows(&result, 1)?;
        self.transaction.commit().await?;
        Ok(())
    }
}
