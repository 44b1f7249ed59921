use std::collections::HashMap;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Vectors {
    roots: Vec<Root>,
    inclusion: Vec<Inclusion>,
    consistency: Vec<Consistency>,
}

#[derive(Deserialize)]
struct Root {
    size: u64,
    root: String,
}

#[derive(Deserialize)]
struct Inclusion {
    index: u64,
    size: u64,
    path: Vec<String>,
}

#[derive(Deserialize)]
struct Consistency {
    old: u64,
    new: u64,
    path: Vec<String>,
}

fn leaf(number: u64) -> Hash {
    sha256(format!("\0{number}").as_bytes())
}

/// A tree over the numbers below `size`, with every full tile.
fn grown(size: u64) -> (Tree, HashMap<(u8, u64), Vec<Hash>>) {
    let (mut tree, mut tiles) = (Tree::default(), Vec::new());
    for number in 0..size {
        tree.append(leaf(number), &mut tiles);
    }
    let tiles = tiles
        .into_iter()
        .map(|tile| ((tile.level, tile.number), tile.hashes));
    (tree, tiles.collect())
}

/// RFC 6962 §2.1 as it stands there.
fn naive(leaves: &[Hash]) -> Hash {
    match leaves.len() {
        0 => sha256(b""),
        1 => leaves[0],
        n => {
            let mut k = 1;
            while k * 2 < n {
                k *= 2;
            }
            node_hash(&naive(&leaves[..k]), &naive(&leaves[k..]))
        }
    }
}

fn path_of(
    size: u64,
    ranges: &[std::ops::Range<u64>],
    (tree, tiles): &(Tree, HashMap<(u8, u64), Vec<Hash>>),
) -> Vec<Hash> {
    let asked = Nodes::tiles_for(size, ranges);
    let given = asked.into_iter().map(|place| (place, tiles[&place].clone()));
    Nodes::new(tree.clone(), given.collect())
        .path(ranges)
        .expect("every tile that was asked for is there")
}

fn hexes(path: &[Hash]) -> Vec<String> {
    path.iter().map(hex::encode).collect()
}

#[test]
fn an_independent_implementation_has_the_same_roots_and_proofs() {
    let vectors: Vectors =
        serde_json::from_str(include_str!("../../../tests/vectors/tree.json")).expect("vectors");
    let sizes = vectors.roots.iter().map(|root| root.size);
    let trees: HashMap<u64, _> = sizes.map(|size| (size, grown(size))).collect();
    for Root { size, root } in &vectors.roots {
        assert_eq!(&hex::encode(trees[size].0.root()), root, "root of {size}");
    }
    for Inclusion { index, size, path } in &vectors.inclusion {
        let ours = path_of(*size, &inclusion(*index, *size), &trees[size]);
        assert_eq!(&hexes(&ours), path, "inclusion of {index} in {size}");
    }
    for Consistency { old, new, path } in &vectors.consistency {
        let ours = path_of(*new, &consistency(*old, *new), &trees[new]);
        assert_eq!(&hexes(&ours), path, "consistency of {old} and {new}");
    }
}

#[test]
fn a_tree_over_more_than_a_tile_of_tiles_is_the_naive_one() {
    let size = TILE * TILE + TILE + 3;
    let (tree, tiles) = grown(size);
    let leaves: Vec<Hash> = (0..size).map(leaf).collect();
    assert_eq!(tree.root(), naive(&leaves));
    assert_eq!(tiles.len(), 257 + 1);
    assert_eq!(tiles[&(0, 256)], leaves[65536..65792]);
    let edge = vec![
        leaves[65792..].to_vec(),
        vec![root_of(&tiles[&(0, 256)])],
        vec![root_of(&tiles[&(1, 0)])],
    ];
    assert_eq!(Tree::from_edge(size, edge.clone()), Ok(tree));
    assert!(Tree::from_edge(size + 1, edge).is_err());
}

proptest! {
    #[test]
    fn a_tree_is_the_naive_recursion(size in 0_u64..1400) {
        let leaves: Vec<Hash> = (0..size).map(leaf).collect();
        prop_assert_eq!(grown(size).0.root(), naive(&leaves));
    }

    #[test]
    fn a_record_is_proved_and_no_other(size in 1_u64..1400, pick in any::<u64>(), other in any::<u64>()) {
        let trees = grown(size);
        let root = trees.0.root();
        let index = pick % size;
        let path = path_of(size, &inclusion(index, size), &trees);
        prop_assert!(verify_inclusion(&leaf(index), index, size, &path, &root));
        prop_assert!(!verify_inclusion(&leaf(size), index, size, &path, &root));
        let other = other % size;
        prop_assert_eq!(verify_inclusion(&leaf(index), other, size, &path, &root), other == index);
        let mut longer = path;
        longer.push(root);
        prop_assert!(!verify_inclusion(&leaf(index), index, size, &longer, &root));
    }

    #[test]
    fn growth_is_proved_and_a_fork_is_not(new in 1_u64..1400, pick in any::<u64>()) {
        let old = pick % new + 1;
        let trees = grown(new);
        let (old_root, root) = (grown(old).0.root(), trees.0.root());
        let path = path_of(new, &consistency(old, new), &trees);
        prop_assert!(verify_consistency(old, new, &path, &old_root, &root));
        prop_assert!(!verify_consistency(old, new, &path, &leaf(new + 1), &root));
        prop_assert!(!verify_consistency(old, new, &path, &old_root, &leaf(new + 1)));
    }
}
