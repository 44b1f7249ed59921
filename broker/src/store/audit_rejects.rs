//! Messages with an audit record that could not be read or stored, byte for byte, so that even it is not lost. There
//! are ten thousand at most: somebody has to look long before.

use super::{Store, StoreError};

impl Store {
    /// Keeps a message with a record that is none, by its sequence in the audit stream; a second time does nothing.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn keep_audit_reject(
        &self,
        sequence: u64,
        error: &str,
        payload: &[u8],
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "INSERT INTO audit_rejects (stream_sequence, error, payload)
             SELECT $1, $2, $3 WHERE (SELECT count(*) FROM audit_rejects) < 10000 ON CONFLICT DO NOTHING",
            sequence.cast_signed(),
            error.replace('\0', "\u{fffd}"),
            payload,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
