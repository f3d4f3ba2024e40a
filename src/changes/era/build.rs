//! Writes the metadata of an era device as the kernel would have: for tests, fuzzers and benchmarks.
//!
//! Guarantees: eras, writesets and the era array are what the same steps leave in the kernel; checksums and places
//! are right. Blocks are not shared between the device and its metadata snapshot, and there are no space maps, which
//! only those need who allocate.

use std::collections::{BTreeMap, BTreeSet};

use super::super::btree::METADATA_BLOCK_BYTES;
use super::super::btree::build::{append, put, put64, seal, write_tree};
use super::super::btree::node::{INTERNAL, LEAF, NODE_SALT};
use super::array::{
    ARRAY_SALT, BLOCK as ARRAY_BLOCK, ENTRIES, HEADER_BYTES, MAX_ENTRIES, VALUE_BYTES,
};
use super::superblock::{
    ARRAY_ROOT, BLOCK, BLOCK_SECTORS, BLOCKS, CURRENT_BITS, CURRENT_ERA, CURRENT_ROOT, MAGIC,
    MAGIC_AT, METADATA_BLOCK_SECTORS, SNAPSHOT, SUPERBLOCK_SALT, VERSION, VERSION_AT,
    WRITESETS_ROOT,
};

/// An era device, as its metadata knows it.
#[derive(Clone)]
pub struct EraBuilder {
    now: State,
    snapshot: Option<State>,
    /// Entries of a node.
    most: usize,
}

#[derive(Clone)]
struct State {
    block_sectors: u32,
    era: u32,
    /// `None` while the device is not active.
    current: Option<Bits>,
    writesets: BTreeMap<u32, Bits>,
    /// For each block, the last era in which it was written, as far as writesets were digested.
    array: Vec<u32>,
}

#[derive(Clone, Default)]
struct Bits {
    blocks: u32,
    written: BTreeSet<u32>,
}

impl EraBuilder {
    /// A new device in its first era. Nodes hold `most` entries.
    pub fn new(block_sectors: u32, blocks: u32, most: usize) -> Self {
        let mut builder = Self {
            now: State {
                block_sectors,
                era: 0,
                current: None,
                writesets: BTreeMap::new(),
                array: Vec::new(),
            },
            snapshot: None,
            most,
        };
        builder.resize(blocks);
        builder
    }

    /// The current era.
    pub fn era(&self) -> u32 {
        self.now.era
    }

    /// Blocks of the device.
    pub fn blocks(&self) -> u32 {
        u32::try_from(self.now.array.len()).unwrap_or(u32::MAX)
    }

    /// A write, or a discard, to a block that the device has.
    pub fn write(&mut self, block: u32) {
        if let Some(current) = &mut self.now.current
            && block < current.blocks
        {
            current.written.insert(block);
        }
    }

    /// `checkpoint`, or an activation after [`Self::suspend`] or a crash: the next era.
    pub fn checkpoint(&mut self) {
        self.suspend();
        self.now.era += 1;
        self.now.current = Some(Bits {
            blocks: self.blocks(),
            ..Bits::default()
        });
    }

    /// The device is suspended or taken down: its current writeset is archived.
    pub fn suspend(&mut self) {
        let era = self.now.era;
        if let Some(current) = self.now.current.take() {
            self.now.writesets.insert(era, current);
        }
    }

    /// A reload with another size.
    pub fn resize(&mut self, blocks: u32) {
        self.suspend();
        let length = usize::try_from(blocks).unwrap_or(usize::MAX);
        self.now.array.resize(length, 0);
        self.checkpoint();
    }

    /// Digests the oldest writeset, which the kernel does when it has nothing else to do.
    pub fn digest(&mut self) {
        if let Some((era, bits)) = self.now.writesets.pop_first() {
            for block in bits.written {
                let place = usize::try_from(block).ok();
                if let Some(last) = place.and_then(|place| self.now.array.get_mut(place)) {
                    *last = era;
                }
            }
        }
    }

    /// `take_metadata_snap`.
    pub fn take_snapshot(&mut self) {
        self.checkpoint();
        self.snapshot = Some(self.now.clone());
    }

    /// `drop_metadata_snap`.
    pub fn drop_snapshot(&mut self) {
        self.snapshot = None;
    }

