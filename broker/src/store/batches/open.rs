//! Counts batches that are not over.

use std::collections::HashMap;
use std::time::Duration;

use crate::bulk::state::BatchState;
use crate::store::{Store, StoreError, parsed};

/// Batches that are not over, of all brokers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenBatches {
    /// How many, by state.
    pub counts: HashMap<BatchState, i64>,
    /// For how long there has been one.
    pub oldest: Duration,
}

impl Store {
    /// Counts batches that are not over.
    ///
    /// # Errors
    /// Postgres is away, or a state is unknown.
    pub async fn open_batches(&self) -> Result<OpenBatches, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT state, count(*) AS "count!",
                      extract(epoch FROM now() - min(created_at))::float8 AS "oldest!"
               FROM batches WHERE ended_at IS NULL GROUP BY state"#
        )
        .fetch_all(&self.pool)
        .await?;
        let mut open = OpenBatches::default();
        for row in rows {
            let state = parsed("state of a batch", &row.state)?;
            open.counts.insert(state, row.count);
            open.oldest = open.oldest.max(Duration::from_secs_f64(row.oldest.max(0.0)));
        }
        Ok(open)
    }
}
