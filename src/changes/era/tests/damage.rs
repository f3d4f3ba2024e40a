//! Damaged metadata: an error or the same answer, and never a panic, a hang or much memory.

use super::super::array::{ENTRIES, HEADER_BYTES};
use super::super::build::with_right_checksums;
use super::super::superblock as at;
use super::*;
use crate::error::ExitCode;
use crate::volume::WriteAt;

/// As few blocks as show everything: a digested era, one that is not, and the current one.
fn tiny_device() -> EraBuilder {
    let mut device = EraBuilder::new(8, 130, 2);
    for block in [3, 129] {
        device.write(block);
        device.checkpoint();
    }
    device.digest();
    device.write(64);
    device
}

/// Asks the same of every image that has one bit flipped, among the first `bytes` of each block.
fn flip_every_bit(whole: &[u8], bytes: usize, root: Root) {
    let expected = ask(whole.to_vec(), root, 1).unwrap();
    let image = MemoryVolume::new(whole.to_vec());
    let mut refused = 0;
    for at in (0..whole.len()).filter(|at| at % METADATA_BLOCK_BYTES < bytes) {
        for bit in 0..8 {
            let flipped = whole[at] ^ (1 << bit);
            image.write_all_at(&[flipped], at as u64).unwrap();
            let found = EraMetadata::open(&image, root).and_then(|metadata| {
                let found = written(&metadata, 1)?;
                metadata.check_unchanged()?;
                Ok(found)
            });
            match found {
                Ok(found) => assert_eq!(found, expected, "byte {at}, bit {bit}"),
                Err(error) => {
                    refused += 1;
                    assert_eq!(error.exit_code(), ExitCode::TrackingLost, "{error}");
                }
            }
        }
        image.write_all_at(&whole[at..=at], at as u64).unwrap();
    }
    assert!(refused > bytes * 8 * 7, "{refused}");
}

#[test]
fn every_bit_flip_is_refused_or_changes_nothing() {
    let mut device = tiny_device();
    flip_every_bit(&device.image(), METADATA_BLOCK_BYTES, Root::Live);
    device.take_snapshot();
    device.write(5);
    flip_every_bit(&device.image(), 64, Root::Snapshot);
}

#[test]
fn flips_with_right_checksums_are_survived() {
    let whole = small_device().image();
    for block in 0..whole.len() / METADATA_BLOCK_BYTES {
        for bit in 0..256 * 8 {
            let mut image = whole.clone();
            image[block * METADATA_BLOCK_BYTES + bit / 8] ^= 1 << (bit % 8);
            with_right_checksums(&mut image);
            if let Err(error) = ask(image, Root::Live, 2) {
                assert_eq!(error.exit_code(), ExitCode::TrackingLost, "{error}");
            }
        }
    }
}

#[test]
fn metadata_that_is_cut_short_is_refused() {
    let whole = small_device().image();
    // The last block is not used.
    for length in (0..whole.len() - METADATA_BLOCK_BYTES).step_by(512) {
        let error = ask(whole[..length].to_vec(), Root::Live, 1).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::TrackingLost, "{error}");
    }
}

/// The image with another value in a field of 4 bytes of a superblock or an array block.
fn with(block: u64, at: usize, value: u32) -> Vec<u8> {
    let mut image = small_device().image();
    let at = usize::try_from(block).unwrap() * METADATA_BLOCK_BYTES + at;
    image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    with_right_checksums(&mut image);
    image
}

#[test]
fn each_field_of_the_superblock_counts() {
    for (place, value, field) in [
        (at::MAGIC_AT, 1, "magic"),
        (at::BLOCK, 1, "block number"),
        (at::VERSION_AT, 2, "version"),
        (
            at::METADATA_BLOCK_SECTORS,
            16,
            "metadata block size in sectors",
        ),
        (at::BLOCK_SECTORS, 0, "block size in sectors"),
        (at::BLOCK_SECTORS, 12, "block size in sectors"),
    ] {
        let error = ask(with(0, place, value), Root::Live, 1).unwrap_err();
        assert!(
            matches!(error, EraError::Superblock { field: wrong, .. } if wrong == field),
            "{field}: {error}"
        );
    }
    // Another number of blocks fits neither the era array nor, with as many words, its last block.
    for blocks in [0, 199, 201, 1018, 5000, u32::MAX] {
        let error = ask(with(0, at::BLOCKS, blocks), Root::Live, 1).unwrap_err();
        assert_eq!(
            error.exit_code(),
            ExitCode::TrackingLost,
            "{blocks}: {error}"
        );
    }
    for bits in [0, 128, 300, 64 * 509 + 1, u32::MAX] {
        let error = ask(with(0, at::CURRENT_BITS, bits), Root::Live, 1).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::TrackingLost, "{bits}: {error}");
    }
    let error = ask(with(0, at::CURRENT_ERA, 3), Root::Live, 2).unwrap_err();
    assert!(matches!(error, EraError::EraToCome { .. }), "{error}");
}

/// Blocks of the arrays of `image`: those whose number of entries, taken for one, is `entries`.
fn array_blocks(image: &[u8], value_bytes: u32) -> Vec<u64> {
    let is_array =
        |block: &[u8]| block[12..16] == value_bytes.to_le_bytes() && block[4..8] > [3; 4][..];
    let blocks = image.chunks(METADATA_BLOCK_BYTES).zip(0..);
    blocks
        .filter(|(bytes, _)| is_array(bytes))
        .map(|(_, block)| block)
        .collect()
}

#[test]
fn each_field_of_an_array_block_counts() {
    let whole = small_device().image();
    let found = array_blocks(&whole, 4);
    let eras = *found.last().unwrap();
    for (place, value, field) in [
        (4, 1017, "room for entries"),
        (ENTRIES, 199, "number of entries"),
        (12, 8, "value size"),
        (16, 77, "block number"),
    ] {
        let error = ask(with(eras, place, value), Root::Live, 1).unwrap_err();
        assert!(
            matches!(error, EraError::ArrayBlock { field: wrong, .. } if wrong == field),
            "{field}: {error}"
        );
    }
    let error = ask(with(eras, HEADER_BYTES, 6), Root::Live, 1).unwrap_err();
    assert!(
        matches!(error, EraError::EraToCome { found: 6, .. }),
        "{error}"
    );
}

#[test]
fn arrays_that_share_their_blocks_are_refused() {
    // Writesets without number that are all one: the reader would never come to an end.
    let mut device = EraBuilder::new(8, 64 * 509 * 4, 4);
    device.write(1);
    let image = device.image();
    let blocks = image.len() / METADATA_BLOCK_BYTES;
    let root = u64::from_le_bytes(image[at::CURRENT_ROOT..][..8].try_into().unwrap());
    let bits = device.blocks().to_le_bytes();
    let value = [&bits[..], &root.to_le_bytes()].concat();
    let mut image = image;
    let entries: Vec<_> = (1..=1000).map(|era| (era, value.clone())).collect();
    let tree = super::super::super::btree::build::write_tree(&mut image, &entries, 12, 200);
    image[at::WRITESETS_ROOT..][..8].copy_from_slice(&tree.to_le_bytes());
    image[at::CURRENT_ERA..][..4].copy_from_slice(&2000_u32.to_le_bytes());
    image.resize((blocks + 1010) * METADATA_BLOCK_BYTES, 0);
    with_right_checksums(&mut image);
    let error = ask(image, Root::Live, 1).unwrap_err();
    assert!(matches!(error, EraError::TooManyBlocks { .. }), "{error}");
}