    /// The metadata device, one block longer than it needs to be.
    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0; METADATA_BLOCK_BYTES];
        let snapshot = self.snapshot.as_ref().map_or(0, |state| {
            let block = append(&mut image, &[0; METADATA_BLOCK_BYTES]);
            self.write_state(&mut image, state, block, 0);
            block
        });
        self.write_state(&mut image, &self.now, 0, snapshot);
        append(&mut image, &[0; METADATA_BLOCK_BYTES]);
        image
    }

    /// Appends all of a state, and puts its superblock into `block`.
    fn write_state(&self, image: &mut Vec<u8>, state: &State, block: u64, snapshot: u64) {
        let mut superblock = [0; METADATA_BLOCK_BYTES];
        let bytes = &mut superblock;
        put64(bytes, BLOCK, block);
        put64(bytes, MAGIC_AT, MAGIC);
        put(bytes, VERSION_AT, VERSION);
        put(bytes, BLOCK_SECTORS, state.block_sectors);
        put(bytes, METADATA_BLOCK_SECTORS, 8);
        put(
            bytes,
            BLOCKS,
            u32::try_from(state.array.len()).unwrap_or(u32::MAX),
        );
        put(bytes, CURRENT_ERA, state.era);
        if let Some(current) = &state.current {
            put(bytes, CURRENT_BITS, current.blocks);
            put64(bytes, CURRENT_ROOT, self.write_bits(image, current));
        }
        let mut writesets = Vec::new();
        for (era, bits) in &state.writesets {
            let mut value = bits.blocks.to_le_bytes().to_vec();
            value.extend(self.write_bits(image, bits).to_le_bytes());
            writesets.push((u64::from(*era), value));
        }
        put64(
            bytes,
            WRITESETS_ROOT,
            write_tree(image, &writesets, 12, self.most),
        );
        let array: Vec<u8> = state
            .array
            .iter()
            .flat_map(|era| era.to_le_bytes())
            .collect();
        put64(bytes, ARRAY_ROOT, self.write_array(image, &array, 4));
        put64(bytes, SNAPSHOT, snapshot);
        seal(bytes, SUPERBLOCK_SALT);
        let place = usize::try_from(block).unwrap_or(usize::MAX);
        if let Some(place) = image.chunks_exact_mut(METADATA_BLOCK_BYTES).nth(place) {
            place.copy_from_slice(&superblock);
        }
    }

    fn write_bits(&self, image: &mut Vec<u8>, bits: &Bits) -> u64 {
        let words = usize::try_from(bits.blocks.div_ceil(64)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; words * 8];
        for block in &bits.written {
            // Little-endian words of bits are bytes of bits.
            let place = usize::try_from(block / 8).unwrap_or(usize::MAX);
            if let Some(byte) = bytes.get_mut(place) {
                *byte |= 1 << (block % 8);
            }
        }
        self.write_array(image, &bytes, 8)
    }

    fn write_array(&self, image: &mut Vec<u8>, values: &[u8], value_bytes: usize) -> u64 {
        let small = |number| u32::try_from(number).unwrap_or(u32::MAX);
        let room = (METADATA_BLOCK_BYTES - HEADER_BYTES) / value_bytes;
        let mut index = Vec::new();
        for (key, part) in (0..).zip(values.chunks(room * value_bytes)) {
            let mut bytes = [0; METADATA_BLOCK_BYTES];
            put(&mut bytes, MAX_ENTRIES, small(room));
            put(&mut bytes, ENTRIES, small(part.len() / value_bytes));
            put(&mut bytes, VALUE_BYTES, small(value_bytes));
            put64(
                &mut bytes,
                ARRAY_BLOCK,
                (image.len() / METADATA_BLOCK_BYTES) as u64,
            );
            bytes[HEADER_BYTES..][..part.len()].copy_from_slice(part);
            seal(&mut bytes, ARRAY_SALT);
            index.push((key, append(image, &bytes).to_le_bytes().to_vec()));
        }
        write_tree(image, &index, 8, self.most)
    }
}

/// Makes the checksum of every block right: of those with a superblock's magic, of what says that it is a node, and
/// of all others as blocks of arrays.
pub fn with_right_checksums(image: &mut [u8]) {
    for block in image.chunks_exact_mut(METADATA_BLOCK_BYTES) {
        let is_superblock = block[MAGIC_AT..MAGIC_AT + 8] == MAGIC.to_le_bytes();
        let is_node = [INTERNAL, LEAF]
            .map(u32::to_le_bytes)
            .iter()
            .any(|kind| block[4..8] == *kind);
        let salt = match (is_superblock, is_node) {
            (true, _) => SUPERBLOCK_SALT,
            (_, true) => NODE_SALT,
            _ => ARRAY_SALT,
        };
        seal(block, salt);
    }
}
