//! The root of an RFC 6962 tree over leaves that come one by one, in little memory.

use aws_lc_rs::digest::{Context, SHA256};

/// A SHA-256.
pub type Hash = [u8; 32];

/// A tree that grows.
#[derive(Debug, Clone, Default)]
pub struct Subtree {
    /// Roots of full trees, the largest first, with the number of their leaves.
    full: Vec<(u64, Hash)>,
}

/// The hash of a leaf.
#[must_use]
pub fn leaf(bytes: &[u8]) -> Hash {
    hash(0, &[bytes])
}

fn hash(prefix: u8, parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(&[prefix]);
    for part in parts {
        context.update(part);
    }
    let mut hash = Hash::default();
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

impl Subtree {
    /// Adds the next leaf's hash.
    pub fn push(&mut self, leaf: Hash) {
        let (mut size, mut node) = (1, leaf);
        while let Some((left_size, left)) = self.full.last()
            && *left_size == size
        {
            node = hash(1, &[left, &node]);
            size *= 2;
            self.full.pop();
        }
        self.full.push((size, node));
    }

    /// The root of all leaves so far.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut from_the_right = self.full.iter().rev().map(|(_, root)| *root);
        match from_the_right.next() {
            Some(last) => from_the_right.fold(last, |right, left| hash(1, &[&left, &right])),
            None => {
                let mut empty = Hash::default();
                empty.copy_from_slice(Context::new(&SHA256).finish().as_ref());
                empty
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaves and roots that implementations of Certificate Transparency test themselves with.
    #[test]
    fn roots_are_those_of_the_standard() {
        let leaves = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ];
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut tree = Subtree::default();
        assert_eq!(hex::encode(tree.root()), roots[0]);
        for (bytes, root) in leaves.iter().zip(&roots[1..]) {
            tree.push(leaf(&hex::decode(bytes).expect("hexadecimal")));
            assert_eq!(hex::encode(tree.root()), *root);
        }
    }
}
