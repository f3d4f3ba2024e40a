//! Histories of writes, checkpoints, digests and reloads, against a model; and the answers that are edges.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::error::ExitCode;
use crate::extent::Kind;

#[derive(Clone, Debug)]
enum Step {
    Write(u32),
    Checkpoint,
    Reload,
    Digest,
    Resize(u32),
    TakeSnapshot,
    DropSnapshot,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => any::<u32>().prop_map(Step::Write),
        3 => Just(Step::Checkpoint),
        1 => Just(Step::Reload),
        2 => Just(Step::Digest),
        1 => (1_u32..2200).prop_map(Step::Resize),
        1 => Just(Step::TakeSnapshot),
        1 => Just(Step::DropSnapshot),
    ]
}

/// Block to the last era in which it was written.
type Model = BTreeMap<u64, u32>;

fn model_since(model: &Model, since: u32, blocks: u32) -> BTreeSet<u64> {
    let late = model.iter().filter(|(_, era)| **era >= since);
    late.map(|(block, _)| *block)
        .filter(|block| *block < blocks.into())
        .collect()
}

proptest! {
    #[test]
    fn what_was_written_since_each_era_is_that_of_the_model(
        blocks in 1_u32..2200,
        most in 2_usize..8,
        steps in proptest::collection::vec(step(), 0..80),
        window in 1_u64..20,
    ) {
        let mut device = EraBuilder::new(8, blocks, most);
        let mut model = Model::new();
        let mut snapshot = None;
        let mut resized = false;
        for step in steps {
            match step {
                Step::Write(block) => {
                    let block = block % device.blocks();
                    device.write(block);
                    model.insert(block.into(), device.era());
                }
                Step::Checkpoint => device.checkpoint(),
                Step::Reload => { device.suspend(); device.checkpoint() }
                Step::Digest => device.digest(),
                Step::Resize(blocks) => {
                    resized |= blocks != device.blocks();
                    // What is cut off is gone, and what is added later is new.
                    model.retain(|block, _| *block < blocks.into());
                    device.resize(blocks);
                }
                Step::TakeSnapshot => {
                    device.take_snapshot();
                    snapshot = Some((model.clone(), device.era(), device.blocks()));
                }
                Step::DropSnapshot => {
                    device.drop_snapshot();
                    snapshot = None;
                }
            }
        }
        let image = MemoryVolume::new(device.image());
        let live = (model, device.era(), device.blocks());
        let states = [(Root::Live, Some(live)), (Root::Snapshot, snapshot)];
        for (root, state) in states {
            let Some((model, era, blocks)) = state else { continue };
            let metadata = EraMetadata::open(&image, root).unwrap();
            for since in 1..=era {
                let found = written_in(&metadata, since, window * 64).unwrap();
                let expected = model_since(&model, since, blocks);
                if resized {
                    // What was added may be there as well.
                    prop_assert!(expected.is_subset(&found));
                } else {
                    prop_assert_eq!(&found, &expected);
                }
            }
            metadata.check_unchanged().unwrap();
        }
    }
}

#[test]
fn each_era_adds_what_was_written_in_it() {
    let image = small_device().image();
    let all = [0, 1, 7, 63, 64, 100, 130, 199];
    let since = |era| ask(image.clone(), Root::Live, era).unwrap();
    assert_eq!(since(1), all.into());
    assert_eq!(since(2), all[1..].iter().copied().collect());
    assert_eq!(since(3), [7, 63, 100, 130, 199].into());
    assert_eq!(since(4), [63, 100, 130].into());
    assert_eq!(since(5), [100].into());
}

#[test]
fn a_snapshot_has_what_was_written_before_it_and_nothing_later() {
    let mut device = small_device();
    device.take_snapshot();
    device.write(33);
    let image = device.image();
    assert_eq!(ask(image.clone(), Root::Snapshot, 5).unwrap(), [100].into());
    assert_eq!(ask(image.clone(), Root::Snapshot, 6).unwrap(), [].into());
    assert_eq!(ask(image.clone(), Root::Live, 6).unwrap(), [33].into());
    let error = ask(image, Root::Snapshot, 7).unwrap_err();
    assert!(matches!(
        error,
        EraError::NotBegun {
            since: 7,
            current: 6
        }
    ));
    let error = ask(small_device().image(), Root::Snapshot, 1).unwrap_err();
    assert!(matches!(error, EraError::NoSnapshot), "{error}");
}

#[test]
fn a_device_that_is_not_active_has_all_its_writesets_in_the_tree() {
    let mut device = small_device();
    device.suspend();
    assert_eq!(ask(device.image(), Root::Live, 5).unwrap(), [100].into());
}

#[test]
fn what_a_device_has_more_than_before_counts_as_written() {
    let mut device = small_device();
    device.resize(333);
    device.write(210);
    let found = ask(device.image(), Root::Live, 5).unwrap();
    assert_eq!(found, [100].into_iter().chain(200..333).collect());
    assert_eq!(ask(device.image(), Root::Live, 6).unwrap(), [210].into());
}

#[test]
fn the_first_era_is_1_and_none_is_to_come() {
    let image = small_device().image();
    let error = ask(image.clone(), Root::Live, 0).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
    let error = ask(image, Root::Live, 6).unwrap_err();
    assert!(matches!(
        error,
        EraError::NotBegun {
            since: 6,
            current: 5
        }
    ));
    assert_eq!(error.exit_code(), ExitCode::TrackingLost);
}

#[test]
fn extents_are_those_of_the_volume() {
    let image = MemoryVolume::new(small_device().image());
    let metadata = EraMetadata::open(&image, Root::Live).unwrap();
    let block = 64 << 10;
    let list = |base, size| {
        let changes = metadata.changes(3, base, size).unwrap();
        let extents = changes.iter().map(|change| {
            assert_eq!(change.kind, Kind::Data);
            (change.extent.offset(), change.extent.end())
        });
        extents.collect::<Vec<_>>()
    };
    let size = 200 * block - 512;
    let blocks = [7, 63, 100, 130].map(|at| (at * block, (at + 1) * block));
    let mut all = blocks.to_vec();
    all.push((199 * block, size));
    assert_eq!(list(size, size), all);
    // It was shorter then, and it is shorter now.
    assert_eq!(
        list(150 * block, 160 * block)[3..],
        [blocks[3], (150 * block, 160 * block)]
    );
    let error = metadata.changes(3, size, 200 * block + 512).unwrap_err();
    assert!(matches!(error, EraError::VolumeSize { .. }), "{error}");
}

#[test]
fn a_device_of_many_blocks_is_read_in_parts() {
    // More than one node in each index, and arrays that end inside a block, a word and a part.
    let blocks = 3 * 64 * 509 + 77;
    let mut device = EraBuilder::new(8, blocks, 3);
    let mut expected = BTreeSet::new();
    for block in (0..blocks).step_by(331).chain([blocks - 1]) {
        device.write(block);
        expected.insert(u64::from(block));
        if block % 5 == 0 {
            device.checkpoint();
        }
        if block % 7 == 0 {
            device.digest();
        }
    }
    let image = MemoryVolume::new(device.image());
    let metadata = EraMetadata::open(&image, Root::Live).unwrap();
    for window in [64, 64 * 509, 1 << 15, 1 << 27] {
        assert_eq!(written_in(&metadata, 1, window).unwrap(), expected);
    }
}
