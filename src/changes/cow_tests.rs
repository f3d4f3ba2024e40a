//! Tests of the exception store reader against a model, through stores built in the kernel's order.

use std::collections::BTreeSet;
use std::io;

use proptest::prelude::*;

use super::cow::{ExceptionTable, Layout, StoreError, read_exceptions};
use super::cow_build::{StoreBuilder, store_bytes, store_of};
use crate::change_list::ChangeList;
use crate::error::ExitCode;
use crate::extent::{Extent, Kind};
use crate::volume::ReadAt;
use crate::volume::memory::MemoryVolume;

/// Stores are built without data: the reader looks at metadata and sizes only.
fn store(chunk_bytes: u64, old_chunks: &[u64]) -> Vec<u8> {
    let layout = Layout::new(chunk_bytes).unwrap();
    store_of(layout, old_chunks.iter().map(|chunk| (*chunk, &[][..]))).unwrap()
}

fn read(store: Vec<u8>, origin_size: u64) -> Result<ExceptionTable, StoreError> {
    read_exceptions(&MemoryVolume::new(store), origin_size)
}

/// The model: a set of chunks, turned into extents one chunk at a time.
fn model(chunk_bytes: u64, old_chunks: &[u64], origin_size: u64) -> ChangeList {
    let distinct: BTreeSet<u64> = old_chunks.iter().copied().collect();
    let extents = distinct.iter().map(|chunk| {
        let start = chunk * chunk_bytes;
        Extent::from_range(start, (start + chunk_bytes).min(origin_size)).unwrap()
    });
    extents
        .map(|extent| crate::extent::Change {
            extent,
            kind: Kind::Data,
        })
        .collect()
}

#[test]
fn every_chunk_size_with_empty_partial_and_full_areas() {
    for shift in 9..=19 {
        let chunk = 1u64 << shift;
        let per_area = chunk / 16;
        let counts = [
            0,
            1,
            per_area - 1,
            per_area,
            per_area + 1,
            2 * per_area,
            3 * per_area + 7,
        ];
        // Large chunks would make a large store in memory: one area of those is enough.
        let most = if shift > 13 { 200 } else { u64::MAX };
        for count in counts.into_iter().filter(|count| *count <= most) {
            let old: Vec<u64> = (0..count).map(|i| (i * 7) % (8 * per_area + 1)).collect();
            let origin = (8 * per_area + 1) * chunk - 512;
            let table = read(store(chunk, &old), origin).unwrap();
            assert_eq!(table.chunk_bytes, chunk);
            assert_eq!(table.exceptions, count, "{chunk}");
            assert_eq!(table.areas, count / per_area + 1);
            assert_eq!(table.changes, model(chunk, &old, origin), "{chunk} {count}");
        }
    }
}

