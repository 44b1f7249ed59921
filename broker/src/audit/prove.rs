//! Proofs from the database: that a record is under the newest checkpoint, and that a checkpoint goes on from an older one.

use std::collections::HashMap;
use std::ops::Range;

use serde::Serialize;
use uuid::Uuid;

use super::note::Checkpoint;
use super::tree::{Hash, Nodes, consistency, inclusion};
use crate::store::{Store, StoreError};

/// The proofs of all records about one request or change.
#[derive(Debug, Clone, Serialize)]
pub struct Proofs {
    /// One for each record that is under a checkpoint.
    pub proofs: Vec<Inclusion>,
    /// Numbers of records that no checkpoint is over yet.
    pub unsigned: Vec<u64>,
    /// Records from before records had numbers, which nothing can prove.
    pub unnumbered: usize,
}

/// That a record is under a checkpoint.
#[derive(Debug, Clone, Serialize)]
pub struct Inclusion {
    /// The record's number, its index in the tree.
    pub seq: u64,
    /// Which of the request's records.
    pub kind: String,
    /// The record's bytes, hexadecimal as all that follows.
    pub record: String,
    /// Its leaf in the tree, SHA-256 over a zero byte and the record.
    pub leaf_hash: String,
    /// Records under the checkpoint.
    pub tree_size: u64,
    /// The hashes beside the way from the leaf to the root, from below.
    pub path: Vec<String>,
    /// The root that they lead to.
    pub root: String,
    /// The signed checkpoint.
    pub checkpoint: String,
}

/// That the tree of one checkpoint begins with the tree of another.
#[derive(Debug, Clone, Serialize)]
pub struct Growth {
    /// Records of the older tree.
    pub old_size: u64,
    /// Its root.
    pub old_root: String,
    /// Records of the newer tree.
    pub new_size: u64,
    /// Its root.
    pub new_root: String,
    /// The hashes that prove it, as in RFC 6962.
    pub path: Vec<String>,
}

/// Proves the records about `id`; `None` where there are none.
///
/// # Errors
/// The database cannot be read, or a part of the tree is missing.
pub async fn records(store: &Store, id: Uuid) -> Result<Option<Proofs>, StoreError> {
    let names = store.records_about(id).await?;
    if names.is_empty() {
        return Ok(None);
    }
    let checkpoint = store.last_checkpoint().await?;
    let mut found = Proofs {
        proofs: Vec::new(),
        unsigned: Vec::new(),
        unnumbered: 0,
    };
    for name in names {
        let Some(seq) = name.seq.and_then(|seq| u64::try_from(seq).ok()) else {
            found.unnumbered += 1;
            continue;
        };
        match checkpoint.as_ref().filter(|checkpoint| seq < checkpoint.size) {
            Some(checkpoint) => found
                .proofs
                .push(record(store, seq, name.kind, checkpoint).await?),
            None => found.unsigned.push(seq),
        }
    }
    Ok(Some(found))
}

async fn record(
    store: &Store,
    seq: u64,
    kind: String,
    checkpoint: &Checkpoint,
) -> Result<Inclusion, StoreError> {
    let (bytes, leaf) = store.audit_record_bytes(seq).await?;
    let path = path(store, checkpoint.size, &inclusion(seq, checkpoint.size)).await?;
    Ok(Inclusion {
        seq,
        kind,
        record: hex::encode(bytes),
        leaf_hash: hex::encode(leaf),
        tree_size: checkpoint.size,
        path: path.iter().map(hex::encode).collect(),
        root: hex::encode(checkpoint.root),
        checkpoint: checkpoint.note.clone(),
    })
}

/// Proves that the tree of `new` records begins with that of `old`, for `0 < old <= new`.
///
/// # Errors
/// The database cannot be read, or a part of the tree is missing.
pub async fn growth(store: &Store, old: u64, new: u64) -> Result<Growth, StoreError> {
    let path = path(store, new, &consistency(old, new)).await?;
    Ok(Growth {
        old_size: old,
        old_root: hex::encode(store.audit_tree(old).await?.root()),
        new_size: new,
        new_root: hex::encode(store.audit_tree(new).await?.root()),
        path: path.iter().map(hex::encode).collect(),
    })
}

async fn path(store: &Store, size: u64, ranges: &[Range<u64>]) -> Result<Vec<Hash>, StoreError> {
    let tree = store.audit_tree(size).await?;
    let mut tiles = HashMap::new();
    for (level, number) in Nodes::tiles_for(size, ranges) {
        let found = store.audit_tiles(level, number..number + 1).await?;
        tiles.extend(
            found
                .into_iter()
                .map(|(number, hashes)| ((level, number), hashes)),
        );
    }
    Nodes::new(tree, tiles)
        .path(ranges)
        .ok_or_else(|| StoreError::Corrupt {
            what: "tree of the audit log".into(),
            problem: "a tile is missing".into(),
        })
}
