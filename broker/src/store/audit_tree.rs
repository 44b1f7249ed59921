//! What the audit log's hash tree is made of and made to: records as leaves, tiles, checkpoints.

mod names;
mod turn;

use std::collections::HashMap;
use std::ops::Range;

use futures_util::TryStreamExt as _;
use sqlx::postgres::{PgRow, PgValueFormat};
use sqlx::{PgConnection, Row as _, ValueRef as _};

pub use self::names::RecordName;
pub use self::turn::Turn;
use super::{Store, StoreError, unsigned};
use crate::audit::canonical::{Canonical, FIELDS};
use crate::audit::note::Checkpoint;
use crate::audit::tree::{Hash, TILE, Tree, edge_of, root_of};

/// Every column that is hashed, in the order of [`FIELDS`]. Its values are taken as they come over the wire, so it is no
/// checked query; a test compares it with the table.
const RECORDS: &str = "SELECT request_id, kind, occurred_at, recorded_at, broker, auth, instance_id, user_id, token_id, client,
        address, route, feature, lane, model, prompt_id, prompt_version, config_revision, stream, body_bytes,
        correlation_id, trace_id, outcome, reason, worker, attempts, queue_wait_us, first_byte_us, duration_us,
        input_tokens, output_tokens, job_id, seq, details, prompt_sha256, answer_sha256
    FROM audit_events WHERE seq >= $1 AND seq < $2";
/// Where `seq` is in it.
const SEQ: usize = 32;

/// The leaves of a range of records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaves {
    /// The first record's number.
    pub first: u64,
    /// A leaf for each record from there; `None` where there is no record.
    pub hashes: Vec<Option<Hash>>,
    /// Numbers that more than one record has.
    pub twice: Vec<u64>,
}

/// A checkpoint's id, its size and what it says.
pub type SizedCheckpoint = (i64, u64, Result<Checkpoint, StoreError>);

impl Store {
    /// The leaves of the records with numbers in `range`.
    ///
    /// # Errors
    /// Postgres is away, or a row is unreadable.
    pub async fn audit_leaves(&self, range: Range<u64>) -> Result<Leaves, StoreError> {
        leaves(&mut *self.pool.acquire().await?, range).await
    }

    /// The bytes of a record and its leaf.
    ///
    /// # Errors
    /// Postgres is away, or there is no such record.
    pub async fn audit_record_bytes(&self, seq: u64) -> Result<(Vec<u8>, Hash), StoreError> {
        let row = sqlx::query(RECORDS)
            .bind(number(seq))
            .bind(number(seq.saturating_add(1)))
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| StoreError::NotFound(format!("there is no audit record {seq}")))?;
        let mut canonical = Canonical::default();
        read(&row, &mut canonical).map_err(|problem| StoreError::Corrupt {
            what: format!("audit record {seq}"),
            problem,
        })?;
        Ok((canonical.bytes().to_vec(), canonical.leaf_hash()))
    }

    /// The hashes of tiles of one level with numbers in `range`, by number.
    ///
    /// # Errors
    /// Postgres is away, or a row is unreadable.
    pub async fn audit_tiles(
        &self,
        level: u8,
        range: Range<u64>,
    ) -> Result<HashMap<u64, Vec<Hash>>, StoreError> {
        tiles(&mut *self.pool.acquire().await?, level, range).await
    }

    /// The tree of the first `size` records, from its tiles and the records that are in none.
    ///
    /// # Errors
    /// Postgres is away, or a tile or a record is missing.
    pub async fn audit_tree(&self, size: u64) -> Result<Tree, StoreError> {
        tree(&mut *self.pool.acquire().await?, size).await
    }

    /// How many numbers have been given to records.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn audit_size(&self) -> Result<u64, StoreError> {
        head(&mut *self.pool.acquire().await?).await
    }

    /// The checkpoint of the largest tree, the newest of them.
    ///
    /// # Errors
    /// Postgres is away, or it is unreadable.
    pub async fn last_checkpoint(&self) -> Result<Option<Checkpoint>, StoreError> {
        last_checkpoint(&mut *self.pool.acquire().await?).await
    }

    /// Records under the checkpoint of the largest tree.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn last_checkpoint_size(&self) -> Result<u64, StoreError> {
        let size = sqlx::query_scalar!("SELECT max(size) FROM audit_checkpoints")
            .fetch_one(&self.pool)
            .await?;
        unsigned("size of a checkpoint", size.unwrap_or(0))
    }

    /// The id of the checkpoint that was written last; 0 where there is none.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn newest_checkpoint_id(&self) -> Result<i64, StoreError> {
        let id = sqlx::query_scalar!("SELECT max(id) FROM audit_checkpoints")
            .fetch_one(&self.pool)
            .await?;
        Ok(id.unwrap_or(0))
    }

    /// The number behind that of the last record.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn audit_records_end(&self) -> Result<u64, StoreError> {
        let last = sqlx::query_scalar!("SELECT max(seq) FROM audit_events")
            .fetch_one(&self.pool)
            .await?;
        unsigned(
            "seq of an audit record",
            last.map_or(0, |last| last.saturating_add(1)),
        )
    }

    /// Checkpoints by size and id, after the one with this size and id: id, size and what the note says, which is an
    /// error where the columns contradict it.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn checkpoints_from(
        &self,
        (size, id): (u64, i64),
        limit: u32,
    ) -> Result<Vec<SizedCheckpoint>, StoreError> {
        let rows = sqlx::query!(
            "SELECT id, size, root, note FROM audit_checkpoints WHERE (size, id) > ($1, $2) ORDER BY size, id LIMIT $3",
            number(size),
            id,
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| {
                let size = unsigned("size of a checkpoint", row.size)?;
                Ok((row.id, size, checkpoint(row.size, &row.root, &row.note)))
            })
            .collect()
    }

    /// The newest checkpoints, newest first.
    ///
    /// # Errors
    /// Postgres is away, or one is unreadable.
    pub async fn newest_checkpoints(
        &self,
        before: i64,
        limit: u32,
    ) -> Result<Vec<(i64, Checkpoint)>, StoreError> {
        let rows = sqlx::query!(
            "SELECT id, size, root, note FROM audit_checkpoints WHERE id < $1 ORDER BY id DESC LIMIT $2",
            before,
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| Ok((row.id, checkpoint(row.size, &row.root, &row.note)?)))
            .collect()
    }
}

