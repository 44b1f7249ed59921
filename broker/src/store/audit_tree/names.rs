//! Which records are meant, for people.

use super::number;
use crate::store::audit_events::day_of;
use crate::store::{Store, StoreError};

/// Where a record is, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordName {
    /// Its number.
    pub seq: Option<i64>,
    /// The request or what else it is about.
    pub request_id: uuid::Uuid,
    /// Which of its records.
    pub kind: String,
}

impl Store {
    /// Which record has the number `seq`.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn record_name(&self, seq: u64) -> Result<Option<RecordName>, StoreError> {
        let name = sqlx::query_as!(
            RecordName,
            "SELECT seq, request_id, kind FROM audit_events WHERE seq = $1 LIMIT 1",
            number(seq),
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(name)
    }

    /// The records about `id`, in their order.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn records_about(&self, id: uuid::Uuid) -> Result<Vec<RecordName>, StoreError> {
        let names = sqlx::query_as!(
            RecordName,
            "SELECT seq, request_id, kind FROM audit_events
             WHERE request_id = $1 AND day = $2 ORDER BY seq",
            id,
            day_of(id),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(names)
    }

    /// A record without a number that is no older than the first one with a number, and one whose number is beyond those
    /// that were given: neither can be.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn unnumbered_records(&self) -> Result<Vec<RecordName>, StoreError> {
        let names = sqlx::query_as!(
            RecordName,
            r#"(SELECT seq, request_id AS "request_id!", kind AS "kind!" FROM audit_events
              WHERE seq IS NULL
                AND recorded_at >= (SELECT recorded_at FROM audit_events WHERE seq >= 0 ORDER BY seq LIMIT 1)
              ORDER BY recorded_at LIMIT 10)
             UNION ALL
             (SELECT seq, request_id AS "request_id!", kind AS "kind!" FROM audit_events
              WHERE seq >= (SELECT size FROM audit_head) ORDER BY seq LIMIT 10)"#,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(names)
    }
}
