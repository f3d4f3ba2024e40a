//! Fuzzing of the metadata of era devices. An input is a sketch of its blocks, as in the one of thin pools.

use std::collections::BTreeSet;

use super::thin::expand_with;
use crate::changes::era::build::with_right_checksums;
use crate::changes::era::{EraMetadata, Root};
use crate::volume::memory::MemoryVolume;

/// A device with more blocks than this would take a fuzzer too long.
const MOST_BLOCKS: u32 = 1 << 20;

/// Metadata of an era device: the first byte says which root is read, the rest is a sketch of its blocks.
///
/// Holds: no panic; runs ascend and do not touch, and end where the device does; what was written since an era holds
/// what was written since a later one; every extent is inside the volume.
pub fn fuzz_era(data: &[u8]) {
    let Some((root, sketch)) = data.split_first() else {
        return;
    };
    let root = if root & 1 == 0 {
        Root::Live
    } else {
        Root::Snapshot
    };
    let image = MemoryVolume::new(expand_with(sketch, with_right_checksums));
    let Ok(metadata) = EraMetadata::open(&image, root) else {
        return;
    };
    let blocks = metadata.superblock().blocks;
    if blocks > MOST_BLOCKS {
        return;
    }
    let current = metadata.superblock().current_era;
    let mut later = BTreeSet::new();
    for since in [current, current / 2, 1] {
        let mut found = BTreeSet::new();
        let mut last = None;
        let read = metadata.written_since(since, |run| {
            assert!(
                !run.is_empty() && last < Some(run.start),
                "ascending, joined"
            );
            assert!(run.end <= blocks.into(), "inside the device");
            last = Some(run.end);
            found.insert(run.start);
            found.insert(run.end - 1);
        });
        if read.is_err() {
            continue;
        }
        let size = u64::from(blocks) * metadata.block_bytes();
        let size = size.saturating_sub(512);
        if let Ok(changes) = metadata.changes(since, size / 2, size) {
            assert!(
                changes.iter().all(|change| change.extent.end() <= size),
                "inside the volume"
            );
            let covers = |block: &u64| {
                let at = block * metadata.block_bytes();
                at >= size || changes.bytes_between(at, at + 1) == 1
            };
            assert!(later.iter().all(covers), "later writes are among them");
        }
        later = found;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::changes::era::build::EraBuilder;

    #[test]
    fn sound_metadata_is_read_to_its_end() {
        let image = device().image();
        for root in [0, 1] {
            fuzz_era(&crate::fuzzing::thin::sketch(root, &image));
        }
    }

    /// A digested era, two that are not, a metadata snapshot, and writes after it.
    pub(crate) fn device() -> EraBuilder {
        let mut device = EraBuilder::new(8, 100, 3);
        for block in [3, 64, 99] {
            device.write(block);
            device.checkpoint();
        }
        device.digest();
        device.take_snapshot();
        device.write(7);
        device
    }
}