/// Numbers of records and tiles are columns of type bigint.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

async fn head(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let size = sqlx::query_scalar!("SELECT size FROM audit_head")
        .fetch_one(connection)
        .await?;
    unsigned("size of the audit log", size)
}

async fn leaves(connection: &mut PgConnection, range: Range<u64>) -> Result<Leaves, StoreError> {
    let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0);
    let mut leaves = Leaves {
        first: range.start,
        hashes: vec![None; length],
        twice: Vec::new(),
    };
    if length == 0 {
        return Ok(leaves);
    }
    let mut canonical = Canonical::default();
    let mut rows = sqlx::query(RECORDS)
        .bind(number(range.start))
        .bind(number(range.end))
        .fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let seq: u64 = unsigned("seq of an audit record", row.try_get(SEQ)?)?;
        read(&row, &mut canonical).map_err(|problem| StoreError::Corrupt {
            what: format!("audit record {seq}"),
            problem,
        })?;
        let at = usize::try_from(seq.wrapping_sub(range.start)).ok();
        if let Some(slot) = at.and_then(|at| leaves.hashes.get_mut(at))
            && slot.replace(canonical.leaf_hash()).is_some()
        {
            leaves.twice.push(seq);
        }
    }
    Ok(leaves)
}

/// As [`leaves`]; where a record is missing, its tile says what it was.
async fn known_leaves(connection: &mut PgConnection, range: Range<u64>) -> Result<Leaves, StoreError> {
    let mut known = leaves(connection, range).await?;
    let mut kept = HashMap::new();
    for (seq, leaf) in (known.first..).zip(&mut known.hashes) {
        if leaf.is_some() {
            continue;
        }
        let number = seq / TILE;
        if !kept.contains_key(&number) {
            kept = tiles(connection, 0, number..number + TILE).await?;
            // Asked once, also where there is none.
            kept.entry(number).or_default();
        }
        let tile = kept.get(&number);
        *leaf = tile
            .and_then(|tile| tile.get(usize::try_from(seq % TILE).ok()?))
            .copied();
    }
    Ok(known)
}

