//! Change lists held against a model that looks at every sector.

use std::ops::ControlFlow;

use proptest::prelude::*;

use super::*;
use crate::change_list::ChangeList;
use crate::extent::{Extent, Kind};

const SECTOR: u64 = 512;

fn sectors_of(list: &ChangeList, size_bytes: u64) -> Vec<Option<Kind>> {
    let mut sectors = vec![None; size_bytes.div_ceil(SECTOR) as usize];
    for change in list.iter() {
        let extent = change.extent;
        assert!(extent.end() <= size_bytes);
        assert!(extent.offset().is_multiple_of(SECTOR));
        let range = (extent.offset() / SECTOR) as usize..extent.end().div_ceil(SECTOR) as usize;
        sectors[range].fill(Some(change.kind));
    }
    sectors
}

fn model(
    block_bytes: u64,
    old: Option<(&Mappings, ThinVolume)>,
    (new, volume): (&Mappings, ThinVolume),
) -> Vec<Option<Kind>> {
    let sectors = (0..volume.size_bytes.div_ceil(SECTOR)).map(|sector| {
        let block = sector * SECTOR / block_bytes;
        let same = old.is_some_and(|(old, old_volume)| {
            old.get(&block) == new.get(&block)
                && sector * SECTOR < old_volume.size_bytes
                && old_volume.external_origin == volume.external_origin
        });
        let kind = if new.contains_key(&block) || volume.external_origin {
            Kind::Data
        } else {
            Kind::Zero
        };
        (!same).then_some(kind)
    });
    sectors.collect()
}

proptest! {
    #[test]
    fn every_byte_that_may_differ_is_listed_and_no_other(
        common in prop::collection::btree_set(0u64..16, 0..12),
        steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0u64..16), 0..12),
        sizes in [0u64..3000, 0u64..3000],
        external in any::<[bool; 2]>(),
        block_sectors in prop_oneof![Just(128u32), Just(384)],
    ) {
        let mut pool = PoolBuilder::new(block_sectors, 4);
        let mut maps = [Mappings::new(), Mappings::new()];
        pool.create(0);
        for block in &common {
            pool.write(0, *block);
        }
        pool.snapshot(1, 0);
        for (to_new, write, block) in steps {
            let id = u64::from(to_new);
            if write {
                pool.write(id, block);
            } else {
                pool.discard(id, block);
            }
        }
        let image = MemoryVolume::new(pool.image());
        let metadata = ThinMetadata::open(&image, Root::Live).unwrap();
        let root = metadata.superblock().mapping_root;
        for (id, map) in maps.iter_mut().enumerate() {
            let tree = look_up(&metadata.blocks, Tree::Devices, root, id as u64).unwrap().unwrap();
            metadata.mappings(tree[0], 0, |key, value| {
                map.insert(key, value);
                ControlFlow::Continue(())
            }).unwrap();
        }
        let volume = |id: usize| ThinVolume {
            device: id as u64,
            size_bytes: sizes[id] * SECTOR,
            external_origin: external[id],
        };
        let [old, new] = [0, 1].map(volume);
        let found = metadata.changes(old, new).unwrap();
        let block_bytes = metadata.block_bytes();
        prop_assert_eq!(
            sectors_of(&found.changes, new.size_bytes),
            model(block_bytes, Some((&maps[0], old)), (&maps[1], new))
        );
        let all = metadata.mapped_changes(new).unwrap();
        prop_assert_eq!(
            sectors_of(&all, new.size_bytes),
            model(block_bytes, None, (&maps[1], new))
        );
        prop_assert_eq!(all.total_bytes(), new.size_bytes);
    }
}

#[test]
fn what_no_volume_can_hold_is_left_out_and_sizes_are_checked() {
    let mut pool = PoolBuilder::new(2 << 20, 252);
    pool.create(1);
    pool.snapshot(2, 1);
    for block in [0, 1 << 33, 1 << 34, u64::MAX - 1, u64::MAX] {
        pool.write(2, block);
    }
    let image = MemoryVolume::new(pool.image());
    let metadata = ThinMetadata::open(&image, Root::Live).unwrap();
    let volume = |device, size_bytes| ThinVolume {
        device,
        size_bytes,
        external_origin: false,
    };
    let largest = crate::extent::MAX_OFFSET;
    let found = metadata.changes(volume(1, largest), volume(2, largest));
    let first = Extent::new(0, 1 << 30).unwrap();
    let changes: Vec<_> = found.unwrap().changes.iter().collect();
    assert_eq!(changes.len(), 1, "the next would begin at 2^63");
    assert_eq!(changes[0].extent, first);
    let all = metadata.mapped_changes(volume(2, largest)).unwrap();
    assert_eq!(all.bytes(Kind::Data), 1 << 30);
    for error in [
        metadata
            .changes(volume(1, largest + 1), volume(2, 0))
            .unwrap_err(),
        metadata
            .changes(volume(1, 0), volume(2, u64::MAX))
            .unwrap_err(),
    ] {
        assert!(matches!(error, ThinError::VolumeSize { .. }), "{error}");
    }
    // The last two blocks of all are one run.
    let mut runs = Vec::new();
    metadata
        .mapped_from(2, 1 << 35, |run| runs.push(run))
        .unwrap();
    assert_eq!(
        runs,
        [Run {
            start: u64::MAX - 1,
            blocks: 2
        }]
    );
}
