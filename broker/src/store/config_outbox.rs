//! Revisions that the relay has not put into NATS yet.

use sqlx::PgConnection;

use super::{Store, StoreError, expect_rows};

impl Store {
    /// Forgets revisions up to `revision`, which are in NATS now.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn relayed(&self, revision: u64) -> Result<(), StoreError> {
        sqlx::query!(
            "DELETE FROM config_outbox WHERE revision <= $1",
            revision.cast_signed()
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

pub(super) async fn add(connection: &mut PgConnection, revision: u64) -> Result<(), StoreError> {
    let result = sqlx::query!(
        "INSERT INTO config_outbox (revision) VALUES ($1)",
        revision.cast_signed()
    )
    .execute(connection)
    .await?;
    expect_rows(&result, 1)
}
