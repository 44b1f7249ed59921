//! Turns of extending the audit log's tree.

use std::ops::Range;

use sqlx::{Postgres, Transaction};
use time::OffsetDateTime;

use super::{Leaves, head, known_leaves, last_checkpoint, number, tiles_end, tree};
use crate::audit::note::Checkpoint;
use crate::audit::tree::{Tile, Tree};
use crate::store::{Store, StoreError, expect_rows};

/// Held by whoever extends the tree.
const LOCK: &str = "audit_checkpoint";

/// One turn of extending the tree: a transaction that nobody else can be in. Dropped, it has done nothing.
#[derive(Debug)]
pub struct Turn {
    transaction: Transaction<'static, Postgres>,
}

impl Store {
    /// Begins a turn; `None` while another broker has it.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn begin_audit_turn(&self) -> Result<Option<Turn>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let locked = sqlx::query_scalar!(
            r#"SELECT pg_try_advisory_xact_lock(hashtext($1)) AS "locked!""#,
            LOCK
        )
        .fetch_one(&mut *transaction)
        .await?;
        Ok(locked.then_some(Turn { transaction }))
    }
}

impl Turn {
    /// The checkpoint of the largest tree, the newest of them.
    ///
    /// # Errors
    /// Postgres is away, or it is unreadable.
    pub async fn last_checkpoint(&mut self) -> Result<Option<Checkpoint>, StoreError> {
        last_checkpoint(&mut self.transaction).await
    }

    /// How many numbers have been given to records.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn size(&mut self) -> Result<u64, StoreError> {
        head(&mut self.transaction).await
    }

    /// As [`Store::audit_tree`].
    ///
    /// # Errors
    /// Postgres is away, or a tile or a record is missing.
    pub async fn tree(&mut self, size: u64) -> Result<Tree, StoreError> {
        tree(&mut self.transaction, size).await
    }

    /// As [`Store::audit_leaves`], those of dropped records by their tiles.
    ///
    /// # Errors
    /// Postgres is away, or a row is unreadable.
    pub async fn leaves(&mut self, range: Range<u64>) -> Result<Leaves, StoreError> {
        known_leaves(&mut self.transaction, range).await
    }

    /// The number behind that of the last record that a tile holds.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn tiles_end(&mut self) -> Result<u64, StoreError> {
        tiles_end(&mut self.transaction).await
    }

    /// Writes tiles; those that are there already stay as they are.
    ///
    /// # Errors
    /// Postgres is away, or one is there with other hashes.
    pub async fn insert_tiles(&mut self, tiles: &[Tile]) -> Result<(), StoreError> {
        for some in tiles.chunks(256) {
            let levels: Vec<i16> = some.iter().map(|tile| i16::from(tile.level)).collect();
            let numbers: Vec<i64> = some.iter().map(|tile| number(tile.number)).collect();
            let hashes: Vec<Vec<u8>> = some.iter().map(|tile| tile.hashes.concat()).collect();
            sqlx::query!(
                "INSERT INTO audit_tiles (level, number, hashes)
                 SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::bytea[]) ON CONFLICT DO NOTHING",
                &levels,
                &numbers,
                &hashes,
            )
            .execute(&mut *self.transaction)
            .await?;
            let same = sqlx::query_scalar!(
                r#"SELECT count(*) AS "same!"
                   FROM unnest($1::smallint[], $2::bigint[], $3::bytea[]) AS tile (level, number, hashes)
                   JOIN audit_tiles AS kept
                     ON kept.level = tile.level AND kept.number = tile.number AND kept.hashes = tile.hashes"#,
                &levels,
                &numbers,
                &hashes,
            )
            .fetch_one(&mut *self.transaction)
            .await?;
            if same != i64::try_from(some.len()).unwrap_or(i64::MAX) {
                return Err(StoreError::Corrupt {
                    what: "tile of the audit log".into(),
                    problem: "it differs from its records".into(),
                });
            }
        }
        Ok(())
    }

    /// Writes a checkpoint.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn insert_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let result = sqlx::query!(
            "INSERT INTO audit_checkpoints (size, root, signed_at, note) VALUES ($1, $2, $3, $4)",
            number(checkpoint.size),
            &checkpoint.root[..],
            checkpoint.at.unwrap_or(OffsetDateTime::UNIX_EPOCH),
            checkpoint.note,
        )
        .execute(&mut *self.transaction)
        .await?;
        expect_rows(&result, 1)
    }

    /// Ends the turn without having done anything; the next one can begin at once.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn leave(self) -> Result<(), StoreError> {
        Ok(self.transaction.rollback().await?)
    }

    /// Ends the turn, and all that was written in it stands.
    ///
    /// # Errors
    /// Postgres is away; it may stand or not.
    pub async fn commit(self) -> Result<(), StoreError> {
        Ok(self.transaction.commit().await?)
    }
}
