//! Tests of the reader, through metadata that is built as the kernel builds it.

mod damage;
mod histories;

use std::collections::BTreeSet;

use super::build::EraBuilder;
use super::*;
use crate::volume::memory::MemoryVolume;

/// Every block by itself; and that runs ascend and do not touch.
fn written(metadata: &EraMetadata<'_>, since: u32) -> Result<BTreeSet<u64>> {
    written_in(metadata, since, 1 << 27)
}

fn written_in(metadata: &EraMetadata<'_>, since: u32, window: u64) -> Result<BTreeSet<u64>> {
    let mut blocks = BTreeSet::new();
    let mut last = None;
    metadata.written_in_windows(since, window, |run| {
        assert!(
            !run.is_empty() && last < Some(run.start),
            "{last:?} {run:?}"
        );
        last = Some(run.end);
        blocks.extend(run);
    })?;
    Ok(blocks)
}

fn ask(image: Vec<u8>, root: Root, since: u32) -> Result<BTreeSet<u64>> {
    let image = MemoryVolume::new(image);
    let metadata = EraMetadata::open(&image, root)?;
    let found = written(&metadata, since)?;
    metadata.check_unchanged()?;
    Ok(found)
}

/// Two digested eras, two that are not, and the current one.
fn small_device() -> EraBuilder {
    let mut device = EraBuilder::new(128, 200, 4);
    for blocks in [[0, 1], [1, 64], [7, 199], [63, 130]] {
        blocks.iter().for_each(|block| device.write(*block));
        device.checkpoint();
    }
    device.digest();
    device.digest();
    device.write(100);
    device
}