/// The number behind that of the last record that a tile holds.
pub(super) async fn tiles_end(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let last = sqlx::query_scalar!("SELECT max(number) FROM audit_tiles WHERE level = 0")
        .fetch_one(connection)
        .await?;
    let tiles: u64 = match last {
        Some(last) => unsigned("number of a tile of the audit log", last.saturating_add(1))?,
        None => 0,
    };
    Ok(tiles.saturating_mul(TILE))
}

/// Makes the record's bytes of a row of [`RECORDS`].
fn read(row: &PgRow, canonical: &mut Canonical) -> Result<(), String> {
    canonical.start();
    for index in 0..FIELDS.len() {
        let value = row.try_get_raw(index).map_err(|error| error.to_string())?;
        if value.is_null() {
            continue;
        }
        if value.format() != PgValueFormat::Binary {
            return Err("it did not come in binary form".into());
        }
        let bytes = value.as_bytes().map_err(|error| error.to_string())?;
        canonical
            .postgres(index, bytes)
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

pub(super) async fn tiles(
    connection: &mut PgConnection,
    level: u8,
    range: Range<u64>,
) -> Result<HashMap<u64, Vec<Hash>>, StoreError> {
    let rows = sqlx::query!(
        "SELECT number, hashes FROM audit_tiles WHERE level = $1 AND number >= $2 AND number < $3",
        i16::from(level),
        number(range.start),
        number(range.end),
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let tile = unsigned("number of a tile of the audit log", row.number)?;
            let hashes = row
                .hashes
                .chunks_exact(32)
                .map(hash_of)
                .collect::<Result<_, _>>()?;
            Ok((tile, hashes))
        })
        .collect()
}

fn hash_of(bytes: &[u8]) -> Result<Hash, StoreError> {
    bytes.try_into().map_err(|_| StoreError::Corrupt {
        what: "hash of the audit log".into(),
        problem: format!("it has {} bytes", bytes.len()),
    })
}

async fn tree(connection: &mut PgConnection, size: u64) -> Result<Tree, StoreError> {
    let missing = |what: String| StoreError::Corrupt {
        what,
        problem: "it is missing".into(),
    };
    let mut edge = Vec::new();
    for level in 0_u8.. {
        let (tile, within) = edge_of(size, level);
        if (tile, within) == (0, 0) {
            break;
        }
        let first = tile * TILE;
        let range = first..first + within;
        let mut hashes = Vec::new();
        if let Some(below) = level.checked_sub(1) {
            let tiles = tiles(connection, below, range.clone()).await?;
            for number in range {
                let tile = tiles
                    .get(&number)
                    .ok_or_else(|| missing(format!("tile {below}/{number} of the audit log")))?;
                hashes.push(root_of(tile));
            }
        } else {
            let leaves = known_leaves(connection, range).await?;
            for (seq, leaf) in (first..).zip(leaves.hashes) {
                hashes.push(leaf.ok_or_else(|| missing(format!("audit record {seq}")))?);
            }
        }
        edge.push(hashes);
    }
    Tree::from_edge(size, edge).map_err(|error| StoreError::Corrupt {
        what: "tree of the audit log".into(),
        problem: error.to_string(),
    })
}

async fn last_checkpoint(connection: &mut PgConnection) -> Result<Option<Checkpoint>, StoreError> {
    let row =
        sqlx::query!("SELECT size, root, note FROM audit_checkpoints ORDER BY size DESC, id DESC LIMIT 1")
            .fetch_optional(connection)
            .await?;
    row.map(|row| checkpoint(row.size, &row.root, &row.note))
        .transpose()
}

/// Its columns have to say what its note says.
fn checkpoint(size: i64, root: &[u8], note: &str) -> Result<Checkpoint, StoreError> {
    let corrupt = |problem: String| StoreError::Corrupt {
        what: format!("checkpoint of {size} audit records"),
        problem,
    };
    let checkpoint = Checkpoint::parse(note).map_err(|error| corrupt(error.to_string()))?;
    if number(checkpoint.size) != size || checkpoint.root != root {
        return Err(corrupt("its columns do not say what its note says".into()));
    }
    Ok(checkpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_in_the_order_of_the_fields() {
        let (columns, _) = RECORDS.split_once(" FROM ").expect("columns");
        let columns = columns.trim_start_matches("SELECT").split(',').map(str::trim);
        assert!(columns.eq(FIELDS.iter().map(|(name, _)| *name)));
        assert_eq!(FIELDS[SEQ].0, "seq");
    }
}
