//! Random histories of a pool, held against a plain model of each device.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Create(u64),
    Snapshot(u64, u64),
    Remove(u64),
    Write(u64, u64, u64),
    Discard(u64, u64, u64),
    Reserve,
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0u64..6;
    let block = prop_oneof![4 => 0u64..60, 1 => (u64::MAX - 40)..(u64::MAX - 30)];
    prop_oneof![
        1 => id.clone().prop_map(Step::Create),
        3 => (id.clone(), id.clone()).prop_map(|(new, origin)| Step::Snapshot(new, origin)),
        1 => id.clone().prop_map(Step::Remove),
        6 => (id.clone(), block.clone(), 1u64..30).prop_map(|(id, b, n)| Step::Write(id, b, n)),
        3 => (id, block, 1u64..30).prop_map(|(id, b, n)| Step::Discard(id, b, n)),
        1 => Just(Step::Reserve),
    ]
}

#[derive(Clone, Default)]
struct Device {
    mappings: Mappings,
    created: u32,
    snapshotted: u32,
}

/// The kernel's rules, without trees.
#[derive(Clone, Default)]
struct Model {
    devices: BTreeMap<u64, Device>,
    time: u32,
    next_data: u64,
}

impl Model {
    fn take(&mut self, step: &Step) {
        match *step {
            Step::Create(id) => {
                let created = self.time;
                self.devices.entry(id).or_insert(Device {
                    created,
                    snapshotted: created,
                    ..Device::default()
                });
            }
            Step::Snapshot(id, origin) => {
                if self.devices.contains_key(&id) {
                    return;
                }
                if let Some(origin) = self.devices.get_mut(&origin) {
                    self.time += 1;
                    origin.snapshotted = self.time;
                    let snapshot = Device {
                        created: self.time,
                        ..origin.clone()
                    };
                    self.devices.insert(id, snapshot);
                }
            }
            Step::Remove(id) => drop(self.devices.remove(&id)),
            Step::Write(id, block, count) => {
                let Some(device) = self.devices.get_mut(&id) else {
                    return;
                };
                for block in block..block + count {
                    let mapped = device.mappings.get(&block);
                    if mapped.is_none_or(|value| time_of(*value) < device.snapshotted) {
                        let value = self.next_data << 24 | u64::from(self.time);
                        device.mappings.insert(block, value);
                        self.next_data += 1;
                    }
                }
            }
            Step::Discard(id, block, count) => {
                if let Some(device) = self.devices.get_mut(&id) {
                    for block in block..block + count {
                        device.mappings.remove(&block);
                    }
                }
            }
            Step::Reserve => {}
        }
    }
}

fn build(pool: &mut PoolBuilder, step: &Step) {
    match *step {
        Step::Create(id) => {
            pool.create(id);
        }
        Step::Snapshot(id, origin) => {
            pool.snapshot(id, origin);
        }
        Step::Remove(id) => pool.remove(id),
        Step::Write(id, block, count) => {
            (block..block + count).for_each(|b| pool.write(id, b));
        }
        Step::Discard(id, block, count) => {
            (block..block + count).for_each(|b| pool.discard(id, b));
        }
        Step::Reserve => {
            pool.reserve();
        }
    }
}

fn compare(metadata: &ThinMetadata<'_>, model: &Model) {
    let mut devices = BTreeMap::new();
    metadata
        .devices(|id, details| devices.extend([(id, details)]))
        .unwrap();
    assert!(devices.keys().eq(model.devices.keys()));
    assert_eq!(metadata.superblock().time, model.time);
    for (id, device) in &model.devices {
        let details = metadata.device(*id).unwrap().unwrap();
        assert_eq!(devices[id], details);
        assert_eq!(details.mapped_blocks, device.mappings.len() as u64);
        assert_eq!(details.creation_time, device.created);
        assert_eq!(details.snapshotted_time, device.snapshotted);
        let all: Vec<u64> = device.mappings.keys().copied().collect();
        assert_eq!(blocks_of(metadata, *id).unwrap(), all);
        let end = all.last().map_or(0, |last| last + 1);
        assert_eq!(metadata.end_of_mappings(*id).unwrap(), end);
        let mut from = Vec::new();
        metadata
            .mapped_from(*id, 33, |run| {
                from.extend(run.start..run.start + run.blocks);
            })
            .unwrap();
        assert!(from.iter().eq(all.iter().filter(|block| **block >= 33)));
    }
    for (old_id, old) in &model.devices {
        for (new_id, new) in &model.devices {
            let (found, summary) = differences(metadata, *old_id, *new_id).unwrap();
            assert_eq!(found, model_of(&old.mappings, &new.mappings));
            let count = |now| found.values().filter(|found| **found == now).count() as u64;
            let written = |of: &Device| {
                let later = |value: &u64| time_of(*value) >= of.created;
                of.mappings.values().any(later)
            };
            assert_eq!(metadata.was_written(*new_id).unwrap(), written(new));
            assert_eq!(
                summary,
                DiffSummary {
                    mapped_blocks: count(Now::Mapped),
                    unmapped_blocks: count(Now::Unmapped),
                    old_was_written: written(old),
                    new_was_written: written(new),
                }
            );
        }
    }
    for missing in (0..8).filter(|id| !model.devices.contains_key(id)) {
        assert_eq!(metadata.device(missing).unwrap(), None);
        let error = metadata.mapped(missing, |_| ()).unwrap_err();
        assert!(matches!(error, ThinError::NoSuchDevice { device } if device == missing));
    }
}

