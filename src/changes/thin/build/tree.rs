//! Trees of nodes that are counted, copied before they are written, split and merged.

use std::collections::BTreeSet;

use super::super::super::btree::build::{put, put64, seal};
use super::super::super::btree::node::{
    BLOCK, ENTRIES, FLAGS, HEADER_BYTES, INTERNAL, LEAF, MAX_ENTRIES, NODE_SALT, VALUE_BYTES,
};
use super::super::super::btree::{METADATA_BLOCK_BYTES, TreeKind};
use super::super::error::Tree;

#[derive(Clone)]
struct Node {
    tree: Tree,
    is_leaf: bool,
    keys: Vec<u64>,
    /// Of a value with fewer than three words, the first ones.
    values: Vec<[u64; 3]>,
}

impl Node {
    /// The nodes that it holds: those below it, and the trees that a leaf of the tree of devices names.
    fn holds(&self) -> impl Iterator<Item = u64> + '_ {
        let holds = !self.is_leaf || self.tree == Tree::Devices;
        let values = if holds { self.values.as_slice() } else { &[] };
        values.iter().map(|value| value[0])
    }

    fn value_bytes(&self) -> usize {
        if self.is_leaf {
            self.tree.leaf_value_bytes() as usize
        } else {
            8
        }
    }

    /// The entry that leads to a key.
    fn towards(&self, key: u64) -> usize {
        self.keys.partition_point(|at| *at <= key).saturating_sub(1)
    }
}

/// All nodes of a pool, by block. Block 0 is not used.
#[derive(Clone)]
pub(super) struct Nodes {
    nodes: Vec<Option<Node>>,
    holders: Vec<u32>,
    free: Vec<u64>,
    most: usize,
}

fn at(block: u64) -> usize {
    usize::try_from(block).unwrap_or(usize::MAX)
}

