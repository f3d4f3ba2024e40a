//! Damaged metadata: an error or the same answer, and never a panic, a hang or much memory.

use super::super::build::with_right_checksums;
use super::*;
use crate::error::ExitCode;

/// All that can be asked of the small pool.
#[derive(Debug, PartialEq)]
struct Answers {
    mapped: Vec<Vec<u64>>,
    differences: Vec<(BTreeMap<u64, Now>, DiffSummary)>,
    details: Vec<DeviceDetails>,
}

const IDS: [u64; 3] = [1, 2, 7];

fn ask(image: Vec<u8>, root: Root) -> Result<Answers> {
    let image = MemoryVolume::new(image);
    let metadata = ThinMetadata::open(&image, root)?;
    let mut answers = Answers {
        mapped: Vec::new(),
        differences: Vec::new(),
        details: Vec::new(),
    };
    metadata.devices(|_, details| answers.details.push(details))?;
    for id in IDS {
        let mut runs = Vec::new();
        metadata.mapped(id, |run| runs.extend([run.start, run.blocks]))?;
        answers.mapped.push(runs);
    }
    for (old, new) in [(1, 7), (7, 2), (2, 1)] {
        answers.differences.push(differences(&metadata, old, new)?);
    }
    Ok(answers)
}

/// Two levels, as few blocks as show everything.
fn tiny_pool() -> PoolBuilder {
    let mut pool = PoolBuilder::new(128, 6);
    pool.create(1);
    (0..8).for_each(|block| pool.write(1, block * 2));
    pool.snapshot(2, 1);
    pool.write(1, 2);
    pool.snapshot(7, 1);
    pool.reserve();
    pool
}

#[test]
fn every_bit_flip_is_refused_or_changes_nothing() {
    let whole = tiny_pool().image();
    let expected = ask(whole.clone(), Root::Snapshot).unwrap();
    let mut refused = 0;
    for bit in 0..whole.len() * 8 {
        let mut image = whole.clone();
        image[bit / 8] ^= 1 << (bit % 8);
        match ask(image, Root::Snapshot) {
            Ok(answers) => assert_eq!(answers, expected, "bit {bit}"),
            Err(error) => {
                refused += 1;
                assert_eq!(error.exit_code(), ExitCode::TrackingLost, "{error}");
            }
        }
    }
    assert!(refused > 8 * 4096, "{refused}");
}

#[test]
fn flips_with_right_checksums_are_survived() {
    let whole = tiny_pool().image();
    let blocks = whole.len() / 4096;
    let mut accepted = 0;
    for block in 0..blocks {
        let used = if block == 0 { 368 } else { 32 + 6 * 32 };
        for bit in 0..used * 8 {
            let mut image = whole.clone();
            image[block * 4096 + bit / 8] ^= 1 << (bit % 8);
            with_right_checksums(&mut image[block * 4096..][..4096]);
            match ask(image, Root::Snapshot) {
                Ok(_) => accepted += 1,
                Err(error) => assert_eq!(error.exit_code(), ExitCode::TrackingLost, "{error}"),
            }
        }
    }
    assert!(
        accepted > 1000,
        "times, data blocks and padding: {accepted}"
    );
}

#[test]
fn metadata_that_is_cut_short_is_refused() {
    let whole = small_pool().image();
    let expected = ask(whole.clone(), Root::Live).unwrap();
    let mut refused = 0;
    for length in (0..whole.len()).step_by(1024) {
        match ask(whole[..length].to_vec(), Root::Live) {
            Ok(answers) => assert_eq!(answers, expected),
            Err(error) => {
                refused += 1;
                assert!(
                    matches!(
                        error,
                        ThinError::CutShort { .. } | ThinError::Outside { .. }
                    ),
                    "{error}"
                );
            }
        }
    }
    assert!(refused > 60, "{refused}");
}

/// A change to a block, its checksum made right.
fn patched(image: &[u8], block: u64, at: usize, value: u64, length: usize) -> Vec<u8> {
    let mut image = image.to_vec();
    let place = block as usize * 4096 + at;
    image[place..place + length].copy_from_slice(&value.to_le_bytes()[..length]);
    with_right_checksums(&mut image);
    image
}

fn field(image: &[u8], block: u64, at: usize) -> u64 {
    let place = block as usize * 4096 + at;
    u64::from_le_bytes(image[place..place + 8].try_into().unwrap())
}

#[test]
fn each_field_of_the_superblock_counts() {
    let whole = small_pool().image();
    for (name, at, value, length) in [
        ("magic", 32, 1, 8),
        ("block number", 8, 1, 8),
        ("version", 40, 3, 4),
        ("set of incompatible features", 360, 1, 4),
        ("metadata block size in sectors", 340, 16, 4),
        ("block size in sectors", 336, 64, 4),
        ("block size in sectors", 336, 0, 4),
        ("block size in sectors", 336, 200, 4),
        ("block size in sectors", 336, (2 << 20) + 128, 4),
        ("time", 44, 1 << 24, 4),
    ] {
        let error = ask(patched(&whole, 0, at, value, length), Root::Live).unwrap_err();
        assert!(
            matches!(error, ThinError::Superblock { field, .. } if field == name),
            "{name}: {error}"
        );
    }
    let mut damaged = whole;
    damaged[100] ^= 1;
    let error = ask(damaged, Root::Live).unwrap_err();
    assert!(error.to_string().contains("its checksum is"), "{error}");
}