proptest! {
    #[test]
    fn devices_and_differences_are_those_of_the_model(
        steps in prop::collection::vec(step(), 0..60),
        most in prop_oneof![3usize..9, Just(252)],
        block_sectors in prop_oneof![Just(128u32), Just(384), Just(2 << 20)],
    ) {
        let mut pool = PoolBuilder::new(block_sectors, most);
        let mut model = Model::default();
        let mut held = None;
        for step in [Step::Create(0), Step::Write(0, 0, 40)].iter().chain(&steps) {
            build(&mut pool, step);
            model.take(step);
            if matches!(step, Step::Reserve) {
                held = Some(model.clone());
            }
        }
        let image = MemoryVolume::new(pool.image());
        let live = ThinMetadata::open(&image, Root::Live).unwrap();
        prop_assert_eq!(live.block_bytes(), u64::from(block_sectors) * 512);
        compare(&live, &model);
        match held {
            Some(held) => {
                let snapshot = ThinMetadata::open(&image, Root::Snapshot).unwrap();
                prop_assert_eq!(snapshot.root_block(), live.superblock().held_root);
                compare(&snapshot, &held);
                snapshot.check_unchanged().unwrap();
            }
            None => prop_assert!(matches!(
                ThinMetadata::open(&image, Root::Snapshot),
                Err(ThinError::NoSnapshot)
            )),
        }
    }
}

/// The kernel never does this; thin_restore does whatever it is told.
#[test]
fn one_data_block_has_one_content_whatever_its_times() {
    let mut pool = PoolBuilder::new(128, 252);
    for (id, time) in [(1, 0), (2, 1)] {
        pool.create(id);
        pool.map(id, 5, 77, time);
        pool.map(id, 6, 78, 0);
    }
    let image = MemoryVolume::new(pool.image());
    let metadata = ThinMetadata::open(&image, Root::Live).unwrap();
    let (found, _) = differences(&metadata, 1, 2).unwrap();
    assert_eq!(found, BTreeMap::new());
}

#[test]
fn a_snapshot_that_was_written_to_shows_even_where_it_handed_its_blocks_on() {
    let mut pool = PoolBuilder::new(128, 4);
    pool.create(1);
    (0..40).for_each(|block| pool.write(1, block));
    pool.snapshot(2, 1);
    pool.snapshot(3, 1);
    let was_written = |pool: &PoolBuilder, old, new| {
        let image = MemoryVolume::new(pool.image());
        let metadata = ThinMetadata::open(&image, Root::Live).unwrap();
        metadata.diff(old, new, |_| ()).unwrap().old_was_written
    };
    assert!(!was_written(&pool, 2, 3));
    pool.write(2, 7);
    assert!(was_written(&pool, 2, 3));
    assert!(!was_written(&pool, 3, 2), "3 is as it was");
    pool.snapshot(4, 2);
    assert!(was_written(&pool, 2, 4), "4 shares what was written to 2");
    assert!(!was_written(&pool, 4, 2));
}

#[test]
fn a_snapshot_that_is_no_longer_the_pools_is_found_out() {
    let mut pool = small_pool();
    let block = pool.reserve();
    let bytes = pool.image();
    let image = MemoryVolume::new(bytes.clone());
    let metadata = ThinMetadata::open(&image, Root::Held(block)).unwrap();
    metadata.check_unchanged().unwrap();
    pool.release();
    // Only the live superblock changes: the old one is still where it was, and sound.
    let mut released = bytes;
    released[..4096].copy_from_slice(&pool.image()[..4096]);
    use crate::volume::WriteAt;
    image.write_all_at(&released, 0).unwrap();
    let error = metadata.check_unchanged().unwrap_err();
    assert!(
        matches!(error, ThinError::Changed { found: 0, .. }),
        "{error}"
    );
    assert!(matches!(
        ThinMetadata::open(&image, Root::Held(0)),
        Err(ThinError::NoSnapshot)
    ));
}