#[test]
fn the_kernels_places_are_known() {
    let layout = Layout::new(4096).unwrap();
    assert_eq!(layout.area_chunk(0), Some(1));
    assert_eq!(layout.area_chunk(1), Some(258));
    assert_eq!(layout.data_chunk(0), Some(2));
    assert_eq!(layout.data_chunk(255), Some(257));
    assert_eq!(layout.data_chunk(256), Some(259));
    // An empty 4 KiB snapshot uses 16 sectors, one with three exceptions 40 (as `dmsetup status` says).
    assert_eq!(store_bytes(layout, 0), Some(16 * 512));
    assert_eq!(store_bytes(layout, 3), Some(40 * 512));
    assert_eq!(store_bytes(layout, 256), Some(259 * 4096));
    let bytes = store(4096, &[3]);
    assert_eq!(bytes[..16], *b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
    assert_eq!(bytes[4096..4112], *b"\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
}

#[test]
fn a_partial_last_chunk_is_clipped_to_the_origin() {
    let table = read(store(65536, &[1, 0]), 65536 + 512).unwrap();
    let only = table.changes.iter().next().unwrap().extent;
    assert_eq!(
        (table.changes.len(), only.offset(), only.length()),
        (1, 0, 65536 + 512)
    );
}

#[test]
fn duplicates_are_counted_and_change_nothing() {
    let table = read(store(512, &[5, 1, 5, 5, 2]), 512 * 6).unwrap();
    assert_eq!((table.exceptions, table.duplicates), (5, 2));
    assert_eq!(table.changes, model(512, &[1, 2, 5], 512 * 6));
    // Also where the last chunk is partial.
    assert_eq!(read(store(1024, &[1, 1]), 1536).unwrap().duplicates, 1);
}

#[test]
fn nothing_is_read_after_the_end_of_the_table() {
    let mut bytes = store(512, &[1, 2]);
    // A second entry area follows nowhere, and what stands after the zero entry is not a table.
    bytes[512 + 3 * 16..512 + 4 * 16].fill(0xff);
    assert_eq!(read(bytes, 512 * 8).unwrap().exceptions, 2);
}

#[test]
fn damage_is_told_apart_and_means_tracking_lost() {
    let damaged = |at: usize, value: u64, length: usize| {
        let mut bytes = store(512, &[1, 2, 3]);
        bytes[at..at + length].copy_from_slice(&value.to_le_bytes()[..length]);
        let error = read(bytes, 512 * 8).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::TrackingLost, "{error}");
        error
    };
    use StoreError::*;
    assert!(matches!(damaged(0, 0, 4), NeverWritten));
    assert!(matches!(
        damaged(0, 0x7041_6e54, 4),
        WrongMagic { found: 0x7041_6e54 }
    ));
    assert!(matches!(damaged(4, 0, 4), Invalid { found: 0 }));
    assert!(matches!(damaged(4, 2, 4), Invalid { found: 2 }));
    assert!(matches!(damaged(8, 2, 4), UnknownVersion { found: 2 }));
    for sectors in [0, 3, 65536, u64::from(u32::MAX)] {
        assert!(
            matches!(damaged(12, sectors, 4), ChunkSize { .. }),
            "{sectors}"
        );
    }
    assert!(matches!(
        damaged(528, 8, 8),
        OldChunk {
            offset: 528,
            found: 8,
            expected_below: 8
        }
    ));
    assert!(matches!(damaged(528, 1 << 56, 8), OldChunk { .. }));
    assert!(matches!(
        damaged(536, 5, 8),
        NewChunk {
            offset: 528,
            found: 5,
            expected_below: 5
        }
    ));
    assert!(matches!(damaged(536, 1 << 56, 8), NewChunk { .. }));
    assert!(matches!(
        damaged(536, 1, 8),
        NewChunkIsMetadata {
            offset: 528,
            found: 1
        }
    ));
}

#[test]
fn a_store_that_ends_after_a_full_area_has_lost_its_tail() {
    let per_area = 512 / 16;
    let old: Vec<u64> = (0..per_area).collect();
    let whole = store(512, &old);
    let cut = whole[..whole.len() - 512].to_vec();
    assert_eq!(read(whole, 512 * 64).unwrap().exceptions, per_area);
    let error = read(cut, 512 * 64).unwrap_err();
    assert!(matches!(error, StoreError::Truncated { .. }), "{error}");
    assert!(error.to_string().contains("area 1 of the table"), "{error}");
}

#[test]
fn no_truncation_gives_a_shorter_list() {
    for (chunk, count) in [
        (512, 70),
        (512, 64),
        (1024, 130),
        (4096, 300),
        (4096, 256),
        (8192, 3),
    ] {
        let old: Vec<u64> = (0..count).map(|i| i * 2).collect();
        let origin = 2 * count * chunk;
        let whole = store(chunk, &old);
        let full = read(whole.clone(), origin).unwrap();
        for length in (0..whole.len()).step_by(512) {
            if let Ok(table) = read(whole[..length].to_vec(), origin) {
                assert_eq!(
                    table.changes, full.changes,
                    "{chunk} {count} cut at {length}"
                );
            }
        }
        // A zeroed tail in place of the cut: a sparse copy that stopped early. The entries say so only
        // where metadata was lost, so this is what the digest of a copy is for; it must not panic.
        for length in (0..whole.len()).step_by(512) {
            let mut bytes = whole.clone();
            bytes[length..].fill(0);
            let _ = read(bytes, origin);
        }
    }
}

#[test]
fn an_origin_too_large_for_a_bitmap_gives_the_same_list() {
    // 2^29 chunks of 512 B and the same places in a small origin, shifted up.
    let small: Vec<u64> = (0..500u64).map(|i| i.wrapping_mul(7919) % 1000).collect();
    let shift = 1u64 << 28;
    let large: Vec<u64> = small.iter().map(|chunk| chunk + shift).collect();
    let origin = (shift + 1000) * 512 - 100;
    let table = read(store(512, &large), origin).unwrap();
    assert_eq!(table.changes, model(512, &large, origin));
    assert_eq!(
        table.duplicates,
        read(store(512, &small), 512_000).unwrap().duplicates
    );
}

#[test]
fn an_origin_larger_than_a_device_is_refused() {
    let error = read(store(512, &[]), u64::MAX).unwrap_err();
    assert!(matches!(error, StoreError::OriginSize { found: u64::MAX }));
}

#[test]
fn a_builder_writes_data_where_the_entries_say() {
    let target = MemoryVolume::default();
    let mut builder = StoreBuilder::new(&target, Layout::new(512).unwrap());
    for index in 0..40u8 {
        builder.push(u64::from(index) * 3, &[index; 512]).unwrap();
    }
    assert!(builder.push(1, &[0; 513]).is_err(), "more than a chunk");
    let size = builder.finish().unwrap();
    let bytes = target.bytes();
    assert_eq!(bytes.len() as u64, size);
    for index in 0..40usize {
        let chunk = if index < 32 { index + 2 } else { index + 3 };
        assert_eq!(
            bytes[chunk * 512..][..512],
            [u8::try_from(index).unwrap(); 512],
            "{index}"
        );
    }
}

proptest! {
    #[test]
    fn the_list_is_the_set_of_chunks_written(
        shift in 9u32..14,
        old in prop::collection::vec(0u64..2000, 0..900),
        tail in 1u64..512,
    ) {
        let chunk = 1u64 << shift;
        let origin = 1999 * chunk + tail;
        let table = read(store(chunk, &old), origin).unwrap();
        prop_assert_eq!(&table.changes, &model(chunk, &old, origin));
        let distinct = old.iter().collect::<BTreeSet<_>>().len() as u64;
        prop_assert_eq!(table.exceptions, old.len() as u64);
        prop_assert_eq!(table.duplicates, table.exceptions - distinct);
    }

    #[test]
    fn random_bit_flips_never_panic(
        old in prop::collection::vec(0u64..100, 0..80),
        flips in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
    ) {
        let mut bytes = store(512, &old);
        for flip in flips {
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        crate::fuzzing::fuzz_cow(&bytes);
        if let Ok(table) = read(bytes, 100 * 512) {
            prop_assert!(table.changes.iter().all(|change| change.extent.end() <= 100 * 512));
        }
    }
}

/// Every single flip of a small store's metadata: an error, or a list inside the origin.
#[test]
fn every_bit_flip_of_the_metadata_is_survived() {
    let whole = store(512, &[1, 7, 3]);
    for bit in (0..16 * 8).chain(512 * 8..(512 + 4 * 16) * 8) {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(table) = read(bytes, 8 * 512) {
            assert!(
                table
                    .changes
                    .iter()
                    .all(|change| change.extent.end() <= 8 * 512)
            );
        }
    }
}

/// A store whose reads fail from some place on.
struct Failing {
    store: MemoryVolume,
    from: u64,
}

impl ReadAt for Failing {
    fn size_bytes(&self) -> u64 {
        self.store.size_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + buffer.len() as u64 > self.from {
            return Err(io::Error::other("a bad block"));
        }
        self.store.read_exact_at(buffer, offset)
    }
}

/// More entries than one batch of areas holds, on an origin that two threads share: a run crosses the middle.
#[test]
fn long_tables_are_read_ahead_and_lose_nothing() {
    const CHUNK: u64 = 512;
    let chunks = 1u64 << 21;
    let middle = chunks / 2;
    let around = (0..5000u64).map(|n| middle - 2500 + n);
    let scattered = (0..45_000u64).map(|n| (n * 7919 * 13) % chunks);
    let old: Vec<u64> = around.chain(scattered).collect();
    let origin = chunks * CHUNK - 100;
    let bytes = store(CHUNK, &old);
    let table = read(bytes.clone(), origin).unwrap();
    assert_eq!(table.exceptions, old.len() as u64);
    assert_eq!(table.areas, old.len() as u64 / 32 + 1);
    assert_eq!(table.changes, model(CHUNK, &old, origin));

    let layout = Layout::new(CHUNK).unwrap();
    let at = |area: u64| layout.area_chunk(area).unwrap() * CHUNK;
    let failing = |bytes: Vec<u8>, from: u64| {
        let store = MemoryVolume::new(bytes);
        read_exceptions(&Failing { store, from }, origin)
    };
    // Nothing after the table is read, and a bad block in it is an error with its place.
    let last = table.areas - 1;
    assert_eq!(failing(bytes.clone(), at(last) + CHUNK).unwrap(), table);
    for area in [1, 511, 512, 513, last] {
        let error = failing(bytes.clone(), at(area)).unwrap_err();
        assert!(
            matches!(error, StoreError::Read { offset, .. } if offset == at(area)),
            "{error}"
        );
        assert_eq!(error.exit_code(), ExitCode::Failed);
    }
    // What comes first in the table counts: an end before the bad block, a bad entry before it.
    for area in [510, 700u64] {
        let entry = at(area) as usize + 16;
        let mut ended = bytes.clone();
        ended[entry + 8..entry + 16].fill(0);
        let short = failing(ended, at(area + 1)).unwrap();
        assert_eq!(short.exceptions, area * 32 + 1);
        let mut damaged = bytes.clone();
        damaged[entry..entry + 8].fill(0xff);
        let error = failing(damaged, at(area + 1)).unwrap_err();
        assert!(matches!(error, StoreError::OldChunk { .. }), "{error}");
    }
}