#[test]
fn each_field_of_a_node_counts() {
    let pool = small_pool();
    let whole = pool.image();
    let root = {
        let image = MemoryVolume::new(whole.clone());
        let metadata = ThinMetadata::open(&image, Root::Live).unwrap();
        metadata.known(1).unwrap().1
    };
    // Off the leftmost path, which tells how deep leaves are, but for `first`.
    let values = 32 + 6 * 8;
    let first = field(&whole, root, values);
    let second = field(&whole, root, values + 8);
    let leaf = field(&whole, first, values + 8);
    for (name, block, at, value, length) in [
        ("block number", leaf, 8, 0, 8),
        ("kind", leaf, 4, 3, 4),
        ("kind", leaf, 4, 0, 4),
        ("kind", leaf, 4, 1, 4),
        ("kind", second, 4, 2, 4),
        ("value size", leaf, 24, 16, 4),
        ("value size", root, 24, 4, 4),
        ("room for entries", leaf, 20, 255, 4),
        ("number of entries", leaf, 16, 7, 4),
        ("number of entries", root, 16, 0, 4),
        ("last key", leaf, 16, 4, 4),
        ("next key", leaf, 32 + 8, 0, 8),
        ("last key", leaf, 32 + 16, 1 << 40, 8),
        ("first key", leaf, 32, 1, 8),
        // The node holds itself, or its parent: what is there is not what the bounds say.
        ("last key", first, values, first, 8),
        ("last key", first, values, root, 8),
    ] {
        let mut image = patched(&whole, block, at, value, length);
        if (name, at) == ("last key", 16) {
            // One entry more than there is.
            image = patched(&image, leaf, 32 + 8 * 3, u64::MAX, 8);
        }
        let error = ask(image, Root::Live).unwrap_err();
        assert!(
            matches!(error, ThinError::Node { field, .. } if field == name),
            "{name} {block} {at}: {error}"
        );
    }
    for outside in [0, whole.len() as u64 / 4096, u64::MAX] {
        let error = ask(patched(&whole, first, values, outside, 8), Root::Live).unwrap_err();
        assert!(
            matches!(error, ThinError::Outside { block, .. } if block == outside),
            "{error}"
        );
    }
}

#[test]
fn a_tree_without_an_end_is_refused() {
    let pool = small_pool();
    let image = MemoryVolume::new(pool.image());
    let metadata = ThinMetadata::open(&image, Root::Live).unwrap();
    let root = metadata.known(1).unwrap().1;
    // A node that has itself as its only child: the bounds allow that.
    let alone = patched(&pool.image(), root, 16, 1, 4);
    let error = ask(patched(&alone, root, 32 + 6 * 8, root, 8), Root::Live).unwrap_err();
    assert!(
        matches!(error, ThinError::Node { field: "depth", .. }),
        "{error}"
    );
}

/// Empty leaves are the one kind of node of which a tree could hold as many as it likes.
#[test]
fn a_tree_has_no_more_nodes_than_there_are_blocks() {
    let mut pool = PoolBuilder::new(128, 252);
    pool.create(1);
    pool.write_new(1, 0..300);
    let mut whole = pool.image();
    let image = MemoryVolume::new(whole.clone());
    let metadata = ThinMetadata::open(&image, Root::Live).unwrap();
    let root = metadata.known(1).unwrap().1;
    // The root has 252 children, which are all the same leaf.
    let values = 32 + 252 * 8;
    let leaf = field(&whole, root, values);
    whole = patched(&whole, leaf, 16, 0, 4);
    whole = patched(&whole, root, 16, 252, 4);
    for index in 0..252 {
        let at = index as usize * 8;
        whole = patched(&whole, root, 32 + at, index, 8);
        whole = patched(&whole, root, values + at, leaf, 8);
    }
    let image = MemoryVolume::new(whole);
    let metadata = ThinMetadata::open(&image, Root::Live).unwrap();
    let error = metadata.mapped(1, |_| ()).unwrap_err();
    assert!(matches!(error, ThinError::TooManyNodes { .. }), "{error}");
}

#[test]
fn a_device_in_one_tree_only_is_damage() {
    let pool = small_pool();
    let whole = pool.image();
    let image = MemoryVolume::new(whole.clone());
    let superblock = *ThinMetadata::open(&image, Root::Live).unwrap().superblock();
    for (root, missing_in) in [
        (superblock.details_root, Tree::Details),
        (superblock.mapping_root, Tree::Devices),
    ] {
        // The last of its devices goes.
        let fewer = patched(&whole, root, 16, 2, 4);
        let error = ask(fewer, Root::Live).unwrap_err();
        assert!(
            matches!(error, ThinError::HalfADevice { device: 7, missing_in: tree } if tree == missing_in),
            "{error}"
        );
        assert_eq!(error.exit_code(), ExitCode::TrackingLost);
    }
}
