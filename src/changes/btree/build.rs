//! Writes nodes: for the builders of tests, fuzzers and benchmarks.
//!
//! Guarantees: keys ascend, nodes are filled from the left, all leaves are at one depth, checksums are right.

use super::node::{
    BLOCK, ENTRIES, FLAGS, HEADER_BYTES, INTERNAL, LEAF, MAX_ENTRIES, NODE_SALT, VALUE_BYTES,
};
use super::{METADATA_BLOCK_BYTES, metadata_checksum};

pub(in crate::changes) fn put(block: &mut [u8], at: usize, value: u32) {
    block[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(in crate::changes) fn put64(block: &mut [u8], at: usize, value: u64) {
    block[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(in crate::changes) fn seal(block: &mut [u8], salt: u32) {
    let checksum = metadata_checksum(block, salt);
    put(block, 0, checksum);
}

/// Appends one block to the image; returns its number.
pub(in crate::changes) fn append(image: &mut Vec<u8>, block: &[u8]) -> u64 {
    image.extend_from_slice(block);
    (image.len() / METADATA_BLOCK_BYTES) as u64 - 1
}

/// Appends a tree of these entries, whose nodes hold at most `most` of them; returns its root.
pub(in crate::changes) fn write_tree(
    image: &mut Vec<u8>,
    entries: &[(u64, Vec<u8>)],
    value_bytes: usize,
    most: usize,
) -> u64 {
    let mut flags = LEAF;
    let mut value_bytes = value_bytes;
    let mut level = entries.to_vec();
    loop {
        let room = (METADATA_BLOCK_BYTES - HEADER_BYTES) / (8 + value_bytes);
        // A multiple of 3, as the kernel has it: then a third is what a node must have at least.
        let most = most.clamp(3, room) / 3 * 3;
        let mut parents = Vec::new();
        let parts: Vec<_> = match level.is_empty() {
            true => vec![&level[..]],
            false => level.chunks(most).collect(),
        };
        for part in parts {
            let number = (image.len() / METADATA_BLOCK_BYTES) as u64;
            let bytes = node(part, flags, number, value_bytes, most);
            let block = append(image, &bytes);
            let low = part.first().map_or(0, |entry| entry.0);
            parents.push((low, block.to_le_bytes().to_vec()));
        }
        if let [(_, root)] = &parents[..] {
            return root
                .first_chunk()
                .map_or(0, |root| u64::from_le_bytes(*root));
        }
        (level, flags, value_bytes) = (parents, INTERNAL, 8);
    }
}

fn node(
    entries: &[(u64, Vec<u8>)],
    flags: u32,
    block: u64,
    value_bytes: usize,
    most: usize,
) -> [u8; METADATA_BLOCK_BYTES] {
    let small = |number| u32::try_from(number).unwrap_or(u32::MAX);
    let mut bytes = [0; METADATA_BLOCK_BYTES];
    put(&mut bytes, FLAGS, flags);
    put64(&mut bytes, BLOCK, block);
    put(&mut bytes, ENTRIES, small(entries.len()));
    put(&mut bytes, MAX_ENTRIES, small(most));
    put(&mut bytes, VALUE_BYTES, small(value_bytes));
    for (index, (key, value)) in entries.iter().enumerate() {
        put64(&mut bytes, HEADER_BYTES + 8 * index, *key);
        let at = HEADER_BYTES + 8 * most + index * value_bytes;
        bytes[at..at + value_bytes].copy_from_slice(value);
    }
    seal(&mut bytes, NODE_SALT);
    bytes
}
