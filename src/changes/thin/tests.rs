//! Tests of the reader, through metadata that is built as the kernel builds it.

mod bytes;
mod damage;
mod histories;
mod reads;

use std::collections::BTreeMap;

use super::build::PoolBuilder;
use super::*;
use crate::volume::memory::MemoryVolume;

/// What a device maps: thin block to data block and time.
type Mappings = BTreeMap<u64, u64>;

/// The model: every block by itself.
fn blocks_of(metadata: &ThinMetadata<'_>, id: u64) -> Result<Vec<u64>> {
    let mut blocks = Vec::new();
    metadata.mapped(id, |run| blocks.extend(run.start..run.start + run.blocks))?;
    Ok(blocks)
}

/// What differs: block by block, and that runs are as long as they can be.
fn differences(
    metadata: &ThinMetadata<'_>,
    old: u64,
    new: u64,
) -> Result<(BTreeMap<u64, Now>, DiffSummary)> {
    let mut blocks = BTreeMap::new();
    let mut last: Option<Difference> = None;
    let summary = metadata.diff(old, new, |difference| {
        assert!(difference.run.blocks > 0);
        if let Some(last) = last {
            let end = last.run.start + last.run.blocks;
            assert!(
                end < difference.run.start
                    || (end == difference.run.start && last.now != difference.now),
                "{last:?} {difference:?}"
            );
        }
        last = Some(difference);
        let run = difference.run;
        blocks.extend((run.start..run.start + run.blocks).map(|block| (block, difference.now)));
    })?;
    Ok((blocks, summary))
}

/// The model of a difference.
fn model_of(old: &Mappings, new: &Mappings) -> BTreeMap<u64, Now> {
    let gone = old.keys().filter(|block| !new.contains_key(block));
    let changed = new
        .iter()
        .filter(|(block, value)| old.get(block) != Some(value));
    gone.map(|block| (*block, Now::Unmapped))
        .chain(changed.map(|(block, _)| (*block, Now::Mapped)))
        .collect()
}

/// Two devices with a common past, each changed since, in trees of three levels.
fn small_pool() -> PoolBuilder {
    let mut pool = PoolBuilder::new(128, 6);
    pool.create(1);
    for block in 0..40 {
        pool.write(1, block * 3);
    }
    pool.snapshot(2, 1);
    pool.write(1, 30);
    pool.write(1, 100);
    pool.snapshot(7, 1);
    pool.discard(1, 3);
    pool
}
