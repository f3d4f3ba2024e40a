//! Writes the metadata of a thin pool as the kernel would have: for tests, fuzzers and benchmarks.
//!
//! Guarantees: nodes are shared between devices and copied before they are written, as the kernel does it;
//! freed blocks are used again; checksums and places are right. There are no space maps, which only those
//! need who allocate.

mod tree;

use std::collections::BTreeSet;

use super::super::btree::METADATA_BLOCK_BYTES;
use super::super::btree::build::{put, put64, seal};
use super::super::btree::node::NODE_SALT;
use super::diff::time_of;
use super::error::Tree;
use super::superblock::{
    BLOCK, BLOCK_SECTORS, DETAILS_ROOT, FLAGS, HELD_ROOT, MAGIC, MAGIC_AT, MAPPING_ROOT,
    METADATA_BLOCK_SECTORS, METADATA_BLOCKS, NEEDS_CHECK, SUPERBLOCK_SALT, TIME, TIME_BITS,
    TRANSACTION, VERSION, VERSION_AT,
};
use tree::Nodes;

/// A pool, as its metadata knows it.
#[derive(Clone)]
pub struct PoolBuilder {
    nodes: Nodes,
    top: Top,
    held: Option<(u64, Top)>,
    /// Every block that is written gets a data block of its own.
    next_data: u64,
}

/// What a superblock says.
#[derive(Clone, Copy)]
struct Top {
    block_sectors: u32,
    needs_check: bool,
    time: u32,
    transaction: u64,
    devices: u64,
    details: u64,
}

impl PoolBuilder {
    /// A pool without devices. Nodes hold `most` entries, rounded down to a multiple of 3; the kernel's
    /// hold 252.
    pub fn new(block_sectors: u32, most: usize) -> Self {
        let mut nodes = Nodes::new(most);
        let devices = nodes.empty(Tree::Devices);
        let details = nodes.empty(Tree::Details);
        let top = Top {
            block_sectors,
            needs_check: false,
            time: 0,
            transaction: 1,
            devices,
            details,
        };
        Self {
            nodes,
            top,
            held: None,
            next_data: 0,
        }
    }

    /// The pool's time: how many snapshots were made.
    pub fn time(&self) -> u32 {
        self.top.time
    }

    /// Sets what the kernel sets when it finds damage.
    pub fn set_needs_check(&mut self) {
        self.top.needs_check = true;
    }

    /// A new device without mappings; false if there is one with this id.
    pub fn create(&mut self, id: u64) -> bool {
        if self.details(id).is_some() {
            return false;
        }
        let root = self.nodes.empty(Tree::Mappings);
        self.add(id, root, 0);
        true
    }

    /// A snapshot of a device; false if there is no such device, or one with the new id.
    pub fn snapshot(&mut self, id: u64, origin: u64) -> bool {
        let (Some(root), Some(details)) = (self.root(origin), self.details(origin)) else {
            return false;
        };
        if self.details(id).is_some() {
            return false;
        }
        self.nodes.hold(root);
        self.top.time += 1;
        self.add(id, root, details[0]);
        let times = (details[2] & 0xffff_ffff) | (u64::from(self.top.time) << 32);
        self.set_details(origin, [details[0], details[1], times]);
        true
    }

    fn add(&mut self, id: u64, root: u64, mapped: u64) {
        self.top.transaction += 1;
        let time = u64::from(self.top.time);
        self.top.devices = self.nodes.insert(self.top.devices, id, [root, 0, 0]);
        self.set_details(id, [mapped, self.top.transaction, time | time << 32]);
    }

    /// Removes a device; its id can be used again.
    pub fn remove(&mut self, id: u64) {
        if let Some(root) = self.owned_root(id) {
            self.top.devices = self.nodes.remove(self.top.devices, id);
            self.top.details = self.nodes.remove(self.top.details, id);
            self.nodes.release(root);
            self.top.transaction += 1;
        }
    }

    /// A write to a thin block: nothing is mapped anew where the block is the device's own.
    pub fn write(&mut self, id: u64, block: u64) {
        let Some(details) = self.details(id) else {
            return;
        };
        let shared = |value| u64::from(time_of(value)) < details[2] >> 32;
        if self.mapping(id, block).is_none_or(shared) {
            let data = self.next_data;
            self.next_data += 1;
            self.map(id, block, data, self.top.time);
        }
    }

    /// Writes to blocks that follow each other, none of which is mapped: faster than one by one.
    pub fn write_new(&mut self, id: u64, new: std::ops::Range<u64>) {
        let (Some(mut root), Some(details)) = (self.owned_root(id), self.details(id)) else {
            return;
        };
        self.set_details(
            id,
            [details[0] + (new.end - new.start), details[1], details[2]],
        );
        for block in new {
            let value = self.next_data << TIME_BITS | u64::from(self.top.time);
            self.next_data += 1;
            root = self.nodes.insert(root, block, [value, 0, 0]);
        }
        self.set_root(id, root);
    }

