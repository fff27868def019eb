//! Merkle tree hashing, inclusion and consistency (RFC 6962 §2.1, RFC 9162 §2.1).

use crate::domain::digest::Sha256;

/// SHA-256(0x00 ‖ entry).
pub fn leaf_hash(entry: &[u8]) -> Sha256 {
    Sha256::of_parts(&[&[0], entry])
}

/// SHA-256(0x01 ‖ left ‖ right).
pub fn node_hash(left: &Sha256, right: &Sha256) -> Sha256 {
    Sha256::of_parts(&[&[1], &left.0, &right.0])
}

/// The right edge of a growing tree: one hash for each perfect subtree, largest first.
#[derive(Clone, Debug, Default)]
pub struct Frontier {
    size: u64,
    subtrees: Vec<Sha256>,
}

impl Frontier {
    /// Number of leaves.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf. Calls `complete(level, index, hash)` for it and for each perfect subtree that it closes.
    pub fn push(&mut self, leaf: Sha256, mut complete: impl FnMut(u32, u64, Sha256)) {
        let mut hash = leaf;
        let mut index = self.size;
        let mut level = 0;
        complete(level, index, hash);
        while index & 1 == 1 {
            let left = self.subtrees.pop().expect("an odd index has a left sibling");
            hash = node_hash(&left, &hash);
            index >>= 1;
            level += 1;
            complete(level, index, hash);
        }
        self.subtrees.push(hash);
        self.size += 1;
    }

    /// The root; the empty tree's is the hash of nothing (RFC 6962 §2.1).
    pub fn root(&self) -> Sha256 {
        let mut right_to_left = self.subtrees.iter().rev();
        match right_to_left.next() {
            None => Sha256::of(b""),
            Some(last) => right_to_left.fold(*last, |right, left| node_hash(left, &right)),
        }
    }
}

/// The root over leaf hashes.
pub fn root(leaves: &[Sha256]) -> Sha256 {
    let mut frontier = Frontier::default();
    leaves.iter().for_each(|l| frontier.push(*l, |_, _, _| ()));
    frontier.root()
}

/// Largest power of two below `n`, for `n` over 1.
fn split(n: usize) -> usize {
    1 << (usize::BITS - 1 - (n - 1).leading_zeros())
}

/// Audit path of the leaf at `index` (RFC 6962 §2.1.1); none if there is no such leaf.
pub fn inclusion_proof(leaves: &[Sha256], index: usize) -> Option<Vec<Sha256>> {
    if index >= leaves.len() {
        return None;
    }
    let mut path = Vec::new();
    let (mut leaves, mut index) = (leaves, index);
    while leaves.len() > 1 {
        let (left, right) = leaves.split_at(split(leaves.len()));
        if index < left.len() {
            path.push(root(right));
            leaves = left;
        } else {
            path.push(root(left));
            index -= left.len();
            leaves = right;
        }
    }
    path.reverse();
    Some(path)
}

/// Whether the path leads from the leaf to the root (RFC 9162 §2.1.3.2).
pub fn verify_inclusion(leaf: Sha256, index: u64, size: u64, path: &[Sha256], root: Sha256) -> bool {
    if index >= size {
        return false;
    }
    let (mut node, mut last, mut hash) = (index, size - 1, leaf);
    for sibling in path {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && hash == root
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaves(n: usize) -> Vec<Sha256> {
        (0..n).map(|i| leaf_hash(&i.to_be_bytes())).collect()
    }

    /// The definition of RFC 6962 §2.1, word for word.
    fn mth(leaves: &[Sha256]) -> Sha256 {
        match leaves {
            [] => Sha256::of(b""),
            [one] => *one,
            many => {
                let k = (1..many.len()).rev().find(|k| k.is_power_of_two()).expect("over one leaf");
                node_hash(&mth(&many[..k]), &mth(&many[k..]))
            }
        }
    }

    proptest! {
        #[test]
        fn the_frontier_computes_the_rfcs_definition(n in 0_usize..300) {
            prop_assert_eq!(root(&leaves(n)), mth(&leaves(n)));
        }

        #[test]
        fn each_leaf_is_included_and_no_other_is(n in 1_usize..200, at in 0_usize..200, other in 0_usize..200) {
            let all = leaves(n);
            let at = at % n;
            let path = inclusion_proof(&all, at).expect("in range");
            let holds = |leaf, index, size| verify_inclusion(leaf, index, size, &path, mth(&all));
            prop_assert!(holds(all[at], at as u64, n as u64));
            let other = other % n;
            if other != at {
                prop_assert!(!holds(all[other], at as u64, n as u64));
                prop_assert!(!holds(all[at], other as u64, n as u64));
            }
        }
    }

    #[test]
    fn a_leaf_is_never_a_node() {
        let (a, b) = (leaf_hash(b"a"), leaf_hash(b"b"));
        let forged = [a.0, b.0].concat();
        assert_ne!(leaf_hash(&forged), node_hash(&a, &b));
    }
}
