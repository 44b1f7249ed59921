//! The hash tree over audit records: RFC 6962 with SHA-256, kept in tiles as C2SP tlog-tiles has them.
//!
//! Pure: what is hashed comes from [`super::canonical`], what is kept goes to `store::audit_tree`. A tile of level 0
//! holds the leaves of 256 records, one of level *n* the roots of 256 tiles of level *n* - 1; only full tiles are kept.

mod proof;

use aws_lc_rs::digest::{SHA256, digest};

pub use self::proof::{Nodes, consistency, inclusion, verify_consistency, verify_inclusion};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// What a leaf's bytes begin with when they are hashed.
pub const LEAF_PREFIX: u8 = 0;
const NODE_PREFIX: u8 = 1;
/// Hashes in a tile.
pub const TILE: u64 = 256;
/// Bits of a place within a tile.
const TILE_BITS: u32 = 8;
/// Levels of tiles; more than a tree of 2^63 records has.
const LEVELS: u32 = 8;

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// The hash over two hashes.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut bytes = [NODE_PREFIX; 65];
    bytes[1..33].copy_from_slice(left);
    bytes[33..].copy_from_slice(right);
    sha256(&bytes)
}

/// The root over `items`: leaves, or roots of subtrees of one size of which only the last may be smaller.
#[must_use]
pub fn root_of(items: &[Hash]) -> Hash {
    match items {
        [] => sha256(&[]),
        [one] => *one,
        _ => {
            let (left, right) = items.split_at(items.len().next_power_of_two() / 2);
            node_hash(&root_of(left), &root_of(right))
        }
    }
}

/// A full tile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tile {
    /// 0 over records.
    pub level: u8,
    /// Its place in its level, from 0.
    pub number: u64,
    /// Its 256 hashes.
    pub hashes: Vec<Hash>,
}

/// A tree that grows at its right edge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// The tile of each level that is not full.
    edge: Vec<Vec<Hash>>,
}

/// Tiles that a tree of `size` has at `level`, full ones only.
#[must_use]
pub fn full_tiles(size: u64, level: u8) -> u64 {
    size.checked_shr(TILE_BITS * (u32::from(level) + 1)).unwrap_or(0)
}

/// Hashes in the tile of `level` that is not full, of a tree of `size`: the number of the tile and how many.
#[must_use]
pub fn edge_of(size: u64, level: u8) -> (u64, u64) {
    let items = size.checked_shr(TILE_BITS * u32::from(level)).unwrap_or(0);
    (items / TILE, items % TILE)
}

impl Tree {
    /// The tree of `size` whose unfinished tiles are `edge`, lowest first.
    ///
    /// # Errors
    /// The edge is not that of a tree of this size.
    pub fn from_edge(size: u64, mut edge: Vec<Vec<Hash>>) -> Result<Self, WrongEdge> {
        while edge.last().is_some_and(Vec::is_empty) {
            edge.pop();
        }
        let fits = (0..LEVELS).all(|level| {
            let there = edge.get(level as usize).map_or(0, Vec::len) as u64;
            edge_of(size, u8::try_from(level).unwrap_or(u8::MAX)).1 == there
        });
        if !fits || edge.len() > LEVELS as usize {
            return Err(WrongEdge { size });
        }
        Ok(Self { size, edge })
    }

    /// How many records it is over.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The hashes of the unfinished tile of `level`.
    #[must_use]
    pub fn edge(&self, level: u8) -> &[Hash] {
        self.edge.get(usize::from(level)).map_or(&[], Vec::as_slice)
    }

    /// Adds the next leaf; a tile that it fills goes to `tiles`, one of each level at most.
    pub fn append(&mut self, leaf: Hash, tiles: &mut Vec<Tile>) {
        self.size += 1;
        let mut hash = leaf;
        for level in 0_u8.. {
            let index = usize::from(level);
            if self.edge.len() == index {
                self.edge.push(Vec::new());
            }
            let hashes = &mut self.edge[index];
            hashes.push(hash);
            if (hashes.len() as u64) < TILE {
                break;
            }
            let hashes = std::mem::take(hashes);
            hash = root_of(&hashes);
            let number = full_tiles(self.size, level) - 1;
            tiles.push(Tile {
                level,
                number,
                hashes,
            });
        }
        while self.edge.last().is_some_and(Vec::is_empty) {
            self.edge.pop();
        }
    }

    /// The root over all records.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut beyond: Option<Hash> = None;
        for hashes in &self.edge {
            let mut items = hashes.clone();
            items.extend(beyond);
            if !items.is_empty() {
                beyond = Some(root_of(&items));
            }
        }
        beyond.unwrap_or_else(|| root_of(&[]))
    }
}

/// Unfinished tiles that belong to no tree of that size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these are not the unfinished tiles of a tree of {size} records")]
pub struct WrongEdge {
    size: u64,
}

#[cfg(test)]
mod tests;