    /// Maps a block to what the caller says.
    pub fn map(&mut self, id: u64, block: u64, data: u64, time: u32) {
        let (Some(root), Some(details)) = (self.owned_root(id), self.details(id)) else {
            return;
        };
        let is_new = self.nodes.find(root, block).is_none();
        let value = data << TIME_BITS | u64::from(time);
        let root = self.nodes.insert(root, block, [value, 0, 0]);
        self.set_root(id, root);
        if is_new {
            self.set_details(id, [details[0] + 1, details[1], details[2]]);
        }
    }

    /// Discards a thin block.
    pub fn discard(&mut self, id: u64, block: u64) {
        if self.mapping(id, block).is_none() {
            return;
        }
        if let (Some(root), Some(details)) = (self.owned_root(id), self.details(id)) {
            let root = self.nodes.remove(root, block);
            self.set_root(id, root);
            self.set_details(id, [details[0] - 1, details[1], details[2]]);
        }
    }

    /// `reserve_metadata_snap`. Returns the block of its superblock.
    pub fn reserve(&mut self) -> u64 {
        self.release();
        self.nodes.hold(self.top.devices);
        self.nodes.hold(self.top.details);
        let block = self.nodes.reserve();
        self.held = Some((block, self.top));
        block
    }

    /// `release_metadata_snap`.
    pub fn release(&mut self) {
        if let Some((block, top)) = self.held.take() {
            self.nodes.release(top.devices);
            self.nodes.release(top.details);
            self.nodes.unreserve(block);
        }
    }

    /// The metadata device, one block longer than it needs to be.
    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0; METADATA_BLOCK_BYTES];
        self.nodes.write(&mut image);
        image.resize(image.len() + METADATA_BLOCK_BYTES, 0);
        let blocks = (image.len() / METADATA_BLOCK_BYTES) as u64;
        let held_root = self.held.as_ref().map_or(0, |held| held.0);
        let live = [(0, self.top, held_root)];
        let held = self.held.iter().map(|(block, top)| (*block, *top, 0));
        for (block, top, held_root) in live.into_iter().chain(held) {
            let bytes = superblock(top, block, held_root, blocks);
            let block = usize::try_from(block).unwrap_or(usize::MAX);
            if let Some(place) = image.chunks_exact_mut(METADATA_BLOCK_BYTES).nth(block) {
                place.copy_from_slice(&bytes);
            }
        }
        image
    }

    /// The blocks of the nodes of a device's mappings.
    pub fn mapping_nodes(&self, id: u64) -> BTreeSet<u64> {
        let root = self.root(id);
        root.map_or_else(BTreeSet::new, |root| self.nodes.below(root))
    }

    fn mapping(&self, id: u64, block: u64) -> Option<u64> {
        self.nodes.find(self.root(id)?, block).map(|value| value[0])
    }

    fn details(&self, id: u64) -> Option<[u64; 3]> {
        self.nodes.find(self.top.details, id)
    }

    fn set_details(&mut self, id: u64, details: [u64; 3]) {
        self.top.details = self.nodes.insert(self.top.details, id, details);
    }

    fn root(&self, id: u64) -> Option<u64> {
        self.nodes.find(self.top.devices, id).map(|value| value[0])
    }

    /// The root of a device's mappings, when the path to it is the pool's own: until then, a metadata
    /// snapshot may hold the root through a node that both share.
    fn owned_root(&mut self, id: u64) -> Option<u64> {
        let root = self.root(id)?;
        self.set_root(id, root);
        self.root(id)
    }

    fn set_root(&mut self, id: u64, root: u64) {
        self.top.devices = self.nodes.insert(self.top.devices, id, [root, 0, 0]);
    }
}

fn superblock(top: Top, block: u64, held_root: u64, blocks: u64) -> [u8; METADATA_BLOCK_BYTES] {
    let mut bytes = [0; METADATA_BLOCK_BYTES];
    put(&mut bytes, FLAGS, u32::from(top.needs_check) * NEEDS_CHECK);
    put64(&mut bytes, BLOCK, block);
    put64(&mut bytes, MAGIC_AT, MAGIC);
    put(&mut bytes, VERSION_AT, VERSION);
    put(&mut bytes, TIME, top.time);
    put64(&mut bytes, TRANSACTION, top.transaction);
    put64(&mut bytes, HELD_ROOT, held_root);
    put64(&mut bytes, MAPPING_ROOT, top.devices);
    put64(&mut bytes, DETAILS_ROOT, top.details);
    put(&mut bytes, BLOCK_SECTORS, top.block_sectors);
    put(&mut bytes, METADATA_BLOCK_SECTORS, 8);
    put64(&mut bytes, METADATA_BLOCKS, blocks);
    seal(&mut bytes, SUPERBLOCK_SALT);
    bytes
}

/// Makes the checksum of every block right: of those with a superblock's magic, and of all others as nodes.
pub fn with_right_checksums(image: &mut [u8]) {
    for block in image.chunks_exact_mut(METADATA_BLOCK_BYTES) {
        let is_superblock = block[MAGIC_AT..MAGIC_AT + 8] == MAGIC.to_le_bytes();
        seal(
            block,
            if is_superblock {
                SUPERBLOCK_SALT
            } else {
                NODE_SALT
            },
        );
    }
}
