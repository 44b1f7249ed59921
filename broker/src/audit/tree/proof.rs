//! Proofs that a record is in a tree, and that a tree goes on from an earlier one: RFC 6962 §2.1, RFC 9162 §2.1.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::{Hash, TILE, TILE_BITS, Tree, full_tiles, node_hash, root_of};

/// The largest power of two below `length`, which is where a tree of that many leaves is split.
fn split(length: u64) -> u64 {
    length.next_power_of_two() / 2
}

/// The subtrees whose hashes prove that leaf `index` is in a tree of `size`, lowest first.
#[must_use]
pub fn inclusion(index: u64, size: u64) -> Vec<Range<u64>> {
    let mut path = Vec::new();
    let mut subtree = 0..size;
    while subtree.end - subtree.start > 1 {
        let middle = subtree.start + split(subtree.end - subtree.start);
        if index < middle {
            path.push(middle..subtree.end);
            subtree.end = middle;
        } else {
            path.push(subtree.start..middle);
            subtree.start = middle;
        }
    }
    path.reverse();
    path
}

/// The subtrees whose hashes prove that a tree of `new` begins with the tree of `old`, `0 < old <= new`.
#[must_use]
pub fn consistency(old: u64, new: u64) -> Vec<Range<u64>> {
    let mut path = Vec::new();
    let mut subtree = 0..new;
    // The verifier knows the hash of the old tree as long as only right subtrees have been left out.
    let mut is_known = true;
    while subtree.end != old {
        let middle = subtree.start + split(subtree.end - subtree.start);
        if old <= middle {
            path.push(middle..subtree.end);
            subtree.end = middle;
        } else {
            path.push(subtree.start..middle);
            subtree.start = middle;
            is_known = false;
        }
    }
    if !is_known {
        path.push(subtree);
    }
    path.reverse();
    path
}

/// The hashes of a tree that proofs are made of.
#[derive(Debug, Clone)]
pub struct Nodes {
    tree: Tree,
    tiles: HashMap<(u8, u64), Vec<Hash>>,
}

impl Nodes {
    /// The full tiles, by level and number, that hold hashes of `ranges` in a tree of `size`.
    #[must_use]
    pub fn tiles_for(size: u64, ranges: &[Range<u64>]) -> BTreeSet<(u8, u64)> {
        let mut tiles = BTreeSet::new();
        for range in ranges {
            wanted(range.clone(), size, &mut tiles);
        }
        tiles
    }

    /// `tiles` are those that [`Nodes::tiles_for`] has named.
    #[must_use]
    pub fn new(tree: Tree, tiles: HashMap<(u8, u64), Vec<Hash>>) -> Self {
        Self { tree, tiles }
    }

    /// The hash of one of the ranges; `None` where its tile was not given.
    #[must_use]
    pub fn hash(&self, range: &Range<u64>) -> Option<Hash> {
        let Some(place) = Place::of(range) else {
            let middle = range.start + split(range.end - range.start);
            let left = self.hash(&(range.start..middle))?;
            return Some(node_hash(&left, &self.hash(&(middle..range.end))?));
        };
        let hashes = match self.tiles.get(&(place.level, place.number)) {
            Some(hashes) => hashes.as_slice(),
            None if place.number == full_tiles(self.tree.size(), place.level) => self.tree.edge(place.level),
            None => return None,
        };
        hashes.get(place.within).map(root_of)
    }

    /// The hashes of all of the ranges.
    #[must_use]
    pub fn path(&self, ranges: &[Range<u64>]) -> Option<Vec<Hash>> {
        ranges.iter().map(|range| self.hash(range)).collect()
    }
}

/// Where the hashes of a full subtree stand.
struct Place {
    level: u8,
    number: u64,
    within: Range<usize>,
}

impl Place {
    /// `None` for a range that is no full subtree.
    fn of(range: &Range<u64>) -> Option<Self> {
        let length = range.end - range.start;
        if !length.is_power_of_two() || !range.start.is_multiple_of(length) {
            return None;
        }
        let height = length.trailing_zeros();
        let level = height / TILE_BITS;
        let first = range.start >> (level * TILE_BITS);
        let start = usize::try_from(first % TILE).ok()?;
        Some(Self {
            level: u8::try_from(level).ok()?,
            number: first / TILE,
            within: start..start + (1 << (height % TILE_BITS)),
        })
    }
}

fn wanted(range: Range<u64>, size: u64, tiles: &mut BTreeSet<(u8, u64)>) {
    if let Some(place) = Place::of(&range) {
        if place.number < full_tiles(size, place.level) {
            tiles.insert((place.level, place.number));
        }
    } else {
        let middle = range.start + split(range.end - range.start);
        wanted(range.start..middle, size, tiles);
        wanted(middle..range.end, size, tiles);
    }
}

/// Does `path` prove that `leaf` is record `index` of the tree with `root`?
#[must_use]
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, path: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut place, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in path {
        if last == 0 {
            return false;
        }
        if place % 2 == 1 || place == last {
            hash = node_hash(sibling, &hash);
            while place.is_multiple_of(2) && place != 0 {
                place /= 2;
                last /= 2;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        place /= 2;
        last /= 2;
    }
    last == 0 && hash == *root
}

/// Does `path` prove that the tree of `new` records with `new_root` begins with that of `old` and `old_root`?
#[must_use]
pub fn verify_consistency(old: u64, new: u64, path: &[Hash], old_root: &Hash, new_root: &Hash) -> bool {
    if old == new {
        return path.is_empty() && old_root == new_root;
    }
    if old == 0 || old > new {
        return false;
    }
    let mut hashes = path.iter();
    let first = if old.is_power_of_two() {
        Some(old_root)
    } else {
        hashes.next()
    };
    let Some(first) = first else { return false };
    let (mut place, mut last) = (old - 1, new - 1);
    while place % 2 == 1 {
        place /= 2;
        last /= 2;
    }
    let (mut of_old, mut of_new) = (*first, *first);
    for hash in hashes {
        if last == 0 {
            return false;
        }
        if place % 2 == 1 || place == last {
            of_old = node_hash(hash, &of_old);
            of_new = node_hash(hash, &of_new);
            while place.is_multiple_of(2) && place != 0 {
                place /= 2;
                last /= 2;
            }
        } else {
            of_new = node_hash(&of_new, hash);
        }
        place /= 2;
        last /= 2;
    }
    last == 0 && of_old == *old_root && of_new == *new_root
}
