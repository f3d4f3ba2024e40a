//! Reads metadata blocks: one, or a batch of neighbours and near neighbours at once.
//!
//! Guarantees: memory is aligned for direct I/O and bounded; a batch never reads more blocks that nobody
//! asked for than blocks that were asked for; a block that cannot be read is an error only for whoever
//! asks for that one, and the error names it.

use super::METADATA_BLOCK_BYTES;
use super::error::ReadError;
use super::node::Block;
use crate::sys::aligned::AlignedBuffer;
use crate::volume::ReadAt;

type Result<T> = std::result::Result<T, ReadError>;

const BLOCK_BYTES: u64 = METADATA_BLOCK_BYTES as u64;

/// Blocks that are asked for at once. With as many that lie between them they are 512 KiB, which stay in a
/// processor's cache.
pub(in crate::changes) const BATCH: usize = 64;

/// A metadata device, or a copy of one.
#[derive(Clone, Copy)]
pub(in crate::changes) struct Blocks<'a> {
    source: &'a dyn ReadAt,
    /// Whole blocks only.
    pub(in crate::changes) count: u64,
}

impl<'a> Blocks<'a> {
    pub(in crate::changes) fn new(source: &'a dyn ReadAt) -> Self {
        Self {
            source,
            count: source.size_bytes() / BLOCK_BYTES,
        }
    }

    /// Fills `buffer` with the blocks from `first` on.
    pub(in crate::changes) fn read(&self, buffer: &mut [u8], first: u64) -> Result<()> {
        let offset = first.saturating_mul(BLOCK_BYTES);
        self.source
            .read_exact_at(buffer, offset)
            .map_err(|source| ReadError {
                block: first,
                source,
            })
    }
}

/// One block.
pub(in crate::changes) struct OneBlock(AlignedBuffer);

impl Default for OneBlock {
    fn default() -> Self {
        Self(AlignedBuffer::new(METADATA_BLOCK_BYTES))
    }
}

impl OneBlock {
    pub(in crate::changes) fn read(&mut self, blocks: &Blocks<'_>, block: u64) -> Result<&Block> {
        blocks.read(&mut self.0, block)?;
        Ok(self.bytes())
    }

    pub(in crate::changes) fn bytes(&self) -> &Block {
        slot_of(&self.0, 0)
    }
}

/// A buffer is a whole number of blocks, and `slot` is one of them.
fn slot_of(buffer: &[u8], slot: usize) -> &Block {
    const NOTHING: &Block = &[0; METADATA_BLOCK_BYTES];
    buffer.as_chunks().0.get(slot).unwrap_or(NOTHING)
}

/// Blocks that were read together.
#[derive(Default)]
pub(in crate::changes) struct Batch {
    buffer: Option<AlignedBuffer>,
    /// Block and its place in the buffer, ascending.
    held: Vec<(u64, usize)>,
}

impl Batch {
    /// Where `block` is, if it is in the batch.
    pub(in crate::changes) fn slot(&self, block: u64) -> Option<usize> {
        let index = self.held.binary_search_by_key(&block, |held| held.0);
        index.ok().map(|index| self.held[index].1)
    }

    /// The block in a slot.
    pub(in crate::changes) fn bytes(&self, slot: usize) -> &Block {
        slot_of(self.buffer.as_deref().unwrap_or_default(), slot)
    }

    /// Reads `wanted`, at most [`BATCH`] of them, in place of what the batch held. Those that cannot be
    /// read are left out.
    pub(in crate::changes) fn fill(&mut self, blocks: &Blocks<'_>, wanted: &mut Vec<u64>) {
        self.held.clear();
        wanted.sort_unstable();
        wanted.dedup();
        wanted.truncate(BATCH);
        let room = 2 * wanted.len() * METADATA_BLOCK_BYTES;
        let buffer = match self.buffer.take() {
            Some(buffer) if buffer.len() >= room => buffer,
            _ => AlignedBuffer::new(room),
        };
        let buffer = self.buffer.insert(buffer);
        // Blocks that may be read along. As many as are wanted, and so the buffer is large enough.
        let mut spare = wanted.len() as u64;
        let worth = blocks.source.gap_worth_reading() / BLOCK_BYTES;
        let mut slot = 0;
        let mut rest = wanted.as_slice();
        while let Some(first) = rest.first().copied() {
            let mut end = first + 1;
            let mut length = 1;
            while let Some(next) = rest.get(length).copied() {
                let gap = next - end;
                if gap > spare.min(worth) {
                    break;
                }
                spare -= gap;
                end = next + 1;
                length += 1;
            }
            let (run, others) = rest.split_at(length);
            rest = others;
            let slots = usize::try_from(end - first).unwrap_or(usize::MAX);
            let Some(target) = buffer
                .get_mut(slot * METADATA_BLOCK_BYTES..)
                .and_then(|free| free.get_mut(..slots * METADATA_BLOCK_BYTES))
            else {
                return;
            };
            let whole = blocks.read(target, first).is_ok();
            for block in run {
                let place = usize::try_from(block - first).unwrap_or(0);
                let bytes = &mut target[place * METADATA_BLOCK_BYTES..][..METADATA_BLOCK_BYTES];
                if whole || blocks.read(bytes, *block).is_ok() {
                    self.held.push((*block, slot + place));
                }
            }
            slot += slots;
        }
    }
}
