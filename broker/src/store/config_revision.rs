//! The one row that counts changes.

use sqlx::PgConnection;

use super::{Store, StoreError, expect_rows, unsigned};

impl Store {
    /// The revision of the moment; cheap enough to ask several times a second.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn revision(&self) -> Result<u64, StoreError> {
        let revision = sqlx::query_scalar!("SELECT revision FROM config_revision")
            .fetch_one(&self.pool)
            .await?;
        unsigned("revision", revision)
    }
}

pub(super) async fn read(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let revision = sqlx::query_scalar!("SELECT revision FROM config_revision")
        .fetch_one(connection)
        .await?;
    unsigned("revision", revision)
}

/// Whoever holds this lock is the only one who changes anything.
pub(super) async fn lock(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let revision = sqlx::query_scalar!("SELECT revision FROM config_revision FOR UPDATE")
        .fetch_one(connection)
        .await?;
    unsigned("revision", revision)
}

pub(super) async fn advance(connection: &mut PgConnection, from: u64) -> Result<u64, StoreError> {
    let next = from + 1;
    let result = sqlx::query!(
        "UPDATE config_revision SET revision = $2, changed_at = now() WHERE revision = $1",
        from.cast_signed(),
        next.cast_signed(),
    )
    .execute(connection)
    .await?;
    expect_rows(&result, 1)?;
    Ok(next)
}
