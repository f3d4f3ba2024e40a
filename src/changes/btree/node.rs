//! One node of a b-tree (pure, over bytes).
//!
//! Guarantees: a node that was accepted has the right checksum, is where it says it is, is what its parent
//! promised, fits its block, and its keys ascend strictly within the bounds that its parent set. Layout:
//! `struct node_header` in drivers/md/persistent-data/dm-btree-internal.h, little-endian: a header of 32
//! bytes, `max_entries` keys of 8 bytes, `max_entries` values.

use super::error::{Result, TreeError};
use super::{METADATA_BLOCK_BYTES, TreeKind, metadata_checksum, u32_at, u64_at};

/// Mixed into the checksum of a node.
pub(in crate::changes) const NODE_SALT: u32 = 121_107;
pub(in crate::changes) const HEADER_BYTES: usize = 32;
/// What is left for entries.
#[allow(clippy::cast_possible_truncation, reason = "4064")]
const ROOM: u32 = (METADATA_BLOCK_BYTES - HEADER_BYTES) as u32;
pub(in crate::changes) const INTERNAL: u32 = 1;
pub(in crate::changes) const LEAF: u32 = 2;

pub(in crate::changes) const FLAGS: usize = 4;
pub(in crate::changes) const BLOCK: usize = 8;
pub(in crate::changes) const ENTRIES: usize = 16;
pub(in crate::changes) const MAX_ENTRIES: usize = 20;
pub(in crate::changes) const VALUE_BYTES: usize = 24;

/// A whole metadata block.
pub(in crate::changes) type Block = [u8; METADATA_BLOCK_BYTES];

/// What a parent says of its child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::changes) struct Child {
    /// Where it is.
    pub(in crate::changes) block: u64,
    /// No key below this.
    pub(in crate::changes) low: u64,
    /// No key above this.
    pub(in crate::changes) last: u64,
    /// Levels below it: 0 for a leaf.
    pub(in crate::changes) height: u32,
}

/// Where the entries of a node are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) is_leaf: bool,
    pub(super) entries: usize,
    max_entries: usize,
    value_bytes: usize,
}

/// Checks the node in `bytes` as the child that was promised; `is_leaf` if it is known what it must be.
pub(super) fn check<T: TreeKind>(
    tree: T,
    bytes: &Block,
    child: Child,
    is_leaf: Option<bool>,
) -> Result<Shape, T> {
    let wrong = |field, found: u64, expected: String| TreeError::Node {
        tree,
        block: child.block,
        field,
        found,
        expected,
    };
    let expected = metadata_checksum(bytes, NODE_SALT);
    let checksum = u32_at(bytes, 0);
    if checksum != expected {
        return Err(wrong("checksum", checksum.into(), expected.to_string()));
    }
    let block = u64_at(bytes, BLOCK);
    if block != child.block {
        return Err(wrong("block number", block, child.block.to_string()));
    }
    let flags = u32_at(bytes, FLAGS);
    let allowed = match is_leaf {
        None => [INTERNAL, LEAF],
        Some(true) => [LEAF; 2],
        Some(false) => [INTERNAL; 2],
    };
    if !allowed.contains(&flags) {
        let expected = match is_leaf {
            None => "1 (internal) or 2 (leaf)",
            Some(true) => "2 (leaf): all leaves are at the same depth",
            Some(false) => "1 (internal): all leaves are at the same depth",
        };
        return Err(wrong("kind", flags.into(), expected.into()));
    }
    let is_leaf = flags == LEAF;
    let expected = if is_leaf { tree.leaf_value_bytes() } else { 8 };
    let value_bytes = u32_at(bytes, VALUE_BYTES);
    if value_bytes != expected {
        return Err(wrong(
            "value size",
            value_bytes.into(),
            expected.to_string(),
        ));
    }
    let room = ROOM / (8 + value_bytes);
    let max_entries = u32_at(bytes, MAX_ENTRIES);
    if max_entries > room {
        let expected = format!("at most {room}");
        return Err(wrong("room for entries", max_entries.into(), expected));
    }
    let entries = u32_at(bytes, ENTRIES);
    if entries > max_entries {
        let expected = format!("at most {max_entries}");
        return Err(wrong("number of entries", entries.into(), expected));
    }
    if entries == 0 && !is_leaf {
        return Err(wrong("number of entries", 0, "at least 1".into()));
    }
    let shape = Shape {
        is_leaf,
        entries: entries as usize,
        max_entries: max_entries as usize,
        value_bytes: value_bytes as usize,
    };
    let keys = shape.keys(bytes);
    if let (Some(first), Some(last)) = (keys.first(), keys.last()) {
        let (first, last) = (u64::from_le_bytes(*first), u64::from_le_bytes(*last));
        if first < child.low {
            let expected = format!("at least {}", child.low);
            return Err(wrong("first key", first, expected));
        }
        if last > child.last {
            return Err(wrong("last key", last, format!("at most {}", child.last)));
        }
    }
    // All of them, without a way out of the loop: it is over faster.
    let ascend = keys.windows(2).fold(true, |ascend, pair| {
        ascend & (u64::from_le_bytes(pair[0]) < u64::from_le_bytes(pair[1]))
    });
    if !ascend {
        let pair = keys
            .windows(2)
            .find(|pair| u64::from_le_bytes(pair[0]) >= u64::from_le_bytes(pair[1]));
        let [before, key] = pair.map_or([0; 2], |pair| [0, 1].map(|i| u64::from_le_bytes(pair[i])));
        return Err(wrong("next key", key, format!("more than {before}")));
    }
    Ok(shape)
}

impl Shape {
    /// The keys of the node in `bytes`.
    pub(super) fn keys(self, bytes: &Block) -> &[[u8; 8]] {
        bytes[HEADER_BYTES..][..8 * self.entries].as_chunks().0
    }

    /// The values, one after the other.
    pub(super) fn values(self, bytes: &Block) -> &[u8] {
        &bytes[HEADER_BYTES + 8 * self.max_entries..][..self.value_bytes * self.entries]
    }

    /// The entry with this index of an internal node; `parent` is what was promised of that node.
    pub(super) fn child(self, bytes: &Block, index: usize, parent: Child) -> Option<Child> {
        let key = |index| {
            self.keys(bytes)
                .get(index)
                .map(|key| u64::from_le_bytes(*key))
        };
        let block = self.values(bytes).as_chunks().0.get(index)?;
        Some(Child {
            block: u64::from_le_bytes(*block),
            low: key(index)?,
            // Keys ascend, so the next one is no zero.
            last: key(index + 1).map_or(parent.last, |next| next.saturating_sub(1)),
            height: parent.height.saturating_sub(1),
        })
    }
}
