//! Records of requests that never were, as many as wanted, to try searches and proofs on.

use time::{Date, OffsetDateTime};

use super::{Store, StoreError, audit_events};

/// What to make.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// When the first request came.
    pub start: OffsetDateTime,
    /// Microseconds between two requests.
    pub step_us: i64,
    /// How many people ask, some more than others.
    pub users: i64,
    /// The same seed and plan make the same records.
    pub seed: i64,
}

impl Store {
    /// Are there records of requests that this did not make?
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn has_real_requests(&self) -> Result<bool, StoreError> {
        let found = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM audit_counts WHERE kind IN ('admitted', 'ended')
                              AND instance_id NOT LIKE 'generated-%') AS "found!""#
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(found)
    }

    /// Writes both records of the requests numbered `from` up to, not including, `to`; their partitions have to
    /// be there. Numbers and counts are as if a broker had written them.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn generate_audit_records(&self, plan: Plan, from: i64, to: i64) -> Result<u64, StoreError> {
        let mut transaction = self.pool.begin().await?;
        // In the order of all writers: whoever drops a partition locks the head first too.
        audit_events::lock_head(&mut transaction).await?;
        sqlx::query_file!(
            "src/store/audit_generate.sql",
            from,
            to,
            plan.seed,
            plan.start,
            plan.step_us,
            plan.users,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(2 * u64::try_from(to - from).unwrap_or(0))
    }

    /// Makes the partitions of a span.
    ///
    /// # Errors
    /// Postgres is away, or this user may not make tables.
    pub async fn create_audit_partitions(&self, from: Date, to: Date) -> Result<(), StoreError> {
        let mut day = Some(from);
        while let Some(next) = day.filter(|day| *day <= to) {
            self.create_audit_partition(next).await?;
            day = next.next_day();
        }
        Ok(())
    }
}
