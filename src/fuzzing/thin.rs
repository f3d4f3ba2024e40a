//! Fuzzing of the metadata of thin pools.
//!
//! A metadata block is 4096 bytes, most of them unused in a small pool, and has a checksum that a fuzzer cannot guess. So
//! an input holds the first 512 bytes of each block, and checksums are put right, which is what a hostile writer would do.

use std::collections::BTreeMap;

use crate::change_list::ChangeList;
use crate::changes::thin::build::with_right_checksums;
use crate::changes::thin::{METADATA_BLOCK_BYTES, Now, Root, ThinError, ThinMetadata, ThinVolume};
use crate::extent::Kind;
use crate::volume::memory::MemoryVolume;

/// Bytes of the input for each block.
const BLOCK_INPUT: usize = 512;
/// No more blocks than this are looked at.
const MOST_BLOCKS: usize = 256;
/// Of so many devices all pairs are compared.
const MOST_DEVICES: usize = 4;

/// Metadata of a pool: the first byte says which root is read, the rest is a sketch of its blocks.
///
/// Holds: no panic; runs ascend and do not touch; what differs between two devices is what a comparison of all that they
/// map says, as far as it can tell without data blocks; nothing differs between a device and itself; every extent is
/// inside the volume, and a full copy is all of it.
pub fn fuzz_thin(data: &[u8]) {
    let Some((root, sketch)) = data.split_first() else {
        return;
    };
    let root = if root & 1 == 0 {
        Root::Live
    } else {
        Root::Snapshot
    };
    let image = MemoryVolume::new(expand(sketch));
    if let Ok(metadata) = ThinMetadata::open(&image, root) {
        let _ = look(&metadata);
    }
}

/// Whole blocks with right checksums.
pub(super) fn expand(sketch: &[u8]) -> Vec<u8> {
    expand_with(sketch, with_right_checksums)
}

/// Whole blocks, and what puts their checksums right.
pub(super) fn expand_with(sketch: &[u8], seal: fn(&mut [u8])) -> Vec<u8> {
    let mut image = Vec::new();
    for part in sketch.chunks(BLOCK_INPUT).take(MOST_BLOCKS) {
        image.extend_from_slice(part);
        image.resize(image.len().next_multiple_of(METADATA_BLOCK_BYTES), 0);
    }
    seal(&mut image);
    image
}

fn look(metadata: &ThinMetadata<'_>) -> Result<(), ThinError> {
    let mut ids = Vec::new();
    metadata.devices(|id, _| {
        if ids.len() < MOST_DEVICES {
            ids.push(id);
        }
    })?;
    let mut devices = BTreeMap::new();
    for id in ids {
        if let Ok(runs) = runs_of(metadata, id) {
            devices.insert(id, runs);
        }
    }
    for (old, old_runs) in &devices {
        for (new, new_runs) in &devices {
            compare(metadata, (*old, old_runs), (*new, new_runs));
        }
    }
    Ok(())
}

/// Start and length in blocks.
type Runs = Vec<(u64, u64)>;

fn runs_of(metadata: &ThinMetadata<'_>, id: u64) -> Result<Runs, ThinError> {
    let mut runs = Runs::new();
    metadata.mapped(id, |run| {
        if let Some((start, blocks)) = runs.last() {
            assert!(start + blocks < run.start, "sorted, disjoint, joined");
        }
        runs.push((run.start, run.blocks));
    })?;
    Ok(runs)
}