/// What a block has room for is no large number.
fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl Nodes {
    pub(super) fn new(most: usize) -> Self {
        Self {
            nodes: vec![None],
            holders: vec![1],
            free: Vec::new(),
            most,
        }
    }

    pub(super) fn empty(&mut self, tree: Tree) -> u64 {
        self.add(Node {
            tree,
            is_leaf: true,
            keys: Vec::new(),
            values: Vec::new(),
        })
    }

    fn add(&mut self, node: Node) -> u64 {
        let block = self.reserve();
        self.nodes[at(block)] = Some(node);
        block
    }

    /// A block for something else.
    pub(super) fn reserve(&mut self) -> u64 {
        if let Some(block) = self.free.pop() {
            self.holders[at(block)] = 1;
            return block;
        }
        self.nodes.push(None);
        self.holders.push(1);
        self.nodes.len() as u64 - 1
    }

    pub(super) fn unreserve(&mut self, block: u64) {
        self.nodes[at(block)] = None;
        self.free.push(block);
    }

    /// One more holder.
    pub(super) fn hold(&mut self, block: u64) {
        self.holders[at(block)] += 1;
    }

    /// One holder less.
    pub(super) fn release(&mut self, block: u64) {
        self.holders[at(block)] -= 1;
        if self.holders[at(block)] == 0 {
            let held: Vec<u64> = self.node(block).holds().collect();
            for child in held {
                self.release(child);
            }
            self.unreserve(block);
        }
    }

    fn node(&self, block: u64) -> &Node {
        static NONE: Node = Node {
            tree: Tree::Mappings,
            is_leaf: true,
            keys: Vec::new(),
            values: Vec::new(),
        };
        self.nodes[at(block)].as_ref().unwrap_or(&NONE)
    }

    /// The node to be changed, which must be the caller's own.
    fn own(&mut self, block: u64) -> &mut Node {
        let tree = self.node(block).tree;
        self.nodes[at(block)].get_or_insert_with(|| Node {
            tree,
            is_leaf: true,
            keys: Vec::new(),
            values: Vec::new(),
        })
    }

    /// A node that nobody else holds: this one, or a copy.
    fn shadow(&mut self, block: u64) -> u64 {
        if self.holders[at(block)] == 1 {
            return block;
        }
        self.holders[at(block)] -= 1;
        let copy = self.node(block).clone();
        for held in copy.holds() {
            self.holders[at(held)] += 1;
        }
        self.add(copy)
    }

    pub(super) fn find(&self, root: u64, key: u64) -> Option<[u64; 3]> {
        let mut node = self.node(root);
        while !node.is_leaf {
            node = self.node(node.values[node.towards(key)][0]);
        }
        let index = node.keys.binary_search(&key).ok()?;
        Some(node.values[index])
    }

    /// Returns the new root.
    pub(super) fn insert(&mut self, root: u64, key: u64, value: [u64; 3]) -> u64 {
        let (root, split) = self.insert_below(root, key, value);
        let Some((split_key, right)) = split else {
            return root;
        };
        let node = self.node(root);
        self.add(Node {
            tree: node.tree,
            is_leaf: false,
            keys: vec![node.keys[0], split_key],
            values: vec![[root, 0, 0], [right, 0, 0]],
        })
    }

    fn insert_below(&mut self, block: u64, key: u64, value: [u64; 3]) -> (u64, Option<(u64, u64)>) {
        let block = self.shadow(block);
        if self.node(block).is_leaf {
            let node = self.own(block);
            match node.keys.binary_search(&key) {
                Ok(index) => node.values[index] = value,
                Err(index) => {
                    node.keys.insert(index, key);
                    node.values.insert(index, value);
                }
            }
        } else {
            let index = self.node(block).towards(key);
            let child = self.node(block).values[index][0];
            let (child, split) = self.insert_below(child, key, value);
            let node = self.own(block);
            node.values[index] = [child, 0, 0];
            node.keys[0] = node.keys[0].min(key);
            if let Some((split_key, right)) = split {
                node.keys.insert(index + 1, split_key);
                node.values.insert(index + 1, [right, 0, 0]);
            }
        }
        (block, self.split(block))
    }

    /// The key and the block of the upper half, if there is one entry too many.
    fn split(&mut self, block: u64) -> Option<(u64, u64)> {
        let most = self.most(self.node(block));
        let node = self.own(block);
        if node.keys.len() <= most {
            return None;
        }
        let half = node.keys.len() / 2;
        let right = Node {
            tree: node.tree,
            is_leaf: node.is_leaf,
            keys: node.keys.split_off(half),
            values: node.values.split_off(half),
        };
        Some((right.keys[0], self.add(right)))
    }

    /// A multiple of 3, as the kernel has it: then a third is what a node must have at least.
    fn most(&self, node: &Node) -> usize {
        let room = (METADATA_BLOCK_BYTES - HEADER_BYTES) / (8 + node.value_bytes());
        self.most.clamp(3, room) / 3 * 3
    }

    /// Returns the new root.
    pub(super) fn remove(&mut self, root: u64, key: u64) -> u64 {
        let mut root = self.remove_below(root, key);
        loop {
            let node = self.own(root);
            match node.values.first() {
                None => {
                    node.is_leaf = true;
                    return root;
                }
                // The kernel moves what is in the child to the root.
                Some(child) if node.values.len() == 1 && !node.is_leaf => {
                    let child = child[0];
                    self.unreserve(root);
                    // It is held by the path now, and was by the root.
                    root = child;
                }
                Some(_) => return root,
            }
        }
    }

    fn remove_below(&mut self, block: u64, key: u64) -> u64 {
        let block = self.shadow(block);
        if self.node(block).is_leaf {
            let node = self.own(block);
            if let Ok(index) = node.keys.binary_search(&key) {
                node.keys.remove(index);
                node.values.remove(index);
            }
            return block;
        }
        let index = self.node(block).towards(key);
        let child = self.node(block).values[index][0];
        let child = self.remove_below(child, key);
        self.own(block).values[index] = [child, 0, 0];
        if self.node(child).keys.is_empty() {
            self.unreserve(child);
            let node = self.own(block);
            node.keys.remove(index);
            node.values.remove(index);
        } else {
            self.merge(block, index);
        }
        block
    }

    /// Evens out a child that has become small with a neighbour, or merges them if both fit one node.
    fn merge(&mut self, block: u64, index: usize) {
        let node = self.node(block);
        let small = self.node(node.values[index][0]);
        let most = self.most(small);
        let left = index.min(node.keys.len().saturating_sub(2));
        let (Some(one), Some(other)) = (node.values.get(left), node.values.get(left + 1)) else {
            return;
        };
        if small.keys.len() > most / 3 {
            return;
        }
        let (one, other) = (one[0], other[0]);
        let (one, other) = (self.shadow(one), self.shadow(other));
        let moved = self.node(other).clone();
        let node = self.own(one);
        node.keys.extend(moved.keys);
        node.values.extend(moved.values);
        let both = node.keys.len();
        let rest = (both > most).then(|| {
            let half = both / 2;
            (node.keys.split_off(half), node.values.split_off(half))
        });
        self.own(block).values[left] = [one, 0, 0];
        if let Some((keys, values)) = rest {
            let parent = self.own(block);
            parent.keys[left + 1] = keys[0];
            parent.values[left + 1] = [other, 0, 0];
            let node = self.own(other);
            node.keys = keys;
            node.values = values;
        } else {
            self.unreserve(other);
            let parent = self.own(block);
            parent.keys.remove(left + 1);
            parent.values.remove(left + 1);
        }
    }

    /// This node and all below it in the same tree.
    pub(super) fn below(&self, root: u64) -> BTreeSet<u64> {
        let mut found = BTreeSet::from([root]);
        let node = self.node(root);
        if !node.is_leaf {
            for child in node.holds() {
                found.extend(self.below(child));
            }
        }
        found
    }

    /// Appends blocks 1 and following.
    pub(super) fn write(&self, image: &mut Vec<u8>) {
        for (block, node) in self.nodes.iter().enumerate().skip(1) {
            let mut bytes = [0; METADATA_BLOCK_BYTES];
            if let Some(node) = node {
                self.encode(node, block as u64, &mut bytes);
            }
            image.extend(bytes);
        }
    }

    fn encode(&self, node: &Node, block: u64, bytes: &mut [u8; METADATA_BLOCK_BYTES]) {
        let value_bytes = node.value_bytes();
        let most = self.most(node);
        put(bytes, FLAGS, if node.is_leaf { LEAF } else { INTERNAL });
        put64(bytes, BLOCK, block);
        put(bytes, ENTRIES, small(node.keys.len()));
        put(bytes, MAX_ENTRIES, small(most));
        put(bytes, VALUE_BYTES, small(value_bytes));
        for (index, key) in node.keys.iter().enumerate() {
            put64(bytes, HEADER_BYTES + 8 * index, *key);
        }
        let values = HEADER_BYTES + 8 * most;
        for (index, value) in node.values.iter().enumerate() {
            for (word, number) in value.iter().take(value_bytes / 8).enumerate() {
                put64(bytes, values + index * value_bytes + 8 * word, *number);
            }
        }
        seal(bytes, NODE_SALT);
    }
}