fn compare(
    metadata: &ThinMetadata<'_>,
    (old, old_runs): (u64, &Runs),
    (new, new_runs): (u64, &Runs),
) {
    // What is shared was read for the runs, so there is nothing that could be refused now.
    let mut mapped = Runs::new();
    let mut unmapped = Runs::new();
    let summary = metadata.diff(old, new, |found| {
        let kind = match found.now {
            Now::Mapped => &mut mapped,
            Now::Unmapped => &mut unmapped,
        };
        kind.push((found.run.start, found.run.blocks));
    });
    assert!(summary.is_ok(), "both were read: {summary:?}");
    if old == new {
        assert!(mapped.is_empty() && unmapped.is_empty());
    }
    let only_old = without(old_runs, new_runs);
    assert_eq!(unmapped, only_old, "what is in the old one alone");
    assert!(
        without(&mapped, new_runs).is_empty(),
        "it is in the new one"
    );
    let only_new = without(new_runs, old_runs);
    assert!(
        without(&only_new, &mapped).is_empty(),
        "what is in the new one alone"
    );

    let [size_old, size_new] = [3, 5].map(|blocks| metadata.block_bytes() * blocks + 512 * blocks);
    for external_origin in [false, true] {
        let volume = |device, size_bytes| ThinVolume {
            device,
            size_bytes,
            external_origin,
        };
        let changes = metadata.changes(volume(old, size_old), volume(new, size_new));
        let whole = metadata.mapped_changes(volume(new, size_new));
        let (Ok(changes), Ok(whole)) = (changes, whole) else {
            continue;
        };
        assert_eq!(whole.total_bytes(), size_new);
        check(&changes.changes, size_new, external_origin);
        check(&whole, size_new, external_origin);
        assert!(changes.changes.bytes_between(size_old, size_new) == size_new - size_old);
    }
}

fn check(list: &ChangeList, size_bytes: u64, all_data: bool) {
    let mut last = None;
    for change in list.iter() {
        assert!(change.extent.end() <= size_bytes, "inside the volume");
        assert!(last <= Some(change.extent.offset()), "sorted, disjoint");
        assert!(
            !all_data || change.kind == Kind::Data,
            "read from the origin"
        );
        last = Some(change.extent.end());
    }
}

/// What is in `runs` and not in `others`.
fn without(runs: &Runs, others: &Runs) -> Runs {
    let mut left = Runs::new();
    let mut others = others.iter().copied().peekable();
    for (start, blocks) in runs {
        // The last block of a run: the one after it may be no number.
        let (mut at, last) = (Some(*start), start + (blocks - 1));
        while let Some(start) = at {
            while others
                .next_if(|(other, blocks)| other + (blocks - 1) < start)
                .is_some()
            {}
            match others.peek() {
                Some((other, blocks)) if *other <= last => {
                    if *other > start {
                        left.push((start, other - start));
                    }
                    let next = (other + (blocks - 1)).checked_add(1);
                    at = next.filter(|next| *next <= last);
                }
                _ => {
                    left.push((start, last - start + 1));
                    at = None;
                }
            }
        }
    }
    left
}

#[cfg(test)]
pub(super) fn sketch(root: u8, image: &[u8]) -> Vec<u8> {
    let blocks = image.chunks(METADATA_BLOCK_BYTES);
    let sketched = blocks.flat_map(|block| &block[..BLOCK_INPUT]);
    std::iter::once(&root).chain(sketched).copied().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::changes::thin::build::PoolBuilder;

    #[test]
    fn a_sketch_is_the_whole_image() {
        let image = pool().image();
        assert_eq!(
            expand(&sketch(0, &image)[1..])[..image.len() - 4096],
            image[..image.len() - 4096]
        );
        assert_eq!(
            without(
                &vec![(1, 9), (20, u64::MAX - 19)],
                &vec![(0, 2), (4, 1), (9, 12)]
            ),
            [(2, 2), (5, 4), (21, u64::MAX - 20)]
        );
    }

    /// Two snapshots with a common past, a metadata snapshot that is older than what is live, three levels.
    pub(crate) fn pool() -> PoolBuilder {
        let mut pool = PoolBuilder::new(128, 6);
        pool.create(1);
        (0..24).for_each(|block| pool.write(1, block * 2));
        pool.snapshot(2, 1);
        pool.write(1, 4);
        pool.discard(1, 40);
        pool.snapshot(3, 1);
        pool.reserve();
        (40..44).for_each(|block| pool.write(1, block));
        pool
    }
}
